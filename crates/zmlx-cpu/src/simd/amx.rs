//! AMX: products of tiles of bytes, 16 by 64 by 16 with one instruction.
//!
//! The compiler has no stable intrinsics for it and never uses its registers, so their contents pass from one block of
//! assembly to the next.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

/// Rows of a tile, and 32-bit lanes of its rows.
pub(crate) const TILE: usize = 16;

/// Whether the processor has AMX for bytes and the system lets this process use it: asked once.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        const AMX_TILE: u32 = 1 << 24;
        const AMX_INT8: u32 = 1 << 25;
        is_x86_feature_detected!("avx512f")
            && __cpuid_count(0, 0).eax >= 7
            && __cpuid_count(7, 0).edx & (AMX_TILE | AMX_INT8) == AMX_TILE | AMX_INT8
            && is_permitted()
    });
    *AVAILABLE
}

/// Asks Linux to save the tiles' contents with this process's threads, those of now and those to come.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    // SAFETY: the call takes two numbers and touches no memory; systems that do not know it refuse.
    unsafe { nix::libc::syscall(nix::libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Expands to `$use!` with the registers of half `$half`: sums of the first and of the second plane, weights.
macro_rules! of_half {
    ($half:expr, $use:ident) => {
        if $half == 0 { $use!("tmm0", "tmm1", "tmm6") } else { $use!("tmm2", "tmm3", "tmm7") }
    };
}

/// This thread's tiles, configured; given back when dropped. Their sums are two halves: while one is multiplied the other
/// can be stored, for the processor has no more of these registers than can be named.
pub(crate) struct Tiles {
    x_row_bytes: usize,
}

impl Tiles {
    /// Tiles for 16 rows of `k` words of activations and `k` cells of 16 rows of weights; `k` is up to [`TILE`].
    ///
    /// # Safety
    /// AMX is available.
    pub(crate) unsafe fn configure(k: usize) -> Self {
        assert!((1..=TILE).contains(&k));
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // 0 to 3 are sums, 4 and 5 activations of each plane, 6 and 7 weights.
        for tile in 0..8 {
            config.row_bytes[tile] = 4 * if matches!(tile, 4 | 5) { k } else { TILE } as u16;
            config.rows[tile] = if tile < 6 { TILE } else { k } as u8;
        }
        // SAFETY: the configuration is valid; the caller vouches for the instruction.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags)) };
        Self { x_row_bytes: 4 * k }
    }

    /// The sums of half `HALF` become zero.
    #[inline(always)]
    pub(crate) fn clear<const HALF: usize>(&self) {
        macro_rules! clear {
            ($first:tt, $second:tt, $w:tt) => {
                asm!(
                    concat!("tilezero ", $first),
                    concat!("tilezero ", $second),
                    out($first) _,
                    out($second) _,
                    options(nostack, nomem, preserves_flags),
                )
            };
        }
        // SAFETY: tiles are configured.
        unsafe { of_half!(HALF, clear) }
    }

    /// Adds to the sums of half `HALF` the products of signed bytes, activations, with unsigned ones, weights. Activations
    /// are one plane or two, `plane` bytes behind each other: rows one after another. Weights are a cell of 16 rows, then
    /// after `w_stride` bytes the next.
    ///
    /// # Safety
    /// They are readable as far as configured.
    #[inline(always)]
    pub(crate) unsafe fn add_products<const PLANES: usize, const HALF: usize>(
        &self,
        x: *const u8,
        plane: usize,
        w: *const u8,
        w_stride: usize,
    ) {
        macro_rules! add {
            ($first:tt, $second:tt, $w:tt) => {
                asm!(
                    "tileloadd tmm4, [{x} + {x_stride}]",
                    concat!("tileloadd ", $w, ", [{w} + {w_stride}]"),
                    concat!("tdpbsud ", $first, ", tmm4, ", $w),
                    x = in(reg) x,
                    x_stride = in(reg) self.x_row_bytes,
                    w = in(reg) w,
                    w_stride = in(reg) w_stride,
                    out("tmm4") _,
                    out($first) _,
                    out($w) _,
                    options(nostack, readonly, preserves_flags),
                )
            };
        }
        macro_rules! add_second {
            ($first:tt, $second:tt, $w:tt) => {
                asm!(
                    "tileloadd tmm5, [{x} + {x_stride}]",
                    concat!("tdpbsud ", $second, ", tmm5, ", $w),
                    x = in(reg) x.add(plane),
                    x_stride = in(reg) self.x_row_bytes,
                    out("tmm5") _,
                    out($second) _,
                    options(nostack, readonly, preserves_flags),
                )
            };
        }
        // SAFETY: the caller's promise; tiles are configured.
        unsafe {
            of_half!(HALF, add);
            if PLANES == 2 {
                of_half!(HALF, add_second);
            }
        }
    }

    /// Writes the sums of half `HALF`.
    #[inline(always)]
    pub(crate) fn store<const PLANES: usize, const HALF: usize>(&self, sums: &mut Sums) {
        let [first, second] = sums.0.each_mut().map(|plane| plane.as_mut_ptr());
        macro_rules! store {
            ($first:tt, $second:tt, $w:tt) => {
                asm!(
                    concat!("tilestored [{p} + {stride}], ", $first),
                    p = in(reg) first,
                    stride = in(reg) 4 * TILE,
                    options(nostack, preserves_flags),
                )
            };
        }
        macro_rules! store_second {
            ($first:tt, $second:tt, $w:tt) => {
                asm!(
                    concat!("tilestored [{p} + {stride}], ", $second),
                    p = in(reg) second,
                    stride = in(reg) 4 * TILE,
                    options(nostack, preserves_flags),
                )
            };
        }
        // SAFETY: each tile takes as many bytes as a plane; tiles are configured.
        unsafe {
            of_half!(HALF, store);
            if PLANES == 2 {
                of_half!(HALF, store_second);
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: AMX is available, or there would be no tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Sums as stored, of each plane `[16, 16]`: rows of activations by rows of weights.
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[i32; TILE * TILE]; 2]);

impl Sums {
    pub(crate) const ZERO: Self = Self([[0; TILE * TILE]; 2]);
}
