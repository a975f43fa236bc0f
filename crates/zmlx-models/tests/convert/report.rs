//! The report of a conversion: the errors of the weights.

use zmlx_models::convert::compare;
use zmlx_models::{Action, Checkpoint, ConvertOptions};

use crate::{affine, convert_to_end, sources};

#[test]
fn errors_are_those_of_the_definition() {
    let (source, root) = (sources::source("glm4_moe_lite"), tempfile::tempdir().unwrap());
    let original = Checkpoint::open(source.path()).unwrap();
    let mut worst = Vec::new();
    for bits in [2, 4, 8] {
        let dir = root.path().join(bits.to_string());
        convert_to_end(source.path(), &dir, &affine(bits, 32)).unwrap();
        let converted = Checkpoint::open(&dir).unwrap();
        let mut steps = Vec::new();
        let errors = compare(&original, &converted, &mut |done, of| steps.push((done, of))).unwrap();
        assert_eq!(steps.last().map(|(done, of)| done == of), Some(true));
        // Every matrix except the router, which this family never quantises.
        assert_eq!(errors.len(), 2 + 2 * 6 + 3 + 6, "{errors:?}");
        assert!(errors.iter().all(|e| e.relative_error > 0.0 && e.relative_error < 1.0), "{errors:?}");
        worst.push(errors.iter().map(|e| e.relative_error).fold(0.0, f64::max));

        let path = "model.layers.1.mlp.switch_mlp.up_proj";
        let error = errors.iter().find(|e| e.path == path).unwrap();
        assert_eq!(
            (error.format.as_str(), error.shape),
            (format!("affine {bits}-bit g32").as_str(), [4, 64, 64])
        );
        let bank = |checkpoint: &Checkpoint| {
            let one = |e: usize| format!("model.layers.1.mlp.experts.{e}.up_proj");
            checkpoint.reader().bank(path, one, [4, 64, 64]).to_f32_vec()
        };
        let (before, after) = (bank(&original), bank(&converted));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let differences = || before.iter().zip(&after).map(|(&b, &a)| f64::from(a) - f64::from(b));
        let want = norm(&mut differences()) / norm(&mut before.iter().map(|&b| f64::from(b)));
        assert!((error.relative_error - want).abs() <= 1e-9 * want, "{error:?} {want}");
        let largest = differences().map(f64::abs).fold(0.0, f64::max);
        assert!((error.largest_difference - largest).abs() <= 1e-12, "{error:?} {largest}");
    }
    assert!(worst[0] > 3.0 * worst[1] && worst[1] > 8.0 * worst[2], "{worst:?}");
}

#[test]
fn what_was_not_quantised_has_no_error() {
    let (source, root) = (sources::source("qwen3-bf16"), tempfile::tempdir().unwrap());
    let dir = root.path().join("copy");
    convert_to_end(source.path(), &dir, &ConvertOptions::new(Action::Keep)).unwrap();
    let open = |dir: &std::path::Path| Checkpoint::open(dir).unwrap();
    let errors = compare(&open(source.path()), &open(&dir), &mut |_, _| ()).unwrap();
    assert_eq!(errors, []);
    let other = sources::source("qwen3_moe");
    assert!(compare(&open(other.path()), &open(&dir), &mut |_, _| ()).is_err());
}
