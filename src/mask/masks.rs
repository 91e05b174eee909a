//! Masks one at a time: of a set in memory, or out of a mask file.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{BitMask, MaskError, MaskSet, Pattern};
use crate::model::Architecture;

/// The masks of a model's projections, by tensor name. A projection without one stays dense.
pub trait Masks: Sync {
    /// The pattern that every mask has.
    fn pattern(&self) -> Pattern;

    /// Output and input features of every mask, by tensor name.
    fn shapes(&self) -> BTreeMap<&str, [usize; 2]>;

    /// Those of one mask.
    fn shape(&self, tensor: &str) -> Option<[usize; 2]>;

    /// The mask of a projection, if it is pruned; exactly N ones in every group.
    ///
    /// # Errors
    /// [`MaskError::In`] for a mask that is not strict, [`MaskError::File`] for one that cannot be read.
    fn mask(&self, tensor: &str) -> Result<Option<Cow<'_, BitMask>>, MaskError>;

    /// Checks that every mask belongs to a projection of the model and has its shape.
    ///
    /// # Errors
    /// [`MaskError::NoProjection`] and [`MaskError::Shape`].
    fn check_model(&self, config: &Architecture) -> Result<(), MaskError> {
        let projections = config.projections();
        let shapes: BTreeMap<&str, [usize; 2]> =
            projections.iter().map(|p| (p.name.as_str(), [p.rows, p.cols])).collect();
        for (name, found) in self.shapes() {
            let Some(&expected) = shapes.get(name) else {
                return Err(MaskError::NoProjection { tensor: name.into() });
            };
            if found != expected {
                return Err(MaskError::Shape { tensor: name.into(), expected, found });
            }
        }
        Ok(())
    }
}

impl MaskSet {
    /// Output and input features of a mask.
    fn sides(mask: &BitMask) -> [usize; 2] {
        [mask.rows(), mask.cols()]
    }
}

impl Masks for MaskSet {
    fn pattern(&self) -> Pattern {
        self.pattern
    }

    fn shapes(&self) -> BTreeMap<&str, [usize; 2]> {
        self.masks.iter().map(|(name, mask)| (name.as_str(), Self::sides(mask))).collect()
    }

    fn shape(&self, tensor: &str) -> Option<[usize; 2]> {
        self.get(tensor).map(Self::sides)
    }

    fn mask(&self, tensor: &str) -> Result<Option<Cow<'_, BitMask>>, MaskError> {
        let Some(mask) = self.get(tensor) else { return Ok(None) };
        mask.check(self.pattern).map_err(|e| e.within(tensor))?;
        Ok(Some(Cow::Borrowed(mask)))
    }
}
