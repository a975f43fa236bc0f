//! MLX's own quantised products, from the sources of its release, against [`stock`]: the arithmetic that exact mode has to equal.
//!
//! The sources exist after `cargo xtask setup-mlx`. Without them these tests print a notice and pass.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use msl_sim::{Mode, Msl, Order};
use zmlx_kernels::metal::{self, CombineShape, Numerics};
use zmlx_kernels::{DType, QuantMode, QuantSpec};

use crate::inputs::{Bank, Buffer, activations, readings};
use crate::{sim, stock};

/// The headers of the MLX that `cargo xtask setup-mlx` installed, if kernels can be run.
fn headers() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    let folder = root.join(".mlx/wheel/mlx/include");
    if folder.join("mlx/backend/metal/kernels/quantized.h").exists() {
        return msl_sim::available().then_some(folder);
    }
    eprintln!("NOTICE: no MLX headers here (cargo xtask setup-mlx); this test proves nothing");
    None
}

/// The name of MLX's kernel for the format.
fn name(format: QuantSpec, is_fast: bool) -> String {
    let of = |part: &str| format!("{part}{}", if is_fast { "_fast" } else { "" });
    match format.mode() {
        QuantMode::Affine => of("affine_gather_qmv"),
        _ => of("fp_gather_qmv"),
    }
}

/// A source with both kernels of every format in bf16, each under the name of [`host_name`].
fn source(header: &str, formats: &[QuantSpec]) -> String {
    let mut text = String::new();
    for file in ["utils.h", "steel/gemm/gemm.h", "quantized_utils.h", header] {
        // Writing to a string does not fail.
        let _ = writeln!(text, "#include \"mlx/backend/metal/kernels/{file}\"");
    }
    for format in formats {
        for is_fast in [true, false] {
            let (host, kernel) = (host_name(*format, is_fast), name(*format, is_fast));
            let (group, bits) = (format.group_size(), format.bits());
            let _ = writeln!(text, "instantiate_kernel(\"{host}\", {kernel}, bfloat16_t, {group}, {bits})");
        }
    }
    text
}

