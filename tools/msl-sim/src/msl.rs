//! Metal source, the library built from it, and a dispatch of one of its kernels.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytemuck::{AnyBitPattern, NoUninit};

use crate::Error;
use crate::compiler::{self, Mode};
use crate::runner::{self, Access, Buffer, Memory, Plan};
use crate::shim::{self, Shim};
use crate::translate::{self, Binding, Kernel, Translation};

/// The order in which threads, simdgroups and threadgroups run. A correct kernel gives the same bits in every order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// In the order of their indices.
    #[default]
    Forward,
    /// In the reverse order of their indices.
    Reverse,
    /// In a random order from a seed.
    Random(u64),
}

/// The libraries that this process has built. Even a search in the cache would have to run the preprocessor.
static BUILT: LazyLock<Mutex<HashMap<(Msl, Mode), Library>>> = LazyLock::new(Mutex::default);

/// Metal source with the options of its compilation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Msl {
    pub(crate) name: String,
    pub(crate) source: String,
    include_dirs: Vec<PathBuf>,
    defines: Vec<(String, String)>,
    contract: bool,
}

impl Msl {
    /// Creates a source from text. `name` appears as its file in messages.
    pub fn source(name: impl Into<String>, source: impl Into<String>) -> Self {
        let (name, source) = (name.into(), source.into());
        Self { name, source, include_dirs: Vec::new(), defines: Vec::new(), contract: false }
    }

    /// Reads a source file. Includes are searched in its folder.
    pub fn file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let source = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let msl = Self::source(path.display().to_string(), source);
        Ok(match path.parent() {
            Some(folder) => msl.include_dir(folder),
            None => msl,
        })
    }

    /// Adds a folder in which `#include` searches.
    pub fn include_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.include_dirs.push(folder.into());
        self
    }

    /// Defines a macro.
    pub fn define(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.defines.push((name.into(), value.into()));
        self
    }

    /// Lets the compiler contract a product and a sum into one rounding wherever it can, as Metal's compiler may do.
    pub fn contract_fma(mut self) -> Self {
        self.contract = true;
        self
    }

    /// Translates and compiles the source, or takes the compiled library from the cache.
    pub fn build(&self, mode: Mode) -> Result<Library, Error> {
        let request = (self.clone(), mode);
        let known = |built: &HashMap<(Self, Mode), Library>| built.get(&request).cloned();
        if let Some(library) = known(&BUILT.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(library);
        }
        let compiler = compiler::compiler()?;
        let shim = shim::unpack()?;
        let Translation { cpp, kernels } = self.translate(compiler, &shim)?;
        let program = shim.build(compiler, mode, self.contract, &self.name, &cpp)?;
        let library = Library { program, kernels: kernels.into(), mode };
        BUILT.lock().unwrap_or_else(PoisonError::into_inner).insert(request, library.clone());
        Ok(library)
    }

    pub(crate) fn translate(&self, compiler: &compiler::Compiler, shim: &Shim) -> Result<Translation, Error> {
        let preprocessed =
            shim::preprocess(compiler, shim, &self.name, &self.source, &self.include_dirs, &self.defines)?;
        translate::translate(&preprocessed).map_err(|failure| Error::Translate {
            name: self.name.clone(),
            line: failure.line,
            message: failure.message,
        })
    }
}

/// A compiled source.
#[derive(Clone, Debug)]
pub struct Library {
    program: PathBuf,
    kernels: Arc<[Kernel]>,
    mode: Mode,
}

impl Library {
    /// The host names of the kernels.
    pub fn kernel_names(&self) -> Vec<&str> {
        self.kernels.iter().map(|k| k.name.as_str()).collect()
    }

    /// Starts a call of the kernel `name`. Arguments are then bound to it.
    pub fn kernel(&self, name: &str) -> Result<Call<'_>, Error> {
        let Some(kernel) = self.kernels.iter().find(|k| k.name == name) else {
            let known = self.kernels.iter().map(|k| k.name.clone()).collect();
            return Err(Error::UnknownKernel { name: name.to_owned(), known });
        };
        Ok(Call {
            library: self,
            kernel,
            buffers: Vec::new(),
            threadgroup: Vec::new(),
            constants: Vec::new(),
            order: Order::default(),
            cpu_seconds: DEFAULT_CPU_SECONDS,
        })
    }
}

/// The processor time in seconds after which a kernel counts as endless.
const DEFAULT_CPU_SECONDS: u64 = 60;
/// The largest number of threads in a threadgroup of Apple's GPUs.
const MAX_THREADS: u64 = 1024;

/// A dispatch of a kernel that is being prepared.
#[derive(Debug)]
pub struct Call<'a> {
    library: &'a Library,
    kernel: &'a Kernel,
    buffers: Vec<Buffer<'a>>,
    threadgroup: Vec<(u32, usize)>,
    constants: Vec<(u32, Vec<u8>)>,
    order: Order,
    cpu_seconds: u64,
}

