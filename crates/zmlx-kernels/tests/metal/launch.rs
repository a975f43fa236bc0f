//! What a program without MLX encodes, recorded call by call and then run: the custom ops on candle's tensors encode these launches.

use msl_sim::{Mode, Msl, Order};
use zmlx_kernels::metal::{BankOperands, CombineShape, Encode, Launch, Operand, SwigluShape};
use zmlx_kernels::{DType, QuantMode, QuantSpec, Result};

use crate::inputs::{Bank, Buffer, activations, four_bit, half_ulp, readings};
use crate::{combine, swiglu};

/// Bytes before an array's first one in its buffer: arrays of candle may begin anywhere in theirs.
const OFFSET_BYTES: usize = 16;

/// An encoder that notes what it is told.
#[derive(Default)]
struct Recorder {
    name: String,
    source: String,
    inputs: Vec<(u32, Vec<u8>)>,
    output: Option<(u32, usize)>,
    threads: [u32; 3],
    threadgroup: [u32; 3],
}

impl Encode for Recorder {
    type Buffer = Vec<u8>;
    type Error = std::convert::Infallible;

    fn set_pipeline(
        &mut self,
        name: &str,
        source: &dyn Fn() -> String,
    ) -> std::result::Result<(), Self::Error> {
        (self.name, self.source) = (name.to_owned(), source());
        Ok(())
    }

    fn set_input(&mut self, index: usize, buffer: &Vec<u8>, offset_bytes: usize) {
        self.inputs.push((index as u32, buffer[offset_bytes..].to_vec()));
    }

    fn set_output(&mut self, index: usize, buffer: &Vec<u8>) {
        assert!(self.output.is_none(), "one output");
        self.output = Some((index as u32, buffer.len()));
    }

    fn set_bytes(&mut self, index: usize, bytes: &[u8]) {
        self.inputs.push((index as u32, bytes.to_vec()));
    }

    fn dispatch_threads(&mut self, threads: [usize; 3], threadgroup: [usize; 3]) {
        self.threads = threads.map(|n| n as u32);
        self.threadgroup = threadgroup.map(|n| n as u32);
    }
}

impl Recorder {
    /// Runs what was recorded. The output starts as NaN in every type.
    fn run(&self, mode: Mode, order: Order) -> Vec<u8> {
        let library = Msl::source(self.name.clone(), self.source.clone()).build(mode);
        let library = library.unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let (index, n_bytes) = self.output.expect("an output is set");
        let mut out = vec![0xff_u8; n_bytes];
        let mut call = library.kernel(&self.name).unwrap().order(order).buffer_mut(index, &mut out);
        for (index, bytes) in &self.inputs {
            call = call.buffer(*index, bytes);
        }
        let done = call.dispatch_threads(self.threads, self.threadgroup);
        done.unwrap_or_else(|e| panic!("{}: {e}", self.name));
        out
    }
}

/// An array in a buffer with other bytes before it.
struct Stored {
    bytes: Vec<u8>,
    dtype: DType,
    shape: Vec<usize>,
}

impl Stored {
    fn new(buffer: &Buffer, shape: &[usize]) -> Self {
        let bytes = [&[0xff; OFFSET_BYTES], &buffer.bytes[..]].concat();
        Self { bytes, dtype: buffer.dtype, shape: shape.to_vec() }
    }

    fn operand(&self) -> Operand<'_, Vec<u8>> {
        let shape = self.shape.clone();
        Operand { buffer: &self.bytes, offset_bytes: OFFSET_BYTES, dtype: self.dtype, shape }
    }
}

fn stored(buffers: &[&Buffer]) -> Vec<Stored> {
    buffers.iter().map(|b| Stored::new(b, &b.shape)).collect()
}

fn bank(arrays: &[Stored]) -> BankOperands<'_, Vec<u8>> {
    [arrays[0].operand(), arrays[1].operand(), arrays[2].operand()]
}

/// Encodes the launch and runs it: under the detector and in two orders of the threads, with equal bits.
fn run(launch: Result<Launch<'_, Vec<u8>>>) -> Vec<f32> {
    let launch = launch.unwrap();
    let output = &launch.spec().outputs[0];
    let n_bytes = output.shape.iter().product::<usize>() * output.dtype.size_bytes();
    let mut recorder = Recorder::default();
    launch.encode(&mut recorder, &vec![0; n_bytes]).unwrap();
    let out = recorder.run(Mode::Detect, Order::Random(5));
    for order in [Order::Forward, Order::Reverse] {
        assert!(recorder.run(Mode::Plain, order) == out, "{}: {order:?}", recorder.name);
    }
    output.dtype.to_f32_vec(&out)
}

/// A format with biases, one without, and one whose codes cross bytes; every type.
fn kinds() -> [(DType, QuantSpec); 5] {
    let mxfp4 = QuantSpec::new(QuantMode::Mxfp4, 4, 32).unwrap();
    let three_bit = QuantSpec::new(QuantMode::Affine, 3, 64).unwrap();
    let of = |dtype| (dtype, four_bit());
    [of(DType::BF16), of(DType::F16), of(DType::F32), (DType::BF16, mxfp4), (DType::BF16, three_bit)]
}

