//! Who watches a run: what it is told, and how it ends a run early.

use serde_json::{Map, Value};

/// Who watches a run. Everything is left alone unless told otherwise.
pub trait Observer: Sync {
    /// Whether to stop as soon as possible; what is finished is kept.
    fn stop(&self) -> bool {
        false
    }

    /// From here on there is something to keep: until now the process may end at once, from now on [`Observer::stop`] is asked.
    fn guard(&self) {}

    /// A line about what goes on.
    fn note(&self, _text: &str) {}

    /// Something that may not be meant.
    fn warn(&self, text: &str) {
        log::warn!("{text}");
    }

    /// A task of `total` units begins.
    fn task(&self, _what: &str, _total: u64) -> Box<dyn Task> {
        Box::new(Unwatched)
    }

    /// What is known of a run when it begins: the first part of its `run.json`.
    fn began(&self, _info: &Map<String, Value>) {}

    /// A line of `metrics.jsonl`.
    fn metric(&self, _line: &Value) {}
}

/// A task that is shown until it is dropped.
pub trait Task {
    /// `done` units are done; `message` says how it goes.
    fn at(&mut self, done: u64, message: &dyn Fn() -> String);

    /// A line that stays.
    fn line(&self, text: &dyn Fn() -> String);

    /// A task within this one.
    fn inner(&self, what: &str, total: u64) -> Box<dyn Task>;
}

/// Nobody watches, and nothing ends early.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Observer for Unwatched {}

impl Task for Unwatched {
    fn at(&mut self, _done: u64, _message: &dyn Fn() -> String) {}

    fn line(&self, _text: &dyn Fn() -> String) {}

    fn inner(&self, _what: &str, _total: u64) -> Box<dyn Task> {
        Box::new(Self)
    }
}

/// No message beside how much is done.
pub(super) fn plain() -> String {
    String::new()
}
