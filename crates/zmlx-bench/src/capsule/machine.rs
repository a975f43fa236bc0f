//! The facts about a machine that its operating system reports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use zmlx_kernels::cpu::Level;

/// The processor, the memory and the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Number of physical cores.
    pub physical_cores: usize,
    /// Number of cores as the system counts them.
    pub logical_cores: usize,
    /// Size of the memory in bytes; null if the system does not report it.
    pub memory_bytes: Option<u64>,
    /// The operating system and its version.
    pub os: String,
    /// The processor's architecture.
    pub arch: String,
    /// The GPU that computed; null if none did.
    pub gpu: Option<String>,
    /// The processor's clock in MHz at the end of the run; null if the system does not report it.
    pub cpu_mhz: Option<u64>,
    /// The best instruction-set level of the CPU backend on this machine.
    pub level: String,
}

impl Machine {
    /// Reads the facts about this machine.
    pub fn probe() -> Self {
        let what = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_frequency())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(what).ok();
        let cpu = system.as_ref().and_then(|s| s.cpus().first());
        let unknown = || "unknown".to_owned();
        let name = cpu.map(|c| c.brand().trim().to_owned()).filter(|n| !n.is_empty()).unwrap_or_else(unknown);
        Self {
            // Apple's GPU is part of the chip and has the chip's name.
            gpu: cfg!(all(target_os = "macos", target_arch = "aarch64")).then(|| name.clone()),
            cpu: name,
            physical_cores: num_cpus::get_physical(),
            logical_cores: num_cpus::get(),
            memory_bytes: system.as_ref().map(System::total_memory),
            os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            arch: std::env::consts::ARCH.to_owned(),
            cpu_mhz: cpu.map(sysinfo::Cpu::frequency).filter(|&mhz| mhz > 0),
            level: Level::fastest().name().to_owned(),
        }
    }

    /// The facts that must be equal for two machines to count as the same for a bench. The clock is not one of them,
    /// because it may change between runs.
    pub(crate) fn identity(&self) -> [(&'static str, String); 5] {
        [
            ("cpu", self.cpu.clone()),
            ("physical_cores", self.physical_cores.to_string()),
            ("logical_cores", self.logical_cores.to_string()),
            ("arch", self.arch.clone()),
            ("gpu", self.gpu.clone().unwrap_or_else(|| "none".to_owned())),
        ]
    }
}
