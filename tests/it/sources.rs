//! Every way in gives the same records, once each and in order.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    daemon::{Daemon, HTTP, SOON, Site, TCP},
    producer::{Producer, acked, frame, text_frame},
};

const RECORDS: usize = 40;

/// Record number `n`, in a form that MessagePack and JSON hold alike.
fn record(n: usize) -> Value {
    json!({"id": format!("id-{n}"), "ts": 1_714_979_289_000_u64 + n as u64, "tenant": "t", "session": "s",
           "source": "there", "tier": "event", "text": format!("the same record {n}"), "n": n, "tags": ["x", null]})
}

fn records() -> Vec<Value> {
    (0..RECORDS).map(record).collect()
}

fn as_frames(records: &[Value]) -> Vec<u8> {
    records.iter().flat_map(frame).collect()
}

fn as_lines(records: &[Value]) -> Vec<u8> {
    records.iter().flat_map(|record| format!("{record}\n").into_bytes()).collect()
}

/// What the index holds, by offset, each record as it was sent.
async fn indexed(daemon: &Daemon) -> Vec<Value> {
    let hits = daemon.search(json!({"tenant": "t", "query": "the same record", "limit": 1000})).await;
    let mut hits: Vec<(u64, Value)> = hits
        .iter()
        .map(|hit| {
            let mut record = hit["attrs"].clone();
            for field in ["id", "ts", "tenant", "session", "source", "tier", "text"] {
                record[field] = hit[field].clone();
            }
            (hit["lineage"]["offset"].as_u64().unwrap(), record)
        })
        .collect();
    hits.sort_by_key(|(offset, _)| *offset);
    assert_eq!(
        hits.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(),
        (0..hits.len() as u64).collect::<Vec<_>>()
    );
    hits.into_iter().map(|(_, record)| record).collect()
}

/// Starts a daemon over `site` to look at what an earlier one indexed.
async fn left_by_an_earlier_one(site: &Site, end: usize) -> Vec<Value> {
    site.configure(TCP);
    let daemon = site.start();
    assert_eq!(daemon.derived(end as u64).await["end_offset"], end);
    let found = indexed(&daemon).await;
    daemon.stop_drained();
    found
}

#[tokio::test]
async fn frames_over_tcp_arrive_once_each_and_in_order() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.send(&as_frames(&records())).await;
    let replies = producer.finish().await;
    assert!(replies.iter().all(|r| (r.level.as_str(), r.stream.as_str()) == ("disk", "main")), "{replies:?}");
    assert_eq!(acked(&replies), (0..RECORDS as u64).map(|n| (n, n)).collect::<Vec<_>>());
    daemon.derived(RECORDS as u64).await;
    assert_eq!(indexed(&daemon).await, records());
    daemon.stop_drained();
}

#[tokio::test]
async fn frames_over_a_unix_socket_arrive_once_each_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.sock");
    let site = Site::new(&format!("[[source]]\ntype = \"unix\"\npath = {path:?}\n"));
    let daemon = site.start();
    let mut producer = Producer::unix(&daemon.sources["unix"]).await;
    producer.send(&as_frames(&records())).await;
    assert_eq!(acked(&producer.finish().await).len(), RECORDS);
    daemon.derived(RECORDS as u64).await;
    assert_eq!(indexed(&daemon).await, records());
    daemon.stop_drained();
    assert!(!path.exists(), "the socket's file is left behind");
}

#[tokio::test]
async fn a_socket_file_left_by_a_crash_does_not_keep_the_next_daemon_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.sock");
    let site = Site::new(&format!("[[source]]\ntype = \"unix\"\npath = {path:?}\n"));
    site.start().kill();
    assert!(path.exists());
    let daemon = site.start();
    assert_eq!(Producer::unix(&daemon.sources["unix"]).await.put(&record(0)).await, 0);
    daemon.stop_drained();
}

