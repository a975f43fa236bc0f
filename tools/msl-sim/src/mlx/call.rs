//! A dispatch of a body with MLX's rules.

use bytemuck::{NoUninit, Pod};

use super::{Dtype, Input, MlxKernel, Output, signature};
use crate::runner::{Access, Memory};
use crate::{Error, Order};

/// A call of an [`MlxKernel`](super::MlxKernel) that is being prepared.
#[derive(Debug)]
pub struct MlxCall<'a> {
    kernel: &'a MlxKernel,
    inputs: Vec<&'a [u8]>,
    init_value: Option<f32>,
    order: Order,
    time_limit: Option<u64>,
    sliced: bool,
}

/// The outputs of a call.
#[derive(Debug)]
pub struct Outputs {
    kernel: String,
    arrays: Vec<Vec<u8>>,
}

impl Outputs {
    /// Output `i` as elements of type `T`.
    ///
    /// **Errors**: there is no such output, or its size in bytes is not a multiple of the size of `T`.
    pub fn get<T: Pod>(&self, i: usize) -> Result<Vec<T>, Error> {
        let refuse = |message| Error::Call { kernel: self.kernel.clone(), message };
        let bytes = self.arrays.get(i).ok_or_else(|| refuse(format!("there is no output {i}")))?;
        if bytes.len() % size_of::<T>().max(1) != 0 {
            return Err(refuse(format!(
                "output {i} has {} bytes, which is not a whole number of elements",
                bytes.len()
            )));
        }
        Ok(bytes.chunks_exact(size_of::<T>().max(1)).map(bytemuck::pod_read_unaligned).collect())
    }
}

impl<'a> MlxCall<'a> {
    pub(super) fn new(kernel: &'a MlxKernel) -> Self {
        Self {
            kernel,
            inputs: Vec::new(),
            init_value: None,
            order: Order::default(),
            time_limit: None,
            sliced: false,
        }
    }

    /// Adds the data of the next input.
    pub fn input<T: NoUninit>(mut self, data: &'a [T]) -> Self {
        self.inputs.push(bytemuck::cast_slice(data));
        self
    }

    /// Fills the outputs with a value before the call. Without it the outputs are undefined, and the kernel must write
    /// all of each.
    pub fn init_value(mut self, value: f32) -> Self {
        self.init_value = Some(value);
        self
    }

    /// Sets the order in which threads run.
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Like [`Call::time_limit`](crate::Call::time_limit).
    pub fn time_limit(mut self, seconds: u64) -> Self {
        self.time_limit = Some(seconds);
        self
    }

    /// Lets every input begin one element after an aligned address, as a slice of a larger array does.
    /// [`Mode::Detect`](crate::Mode::Detect) then finds a body that casts a pointer and reads more than an element at
    /// once.
    pub fn sliced(mut self) -> Self {
        self.sliced = true;
        self
    }

    /// Runs `grid` threads in groups of `threadgroup`.
    ///
    /// **Errors**: data that does not match the declarations, and every fault of the kernel.
    pub fn dispatch(self, grid: [u32; 3], threadgroup: [u32; 3]) -> Result<Outputs, Error> {
        let body = &self.kernel.body;
        let refuse = |message| Err(Error::Call { kernel: body.name.clone(), message });
        if self.inputs.len() != body.inputs.len() {
            return refuse(format!(
                "{} inputs are declared, {} are given",
                body.inputs.len(),
                self.inputs.len()
            ));
        }
        let mut call = self.kernel.library.kernel(&self.kernel.host_name)?.order(self.order);
        if let Some(seconds) = self.time_limit {
            call = call.time_limit(seconds);
        }
        let mut index = 0;
        for (input, &data) in body.inputs.iter().zip(&self.inputs) {
            let (data, strides) = match layout(input, data, body.keep_layout) {
                Ok(layout) => layout,
                Err(message) => return refuse(message),
            };
            call = call.bind(index, data, Access::Read).skew(if self.sliced {
                input.dtype.n_bytes()
            } else {
                0
            });
            index += 1;
            let named = signature::companions(body, input);
            let shape: Vec<i32> = input.shape.iter().map(|&n| n as i32).collect();
            for (present, bytes) in [
                (named.shape, bytemuck::cast_slice::<i32, u8>(&shape).to_vec()),
                (named.strides, bytemuck::cast_slice::<i64, u8>(&strides).to_vec()),
                (named.ndim, (shape.len() as i32).to_ne_bytes().to_vec()),
            ] {
                if present {
                    call = call.bind(index, Memory::Owned(bytes), Access::Read);
                    index += 1;
                }
            }
        }
        for output in &body.outputs {
            let access = if self.init_value.is_some() { Access::ReadWrite } else { Access::Output };
            call = call.bind(index, Memory::Owned(initial(output, self.init_value)), access);
            index += 1;
        }
        let group = std::array::from_fn(|i| threadgroup[i].min(grid[i]));
        Ok(Outputs { kernel: body.name.clone(), arrays: call.run(grid, group)? })
    }
}

