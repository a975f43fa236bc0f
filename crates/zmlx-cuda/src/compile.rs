//! Kernels from their texts: NVRTC, and the folder that keeps what it made.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use libloading::Library;
use sha2::{Digest, Sha256};

use crate::hex::to_hex;
use crate::library;

const HEADERS: [(&str, &str); 10] = [
    ("activations.cuh", include_str!("kernels/activations.cuh")),
    ("device.cuh", include_str!("kernels/device.cuh")),
    ("element.cuh", include_str!("kernels/element.cuh")),
    ("format.cuh", include_str!("kernels/format.cuh")),
    ("mailbox.cuh", include_str!("kernels/mailbox.cuh")),
    ("matvec.cuh", include_str!("kernels/matvec.cuh")),
    ("position.cuh", include_str!("kernels/position.cuh")),
    ("recurrent.cuh", include_str!("kernels/recurrent.cuh")),
    ("route.cuh", include_str!("kernels/route.cuh")),
    ("tensor_core.cuh", include_str!("kernels/tensor_core.cuh")),
];

const SOURCES: [(&str, &str); 19] = [
    ("all_sum", include_str!("kernels/all_sum.cu")),
    ("attention", include_str!("kernels/attention.cu")),
    ("causal_conv", include_str!("kernels/causal_conv.cu")),
    ("dense", include_str!("kernels/dense.cu")),
    ("embed", include_str!("kernels/embed.cu")),
    ("embed_dense", include_str!("kernels/embed_dense.cu")),
    ("flash", include_str!("kernels/flash.cu")),
    ("flash_one", include_str!("kernels/flash_one.cu")),
    ("gather_columns", include_str!("kernels/gather_columns.cu")),
    ("gated_delta", include_str!("kernels/gated_delta.cu")),
    ("group", include_str!("kernels/group.cu")),
    ("latent", include_str!("kernels/latent.cu")),
    ("matmul", include_str!("kernels/matmul.cu")),
    ("matvec", include_str!("kernels/matvec.cu")),
    ("rope", include_str!("kernels/rope.cu")),
    ("route", include_str!("kernels/route.cu")),
    ("rows", include_str!("kernels/rows.cu")),
    ("sample", include_str!("kernels/sample.cu")),
    ("to_f16", include_str!("kernels/to_f16.cu")),
];

/// Most macros that a unit sets.
pub(crate) const MAX_DEFINES: usize = 19;

/// One compilation: a source, and the macros that are set from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    pub(crate) source: &'static str,
    pub(crate) defines: [(&'static str, u32); MAX_DEFINES],
}

impl Unit {
    /// A source with these macros.
    pub(crate) fn new(source: &'static str, defines: &[(&'static str, u32)]) -> Self {
        let mut all = [("", 0); MAX_DEFINES];
        all[..defines.len()].copy_from_slice(defines);
        Self { source, defines: all }
    }

    fn text(&self) -> &'static str {
        SOURCES.iter().find(|(name, _)| *name == self.source).map_or("", |(_, text)| text)
    }

    fn options(&self, arch: u32) -> Vec<String> {
        let mut options =
            vec![format!("--gpu-architecture=sm_{arch}"), "--std=c++17".into(), "-default-device".into()];
        options
            .extend(self.defines.iter().filter(|d| !d.0.is_empty()).map(|(name, v)| format!("-D{name}={v}")));
        options
    }

    /// The name of the file that keeps the machine code.
    fn file(&self, arch: u32, driver: i32) -> String {
        let mut hash = Sha256::new();
        for (name, text) in HEADERS {
            hash.update(name);
            hash.update(text);
        }
        hash.update(self.text());
        for option in self.options(arch) {
            hash.update(option);
            hash.update([0]);
        }
        let hash = to_hex(&hash.finalize()[..12]);
        format!("{}-sm{arch}-{driver}-{hash}.cubin", self.source)
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.source)?;
        self.defines.iter().filter(|d| !d.0.is_empty()).try_for_each(|(name, v)| write!(f, " {name}={v}"))
    }
}

