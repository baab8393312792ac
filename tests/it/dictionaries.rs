//! Dictionaries: trained beside a daemon, adopted if they win, needed ever
//! after.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use thalweg::{dictionary::Library, segment::Reader};

use crate::{
    daemon::{Daemon, Site, TCP, eventually},
    producer::{Producer, text_frame},
};

/// Segments of about a megabyte, the smallest there are, in blocks in which a
/// dictionary helps.
const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n\
    [segment]\nblock_bytes = \"64KiB\"\n";

/// SplitMix64.
fn noise(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A sentence of 70 bytes that is one of 300.
fn sentence(n: u64) -> String {
    (0..4).map(|word| format!("{:016x} ", noise(n % 300 * 4 + word))).collect::<String>() + "\n"
}

/// Texts of 2 KB made of the same 300 sentences.
fn repetitive(from: u64, to: u64) -> Vec<Vec<u8>> {
    let text = |n: u64| (0..30).map(|k| sentence(noise(n * 30 + k))).collect::<String>();
    (from..to).map(|n| text_frame(&text(n))).collect()
}

/// Texts of 2 KB that no two records share anything of.
fn unlike(from: u64, to: u64) -> Vec<Vec<u8>> {
    let text = |n: u64| (0..120).map(|k| format!("{:016x} ", noise(n * 120 + k))).collect::<String>();
    (from..to).map(|n| text_frame(&text(n))).collect()
}

/// Waits until at least so many segments are sealed, and none is closed that
/// is not.
async fn sealed(site: &Site, daemon: &Daemon, segments: u64) {
    eventually("segments are sealed", async || {
        let sealed = daemon.status().await["segments"]["sealed"].as_u64().unwrap();
        sealed >= segments && site.log_files(".log").len() == 1
    })
    .await;
}

/// Runs `thalweg` on the site's pipeline: its exit code, and its JSON or what
/// it said on standard error.
fn thalweg(site: &Site, args: &[&str]) -> (Option<i32>, Result<Value, String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.args(args).args(["--json", "-p"]).arg(site.pipeline()).stdin(Stdio::null());
    let output = command.env_remove("THALWEG_LOG").output().unwrap();
    let shown = serde_json::from_slice(&output.stdout);
    (output.status.code(), shown.map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn done(site: &Site, args: &[&str]) -> Value {
    match thalweg(site, args) {
        (Some(0), Ok(shown)) => shown,
        other => panic!("{args:?}: {other:?}"),
    }
}

/// The digest in hex of each sealed segment's dictionary, in log order.
fn dictionaries_of_segments(site: &Site) -> Vec<Option<String>> {
    let digest = |path| Reader::open(path).unwrap().info().dictionary.map(|dictionary| dictionary.hex());
    site.log_files(".seg.zst").iter().map(|path| digest(path)).collect()
}

#[tokio::test]
async fn an_adopted_dictionary_is_used_by_the_daemon_and_survives_restarts() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let sent = repetitive(0, 3_300);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put_all(&sent[..1_700]).await;
    sealed(&site, &daemon, 2).await;
    assert_eq!(thalweg(&site, &["dictionaries", "list"]).1.unwrap(), json!([]));

    // A dry run leaves nothing.
    let sizes = ["--sizes", "16KiB,64KiB"];
    let tried = done(&site, &[&["dictionaries", "train", "--dry-run"], &sizes[..]].concat());
    assert_eq!(tried["verdict"], "adopted", "{tried}");
    assert_eq!(done(&site, &["dictionaries", "list"]), json!([]));

    // Beside the daemon; the next segment has it.
    let trial = done(&site, &[&["dictionaries", "train"], &sizes[..]].concat());
    assert_eq!(trial["best"], tried["best"], "the same segments and seed give the same dictionary");
    let digest = trial["best"]["digest"].as_str().unwrap().to_owned();
    let before = dictionaries_of_segments(&site).len();
    producer.put_all(&sent[1_700..2_500]).await;
    sealed(&site, &daemon, before as u64 + 1).await;
    daemon.derived(2_500).await;
    daemon.stop_drained();
    let daemon = site.start();
    Producer::tcp(daemon.tcp()).await.put_all(&sent[2_500..]).await;
    sealed(&site, &daemon, before as u64 + 2).await;
    daemon.derived(3_300).await;
    daemon.stop_drained();
    let named = dictionaries_of_segments(&site);
    assert!(named[..before].iter().all(Option::is_none), "{named:?}");
    assert!(named[before + 1..].iter().all(|name| name.as_deref() == Some(&digest)), "{named:?}");

    // Everyone reads it.
    let library = Library::of_segments(&site.log_folder());
    let dictionary = library.folder().join(format!("{digest}.dict"));
    for path in site.log_files(".seg.zst") {
        let info = Reader::open(&path).unwrap().info().clone();
        let mut zstd = Command::new("zstd");
        if info.dictionary.is_some() {
            zstd.arg("-D").arg(&dictionary);
        }
        let plain = zstd.arg("-dc").arg(&path).stderr(Stdio::inherit()).output().unwrap();
        let sent = sent[info.base_offset as usize..info.end_offset as usize].concat();
        assert!(plain.status.success() && plain.stdout == sent, "{}", path.display());
    }
    done(&site, &["segments", "verify"]);
    let replayed = done(&site, &["replay", "--from", "1900"]);
    assert_eq!(replayed["report"]["mismatched"], 0, "{replayed}");

    // It is an artifact, and says which segments need it.
    let artifacts = done(&site, &["artifacts", "list"]);
    let kinds: Vec<_> =
        artifacts.as_array().unwrap().iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "dictionary").count(), 1, "{kinds:?}");
    let shown = done(&site, &["dictionaries", "show", &digest[..8]]);
    let needed = named.iter().flatten().count();
    assert_eq!(shown["needed_by"].as_array().unwrap().len(), needed, "{shown}");
    assert_eq!((&shown["adopted"], &shown["beside_log"]), (&json!(true), &json!(true)));

    // Without it nothing is lost: the error names it, and it can come back.
    fs::remove_file(&dictionary).unwrap();
    let (code, said) = thalweg(&site, &["segments", "verify"]);
    let said = said.unwrap_err();
    assert!(code == Some(1) && said.contains(&digest) && said.contains("dictionaries restore"), "{said}");
    assert_eq!(done(&site, &["dictionaries", "restore"]), json!([digest]));
    done(&site, &["segments", "verify"]);
    fs::remove_file(&dictionary).unwrap();
    site.start().stop_drained();
    assert!(dictionary.exists(), "the daemon puts it back too");
}

