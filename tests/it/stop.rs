//! Stopping: in order, within the deadline, and with an account of what is
//! left.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    daemon::{Daemon, SOON, Site, TCP, eventually},
    ledger::{Ledger, ids_in_index, nothing_acked_is_lost, produce_all},
    producer::{Producer, frame},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_mid_stream_answers_every_frame_or_says_that_it_is_closing() {
    let site = Site::new(TCP);
    let mut daemon = site.start();
    let address = daemon.tcp().to_owned();
    let mut ledgers: Vec<Ledger> = (0..3).map(Ledger::new).collect();
    let stopping = async {
        eventually("producers are at work", async || {
            daemon.status().await["end_offset"].as_u64().unwrap() > 3_000
        })
        .await;
        daemon.signal(libc::SIGTERM);
        tokio::task::spawn_blocking(move || daemon.wait(SOON)).await.unwrap()
    };
    let (exit, ended) = tokio::join!(stopping, produce_all(&mut ledgers, &address, 50_000));
    assert!(matches!(exit.code, Some(0 | 3)), "{:?}: {}", exit.code, exit.log);
    assert!(exit.took < Duration::from_secs(25), "the stop took {:?}", exit.took);
    assert!(ledgers.iter().all(|ledger| !ledger.acked.is_empty()), "the stop came before the first ack");
    for (ended, ledger) in ended.iter().zip(&ledgers) {
        assert!(ended.closing, "{} frames have no answer and no reason", ledger.unanswered.len());
        assert_eq!(ended.error, None);
    }
    assert_eq!(site.log_files(".seg.zst").len(), 0, "a stop seals nothing");

    let daemon = site.start();
    produce_all(&mut ledgers, daemon.tcp(), 0).await;
    let acked: usize = ledgers.iter().map(|ledger| ledger.acked.len()).sum();
    daemon.derived(acked as u64).await;
    daemon.stop_drained();
    nothing_acked_is_lost(&site, &ledgers).await;
    assert_eq!(ids_in_index(&site).await.len(), acked);
}

/// Many small chunks, which take the index longer than the log.
const SLOW: &str = "[derive.chunk]\nmax_tokens = 12\nmin_tokens = 8\n";
const DOCUMENTS: u64 = 1_000;

/// Sends documents that take longer to derive than a stop may last.
async fn send_a_backlog(daemon: &Daemon) {
    let document = |n: u64| {
        let text: String = (0..1_200).map(|word| format!("d{n}w{word} ")).collect();
        frame(&json!({"id": n, "tier": "doc", "text": text}))
    };
    let frames: Vec<_> = (0..DOCUMENTS).map(document).collect();
    Producer::tcp(daemon.tcp()).await.put_all(&frames).await;
    let in_flight = daemon.status().await["in_flight"].as_u64().unwrap();
    assert!(in_flight > DOCUMENTS / 2, "only {in_flight} left: the backlog is too small for this machine");
}

#[tokio::test]
async fn a_stop_at_the_deadline_names_the_rest_which_is_derived_after_a_restart() {
    let site = Site::new(&format!("{TCP}{SLOW}[shutdown]\ndeadline = \"1s\"\n"));
    let daemon = site.start();
    send_a_backlog(&daemon).await;
    let exit = daemon.stop();
    assert_eq!(exit.code, Some(3), "{}", exit.log);
    assert!(exit.took < Duration::from_secs(4), "the stop took {:?}", exit.took);
    assert!(exit.log.contains("records in the log are not derived yet"), "{}", exit.log);
    let daemon = site.start();
    let status = daemon.derived(DOCUMENTS).await;
    assert_eq!(
        (&status["derived"]["indexed"], &status["end_offset"]),
        (&json!(DOCUMENTS), &json!(DOCUMENTS))
    );
    daemon.stop_drained();
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let site = Site::new(&format!("{TCP}{SLOW}[shutdown]\ndeadline = \"60s\"\n"));
    let mut daemon = site.start();
    send_a_backlog(&daemon).await;
    daemon.signal(libc::SIGTERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(daemon.is_alive());
    daemon.signal(libc::SIGTERM);
    let exit = daemon.wait(Duration::from_secs(3));
    assert_eq!(exit.code, Some(3));
    assert!(exit.log.contains("second signal"), "{}", exit.log);
}

#[tokio::test]
async fn standard_input_that_stays_open_does_not_hold_up_a_stop() {
    let site = Site::new("[[source]]\ntype = \"stdin\"\n");
    let mut daemon = site.start();
    std::io::Write::write_all(daemon.stdin.as_mut().unwrap(), b"{\"text\":\"and then nothing\"}\n").unwrap();
    let started = Instant::now();
    daemon.signal(libc::SIGTERM);
    let exit = daemon.wait(SOON);
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(started.elapsed() < Duration::from_secs(5), "the stop took {:?}", exit.took);
}
