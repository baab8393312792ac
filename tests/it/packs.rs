//! Corpus packs, as people make and use them.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thalweg::pipeline::pack::{PackError, Packer, Period};

use crate::{
    cli::{fails, json_of, pipeline},
    daemon::{Daemon, Site, TCP, eventually},
    objects::s3,
    producer::{Producer, frame},
};

const BIRDS: [&str; 3] = ["heron", "dipper", "grebe"];

/// Texts that no filter takes for noise or for each other.
fn document(n: u64) -> Value {
    let text = format!(
        "On day {n} of the survey we counted {} birds of the kind {} along the lower river bank.",
        n * 7 + 3,
        BIRDS[usize::try_from(n).unwrap() % BIRDS.len()]
    );
    json!({"id": format!("d{n}"), "tier": "doc", "tenant": "default", "text": text, "page": n})
}

async fn send(daemon: &Daemon, records: &[Value]) {
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let frames: Vec<Vec<u8>> = records.iter().map(frame).collect();
    let offsets = producer.put_all(&frames).await;
    daemon.derived(offsets.last().unwrap() + 1).await;
}

fn frames(records: &[Value]) -> Vec<u8> {
    records.iter().flat_map(frame).collect()
}

fn unpacked(object: &[u8]) -> Vec<u8> {
    let mut zstd =
        Command::new("zstd").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    zstd.stdin.take().unwrap().write_all(object).unwrap();
    let output = zstd.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn fetched(site: &Site, pack: &Value) -> Vec<u8> {
    let path = site.path("corpus.msgpack.zst");
    let (digest, to) = (pack["digest"].as_str().unwrap(), path.to_str().unwrap());
    json_of(0, &["artifacts", "fetch", &digest[..16], to, "-p", &pipeline(site)]);
    fs::read(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_holds_the_documents_as_sent_and_another_pipeline_finds_them_alike() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let documents: Vec<Value> = (0..40).map(document).collect();
    let event = json!({"tier": "event", "text": "Somebody said that the heron is back at the weir today."});
    let again = json!({"tier": "doc", "tenant": "default", "text": documents[3]["text"]});
    let refused = json!({"tier": "doc", "tenant": "default", "text": "?"});
    let mut sent = documents.clone();
    sent.splice(20..20, [event, again, refused]);
    send(&daemon, &sent).await;

    let file = pipeline(&site);
    let plan = json_of(0, &["pack", "--dry-run", "-p", &file]);
    let listed = || {
        let rows = json_of(0, &["artifacts", "list", "-p", &file]);
        rows.as_array().unwrap().iter().filter(|row| row["kind"] == "pack").cloned().collect::<Vec<_>>()
    };
    assert!(listed().is_empty(), "a dry run writes nothing");
    let made = json_of(0, &["pack", "-p", &file]);
    let pack = &made["pack"];
    assert_eq!(pack, &plan["pack"], "a dry run tells the truth");
    let (meta, digest) = (&pack["meta"], pack["digest"].as_str().unwrap());
    assert_eq!((&meta["documents"], &meta["tenants"]), (&json!(40), &json!(1)));
    assert_eq!((&meta["first_offset"], &meta["next_offset"]), (&json!(0), &json!(43)));
    let name = pack["name"].as_str().unwrap();
    assert!(
        name.starts_with("corpus-2") && name.ends_with(&format!("Z-40docs-{}.msgpack.zst", &digest[..12]))
    );

    let object = fetched(&site, pack);
    assert!(unpacked(&object) == frames(&documents), "{meta}");
    let hex = |bytes: &[u8]| thalweg::artifact::hex(&Sha256::digest(bytes));
    assert_eq!(
        (hex(&object), hex(&frames(&documents))),
        (digest.into(), meta["content_digest"].as_str().unwrap().into())
    );
    let row = &listed()[0];
    assert_eq!((&row["name"], &row["meta"], &row["bytes"]), (&pack["name"], meta, &pack["bytes"]));
    assert_eq!(row["location"], format!("pack/sha256/{}/{digest}.msgpack.zst", &digest[..2]));
    assert!(!meta.to_string().contains("default"), "no tenant is named in the registry");

    let other = Site::new(TCP);
    let second = other.start();
    let corpus = site.path("corpus.msgpack.zst");
    let report = json_of(0, &["send", "--to", second.tcp(), corpus.to_str().unwrap()]);
    assert_eq!(report["acknowledged"], 40);
    second.derived(40).await;
    for bird in BIRDS {
        let found = async |daemon: &Daemon| {
            let request = json!({"tenant": "default", "query": bird, "tiers": ["doc"], "limit": 100});
            let hits = daemon.search(request).await;
            let mut texts: Vec<String> =
                hits.iter().map(|hit| hit["text"].as_str().unwrap().into()).collect();
            texts.sort();
            texts
        };
        let texts = found(&second).await;
        assert!(texts.len() >= 13 && texts == found(&daemon).await);
    }
    second.stop_drained();
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_made_one_after_the_other_leave_neither_gap_nor_overlap() {
    let site = Site::new(TCP);
    let file = pipeline(&site);
    fails(1, &["pack", "-p", &file], "never ran");
    let daemon = site.start();
    let pack = |more: &[&str]| json_of(0, &[&["pack", "-p", &file], more].concat());
    let mut whole = Vec::new();
    for round in 0..3 {
        let documents: Vec<Value> = (round * 10..round * 10 + 10).map(document).collect();
        send(&daemon, &documents).await;
        let made = pack(&[]);
        assert_eq!(made["offsets"], json!({"start": round * 10, "end": round * 10 + 10}));
        whole.extend(unpacked(&fetched(&site, &made["pack"])));
        let none = pack(&[]);
        assert!(none["pack"].is_null() && none["offsets"]["start"] == none["offsets"]["end"], "{none}");
        // One of a time that was asked for is made as often as it is asked
        // for, and registered once.
        let asked = pack(&["--since", "1h"]);
        assert_eq!(asked["pack"]["meta"]["documents"], (round + 1) * 10);
        assert_eq!(pack(&["--since", "1h"])["pack"]["known"], true);
        assert!(pack(&["--until", "1h"])["pack"].is_null());
    }
    assert!(whole == frames(&(0..30).map(document).collect::<Vec<_>>()));
    fails(1, &["pack", "-p", &file, "--since", "1h", "--until", "2h"], "before it begins");
    fails(2, &["pack", "-p", &file, "--since", "yesterday"], "neither a time");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_could_not_be_put_is_put_by_the_next_run() {
    let site = Site::new(TCP);
    let file = pipeline(&site);
    let daemon = site.start();
    send(&daemon, &(0..5).map(document).collect::<Vec<_>>()).await;
    // As if the object store were away: its folder for packs is a file.
    let place = site.artifacts().join("pack");
    fs::write(&place, "").unwrap();
    fails(1, &["pack", "-p", &file], "pack/sha256");
    fs::remove_file(&place).unwrap();
    send(&daemon, &(5..8).map(document).collect::<Vec<_>>()).await;
    let made = json_of(0, &["pack", "-p", &file]);
    assert!(made["finished"].as_str().unwrap().contains("-5docs-"), "{made}");
    assert_eq!(made["offsets"], json!({"start": 5, "end": 8}));
    let folder = site.path("data/packs");
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["LOCK"]);
    let checked = json_of(0, &["artifacts", "check", "-p", &file]);
    assert_eq!(checked["rows"], checked["objects"], "{checked}");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_while_it_is_packed_is_not_taken_for_lost() {
    let site = Site::new(&format!("{TCP}[log]\nsegment_age = \"1s\"\n"));
    let daemon = site.start();
    let sealed = async |segments: usize| {
        eventually("a segment is sealed", async || site.log_files(".seg.zst").len() == segments).await;
    };
    // The file of a log's first segment is not used again.
    send(&daemon, &(0..20).map(document).collect::<Vec<_>>()).await;
    sealed(1).await;
    send(&daemon, &(20..40).map(document).collect::<Vec<_>>()).await;
    let settings = thalweg::config::load(&site.pipeline(), &|_| None).unwrap();
    let store = site.store().await;
    let artifacts = thalweg::workbench::open_artifacts(&settings, &store).unwrap();
    let packer = || {
        let root = thalweg::workbench::log_root(&settings);
        let (log, _) = thalweg::log::LogReader::open(&root, "main").unwrap();
        let cpu = thalweg::dataflow::Cpu::background().unwrap();
        Packer::new(&settings, log, store.clone(), artifacts.clone(), cpu)
    };
    let before = packer();
    sealed(2).await;
    eventually("its file is kept", async || site.log_files(".log").len() == 1).await;
    for entry in fs::read_dir(site.log_folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("spare.") {
            // As the next segment does in time.
            let bytes = fs::metadata(&path).unwrap().len();
            fs::write(&path, vec![0; usize::try_from(bytes).unwrap()]).unwrap();
        }
    }
    let moved = before.plan(Period::default(), |_, _| ()).await;
    assert!(matches!(moved, Err(PackError::Moved { .. })), "{moved:?}");
    let found = packer().plan(Period::default(), |_, _| ()).await.unwrap().pack.unwrap();
    assert_eq!((found.meta.documents, found.meta.lost), (40, 0));
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_lies_in_s3_and_can_be_had_back() {
    let Some(s3) = s3() else { return };
    let site = s3.site(&s3.endpoint, "");
    let daemon = site.start();
    let documents: Vec<Value> = (0..12).map(document).collect();
    send(&daemon, &documents).await;
    let made = json_of(0, &["pack", "-p", &pipeline(&site)]);
    assert!(unpacked(&fetched(&site, &made["pack"])) == frames(&documents));
    assert!(!site.artifacts().exists(), "nothing is kept in the local folder");
    daemon.stop_drained();
}