#[test]
fn a_recorded_matmul_is_near_the_oracle() {
    if !msl_sim::available() {
        return;
    }
    let one_row = readings().into_iter().map(|format| (DType::BF16, format, [1, 13, 384]));
    let types = [DType::F32, DType::F16].into_iter().map(|dtype| (dtype, four_bit(), [1, 8, 768]));
    let tiles = [[2, 8, 768], [5, 17, 384]].into_iter().map(|sizes| (DType::BF16, four_bit(), sizes));
    for (dtype, format, [n_rows, n_out, n_in]) in one_row.chain(types).chain(tiles) {
        let weight = Bank::new(format, dtype, [1, n_out, n_in], 1);
        let x = activations(dtype, &[n_rows, n_in], 3);
        let [w, scales, biases] = weight.buffers();
        let arrays = stored(&[&x, &w, &scales, &biases]);
        let got = run(Launch::quantized_matmul(format, arrays[0].operand(), bank(&arrays[1..])));
        let x = x.floats();
        // f32's half ulp for each step of the longest chain of additions, and one rounding.
        let chain = (n_in / 32 + 64) as f64 * 2f64.powi(-24);
        for (i, got) in got.into_iter().enumerate() {
            let (row, n) = (i / n_out, i % n_out);
            let (want, size) = weight.product(&x[row * n_in..][..n_in], 0, n);
            let allowed = 1.01 * half_ulp(dtype) * want.abs() + chain * size + 1e-7;
            let is_near = (f64::from(got) - want).abs() <= allowed;
            assert!(is_near, "{format} {dtype:?}: {row}, {n}: {got} for {want} ± {allowed}");
        }
    }
}

#[test]
fn a_recorded_swiglu_is_near_the_oracle() {
    if !msl_sim::available() {
        return;
    }
    for (dtype, format) in kinds() {
        for (n, top_k) in [(1, 3), (3, 2)] {
            let (n_experts, n_out, n_in) = (4, 13, 384);
            let n_pairs = n * top_k;
            let shape = SwigluShape { n_pairs, x_batch: n, n_rows: 1, n_experts, n_out, n_in, sorted: false };
            let case = swiglu::Case::new(dtype, format, shape);
            let mut arrays = stored(&case.inputs());
            arrays[0].shape = vec![n, n_in];
            arrays[7].shape = vec![n, top_k];
            let banks = [bank(&arrays[1..]), bank(&arrays[4..])];
            let launch = Launch::gather_qmm_swiglu(format, arrays[0].operand(), banks, arrays[7].operand());
            case.check_accurate(&run(launch));
        }
    }
}

#[test]
fn a_recorded_combine_is_near_the_oracle() {
    if !msl_sim::available() {
        return;
    }
    for (dtype, format) in kinds() {
        for (n_tokens, top_k, weights) in [(1, 8, dtype), (3, 2, DType::F32)] {
            let shape = CombineShape { n_tokens, top_k, n_experts: 4, n_out: 13, n_in: 384 };
            let case = combine::Case::new(dtype, weights, format, shape);
            let arrays = stored(&case.inputs());
            let [x, experts, weights] = [0, 4, 5].map(|i| arrays[i].operand());
            let launch = Launch::gather_qmm_combine(format, x, bank(&arrays[1..]), experts, weights);
            case.check_accurate(&run(launch));
        }
    }
}

#[test]
fn activations_of_f32_meet_scales_of_bf16() {
    if !msl_sim::available() {
        return;
    }
    let (n_out, n_in) = (13, 384);
    let weight = Bank::new(four_bit(), DType::BF16, [1, n_out, n_in], 1);
    let x = activations(DType::F32, &[1, n_in], 3);
    let [w, scales, biases] = weight.buffers();
    let arrays = stored(&[&x, &w, &scales, &biases]);
    let got = run(Launch::quantized_matmul(four_bit(), arrays[0].operand(), bank(&arrays[1..])));
    for (n, got) in got.into_iter().enumerate() {
        let (want, size) = weight.product(&x.floats(), 0, n);
        // As for a matmul whose types are equal.
        let allowed = ((n_in / 32 + 64) as f64 * size + want.abs()) * 2f64.powi(-24) + 1e-7;
        assert!((f64::from(got) - want).abs() <= allowed, "{n}: {got} for {want} ± {allowed}");
    }
}

/// An array of which only type and shape matter.
fn operand(dtype: DType, shape: &[usize]) -> Operand<'static, Vec<u8>> {
    static EMPTY: Vec<u8> = Vec::new();
    Operand { buffer: &EMPTY, offset_bytes: 0, dtype, shape: shape.to_vec() }
}

/// Arrays of a bank of 4-bit matrices `[n_out, 256]`.
fn four_bits(
    scales: DType,
    group_size: usize,
    [n_mats, n_out]: [usize; 2],
) -> BankOperands<'static, Vec<u8>> {
    let groups = operand(scales, &[n_mats, n_out, 256 / group_size]);
    [operand(DType::U32, &[n_mats, n_out, 32]), groups.clone(), groups]
}