#[tokio::test]
async fn standard_input_is_read_to_its_end() {
    for (format, input) in [("jsonl", as_lines(&records())), ("frames", as_frames(&records()))] {
        let site = Site::new(&format!("[[source]]\ntype = \"stdin\"\nformat = \"{format}\"\n"));
        let exit = site.run(&["--once"], &input);
        assert_eq!(exit.code, Some(0), "{format}: {}", exit.log);
        assert_eq!(left_by_an_earlier_one(&site, RECORDS).await, records(), "{format}");
    }
}

/// A folder whose files hold ten records each, in every form there is; the
/// sealed segment is one that a daemon made.
fn folder_of_every_form(folder: &Path, records: &[Value]) {
    let [lines, packed_lines, frames, sealed] = [0, 1, 2, 3].map(|n| &records[n * 10..][..10]);
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("1.jsonl"), as_lines(lines)).unwrap();
    let packed = zstd::encode_all(&as_lines(packed_lines)[..], 3).unwrap();
    fs::write(folder.join("2.jsonl.zst"), packed).unwrap();
    fs::write(folder.join("3.frames"), as_frames(frames)).unwrap();
    fs::write(folder.join("notes.txt"), "not for the pipeline").unwrap();

    let other = folder.with_extension("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("x.frames"), as_frames(sealed)).unwrap();
    let age = "[log]\nsegment_age = \"50ms\"\n";
    let site = Site::new(&format!("{TCP}{}{age}", file_source(&other, "watch = true\n")));
    let daemon = site.start();
    while site.log_files(".seg.zst").is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.stop_drained();
    fs::copy(&site.log_files(".seg.zst")[0], folder.join("4.seg.zst")).unwrap();
}

fn file_source(path: &Path, more: &str) -> String {
    format!("[[source]]\ntype = \"file\"\npath = {path:?}\n{more}")
}

#[tokio::test]
async fn a_folder_gives_every_record_of_every_known_form_once() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("in");
    folder_of_every_form(&folder, &records());
    let site = Site::new(&file_source(&folder, ""));
    for _ in 0..2 {
        // The second run finds nothing new and appends nothing.
        let exit = site.run(&["--once"], b"");
        assert_eq!(exit.code, Some(0), "{}", exit.log);
    }
    assert_eq!(left_by_an_earlier_one(&site, RECORDS).await, records());
}

#[tokio::test]
async fn a_file_that_has_grown_is_read_again_and_known_records_are_not_indexed_twice() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("in.jsonl");
    let site = Site::new(&file_source(&file, ""));
    fs::write(&file, as_lines(&records()[..10])).unwrap();
    assert_eq!(site.run(&["--once"], b"").code, Some(0));
    fs::write(&file, as_lines(&records()[..12])).unwrap();
    assert_eq!(site.run(&["--once"], b"").code, Some(0));

    site.configure(TCP);
    let daemon = site.start();
    let status = daemon.derived(22).await;
    assert_eq!((&status["derived"]["indexed"], &status["derived"]["deduplicated"]), (&json!(12), &json!(10)));
    daemon.stop_drained();
}

#[tokio::test]
async fn files_before_one_that_cannot_be_read_are_taken_once_and_those_behind_it_wait() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, all) = (temporary.path(), records());
    let packed = zstd::encode_all(&as_lines(&all[10..20])[..], 3).unwrap();
    fs::write(folder.join("1.jsonl"), as_lines(&all[..10])).unwrap();
    fs::write(folder.join("2.jsonl.zst"), &packed[..packed.len() - 1]).unwrap();
    fs::write(folder.join("3.jsonl"), as_lines(&all[20..30])).unwrap();
    let site = Site::new(&file_source(folder, ""));
    let exit = site.run(&["--once"], b"");
    assert!(exit.code == Some(1) && exit.log.contains("2.jsonl.zst"), "{:?}: {}", exit.code, exit.log);

    fs::write(folder.join("2.jsonl.zst"), packed).unwrap();
    let exit = site.run(&["--once"], b"");
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert_eq!(left_by_an_earlier_one(&site, 30).await, all[..30]);
}