impl<'a> Call<'a> {
    /// Binds a buffer that the kernel only reads.
    pub fn buffer<T: NoUninit>(self, index: u32, data: &'a [T]) -> Self {
        self.bind(index, Memory::Borrowed(bytemuck::cast_slice(data)), Access::Read)
    }

    /// Binds a buffer that the kernel reads and writes.
    pub fn buffer_mut<T: NoUninit + AnyBitPattern>(self, index: u32, data: &'a mut [T]) -> Self {
        self.bind(index, Memory::Mutable(bytemuck::cast_slice_mut(data)), Access::ReadWrite)
    }

    /// Binds a value, like Metal's `setBytes`.
    pub fn value<T: NoUninit>(self, index: u32, value: &T) -> Self {
        self.bind(index, Memory::Owned(bytemuck::bytes_of(value).to_vec()), Access::Read)
    }

    pub(crate) fn bind(mut self, index: u32, memory: Memory<'a>, access: Access) -> Self {
        self.buffers.push(Buffer { index, memory, access, skew: 0 });
        self
    }

    /// Lets the buffer that was bound last begin `n_bytes` after an aligned address.
    pub(crate) fn skew(mut self, n_bytes: usize) -> Self {
        if let Some(buffer) = self.buffers.last_mut() {
            buffer.skew = n_bytes;
        }
        self
    }

    /// Allocates the memory of a threadgroup pointer parameter.
    pub fn threadgroup(mut self, index: u32, n_bytes: usize) -> Self {
        self.threadgroup.push((index, n_bytes));
        self
    }

    /// Sets a function constant.
    pub fn constant<T: NoUninit>(mut self, id: u32, value: &T) -> Self {
        self.constants.push((id, bytemuck::bytes_of(value).to_vec()));
        self
    }

    /// Sets the order in which threads run.
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Sets the processor time after which the kernel counts as endless. The default is a minute.
    pub fn time_limit(mut self, seconds: u64) -> Self {
        self.cpu_seconds = seconds.max(1);
        self
    }

    /// Runs `threads` threads in groups of `group`. Groups at the edge have fewer threads if the size does not divide
    /// the grid.
    pub fn dispatch_threads(self, threads: [u32; 3], group: [u32; 3]) -> Result<(), Error> {
        self.run(threads, group).map(drop)
    }

    /// Runs `groups` threadgroups of `group` threads.
    pub fn dispatch_groups(self, groups: [u32; 3], group: [u32; 3]) -> Result<(), Error> {
        let threads = std::array::from_fn(|i| groups[i].saturating_mul(group[i]));
        self.run(threads, group).map(drop)
    }

    /// Runs the kernel and returns the contents of the owned buffers in the order of their binding.
    pub(crate) fn run(mut self, grid: [u32; 3], group: [u32; 3]) -> Result<Vec<Vec<u8>>, Error> {
        self.check(grid, group)?;
        let plan = Plan {
            kernel: self.kernel.name.clone(),
            detect: self.library.mode == Mode::Detect,
            order: self.order,
            cpu_seconds: self.cpu_seconds,
            grid,
            group,
            threadgroup: self.threadgroup,
            constants: self.constants,
        };
        runner::run(&self.library.program, &plan, &mut self.buffers)?;
        let owned = self.buffers.into_iter().filter(|b| b.access != Access::Read);
        Ok(owned
            .filter_map(|b| match b.memory {
                Memory::Owned(bytes) => Some(bytes),
                _ => None,
            })
            .collect())
    }

    /// Refuses what Metal's validation would refuse, before anything runs.
    fn check(&self, grid: [u32; 3], group: [u32; 3]) -> Result<(), Error> {
        let refuse = |message: String| Err(Error::Call { kernel: self.kernel.name.clone(), message });
        let product = |sizes: [u32; 3]| sizes.iter().map(|&s| u64::from(s)).product::<u64>();
        if product(grid) == 0 || product(group) == 0 {
            return refuse(format!("an empty grid {grid:?} or threadgroup {group:?}"));
        }
        if product(group) > MAX_THREADS {
            return refuse(format!("threadgroup {group:?} has more than {MAX_THREADS} threads"));
        }
        for binding in &self.kernel.bindings {
            match binding {
                Binding::Buffer(n) if !self.buffers.iter().any(|b| b.index == *n) => {
                    return refuse(format!("buffer {n} is not bound"));
                }
                Binding::Threadgroup(n) if !self.threadgroup.iter().any(|(index, _)| index == n) => {
                    return refuse(format!("threadgroup memory {n} has no size"));
                }
                _ => {}
            }
        }
        for (i, buffer) in self.buffers.iter().enumerate() {
            if self.buffers[..i].iter().any(|other| other.index == buffer.index) {
                return refuse(format!("buffer {} is bound twice", buffer.index));
            }
        }
        Ok(())
    }
}
