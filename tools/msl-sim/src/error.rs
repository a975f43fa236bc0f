//! What can go wrong, in translating, compiling and running a kernel.

use std::path::PathBuf;

/// What a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Two threads access the same byte, one of them writing, with no barrier between.
    Race,
    /// An access outside the bound buffers and the threadgroup variables.
    OutOfBounds,
    /// A write to a buffer that was bound for reading.
    ReadOnly,
    /// A read of threadgroup memory, or of an output, that nothing has written.
    Uninitialised,
    /// An output that the kernel did not write throughout.
    Unwritten,
    /// Not every thread of a threadgroup reaches the same `threadgroup_barrier`.
    DivergentBarrier,
    /// Only some live lanes of a simdgroup reach a simd operation.
    DivergentSimd,
    /// A shuffle or broadcast reads a lane that takes no part.
    BadLane,
    /// More threadgroup memory than Apple's GPUs have.
    ThreadgroupMemory,
    /// An array index out of range, a misaligned pointer or an integer division by zero.
    Undefined,
    /// A thread's own variables outgrew its stack.
    StackOverflow,
    /// The kernel was still running when its processor time was used up.
    Timeout,
    /// The processor refused an access.
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

/// A fault that a kernel committed while it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What the fault is about.
    pub kind: FaultKind,
    /// What happened, in words.
    pub message: String,
    /// The file of the kernel's source, where it is known.
    pub file: Option<String>,
    /// The line in that file.
    pub line: Option<u32>,
    /// The threadgroup's position in the grid.
    pub group: [u32; 3],
    /// The thread's index in its threadgroup; `None` where no single thread is to blame.
    pub thread: Option<u32>,
    /// How often it happened at this place.
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

/// Why a kernel could not be built or did not run cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No C++ compiler that can build kernels.
    #[error("no C++ compiler for msl-sim: install clang-19 or g++ (12 or newer), or name one in MSL_SIM_CXX")]
    NoCompiler,
    /// The address-space check needs clang, and it was required.
    #[error("the address-space check needs clang++, and only {found} is here")]
    NoClang {
        /// The compiler that was found.
        found: String,
    },
    /// The source is no Metal that the translator knows.
    #[error("{name}:{line}: {message}")]
    Translate {
        /// The source's name.
        name: String,
        /// The line.
        line: u32,
        /// What is wrong there.
        message: String,
    },
    /// The compiler refused the source.
    #[error("{name} does not compile:\n{diagnostics}")]
    Compile {
        /// The source's name.
        name: String,
        /// The compiler's messages.
        diagnostics: String,
    },
    /// Pointers to different address spaces are mixed.
    #[error("{name} mixes address spaces:\n{diagnostics}")]
    AddressSpace {
        /// The source's name.
        name: String,
        /// The compiler's messages.
        diagnostics: String,
    },
    /// The library has no kernel of this name.
    #[error("no kernel {name}; there are {known:?}")]
    UnknownKernel {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// The call does not fit the kernel.
    #[error("kernel {kernel}: {message}")]
    Call {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        message: String,
    },
    /// The kernel ran, or began to, and committed faults.
    #[error("kernel {kernel}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults {
        /// The kernel.
        kernel: String,
        /// The faults, at most 64 different ones.
        faults: Vec<Fault>,
    },
    /// The process that runs the kernel did not report back.
    #[error("kernel {kernel}: the runner ended without a report: {message}")]
    Runner {
        /// The kernel.
        kernel: String,
        /// What is known about its end.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// The faults, if the kernel ran; an empty list otherwise.
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
