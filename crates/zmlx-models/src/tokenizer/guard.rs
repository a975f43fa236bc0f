//! Panics of the `tokenizers` crate become errors: it has several on files that are not sound.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::Result;

thread_local! {
    /// True while a panic of this thread is caught and told as an error.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, a call of the crate on the tokenizer of `file`.
pub(super) fn guarded<T>(file: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    // The hook of the program stays in charge of all other panics.
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                previous(info);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    // A tokenizer that was changed halfway is dropped by the caller; one that is only read has caches, no state.
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    done.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        let short: String = text.chars().take(200).collect();
        Err(super::error(file, format!("not a sound tokenizer: the library that reads it failed: {short}")))
    })
}
