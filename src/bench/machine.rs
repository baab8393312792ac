//! What a benchmark runs on.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

/// The machine, as far as it bears on a figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The file system that is written to.
    pub file_system: String,
    /// Of this program and of what it is compared with.
    pub versions: BTreeMap<String, String>,
    /// Whether this program was compiled with optimisation.
    pub optimised: bool,
    /// Average number of runnable processes over 1, 5 and 15 minutes before
    /// the start.
    pub load_before: [f64; 3],
}

/// Per core; over this, others are using the machine.
const BUSY_LOAD: f64 = 0.25;

impl Machine {
    /// Looks at this machine; `scratch` is where files will be written.
    pub fn look(scratch: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let scratch = scratch.canonicalize().unwrap_or_else(|_| scratch.to_owned());
        let unknown = || "unknown".to_owned();
        let mut versions = BTreeMap::from([("thalweg".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
        versions.extend(version_of("zstd").map(|version| ("zstd".to_owned(), version)));
        Self {
            processor: processor(&read("/proc/cpuinfo")).unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory(&read("/proc/meminfo")).unwrap_or(0),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(&read("/proc/self/mountinfo"), &scratch).unwrap_or_else(unknown),
            versions,
            optimised: !cfg!(debug_assertions),
            load_before: load(&read("/proc/loadavg")).unwrap_or_default(),
        }
    }

    /// What makes the figures doubtful before anything is measured.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let [load, ..] = self.load_before;
        #[expect(clippy::cast_precision_loss, reason = "cores")]
        let cores = self.cores as f64;
        if load > BUSY_LOAD * cores {
            warnings.push(format!(
                "the load was {load:.2} on {} cores before the start: something else is running, and the \
                 figures are lower and less steady than those of an idle machine",
                self.cores
            ));
        }
        if !self.optimised {
            warnings.push("this is not a release build: figures of it are not comparable".to_owned());
        }
        warnings
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let versions: Vec<String> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let [one, five, fifteen] = self.load_before;
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        format!(
            "{}, {} cores, {gib:.1} GiB, Linux {}, {}; {}; load before {one:.2} {five:.2} {fifteen:.2}",
            self.processor,
            self.cores,
            self.kernel,
            self.file_system,
            versions.join(", "),
        )
    }
}

/// What `program --version` calls its version; `None` if it is not installed.
pub fn version_of(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

/// The first word that looks like a version.
fn version_in(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == ',');
    let bare = words.map(|word| word.trim_start_matches('v'));
    bare.into_iter()
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}

fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn load(loadavg: &str) -> Option<[f64; 3]> {
    let mut numbers = loadavg.split_ascii_whitespace().map_while(|word| word.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}

/// Type of the file system with the longest mount point that leads to `path`.
fn file_system(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = Path::new(mount.split_ascii_whitespace().nth(4)?);
        path.starts_with(point).then_some((point.components().count(), file_system))
    });
    // Of mounts at the same point the last one hides the others.
    let (_, file_system) = mounts.max_by_key(|(depth, _)| *depth)?;
    file_system.split_ascii_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      30 22 0:26 / /tmp rw,nosuid shared:5 - tmpfs tmpfs rw\n\
                      31 22 0:27 / /tmpfoo rw - xfs /dev/vdb rw\n";
        let of = |path: &str| file_system(mounts, Path::new(path));
        assert_eq!(of("/tmp/a/b").as_deref(), Some("tmpfs"));
        assert_eq!(of("/home/x").as_deref(), Some("ext4"));
        assert_eq!(of("/tmpfoo/x").as_deref(), Some("xfs"));
    }

    #[test]
    fn versions_are_found_however_they_are_announced() {
        assert_eq!(version_in("*** Zstandard CLI (64-bit) v1.5.4, by Yann ***").as_deref(), Some("1.5.4"));
        assert_eq!(version_in("psql (PostgreSQL) 15.6 (Debian)").as_deref(), Some("15.6"));
        assert_eq!(version_in("no number"), None);
    }

    #[test]
    fn what_the_kernel_tells_is_read() {
        assert_eq!(
            processor("vendor_id : X\nmodel name\t: Some CPU @ 2GHz\n").as_deref(),
            Some("Some CPU @ 2GHz")
        );
        assert_eq!(memory("MemTotal:        1024 kB\nMemFree: 1 kB\n"), Some(1 << 20));
        assert_eq!(load("0.50 1.25 2.00 3/300 1234\n"), Some([0.5, 1.25, 2.0]));
    }

    #[test]
    fn a_busy_machine_is_warned_of() {
        let mut machine = Machine::look(Path::new("/"));
        assert!(machine.cores > 0 && !machine.kernel.is_empty());
        (machine.cores, machine.optimised, machine.load_before) = (4, true, [0.9, 0.0, 0.0]);
        assert_eq!(machine.warnings(), [""; 0]);
        machine.load_before = [1.1, 0.0, 0.0];
        assert!(machine.warnings()[0].contains("1.10 on 4 cores"));
    }
}