/// Units that together have every source and every branch of it, of each format one: a part of what ops may ask for.
pub fn units() -> Vec<Unit> {
    let mut all = vec![Unit::new("rows", &[]), Unit::new("rope", &[]), Unit::new("group", &[])];
    all.extend(["all_sum", "causal_conv", "gather_columns"].map(|source| Unit::new(source, &[])));
    all.extend([1, 4, 8].map(|columns| Unit::new("gated_delta", &[("PER_LANE", columns)])));
    all.extend([4, 32].map(|lanes| Unit::new("route", &[("PER_LANE", lanes)])));
    all.extend(
        [(1, 0), (2, 1), (4, 1)].map(|(v, f)| Unit::new("attention", &[("VECTORS", v), ("FUSED", f)])),
    );
    all.extend((1..=8).map(|steps| Unit::new("flash", &[("STEPS", steps)])));
    all.extend(
        [(2, 0), (4, 1), (8, 0), (8, 1)]
            .map(|(s, c)| Unit::new("flash_one", &[("STEPS", s), ("CLUSTER", c)])),
    );
    all.extend([(4, 1, 32, 32), (36, 8, 32, 32), (36, 8, 64, 16)].map(|(steps, tiles, rows, tile)| {
        Unit::new("latent", &[("STEPS", steps), ("TILES", tiles), ("N_ROWS", rows), ("TILE", tile)])
    }));
    all.extend([1, 19, 32].map(|values| Unit::new("sample", &[("PER_THREAD", values)])));
    for element in 0..4 {
        all.push(Unit::new("embed_dense", &[("ELEMENT", element)]));
        let vector = [4, 8, 8, 16][element as usize];
        let rule = [0, 1, 2, 0][element as usize];
        all.push(Unit::new(
            "dense",
            &[
                ("ELEMENT", element),
                ("V", vector),
                ("ROWS", 1),
                ("STREAMS", 1 + element % 2),
                ("THREADS", 256),
                ("ROUTE", rule),
                ("CLUSTER", 0),
                ("PER_LANE", 4),
            ],
        ));
    }
    // Bits, code, scales; then rows, depth, loop, streams, steps, norm.
    let formats = [(2, 0, 1), (3, 0, 0), (4, 0, 0), (5, 0, 1), (6, 0, 0), (8, 0, 0), (4, 1, 2), (4, 1, 3)];
    let shapes = [[4, 2, 0, 1, 1, 1], [2, 2, 0, 2, 1, 1], [2, 6, 1, 1, 3, 0], [1, 1, 1, 1, 1, 0]];
    for (i, (bits, code, scales)) in formats.into_iter().enumerate() {
        let format = [("BITS", bits), ("CODE", code), ("SCALES", scales)];
        all.push(Unit::new("embed", &format));
        if matches!(bits, 4 | 8) && scales < 3 {
            let group = ("GROUP", [32, 64, 128][i % 3]);
            let streams = ("STREAMS", 1 + i as u32 % 2);
            let long = 256 / bits;
            for (jobs, tiles, shared, lane) in [
                (8, 2, 0, long),
                (8, 1, 1, long),
                (16, 2, 1, long),
                (16, 1, 1, 16),
                (32, 2, 0, long / 2),
                (64, 2, 0, long / 2),
            ] {
                let streams = if tiles == 1 { ("STREAMS", 1) } else { streams };
                let lane = ("LANE", lane);
                let to_f16 = Unit::new("to_f16", &[format[0], lane]);
                if !all.contains(&to_f16) {
                    all.push(to_f16);
                }
                let shape = [("JOBS", jobs), ("TILES", tiles), ("SHARED_ROWS", shared)];
                let format = [format[0], format[1], format[2], group, streams, lane];
                let all_of: Vec<_> = format.into_iter().chain(shape).collect();
                all.push(Unit::new("matmul", &all_of));
            }
        }
        let names = ["ROWS", "DEPTH", "LOOP", "STREAMS", "STEPS", "NORM"];
        let shape = names.into_iter().zip(shapes[i % shapes.len()]);
        let route = u32::from(bits == 8);
        let route = [
            ("REPEATS", i as u32 % 2),
            ("STAGED", i as u32 % 3),
            ("SHARED", u32::from(i == 1 || i == 2)),
            ("THREADS", 256 << route),
            ("ROUTE", route),
            ("CLUSTER", 0),
            ("PER_LANE", 4),
            ("QUERIES", u32::from(i == 0 || i == 4)),
            ("MERGE", u32::from(i == 1 || i == 3)),
            ("RANKS", u32::from(i == 6)),
        ];
        all.push(Unit::new("matvec", &format.into_iter().chain(shape).chain(route).collect::<Vec<_>>()));
    }
    all
}

/// Why there is no machine code for a unit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// NVRTC is not installed.
    #[error(
        "NVRTC, CUDA's compiler library, was not found; install CUDA's toolkit or the Python package nvidia-cuda-nvrtc, \
         and put the folder of libnvrtc.so into LD_LIBRARY_PATH or its path into ZMLX_NVRTC"
    )]
    NoNvrtc,
    /// The library lacks a function.
    #[error("NVRTC at {path}: {why}")]
    Library {
        /// The library.
        path: String,
        /// What the loader says.
        why: String,
    },
    /// NVRTC refused the text.
    #[error("NVRTC does not compile {unit}: {log}")]
    Refused {
        /// The unit.
        unit: String,
        /// The compiler's messages.
        log: String,
    },
}

/// The machine code of a unit: from the folder, or compiled and put there.
pub(crate) fn machine_code(unit: &Unit, arch: u32, driver: i32) -> Result<Vec<u8>, CompileError> {
    let kept = cache_folder().map(|folder| folder.join(unit.file(arch, driver)));
    if let Some(code) = kept.as_ref().and_then(|path| std::fs::read(path).ok()) {
        return Ok(code);
    }
    let code = Nvrtc::find()?.compile(unit, arch)?;
    if let Some(path) = kept {
        // A folder that cannot be written to only costs time.
        if let Err(error) = keep(&path, &code) {
            tracing::debug!("{}: {error}", path.display());
        }
    }
    Ok(code)
}

