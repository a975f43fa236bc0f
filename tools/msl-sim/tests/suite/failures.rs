//! Tests that a kernel which cannot be built, called or finished gives a typed error.

use crate::common::library;
use msl_sim::{Error, FaultKind, Mode, Msl};

type Test = Result<(), Error>;

fn only_fault(result: Result<(), Error>) -> FaultKind {
    let error = result.expect_err("the kernel must fail");
    assert_eq!(error.faults().len(), 1, "{error}");
    error.faults()[0].kind
}

#[test]
fn endless_kernels_end_in_an_error() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    for mode in crate::common::MODES {
        let library = library("endless.metal", mode)?;
        for kernel in ["endless", "spin_lock"] {
            let mut flag = [0u32];
            let call = library.kernel(kernel)?.buffer_mut(0, &mut flag).time_limit(1);
            let error = call.dispatch_threads([32, 1, 1], [32, 1, 1]).expect_err("the kernel never ends");
            let timeout = error.faults().iter().find(|f| f.kind == FaultKind::Timeout);
            assert!(timeout.is_some_and(|f| f.thread.is_some()), "{mode:?} {kernel}: {error}");
        }
    }
    Ok(())
}

#[test]
fn crashes_are_errors() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let library = library("endless.metal", Mode::Plain)?;
    let mut out = [0u32; 4];
    let call = library.kernel("null_pointer")?.buffer_mut(0, &mut out);
    assert_eq!(only_fault(call.dispatch_threads([1, 1, 1], [1, 1, 1])), FaultKind::Crash);
    let call = library.kernel("recursion")?.buffer_mut(0, &mut out);
    assert_eq!(only_fault(call.dispatch_threads([1, 1, 1], [1, 1, 1])), FaultKind::StackOverflow);
    Ok(())
}

#[test]
fn calls_that_do_not_fit_are_refused() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let library = library("simd.metal", Mode::Plain)?;
    assert!(matches!(library.kernel("absent"), Err(Error::UnknownKernel { known, .. }) if known.len() > 5));
    let (input, mut out) = ([0f32; 64], [0f32; 64]);
    let refused = |result: Result<(), Error>, words: &str| match result {
        Err(Error::Call { message, .. }) => assert!(message.contains(words), "{message}"),
        other => panic!("wanted an error with {words:?}, got {other:?}"),
    };
    let call = library.kernel("tree")?.buffer(0, &input).buffer_mut(1, &mut out);
    refused(call.dispatch_threads([64, 1, 1], [64, 1, 1]), "threadgroup memory 0");
    refused(library.kernel("tree")?.buffer(0, &input).dispatch_threads([64, 1, 1], [64, 1, 1]), "buffer 1");
    let twice = library
        .kernel("tree")?
        .buffer(0, &input)
        .buffer(0, &input)
        .buffer_mut(1, &mut out)
        .threadgroup(0, 256);
    refused(twice.dispatch_threads([64, 1, 1], [64, 1, 1]), "twice");
    let call =
        || -> Result<_, Error> { Ok(library.kernel("summation_order")?.buffer(0, &input).buffer(1, &input)) };
    refused(call()?.dispatch_threads([64, 1, 0], [64, 1, 1]), "empty");
    refused(call()?.dispatch_threads([2048, 1, 1], [2048, 1, 1]), "1024");
    Ok(())
}

#[test]
fn sources_that_are_no_metal_are_refused_with_their_line() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let build = |body: &str| {
        let text = format!("#include <metal_stdlib>\nusing namespace metal;\n{body}\n");
        Msl::source("wrong.metal", text).build(Mode::Plain).map(drop)
    };
    let at_line = |body: &str, words: &str| match build(body) {
        Err(Error::Translate { name, line, message }) => {
            assert_eq!((name.as_str(), line), ("wrong.metal", 3));
            assert!(message.contains(words), "{message}");
        }
        other => panic!("{body}: {other:?}"),
    };
    at_line("kernel void f(device float* y [[buffer(0)]]) { double d = 1; }", "double");
    at_line("kernel void f(float* y [[buffer(0)]]) {}", "address space");
    at_line("kernel void f(device float* y [[buffer(31)]]) {}", "beyond");
    at_line("kernel void f(uint n) {}", "no attribute");
    at_line("kernel void f(device int* y [[buffer(0)]]) { threadgroup int s = 1; y[0] = s; }", "initialiser");
    at_line("template [[host_name(\"g\")]] [[kernel]] decltype(f<int>) f<int>;", "no kernel template");

    let does_not_compile = |statement: &str| {
        let body =
            format!("kernel void f(device float* y [[buffer(0)]], bool b [[buffer(1)]]) {{ {statement} }}");
        let body = body.replace(", bool b [[buffer(1)]]", "");
        match build(&body) {
            Err(Error::Compile { diagnostics, .. }) => {
                assert!(diagnostics.contains("wrong.metal:3"), "{diagnostics}")
            }
            other => panic!("{statement}: {other:?}"),
        }
    };
    does_not_compile("y[0] = undeclared;");
    // Metal does not convert float to bfloat implicitly.
    does_not_compile("bfloat b = 1.0f; y[0] = b;");
    does_not_compile("float4 v = float4(float3(1), 2, 3); y[0] = v.x;");
    does_not_compile("constant float c = 1; c = 2; y[0] = c;");
    Ok(())
}

/// Runs one test of this program again, with `compiler` as the only compiler. `required` says whether msl-sim is
/// required.
#[cfg(target_os = "linux")]
fn rerun(test: &str, compiler: &str, required: bool) -> (bool, String) {
    let mut command = std::process::Command::new(std::env::current_exe().expect("a test has a program"));
    command.args([test, "--exact", "--nocapture"]).env_remove("CI").env("MSL_SIM_CXX", compiler);
    command.env("ZMLX_REQUIRE_MSL_SIM", if required { "1" } else { "0" });
    let output = command.output().expect("the program runs again");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_compiler_tests_pass_with_a_notice_unless_one_is_required() {
    let (passed, text) = rerun("conformance::selections", "no-such-compiler", false);
    assert!(passed && text.contains("NOTICE: no C++ compiler"), "{text}");
    let (passed, text) = rerun("conformance::selections", "no-such-compiler", true);
    assert!(!passed && text.contains("NoCompiler"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn without_clang_the_address_space_check_is_skipped_with_a_notice_unless_it_is_required() {
    let test = "address_spaces::correct_code_passes";
    let (passed, text) = rerun(test, "g++", false);
    if text.contains("no C++ compiler") {
        eprintln!("NOTICE: no usable g++ here; this test proves nothing");
        return;
    }
    assert!(passed && text.contains("NOTICE: the address-space check needs clang++"), "{text}");
    let (passed, text) = rerun(test, "g++", true);
    assert!(!passed && text.contains("NoClang"), "{text}");
}