/// The content of an output before the kernel runs: the initial value, or bytes that are NaN in every float format.
fn initial(output: &Output, value: Option<f32>) -> Vec<u8> {
    let n = output.shape.iter().product();
    let Some(value) = value else { return vec![0xff; n * output.dtype.n_bytes()] };
    let element: Vec<u8> = match output.dtype {
        Dtype::Bool => vec![u8::from(value != 0.0)],
        Dtype::Uint8 => (value as u8).to_ne_bytes().to_vec(),
        Dtype::Uint16 => (value as u16).to_ne_bytes().to_vec(),
        Dtype::Uint32 => (value as u32).to_ne_bytes().to_vec(),
        Dtype::Uint64 => (value as u64).to_ne_bytes().to_vec(),
        Dtype::Int8 => (value as i8).to_ne_bytes().to_vec(),
        Dtype::Int16 => (value as i16).to_ne_bytes().to_vec(),
        Dtype::Int32 => (value as i32).to_ne_bytes().to_vec(),
        Dtype::Int64 => (value as i64).to_ne_bytes().to_vec(),
        Dtype::Float16 => half::f16::from_f32(value).to_ne_bytes().to_vec(),
        Dtype::Bfloat16 => half::bf16::from_f32(value).to_ne_bytes().to_vec(),
        Dtype::Float32 => value.to_ne_bytes().to_vec(),
    };
    element.repeat(n)
}

fn contiguous_strides(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i] as i64;
    }
    strides
}

/// The bytes and the strides that the kernel sees.
fn layout<'a>(input: &Input, data: &'a [u8], keep: bool) -> Result<(Memory<'a>, Vec<i64>), String> {
    let n_bytes = input.dtype.n_bytes();
    let contiguous = contiguous_strides(&input.shape);
    let strides = input.strides.clone().unwrap_or_else(|| contiguous.clone());
    let offset = |element: usize| -> usize {
        let mut rest = element;
        let dims = input.shape.iter().zip(&strides).rev();
        dims.fold(0, |sum, (&size, &stride)| {
            let here = rest % size;
            rest /= size;
            sum + here * stride as usize
        })
    };
    let n = input.n_elements();
    let extent = match n {
        0 => 0,
        _ => {
            input
                .shape
                .iter()
                .zip(&strides)
                .map(|(&size, &stride)| (size - 1) * stride as usize)
                .sum::<usize>()
                + 1
        }
    };
    let (want, got) = (extent * n_bytes, data.len());
    let strided = input.strides.is_some();
    if got < want || (!strided && got != want) {
        return Err(format!("input {} has {got} bytes and needs {want}", input.name));
    }
    if keep || strides == contiguous {
        return Ok((Memory::Borrowed(data), strides));
    }
    let copy = (0..n).flat_map(|i| data[offset(i) * n_bytes..][..n_bytes].to_vec()).collect();
    Ok((Memory::Owned(copy), contiguous))
}
