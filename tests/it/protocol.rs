//! The wire protocol, as `docs/protocol.md` and the frame fixtures have it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use thalweg::record::{Defaults, RecordRef};

use crate::{
    daemon::{HTTP, Site, TCP, fixture},
    producer::{Producer, Reply, framed, text_frame},
    tools,
};

#[derive(Deserialize)]
struct BadCase {
    name: String,
    hex: String,
    #[serde(default)]
    then_zero_bytes: usize,
    code: String,
    fatal: bool,
}

#[derive(Deserialize)]
struct GoodCase {
    name: String,
    hex: String,
    expect: Map<String, Value>,
}

fn cases<T: for<'de> Deserialize<'de>>(file: &str) -> Vec<T> {
    serde_json::from_slice(&fs::read(fixture(file)).unwrap()).unwrap()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Whether a later frame on the same connection can be seen by the server.
fn swallows_the_rest(case: &BadCase) -> bool {
    case.fatal || (case.code == "oversized" && case.then_zero_bytes == 0)
}

#[tokio::test]
async fn each_bad_frame_gets_its_code_and_costs_no_frame_around_it() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let cases: Vec<BadCase> = cases("bad_frames.json");
    let (mut expected, mut good) = (BTreeMap::<&str, u64>::new(), Vec::new());
    for (number, case) in cases.iter().enumerate() {
        let name = &case.name;
        let (before, after) = (format!("before case{number}"), format!("after case{number}"));
        let mut bytes = text_frame(&before);
        let bad_at = bytes.len() as u64;
        bytes.extend(unhex(&case.hex));
        bytes.resize(bytes.len() + case.then_zero_bytes, 0);
        let alone = swallows_the_rest(case);
        if !alone {
            bytes.extend(text_frame(&after));
        }
        let mut producer = Producer::tcp(daemon.tcp()).await;
        producer.send(&bytes).await;
        let replies = producer.finish().await;
        let kinds: Vec<&str> = replies.iter().map(|reply| reply.kind.as_str()).collect();
        let wanted: &[&str] = if alone { &["ack", "error"] } else { &["ack", "error", "ack"] };
        assert_eq!(kinds, wanted, "{name}: {replies:?}");
        let error = &replies[1];
        assert_eq!((error.code.as_str(), error.fatal), (case.code.as_str(), case.fatal), "{name}: {error:?}");
        assert_eq!((error.frame, error.byte), (1, bad_at), "{name}");
        assert!(!error.message.is_empty(), "{name}");
        *expected.entry(&case.code).or_default() += 1;
        good.push((replies[0].offset, before));
        good.extend(replies.get(2).map(|ack| (ack.offset, after)));
    }

    let status = daemon.derived(good.len() as u64).await;
    assert_eq!(status["derived"]["refused"], json!(expected));
    let store = site.store().await;
    let letters = store.dead_letters(None, 0, 1_000).await.unwrap();
    let codes: Vec<&str> = letters.iter().map(|letter| letter.letter.code.as_str()).collect();
    assert_eq!(codes, cases.iter().map(|case| case.code.as_str()).collect::<Vec<_>>());
    for (letter, case) in letters.iter().zip(&cases).filter(|(_, case)| !swallows_the_rest(case)) {
        let sent = unhex(&case.hex);
        let kept = letter.letter.payload.as_deref().unwrap();
        match case.code.as_str() {
            "oversized" => {
                assert!(kept.iter().all(|byte| *byte == 0) && kept.len() <= 4 << 10, "{}", case.name)
            }
            _ => assert_eq!(kept, &sent[4..], "{}", case.name),
        }
    }
    for (offset, text) in good {
        assert!(daemon.find(&text).await.first() == Some(&offset), "`{text}` is not found at {offset}");
    }
    daemon.stop_drained();
}

#[tokio::test]
async fn each_frame_at_the_edge_of_what_is_allowed_is_acknowledged() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let frames: Vec<Vec<u8>> = cases::<GoodCase>("good_frames.json").iter().map(|c| unhex(&c.hex)).collect();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let offsets = producer.put_all(&frames).await;
    assert_eq!(offsets, (0..frames.len() as u64).collect::<Vec<_>>());
    daemon.stop_drained();
}

#[test]
fn frames_at_the_edge_of_what_is_allowed_decode_to_what_they_say() {
    for case in cases::<GoodCase>("good_frames.json") {
        let bytes = unhex(&case.hex);
        let record = RecordRef::parse(&bytes[4..]).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let record = record.to_record(&Defaults::default(), 0);
        let decoded = json!({
            "id": record.id,
            "ts": record.ts_ms,
            "tenant": record.tenant,
            "session": record.session,
            "source": record.source,
            "tier": record.tier,
            "text": record.text,
            "attrs": record.attrs,
        });
        for (field, wanted) in case.expect {
            assert_eq!(decoded[&field], wanted, "{}: {field}", case.name);
        }
    }
}

