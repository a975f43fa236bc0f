//! Finds a C++ compiler and selects its flags.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::Error;

/// How a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// For results: the code is optimised, and only barriers are checked.
    Plain,
    /// For faults: every access is checked. This is about thirty times slower.
    Detect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Clang,
    Gcc,
}

/// A compiler that can build kernels.
#[derive(Debug)]
pub(crate) struct Compiler {
    pub(crate) program: String,
    /// The first line of `--version`, which is a part of every cache key.
    pub(crate) version: String,
    family: Family,
}

/// The environment variable that names a compiler.
const CHOICE: &str = "MSL_SIM_CXX";
/// Newest first. clang comes before g++, because only clang can check address spaces.
const CANDIDATES: [&str; 10] = [
    "clang++-21",
    "clang++-20",
    "clang++-19",
    "clang++-18",
    "clang++-17",
    "clang++-16",
    "clang++",
    "g++",
    "g++-13",
    "g++-12",
];

/// The compiler of this machine. The search runs only once.
pub(crate) fn compiler() -> Result<&'static Compiler, Error> {
    static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref().ok_or(Error::NoCompiler)
}

/// Whether the runtime supports this system: it switches stacks and maps files as Linux does on these processors.
const SUPPORTED: bool = cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")));

/// Whether a missing compiler is a failure: in CI, and where `ZMLX_REQUIRE_MSL_SIM` is set, if the system is supported.
pub(crate) fn required() -> bool {
    let set = |name| std::env::var(name).is_ok_and(|v| !v.is_empty() && v != "0" && v != "false");
    SUPPORTED && (set("CI") || set("ZMLX_REQUIRE_MSL_SIM"))
}

fn find() -> Option<Compiler> {
    if !SUPPORTED {
        return None;
    }
    match std::env::var(CHOICE) {
        Ok(program) => probe(&program),
        Err(_) => CANDIDATES.iter().find_map(|program| probe(program)),
    }
}

/// Accepts a compiler that supports `_Float16` and the needed flags.
fn probe(program: &str) -> Option<Compiler> {
    let version = Command::new(program).arg("--version").stderr(Stdio::null()).output().ok()?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next()?.to_owned();
    let family = if version.contains("clang") { Family::Clang } else { Family::Gcc };
    let compiler = Compiler { program: program.to_owned(), version, family };
    let source = "static_assert(__builtin_bit_cast(unsigned, 1.0f) == 0x3f800000u); \
                  constexpr _Float16 h = 1; int main() { return h == 1 ? 0 : 1; }";
    let mut command = Command::new(program);
    command.args(compiler.flags(Mode::Plain, false)).args(["-fsyntax-only", "-x", "c++", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    std::io::Write::write_all(&mut child.stdin.take()?, source.as_bytes()).ok()?;
    child.wait().ok()?.success().then_some(compiler)
}

impl Compiler {
    pub(crate) fn is_clang(&self) -> bool {
        self.family == Family::Clang
    }

    /// The flags for the translation unit of a kernel. The precompiled header must be compiled with the same flags.
    pub(crate) fn flags(&self, mode: Mode, contract: bool) -> Vec<&'static str> {
        let mut flags = vec![
            "-std=c++17",
            "-fno-exceptions",
            "-fno-rtti",
            "-fno-math-errno",
            // As in Metal. On aarch64 `char` would be unsigned.
            "-fsigned-char",
            // The guard page at the end of a thread's stack must not be skipped.
            "-fstack-clash-protection",
            // Kernels reinterpret buffers as other types.
            "-fno-strict-aliasing",
            // Addresses are fixed, so that a program counter maps to a place in the file.
            "-fno-pie",
            "-w",
        ];
        flags.push(if contract { "-ffp-contract=fast" } else { "-ffp-contract=off" });
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("f16c")
            && std::is_x86_feature_detected!("fma")
        {
            flags.push("-march=x86-64-v3");
        }
        // Every operation on `half` must round, as on the GPU.
        match self.family {
            Family::Clang => flags.extend(["-Xclang", "-ffloat16-excess-precision=none"]),
            Family::Gcc => flags.extend(["-fexcess-precision=16", "-fpermissive"]),
        }
        match (mode, self.family) {
            (Mode::Plain, _) => flags.push("-O2"),
            // Vectorised accesses are wider than those that the detector's callbacks handle. addr2line misreads DWARF
            // 5.
            (Mode::Detect, family) => {
                flags.extend(["-O1", "-g1", "-gdwarf-4", "-fsanitize=thread"]);
                flags.push("-fsanitize=bounds,alignment,integer-divide-by-zero");
                match family {
                    Family::Clang => {
                        flags.extend(["-fno-vectorize", "-fno-slp-vectorize", "-fsanitize-trap=undefined"]);
                        // Without this flag `y += x` would only count as a write.
                        flags.extend(["-mllvm", "-tsan-instrument-read-before-write"]);
                    }
                    Family::Gcc => {
                        flags.extend(["-fno-tree-vectorize", "-fsanitize-undefined-trap-on-error"])
                    }
                }
            }
        }
        flags
    }

    /// The macros that Metal's own compiler defines.
    pub(crate) fn preprocessor_flags(&self) -> [&'static str; 4] {
        ["-E", "-std=c++17", "-D__METAL__=1", "-D__METAL_VERSION__=320"]
    }

    /// The flags to use the header precompiled at `pch`. The path of the header itself lacks the last extension.
    pub(crate) fn use_precompiled(&self, pch: &Path) -> Vec<String> {
        match self.family {
            Family::Clang => vec!["-include-pch".into(), pch.display().to_string()],
            Family::Gcc => vec!["-include".into(), pch.with_extension("").display().to_string()],
        }
    }
}
