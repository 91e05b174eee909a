//! Keeps what a method brings: the blocks that are done, the state of training, the metrics; and shows how far it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::observer::{Observer, Task, plain};
use crate::folder::{FolderError, RunFolder};
use crate::fsio;
use crate::mask::BitMask;
use crate::model::Checkpoint;
use crate::prune::{
    BlockResult, BlockStore, InputNorms, Learned, ProjectionReport, PruneError, Snapshot, StepReport, Watch,
};

/// Where things are kept.
pub(super) struct Kept<'a> {
    pub(super) store: &'a mut BlockStore,
    pub(super) folder: &'a mut RunFolder,
}

/// A stage that is kept in the middle of training, too.
pub(super) struct Training {
    /// Number of the stage, from 0.
    pub(super) number: usize,
    /// Where its state is kept.
    pub(super) state: PathBuf,
    /// How often.
    pub(super) every: Duration,
    /// Whether blocks are trained one by one.
    pub(super) by_block: bool,
}

/// What the blocks have come to, the finished ones of an earlier run as well.
#[derive(Default)]
pub(super) struct Brought {
    pub(super) masks: BTreeMap<String, BitMask>,
    pub(super) norms: InputNorms,
    pub(super) reports: Vec<ProjectionReport>,
}

/// Watches a walk or a stage.
pub(super) struct Keeper<'a> {
    observer: &'a dyn Observer,
    checkpoint: &'a Checkpoint,
    bar: Box<dyn Task>,
    /// Parts or steps of a block.
    inner: Option<Box<dyn Task>>,
    kept: Option<Kept<'a>>,
    training: Option<Training>,
    /// When the state was kept last.
    last: Instant,
    /// Blocks of the model.
    layers: usize,
    pub(super) brought: Brought,
}

impl<'a> Keeper<'a> {
    /// For a walk over `layers` blocks, or for a stage that is kept while it trains.
    pub(super) fn new(
        observer: &'a dyn Observer,
        checkpoint: &'a Checkpoint,
        bar: Box<dyn Task>,
        layers: usize,
        kept: Option<Kept<'a>>,
        training: Option<Training>,
    ) -> Self {
        let (last, brought) = (Instant::now(), Brought::default());
        Self { observer, checkpoint, bar, inner: None, kept, training, last, layers, brought }
    }

    fn metric(&mut self, mut line: Value) -> Result<(), PruneError> {
        if let Some(training) = &self.training {
            line["stage"] = json!(training.number + 1);
        }
        self.observer.metric(&line);
        match &mut self.kept {
            Some(kept) => Ok(kept.folder.metric(&line)?),
            None => Ok(()),
        }
    }

    fn learned(&mut self, learned: &Learned) -> Result<(), PruneError> {
        self.metric(json!(learned))?;
        let place = learned.block.map_or("model".into(), |b| format!("block {b}"));
        let taken = if learned.kept { "" } else { "; the start is kept" };
        let Learned { start, error, groups_changed, .. } = learned;
        self.bar.line(&|| {
            format!("{place}: error {start:.5} -> {error:.5}, {groups_changed} groups changed{taken}")
        });
        Ok(())
    }

    /// The state of training is of no use once its blocks are kept.
    fn forget(&self, blocks: usize) -> Result<(), PruneError> {
        let Some(training) = &self.training else { return Ok(()) };
        if training.state.exists() && (training.by_block || blocks == self.layers) {
            fsio::remove_file(&training.state).map_err(FolderError::os(&training.state))?;
        }
        Ok(())
    }
}

impl Watch for Keeper<'_> {
    fn stop(&self) -> bool {
        self.observer.stop()
    }

    fn part(&mut self, block: usize, done: usize, total: usize) {
        let bar = &self.bar;
        let parts = self.inner.get_or_insert_with(|| bar.inner(&format!("block {block}"), total as u64));
        parts.at(done as u64, &plain);
    }

    fn projection(&mut self, report: &ProjectionReport) {
        self.bar.line(&|| line(report));
    }

    fn due(&self) -> bool {
        self.training.as_ref().is_some_and(|t| !t.every.is_zero() && self.last.elapsed() >= t.every)
    }

    fn keep(&mut self, snapshot: &Snapshot) -> Result<(), PruneError> {
        self.last = Instant::now();
        self.training.as_ref().map_or(Ok(()), |training| snapshot.write(&training.state))
    }

    fn resume(&mut self, block: usize) -> Result<Option<Snapshot>, PruneError> {
        let read = self.training.as_ref().map(|training| Snapshot::read(&training.state)).transpose()?;
        Ok(read.flatten().filter(|snapshot| snapshot.block == block))
    }

    fn step(&mut self, report: &StepReport) -> Result<(), PruneError> {
        self.metric(json!(report))?;
        let done = u64::from(report.step + 1);
        let loss = || format!("loss {:.5}", report.loss);
        match report.block {
            Some(block) => {
                let bar = &self.bar;
                let steps = || bar.inner(&format!("block {block}"), u64::from(report.steps));
                self.inner.get_or_insert_with(steps).at(done, &loss);
            }
            None => self.bar.at(done, &loss),
        }
        Ok(())
    }

    fn block(&mut self, result: BlockResult) -> Result<(), PruneError> {
        self.inner = None;
        let done = result.block as u64 + 1;
        if let Some(kept) = &mut self.kept {
            if self.training.is_some() && result.block < kept.store.len() {
                // A model's blocks come together: an interruption between them had kept this one.
                return Ok(());
            }
            kept.store.add(self.checkpoint, &result)?;
        }
        for report in &result.reports {
            self.metric(json!(report))?;
        }
        if let Some(learned) = &result.learned {
            self.learned(learned)?;
        }
        if self.training.is_none() || result.learned.as_ref().is_some_and(|l| l.block.is_some()) {
            self.bar.at(done, &|| format!("{done} blocks done"));
        }
        if let Some(blocks) = self.kept.as_ref().map(|kept| kept.store.len()) {
            self.forget(blocks)?;
        }
        self.brought.norms.insert(result.block, result.squared_norms);
        self.brought.masks.extend(result.masks);
        self.brought.reports.extend(result.reports);
        Ok(())
    }
}

/// "model.layers.0.mlp.down_proj  output error 0.0612 -> 0.0231, repaired 0.0107".
fn line(report: &ProjectionReport) -> String {
    let name = report.name.strip_suffix(".weight").unwrap_or(&report.name);
    let mut out = name.to_string();
    match (report.start, report.error) {
        (Some(start), Some(error)) => out.push_str(&format!("  output error {start:.5} -> {error:.5}")),
        (None, Some(error)) => out.push_str(&format!("  output error {error:.5}")),
        _ => {}
    }
    if let Some(repaired) = report.repaired {
        out.push_str(&format!(", repaired {repaired:.5}"));
    }
    if let Some(damp) = report.damp_raised {
        out.push_str(&format!(", damping raised to {damp}"));
    }
    out
}
