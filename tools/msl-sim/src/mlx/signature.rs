//! Generates the text of a kernel with MLX's rules.

use std::fmt::Write as _;

use super::{Input, MlxBody, Space, TemplateArg};

/// Inputs with fewer elements are passed in the constant address space.
const CONSTANT_BELOW: usize = 8;

const PREAMBLE: &str = include_str!("preamble.metal");

/// The attributes that a body can name, with their types, in the order in which MLX declares them.
const ATTRIBUTES: [(&str, &str); 20] = [
    ("dispatch_quadgroups_per_threadgroup", "uint"),
    ("dispatch_simdgroups_per_threadgroup", "uint"),
    ("dispatch_threads_per_threadgroup", "uint3"),
    ("grid_origin", "uint3"),
    ("grid_size", "uint3"),
    ("quadgroup_index_in_threadgroup", "uint"),
    ("quadgroups_per_threadgroup", "uint"),
    ("simdgroup_index_in_threadgroup", "uint"),
    ("simdgroups_per_threadgroup", "uint"),
    ("thread_execution_width", "uint"),
    ("thread_index_in_quadgroup", "uint"),
    ("thread_index_in_simdgroup", "uint"),
    ("thread_index_in_threadgroup", "uint"),
    ("thread_position_in_grid", "uint3"),
    ("thread_position_in_threadgroup", "uint3"),
    ("threadgroup_position_in_grid", "uint3"),
    ("threadgroups_per_grid", "uint3"),
    ("threads_per_grid", "uint3"),
    ("threads_per_simdgroup", "uint"),
    ("threads_per_threadgroup", "uint3"),
];

/// Which additional arguments of an input the body names. Like MLX, this searches for the word anywhere: a body that
/// contains `idx_shape` also names the shape of an input `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Companions {
    pub(super) shape: bool,
    pub(super) strides: bool,
    pub(super) ndim: bool,
}

pub(super) fn companions(body: &MlxBody, input: &Input) -> Companions {
    let named =
        |suffix: &str| !input.shape.is_empty() && body.body.contains(&format!("{}_{suffix}", input.name));
    Companions { shape: named("shape"), strides: named("strides"), ndim: named("ndim") }
}

fn space(input: &Input) -> Space {
    let by_size = if input.n_elements() < CONSTANT_BELOW { Space::Constant } else { Space::Device };
    input.space.unwrap_or(by_size)
}

fn template_arguments(body: &MlxBody) -> String {
    let arguments: Vec<String> = body
        .template
        .iter()
        .map(|(_, value)| match value {
            TemplateArg::Dtype(dtype) => dtype.metal().to_owned(),
            TemplateArg::Int(n) => n.to_string(),
            TemplateArg::Bool(b) => u8::from(*b).to_string(),
        })
        .collect();
    format!("<{}>", arguments.join(", "))
}

/// The name of the kernel function. Every variant of a body has its own.
pub(super) fn host_name(body: &MlxBody) -> String {
    let mut name = format!("custom_kernel_{}", body.name);
    if !body.template.is_empty() {
        let arguments = template_arguments(body).replace(", ", "_").replace(['<', '>'], "_");
        let _ = write!(name, "_{}", &arguments[..arguments.len() - 1]);
    }
    for input in &body.inputs {
        let suffix = match (input.shape.is_empty(), space(input)) {
            (true, _) => "s",
            (false, Space::Constant) => "c",
            (false, Space::Device) => "",
        };
        let _ = write!(name, "_{}{suffix}", input.dtype.metal());
    }
    for output in &body.outputs {
        let _ = write!(name, "_{}", output.dtype.metal());
    }
    name
}

/// The complete text. `for_simulator` adds the preamble, and line markers which let faults point into header and body.
pub(super) fn source(body: &MlxBody, for_simulator: bool) -> String {
    let mark = |part: &str| match for_simulator {
        true => format!("\n#line 1 \"{}.{part}\"\n", body.name),
        false => String::new(),
    };
    let mut text = String::new();
    if for_simulator {
        text += &mark("preamble");
        text += PREAMBLE;
    }
    text += &mark("header");
    text += &body.header;
    text += &mark("signature");
    signature(&mut text, body);
    text += &mark("body");
    text += &body.body;
    text += "\n}\n";
    if !body.template.is_empty() {
        let name = host_name(body);
        let instance = format!("{name}{}", template_arguments(body));
        let _ = writeln!(
            text,
            "\ntemplate [[host_name(\"{name}\")]] [[kernel]] decltype({instance}) {instance};"
        );
    }
    text
}