#[tokio::test]
async fn a_dictionary_that_does_not_win_is_reported_and_not_adopted() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let (code, said) = thalweg(&site, &["dictionaries", "train"]);
    assert!(code == Some(1) && said.unwrap_err().contains("segments seal"), "there is nothing to train on");
    producer.put_all(&unlike(0, 1_700)).await;
    sealed(&site, &daemon, 2).await;
    let trial = done(&site, &["dictionaries", "train", "--sizes", "16KiB"]);
    assert_eq!((&trial["verdict"], &trial["against"]), (&json!("rejected"), &json!("no_dictionary")));
    let before = dictionaries_of_segments(&site).len() as u64;
    producer.put_all(&unlike(1_700, 2_300)).await;
    sealed(&site, &daemon, before + 1).await;
    daemon.stop_drained();
    assert!(dictionaries_of_segments(&site).iter().all(Option::is_none));
    let artifacts = done(&site, &["artifacts", "list"]);
    let kind = |kind: &str| artifacts.as_array().unwrap().iter().filter(|row| row["kind"] == kind).count();
    assert_eq!((kind("dictionary"), kind("report")), (0, 1));
}

#[tokio::test]
async fn a_dictionary_is_trained_by_itself_where_that_is_set_and_not_used_where_it_is_off() {
    let segment = "train_after_segments = 2\n";
    let site = Site::new(&format!("{TCP}{SMALL}{segment}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put_all(&repetitive(0, 1_700)).await;
    let library = Library::of_segments(&site.log_folder());
    eventually("a dictionary is adopted", async || library.adopted_digest().unwrap().is_some()).await;
    daemon.stop_drained();
    let before = dictionaries_of_segments(&site).len() as u64;

    site.configure(&format!("{TCP}{SMALL}dictionary = \"off\"\n"));
    let daemon = site.start();
    Producer::tcp(daemon.tcp()).await.put_all(&repetitive(1_700, 2_300)).await;
    sealed(&site, &daemon, before + 1).await;
    daemon.stop_drained();
    assert_eq!(dictionaries_of_segments(&site).last(), Some(&None));
}
