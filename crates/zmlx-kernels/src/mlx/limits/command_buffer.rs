//! How much work MLX encodes into one command buffer of Metal.
//!
//! MLX 0.32.2 commits a command buffer after 20 to 50 ops or 40 to 50 "MB", by GPU. It counts an array as a whole each time
//! when an op takes it as an input, and a bank of experts is one array, although a token reads 8 of its 128 matrices. So a
//! decoded token of a mixture-of-experts model is cut into many more command buffers than its work is worth, and each of them
//! costs the host and the GPU a fixed time. Larger limits have been reported to help on M1 to M4, and to help little or to
//! hurt on M5, where MLX's own stay.
//!
//! MLX reads both variables once, when it makes its Metal device. They must be set before.

use std::sync::OnceLock;

use super::{ChosenBy, Setting};

/// The variables that MLX reads, and the values for M1 to M4.
const LIMITS: [(&str, &str); 2] = [("MLX_MAX_OPS_PER_BUFFER", "1000"), ("MLX_MAX_MB_PER_BUFFER", "400")];

const NO_METAL: &str = "there is no Metal on this system";
const OTHER_CHIP: &str = "larger limits are known to help on M1 to M4 only";
const HAS_THREADS: &str = "the process already had threads";

static CHOSEN: OnceLock<[Setting; 2]> = OnceLock::new();

/// Sets `MLX_MAX_OPS_PER_BUFFER` and `MLX_MAX_MB_PER_BUFFER` for this process, each unless the user has set it: to 1000 and
/// 400 on M1 to M4, and not at all elsewhere. Returns what holds now.
///
/// Call it at the start of `main`. Once MLX has made its device it has no effect, and once the process has threads it does
/// nothing, as these may be reading the environment.
pub fn limit_command_buffers() -> &'static [Setting; 2] {
    CHOSEN.get_or_init(|| {
        let chosen =
            choose(|name| std::env::var(name).ok(), system::chip().as_deref(), system::has_threads());
        for setting in chosen.iter().filter(|s| s.chosen_by == ChosenBy::Zmlx) {
            system::set(setting);
        }
        chosen
    })
}

/// The limits of command buffers that hold, without changing them.
pub fn command_buffers() -> [Setting; 2] {
    let unchanged = || choose(|name| std::env::var(name).ok(), None, true);
    CHOSEN.get().cloned().unwrap_or_else(unchanged)
}

/// What is to hold, with the user's variables, the name of the processor (`None` without Metal), and whether the process
/// has threads.
fn choose(user: impl Fn(&str) -> Option<String>, chip: Option<&str>, has_threads: bool) -> [Setting; 2] {
    let why_not = match chip {
        None => Some(NO_METAL),
        Some(chip) if !is_m1_to_m4(chip) => Some(OTHER_CHIP),
        Some(_) if has_threads => Some(HAS_THREADS),
        Some(_) => None,
    };
    LIMITS.map(|(name, value)| match (user(name), why_not) {
        (Some(value), _) => Setting { name, value: Some(value), chosen_by: ChosenBy::User, why: None },
        (None, Some(why)) => Setting::of_mlx(name, why),
        (None, None) => Setting { name, value: Some(value.to_owned()), chosen_by: ChosenBy::Zmlx, why: None },
    })
}

/// `Apple M3 Max` is one, `Apple M5` and `Apple M10` are not.
fn is_m1_to_m4(chip: &str) -> bool {
    let number = chip.strip_prefix("Apple M").and_then(|rest| rest.split(' ').next());
    matches!(number, Some("1" | "2" | "3" | "4"))
}

#[cfg(target_os = "macos")]
mod system {
    use std::ffi::{CStr, c_int};

    use super::Setting;

    unsafe extern "C" {
        /// Of `pthread.h`: not 0 once the process has made a thread.
        safe fn pthread_is_threaded_np() -> c_int;
    }

    /// The processor's name.
    pub(super) fn chip() -> Option<String> {
        let mut name = [0_u8; 128];
        let mut len = name.len();
        // SAFETY: the key ends in zero; `len` says how long the live buffer is, and the call writes no more; nothing is set.
        let status = unsafe {
            libc::sysctlbyname(
                c"machdep.cpu.brand_string".as_ptr(),
                name.as_mut_ptr().cast(),
                &mut len,
                std::ptr::null_mut(),
                0,
            )
        };
        let name = CStr::from_bytes_until_nul(&name).ok().filter(|_| status == 0)?;
        Some(name.to_string_lossy().into_owned())
    }

    pub(super) fn has_threads() -> bool {
        pthread_is_threaded_np() != 0
    }

    /// Only called where [`has_threads`] said no, on the one thread that there is.
    pub(super) fn set(setting: &Setting) {
        let Some(value) = &setting.value else { return };
        // SAFETY: no other thread exists that could read or change the environment meanwhile: `choose` sets nothing where the
        // process has threads, and this one makes none in between.
        unsafe { std::env::set_var(setting.name, value) };
    }
}

#[cfg(not(target_os = "macos"))]
mod system {
    use super::Setting;

    /// There is no Metal, so there are no command buffers of Metal.
    pub(super) fn chip() -> Option<String> {
        None
    }

    pub(super) fn has_threads() -> bool {
        true
    }

    pub(super) fn set(_: &Setting) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn values(settings: &[Setting; 2]) -> [Option<&str>; 2] {
        settings.each_ref().map(|s| s.value.as_deref())
    }

    #[test]
    fn m1_to_m4_get_larger_limits() {
        for chip in ["Apple M1", "Apple M2 Max", "Apple M3 Ultra", "Apple M4 Pro"] {
            let settings = choose(nothing, Some(chip), false);
            assert_eq!(values(&settings), [Some("1000"), Some("400")], "{chip}");
            assert!(settings.iter().all(|s| s.chosen_by == ChosenBy::Zmlx && s.why.is_none()), "{chip}");
        }
    }

    #[test]
    fn elsewhere_the_limits_of_mlx_stay() {
        for (chip, has_threads, why) in [
            (Some("Apple M5"), false, OTHER_CHIP),
            (Some("Apple M10 Max"), false, OTHER_CHIP),
            (Some("Apple M"), false, OTHER_CHIP),
            (Some("Intel(R) Core(TM) i7"), false, OTHER_CHIP),
            (Some("Apple M3"), true, HAS_THREADS),
            (None, false, NO_METAL),
        ] {
            let settings = choose(nothing, chip, has_threads);
            assert!(settings.iter().all(|s| *s == Setting::of_mlx(s.name, why)), "{chip:?}: {settings:?}");
        }
    }

    #[test]
    fn what_the_user_has_set_stays() {
        let user = |name: &str| (name == "MLX_MAX_OPS_PER_BUFFER").then(|| "7".to_owned());
        for chip in [Some("Apple M3"), Some("Apple M5"), None] {
            let [ops, mb] = choose(user, chip, false);
            assert_eq!((ops.value.as_deref(), ops.chosen_by), (Some("7"), ChosenBy::User), "{chip:?}");
            // The other one is chosen as if the user had set nothing.
            assert_eq!(mb, choose(nothing, chip, false)[1], "{chip:?}");
        }
    }
}
