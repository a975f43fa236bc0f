//! What MLX would launch on Metal, counted from the graph that it builds.
//!
//! MLX builds a graph of primitives before it computes anything. On Metal most primitives are one dispatch of a kernel, some are
//! none, as they only look at memory in another way, and a few are several. So a graph says what a token costs in
//! dispatches, and no GPU is needed to build it. The rules are those of MLX 0.32.2 for decoding: see [`of_primitive`].
//!
//! On its CPU device MLX takes norms, the rope, attention and dequantising apart, and it has no kernels of Metal at all. While a
//! [`Recording`] lasts, this crate notes these calls with their arrays, and the count puts them where the parts are. For kernels,
//! whose results cannot be computed there, it gives zeros: arrays that were built meanwhile are for counting, not for reading.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CStr;
use std::fmt;

use mlx_rs::Array;

use super::runtime::NAME;
use crate::{Error, Result};

const OP: &str = "count";

/// A call that is one dispatch on Metal, whatever MLX makes of it elsewhere.
struct Call {
    name: &'static str,
    inputs: Vec<Array>,
    outputs: Vec<Array>,
}

thread_local! {
    /// The calls of the recording that lasts on this thread.
    static CALLS: RefCell<Option<Vec<Call>>> = const { RefCell::new(None) };
}

/// True while this thread builds graphs as for Metal.
pub(super) fn is_recording() -> bool {
    CALLS.with_borrow(Option::is_some)
}

/// Notes a call, if there is a recording.
pub(super) fn note(name: &'static str, inputs: &[&Array], outputs: &[Array]) {
    CALLS.with_borrow_mut(|calls| {
        if let Some(calls) = calls {
            let inputs = inputs.iter().map(|a| (*a).clone()).collect();
            calls.push(Call { name, inputs, outputs: outputs.to_vec() });
        }
    });
}

/// While it lasts, ops of its thread build the graph that they would build for Metal. One at a time per thread.
#[derive(Debug)]
pub struct Recording {
    /// It belongs to its thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

/// Dispatches, by what is launched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dispatches(pub BTreeMap<String, usize>);

impl Dispatches {
    /// All of them.
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    /// Those that are not among `before`, which must all be among these.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let more = |(name, n): (&String, &usize)| {
            let n = n - before.0.get(name).unwrap_or(&0);
            (n > 0).then(|| (name.clone(), n))
        };
        Self(self.0.iter().filter_map(more).collect())
    }
}

impl fmt::Display for Dispatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, n)| writeln!(f, "{n} {name}"))
    }
}

impl Recording {
    /// Begins to record.
    pub fn start() -> Self {
        CALLS.set(Some(Vec::new()));
        Self { _not_send: std::marker::PhantomData }
    }

    /// What MLX would dispatch to compute these arrays, and nothing else, from what is computed already.
    ///
    /// # Errors
    /// [`Error::Fault`] if MLX does not show its graph, or a primitive has no rule here.
    pub fn count(&self, outputs: &[&Array]) -> Result<Dispatches> {
        CALLS.with_borrow(|calls| count(calls.as_deref().unwrap_or_default(), outputs))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        CALLS.set(None);
    }
}

/// A primitive of the graph: its name, and those of its inputs.
struct Node {
    primitive: String,
    inputs: Vec<String>,
}

fn count(calls: &[Call], outputs: &[&Array]) -> Result<Dispatches> {
    let names = Names::new();
    let roots = outputs.iter().map(|a| names.of(a)).collect::<Result<Vec<_>>>()?;
    // By the name of each output, which call it comes from.
    let mut called = HashMap::new();
    let mut inputs_of = Vec::with_capacity(calls.len());
    for (i, call) in calls.iter().enumerate() {
        for output in &call.outputs {
            called.insert(names.of(output)?, i);
        }
        inputs_of.push(call.inputs.iter().map(|a| names.of(a)).collect::<Result<Vec<_>>>()?);
    }
    let inputs = calls.iter().flat_map(|call| &call.inputs);
    let (nodes, made) = parse(&names.graph(outputs.iter().copied().chain(inputs))?)?;
    let mut found = Dispatches::default();
    let (mut seen, mut left) = (HashSet::new(), roots);
    while let Some(name) = left.pop() {
        if let Some(&i) = called.get(&name) {
            if seen.insert(i) {
                *found.0.entry(calls[i].name.to_owned()).or_default() += 1;
                left.extend(inputs_of[i].iter().cloned());
            }
            continue;
        }
        // What no primitive makes is there already.
        let Some(&i) = made.get(&name) else { continue };
        if seen.insert(calls.len() + i) {
            let Node { primitive, inputs } = &nodes[i];
            let n = of_primitive(primitive, inputs.len())
                .ok_or_else(|| fault(format!("no rule says what {primitive} launches")))?;
            if n > 0 {
                // Broadcasts within a compiled function are views.
                let name = match primitive.starts_with("Compiled") {
                    true => primitive.replace("Broadcast", ""),
                    false => primitive.clone(),
                };
                *found.0.entry(name).or_default() += n;
            }
            left.extend(inputs.iter().cloned());
        }
    }
    Ok(found)
}