/// The formats and the header of MLX that has their kernels.
fn by_header() -> [(&'static str, Vec<QuantSpec>); 2] {
    let is_affine = |format: &QuantSpec| format.mode() == QuantMode::Affine;
    let (affine, others) = readings().into_iter().partition(is_affine);
    [("quantized.h", affine), ("fp_quantized.h", others)]
}

fn host_name(format: QuantSpec, is_fast: bool) -> String {
    format!("{}_{}_{}", name(format, is_fast), format.group_size(), format.bits())
}

/// Rows of three tokens for experts 2, 0 and 1.
struct Products {
    format: QuantSpec,
    is_fast: bool,
    bank: Bank,
    x: Buffer,
}

const RHS: [u32; 3] = [2, 0, 1];

impl Products {
    fn new(format: QuantSpec, n_out: usize, n_in: usize) -> Self {
        let is_fast = n_out.is_multiple_of(8) && n_in.is_multiple_of(32 * metal::stock::wide(format));
        let bank = Bank::new(format, DType::BF16, [3, n_out, n_in], 1);
        Self { format, is_fast, bank, x: activations(DType::BF16, &[3, 1, n_in], 2) }
    }

    /// What MLX's kernel gives.
    fn run(&self, library: &msl_sim::Library) -> Vec<f32> {
        let [n_experts, n_out, n_in] = self.bank.sizes;
        let [weight, scales, biases] = self.bank.buffers();
        let strides = |last: usize| [(n_out * last) as i64, last as i64, 1];
        let (words, groups) = (weight.shape[2], scales.shape[2]);
        let mut out = vec![0xff_u8; 3 * n_out * 2];
        let host = host_name(self.format, self.is_fast);
        let mut call = library.kernel(&host).unwrap().buffer(0, &weight.bytes).buffer(1, &scales.bytes);
        let is_affine = self.format.mode() == QuantMode::Affine;
        // The floating-point modes have a scale of all weights there, which is not read.
        let one = 1.0_f32.to_le_bytes().to_vec();
        call = call.buffer(2, if is_affine { &biases.bytes } else { &one }).buffer(3, &self.x.bytes);
        call = call.buffer(4, &[0_u32, 1, 2]).buffer(5, &RHS).buffer_mut(6, &mut out);
        call = call.value(7, &(n_in as i32)).value(8, &(n_out as i32));
        call =
            call.value(9, &1_i32).value(10, &[3, 1, n_in as i32]).value(11, &[n_in as i64, n_in as i64, 1]);
        call = call.value(12, &1_i32).value(13, &[n_experts as i32, n_out as i32, words as i32]);
        call = call.value(14, &strides(words)).value(15, &strides(groups));
        let mut next = 16;
        if is_affine {
            call = call.value(next, &strides(groups));
            next += 1;
        }
        call = call.value(next, &1_i32).value(next + 1, &3_i32);
        call = call.value(next + 2, &1_i64).value(next + 3, &1_i64);
        let done = call.dispatch_groups([1, n_out.div_ceil(8) as u32, 3], [32, 2, 1]);
        done.unwrap_or_else(|e| panic!("{host}: {e}"));
        DType::BF16.to_f32_vec(&out)
    }

    /// Compares with the scalar arithmetic, bit for bit.
    fn check(&self, library: &msl_sim::Library) {
        let [_, n_out, n_in] = self.bank.sizes;
        let x = self.x.floats();
        for (i, got) in self.run(library).into_iter().enumerate() {
            let (pair, row) = (i / n_out, i % n_out);
            let x = &x[pair * n_in..][..n_in];
            let want = stock::qmv(DType::BF16, &self.bank, x, RHS[pair] as usize, row);
            assert!(got.to_bits() == want.to_bits(), "{}: {pair}, {row}: {got} for {want}", self.format);
        }
    }

    /// What our kernel gives in exact mode, with products and sums contracted as the compiler likes: a combination of one slot of
    /// weight 1.
    fn ours_contracted(&self) -> Vec<f32> {
        let [n_experts, n_out, n_in] = self.bank.sizes;
        let shape = CombineShape { n_tokens: 3, top_k: 1, n_experts, n_out, n_in };
        let spec = metal::gather_qmm_combine(DType::BF16, DType::F32, self.format, &shape, Numerics::Exact);
        let spec = spec.unwrap();
        let [weight, scales, biases] = self.bank.buffers();
        let ones = Buffer::of_floats(DType::F32, &[1.0; 3], &[3, 1]);
        let inputs = [&self.x, &weight, &scales, &biases, &Buffer::of_u32(&RHS, &[3, 1]), &ones];
        let kernel = sim::body(&spec, &inputs).contract_fma().build(Mode::Plain).unwrap();
        sim::call(&kernel, &spec, &inputs, Order::Forward)[0].floats()
    }
}

#[test]
fn gathered_products_of_mlx_have_the_bits_of_the_scalar_arithmetic() {
    let Some(headers) = headers() else { return };
    for (header, formats) in by_header() {
        let msl = Msl::source(header, source(header, &formats)).include_dir(&headers);
        let library = msl.build(Mode::Plain).unwrap_or_else(|e| panic!("{header}: {e}"));
        for format in formats {
            for [n_out, n_in] in [[16, 1024], [12, 384]] {
                Products::new(format, n_out, n_in).check(&library);
            }
        }
    }
}

/// The softmax and the sort that MLX runs for a router, in bf16. A sort of n values has a thread for every four. MLX's sigmoid is
/// not here: its file has operators of complex numbers that the simulator does not know.
const OF_ROUTERS: &str = "
#include \"mlx/backend/metal/kernels/utils.h\"
#include \"mlx/backend/metal/kernels/softmax.h\"
#include \"mlx/backend/metal/kernels/sort.h\"
instantiate_kernel(\"softmax\", softmax_single_row, bfloat16_t, float)
instantiate_kernel(\"argsort_32\", block_sort, bfloat16_t, uint32_t, true, 32, 4)
instantiate_kernel(\"argsort_64\", block_sort, bfloat16_t, uint32_t, true, 64, 4)
instantiate_kernel(\"argsort_256\", block_sort, bfloat16_t, uint32_t, true, 256, 4)
";

#[test]
fn ops_of_a_router_of_mlx_have_the_bits_of_the_scalar_arithmetic() {
    let Some(headers) = headers() else { return };
    let library = Msl::source("routers", OF_ROUTERS).include_dir(&headers).build(Mode::Plain).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (n, threads) in [(64, 32), (128, 32), (131, 64), (256, 64), (1024, 256)] {
        // The last row has few different values: many ties.
        let mut values = activations(DType::BF16, &[2, n], 5).floats();
        values[n..].iter_mut().for_each(|v| *v = v.round());
        let x = Buffer::of_floats(DType::BF16, &values, &[2, n]);
        let rows = || values.chunks_exact(n);

        let mut out = vec![0xff_u8; x.bytes.len()];
        let call = library.kernel("softmax").unwrap().buffer(0, &x.bytes).buffer_mut(1, &mut out);
        let group = n.div_ceil(4).next_multiple_of(32) as u32;
        call.value(2, &(n as i32)).dispatch_groups([2, 1, 1], [group, 1, 1]).unwrap();
        let want: Vec<f32> = rows().flat_map(|row| stock::softmax(DType::BF16, row)).collect();
        assert_eq!(bits(&DType::BF16.to_f32_vec(&out)), bits(&want), "softmax of {n}");

        let mut order = vec![u32::MAX; 2 * n];
        let name = format!("argsort_{threads}");
        let call = library.kernel(&name).unwrap().buffer(0, &x.bytes).buffer_mut(1, &mut order);
        let call = call.value(2, &(n as i32)).value(3, &1_i32).value(4, &1_i32);
        let call = call.value(5, &(n as i32)).value(6, &(n as i32));
        call.dispatch_groups([1, 2, 1], [threads, 1, 1]).unwrap();
        assert_eq!(order, rows().flat_map(stock::argsort).collect::<Vec<_>>(), "argsort of {n}");
    }
}

/// Metal's compiler may contract a product and a sum. Wherever it does so, in MLX's kernels and in ours, the last bits of f32 sums
/// change. Rounding to bf16 hides a change of a few units of 2⁻²⁴ unless the sum lies that near to the middle of two numbers, 2⁻⁸
/// apart: a few in 2¹⁶.
#[test]
fn contracted_products_differ_from_those_of_mlx_in_one_of_a_thousand_at_most() {
    let Some(headers) = headers() else { return };
    let differ = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    let (mut n_results, mut changed, mut ours) = (0, 0, 0);
    for (header, formats) in by_header() {
        let msl = Msl::source(header, source(header, &formats)).include_dir(&headers);
        let plain = msl.build(Mode::Plain).unwrap();
        let contracted = msl.contract_fma().build(Mode::Plain).unwrap();
        for format in formats {
            for [n_out, n_in] in [[256, 1024], [252, 384]] {
                let products = Products::new(format, n_out, n_in);
                let of_mlx = products.run(&contracted);
                n_results += of_mlx.len();
                changed += differ(&products.run(&plain), &of_mlx);
                ours += differ(&products.ours_contracted(), &of_mlx);
            }
        }
    }
    println!(
        "of {n_results} results of MLX, contraction changes {changed}; {ours} of ours differ, both contracted"
    );
    assert!(
        n_results > 16_000 && changed * 1000 <= n_results && ours * 1000 <= n_results,
        "{changed}, {ours}"
    );
}
