//! The machine: disk, limits, processor, clock, model.

use std::{
    ffi::CString,
    fs,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, Instant},
};

use super::Check;
use crate::{
    clock,
    config::{Pipeline, Source},
    embed::{Provider, model},
    units::ByteSize,
};

/// What depends on a pipeline.
pub(super) fn of_pipeline(pipeline: &Pipeline) -> Vec<Check> {
    let mut checks = vec![writable(pipeline)];
    let there = existing(&pipeline.data_dir);
    checks.extend(match free_bytes(there) {
        Ok(free) => Some(room(free, pipeline.log.segment_bytes.0)),
        Err(_) => None,
    });
    checks.push(match sync_latency(there) {
        Ok(median) => sync(median),
        Err(error) => Check::problem("disk sync", error.to_string(), "the data directory must take files"),
    });
    checks.push(open_files(pipeline));
    checks.push(model_files(pipeline));
    checks
}

/// What does not.
pub(super) fn always() -> Vec<Check> {
    vec![time(clock::system_ms()), processor(), zstd_tool()]
}

/// `path`, or the nearest folder above it that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| Path::new(if path.is_absolute() { "/" } else { "." }))
}

fn writable(pipeline: &Pipeline) -> Check {
    let folder = existing(&pipeline.data_dir);
    let shown = pipeline.data_dir.display();
    match tempfile::tempfile_in(folder) {
        Ok(_) if folder == pipeline.data_dir => {
            Check::ok("data directory", format!("{shown} can be written"))
        }
        Ok(_) => Check::ok("data directory", format!("{shown} is made at the first start")),
        Err(error) => Check::problem(
            "data directory",
            format!("{} cannot be written: {error}", folder.display()),
            "give the user who runs thalweg the right to write there, or change `data_dir`",
        ),
    }
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all bits zero are a valid `statvfs`, which holds numbers only.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in nul, and both pointers live through the call.
    match unsafe { libc::statvfs(path.as_ptr(), &raw mut found) } {
        0 => Ok(found.f_bavail * found.f_frsize),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An active segment, its spare, a sealed one, its object and the store: less
/// than two segments' room cannot work, less than ten will not for long.
fn room(free: u64, segment: u64) -> Check {
    let found = format!("{} free, a segment has {}", ByteSize(free), ByteSize(segment));
    match free / segment.max(1) {
        0 | 1 => Check::problem("disk space", found, "free some space, or make `log.segment_bytes` smaller"),
        2..10 => Check::warning("disk space", found, "free some space: sealing and the index need it too"),
        _ => Check::ok("disk space", found),
    }
}

/// Syncs that are measured; the median does not mind a few slow ones.
const SYNCS: usize = 20;

fn sync_latency(folder: &Path) -> io::Result<Duration> {
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(&vec![0; SYNCS << 12])?;
    file.sync_all()?;
    let mut took = Vec::with_capacity(SYNCS);
    for n in 0..SYNCS as u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 1 << 12], n << 12)?;
        let started = Instant::now();
        file.sync_data()?;
        took.push(started.elapsed());
    }
    took.sort_unstable();
    Ok(took.get(SYNCS / 2).copied().unwrap_or_default())
}

/// Nothing that survives a power cut answers faster.
const NO_DISK: Duration = Duration::from_micros(5);
/// Slower than this, a producer that waits for each ack sends under 50 a
/// second.
const SLOW_SYNC: Duration = Duration::from_millis(20);

fn sync(median: Duration) -> Check {
    let found = format!("median of {SYNCS} syncs of 4 KiB: {:.2} ms", median.as_secs_f64() * 1e3);
    if median < NO_DISK {
        let advice =
            "this is memory, or a disk that does not sync: an ack is no promise against a power cut here";
        return Check::warning("disk sync", found, advice);
    }
    if median > SLOW_SYNC {
        let advice =
            "every ack waits for one sync: put `data_dir` on a faster disk, or send ahead of the acks";
        return Check::warning("disk sync", found, advice);
    }
    Check::ok("disk sync", found)
}

/// Files of the store, the log and the model, and some for what runs beside.
const OWN_FILES: u64 = 256;