fn fault(why: String) -> Error {
    Error::Fault { op: OP, backend: NAME, why }
}

/// Dispatches of a primitive with so many inputs, when one token is decoded; `None` for one that no rule knows.
///
/// Each rule was read in MLX 0.32.2, in the `eval_gpu` of the primitive:
///
/// | primitive | dispatches |
/// |---|---|
/// | another view of the same memory | 0; a reshape of one token's values is such a view |
/// | a concatenation | one copy per input |
/// | an update of a slice | 1: the update is copied into memory that nothing else holds |
/// | an update at indices | 2: a copy of what is updated, and the update |
/// | a sort or partition of up to 2048 values per row, as routers have | 1 |
/// | a compiled function | 1 for each chain of elementwise ops that it joined |
/// | any other | 1 |
fn of_primitive(name: &str, n_inputs: usize) -> Option<usize> {
    Some(match name {
        "AsStrided" | "Broadcast" | "BroadcastAxes" | "Contiguous" | "Copy" | "Depends" | "ExpandDims"
        | "Flatten" | "Reshape" | "Slice" | "Split" | "Squeeze" | "StopGradient" | "Transpose"
        | "Unflatten" | "View" => 0,
        "Concatenate" => n_inputs,
        "ScatterAxis" | "Scatter" => 2,
        "Abs" | "Add" | "Arange" | "ArgMax" | "ArgMin" | "ArgPartition" | "ArgReduce" | "ArgSort"
        | "AsType" | "Convolution" | "Cos" | "CumSum" | "Divide" | "Equal" | "Exp" | "Full" | "Gather"
        | "GatherAxis" | "GatherMM" | "GatherQMM" | "Greater" | "GreaterEqual" | "Less" | "LessEqual"
        | "Log" | "LogAddExp" | "LogSumExp" | "LogicalAnd" | "LogicalOr" | "Matmul" | "Max" | "Maximum"
        | "Min" | "Minimum" | "Multiply" | "Negative" | "NotEqual" | "Partition" | "Power"
        | "QuantizedMatmul" | "Quantize" | "Dequantize" | "AffineQuantize" | "RandomBits" | "Reduce"
        | "Rsqrt" | "Scan" | "Select" | "Sigmoid" | "Sin" | "SliceUpdate" | "Softmax" | "Sort" | "Sqrt"
        | "Square" | "Subtract" | "Sum" | "Tanh" => 1,
        compiled if compiled.starts_with("Compiled") => 1,
        _ => return None,
    })
}

/// Names that MLX's printer gives to arrays.
struct Names {
    namer: mlx_sys::mlx_node_namer,
}

impl Names {
    fn new() -> Self {
        // SAFETY: makes a handle, which is freed once, when this value goes.
        Self { namer: unsafe { mlx_sys::mlx_node_namer_new() } }
    }

    /// The array's name, the same as often as it is asked for.
    fn of(&self, array: &Array) -> Result<String> {
        let mut name = std::ptr::null();
        // SAFETY: both handles are live; the call writes a pointer to a live one.
        let status = unsafe { mlx_sys::mlx_node_namer_get_name(&mut name, self.namer, array.as_ptr()) };
        if status != 0 || name.is_null() {
            return Err(fault("MLX does not name an array".to_owned()));
        }
        // SAFETY: a text that ends in zero, which the namer holds; it is copied before the next call.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// All that is needed for these arrays, as MLX prints it: a line per primitive, `NAME inputs -> outputs`.
    fn graph<'a>(&self, arrays: impl Iterator<Item = &'a Array>) -> Result<String> {
        let handles: Vec<_> = arrays.map(Array::as_ptr).collect();
        let (mut text, mut len) = (std::ptr::null_mut(), 0);
        // SAFETY: the two pointers are to live values, which outlive the file; it is closed below.
        let file = unsafe { libc::open_memstream(&mut text, &mut len) };
        if file.is_null() {
            return Err(fault("no memory for the graph".to_owned()));
        }
        // SAFETY: the list is live and has the length that is given; its arrays are live, as their references are; the file is open,
        // and both libraries mean the C library's type of files. The vector is freed once.
        let status = unsafe {
            let outputs = mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
            let status = mlx_sys::mlx_print_graph(file.cast(), self.namer, outputs);
            mlx_sys::mlx_vector_array_free(outputs);
            status
        };
        // SAFETY: the file is open, and closed once; that sets `text` and `len` to memory that is ours to free.
        let graph = unsafe {
            libc::fclose(file);
            let graph =
                (!text.is_null()).then(|| std::slice::from_raw_parts(text.cast::<u8>(), len).to_vec());
            libc::free(text.cast());
            graph
        };
        let graph = graph.filter(|_| status == 0).and_then(|bytes| String::from_utf8(bytes).ok());
        graph.ok_or_else(|| fault("MLX does not show its graph".to_owned()))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // SAFETY: a live handle that only this value owns.
        unsafe { mlx_sys::mlx_node_namer_free(self.namer) };
    }
}

