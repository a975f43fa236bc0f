//! Turns panics of the `tokenizers` crate into errors. It panics on several kinds of invalid files.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::Result;

thread_local! {
    /// True while a panic of this thread is caught and returned as an error.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, which calls the crate with the tokenizer of `file`.
pub(super) fn guarded<T>(file: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    // The program's hook still handles all other panics.
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                previous(info);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    // The caller drops a tokenizer that was changed halfway. A tokenizer that is only read has caches, but no state.
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    done.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        let short: String = text.chars().take(200).collect();
        Err(super::error(file, format!("not a valid tokenizer: the library that reads it failed: {short}")))
    })
}
