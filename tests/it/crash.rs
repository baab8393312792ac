//! Killed at random moments under load, the daemon loses nothing that it
//! acknowledged and stores nothing twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    daemon::{Site, TCP},
    ledger::{Ledger, ids_in_index, nothing_acked_is_lost, produce_all},
};

const PRODUCERS: usize = 3;
/// New records of each producer between two crashes.
const EACH: u64 = 1_500;
/// Small segments, so that crashes also hit rotation, sealing and archiving.
const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";

/// Crashes of one run; `THALWEG_TEST_CRASHES=50` makes a soak of it.
fn crashes() -> u32 {
    std::env::var("THALWEG_TEST_CRASHES").map_or(10, |n| n.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_under_load_lose_no_acked_record_and_store_none_twice() {
    let seed =
        std::env::var("THALWEG_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("THALWEG_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let mut ledgers: Vec<Ledger> = (0..PRODUCERS).map(Ledger::new).collect();
    let sent = Arc::new(AtomicU64::new(0));
    ledgers.iter_mut().for_each(|ledger| ledger.sent = sent.clone());
    let mut broken = 0;
    for _ in 0..crashes() {
        let daemon = site.start();
        let address = daemon.tcp().to_owned();
        // By what was sent and not by the clock, or a fast machine would be
        // done before it is killed.
        let fatal = sent.load(Ordering::Relaxed) + random.random_range(1..PRODUCERS as u64 * EACH * 9 / 10);
        let killing = async {
            while sent.load(Ordering::Relaxed) < fatal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            daemon.kill();
        };
        tokio::join!(killing, produce_all(&mut ledgers, &address, EACH));
        broken += ledgers.iter().filter(|ledger| !ledger.unanswered.is_empty()).count();
    }
    assert!(broken > 0, "no crash hit a producer at work; the test proves nothing");

    let daemon = site.start();
    produce_all(&mut ledgers, daemon.tcp(), 0).await;
    assert!(ledgers.iter().all(|ledger| ledger.unanswered.is_empty()));
    let acked: usize = ledgers.iter().map(|ledger| ledger.acked.len()).sum();
    let status = daemon.derived(acked as u64).await;
    assert_eq!(status["derived"]["lost"], 0);
    daemon.stop_drained();
    nothing_acked_is_lost(&site, &ledgers).await;
    // Every record sent was acknowledged in the end, so the index holds these
    // and no others.
    assert_eq!(ids_in_index(&site).await.len(), acked);
}
