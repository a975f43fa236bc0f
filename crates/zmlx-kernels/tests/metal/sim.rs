//! A [`KernelSpec`] in the simulator, as MLX would launch it.

use msl_sim::{Dtype, MlxBody, MlxKernel, Mode, Order, Space};
use zmlx_kernels::DType;
use zmlx_kernels::metal::{KernelSpec, Template};

use crate::inputs::Buffer;

fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::Float32,
        DType::F16 => Dtype::Float16,
        DType::BF16 => Dtype::Bfloat16,
        DType::U8 => Dtype::Uint8,
        DType::U32 => Dtype::Uint32,
    }
}

fn words(sizes: [usize; 3]) -> [u32; 3] {
    sizes.map(|n| u32::try_from(n).unwrap())
}

/// The body with the inputs' types and shapes.
pub(crate) fn body(spec: &KernelSpec, inputs: &[&Buffer]) -> MlxBody {
    assert_eq!(inputs.len(), spec.inputs.len());
    let mut body = MlxBody::new(spec.name, spec.body).header(spec.header);
    for (name, input) in spec.inputs.iter().zip(inputs) {
        body = body.input(*name, dtype(input.dtype), &input.shape);
    }
    for output in &spec.outputs {
        body = body.output(output.name, dtype(output.dtype), &output.shape);
    }
    for &(name, value) in &spec.template {
        body = match value {
            Template::Type(t) => body.template(name, dtype(t)),
            Template::Int(i) => body.template(name, i),
            Template::Bool(b) => body.template(name, b),
        };
    }
    body
}

/// Runs a built kernel; every output must have been written.
pub(crate) fn call(kernel: &MlxKernel, spec: &KernelSpec, inputs: &[&Buffer], order: Order) -> Vec<Buffer> {
    let mut call = kernel.call().order(order);
    for input in inputs {
        call = call.input(&input.bytes);
    }
    let out = call
        .dispatch(words(spec.grid), words(spec.threadgroup))
        .unwrap_or_else(|e| panic!("{}: {e}", spec.name));
    let outputs = spec.outputs.iter().enumerate().map(|(i, output)| Buffer {
        dtype: output.dtype,
        shape: output.shape.clone(),
        bytes: out.get::<u8>(i).unwrap(),
    });
    outputs.collect()
}

/// Builds and runs, threads in ascending order.
pub(crate) fn run(spec: &KernelSpec, inputs: &[&Buffer]) -> Vec<Buffer> {
    let kernel = body(spec, inputs).build(Mode::Plain).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
    call(&kernel, spec, inputs, Order::Forward)
}

/// As [`run`], in three orders of the threads and with small inputs in either address space: all bits must be equal.
pub(crate) fn run_all_ways(spec: &KernelSpec, inputs: &[&Buffer]) -> Vec<Buffer> {
    let first = run(spec, inputs);
    let small = |b: &&Buffer| b.shape.iter().product::<usize>() < 8;
    let spaces: &[Space] =
        if inputs.iter().any(small) { &[Space::Constant, Space::Device] } else { &[Space::Device] };
    for &space in spaces {
        let mut body = body(spec, inputs);
        for (name, _) in spec.inputs.iter().zip(inputs).filter(|(_, b)| small(b)) {
            body = body.space(name, space);
        }
        let kernel = body.build(Mode::Plain).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
        for order in [Order::Forward, Order::Reverse, Order::Random(7)] {
            let again = call(&kernel, spec, inputs, order);
            for (a, b) in first.iter().zip(&again) {
                assert!(a.bytes == b.bytes, "{}: {space:?}, {order:?}", spec.name);
            }
        }
    }
    first
}

/// The launch of a kernel with a threadgroup of other rows for each simdgroup and other simdgroups, for results of `n_out` rows.
pub(crate) fn with_block(spec: &KernelSpec, n_out: usize, [rows, simdgroups]: [usize; 2]) -> KernelSpec {
    let mut spec = spec.clone();
    for (name, value) in &mut spec.template {
        match *name {
            "ROWS" => *value = Template::Int(rows as i32),
            "SIMDGROUPS" => *value = Template::Int(simdgroups as i32),
            _ => {}
        }
    }
    spec.grid[1] = simdgroups * n_out.div_ceil(simdgroups * rows);
    spec.threadgroup[1] = simdgroups;
    spec
}
