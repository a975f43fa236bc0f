//! The C++ side: shim headers, the runtime, the precompiled header and the object file of the runtime. All are unpacked
//! into the cache.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::cache;
use crate::compiler::{Compiler, Mode};
use crate::{Error, swizzle};

macro_rules! embedded {
    ($($path:literal),* $(,)?) => { [$(($path, include_str!(concat!("../", $path)))),*] };
}

const FILES: [(&str, &str); 18] = embedded![
    "shim/metal_stdlib",
    "shim/msl/scalar.h",
    "shim/msl/traits.h",
    "shim/msl/vector.h",
    "shim/msl/math.h",
    "shim/msl/simd.h",
    "shim/msl/atomic.h",
    "shim/msl/matrix.h",
    "shim/msl/bind.h",
    "runtime/abi.h",
    "runtime/fibre.h",
    "runtime/state.h",
    "runtime/fault.h",
    "runtime/simd.h",
    "runtime/group.h",
    "runtime/detector.h",
    "runtime/main.cpp",
    "check/metal_stdlib",
];

/// Headers that kernels include. All of them stand for `metal_stdlib`, which the translator includes itself.
const METAL_HEADERS: [&str; 16] = [
    "metal_stdlib",
    "metal_array",
    "metal_atomic",
    "metal_common",
    "metal_compute",
    "metal_geometric",
    "metal_integer",
    "metal_limits",
    "metal_logging",
    "metal_math",
    "metal_matrix",
    "metal_numeric",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_type_traits",
];

/// Headers of MLX with this name are replaced, because they overload on the address space of `this`, which C++ cannot
/// express. The preamble of [`crate::MlxBody`] takes their place.
const MLX_UTILS: &str = "empty/mlx/backend/metal/kernels/utils.h";
const MLX_EMPTY: [&str; 4] = [
    "mlx/backend/metal/kernels/bf16.h",
    "mlx/backend/metal/kernels/complex.h",
    "mlx/backend/metal/kernels/defines.h",
    "mlx/backend/metal/kernels/steel/utils/type_traits.h",
];

/// A lock for this process: two tests must not precompile the same header at the same time.
static BUILDING: Mutex<()> = Mutex::new(());

/// The unpacked folder.
#[derive(Debug)]
pub(crate) struct Shim {
    root: PathBuf,
    key: String,
}

/// Unpacks the shim. Each version of its content is unpacked once.
pub(crate) fn unpack() -> Result<Shim, Error> {
    let key = cache::key(FILES.iter().flat_map(|(path, text)| [*path, *text]).chain([
        include_str!("swizzle.rs"),
        include_str!("shim.rs"),
        include_str!("mlx/preamble.metal"),
    ]));
    let root = cache::file(cache::folder().join(format!("shim-{key}")), |root| {
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            let parent = path.parent().unwrap_or(root);
            std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
            std::fs::write(&path, text).map_err(Error::io(&path))
        };
        for (path, text) in FILES {
            write(path, text)?;
        }
        write("shim/msl/swizzle.h", &swizzle::header())?;
        write(MLX_UTILS, &format!("#pragma once\n{}", include_str!("mlx/preamble.metal")))?;
        for name in METAL_HEADERS.iter().chain(&MLX_EMPTY) {
            write(&format!("empty/{name}"), "")?;
        }
        Ok(())
    })?;
    Ok(Shim { root, key })
}

