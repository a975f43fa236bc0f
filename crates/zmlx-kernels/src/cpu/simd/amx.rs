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

/// This thread's tiles, configured; given back when dropped. Their sums are two halves: while one is multiplied the other
/// can be stored, for the processor has no more of these registers than can be named.
pub(crate) struct Tiles {
    x_row_bytes: usize,
}

impl Tiles {
    /// Tiles for `m` rows of `k` words of activations, and `k` rows of cells of weights; both up to [`TILE`].
    ///
    /// # Safety
    /// AMX is available.
    pub(crate) unsafe fn configure(m: usize, k: usize) -> Self {
        assert!((1..=TILE).contains(&m) && (1..=TILE).contains(&k));
        let (m_rows, k_rows) = (m as u8, k as u8);
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // 0 to 3 are sums, two for each half; 4 and 5 activations; 6 and 7 weights, one for each half.
        for tile in 0..8 {
            config.row_bytes[tile] = if matches!(tile, 4 | 5) { 4 * k as u16 } else { 4 * TILE as u16 };
            config.rows[tile] = if tile < 6 { m_rows } else { k_rows };
        }
        // SAFETY: the configuration is valid; the caller vouches for the instruction.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags)) };
        Self { x_row_bytes: 4 * k }
    }

    /// The sums of half `HALF` become zero.
    #[inline(always)]
    pub(crate) fn clear<const HALF: usize>(&self) {
        // SAFETY: tiles are configured.
        unsafe {
            if HALF == 0 {
                asm!("tilezero tmm0", "tilezero tmm1", out("tmm0") _, out("tmm1") _, options(nostack, nomem, preserves_flags));
            } else {
                asm!("tilezero tmm2", "tilezero tmm3", out("tmm2") _, out("tmm3") _, options(nostack, nomem, preserves_flags));
            }
        }
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
        let x_stride = self.x_row_bytes;
        // SAFETY: the caller's promise; tiles are configured.
        unsafe {
            if HALF == 0 {
                asm!("tileloadd tmm4, [{x} + {x_stride}]", "tileloadd tmm6, [{w} + {w_stride}]", "tdpbsud tmm0, tmm4, tmm6",
                    x = in(reg) x, x_stride = in(reg) x_stride, w = in(reg) w, w_stride = in(reg) w_stride,
                    out("tmm0") _, out("tmm4") _, out("tmm6") _, options(nostack, readonly, preserves_flags));
                if PLANES == 2 {
                    asm!("tileloadd tmm5, [{x} + {x_stride}]", "tdpbsud tmm1, tmm5, tmm6",
                        x = in(reg) x.add(plane), x_stride = in(reg) x_stride, out("tmm1") _, out("tmm5") _,
                        options(nostack, readonly, preserves_flags));
                }
            } else {
                asm!("tileloadd tmm4, [{x} + {x_stride}]", "tileloadd tmm7, [{w} + {w_stride}]", "tdpbsud tmm2, tmm4, tmm7",
                    x = in(reg) x, x_stride = in(reg) x_stride, w = in(reg) w, w_stride = in(reg) w_stride,
                    out("tmm2") _, out("tmm4") _, out("tmm7") _, options(nostack, readonly, preserves_flags));
                if PLANES == 2 {
                    asm!("tileloadd tmm5, [{x} + {x_stride}]", "tdpbsud tmm3, tmm5, tmm7",
                        x = in(reg) x.add(plane), x_stride = in(reg) x_stride, out("tmm3") _, out("tmm5") _,
                        options(nostack, readonly, preserves_flags));
                }
            }
        }
    }

    /// Writes the sums of half `HALF`.
    #[inline(always)]
    pub(crate) fn store<const PLANES: usize, const HALF: usize>(&self, sums: &mut Sums) {
        let p = &raw mut *sums;
        // SAFETY: each tile takes as many bytes as half of the sums at most; tiles are configured.
        unsafe {
            if HALF == 0 {
                asm!("tilestored [{p} + {stride}], tmm0", p = in(reg) p, stride = in(reg) 64usize,
                    options(nostack, preserves_flags));
                if PLANES == 2 {
                    asm!("tilestored [{p} + {stride} + 1024], tmm1", p = in(reg) p, stride = in(reg) 64usize,
                        options(nostack, preserves_flags));
                }
            } else {
                asm!("tilestored [{p} + {stride}], tmm2", p = in(reg) p, stride = in(reg) 64usize,
                    options(nostack, preserves_flags));
                if PLANES == 2 {
                    asm!("tilestored [{p} + {stride} + 1024], tmm3", p = in(reg) p, stride = in(reg) 64usize,
                        options(nostack, preserves_flags));
                }
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

/// Sums as stored, `[m, 16]` of each plane.
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[i32; TILE * TILE]; 2]);

impl Sums {
    pub(crate) const ZERO: Self = Self([[0; TILE * TILE]; 2]);
}
