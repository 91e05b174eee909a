//! Which projections are pruned.

use super::PruneError;
use crate::mask::Pattern;
use crate::model::{Architecture, Projection};

/// The projections of a model that are pruned, with their index in [`Architecture::projections`].
#[derive(Clone, Debug)]
pub struct Selection {
    /// Index and projection, in the model's order.
    pub pruned: Vec<(usize, Projection)>,
    /// Names left dense because their rows do not divide into groups.
    pub skipped: Vec<String>,
}

impl Selection {
    /// Weights under masks.
    pub fn weights(&self) -> u64 {
        self.pruned.iter().map(|(_, p)| p.rows as u64 * p.cols as u64).sum()
    }

    /// The projections alone.
    pub fn projections(&self) -> Vec<Projection> {
        self.pruned.iter().map(|(_, p)| p.clone()).collect()
    }
}

/// Selects the projections whose name contains one of `only` (all when empty).
///
/// # Errors
/// [`PruneError::Indivisible`] for one whose rows do not divide by M, unless `skip_indivisible`;
/// [`PruneError::NothingToPrune`], also where one of `only` is in no name.
pub fn select(
    config: &Architecture,
    pattern: Pattern,
    only: &[String],
    skip_indivisible: bool,
) -> Result<Selection, PruneError> {
    let (mut pruned, mut skipped) = (Vec::new(), Vec::new());
    let all = config.projections();
    // One of several that matches nothing is a slip of the pen.
    if let Some(part) = only.iter().find(|part| !all.iter().any(|p| p.name.contains(part.as_str()))) {
        return Err(PruneError::NothingToPrune { reason: format!("no projection's name contains {part}") });
    }
    for (i, p) in all.into_iter().enumerate() {
        if !only.is_empty() && !only.iter().any(|part| p.name.contains(part.as_str())) {
            continue;
        }
        if p.cols.is_multiple_of(pattern.m()) {
            pruned.push((i, p));
        } else if skip_indivisible {
            skipped.push(p.name);
        } else {
            return Err(PruneError::Indivisible { projection: p.name, cols: p.cols, m: pattern.m() });
        }
    }
    if pruned.is_empty() {
        let reason = format!("none has input features that divide by {}", pattern.m());
        return Err(PruneError::NothingToPrune { reason });
    }
    Ok(Selection { pruned, skipped })
}
