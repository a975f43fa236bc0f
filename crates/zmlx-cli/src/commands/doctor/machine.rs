//! The machine, as far as its operating system describes it.

use serde::Serialize;
use zmlx_kernels::cpu::Level;

use zmlx_models::human_bytes;

/// Processor and memory.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    system: String,
    processor: Option<String>,
    n_physical_cores: usize,
    n_logical_cores: usize,
    memory_bytes: Option<u64>,
    /// The instruction-set levels of the CPU backend that run here, slowest first.
    levels: Vec<&'static str>,
    /// The levels that this processor lacks: tests of them cannot run here.
    missing_levels: Vec<&'static str>,
}

impl Machine {
    pub(super) fn probe() -> Self {
        let (processor, memory_bytes) = probe_system();
        let names = |is_supported: bool| {
            let levels = Level::ALL.into_iter().filter(|l| l.is_supported() == is_supported);
            levels.map(Level::name).collect()
        };
        Self {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor,
            n_physical_cores: num_cpus::get_physical(),
            n_logical_cores: num_cpus::get(),
            memory_bytes,
            levels: names(true),
            missing_levels: names(false),
        }
    }

    pub(super) fn text(&self) -> String {
        let unknown = || "unknown".to_owned();
        format!(
            "System: {}\nProcessor: {}, {} cores ({} logical)\nMemory: {}\nInstruction levels: {}; not on this processor: {}\n",
            self.system,
            self.processor.clone().unwrap_or_else(unknown),
            self.n_physical_cores,
            self.n_logical_cores,
            self.memory_bytes.map_or_else(unknown, human_bytes),
            self.levels.join(", "),
            self.missing_levels.join(", "),
        )
    }
}

/// The processor's name and the memory's size.
#[cfg(target_os = "macos")]
fn probe_system() -> (Option<String>, Option<u64>) {
    let ask = |key: &str| {
        let out = std::process::Command::new("sysctl").args(["-n", key]).output().ok()?;
        let text = String::from_utf8(out.stdout).ok()?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    (ask("machdep.cpu.brand_string"), ask("hw.memsize").and_then(|n| n.parse().ok()))
}

/// The processor's name and the memory's size.
#[cfg(not(target_os = "macos"))]
fn probe_system() -> (Option<String>, Option<u64>) {
    let field = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'))?;
        Some(value.trim().to_owned())
    };
    let kib = field("/proc/meminfo", "MemTotal").and_then(|v| v.strip_suffix(" kB")?.parse::<u64>().ok());
    (field("/proc/cpuinfo", "model name"), kib.map(|n| n * 1024))
}
