//! Processor time and memory of this process, its children, and others.

use std::{fs, io, time::Duration};

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Most memory it ever held at once, in bytes.
    pub peak_rss_bytes: u64,
}

/// Of this process.
pub fn own() -> Usage {
    getrusage(libc::RUSAGE_SELF)
}

/// Of this process's children that have ended and were waited for, theirs
/// included; the memory is that of the largest.
pub fn children() -> Usage {
    getrusage(libc::RUSAGE_CHILDREN)
}

/// Seconds of processor time that `work` took, of this process and of the
/// children that it waited for.
pub fn cpu_seconds<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = own().cpu + children().cpu;
    let done = work();
    (done, (own().cpu + children().cpu).saturating_sub(before).as_secs_f64())
}

/// Of the running process `pid`.
///
/// # Errors
/// If there is no such process, or no `/proc`.
pub fn of_process(pid: u32) -> io::Result<Usage> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/status is malformed"));
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak_rss_bytes = peak_of_status(&status).ok_or_else(malformed)?;
    Ok(Usage { cpu: clock_of_process(pid)?, peak_rss_bytes })
}

fn getrusage(who: libc::c_int) -> Usage {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is memory for one `rusage`, which getrusage fills; an
    // all-zero `rusage`, which it would stay on failure, is valid too.
    let usage = unsafe {
        libc::getrusage(who, usage.as_mut_ptr());
        usage.assume_init()
    };
    let duration = |time: libc::timeval| {
        let micros =
            u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_micros(micros)
    };
    Usage {
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        // Linux counts it in KiB.
        peak_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
    }
}

/// To the nanosecond, where `/proc/PID/stat` counts hundredths of a second.
fn clock_of_process(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both calls only write to the places they are given.
    let failed = unsafe {
        match libc::clock_getcpuclockid(pid, &raw mut clock) {
            0 if libc::clock_gettime(clock, &raw mut time) == 0 => None,
            0 => Some(io::Error::last_os_error()),
            code => Some(io::Error::from_raw_os_error(code)),
        }
    };
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    match failed {
        None => Ok(Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))),
        Some(error) => Err(error),
    }
}

fn peak_of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_is_read_in_bytes() {
        assert_eq!(peak_of_status("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(peak_of_status("Name:\tx\n"), None);
    }

    #[test]
    fn work_of_this_process_is_seen_both_ways() {
        let mut hash = 0u64;
        let ((), cpu) = cpu_seconds(|| {
            let started = std::time::Instant::now();
            while started.elapsed() < Duration::from_millis(60) {
                hash = hash.wrapping_mul(31).wrapping_add(7);
            }
        });
        assert!(cpu > 0.0, "{cpu} {hash}");
        let seen = of_process(std::process::id()).unwrap();
        assert!(seen.cpu >= Duration::from_secs_f64(cpu), "{seen:?} {cpu}");
        assert!(of_process(u32::MAX).is_err());
        assert!(seen.peak_rss_bytes > 1 << 20 && own().peak_rss_bytes > 1 << 20);
    }
}
