//! Errors of translating, compiling and running a kernel.

use std::path::PathBuf;

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Two threads access the same byte, at least one of them writes, and there is no barrier between the accesses.
    Race,
    /// An access outside of the bound buffers and the threadgroup variables.
    OutOfBounds,
    /// A write to a buffer that was bound only for reading.
    ReadOnly,
    /// A read of threadgroup memory or of an output before it was written.
    Uninitialised,
    /// The kernel did not write all of an output.
    Unwritten,
    /// Some threads of a threadgroup do not reach the same `threadgroup_barrier` as the others.
    DivergentBarrier,
    /// Only some of the live lanes of a simdgroup reach a simd operation.
    DivergentSimd,
    /// A shuffle or broadcast reads a lane that does not take part.
    BadLane,
    /// More threadgroup memory than Apple's GPUs have.
    ThreadgroupMemory,
    /// An array index out of range, a misaligned pointer or an integer division by zero.
    Undefined,
    /// The variables of a thread need more memory than its stack has.
    StackOverflow,
    /// The kernel was still running when its limit of processor time was reached.
    Timeout,
    /// The processor refused an access, such as one to unmapped memory.
    Crash,
}

impl FaultKind {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "race" => Self::Race,
            "out-of-bounds" => Self::OutOfBounds,
            "read-only" => Self::ReadOnly,
            "uninitialised" => Self::Uninitialised,
            "unwritten" => Self::Unwritten,
            "divergent-barrier" => Self::DivergentBarrier,
            "divergent-simd" => Self::DivergentSimd,
            "bad-lane" => Self::BadLane,
            "threadgroup-memory" => Self::ThreadgroupMemory,
            "undefined" => Self::Undefined,
            "stack-overflow" => Self::StackOverflow,
            "timeout" => Self::Timeout,
            "crash" => Self::Crash,
            _ => return None,
        })
    }
}

/// A fault of a kernel while it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of the fault.
    pub kind: FaultKind,
    /// A description of what happened.
    pub message: String,
    /// The source file, if it is known.
    pub file: Option<String>,
    /// The line in that file.
    pub line: Option<u32>,
    /// The threadgroup's position in the grid.
    pub group: [u32; 3],
    /// The thread's index in its threadgroup; `None` if the fault is not that of a single thread.
    pub thread: Option<u32>,
    /// How often the fault occurred at this place.
    pub count: u64,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
            (None, Some(line)) => write!(f, "line {line}: ")?,
            _ => {}
        }
        write!(f, "{:?}: {}", self.kind, self.message)?;
        if let Some(thread) = self.thread {
            let [x, y, z] = self.group;
            write!(f, " (threadgroup {x},{y},{z} thread {thread})")?;
        }
        if self.count > 1 {
            write!(f, ", {} times", self.count)?;
        }
        Ok(())
    }
}

/// Why a kernel could not be built or did not run without faults.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no C++ compiler that can build kernels.
    #[error("no C++ compiler for msl-sim: install clang-19 or g++ (12 or newer), or name one in MSL_SIM_CXX")]
    NoCompiler,
    /// The address-space check was required, but it needs clang.
    #[error("the address-space check needs clang++, and only {found} is here")]
    NoClang {
        /// The compiler that was found.
        found: String,
    },
    /// The translator does not support the source.
    #[error("{name}:{line}: {message}")]
    Translate {
        /// The name of the source.
        name: String,
        /// The line in the source.
        line: u32,
        /// What is wrong there.
        message: String,
    },
    /// The compiler rejected the source.
    #[error("{name} does not compile:\n{diagnostics}")]
    Compile {
        /// The name of the source.
        name: String,
        /// The compiler's messages.
        diagnostics: String,
    },
    /// The source mixes pointers to different address spaces.
    #[error("{name} mixes address spaces:\n{diagnostics}")]
    AddressSpace {
        /// The name of the source.
        name: String,
        /// The compiler's messages.
        diagnostics: String,
    },
    /// The library has no kernel with this name.
    #[error("no kernel {name}; there are {known:?}")]
    UnknownKernel {
        /// The requested name.
        name: String,
        /// The names of the kernels in the library.
        known: Vec<String>,
    },
    /// The arguments of a call do not match the kernel.
    #[error("kernel {kernel}: {message}")]
    Call {
        /// The name of the kernel.
        kernel: String,
        /// What does not match.
        message: String,
    },
    /// The kernel ran at least partly, and had faults.
    #[error("kernel {kernel}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults {
        /// The name of the kernel.
        kernel: String,
        /// The faults. At most 64 different ones are listed.
        faults: Vec<Fault>,
    },
    /// The process that runs the kernel ended without a report.
    #[error("kernel {kernel}: the runner ended without a report: {message}")]
    Runner {
        /// The name of the kernel.
        kernel: String,
        /// What is known about the end of the process.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl Error {
    /// The faults if the kernel ran, otherwise an empty list.
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Faults { faults, .. } => faults,
            _ => &[],
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