#[tokio::test]
async fn a_watched_folder_takes_files_that_come_later() {
    let temporary = tempfile::tempdir().unwrap();
    let site = Site::new(&file_source(temporary.path(), "watch = true\n"));
    let daemon = site.start();
    fs::write(temporary.path().join("1.jsonl"), as_lines(&records()[..20])).unwrap();
    daemon.derived(20).await;
    fs::write(temporary.path().join("2.jsonl"), as_lines(&records()[20..])).unwrap();
    daemon.derived(RECORDS as u64).await;
    assert_eq!(indexed(&daemon).await, records());
    daemon.stop_drained();
}

#[tokio::test]
async fn a_bad_line_of_a_file_is_kept_with_its_place_and_costs_no_other() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("in.jsonl");
    fs::write(&file, "{\"text\":\"one\"}\n{nope\n{\"text\":\"two\"}\n{\"text\":7}\n{\"text\":\"3\"}")
        .unwrap();
    let site = Site::new(&file_source(&file, ""));
    assert_eq!(site.run(&["--once"], b"").code, Some(0));
    let letters = site.store().await.dead_letters(None, 0, 10).await.unwrap();
    let kept: Vec<_> = letters
        .iter()
        .map(|l| (l.letter.code.as_str(), l.letter.frame_index, l.letter.byte_offset))
        .collect();
    assert_eq!(kept, [("not_json", Some(1), Some(15)), ("wrong_type", Some(3), Some(36))]);
    assert_eq!(letters[0].letter.payload.as_deref(), Some(&b"{nope\n"[..]));
    assert_eq!(letters[0].letter.peer.as_deref(), file.to_str());
}

#[tokio::test]
async fn http_takes_frames_json_and_lines() {
    let all = records();
    let bodies = [
        ("application/msgpack", as_frames(&all[..10])),
        ("application/x-thalweg-frames", as_frames(&all[10..20])),
        ("application/json; charset=utf-8", json!(all[20..29]).to_string().into_bytes()),
        ("application/json", all[29].to_string().into_bytes()),
        ("application/x-ndjson", as_lines(&all[30..])),
    ];
    let site = Site::new(HTTP);
    let daemon = site.start();
    let mut offset = 0;
    for (content_type, body) in bodies {
        let (status, reply) = daemon.post("/api/v1/ingest", content_type, body).await;
        assert_eq!((status, &reply["level"]), (200, &json!("disk")), "{content_type}: {reply}");
        let count = reply["acknowledged"].as_u64().unwrap();
        assert_eq!(reply["received"], count);
        assert_eq!(reply["ranges"], json!([{"offset": offset, "count": count}]));
        offset += count;
    }
    daemon.derived(RECORDS as u64).await;
    assert_eq!(indexed(&daemon).await, all);
    daemon.stop_drained();
}

#[tokio::test]
async fn a_bad_record_of_a_request_is_told_with_its_place() {
    let site = Site::new(HTTP);
    let daemon = site.start();
    // The example of the documentation.
    let body = "{\"id\":\"m-1\",\"tenant\":\"team-0\",\"text\":\"the panel hides behind the window\"}\n\
                {\"id\":\"m-2\",\"tenant\":7,\"text\":\"a tenant is a string\"}\n\
                {nope\n\
                {\"id\":\"m-3\",\"tenant\":\"team-0\",\"text\":\"hold Alt and drag it\"}\n";
    let (status, reply) = daemon.post("/api/v1/ingest", "application/x-ndjson", body).await;
    assert_eq!(status, 200);
    assert_eq!((&reply["received"], &reply["acknowledged"]), (&json!(4), &json!(2)));
    assert_eq!(reply["ranges"], json!([{"offset": 0, "count": 2}]));
    let errors: Vec<_> =
        reply["errors"].as_array().unwrap().iter().map(|e| (&e["frame"], &e["byte"], &e["code"])).collect();
    assert_eq!(
        errors,
        [(&json!(1), &json!(74), &json!("wrong_type")), (&json!(2), &json!(128), &json!("not_json"))]
    );
    daemon.stop_drained();
}

