//! Races, reads out of bounds, divergent barriers and unwritten results; orders of the threads; address spaces.

use msl_sim::{Mode, Order};
use zmlx_kernels::metal::{self, CombineShape, KernelSpec, Numerics, SwigluShape};
use zmlx_kernels::{DType, NoauxTc, Renormalize, SoftmaxTopK};

use crate::inputs::{Buffer, activations, formats, four_bit, readings};
use crate::{combine, latent, norm, shared, sim, swiglu};

/// A launch of every kernel and of every way of reading codes, with rests in every dimension.
pub(crate) fn launches() -> Vec<(KernelSpec, Vec<Buffer>)> {
    let mut all = Vec::new();
    let owned = |inputs: Vec<&Buffer>| inputs.into_iter().cloned().collect::<Vec<_>>();
    let shape = |n_rows| SwigluShape {
        n_pairs: 3,
        x_batch: 1,
        n_rows,
        n_experts: 2,
        n_out: 11,
        n_in: 640,
        sorted: false,
    };
    let swiglu = |dtype, format, n_rows, numerics| {
        let case = swiglu::Case::new(dtype, format, shape(n_rows));
        (case.spec(numerics).unwrap(), owned(case.inputs()))
    };
    for format in readings() {
        all.push(swiglu(DType::BF16, format, 1, Numerics::Exact));
    }
    for numerics in [Numerics::Exact, Numerics::Accurate] {
        all.push(swiglu(DType::F16, four_bit(), 2, numerics));
        all.push(swiglu(DType::F32, formats()[20], 5, numerics));
        for weights in [DType::F32, DType::BF16] {
            let shape = CombineShape { n_tokens: 2, top_k: 3, n_experts: 2, n_out: 11, n_in: 640 };
            let case = combine::Case::new(DType::BF16, weights, four_bit(), shape);
            all.push((case.spec(numerics).unwrap(), owned(case.inputs())));
        }
        all.extend(shared::launches(numerics));
        // Two simdgroups, the last one partly beyond the experts; and a row of fewer than eight.
        for n_experts in [131, 5] {
            let settings = SoftmaxTopK { top_k: 4, renormalize: Renormalize::Yes };
            let spec = metal::route_softmax_top_k(DType::BF16, [1, n_experts], &settings, numerics).unwrap();
            all.push((spec, vec![activations(DType::BF16, &[1, n_experts], 1)]));
        }
    }
    for (n_experts, of_bias) in [(131, DType::F32), (5, DType::BF16)] {
        let settings = NoauxTc {
            top_k: 4,
            n_group: 1,
            topk_group: 1,
            renormalize: Renormalize::Yes,
            eps: 1e-20,
            routed_scaling_factor: 1.8,
        };
        let spec = metal::route_noaux_tc(DType::BF16, [1, n_experts], &settings).unwrap();
        let logits = activations(DType::BF16, &[1, n_experts], 1);
        let bias = activations(of_bias, &[n_experts], 2);
        all.push((spec, vec![logits, bias, Buffer::of_floats(DType::F32, &[1.8, 1e-20], &[2])]));
    }
    for width in [130, 5] {
        let spec = metal::add_rms_norm(DType::BF16, [2, width], 1e-6).unwrap();
        let of = |seed| activations(DType::BF16, &[2, width], seed);
        all.push((spec, vec![of(1), of(2), activations(DType::BF16, &[width], 3)]));
    }
    all.extend(latent::launches());
    all.extend(norm::ropes(DType::BF16).into_iter().map(|(_, spec, inputs)| (spec, inputs)));
    all
}

#[test]
fn the_detector_finds_nothing_and_every_result_is_written() {
    if !msl_sim::available() {
        return;
    }
    for (spec, inputs) in launches() {
        let inputs: Vec<&Buffer> = inputs.iter().collect();
        let kernel =
            sim::body(&spec, &inputs).build(Mode::Detect).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
        sim::call(&kernel, &spec, &inputs, Order::Random(3));
    }
}

#[test]
fn every_order_of_the_threads_and_both_address_spaces_give_the_same_bits() {
    if !msl_sim::available() {
        return;
    }
    for (spec, inputs) in launches() {
        sim::run_all_ways(&spec, &inputs.iter().collect::<Vec<_>>());
    }
}

#[test]
fn address_spaces_are_those_of_metal() {
    if !msl_sim::available() {
        return;
    }
    for (spec, inputs) in launches() {
        let inputs: Vec<&Buffer> = inputs.iter().collect();
        if let Err(e) = sim::body(&spec, &inputs).check_address_spaces() {
            panic!("{}: {e}", spec.name);
        }
    }
}
