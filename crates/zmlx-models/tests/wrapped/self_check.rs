//! The self-check finds a broken op, switches it off and leaves the others on.

use rstest::rstest;
use zmlx_kernels::{ExpertFusion, Fusion, Op, SoftmaxRoute, Switch};
use zmlx_models::self_check;
use zmlx_models::self_check::{MAX_DIFFERENCE, OpCheck, Outcome};

use crate::{Fault, GLM, QWEN, load};

#[rstest]
#[case(GLM, &["add_rms_norm", "combine", "dense_swiglu", "dense_swiglu", "experts", "qkv", "qkv", "route"])]
#[case(QWEN, &["add_rms_norm", "combine", "experts", "qkv", "route"])]
fn sound_ops_stay_on(#[case] name: &str, #[case] ops: &[&str]) {
    let model = load(name, None);
    let check = self_check(&model, &Fusion::FUSED).unwrap();
    assert!(check.passed(), "{check:?}");
    assert_eq!(check.fusion, Fusion::FUSED);
    let mut found: Vec<_> = check.ops.iter().map(|c| c.part.name()).collect();
    found.sort_unstable();
    assert_eq!(found, ops);
    for op in &check.ops {
        let Outcome::Agrees { difference } = op.outcome else { panic!("{op:?}") };
        // f32 sums are in another order.
        assert!(difference <= 1e-4, "{op:?}");
    }
    let norms = check.ops.iter().find(|c| c.op == Op::ADD_RMS_NORM).unwrap();
    assert_eq!(norms.n_layers, model.architecture().layers.len());
}

#[test]
fn every_op_that_a_fusion_switches_is_checked() {
    let checks = [GLM, QWEN].map(|name| self_check(&load(name, None), &Fusion::FUSED).unwrap());
    for op in Op::switched() {
        let is_checked = |c: &OpCheck| c.op == *op && Some(c.part) == op.part;
        assert!(checks.iter().any(|check| check.ops.iter().any(is_checked)), "{op:?}");
    }
}

#[test]
fn only_what_is_wanted_is_checked() {
    let model = load(QWEN, None);
    let ops = |fusion: &str| {
        let fusion: Fusion = fusion.parse().unwrap();
        let check = self_check(&model, &fusion).unwrap();
        assert_eq!(check.fusion, fusion);
        check.ops.iter().map(|c| (c.part.name(), c.op.name)).collect::<Vec<_>>()
    };
    assert_eq!(ops("stock"), []);
    assert_eq!(ops("concat"), [("experts", "gather_linear")]);
    assert_eq!(ops("stock,+combine"), [("combine", "gather_qmm_combine")]);
    // The experimental routes have no fused op.
    assert_eq!(ops("stock,+route,route=logits"), []);
}

#[rstest]
#[case(GLM, "gather_qmm_swiglu", |f: &mut Fusion| f.experts = ExpertFusion::Stock)]
#[case(QWEN, "gather_qmm_combine", |f: &mut Fusion| f.combine = Switch::Off)]
#[case(GLM, "qmm_swiglu", |f: &mut Fusion| f.dense_swiglu = Switch::Off)]
#[case(GLM, "norm_rope_mla", |f: &mut Fusion| f.qkv = Switch::Off)]
#[case(QWEN, "add_rms_norm", |f: &mut Fusion| f.add_rms_norm = Switch::Off)]
#[case(GLM, "route_noaux_tc", |f: &mut Fusion| f.route = Switch::Off)]
#[case(QWEN, "route_softmax_top_k", |f: &mut Fusion| f.route = Switch::Off)]
fn a_broken_op_is_switched_off_alone(
    #[case] name: &str,
    #[case] kernel: &'static str,
    #[case] switch_off: fn(&mut Fusion),
    #[values(Fault::Values, Fault::NotANumber, Fault::Error)] fault: Fault,
) {
    let model = load(name, Some((kernel, fault)));
    let check = self_check(&model, &Fusion::FUSED).unwrap();
    assert!(!check.passed());
    assert_eq!(check.failed().is_some(), matches!(fault, Fault::Error));
    for op in &check.ops {
        let is_right = match (&op.outcome, fault) {
            (Outcome::Agrees { .. }, _) => op.op.name != kernel,
            (Outcome::Differs { difference }, Fault::Values) => *difference > 5.0 * MAX_DIFFERENCE,
            (Outcome::Differs { difference }, Fault::NotANumber) => difference.is_nan(),
            (Outcome::Failed { why }, Fault::Error) => why.contains("broken on purpose"),
            _ => false,
        };
        assert!(is_right && !op.shape.is_empty(), "{op:?}");
    }
    let mut want = Fusion::FUSED;
    switch_off(&mut want);
    assert_eq!(check.fusion, want);
    // The remaining ops pass.
    assert!(self_check(&model, &check.fusion).unwrap().passed());
}

#[test]
fn the_experimental_route_is_kept() {
    let model = load(QWEN, Some(("gather_qmm_swiglu", Fault::Values)));
    let wanted = Fusion { softmax_route: SoftmaxRoute::Logits, ..Fusion::FUSED };
    let check = self_check(&model, &wanted).unwrap();
    assert_eq!(check.fusion, Fusion { experts: ExpertFusion::Stock, ..wanted });
}
