//! A small script, crashed at every call that it makes.

use super::{
    disk::{End, Leaves},
    faults::{Crash, Faults},
    life::World,
    oracle::Trust,
    scratch,
};
use crate::{
    log::{Ack, Settings},
    units::{ByteSize, Period},
};

fn settings() -> Settings {
    Settings {
        segment_bytes: ByteSize(3_000),
        segment_age: Period::secs(60),
        max_frame_bytes: ByteSize(600),
        group_bytes: ByteSize(1_200),
        queue_bytes: ByteSize::kib(64),
        ack: Ack::Disk,
        max_producers: 10,
    }
}

/// Appends, rotates by size and on demand, seals, recycles, appends into the
/// recycled file.
fn script(world: &mut World<'_>) {
    let Ok(mut life) = world.open() else { return };
    world.append(&mut life, 2, 300);
    world.append_numbered(&mut life, 0, 3, 300);
    world.close(&mut life);
    world.fill_spare(&mut life);
    world.append(&mut life, 2, 500);
    world.seal(&mut life);
    for _ in 0..3 {
        world.append(&mut life, 3, 300);
    }
    world.seal(&mut life);
    world.close(&mut life);
    world.append_numbered(&mut life, 0, 1, 600);
    world.check(&mut life);
}

/// The ways in which a process ends.
const ENDS: [(End, Leaves); 6] = [
    (End::Killed, Leaves::All),
    (End::PowerCut, Leaves::Nothing),
    (End::PowerCut, Leaves::All),
    (End::PowerCut, Leaves::Some),
    (End::PowerCut, Leaves::Some),
    (End::PowerCut, Leaves::Some),
];

/// The world after the script was crashed at `at`.
fn crashed<'a>(root: &'a std::path::Path, at: u64, reached: bool, way: usize) -> World<'a> {
    let mut world = World::new(root, settings(), Trust::Sound, 7);
    world.disk.set_faults(Faults { crash: Some(Crash { at, reached }), ..Faults::default() });
    script(&mut world);
    // What is left of the unsynced differs from one power cut to the next.
    world.disk.reseed(way as u64 * 1_000 + at);
    let (end, leaves) = ENDS[way];
    world.disk.end(end, leaves);
    world.disk.set_faults(Faults::default());
    world
}

fn goes_on(world: &mut World<'_>) {
    let mut life = world.open().unwrap();
    world.append(&mut life, 2, 300);
    world.close(&mut life);
    world.append(&mut life, 1, 300);
    world.check(&mut life);
    assert!(!life.has_failed());
    world.disk.end(End::PowerCut, Leaves::Nothing);
    drop(life);
    world.open().unwrap();
}

fn calls_of(run: impl FnOnce(&mut World<'_>)) -> u64 {
    let root = scratch();
    let mut world = World::new(root.path(), settings(), Trust::Sound, 7);
    run(&mut world);
    world.disk.calls()
}

#[test]
fn a_crash_at_any_call_loses_nothing_that_was_acknowledged() {
    for at in 1..=calls_of(script) + 1 {
        for reached in [false, true] {
            for way in 0..ENDS.len() {
                let root = scratch();
                goes_on(&mut crashed(root.path(), at, reached, way));
            }
        }
    }
}

#[test]
fn a_crash_at_any_call_of_the_recovery_from_a_crash_loses_nothing_either() {
    for at in (1..=calls_of(script)).step_by(3) {
        for recovery_at in 1.. {
            let root = scratch();
            let way = (at + recovery_at) as usize % ENDS.len();
            let mut world = crashed(root.path(), at, at % 2 == 0, way);
            let crash = Crash { at: world.disk.calls() + recovery_at, reached: recovery_at % 2 == 0 };
            world.disk.set_faults(Faults { crash: Some(crash), ..Faults::default() });
            let opened = world.open();
            if !world.disk.is_down() {
                break;
            }
            let (end, leaves) = ENDS[(way + 1) % ENDS.len()];
            world.disk.end(end, leaves);
            drop(opened);
            world.disk.set_faults(Faults::default());
            goes_on(&mut world);
        }
    }
}
