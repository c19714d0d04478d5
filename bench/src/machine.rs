//! What a figure depends on and cannot show: the machine, the kernel, the disk, what else is going on.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::process;
use crate::work::mount_table;

/// Above this load on each processor a run starts with a warning.
const BUSY: f64 = 0.25;

/// What stands above the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    command: String,
    started: String,
    program: String,
    commit: String,
    cpu: String,
    processors: usize,
    memory_bytes: u64,
    virtual_machine: bool,
    kernel: String,
    file_system: String,
    on: String,
    caches: String,
    load: f64,
}

impl Machine {
    /// This machine, now, with work going on in `dir`. `caches` says in what state they are.
    pub fn now(dir: &Path, tmfs: &Path, caches: &str) -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory =
            field(&meminfo, "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<u64>().ok());
        Machine {
            command: std::env::args().collect::<Vec<_>>().join(" "),
            started: jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string(),
            program: version(tmfs),
            commit: printed(Command::new("git").args(["describe", "--always", "--dirty"])),
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.unwrap_or(0) * 1024,
            virtual_machine: cpuinfo.contains(" hypervisor"),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            file_system: file_system(dir),
            on: "directories of this file system".to_owned(),
            caches: caches.to_owned(),
            load: load(),
        }
    }

    /// Says what the targets lie on.
    pub fn on(&mut self, words: String) {
        self.on = words;
    }

    /// What speaks against trusting figures that are taken now.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if cfg!(debug_assertions) {
            warnings.push("this harness is a debug build: use `cargo run --release`".to_owned());
        }
        if self.load > BUSY * self.processors as f64 {
            warnings.push(format!(
                "the machine was busy at the start: load {:.2} on {} processors",
                self.load, self.processors
            ));
        }
        warnings
    }

    /// The header's lines: what, and its value.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let vm = if self.virtual_machine { ", in a virtual machine" } else { "" };
        let memory = self.memory_bytes as f64 / f64::from(1u32 << 30);
        vec![
            ("command", format!("`{}`", self.command)),
            ("started", self.started.clone()),
            ("tmfs", format!("{}, source {}", self.program, self.commit)),
            ("hardware", format!("{} × {}, {memory:.1} GiB of memory{vm}", self.processors, self.cpu)),
            ("kernel", self.kernel.clone()),
            ("file system", self.file_system.clone()),
            ("measured on", self.on.clone()),
            ("caches", self.caches.clone()),
            ("load at the start", format!("{:.2}", self.load)),
        ]
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

fn version(tmfs: &Path) -> String {
    let version = printed(Command::new(tmfs).arg("--version"));
    let debug = tmfs.components().any(|part| part.as_os_str() == "debug");
    if debug { format!("{version} (a debug build)") } else { version }
}

fn printed(command: &mut Command) -> String {
    process::run(command).map_or_else(|_| "unknown".to_owned(), |(text, _)| text.trim().to_owned())
}

/// Type, device and options of what `dir` lies on, and how much is free.
fn file_system(dir: &Path) -> String {
    let above = mount_table().into_iter().filter(|mount| dir.starts_with(&mount.point));
    let Some(mount) = above.max_by_key(|mount| mount.point.as_os_str().len()) else {
        return "unknown".to_owned();
    };
    let free = nix::sys::statvfs::statvfs(dir).map_or(0, |s| s.blocks_available() * s.fragment_size());
    let free = free as f64 / f64::from(1u32 << 30);
    format!("{} on {} ({}), {free:.0} GiB free", mount.kind, mount.source, mount.options)
}