#[tokio::test]
async fn the_client_of_the_documentation_sends_a_whole_fixture() {
    let python = tools::python();
    let site = Site::new(TCP);
    let daemon = site.start();
    let (host, port) = daemon.tcp().rsplit_once(':').unwrap();
    let unpacked = site.path("irc.jsonl");
    let packed = fs::File::open(fixture("irc_ubuntu.jsonl.zst")).unwrap();
    fs::write(&unpacked, zstd::decode_all(packed).unwrap()).unwrap();
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/client.py");
    let sent = |producer: &[&str]| {
        let input = Stdio::from(fs::File::open(&unpacked).unwrap());
        let done = Command::new(&python).arg(&client).args([host, port]).args(producer).stdin(input).output();
        let done = done.unwrap();
        let (said, complained) =
            (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{said}{complained}");
        assert_eq!(said.trim(), "acked 8000 errors 0");
    };
    sent(&[]);
    assert_eq!(daemon.status().await["end_offset"], 8_000);
    sent(&["irc"]);
    sent(&["irc"]);
    assert_eq!(daemon.derived(16_000).await["end_offset"], 16_000, "by a producer with a name only once");
    daemon.stop_drained();
}

/// The hex examples of `docs/protocol.md`, each with the JSON of the line
/// that introduces it, if that has one.
fn examples() -> Vec<(Vec<u8>, Option<Value>)> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md")).unwrap();
    let mut examples = Vec::new();
    let mut parts = page.split("```hex\n");
    let mut before = parts.next().unwrap();
    for part in parts {
        let (block, after) = part.split_once("```").unwrap();
        let digits: String = block.lines().map(digits).collect();
        let introduction = before.trim_end().lines().last().unwrap();
        let told = introduction.find('{').map(|from| {
            let to = introduction.rfind('}').unwrap();
            serde_json::from_str(&introduction[from..=to]).unwrap()
        });
        examples.push((unhex(&digits), told));
        before = after;
    }
    examples
}

/// The hex digits of a line; two spaces or more part them from the comment.
fn digits(line: &str) -> String {
    line.trim().split("  ").next().unwrap_or_default().replace(' ', "")
}

#[tokio::test]
async fn the_examples_of_the_documentation_are_what_they_say() {
    let examples = examples();
    assert_eq!(examples.len(), 5, "three frames and two answers");
    for (bytes, told) in &examples {
        assert_eq!(bytes[..4], u32::try_from(bytes.len() - 4).unwrap().to_be_bytes());
        let Some(told) = told else { continue };
        assert_eq!(&rmp_serde::from_slice::<Value>(&bytes[4..]).unwrap(), told);
    }

    let site = Site::new(TCP);
    let daemon = site.start();
    // The page's connection is to a stream that holds 41 frames already.
    let earlier: Vec<Vec<u8>> = (0..41).map(|n| text_frame(&format!("earlier {n}"))).collect();
    Producer::tcp(daemon.tcp()).await.put_all(&earlier).await;
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let frames: Vec<u8> = examples[..3].iter().flat_map(|(bytes, _)| bytes.clone()).collect();
    producer.send(&frames).await;
    let replies = producer.finish().await;
    let told = |n: usize| rmp_serde::from_slice::<Reply>(&examples[n].0[4..]).unwrap();
    let second = Reply { offset: 42, ..told(3) };
    // Wordings may change; the rest may not.
    let without_message = |reply: &Reply| Reply { message: String::new(), ..reply.clone() };
    let replies: Vec<Reply> = replies.iter().map(without_message).collect();
    assert_eq!(replies, [told(3), without_message(&told(4)), second]);
    daemon.stop_drained();
}

#[tokio::test]
async fn another_cap_on_frames_holds_to_the_byte() {
    let site = Site::new(&format!("{TCP}[log]\nmax_frame_bytes = \"100B\"\nsegment_bytes = \"2MiB\"\n"));
    let daemon = site.start();
    let text = |bytes: usize| framed(&rmp_serde::to_vec_named(&json!({"text": "x".repeat(bytes)})).unwrap());
    // A map of one pair, the key and a string's two-byte head take 8 bytes.
    let (most, over) = (text(92), text(93));
    assert_eq!(most.len(), 4 + 100);
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.send(&[over, most].concat()).await;
    let replies = producer.finish().await;
    assert_eq!((replies[0].code.as_str(), replies[1].kind.as_str()), ("oversized", "ack"));
    daemon.stop_drained();
}

#[tokio::test]
async fn each_answer_says_how_safe_the_frames_are_and_what_is_in_memory_outlives_a_kill() {
    let site = Site::new(&format!("{TCP}{HTTP}"));
    for (ack, first) in [("disk", 0), ("memory", 2)] {
        site.configure(&format!("{TCP}{HTTP}[log]\nack = \"{ack}\"\n"));
        let daemon = site.start();
        let mut producer = Producer::tcp(daemon.tcp()).await;
        producer.send(&text_frame("one over tcp")).await;
        let reply = producer.finish().await.remove(0);
        assert_eq!((reply.level.as_str(), reply.offset), (ack, first));
        let (_, reply) =
            daemon.post("/api/v1/ingest", "application/json", "{\"text\":\"one over http\"}").await;
        assert_eq!((&reply["level"], &reply["ranges"][0]["offset"]), (&ack.into(), &(first + 1).into()));
        daemon.kill();
    }
    assert_eq!(site.start().status().await["end_offset"], 4);
}