/// Name and source of a launch of every op, with biases and without.
pub(crate) fn sources() -> Vec<(String, String)> {
    let mxfp4 = QuantSpec::new(QuantMode::Mxfp4, 4, 32).unwrap();
    let of_format = |(format, scales): (QuantSpec, DType)| {
        let bank = |n_mats| four_bits(scales, format.group_size(), [n_mats, 8]);
        let (x, h) = (operand(DType::BF16, &[2, 256]), operand(DType::BF16, &[2, 3, 256]));
        let (experts, weights) = (operand(DType::U32, &[2, 3]), operand(DType::F32, &[2, 3]));
        let launches = [
            Launch::quantized_matmul(format, x.clone(), bank(1)),
            Launch::gather_qmm_swiglu(format, x, [bank(4), bank(4)], experts.clone()),
            Launch::gather_qmm_combine(format, h, bank(4), experts, weights),
        ];
        launches.map(|launch| launch.map(|l| (l.name(), l.source())).unwrap())
    };
    [(four_bit(), DType::BF16), (mxfp4, DType::U8)].into_iter().flat_map(of_format).collect()
}

#[test]
fn address_spaces_of_a_launch_are_those_of_metal() {
    if !msl_sim::available() {
        return;
    }
    for (name, source) in sources() {
        if let Err(e) = Msl::source(name.clone(), source).check_address_spaces() {
            panic!("{name}: {e}");
        }
    }
}

#[test]
fn a_name_stands_for_one_source() {
    let sources = sources();
    let names: std::collections::HashSet<&str> = sources.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names.len(), sources.len(), "{names:?}");
}

#[test]
fn arrays_that_do_not_fit_are_refused_by_name() {
    let format = four_bit();
    let bank = |n_mats, n_out| four_bits(DType::BF16, 64, [n_mats, n_out]);
    let x = || operand(DType::BF16, &[2, 256]);
    let experts = || operand(DType::U32, &[2, 3]);
    let h = || operand(DType::BF16, &[2, 3, 256]);
    let swiglu = |x, gate, up, experts| Launch::gather_qmm_swiglu(format, x, [gate, up], experts).map(drop);
    let combine =
        |x, experts, weights| Launch::gather_qmm_combine(format, x, bank(4, 8), experts, weights).map(drop);
    let matmul = |x, weight| Launch::quantized_matmul(format, x, weight).map(drop);
    let mxfp4 = QuantSpec::new(QuantMode::Mxfp4, 4, 32).unwrap();
    let with = |i: usize, dtype, shape: &[usize]| {
        let mut arrays = bank(1, 8);
        arrays[i] = operand(dtype, shape);
        arrays
    };
    for (result, want) in [
        (matmul(x(), bank(2, 8)), "quantized_matmul: weight: expected one matrix, got 2"),
        (matmul(h(), bank(1, 8)), "quantized_matmul: x: expected [M, K], got [2, 3, 256]"),
        (matmul(operand(DType::BF16, &[2, 64]), bank(1, 8)), "x: expected [M, 256], got [2, 64]"),
        (matmul(x(), with(0, DType::U8, &[1, 8, 32])), "weight: expected u32, got U8"),
        (matmul(x(), with(0, DType::U32, &[1, 8, 31])), "weight: expected 128 bytes in a row"),
        (matmul(x(), with(1, DType::U8, &[1, 8, 4])), "biases: expected [1, 8, 4] of U8"),
        (matmul(x(), with(2, DType::BF16, &[1, 8, 5])), "biases: expected [1, 8, 4] of BF16"),
        (
            Launch::quantized_matmul(mxfp4, x(), with(1, DType::BF16, &[1, 8, 8])).map(drop),
            "biases: expected [1, 8, 8] of BF16",
        ),
        (matmul(operand(DType::U32, &[2, 256]), bank(1, 8)), "activations must be f32, f16 or bf16"),
        (
            swiglu(x(), bank(4, 8), bank(4, 9), experts()),
            "up: expected [4, 8, 256], as gate, got [4, 9, 256]",
        ),
        (swiglu(x(), bank(4, 8), bank(4, 8), operand(DType::U32, &[3, 2])), "experts: expected [2, top_k]"),
        (swiglu(x(), bank(4, 8), bank(4, 8), operand(DType::F32, &[2, 3])), "experts: expected u32, got F32"),
        (combine(h(), operand(DType::U32, &[2, 4]), h()), "experts: expected [2, 3], got [2, 4]"),
        (combine(h(), experts(), operand(DType::F32, &[2, 4])), "weights: expected [2, 3], got [2, 4]"),
        (
            combine(
                operand(DType::BF16, &[2, 17, 256]),
                operand(DType::U32, &[2, 17]),
                operand(DType::F32, &[2, 17]),
            ),
            "gather_qmm_combine is not supported on the metal backend: more than 16 slots per token",
        ),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
}