impl Shim {
    /// The folder with empty replacements of Metal's headers, for the preprocessor.
    pub(crate) fn empty_headers(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// The folder with declarations that use real address spaces.
    pub(crate) fn checking_headers(&self) -> PathBuf {
        self.root.join("check")
    }

    fn includes(&self) -> [PathBuf; 2] {
        [self.root.join("shim"), self.root.join("runtime")]
    }

    /// Compiles `source` and links it with the runtime.
    pub(crate) fn build(
        &self,
        compiler: &Compiler,
        mode: Mode,
        contract: bool,
        name: &str,
        source: &str,
    ) -> Result<PathBuf, Error> {
        let flags = compiler.flags(mode, contract);
        let key = cache::key(flags.iter().copied().chain([compiler.version.as_str(), &self.key, source]));
        let program = cache::folder().join(format!("kernel-{key}"));
        if program.exists() {
            return Ok(program);
        }
        let runtime = self.runtime(compiler)?;
        let header = self.precompiled(compiler, mode, contract)?;
        cache::file(program, |program| {
            let object = program.with_extension("o");
            let mut command = Command::new(&compiler.program);
            command.args(&flags).args(compiler.use_precompiled(&header));
            for folder in self.includes() {
                command.arg("-I").arg(folder);
            }
            // The paths of Metal files are recorded relative to this folder, and `locate` removes it again.
            command.current_dir(cache::folder());
            run(command.args(["-c", "-x", "c++", "-", "-o"]).arg(&object), name, source)?;
            let mut link = Command::new(&compiler.program);
            let linked = run(
                link.args(["-no-pie", "-o"]).arg(program).arg(&object).arg(&runtime).arg("-lm"),
                name,
                "",
            );
            let _ = std::fs::remove_file(&object);
            linked
        })
    }

    fn runtime(&self, compiler: &Compiler) -> Result<PathBuf, Error> {
        let key = cache::key([compiler.version.as_str(), &self.key]);
        let _guard = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        cache::file(cache::folder().join(format!("runtime-{key}.o")), |object| {
            let mut command = Command::new(&compiler.program);
            command.args([
                "-std=c++17",
                "-O2",
                "-g1",
                "-fno-pie",
                "-fno-exceptions",
                "-fno-rtti",
                "-Wno-format",
                "-c",
                "-o",
            ]);
            run(command.arg(object).arg(self.root.join("runtime/main.cpp")), "the runtime", "")
        })
    }

    fn precompiled(&self, compiler: &Compiler, mode: Mode, contract: bool) -> Result<PathBuf, Error> {
        let flags = compiler.flags(mode, contract);
        let key = cache::key(flags.iter().copied().chain([compiler.version.as_str(), &self.key]));
        let _guard = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        cache::file(cache::folder().join(format!("header-{key}")).join("metal_stdlib.gch"), |header| {
            let mut command = Command::new(&compiler.program);
            command.args(&flags);
            for folder in self.includes() {
                command.arg("-I").arg(folder);
            }
            command.args(["-x", "c++-header", "-o"]).arg(header).arg(self.root.join("shim/metal_stdlib"));
            run(&mut command, "the shim", "")
        })
    }
}

/// The source of the kernel after the preprocessor.
pub(crate) fn preprocess(
    compiler: &Compiler,
    shim: &Shim,
    name: &str,
    source: &str,
    includes: &[PathBuf],
    defines: &[(String, String)],
) -> Result<String, Error> {
    let mut command = Command::new(&compiler.program);
    command.args(compiler.preprocessor_flags());
    command.arg("-nostdinc++").arg("-I").arg(shim.empty_headers());
    for folder in includes {
        command.arg("-I").arg(folder);
    }
    for (macro_name, value) in defines {
        command.arg(format!("-D{macro_name}={value}"));
    }
    output(command.args(["-x", "c++", "-"]), name, &format!("#line 1 \"{name}\"\n{source}"))
}

fn run(command: &mut Command, name: &str, input: &str) -> Result<(), Error> {
    output(command, name, input).map(drop)
}

/// The standard output of a compiler. If it fails, its messages are the error.
pub(crate) fn output(command: &mut Command, name: &str, input: &str) -> Result<String, Error> {
    let program = PathBuf::from(command.get_program());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io(&program))?;
    let stdin = child.stdin.take();
    let result = std::thread::scope(|scope| {
        // Written by another thread, because both sides would block if the compiler prints before it has read
        // everything.
        scope.spawn(|| stdin.map(|mut pipe| std::io::Write::write_all(&mut pipe, input.as_bytes())));
        child.wait_with_output()
    });
    let result = result.map_err(Error::io(&program))?;
    if result.status.success() {
        return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
    }
    let diagnostics = String::from_utf8_lossy(&result.stderr).into_owned();
    Err(Error::Compile { name: name.to_owned(), diagnostics })
}
