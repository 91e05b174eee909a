//! Who watches a method at work.

use super::{BlockResult, ProjectionReport, PruneError, Snapshot, StepReport};

/// Who watches a walk or a stage, and keeps what it brings.
pub trait Watch {
    /// Whether to stop as soon as possible; a stage keeps its state first.
    fn stop(&self) -> bool {
        false
    }

    /// `done` of `total` parts of a block are done.
    fn part(&mut self, _block: usize, _done: usize, _total: usize) {}

    /// A projection is done.
    fn projection(&mut self, _report: &ProjectionReport) {}

    /// Whether the state of training is to be kept now.
    fn due(&self) -> bool {
        false
    }

    /// Keeps the state in the middle of training.
    ///
    /// # Errors
    /// What keeping it reports.
    fn keep(&mut self, _snapshot: &Snapshot) -> Result<(), PruneError> {
        Ok(())
    }

    /// The state from which training of a block (of the model: 0) goes on, if it was interrupted there; from the start, unless told
    /// otherwise.
    ///
    /// # Errors
    /// What reading it reports.
    fn resume(&mut self, _block: usize) -> Result<Option<Snapshot>, PruneError> {
        Ok(None)
    }

    /// A step is done.
    ///
    /// # Errors
    /// What telling it reports.
    fn step(&mut self, _report: &StepReport) -> Result<(), PruneError> {
        Ok(())
    }

    /// A block is done. What it got is kept by nobody else.
    ///
    /// # Errors
    /// What keeping it reports; ends the walk or the stage.
    fn block(&mut self, result: BlockResult) -> Result<(), PruneError>;
}
