//! The log under a simulated file system that fails in every way it may.
//!
//! A case drives the real writer, recovery and readers through several lives
//! on one [`disk::Disk`], which crashes, lies, fills up and rots as the case's
//! seed says, while the [`oracle::Oracle`] holds the log to every answer it
//! gave. `docs/crash-model.md` says what is assumed of a disk and what is
//! thereby proved.
//!
//! ```text
//! THALWEG_SIM_CASES=100000 cargo nextest run --lib log::sim     a soak
//! THALWEG_SIM_SEED=17 cargo nextest run --lib log::sim          one case again
//! THALWEG_SIM_TRACE=1 ...                                       with each call
//! ```

mod case;
mod disk;
mod exhaustive;
mod faults;
mod life;
mod oracle;
mod rot;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

use oracle::Trust;

use crate::log::Ack;

/// A folder of the machine for sealed segments: in memory where there is one,
/// because nothing in it has to last.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap())
}

/// Runs `cases` cases, or as many as the environment says; names the seed of
/// one that fails.
fn run_cases(trust: Trust, ack: Ack, cases: u64) {
    let seeds = match number("THALWEG_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("THALWEG_SIM_CASES").unwrap_or(cases),
    };
    for seed in seeds {
        let root = scratch();
        let ran = catch_unwind(AssertUnwindSafe(|| case::run(root.path(), trust, ack, seed)));
        if let Err(failure) = ran {
            eprintln!("{trust:?}, {ack:?}: the case of THALWEG_SIM_SEED={seed} failed");
            resume_unwind(failure);
        }
    }
}

#[test]
fn on_a_disk_that_keeps_what_it_synced_every_promise_is_kept() {
    run_cases(Trust::Sound, Ack::Disk, 2_000);
}

#[test]
fn on_a_disk_that_lies_nothing_wrong_is_read_and_no_known_offset_given_again() {
    run_cases(Trust::Lying, Ack::Disk, 1_000);
}

#[test]
fn what_is_acknowledged_from_memory_outlives_the_process() {
    run_cases(Trust::Sound, Ack::Memory, 1_000);
}

#[test]
fn what_is_acknowledged_from_memory_and_lost_with_the_machine_leaves_a_log_that_is_whole() {
    run_cases(Trust::Lying, Ack::Memory, 1_000);
}

#[test]
fn on_a_disk_that_rots_what_is_whole_is_kept_and_what_is_lost_is_said() {
    run_cases(Trust::Rotting, Ack::Disk, 1_000);
}

/// Of soaks, and beyond what every run tries.
#[test]
fn cases_that_once_failed_are_kept_to() {
    let root = scratch();
    // A whole segment without its header, behind a sealed one without its end.
    case::run(root.path(), Trust::Rotting, Ack::Disk, 24_886);
    let root = scratch();
    // Frames that were nowhere come back with a file that was used again.
    case::run(root.path(), Trust::Lying, Ack::Memory, 16_460);
}

#[test]
fn the_same_seed_makes_the_same_calls_with_the_same_ends() {
    for trust in [Trust::Sound, Trust::Lying, Trust::Rotting] {
        for seed in 0..20 {
            let root = scratch();
            let first = case::run(root.path(), trust, Ack::Disk, seed);
            let root = scratch();
            assert_eq!(case::run(root.path(), trust, Ack::Disk, seed), first, "{trust:?}, seed {seed}");
        }
    }
}
