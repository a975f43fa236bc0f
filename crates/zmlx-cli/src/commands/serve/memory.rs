//! How much memory keys and values may use.

use anyhow::{Context, Result, bail};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Memory reserved for everything except weights, keys and values, in bytes.
const OTHERS_BYTES: u64 = 1 << 30;

/// The default budget in bytes: nine tenths of the memory, less the weights and 1 GiB. `device_bytes` is the memory of
/// a device that has its own.
pub(super) fn kv_budget(device_bytes: Option<u64>, weight_bytes: u64) -> Result<u64> {
    let limit = device_bytes.map_or_else(system_bytes, Ok)?;
    let budget = (limit / 10 * 9).saturating_sub(weight_bytes).saturating_sub(OTHERS_BYTES);
    if budget == 0 {
        bail!(
            "{limit} bytes of memory leave nothing for keys and values beside {weight_bytes} bytes of weights: \
             --kv-cache-bytes says how much they may take all the same"
        );
    }
    Ok(budget)
}

/// The memory of the system in bytes, or the limit of the control group if that is lower.
fn system_bytes() -> Result<u64> {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refresh)
        .context("the size of the memory is unknown: set --kv-cache-bytes")?;
    let limit = system.cgroup_limits().map(|limits| limits.total_memory).filter(|n| *n > 0);
    Ok(limit.map_or(system.total_memory(), |limit| limit.min(system.total_memory())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_leaves_room_for_the_rest() {
        const GB: u64 = 1 << 30;
        assert_eq!(kv_budget(Some(100 * GB), 17 * GB).unwrap(), 100 * GB / 10 * 9 - 18 * GB);
        assert!(kv_budget(Some(16 * GB), 17 * GB).is_err());
        assert!(kv_budget(None, 0).is_ok());
    }
}