fn open_files(pipeline: &Pipeline) -> Check {
    // SAFETY: all bits zero are a valid `rlimit`, and the pointer lives
    // through the call.
    let limit = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur
    };
    let listens = |source: &Source| matches!(source, Source::Tcp(_) | Source::Unix(_) | Source::Forward(_));
    let sessions = &pipeline.sessions;
    let connections =
        if pipeline.sources.iter().any(listens) { sessions.max_active + sessions.max_waiting } else { 0 };
    let wanted = connections as u64 + OWN_FILES;
    let found = format!("limit {limit}, the sources may use {wanted}");
    if limit < wanted {
        return Check::warning(
            "open files",
            found,
            format!("`ulimit -n {wanted}`, or lower `sessions.max_active` and `sessions.max_waiting`"),
        );
    }
    Check::ok("open files", found)
}

fn model_files(pipeline: &Pipeline) -> Check {
    let settings = &pipeline.embed;
    if settings.provider == Provider::Hashing {
        let advice = "for real use set embed.provider to \"local\"";
        return Check::warning("model", "hashing: it finds words, not meaning", advice);
    }
    if settings.provider == Provider::Remote {
        let names: Vec<&str> = settings.endpoint.iter().map(|endpoint| endpoint.name.as_str()).collect();
        let found = format!("{}, remote, by way of {}; not asked", settings.model, names.join(", "));
        return Check::ok("model", found);
    }
    let folder = settings.model_folder(std::env::var_os("THALWEG_MODELS").as_deref());
    match model::verify(&settings.model, &folder) {
        Ok(checked) => {
            let state = if checked.pinned { "digests agree" } else { "not a known model, can be used" };
            let (name, bytes) = (&settings.model, ByteSize(checked.bytes));
            Check::ok("model", format!("{name} in {}, {bytes}, {state}", folder.display()))
        }
        Err(error) => {
            let advice = "run `thalweg models pull`, or set THALWEG_MODELS to where models are";
            Check::problem("model", error.to_string(), advice)
        }
    }
}

/// 2024-01-01: no record of this program is older.
const EPOCH_MS: i64 = 1_704_067_200_000;

fn time(now_ms: i64) -> Check {
    let found = format!("{} UTC", crate::cli::output::time(now_ms));
    if now_ms < EPOCH_MS {
        let advice = "set the clock: segments age, and records without `ts` are dated, by it";
        return Check::problem("clock", found, advice);
    }
    Check::ok("clock", found)
}

#[cfg(target_arch = "x86_64")]
fn processor() -> Check {
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    let names = |has: bool| {
        let some: Vec<_> =
            features.iter().filter(|(_, there)| *there == has).map(|(name, _)| *name).collect();
        if some.is_empty() { "none".to_owned() } else { some.join(" ") }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{cores} cores; has {}; lacks {}", names(true), names(false));
    if features.iter().take(2).all(|(_, there)| *there) {
        Check::ok("processor", found)
    } else {
        Check::warning("processor", found, "without avx2 and fma the local model is several times slower")
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Check::ok("processor", format!("{cores} cores, {}", std::env::consts::ARCH))
}

fn zstd_tool() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path)
        .map(|folder| folder.join("zstd"))
        .find(|tool| fs::metadata(tool).is_ok_and(|meta| meta.is_file()));
    match there {
        Some(tool) => Check::ok("zstd", format!("{}: reads sealed segments without thalweg", tool.display())),
        None => Check::ok("zstd", "not installed; only needed to read sealed segments without thalweg"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn room_for_two_segments_is_the_least() {
        let verdict = |free| room(free, 64 << 20).verdict;
        assert_eq!(verdict(100 << 20), Verdict::Problem);
        assert_eq!(verdict(200 << 20), Verdict::Warning);
        assert_eq!(verdict(1 << 30), Verdict::Ok);
    }

    #[test]
    fn a_sync_that_is_too_slow_or_too_good_is_told() {
        assert_eq!(sync(Duration::from_micros(1)).verdict, Verdict::Warning);
        assert_eq!(sync(Duration::from_micros(700)).verdict, Verdict::Ok);
        assert_eq!(sync(Duration::from_millis(30)).verdict, Verdict::Warning);
    }

    #[test]
    fn a_clock_before_the_program_is_wrong() {
        assert_eq!(time(0).verdict, Verdict::Problem);
        assert_eq!(time(EPOCH_MS + 1).verdict, Verdict::Ok);
    }

    #[test]
    fn the_folder_above_is_asked_while_the_data_directory_is_not_made_yet() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("a/b")), folder.path());
        assert_eq!(existing(Path::new("surely/not/here")), Path::new("."));
    }
}
