//! AMX: one instruction multiplies tiles of bytes, 16 by 64 by 16.
//!
//! The compiler has no stable intrinsics for AMX and never configures its registers. A configuration lasts from
//! [`Tiles::configure`] until the tiles are dropped. The tiles' contents are used only within one block of assembly.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

/// Number of rows in a tile, and number of 32-bit lanes in a row.
pub(crate) const TILE: usize = 16;

/// Whether the processor has AMX for bytes and the system lets this process use it. This is checked once.
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

/// Asks Linux to save the tiles' contents for all present and future threads of this process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    // SAFETY: the call takes two numbers and accesses no memory. Systems that do not know it return an error.
    unsafe { nix::libc::syscall(nix::libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The data that `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's configured tiles. Dropping them releases the configuration.
pub(crate) struct Tiles {
    x_row_bytes: usize,
}

impl Tiles {
    /// Configures tiles for 16 rows of `k` words of activations and `k` cells of 16 rows of weights. `k` is at most
    /// [`TILE`].
    ///
    /// # Safety
    /// AMX is available.
    pub(crate) unsafe fn configure(k: usize) -> Self {
        assert!((1..=TILE).contains(&k));
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // Tiles 0 and 1 are sums, 2 and 3 are the activations of each plane, and 4 is weights. The others are not used.
        for tile in 0..8 {
            config.row_bytes[tile] = 4 * if matches!(tile, 2 | 3) { k } else { TILE } as u16;
            config.rows[tile] = if tile < 4 { TILE } else { k } as u8;
        }
        // SAFETY: the configuration is valid, and the caller promises the instruction.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags)) };
        Self { x_row_bytes: 4 * k }
    }

    /// Sums the products of activations (signed bytes) and weights (unsigned bytes) over `n_steps` times the configured
    /// width. Activations are one or two planes that are `plane` bytes apart. A plane has its rows one after another
    /// for each step, so a step is `x_step` bytes. Weights are a cell of 16 rows; the next cell follows after
    /// `w_stride` bytes.
    ///
    /// This is one block of assembly, so the contents of the tiles need not outlive it.
    ///
    /// # Safety
    /// The activations and weights are readable for all steps.
    #[inline(always)]
    pub(crate) unsafe fn products<const PLANES: usize>(
        &self,
        x: *const u8,
        plane: usize,
        w: *const u8,
        w_stride: usize,
        n_steps: usize,
        sums: &mut Sums,
    ) {
        debug_assert!(n_steps > 0);
        let x_step = self.x_row_bytes * TILE;
        let w_step = self.x_row_bytes / 4 * w_stride;
        let [first, second] = sums.0.each_mut().map(|plane| plane.as_mut_ptr());
        // SAFETY: the caller's promise. The tiles are configured, and each stores as many bytes as a plane of sums has.
        unsafe {
            if PLANES == 2 {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "2:",
                    "tileloadd tmm2, [{x} + {x_stride}]",
                    "tileloadd tmm3, [{y} + {x_stride}]",
                    "tileloadd tmm4, [{w} + {w_stride}]",
                    "tdpbsud tmm0, tmm2, tmm4",
                    "tdpbsud tmm1, tmm3, tmm4",
                    "add {x}, {x_step}",
                    "add {y}, {x_step}",
                    "add {w}, {w_step}",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{first} + {stride}], tmm0",
                    "tilestored [{second} + {stride}], tmm1",
                    x = inout(reg) x => _,
                    y = inout(reg) x.wrapping_add(plane) => _,
                    w = inout(reg) w => _,
                    n = inout(reg) n_steps => _,
                    x_stride = in(reg) self.x_row_bytes,
                    w_stride = in(reg) w_stride,
                    x_step = in(reg) x_step,
                    w_step = in(reg) w_step,
                    first = in(reg) first,
                    second = in(reg) second,
                    stride = in(reg) 4 * TILE,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "2:",
                    "tileloadd tmm2, [{x} + {x_stride}]",
                    "tileloadd tmm4, [{w} + {w_stride}]",
                    "tdpbsud tmm0, tmm2, tmm4",
                    "add {x}, {x_step}",
                    "add {w}, {w_step}",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{first} + {stride}], tmm0",
                    x = inout(reg) x => _,
                    w = inout(reg) w => _,
                    n = inout(reg) n_steps => _,
                    x_stride = in(reg) self.x_row_bytes,
                    w_stride = in(reg) w_stride,
                    x_step = in(reg) x_step,
                    w_step = in(reg) w_step,
                    first = in(reg) first,
                    stride = in(reg) 4 * TILE,
                    out("tmm0") _, out("tmm2") _, out("tmm4") _,
                    options(nostack),
                );
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles exist only if AMX is available.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Stored sums. Each plane is `[16, 16]`: rows of activations by rows of weights.
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[i32; TILE * TILE]; 2]);

impl Sums {
    pub(crate) const ZERO: Self = Self([[0; TILE * TILE]; 2]);
}
