//! The order of channels of a run: looked for, or that of an unfinished run or of a start mask.

use std::path::Path;
use std::time::Instant;

use super::RunError;
use super::observer::plain;
use super::order_kept::Order;
use super::permuted;
use super::plan::RunPlan;
use super::start::StartSpec;
use crate::folder::{FolderError, RunFolder, RunPaths};
use crate::fsio;
use crate::kernel::Kernels;
use crate::model::{Channels, Permutation};
use crate::prune::permute::{
    Gain, PermuteOptions, Permuting, input_norms, norms_options, permute, windows_for_norms,
};
use crate::prune::{OneShot, plan};

impl RunPlan<'_> {
    /// The order of the run in `run`; none where nothing moves.
    ///
    /// # Errors
    /// Options that contradict each other or the start mask; an unfinished run of another order; what the device reports.
    pub(super) fn order_of_run(
        &self,
        kernels: &Kernels<'_>,
        run: &RunPaths,
    ) -> Result<Option<Order>, RunError> {
        let (wanted, kept) = (permuted::channels(&self.spec.permute)?, run.permutation());
        let one_shot = self.spec.method().one_shot();
        let starts = one_shot.is_none_or(|method| matches!(method, OneShot::Descent | OneShot::Given));
        if let Some(start) = StartSpec::file(self.spec.start_name()).filter(|_| starts) {
            return self.order_of_start(start, &wanted, run);
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        if self.checkpoint()?.permutation().is_some() {
            return Err(RunError::Options(format!(
                "{} is permuted already: leave --permute out, or give the dense model that it was made of",
                self.model()?.folder.display()
            )));
        }
        if self.spec.resume.is_none() {
            return self.search_order(kernels, wanted).map(Some);
        }
        let refuse = |problem: String| FolderError::Resume { path: run.root().into(), problem };
        if !kept.is_file() {
            return Err(refuse(
                "it has no permutation.safetensors, so it was begun without --permute".into(),
            )
            .into());
        }
        let permutation = Permutation::read(&kept)?;
        let names = |all: &[Channels]| all.iter().map(|c| c.name()).collect::<Vec<_>>().join(",");
        let moved = permutation.channels();
        if moved.iter().any(|channels| !wanted.contains(channels)) {
            return Err(refuse(format!("it was begun with --permute {}", names(&moved))).into());
        }
        Ok(Some(Order::new(permutation, &[], None)))
    }

    /// That of a start mask.
    fn order_of_start(
        &self,
        start: &Path,
        wanted: &[Channels],
        run: &RunPaths,
    ) -> Result<Option<Order>, RunError> {
        let named = permuted::named_by(start)?;
        if !wanted.is_empty() {
            let is = if named.is_some() { "a model in an order of its own" } else { "the model as it is" };
            return Err(RunError::Options(format!(
                "the start mask {} is for {is}: leave --permute out",
                start.display()
            )));
        }
        let own = self.checkpoint()?.permutation();
        match named {
            None => Ok(None),
            Some(hash) if own == Some(hash.as_str()) => Ok(None),
            Some(_) if own.is_some() => Err(RunError::Options(format!(
                "the start mask {} belongs to another permutation than the one that {} is in: give the dense model that it was made of",
                start.display(),
                self.model()?.folder.display()
            ))),
            Some(hash) => {
                let resumed = self.spec.resume.is_some();
                let place = if resumed { run.permutation() } else { permuted::beside(start) };
                Ok(Some(Order::new(permuted::find(&hash, start, &[place])?, &[], None)))
            }
        }
    }

    /// Looks for an order.
    fn search_order(&self, kernels: &Kernels<'_>, channels: Vec<Channels>) -> Result<Order, RunError> {
        let started = Instant::now();
        let (config, checkpoint, pattern) = (self.config(), self.checkpoint()?, self.spec.select.pattern);
        let (observer, walk) = (self.observer, &self.spec.walk);
        let stop = || observer.stop();
        let norms = match &self.calib {
            Some(windows) => {
                let windows = windows.clone().first(windows_for_norms(windows.count(), windows.window()));
                let carried = walk.carried(kernels.gpu(), config, windows.count(), windows.window(), None);
                let dtype = |name: &str| Ok(checkpoint.tensor(name)?.dtype);
                let options = norms_options(pattern);
                let pass = plan::walk(kernels, config, &dtype, &self.selection, &options, Some(carried))?;
                walk.check_all(Some(&pass), Some(carried), &[])?;
                let mut bar = observer.task("norms", config.num_layers as u64);
                let progress = |done| bar.at(done as u64, &plain);
                let (model, windows) = ((config, checkpoint), (&windows, carried));
                let norms = input_norms(kernels, model, &self.selection, windows, pattern, &stop, progress)?;
                Some(norms)
            }
            None => None,
        };
        let taken = started.elapsed().as_secs_f64();
        let options = PermuteOptions { channels, pattern, seed: self.spec.windows.seed };
        let found = permute((config, checkpoint), &self.selection, norms.as_ref(), &options, &stop)?;
        let seconds = started.elapsed().as_secs_f64();
        let Permuting { permutation, gains, left } = found;
        for (channels, reason) in &left {
            self.observer.note(&format!("not permuted: {channels}: {reason}"));
        }
        let shown = |g: &Gain| format!("{} {:.4} -> {:.4}", g.channels, g.before, g.after);
        let shares: Vec<String> = gains.iter().map(shown).collect();
        self.observer.note(&format!(
            "permuted: kept share of the score {}; {seconds:.1} s, {:.1} s of them for the search",
            shares.join(", "),
            seconds - taken
        ));
        Ok(Order::new(permutation, &gains, Some(seconds)))
    }

    /// Keeps the order of the channels in the folder of the new run, and no other one.
    pub(super) fn keep_order(&self, folder: &RunFolder) -> Result<(), RunError> {
        let path = folder.paths().permutation();
        match &self.order {
            Some(order) => order.permutation.write(&path)?,
            // Of a run that was killed before its first step.
            None if path.exists() => fsio::remove_file(&path).map_err(FolderError::os(path))?,
            None => {}
        }
        Ok(())
    }
}