#[tokio::test]
async fn http_says_what_is_wrong_with_a_request() {
    let site = Site::new(HTTP);
    let daemon = site.start();
    let wrong = |status, code: &'static str| (status, json!(code));
    let code = |(status, reply): (u16, Value)| (status, reply["code"].clone());
    let text = "{\"text\":\"x\"}";
    assert_eq!(
        code(daemon.post("/api/v1/ingest", "text/plain", text).await),
        wrong(415, "unsupported_content_type")
    );
    assert_eq!(code(daemon.post("/api/v1/ingest", "application/json", "{").await), wrong(400, "not_json"));
    assert_eq!(code(daemon.post("/v1/nothing", "application/json", text).await), wrong(404, "not_found"));
    assert_eq!(
        code(daemon.post("/api/v1/status", "application/json", text).await),
        wrong(405, "method_not_allowed")
    );
    let big = vec![b'x'; (64 << 20) + 1];
    assert_eq!(
        code(daemon.post("/api/v1/ingest", "application/x-ndjson", big).await),
        wrong(413, "body_too_large")
    );
    let (status, reply) = daemon.post("/api/v1/ingest", "application/json", "[{\"id\":\"a\"},7]").await;
    assert_eq!(status, 422);
    let codes: Vec<&Value> = reply["errors"].as_array().unwrap().iter().map(|e| &e["code"]).collect();
    assert_eq!(codes, ["missing_text", "not_a_map"]);
    assert_eq!(daemon.status().await["end_offset"], 0);
    daemon.stop_drained();
}

#[tokio::test]
async fn a_pipeline_without_an_http_source_takes_nothing_over_http() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let (status, reply) = daemon.post("/api/v1/ingest", "application/json", "{\"text\":\"x\"}").await;
    assert_eq!((status, &reply["code"]), (404, &json!("no_http_source")));
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_producers_at_once_each_keep_their_order() {
    const EACH: u64 = 2_000;
    let site = Site::new(TCP);
    let daemon = site.start();
    let producing = (0..4).map(|who| {
        let address = daemon.tcp().to_owned();
        tokio::spawn(async move {
            let frames: Vec<_> = (0..EACH).map(|n| text_frame(&format!("producer{who} says {n}"))).collect();
            Producer::tcp(&address).await.put_all(&frames).await
        })
    });
    let mut all = Vec::new();
    for offsets in futures::future::join_all(producing).await {
        let offsets = offsets.unwrap();
        assert!(offsets.is_sorted());
        all.extend(offsets);
    }
    all.sort_unstable();
    assert_eq!(all, (0..4 * EACH).collect::<Vec<_>>());
    daemon.derived(4 * EACH).await;
    daemon.stop_drained();
}

#[tokio::test]
async fn a_client_that_stops_half_way_through_a_frame_holds_up_nobody() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let whole = text_frame("the slow one");
    let (head, rest) = whole.split_at(whole.len() / 2);
    let mut slow = Producer::tcp(daemon.tcp()).await;
    slow.send(head).await;
    let mut quick = Producer::tcp(daemon.tcp()).await;
    for n in 0..50 {
        assert_eq!(quick.put(&json!({"text": format!("quick {n}")})).await, n);
    }
    slow.send(rest).await;
    assert_eq!(slow.replies.expect().await.offset, 50);
    daemon.stop_drained();
}

#[tokio::test]
async fn a_client_that_never_reads_its_acks_holds_up_nobody_and_not_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.sock");
    let site = Site::new(&format!("{TCP}[[source]]\ntype = \"unix\"\npath = {path:?}\n"));
    let daemon = site.start();
    // A Unix socket holds few answers, so that the server soon has nowhere to
    // put the next and stops reading.
    let mut deaf = Producer::unix(&daemon.sources["unix"]).await;
    let one = text_frame("deaf");
    while timeout(Duration::from_secs(1), deaf.send(&one)).await.is_ok() {}
    let mut other = Producer::tcp(daemon.tcp()).await;
    timeout(SOON, other.put(&json!({"text": "heard"}))).await.expect("the other client is held up");
    let exit = daemon.stop();
    assert!(exit.took < Duration::from_secs(15), "the stop took {:?}", exit.took);
}
