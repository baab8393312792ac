//! One random case: several lives on one disk, each with its troubles.

use std::path::Path;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    disk::{End, Leaves},
    faults::{Crash, Faults},
    life::{Life, PRODUCERS, World},
    oracle::Trust,
    rot,
};
use crate::{
    log::{Ack, Settings},
    units::{ByteSize, Period},
};

/// Calls of the file system that a life makes, about.
const CALLS_OF_A_LIFE: u64 = 120;

/// Small enough that everything happens often.
fn settings(ack: Ack, rng: &mut SmallRng) -> Settings {
    Settings {
        segment_bytes: ByteSize([3_000, 4_096, 9_000][rng.random_range(0..3)]),
        segment_age: Period::secs(60),
        max_frame_bytes: ByteSize(600),
        group_bytes: ByteSize([200, 1_000, 2_400][rng.random_range(0..3)]),
        queue_bytes: ByteSize::kib(64),
        ack,
        max_producers: 10,
    }
}

/// Runs the case of `seed` and returns a checksum of all that happened. A log
/// that acknowledges from memory is only held to it while the machine runs.
pub fn run(root: &Path, trust: Trust, ack: Ack, seed: u64) -> u32 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World::new(root, settings(ack, &mut rng), trust, seed);
    let mut faulty = trust == Trust::Sound;
    for _ in 0..rng.random_range(2..=5) {
        let Some(mut life) = begin(&mut world, &mut rng, faulty) else { continue };
        live(&mut world, &mut life, &mut rng);
        finish(&mut world, life, &mut rng);
        faulty = true;
    }
    world.disk.set_faults(Faults::default());
    let mut life = world.open().unwrap_or_else(|error| panic!("a sound disk, and yet: {error}"));
    world.append(&mut life, 2, 200);
    (0..PRODUCERS).for_each(|producer| world.append_numbered(&mut life, producer, 1, 200));
    world.check(&mut life);
    assert!(!life.has_failed());
    world.disk.trace()
}

/// Whether only the process may go.
fn machine_stays(world: &World<'_>) -> bool {
    world.trust == Trust::Sound && world.settings.ack == Ack::Memory
}

/// What may go wrong on a disk that is trusted that far.
fn faults(rng: &mut SmallRng, world: &World<'_>) -> Faults {
    let (trust, calls) = (world.trust, world.disk.calls());
    let crash = rng
        .random_bool(0.6)
        .then(|| Crash { at: calls + rng.random_range(1..CALLS_OF_A_LIFE), reached: rng.random_bool(0.5) });
    let mut share = |often: f64, share: f64| if rng.random_bool(often) { share } else { 0.0 };
    Faults {
        crash,
        short: share(0.3, 0.3),
        full: share(0.2, 0.1),
        write_fails: share(0.1, 0.02),
        sync_fails: if machine_stays(world) { 0.0 } else { share(0.2, 0.05) },
        sync_lies: if trust == Trust::Lying { share(0.9, 0.4) } else { 0.0 },
        reads_that_fail: u32::from(rng.random_bool(0.2)),
        budget: rng.random_bool(0.2).then(|| rng.random_range(10_000..40_000)),
    }
}

/// Starts the process until it has the log open or is gone; `None` if it went
/// down.
fn begin(world: &mut World<'_>, rng: &mut SmallRng, faulty: bool) -> Option<Life> {
    for attempt in 0.. {
        // A disk that lies from the start could lose that there was a log.
        let sound = attempt > 5 || !faulty;
        let chosen = if sound { Faults::default() } else { faults(rng, world) };
        world.disk.set_faults(chosen);
        match world.open() {
            Ok(life) if !world.disk.is_down() => return Some(life),
            Ok(life) => {
                finish(world, life, rng);
                return None;
            }
            Err(error) => {
                assert!(!sound, "a sound disk, and yet: {error}");
                end(world, rng);
            }
        }
    }
    None
}

fn live(world: &mut World<'_>, life: &mut Life, rng: &mut SmallRng) {
    for _ in 0..rng.random_range(1..25) {
        match rng.random_range(0..100) {
            0..35 => {
                let appends = rng.random_range(1..=4);
                world.append(life, appends, 300);
            }
            35..55 => {
                let (producer, appends) = (rng.random_range(0..PRODUCERS), rng.random_range(0..=3));
                world.append_numbered(life, producer, appends, 300);
            }
            55..62 => world.append(life, 1, 600),
            62..70 => world.close(life),
            70..74 => world.wait(life),
            74..80 => world.fill_spare(life),
            80..88 => world.seal(life),
            88..94 => world.check(life),
            _ => world.rely(),
        }
        if world.disk.is_down() || life.has_failed() {
            return;
        }
    }
}

/// The process ends; on a disk that rots, bytes are ruined then.
fn finish(world: &mut World<'_>, life: Life, rng: &mut SmallRng) {
    end(world, rng);
    drop(life);
    if world.trust == Trust::Rotting && rng.random_bool(0.7) {
        rot::ruin(world, rng);
    }
}

fn end(world: &World<'_>, rng: &mut SmallRng) {
    let killed = rng.random_bool(0.4) || machine_stays(world);
    let end = if killed { End::Killed } else { End::PowerCut };
    let leaves = [Leaves::Nothing, Leaves::Some, Leaves::Some, Leaves::All][rng.random_range(0..4)];
    world.disk.end(end, leaves);
}
