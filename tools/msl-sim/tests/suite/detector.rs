//! Tests that the detector finds every seeded bug at its line, and reports nothing in correct kernels.

use crate::common::{ORDERS, library};
use msl_sim::{Error, Fault, FaultKind, Mode, Order};

type Test = Result<(), Error>;

/// Runs a kernel of bugs.metal in two threadgroups of 128 threads and returns its faults.
fn faults(kernel: &str, mode: Mode, order: Order) -> Result<Vec<Fault>, Error> {
    let library = library("bugs.metal", mode)?;
    let input: Vec<f32> = (0..256).map(|i| i as f32 + 1.5).collect();
    let mut out = vec![0f32; 256];
    let call = library.kernel(kernel)?.buffer(0, &input).buffer_mut(1, &mut out).order(order);
    match call.dispatch_threads([256, 1, 1], [128, 1, 1]) {
        Ok(()) => Ok(Vec::new()),
        Err(Error::Faults { faults, .. }) => Ok(faults),
        Err(other) => Err(other),
    }
}

/// The line of `kernels/bugs.metal` that contains `text`, within `kernel`.
fn line_of(kernel: &str, text: &str) -> u32 {
    let source = include_str!("../kernels/bugs.metal");
    let start = source.find(&format!("kernel void {kernel}(")).expect("the kernel is there");
    let at = start + source[start..].find(text).expect("the text is there");
    source[..at].matches('\n').count() as u32 + 1
}

#[test]
fn correct_kernels_are_clean() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    for kernel in ["correct", "correct_within_simdgroup", "correct_reuse", "correct_shared_reads"] {
        for order in ORDERS {
            assert_eq!(faults(kernel, Mode::Detect, order)?, [], "{kernel} {order:?}");
        }
    }
    Ok(())
}

#[test]
fn seeded_bugs_are_found_in_every_order() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    use FaultKind as K;
    let bugs = [
        ("missing_barrier", K::Race, "s[127 - tid]"),
        ("wrong_flag", K::Race, "s[127 - tid]"),
        ("only_simd_barrier", K::Race, "s[127 - tid]"),
        ("write_after_read", K::Race, ""),
        ("write_after_shared_read", K::Race, ""),
        ("uninitialised", K::Uninitialised, "s[127 - tid]"),
        ("device_out_of_bounds", K::OutOfBounds, "in[gid + 1]"),
        ("device_write_out_of_bounds", K::OutOfBounds, "out[gid + 1]"),
        ("threadgroup_out_of_bounds", K::OutOfBounds, "p[tid + 1]"),
        ("wild_pointer", K::OutOfBounds, "in[gid + 100000000]"),
        ("device_race", K::Race, "out[tid]"),
        ("device_update_race", K::Race, "out[0] +="),
        ("atomic_and_plain", K::Race, ""),
        ("atomic_out_of_bounds", K::OutOfBounds, ""),
        ("writes_an_input", K::ReadOnly, "((device float*)in)"),
        ("divergent_barrier", K::DivergentBarrier, ""),
        ("two_barriers", K::DivergentBarrier, ""),
        ("return_before_barrier", K::DivergentBarrier, "BARRIER"),
        ("divergent_simd_sum", K::DivergentSimd, ""),
        ("divergent_loop_sum", K::DivergentSimd, "simd_sum"),
        ("bad_shuffle", K::BadLane, "simd_shuffle"),
        ("too_much_threadgroup_memory", K::ThreadgroupMemory, ""),
        ("array_index", K::Undefined, "own[uint"),
        ("misaligned", K::Undefined, "float4*"),
        ("divides_by_zero", K::Undefined, "int(gid) /"),
    ];
    for (kernel, kind, text) in bugs {
        for order in ORDERS {
            let faults = faults(kernel, Mode::Detect, order)?;
            let found = faults.iter().find(|f| f.kind == kind);
            let Some(found) = found else { panic!("{kernel} {order:?}: wanted {kind:?}, got {faults:?}") };
            if !text.is_empty() {
                assert_eq!(found.line, Some(line_of(kernel, text)), "{kernel} {order:?}: {found}");
                assert!(found.file.as_deref().is_some_and(|f| f.ends_with("bugs.metal")), "{found}");
            }
        }
    }
    Ok(())
}

#[test]
fn barriers_are_checked_in_plain_mode_too() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    for kernel in ["divergent_barrier", "return_before_barrier", "two_barriers"] {
        let faults = faults(kernel, Mode::Plain, Order::Forward)?;
        assert!(faults.iter().any(|f| f.kind == FaultKind::DivergentBarrier), "{kernel}: {faults:?}");
    }
    Ok(())
}

#[test]
fn plain_mode_lets_divergent_simd_operations_pass() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    // This is legal in Metal: only the active lanes take part.
    assert_eq!(faults("divergent_simd_sum", Mode::Plain, Order::Forward)?, []);
    Ok(())
}

#[test]
fn poisoned_threadgroup_memory_shows_in_plain_mode() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let library = library("bugs.metal", Mode::Plain)?;
    let (input, mut out) = (vec![1f32; 256], vec![0f32; 256]);
    let call = library.kernel("uninitialised")?.buffer(0, &input).buffer_mut(1, &mut out);
    call.dispatch_threads([256, 1, 1], [128, 1, 1])?;
    assert_eq!(out.iter().filter(|v| v.is_nan()).count(), 128);
    Ok(())
}
