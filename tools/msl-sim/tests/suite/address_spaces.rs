//! Tests that each pointer which changes its address space is found, and that correct code passes.

use std::path::Path;

use msl_sim::{Checked, Dtype, Error, MlxBody, Mode, Msl, Space};

type Test = Result<(), Error>;

/// Lines of a kernel. Those marked BUG must each give an error, the others none.
const LINES: [&str; 15] = [
    "Params copy; copy.scale = params.scale;",
    "y[i] = get(x, i) * copy.scale;",
    "y[i] += get(table, i); // BUG constant as device",
    "y[i] += get(s, i); // BUG threadgroup as device",
    "y[i] += get_thread(y, i); // BUG device as thread",
    "device float* d = s; // BUG threadgroup as device",
    "const device float4* v = (const device float4*)x; float4 w = v[0]; y[1] = w.x;",
    "thread float r[4]; y[2] = get_thread(r, 1);",
    "y[3] = get(r, 1); // BUG thread as device",
    "const float* u = x; // BUG device as thread",
    "table[0] = 1; // BUG constant is read-only",
    "y[4] = any_space(x) + any_space(table) + any_space(s);",
    "threadgroup float* t = s; t[0] = float4(1, 2, 3, 4).x;",
    "y[5] = metal::exp(x[0]) + simd_sum(table[1]);",
    "atomic_fetch_add_explicit((constant atomic_uint*)table, 1u, memory_order_relaxed); // BUG atomic in constant",
];

fn kernel(lines: &[&str]) -> String {
    format!(
        "#include <metal_stdlib>
using namespace metal;
struct Params {{ uint n; float scale; }};
float get(const device float* p, uint i) {{ return p[i]; }}
float get_thread(const thread float* p, uint i) {{ return p[i]; }}
template <typename P> float any_space(P p) {{ return p[0]; }}
kernel void f(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant Params& params [[buffer(2)]],
              constant float* table [[buffer(3)]], uint i [[thread_position_in_grid]]) {{
  threadgroup float s[32];
{}
}}
",
        lines.join("\n")
    )
}

#[test]
fn every_mistake_is_found_at_its_line() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    match Msl::source("spaces.metal", kernel(&LINES)).check_address_spaces() {
        Ok(Checked::Skipped(_)) => {}
        Ok(Checked::Passed) => panic!("nothing found"),
        Err(Error::AddressSpace { diagnostics, .. }) => {
            for (i, line) in LINES.iter().enumerate() {
                let place = format!("spaces.metal:{}:", i + 10);
                let reported = diagnostics.lines().any(|d| d.starts_with(&place) && d.contains("error"));
                assert_eq!(reported, line.contains("BUG"), "{line}\n{diagnostics}");
            }
        }
        Err(other) => return Err(other),
    }
    Ok(())
}

#[test]
fn correct_code_passes() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let correct: Vec<&str> = LINES.into_iter().filter(|l| !l.contains("BUG")).collect();
    Msl::source("spaces.metal", kernel(&correct)).check_address_spaces()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    for file in ["math.metal", "simd.metal", "language.metal"] {
        Msl::file(folder.join(file))?.check_address_spaces()?;
    }
    Ok(())
}

#[test]
fn an_mlx_body_is_checked_for_the_space_of_each_input() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let body = |space| {
        MlxBody::new("take", "uint i = thread_position_in_grid.x; y[i] = pick(x, i % uint(x_shape[0]));")
            .header("inline float pick(const device float* p, uint i) { return p[i]; }")
            .input("x", Dtype::Float32, &[7])
            .output("y", Dtype::Float32, &[7])
            .space("x", space)
    };
    body(Space::Device).check_address_spaces()?;
    match body(Space::Constant).check_address_spaces() {
        Err(Error::AddressSpace { diagnostics, .. }) => {
            assert!(diagnostics.contains("take.body:1"), "{diagnostics}")
        }
        Ok(Checked::Skipped(_)) => {}
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
fn features_newer_than_cpp14_are_found() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let check = |helper: &str, body: &str| {
        let body = MlxBody::new("newer", body).header(helper).input("x", Dtype::Float32, &[8]).output(
            "y",
            Dtype::Float32,
            &[1],
        );
        body.build(Mode::Plain)?;
        body.check_address_spaces()
    };
    // Every clang accepts this with a warning, and MLX uses it.
    check(
        "template <int N> inline float f(float v) { if constexpr (N > 0) return v; else return -v; }",
        "y[0] = f<1>(x[0]);",
    )?;
    let deduction = "template <typename A> struct Pair { A a; Pair(A v) : a(v) {} };";
    match check(deduction, "Pair p(x[0]); y[0] = p.a;") {
        Err(Error::AddressSpace { diagnostics, .. }) => {
            assert!(diagnostics.contains("newer.body:1"), "{diagnostics}")
        }
        Ok(Checked::Skipped(_)) => {}
        other => panic!("{other:?}"),
    }
    Ok(())
}
