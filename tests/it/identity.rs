//! Nobody comes in who may not, and whoever does speaks for their own tenant
//! only.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, SOON, Site, TCP},
    producer::{Producer, Reply, frame},
    tools,
};

/// With it, whoever comes needs a key.
pub const KEYS: &str = "[auth]\nkeys = true\n";

/// Runs `thalweg` on the site's pipeline: exit code, standard output and error.
pub fn thalweg(site: &Site, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.args(args).arg("-p").arg(site.pipeline()).stdin(Stdio::null());
    let output = command.env_remove("THALWEG_LOG").env_remove("THALWEG_KEY").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn fine(site: &Site, args: &[&str]) -> Value {
    let (code, shown, error) = thalweg(site, &[args, &["--json"]].concat());
    assert_eq!(code, Some(0), "{args:?}: {error}");
    serde_json::from_str(&shown).unwrap()
}

/// Makes a key: its id and its text.
pub fn key(site: &Site, more: &[&str]) -> (String, String) {
    let made = fine(site, &[&["keys", "create", "--name", "test"], more].concat());
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

fn hello(key: &str) -> Vec<u8> {
    frame(&json!({"thalweg": 1, "key": key}))
}

/// Sends `bytes` on a connection of its own; every answer.
async fn said(daemon: &Daemon, bytes: &[u8]) -> Vec<Reply> {
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.send(bytes).await;
    producer.finish().await
}

/// The code that ends a connection on which `bytes` were sent, before
/// anything was acknowledged.
async fn refused(daemon: &Daemon, bytes: &[u8]) -> String {
    let replies = said(daemon, bytes).await;
    let [only] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((only.kind.as_str(), only.fatal), ("error", true), "{only:?}");
    only.code.clone()
}

/// Whether a connection with `key` is let in, else why not.
async fn comes_in(daemon: &Daemon, key: &str) -> Result<(), String> {
    let text = frame(&json!({"text": format!("brought by {:.8}", key)}));
    let replies = said(daemon, &[hello(key), text].concat()).await;
    match replies.iter().map(|reply| reply.kind.as_str()).collect::<Vec<_>>()[..] {
        ["welcome", "ack"] => Ok(()),
        ["error"] => Err(replies[0].code.clone()),
        _ => panic!("{replies:?}"),
    }
}

/// Tenant and text of the first `count` records of the stream.
async fn stored(site: &Site, count: u64) -> Vec<(String, String)> {
    let store = site.store().await;
    let began = Instant::now();
    while store.counts("it", "main").await.unwrap().is_none_or(|at| at.next_offset < count) {
        assert!(began.elapsed() < SOON, "{count} records were not derived");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let space = store.live_space().await.unwrap().unwrap();
    let records = store.stored("main", 0, count, space).await.unwrap();
    records.into_iter().map(|record| (record.tenant, record.chunks[0].text.clone())).collect()
}

#[tokio::test]
async fn without_a_key_that_may_send_no_frame_is_taken() {
    let site = Site::new(&format!("{TCP}{KEYS}"));
    let (id, good) = key(&site, &["--role", "ingester"]);
    let (_, viewer) = key(&site, &["--role", "viewer", "--role", "operator"]);
    let daemon = site.start();
    let text = frame(&json!({"text": "let me in"}));
    let after = |first: Vec<u8>| [first, text.clone()].concat();
    assert_eq!(refused(&daemon, &text).await, "missing_credentials");
    let named = frame(&json!({"thalweg": 1, "producer": "p"}));
    assert_eq!(refused(&daemon, &after(named)).await, "missing_credentials");
    assert_eq!(refused(&daemon, &after(hello(""))).await, "missing_credentials");
    assert_eq!(refused(&daemon, b"GET / HTTP/1.1\r\n\r\n").await, "missing_credentials");
    // As long as a frame may be, but not before it is known whose it is.
    let long = frame(&json!({"text": "x".repeat(100 << 10)}));
    assert_eq!(refused(&daemon, &long).await, "missing_credentials");

    assert_eq!(refused(&daemon, &after(hello(&viewer))).await, "right_missing");
    let other_secret = format!("tw_{id}_{}", "a".repeat(52));
    assert_eq!(refused(&daemon, &after(hello(&other_secret))).await, "unknown_key");
    let nobodys = format!("tw_{}_{}", "a".repeat(12), "a".repeat(52));
    assert_eq!(refused(&daemon, &after(hello(&nobodys))).await, "unknown_key");
    for odd in [&good[..good.len() - 1], "tw_' OR '1'='1", "../../etc/passwd", &"x".repeat(60_000)] {
        assert_eq!(refused(&daemon, &after(hello(odd))).await, "malformed_credentials", "{odd:.40}");
    }
    assert_eq!(refused(&daemon, &after(hello("e30.e30.e30"))).await, "tokens_not_taken");

    assert_eq!(comes_in(&daemon, &good).await, Ok(()));
    assert_eq!(said(&daemon, &after(long_after(&good))).await.len(), 2, "large frames once it is known");
    assert_eq!(stored(&site, 1).await.len(), 1);
    daemon.stop_drained();
    let trail = fine(&site, &["keys", "trail"]);
    let codes: Vec<_> = trail.as_array().unwrap().iter().map(|row| row["detail"].as_str().unwrap()).collect();
    for code in ["missing_credentials", "unknown_key", "malformed_credentials", "right_missing"] {
        assert!(codes.contains(&code), "{code}: {trail}");
    }
    assert!(!trail.to_string().contains(&good[16..]), "{trail}");
}

/// A hello and a frame longer than what is read of strangers.
fn long_after(key: &str) -> Vec<u8> {
    [hello(key), frame(&json!({"text": "x".repeat(100 << 10)}))].concat()
}

#[tokio::test]
async fn a_key_speaks_for_its_tenant_only() {
    let site = Site::new(&format!("{TCP}{KEYS}"));
    let (_, acme) = key(&site, &["--role", "ingester", "--tenant", "acme"]);
    let (_, any) = key(&site, &["--role", "ingester"]);
    let daemon = site.start();
    let frames = [
        json!({"text": "names nobody"}),
        json!({"text": "names the other", "tenant": "umbrella"}),
        json!({"tenant": "acme", "text": "names its own"}),
        json!({"text": "names nothing", "tenant": ""}),
    ];
    let bytes = [hello(&acme), frames.iter().flat_map(frame).collect()].concat();
    let replies = said(&daemon, &bytes).await;
    let told: Vec<_> = replies.iter().map(|r| (r.kind.as_str(), r.code.as_str(), r.count, r.frame)).collect();
    let expected =
        [("welcome", "", 0, 0), ("ack", "", 1, 0), ("error", "tenant_forbidden", 0, 1), ("ack", "", 2, 0)];
    assert_eq!(told, expected);
    let replies = said(&daemon, &[hello(&any), frame(&frames[1]), frame(&frames[0])].concat()).await;
    assert_eq!(replies.iter().map(|reply| reply.count).sum::<u64>(), 2, "{replies:?}");
    let records = stored(&site, 5).await;
    let tenants: Vec<_> = records.iter().map(|(tenant, _)| tenant.as_str()).collect();
    assert_eq!(tenants, ["acme", "acme", "acme", "umbrella", "default"]);
    let letters = site.store().await.dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].letter.code, "tenant_forbidden");
    daemon.stop_drained();
}

#[tokio::test]
async fn producers_of_two_tenants_do_not_end_each_others_epochs() {
    let site = Site::new(&format!("{TCP}{KEYS}"));
    let (_, acme) = key(&site, &["--role", "ingester", "--tenant", "acme"]);
    let (_, other) = key(&site, &["--role", "ingester", "--tenant", "umbrella"]);
    let daemon = site.start();
    let named = |key: &str, epoch: u64| {
        frame(&json!({"thalweg": 1, "producer": "web-7", "epoch": epoch, "sequence": 0, "key": key}))
    };
    let mut first = Producer::tcp(daemon.tcp()).await;
    first.send(&named(&acme, 0)).await;
    assert_eq!(first.replies.expect().await.producer, "web-7");
    first.put(&json!({"text": "one"})).await;
    let later = said(&daemon, &[named(&other, 9), frame(&json!({"text": "two"}))].concat()).await;
    assert_eq!(later.last().unwrap().kind, "ack", "{later:?}");
    first.put(&json!({"text": "three"})).await;
    let same = said(&daemon, &[named(&acme, 1), frame(&json!({"text": "four"}))].concat()).await;
    assert_eq!(same.last().unwrap().kind, "ack", "{same:?}");
    first.send(&frame(&json!({"text": "five"}))).await;
    assert_eq!(first.replies.expect().await.code, "fenced");
    daemon.stop_drained();
}

#[tokio::test]
async fn a_revoked_key_ends_its_open_connections_as_well() {
    let site = Site::new(&format!("{TCP}{KEYS}"));
    let (id, good) = key(&site, &["--role", "ingester"]);
    let daemon = site.start();
    let mut open = Producer::tcp(daemon.tcp()).await;
    open.send(&hello(&good)).await;
    assert_eq!(open.replies.expect().await.kind, "welcome");
    open.put(&json!({"text": "before"})).await;
    assert_eq!(fine(&site, &["keys", "revoke", &id])["id"], id.as_str());
    let began = Instant::now();
    let refusal = loop {
        open.send(&frame(&json!({"text": format!("after {:?}", began.elapsed())}))).await;
        let reply = open.replies.expect().await;
        if reply.kind == "error" {
            break reply;
        }
        assert!(began.elapsed() < Duration::from_secs(25), "still let in");
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    assert_eq!((refusal.code.as_str(), refusal.fatal), ("revoked_key", true));
    assert!(open.replies.rest().await.is_empty());
    assert_eq!(comes_in(&daemon, &good).await, Err("revoked_key".into()));
    daemon.stop_drained();
}

#[tokio::test]
async fn keys_are_shown_once_and_kept_as_digests() {
    let site = Site::new(&format!("{TCP}{KEYS}"));
    let (id, text) =
        key(&site, &["--role", "ingester", "--tenant", "acme", "--tier", "pro", "--expires", "90d"]);
    let listed = fine(&site, &["keys", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let one = &listed[0];
    assert_eq!((&one["id"], &one["tenant"], &one["tier"]), (&json!(id), &json!("acme"), &json!("pro")));
    assert_eq!(one["roles"], json!(["ingester"]));
    assert_eq!(
        one["expires_ms"].as_i64().unwrap() - one["created_ms"].as_i64().unwrap(),
        90 * 24 * 3_600_000
    );
    let secret = &text[16..];
    for name in ["store.sqlite", "store.sqlite-wal"] {
        let file = std::fs::read(site.database().with_file_name(name)).unwrap_or_default();
        assert!(!file.windows(secret.len()).any(|part| part == secret.as_bytes()), "{name} holds the secret");
    }

    let rotated = fine(&site, &["keys", "rotate", &id, "--overlap", "1h"]);
    assert_eq!((&rotated["replaces"], &rotated["roles"]), (&json!(id), &json!(["ingester"])));
    let daemon = site.start();
    assert_eq!(comes_in(&daemon, &text).await, Ok(()));
    assert_eq!(comes_in(&daemon, rotated["key"].as_str().unwrap()).await, Ok(()));
    daemon.stop_drained();
    fine(&site, &["keys", "revoke", &id]);
    let (code, _, error) = thalweg(&site, &["keys", "revoke", &id]);
    assert!(code == Some(1) && error.contains("over already"), "{error}");
    let left = fine(&site, &["keys", "list"]);
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert!(left[0]["used_ms"].as_i64().is_some(), "{left}");
    assert_eq!(fine(&site, &["keys", "list", "--all"]).as_array().unwrap().len(), 2);
    let (code, _, error) = thalweg(&site, &["keys", "create", "--name", "n"]);
    assert!(code == Some(2) && error.contains("--role"), "{error}");

    let trail = fine(&site, &["keys", "trail"]);
    let acts: Vec<_> = trail.as_array().unwrap().iter().map(|row| row["act"].as_str().unwrap()).collect();
    assert_eq!(acts, ["keys.revoke", "keys.rotate", "keys.create"]);
    assert_eq!(trail[0]["scheme"], "local");
    assert!(!trail.to_string().contains("acme"), "the trail outlives a tenant: {trail}");
    let (_, text, _) = thalweg(&site, &["keys", "trail"]);
    assert!(text.contains("keys.rotate") && text.contains("replaces"), "{text}");
}

#[tokio::test]
async fn send_shows_its_key_and_gives_up_at_once_without_a_good_one() {
    let site = Site::new(&format!("{TCP}{KEYS}"));
    let (_, good) = key(&site, &["--role", "ingester", "--tenant", "acme"]);
    let daemon = site.start();
    let input = site.path("in.jsonl");
    std::fs::write(&input, "{\"text\":\"sent\"}\n{\"text\":\"twice\"}\n").unwrap();
    let to = format!("tcp://{}", daemon.tcp());
    let send = |key: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        command.args(["send", "--json", "--to", &to]).arg(&input).env_remove("THALWEG_KEY");
        command.envs(key.map(|key| ("THALWEG_KEY", key)));
        let done = command.output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let (code, summary) = send(Some(&good));
    assert_eq!(code, Some(0), "{summary}");
    let began = Instant::now();
    for (key, refused) in [(None, "missing_credentials"), (Some("tw_x"), "malformed_credentials")] {
        let (code, summary) = send(key);
        assert!(code == Some(1) && summary.contains(refused), "{summary}");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "it tried again");
    assert_eq!(stored(&site, 2).await[0].0, "acme");
    daemon.stop_drained();
}

#[tokio::test]
async fn events_of_a_forward_source_are_its_tenants() {
    let forward = "[[source]]\ntype = \"forward\"\nlisten = \"127.0.0.1:0\"\n";
    let site = Site::new(&format!("{forward}tenant = \"acme\"\n"));
    let daemon = site.start();
    let mut client = tokio::net::TcpStream::connect(&daemon.sources["forward"]).await.unwrap();
    for (n, record) in [json!({"log": "a"}), json!({"log": "b", "tenant": "umbrella"}), json!({"log": "c"})]
        .iter()
        .enumerate()
    {
        let event = rmp_serde::to_vec_named(&json!(["app", 1_714_979_289 + n, record])).unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut client, &event).await.unwrap();
    }
    let records = stored(&site, 2).await;
    assert_eq!(records, [("acme".to_owned(), "a".to_owned()), ("acme".to_owned(), "c".to_owned())]);
    drop(client);
    daemon.stop_drained();
    let letters = site.store().await.dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(
        letters.iter().map(|letter| letter.letter.code.as_str()).collect::<Vec<_>>(),
        ["tenant_forbidden"]
    );

    site.configure(&format!("{forward}{KEYS}"));
    let exit = site.run(&[], b"");
    assert!(exit.code == Some(2) && exit.log.contains("shared_key"), "{}", exit.log);
}

/// An identity provider in a process of its own.
struct Provider {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    issuer: String,
}

impl Provider {
    /// None, said loudly, where there is no Node.js.
    fn start() -> Option<Self> {
        let mut node = tools::node_of_oidc()?;
        node.arg(tools::client("oidc_provider.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = node.stderr(Stdio::null()).spawn().unwrap();
        let (commands, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut provider = Self { child, commands, answers, issuer: String::new() };
        let said: Value = serde_json::from_str(&provider.line()).unwrap();
        said["issuer"].as_str().unwrap().clone_into(&mut provider.issuer);
        Some(provider)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line
    }

    /// Changes its keys.
    fn rotate(&mut self) {
        self.commands.as_mut().unwrap().write_all(b"rotate\n").unwrap();
        assert_eq!(self.line().trim(), "rotated");
    }

    /// A token of the client `id`.
    async fn token(&self, id: &str) -> String {
        let client = thalweg::http_client::local().unwrap();
        let request = client.post(format!("{}/token", self.issuer)).basic_auth(id, Some("sesame"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body("grant_type=client_credentials").send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.commands.take();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn tokens_of_a_real_provider_are_known_through_a_change_of_its_keys_and_its_absence() {
    let Some(mut provider) = Provider::start() else { return };
    let issuer = &provider.issuer;
    let auth = format!("[auth]\nkeys = false\n[auth.jwt]\nissuer = \"{issuer}\"\naudience = \"thalweg\"\n");
    let site = Site::new(&format!("{TCP}{auth}"));
    let daemon = site.start();
    let before = provider.token("ES256.thalweg.acme.ingester_viewer").await;
    assert_eq!(comes_in(&daemon, &before).await, Ok(()));
    assert_eq!(comes_in(&daemon, &provider.token("RS256.thalweg.acme.ingester").await).await, Ok(()));
    let refused = async |id: &str| comes_in(&daemon, &provider.token(id).await).await.unwrap_err();
    assert_eq!(refused("ES256.thalweg.acme.viewer").await, "right_missing");
    assert_eq!(refused("ES256.other.acme.ingester").await, "wrong_audience");
    assert_eq!(refused("ES256.thalweg..ingester").await, "bad_claim");
    let (signed, signature) = before.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{other}{}", &signature[1..]);
    assert_eq!(comes_in(&daemon, &forged).await.unwrap_err(), "bad_signature");
    let none = format!("eyJhbGciOiJub25lIn0.{claims}.");
    assert_eq!(comes_in(&daemon, &none).await.unwrap_err(), "algorithm_refused");
    assert_eq!(comes_in(&daemon, &format!("{header}.{claims}")).await.unwrap_err(), "malformed_credentials");
    let records = stored(&site, 2).await;
    assert!(records.iter().all(|(tenant, _)| tenant == "acme"), "{records:?}");

    provider.rotate();
    let after = provider.token("RS256.thalweg.acme.ingester").await;
    let began = Instant::now();
    while let Err(code) = comes_in(&daemon, &after).await {
        assert_eq!(code, "unknown_signing_key");
        assert!(began.elapsed() < Duration::from_secs(20), "the new keys are not fetched");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(comes_in(&daemon, &before).await.unwrap_err(), "unknown_signing_key", "its key is gone");

    drop(provider);
    assert_eq!(comes_in(&daemon, &after).await, Ok(()), "its keys are known");
    let began = Instant::now();
    loop {
        match comes_in(&daemon, &before).await.unwrap_err().as_str() {
            "identity_provider_away" => break,
            code => assert_eq!(code, "unknown_signing_key"),
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it is not noticed that the provider is away");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(comes_in(&daemon, &after).await, Ok(()), "its keys are known yet");
    daemon.stop_drained();
}
