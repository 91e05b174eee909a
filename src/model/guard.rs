//! Libraries that panic over some damaged files.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Runs a library; none where it panics, of which standard error then hears nothing.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    thread_local! {
        /// Whether this thread is inside the library.
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !INSIDE.get() {
                report(panic);
            }
        }));
    });
    INSIDE.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(false);
    result.ok()
}