fn signature(text: &mut String, body: &MlxBody) {
    if !body.template.is_empty() {
        let parameters: Vec<String> = body
            .template
            .iter()
            .map(|(name, value)| match value {
                TemplateArg::Dtype(_) => format!("typename {name}"),
                TemplateArg::Int(_) => format!("int {name}"),
                TemplateArg::Bool(_) => format!("bool {name}"),
            })
            .collect();
        let _ = writeln!(text, "template <{}>", parameters.join(", "));
    }
    let _ = writeln!(text, "[[kernel]] void {}(", host_name(body));
    let mut index = 0;
    for input in &body.inputs {
        let space = match space(input) {
            Space::Constant => "constant",
            Space::Device => "device",
        };
        let indirection = if input.shape.is_empty() { '&' } else { '*' };
        let (dtype, name) = (input.dtype.metal(), &input.name);
        let _ = writeln!(text, "  const {space} {dtype}{indirection} {name} [[buffer({index})]],");
        index += 1;
        let named = companions(body, input);
        for (present, declaration) in [
            (named.shape, format!("int* {name}_shape")),
            (named.strides, format!("int64_t* {name}_strides")),
            (named.ndim, format!("int& {name}_ndim")),
        ] {
            if present {
                let _ = writeln!(text, "  const constant {declaration} [[buffer({index})]],");
                index += 1;
            }
        }
    }
    let attributes: Vec<String> = ATTRIBUTES
        .iter()
        .filter(|(name, _)| body.body.contains(name))
        .map(|(name, ty)| format!("  {ty} {name} [[{name}]]"))
        .collect();
    for output in &body.outputs {
        let dtype = output.dtype.metal();
        let ty = if body.atomic_outputs { format!("atomic<{dtype}>") } else { dtype.to_owned() };
        let _ = write!(text, "  device {ty}* {} [[buffer({index})]]", output.name);
        // MLX compares with the number of arrays instead of the number of buffers. So a body without attributes, with
        // several outputs and with shapes gets an invalid signature there, and also here.
        let more = index < body.inputs.len() + body.outputs.len() - 1 || !attributes.is_empty();
        *text += if more { ",\n" } else { ") {\n" };
        index += 1;
    }
    if !attributes.is_empty() {
        let _ = writeln!(text, "{}) {{", attributes.join(",\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn body(text: &str) -> MlxBody {
        MlxBody::new("f", text)
            .input("x", Dtype::Float16, &[2, 4])
            .input("n", Dtype::Int32, &[])
            .input("w", Dtype::Uint32, &[7])
            .output("y", Dtype::Bfloat16, &[2])
    }

    #[test]
    fn inputs_follow_the_rule_of_eight_elements() {
        let text = body("y[0] = bfloat16_t(x[thread_position_in_grid.x]);").source();
        let want = "[[kernel]] void custom_kernel_f_float16_t_int32_ts_uint32_tc_bfloat16_t(\n\
                    \x20 const device float16_t* x [[buffer(0)]],\n\
                    \x20 const constant int32_t& n [[buffer(1)]],\n\
                    \x20 const constant uint32_t* w [[buffer(2)]],\n\
                    \x20 device bfloat16_t* y [[buffer(3)]],\n\
                    \x20 uint3 thread_position_in_grid [[thread_position_in_grid]]) {\n";
        assert!(text.starts_with(want), "{text}");
    }

    #[test]
    fn companions_come_behind_their_input_if_named() {
        let text = body("y[0] = w_ndim + x_shape[0] + x_strides[1] + n_shape;").source();
        let order =
            ["x [[buffer(0)]]", "x_shape [[buffer(1)]]", "x_strides [[buffer(2)]]", "n [[buffer(3)]]"];
        let positions: Vec<_> = order.iter().map(|part| text.find(part).unwrap()).collect();
        assert!(positions.is_sorted(), "{text}");
        assert!(text.contains("const constant int& w_ndim [[buffer(5)]]"), "{text}");
        // A scalar input has no shape.
        assert!(!text.contains("n_shape [[buffer"), "{text}");
    }

    #[test]
    fn templates_are_named_and_instantiated() {
        let text = body("").template("T", Dtype::Float16).template("N", -4).template("B", true).source();
        assert!(text.contains("template <typename T, int N, bool B>\n"), "{text}");
        let name = "custom_kernel_f__float16_t_-4_1_float16_t_int32_ts_uint32_tc_bfloat16_t";
        assert!(text.contains(&format!("template [[host_name(\"{name}\")]] [[kernel]]")), "{text}");
        assert!(text.contains(&format!("decltype({name}<float16_t, -4, 1>)")), "{text}");
    }

    #[test]
    fn a_forced_space_wins() {
        let text = body("").space("w", Space::Device).space("x", Space::Constant).source();
        assert!(
            text.contains("const device uint32_t* w") && text.contains("const constant float16_t* x"),
            "{text}"
        );
    }
}
