//! Producers that keep a ledger of what was answered, so that a test can hold
//! the daemon to every acknowledgement it ever gave.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use thalweg::log::{Cursor, LogReader};
use tokio::io::AsyncWriteExt;

use crate::{
    daemon::Site,
    producer::{Producer, Replies, Reply, Sender, frame},
};

/// Records in flight at most.
const WINDOW: usize = 400;

/// What one producer sent and was told.
pub struct Ledger {
    who: usize,
    next: u64,
    /// Sent, fate unknown; to be sent again.
    pub unanswered: BTreeSet<u64>,
    /// Acknowledged, with the offset.
    pub acked: BTreeMap<u64, u64>,
    /// Frames written so far, again ones included; may be shared.
    pub sent: Arc<AtomicU64>,
}

/// How a connection ended.
pub struct Ended {
    /// The last error answer, if there was one.
    pub error: Option<Reply>,
    /// Whether the server said that it was closing.
    pub closing: bool,
}

impl Ledger {
    /// Of producer number `who`.
    pub fn new(who: usize) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        Self { who, next: 0, unanswered: BTreeSet::new(), acked: BTreeMap::new(), sent }
    }

    /// The id of record `n`: nobody else's.
    pub fn id(&self, n: u64) -> String {
        format!("p{}-{n}", self.who)
    }

    fn record(&self, n: u64) -> Value {
        let text =
            format!("producer{} wrote line{n} {}", self.who, "and so on ".repeat(10 + n as usize % 20));
        json!({"id": self.id(n), "session": format!("s{}", n % 7), "text": text})
    }

    /// Sends what has no answer yet, then `more` new records, on one
    /// connection, until everything is answered or the connection breaks.
    pub async fn produce(&mut self, address: &str, more: u64) -> Ended {
        let mut queue: VecDeque<u64> = self.unanswered.iter().copied().collect();
        queue.extend(self.next..self.next + more);
        let frames: HashMap<u64, Vec<u8>> = queue.iter().map(|n| (*n, frame(&self.record(*n)))).collect();
        let mut ended = Ended { error: None, closing: false };
        // The daemon may have been killed before it accepted us.
        let Ok(Producer { sender, mut replies }) = Producer::try_tcp(address).await else { return ended };
        let (in_flight, over) = (RefCell::new(VecDeque::new()), Cell::new(false));
        let mut sent_to = self.next;
        let sending = send(sender, queue, &frames, (&in_flight, &over), &mut sent_to, &self.sent);
        let receiving = receive(&mut replies, &in_flight, &over, &mut self.acked, &mut ended);
        tokio::join!(sending, receiving);
        self.unanswered.extend(self.next..sent_to);
        self.next = sent_to;
        let acked = &self.acked;
        self.unanswered.retain(|n| !acked.contains_key(n));
        ended
    }
}

async fn send(
    mut sender: Sender,
    mut queue: VecDeque<u64>,
    frames: &HashMap<u64, Vec<u8>>,
    (in_flight, over): (&RefCell<VecDeque<u64>>, &Cell<bool>),
    sent_to: &mut u64,
    sent: &AtomicU64,
) {
    while let Some(n) = queue.pop_front() {
        while in_flight.borrow().len() >= WINDOW && !over.get() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if over.get() {
            return;
        }
        // Before it is written: from here on its fate is unknown.
        in_flight.borrow_mut().push_back(n);
        *sent_to = (*sent_to).max(n + 1);
        if sender.write_all(&frames[&n]).await.is_err() {
            return;
        }
        sent.fetch_add(1, Ordering::Relaxed);
    }
    let _ = sender.shutdown().await;
}

async fn receive(
    replies: &mut Replies,
    in_flight: &RefCell<VecDeque<u64>>,
    over: &Cell<bool>,
    acked: &mut BTreeMap<u64, u64>,
    ended: &mut Ended,
) {
    while let Ok(Some(reply)) = replies.next().await {
        match reply.kind.as_str() {
            "ack" => {
                for offset in reply.offset..reply.offset + reply.count {
                    let n = in_flight.borrow_mut().pop_front().expect("more acks than frames");
                    acked.insert(n, offset);
                }
            }
            "error" => {
                in_flight.borrow_mut().pop_front();
                ended.error = Some(reply);
            }
            "closing" => {
                ended.closing = true;
                over.set(true);
            }
            other => panic!("an answer of type {other}"),
        }
    }
    over.set(true);
}

/// Starts a producer per ledger, all at once, until each has ended.
pub async fn produce_all(ledgers: &mut [Ledger], address: &str, more: u64) -> Vec<Ended> {
    futures::future::join_all(ledgers.iter_mut().map(|ledger| ledger.produce(address, more))).await
}

/// The ids in the log, by offset.
pub fn ids_in_log(site: &Site) -> BTreeMap<u64, String> {
    let root = site.log_folder().parent().unwrap().to_owned();
    let (reader, recovery) = LogReader::open(&root, "main").unwrap();
    assert_eq!((recovery.damage.len(), recovery.quarantined.len()), (0, 0), "{recovery:?}");
    let (mut cursor, mut ids) = (Cursor::at(0), BTreeMap::new());
    loop {
        let batches = reader.read(&mut cursor, 1 << 20).unwrap();
        if batches.is_empty() {
            return ids;
        }
        for (offset, payload) in batches.iter().flat_map(|batch| batch.payloads()) {
            let record: Value = rmp_serde::from_slice(&payload).unwrap();
            ids.insert(offset, record["id"].as_str().unwrap().to_owned());
        }
    }
}

/// How often each id is in the index.
pub async fn ids_in_index(site: &Site) -> BTreeMap<String, i64> {
    let options = SqliteConnectOptions::new().filename(site.database());
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let rows = sqlx::query("SELECT record_id, count(*) FROM records GROUP BY record_id");
    let rows = rows.fetch_all(&mut database).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Holds the log and the index to every ack: each acknowledged record is in
/// the log at its offset and in the index, and none is in the index twice.
pub async fn nothing_acked_is_lost(site: &Site, ledgers: &[Ledger]) {
    let (log, index) = (ids_in_log(site), ids_in_index(site).await);
    let twice: Vec<_> = index.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "indexed more than once: {twice:?}");
    for ledger in ledgers {
        for (n, offset) in &ledger.acked {
            let id = ledger.id(*n);
            assert_eq!(log.get(offset), Some(&id), "acknowledged at offset {offset}");
            assert!(index.contains_key(&id), "{id} was acknowledged and is not indexed");
        }
    }
}
