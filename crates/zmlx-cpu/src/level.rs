//! Instruction-set levels, which are detected once, and how activations are rounded. Both are chosen when the backend
//! is made.

#[cfg(target_arch = "x86_64")]
use super::simd::Simd;
use zmlx_core::{Error, Result};

/// The instructions that the CPU kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Portable code that the compiler may vectorise with the target's baseline.
    Scalar,
    /// 128-bit Arm vectors.
    Neon,
    /// 256-bit x86 vectors with FMA and half-precision conversion.
    Avx2,
    /// 512-bit x86 vectors (F, BW, DQ, VL).
    Avx512,
    /// As [`Level::Avx512`], with VNNI and VBMI (Ice Lake, Zen 4 and later).
    Avx512Vnni,
    /// The instructions of [`Level::Avx512Vnni`], for processors that can add vectors while they multiply others (Zen 4
    /// and later). For prompts, products take half the multiplications and twice the additions.
    Zen4,
    /// As [`Level::Avx512Vnni`], with AMX: it multiplies tiles of bytes.
    Amx,
}

/// How activations are rounded before they are multiplied by a quantised matrix, with a scale for each group of
/// weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Integers of 16 bits, off by at most about 2⁻¹⁶ of the largest activation in the group.
    #[default]
    Int16,
    /// Integers of 8 bits, off by at most 2⁻⁸ of the largest activation in the group. They take half the instructions.
    /// Weights of 8 bits still meet activations of 16 bits.
    Int8,
}

impl Activations {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        }
    }
}

impl Level {
    /// All levels, of every kind of machine, slowest first. On processors that have [`Level::Zen4`]'s instructions but
    /// are not AMD's, [`Level::Avx512Vnni`] is faster.
    pub const ALL: [Self; 7] =
        [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Zen4, Self::Amx];

    /// The name in `ZMLX_CPU_LEVEL`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Zen4 => "zen4",
            Self::Amx => "amx",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|l| l.name() == name)
    }

    /// True if this processor and operating system can run the level.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::Zen4 => {
                Self::Avx512.is_supported()
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512vbmi")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Vnni.is_supported() && super::simd::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Runs `f` with the level's instructions if the compiler inlines it: for loops that the compiler vectorises.
    ///
    /// The level must be supported.
    #[inline(always)]
    pub(super) fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        match self {
            // SAFETY: backends are made only with supported levels.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { super::simd::avx2::Avx2::assume() }.vectorize(f),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Zen4 | Self::Amx => {
                // SAFETY: as above.
                unsafe { super::simd::avx512::Avx512::<false>::assume() }.vectorize(f)
            }
            _ => f(),
        }
    }

    /// The fastest level on this machine.
    pub fn fastest() -> Self {
        let fits = |l: &Self| l.is_supported() && (*l != Self::Zen4 || is_amd());
        Self::ALL.into_iter().rfind(fits).unwrap_or(Self::Scalar)
    }

    /// The levels that this machine can run, in the order of [`Level::ALL`].
    pub fn supported() -> Vec<Self> {
        Self::ALL.into_iter().filter(|l| l.is_supported()).collect()
    }

    /// The level to use: the one that the environment variable `ZMLX_CPU_LEVEL` names, or else the fastest one that is
    /// supported.
    ///
    /// # Errors
    /// If the variable names no level, or one that this machine cannot run.
    pub fn from_env() -> Result<Self> {
        let Some(name) = std::env::var_os("ZMLX_CPU_LEVEL") else { return Ok(Self::fastest()) };
        let names = || Self::supported().iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
        name.to_str().and_then(Self::from_name).filter(|l| l.is_supported()).ok_or_else(|| {
            Error::Unavailable {
                backend: "cpu",
                why: format!(
                    "ZMLX_CPU_LEVEL={} is not one of this machine's levels: {}",
                    name.display(),
                    names()
                ),
            }
        })
    }
}

/// Whether AMD made the processor.
fn is_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
