//! What ends a search early.

/// Whether to stop as soon as possible; asked from several threads.
pub type Stop<'a> = dyn Fn() -> bool + Sync + 'a;
