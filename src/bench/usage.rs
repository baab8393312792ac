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

/// Of the running process `pid`, as `/proc` tells.
///
/// # Errors
/// If there is no such process, or no `/proc`.
pub fn of_process(pid: u32) -> io::Result<Usage> {
    let malformed =
        |file| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/{file} is malformed"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage {
        cpu: cpu_of_stat(&stat, ticks_per_second()).ok_or_else(|| malformed("stat"))?,
        peak_rss_bytes: peak_of_status(&status).ok_or_else(|| malformed("status"))?,
    })
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

fn ticks_per_second() -> u64 {
    // SAFETY: sysconf only reads a constant of the system.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|n| *n > 0).unwrap_or(100)
}

/// Fields 14 and 15, counted after the command, which may hold anything.
fn cpu_of_stat(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let total = ticks()? + ticks()?;
    Some(Duration::from_micros(total * 1_000_000 / ticks_per_second))
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
    fn processor_time_is_found_behind_any_command() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 7 7 20 0 1 0 1 1 1";
        assert_eq!(cpu_of_stat(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(cpu_of_stat("42 (a) S 1", 100), None);
    }

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
        assert!(seen.cpu > Duration::ZERO);
        assert!(seen.peak_rss_bytes > 1 << 20 && own().peak_rss_bytes > 1 << 20);
    }
}