/// The primitives of a printed graph, and which of them makes each array.
fn parse(graph: &str) -> Result<(Vec<Node>, HashMap<String, usize>)> {
    // `A [(1,2), float32], B [(2), int32]`
    let names = |list: &str| -> Vec<String> {
        list.split("], ").filter_map(|item| Some(item.trim().split_once(" [")?.0.to_owned())).collect()
    };
    let (mut nodes, mut made) = (Vec::new(), HashMap::new());
    for line in graph.lines().filter(|line| !line.starts_with("Inputs: ") && !line.starts_with("Outputs: ")) {
        let parts =
            line.split_once(" -> ").and_then(|(left, outputs)| Some((left.split_once(' ')?, outputs)));
        let ((primitive, inputs), outputs) =
            parts.ok_or_else(|| fault(format!("a line of MLX's graph that is none: {line}")))?;
        made.extend(names(outputs).into_iter().map(|name| (name, nodes.len())));
        nodes.push(Node { primitive: primitive.to_owned(), inputs: names(inputs) });
    }
    Ok((nodes, made))
}

#[cfg(test)]
mod tests {
    use mlx_rs::ops;

    use super::*;
    use crate::mlx::{Runtime, raw};

    fn counted(found: &Dispatches) -> Vec<(&str, usize)> {
        found.0.iter().map(|(name, n)| (name.as_str(), *n)).collect()
    }

    fn ones(shape: &[i32]) -> Array {
        let x = Array::from_slice(&vec![1.0_f32; shape.iter().product::<i32>() as usize], shape);
        x.eval().unwrap();
        x
    }

    #[test]
    fn only_what_an_array_needs_is_counted_and_views_are_free() {
        Runtime::start().unwrap();
        let (recording, x) = (Recording::start(), ones(&[2, 3]));
        let unused = x.exp().unwrap();
        let y = x.transpose().unwrap().multiply(ones(&[3, 2])).unwrap();
        let y = ops::concatenate(&[&y.reshape(&[6]).unwrap(), &ones(&[2])], 0).unwrap();
        assert_eq!(counted(&recording.count(&[&y]).unwrap()), [("Concatenate", 2), ("Multiply", 1)]);
        let both = recording.count(&[&y, &unused]).unwrap();
        assert_eq!(counted(&both.since(&recording.count(&[&y]).unwrap())), [("Exp", 1)]);
        assert_eq!(both.total(), 4);
        // What is computed costs nothing any more.
        y.eval().unwrap();
        assert_eq!(recording.count(&[&y]).unwrap().total(), 0);
    }

    #[test]
    fn a_norm_is_one_dispatch_and_what_it_needs() {
        Runtime::start().unwrap();
        let x = ones(&[2, 8]);
        let build = || raw::rms_norm("test", &x.exp().unwrap(), Some(&ones(&[8])), 1e-6).unwrap();
        let recording = Recording::start();
        let y = build().negative().unwrap();
        let found = recording.count(&[&y]).unwrap();
        assert_eq!(counted(&found), [("Exp", 1), ("Negative", 1), ("rms_norm", 1)]);
        drop(recording);
        assert!(!is_recording());
        build().eval().unwrap();
    }

    #[test]
    fn a_primitive_without_a_rule_is_an_error() {
        Runtime::start().unwrap();
        let recording = Recording::start();
        let y = ops::atan(ones(&[2])).unwrap();
        let error = recording.count(&[&y]).unwrap_err().to_string();
        assert!(error.contains("ArcTan"), "{error}");
    }
}
