//! Which memory MLX wires and which it keeps.
//!
//! macOS may page out memory of the GPU that is not wired, which hurts models that fill most of it: as mlx-lm does, the
//! limit is set to the working set that Metal recommends. MLX keeps freed buffers for arrays of the same size. A growing
//! cache of keys and values leaves buffers that fit nothing any more, so what is unused is given back every 256 steps, which is
//! mlx-lm's interval, and what may be kept in between has a limit.

use super::{ChosenBy, Setting};
use crate::mlx::runtime::{NAME, fault};
use crate::mlx::{Gpu, Runtime};
use crate::{Error, Result};

/// Steps after which unused memory is given back: mlx-lm's number, and that by which caches grow.
const FREE_EVERY: u64 = 256;

/// The part of the recommended working set that may be kept unused. A choice, not a measurement: the buffers of a chunk of a prompt
/// fit into it, and a model that fills most of the memory still does.
const KEPT_PART: usize = 8;

const WIRED: &str = "wired limit";
const KEPT: &str = "cache limit";

/// Sets the wired limit to the working set that Metal recommends, and the limit of unused memory that is kept to an eighth of
/// that. Call it before a model is loaded. Without Metal nothing is changed. Returns what holds now.
///
/// # Errors
/// If MLX does not tell the working set, or refuses the limit of unused memory. A refused wired limit is no error: systems
/// before macOS 15 have none.
pub fn hold_memory(runtime: &Runtime) -> Result<[Setting; 2]> {
    const OP: &str = "hold_memory";
    if runtime.gpu() != Some(Gpu::Metal) {
        return Ok([WIRED, KEPT].map(|name| Setting::of_mlx(name, "there is no Metal on this system")));
    }
    let unknown = || Error::Fault {
        op: OP,
        backend: NAME,
        why: "MLX does not tell the recommended working set".to_owned(),
    };
    let recommended = runtime.recommended_bytes().ok_or_else(unknown)?;
    let kept = recommended / KEPT_PART;
    let of_zmlx = |name, bytes: usize| Setting {
        name,
        value: Some(format!("{bytes} bytes")),
        chosen_by: ChosenBy::Zmlx,
        why: None,
    };
    let wired = match mlx_rs::memory::set_wired_limit(recommended) {
        Ok(_) => of_zmlx(WIRED, recommended),
        Err(_) => Setting::of_mlx(WIRED, "this system has none"),
    };
    mlx_rs::memory::set_cache_limit(kept).map_err(fault(OP))?;
    Ok([wired, of_zmlx(KEPT, kept)])
}

/// Bytes that more arrays may take: what is left of the working set that Metal recommends, without Metal what the system has
/// free; `None` where that is not known.
pub fn free_bytes(runtime: &Runtime) -> Option<u64> {
    if runtime.gpu() != Some(Gpu::Metal) {
        return crate::available_bytes();
    }
    let used = mlx_rs::memory::active_memory().ok()?;
    u64::try_from(runtime.recommended_bytes()?.saturating_sub(used)).ok()
}

/// Gives unused memory back if it is time to, at the start of the `n`-th step.
pub(in crate::mlx) fn free_unused(n: u64) -> Result<()> {
    if !is_due(n) {
        return Ok(());
    }
    mlx_rs::memory::clear_cache().map_err(fault("step"))
}

fn is_due(n: u64) -> bool {
    n > 0 && n.is_multiple_of(FREE_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_memory_is_given_back_every_256_steps() {
        let due: Vec<u64> = (0..600).filter(|n| is_due(*n)).collect();
        assert_eq!(due, [256, 512]);
    }

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn without_metal_nothing_is_changed() {
        let settings = hold_memory(&Runtime::start().unwrap()).unwrap();
        assert!(settings.iter().all(|s| s.chosen_by == ChosenBy::Mlx && s.why.is_some()), "{settings:?}");
    }
}