/// Written under another name first, so that a process which reads at the same time sees all of it or nothing.
fn keep(path: &Path, code: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, code)?;
    std::fs::rename(&partial, path)
}

/// `ZMLX_CUDA_CACHE`, or `zmlx/cuda` in the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("ZMLX_CUDA_CACHE").or_else(|| {
        var("XDG_CACHE_HOME")
            .or_else(|| Some(var("HOME")?.join(".cache")))
            .map(|folder| folder.join("zmlx/cuda"))
    })
}

/// Compiles units for a GPU of compute capability `arch` (90 is 9.0) into a folder that can be used as a cache with a driver
/// of version `driver` (13000 is CUDA 13.0). Needs NVRTC, but no GPU.
///
/// # Errors
/// The first unit that NVRTC refuses.
pub fn compile_all(units: &[Unit], arch: u32, driver: i32, folder: &Path) -> Result<(), CompileError> {
    let nvrtc = Nvrtc::find()?;
    for unit in units {
        let path = folder.join(unit.file(arch, driver));
        if path.exists() {
            continue;
        }
        let code = nvrtc.compile(unit, arch)?;
        keep(&path, &code)
            .map_err(|e| CompileError::Library { path: path.display().to_string(), why: e.to_string() })?;
    }
    Ok(())
}

type Program = *mut c_void;
type OfProgram = unsafe extern "C" fn(*mut Program) -> c_int;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type BytesOf = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;

/// NVRTC's functions.
struct Nvrtc {
    create: Create,
    compile: Compile,
    code_size: SizeOf,
    code: BytesOf,
    log_size: SizeOf,
    log: BytesOf,
    destroy: OfProgram,
    /// Keeps the functions loaded.
    _library: Library,
}

impl Nvrtc {
    /// Loads the library named by `ZMLX_NVRTC`, or the newest in the usual places.
    fn find() -> Result<Self, CompileError> {
        let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
        let (path, library) = library::find("ZMLX_NVRTC", &names).ok_or(CompileError::NoNvrtc)?;
        Self::of(library).map_err(|e| CompileError::Library { path, why: e.to_string() })
    }

    fn of(library: Library) -> Result<Self, libloading::Error> {
        // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 11.2.
        unsafe {
            Ok(Self {
                create: *library.get(b"nvrtcCreateProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                code_size: *library.get(b"nvrtcGetCUBINSize\0")?,
                code: *library.get(b"nvrtcGetCUBIN\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                _library: library,
            })
        }
    }

    fn compile(&self, unit: &Unit, arch: u32) -> Result<Vec<u8>, CompileError> {
        let refused = |log: String| CompileError::Refused { unit: unit.to_string(), log };
        let text = |s: &str| CString::new(s).map_err(|e| refused(e.to_string()));
        let source = text(unit.text())?;
        let file = text(&format!("{}.cu", unit.source))?;
        let names = HEADERS.iter().map(|h| text(h.0)).collect::<Result<Vec<_>, _>>()?;
        let texts = HEADERS.iter().map(|h| text(h.1)).collect::<Result<Vec<_>, _>>()?;
        let options = unit.options(arch).iter().map(|o| text(o)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let mut program = null_mut();
        // SAFETY: all texts end with a zero and live until the program is destroyed; the counts are those of the lists.
        let code = unsafe {
            let (names, texts) = (pointers(&names), pointers(&texts));
            let n = HEADERS.len() as c_int;
            (self.create)(&mut program, source.as_ptr(), file.as_ptr(), n, texts.as_ptr(), names.as_ptr())
        };
        if code != 0 {
            return Err(refused(format!("error {code}")));
        }
        let options = pointers(&options);
        // SAFETY: the program was made above.
        let code = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        let result = if code == 0 {
            self.bytes(program, self.code_size, self.code).ok_or_else(|| refused("no machine code".into()))
        } else {
            let log = self.bytes(program, self.log_size, self.log).unwrap_or_default();
            let log = CStr::from_bytes_until_nul(&log).map(|s| s.to_string_lossy().into_owned());
            Err(refused(log.unwrap_or_else(|_| format!("error {code}"))))
        };
        // SAFETY: the program was made above and is used no more.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    fn bytes(&self, program: Program, size: SizeOf, bytes: BytesOf) -> Option<Vec<u8>> {
        let mut n = 0;
        // SAFETY: the program is alive; the buffer has the size that it asks for.
        unsafe {
            if size(program, &mut n) != 0 {
                return None;
            }
            let mut out = vec![0u8; n];
            (bytes(program, out.as_mut_ptr().cast()) == 0).then_some(out)
        }
    }
}
