//! Models in the order of channels that a mask was made in.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::model::Model;
use super::{Observer, RunError};
use crate::folder::RunPaths;
use crate::mask::{MaskReader, Masks, npz};
use crate::model::{Channels, Checkpoint, Permutation};

/// Channels that may change places.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Permute {
    /// All stay
    None,
    /// Inside the feed-forward layers
    Ffn,
    /// Of values, within each key head
    Heads,
    /// Of the residual stream
    Residual,
}

/// The channels that are asked for.
pub(crate) fn channels(given: &[Permute]) -> Result<Vec<Channels>, RunError> {
    let of = |arg: &Permute| match arg {
        Permute::None => None,
        Permute::Ffn => Some(Channels::Ffn),
        Permute::Heads => Some(Channels::Heads),
        Permute::Residual => Some(Channels::Residual),
    };
    let all: Vec<Channels> = given.iter().filter_map(of).collect();
    if !all.is_empty() && given.contains(&Permute::None) {
        return Err(RunError::Options("--permute none goes with no other channels".into()));
    }
    Ok(all)
}

/// Where the permutation is that a mask names.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PermutationSpec {
    /// Permutation that the mask names; `none` where the model is in its order already [default: permutation.safetensors beside the mask;
    /// none where the model's sparsity_report.json names it, or its weights fit the mask better as they are]
    #[arg(long, value_name = "FILE|none")]
    pub permutation: Option<PathBuf>,
}

impl PermutationSpec {
    /// The file, where one is given.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.permutation.as_deref().filter(|_| !self.none())
    }

    /// Whether nothing is to be permuted.
    pub(crate) fn none(&self) -> bool {
        self.permutation.as_deref().is_some_and(|given| given == Path::new("none"))
    }
}

/// The permutation that lies beside a mask, or another file of a run.
pub(crate) fn beside(file: &Path) -> PathBuf {
    RunPaths::new(file.parent().unwrap_or(Path::new(""))).permutation()
}

/// The permutation that a mask file says its model was in; an npz file says none.
pub(crate) fn named_by(mask: &Path) -> Result<Option<String>, RunError> {
    match npz::is_npz(mask)? {
        true => Ok(None),
        false => Ok(MaskReader::packed(mask)?.permutation),
    }
}

/// Reads the permutation of this hash, which `what` names, from the first of these files that is there.
pub(crate) fn find(hash: &str, what: &Path, files: &[PathBuf]) -> Result<Permutation, RunError> {
    let Some(path) = files.iter().find(|path| path.is_file()) else {
        let places: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        return Err(RunError::Options(format!(
            "{} belongs to a permuted model, but its permutation is not there ({}): give the permutation.safetensors of its run with \
             --permutation",
            what.display(),
            places.join(", ")
        )));
    };
    let permutation = Permutation::read(path)?;
    if permutation.hash() != hash {
        return Err(RunError::Options(format!(
            "{} is another permutation than the one that {} belongs to: give the permutation.safetensors of its run with --permutation",
            path.display(),
            what.display()
        )));
    }
    Ok(permutation)
}

/// A folder in which a scratch file has as much room as what is written to `out`.
pub(crate) fn room_near(out: &Path) -> PathBuf {
    let absolute = std::path::absolute(out).unwrap_or_default();
    let there = absolute.ancestors().skip(1).find(|folder| folder.is_dir());
    there.map_or_else(std::env::temp_dir, Path::to_path_buf)
}

impl Model {
    /// Puts the model into the order of channels that a mask was made in, with a scratch file in the folder `near`.
    ///
    /// # Errors
    /// A permutation that is missing, another one, or does not fit.
    pub(crate) fn in_order_of(
        &mut self,
        mask: &Path,
        args: &PermutationSpec,
        near: &Path,
        observer: &dyn Observer,
    ) -> Result<(), RunError> {
        let named = named_by(mask)?;
        let own = self.checkpoint.permutation().map(String::from);
        match (named, own, args.file()) {
            (None, _, None) => Ok(()),
            // Of an npz file one has to know.
            (None, None, Some(file)) if npz::is_npz(mask)? => self.permute(&Permutation::read(file)?, near),
            (None, _, Some(_)) => Err(RunError::Options(format!(
                "{} belongs to no permutation: leave --permutation out",
                mask.display()
            ))),
            (Some(hash), Some(own), _) if own == hash => Ok(()),
            (Some(_), Some(_), _) => Err(RunError::Options(format!(
                "{} belongs to another permutation than the one that {} is in: give the dense model that the run was made of",
                mask.display(),
                self.folder.display()
            ))),
            (Some(hash), None, _) if args.none() => {
                self.checkpoint.is_in_order_of(hash);
                Ok(())
            }
            (Some(hash), None, Some(file)) => self.permute(&find(&hash, mask, &[file.into()])?, near),
            (Some(hash), None, None) => {
                let permutation = find(&hash, mask, &[beside(mask)])?;
                let permuted = self.checkpoint.permuted(&self.config, &permutation, near)?;
                // A model that was tuned after pruning has no report any more. Masks prune small weights: of a model in another order
                // they would take half.
                let (as_it_is, moved) =
                    (self.pruned_share(&self.checkpoint, mask)?, self.pruned_share(&permuted, mask)?);
                if as_it_is < moved {
                    observer.warn(&format!(
                        "{} is taken to be in the order of {} already, as that prunes the smaller weights; --permutation FILE permutes it",
                        self.folder.display(),
                        mask.display()
                    ));
                    self.checkpoint.is_in_order_of(hash);
                } else {
                    self.checkpoint = permuted;
                }
                Ok(())
            }
        }
    }

    /// The share of the squares of the weights that a mask prunes, in the first and the middle block.
    fn pruned_share(&self, checkpoint: &Checkpoint, mask: &Path) -> Result<f64, RunError> {
        let masks = self.mask_file(mask, None)?;
        let (mut pruned, mut all) = (0f64, 0f64);
        for p in
            [0, self.config.num_layers / 2].into_iter().flat_map(|block| self.config.block_projections(block))
        {
            let (Some(mask), view) = (masks.mask(&p.name)?, checkpoint.tensor(&p.name)?) else { continue };
            let mut row = vec![0f32; p.cols];
            for (number, words) in mask.words().chunks_exact(mask.words_per_row().max(1)).enumerate() {
                if !view.row_f32(number, &mut row) {
                    continue;
                }
                for (col, w) in row.iter().enumerate() {
                    let keeps = words.get(col / 32).is_none_or(|word| word >> (col % 32) & 1 == 1);
                    let square = f64::from(*w).powi(2);
                    all += square;
                    pruned += if keeps { 0.0 } else { square };
                }
            }
        }
        Ok(pruned / all.max(f64::MIN_POSITIVE))
    }

    /// Puts the model into another order.
    ///
    /// # Errors
    /// A permutation that does not fit; what the system refuses.
    pub(crate) fn permute(&mut self, permutation: &Permutation, near: &Path) -> Result<(), RunError> {
        self.checkpoint = self.checkpoint.permuted(&self.config, permutation, near)?;
        Ok(())
    }
}
