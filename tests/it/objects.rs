//! Artifacts in S3, against a real server (`scripts/services up s3`), each
//! test below a prefix of its own.

use std::{fs, path::Path, process::Output, sync::Arc};

use object_store::{
    ObjectStore, ObjectStoreExt,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector},
    multipart::MultipartStore,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thalweg::{
    artifact::{Artifacts, Description, Settings, Verified, hex},
    store::Store,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    daemon::{Daemon, Site, TCP, eventually},
    producer::{Producer, text_frame},
    proxy::Proxy,
    tools,
};

/// Nothing is derived: these tests are about what becomes of segments.
const SMALL: &str =
    "[derive]\nenabled = false\n[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";
const LARGE: &str =
    "[derive]\nenabled = false\n[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"16MiB\"\n";
/// The smallest that S3 takes.
const PART: usize = 5 << 20;

/// A server, and a place of its own there.
pub struct S3 {
    pub endpoint: String,
    bucket: String,
    key: String,
    secret: String,
    prefix: String,
    _folder: tempfile::TempDir,
    credentials: String,
}

/// None, said loudly, where no server is running.
pub fn s3() -> Option<S3> {
    let variable = |name: &str| std::env::var(format!("THALWEG_TEST_S3_{name}")).ok();
    let found = (variable("ENDPOINT"), variable("BUCKET"), variable("KEY"), variable("SECRET"));
    let (Some(endpoint), Some(bucket), Some(key), Some(secret)) = found else {
        eprintln!("SKIPPED: there is no S3 server, so nothing was tested (scripts/services up)");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    fs::write(&path, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"))
        .unwrap();
    let prefix = format!("test-{:016x}", rand::random::<u64>());
    let credentials = path.to_str().unwrap().to_owned();
    Some(S3 { endpoint, bucket, key, secret, prefix, _folder: folder, credentials })
}

#[derive(Debug)]
struct Plain;

impl HttpConnector for Plain {
    fn connect(&self, _: &object_store::ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(thalweg::http_client::local().unwrap()))
    }
}

impl S3 {
    /// The section of a pipeline file, for a server at `endpoint`.
    pub fn section(&self, endpoint: &str) -> String {
        format!(
            "[artifacts]\nurl = \"s3://{}/{}\"\nendpoint = {endpoint:?}\ncredentials_file = {:?}\npart_bytes = \"5MiB\"\n",
            self.bucket, self.prefix, self.credentials
        )
    }

    /// What requests are signed with.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    pub fn site(&self, endpoint: &str, more: &str) -> Site {
        Site::new(&format!("{TCP}{more}{}", self.section(endpoint)))
    }

    /// A client of its own, to look behind the daemon's back.
    fn client(&self) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_bucket_name(&self.bucket)
            .with_access_key_id(&self.key)
            .with_secret_access_key(&self.secret)
            .with_disable_bulk_delete(true)
            .with_http_connector(Plain)
            .build()
            .unwrap()
    }

    fn at(&self, location: &str) -> object_store::path::Path {
        format!("{}/{location}", self.prefix).into()
    }

    async fn artifacts(&self, endpoint: &str, folder: &Path) -> Artifacts {
        let settings = Settings {
            url: Some(format!("s3://{}/{}", self.bucket, self.prefix)),
            endpoint: Some(endpoint.to_owned()),
            credentials_file: Some(self.credentials.clone()),
            part_bytes: thalweg::units::ByteSize(PART as u64),
            ..Settings::default()
        };
        let store = Store::open(&folder.join("store.sqlite")).await.unwrap();
        Artifacts::open(&settings, folder, &folder.join("uploads"), store).unwrap()
    }
}

fn thing(name: &str) -> Description<'static> {
    Description { kind: "thing", name: name.into(), extension: "bin", meta: json!({}), now_ms: 1 }
}

fn random_bytes(bytes: usize) -> (Vec<u8>, String) {
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(bytes as u64).fill(&mut content[..]);
    let digest = hex(&Sha256::digest(&content));
    (content, digest)
}

/// Texts of letters at random, which compress badly.
fn frames(count: u64, bytes: usize, seed: u64) -> Vec<Vec<u8>> {
    const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut random = StdRng::seed_from_u64(seed);
    let mut letter = || char::from(LETTERS[random.random_range(0..64)]);
    (0..count).map(|_| text_frame(&(0..bytes).map(|_| letter()).collect::<String>())).collect()
}

async fn sealed(daemon: &Daemon, segments: u64) {
    let sealed = async || daemon.status().await["segments"]["sealed"].as_u64().unwrap() >= segments;
    eventually("segments are sealed", sealed).await;
}

async fn registered(site: &Site, segments: usize) {
    let store = site.store().await;
    eventually("segments are registered", async || {
        let rows = store.artifacts().await.unwrap();
        rows.iter().filter(|row| row.kind == "segment").count() >= segments
    })
    .await;
    store.close().await;
}

fn command(site: &Site, args: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.args(args).arg("-p").arg(site.pipeline()).env_remove("THALWEG_LOG").output().unwrap()
}

fn json_of(code: i32, site: &Site, args: &[&str]) -> Value {
    let output = command(site, &[args, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_segments_are_kept_in_s3_and_can_be_had_back() {
    let Some(s3) = s3() else { return };
    let site = s3.site(&s3.endpoint, SMALL);
    let daemon = site.start();
    Producer::tcp(daemon.tcp()).await.put_all(&frames(800, 4_000, 1)).await;
    sealed(&daemon, 2).await;
    daemon.stop_drained();

    let listed = json_of(0, &site, &["artifacts", "list"]);
    let rows: Vec<_> = listed.as_array().unwrap().iter().filter(|row| row["kind"] == "segment").collect();
    let files = site.log_files(".seg.zst");
    assert_eq!(rows.len(), files.len());
    for file in &files {
        let bytes = fs::read(file).unwrap();
        let digest = hex(&Sha256::digest(&bytes));
        let row = rows.iter().find(|row| row["digest"] == *digest).unwrap();
        let object = s3.client().get(&s3.at(row["location"].as_str().unwrap())).await.unwrap();
        assert!(object.bytes().await.unwrap() == bytes, "{}", file.display());
        let back = site.path("back");
        json_of(0, &site, &["artifacts", "fetch", &digest[..12], back.to_str().unwrap()]);
        assert!(fs::read(back).unwrap() == bytes);
    }
    assert!(!site.artifacts().exists(), "nothing is kept in the local folder");
    let checked = json_of(0, &site, &["artifacts", "check"]);
    assert_eq!(checked["rows"], checked["objects"], "{checked}");
    let verified = json_of(0, &site, &["artifacts", "verify"]);
    assert_eq!(verified["artifacts"].as_array().unwrap().len(), files.len() + 1);
    let said = String::from_utf8(command(&site, &["check", "--json"]).stdout).unwrap();
    assert!(!said.contains(&s3.secret) && !said.contains(&s3.key), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_sixteen_puts_of_one_object_one_writes_it_and_all_succeed() {
    let Some(s3) = s3() else { return };
    let proxy = Proxy::before(&s3.endpoint).await;
    let folder = tempfile::tempdir().unwrap();
    let artifacts = s3.artifacts(&proxy.endpoint, folder.path()).await;
    let (content, digest) = random_bytes(100_000);
    let puts = (0..16).map(|n| {
        let (artifacts, content) = (artifacts.clone(), content.clone());
        tokio::spawn(async move { artifacts.put_bytes(content, thing(&n.to_string())).await })
    });
    for put in futures::future::join_all(puts).await {
        assert_eq!(put.unwrap().unwrap(), digest);
    }
    let statuses = |wanted: u16| {
        let seen = proxy.take();
        let puts = seen.iter().filter(|(line, status)| line.starts_with("PUT") && *status == Some(wanted));
        (puts.count(), seen)
    };
    let (written, seen) = statuses(200);
    assert_eq!(written, 1, "{seen:?}");
    assert_eq!(seen.iter().filter(|(_, status)| *status == Some(412)).count(), 15, "{seen:?}");
    let rows = artifacts.list().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(artifacts.verify(&rows[0]).await.unwrap(), Verified::Intact);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_after_kill_9_with_the_parts_that_are_missing() {
    let Some(s3) = s3() else { return };
    let proxy = Proxy::before(&s3.endpoint).await;
    let site = s3.site(&proxy.endpoint, LARGE);
    let daemon = site.start();
    proxy.parts(2);
    Producer::tcp(daemon.tcp()).await.put_all(&frames(1_200, 15_000, 2)).await;
    let uploads = site.pipeline().with_file_name("data").join("uploads");
    let state = || -> Option<Value> {
        let file = fs::read_dir(&uploads)
            .ok()?
            .map(|entry| entry.unwrap().path())
            .find(|p| p.extension().is_some_and(|e| e == "json"))?;
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    };
    eventually("two parts are there", async || {
        state().is_some_and(|state| state["parts"].as_object().unwrap().len() == 2)
    })
    .await;
    daemon.kill();
    let left = state().unwrap();
    let id = left["id"].as_str().unwrap();
    let parts = left["bytes"].as_u64().unwrap().div_ceil(PART as u64) as usize;
    assert!(parts >= 3, "{left}");

    proxy.take();
    proxy.parts(usize::MAX);
    let daemon = site.start();
    registered(&site, 1).await;
    let seen = proxy.take();
    let of = |method: &str, what: &str| {
        seen.iter().filter(|(l, _)| l.starts_with(method) && l.contains(what)).count()
    };
    assert_eq!(of("PUT", "partNumber="), parts - 2, "{seen:?}");
    assert_eq!((of("POST", "uploads"), of("POST", "uploadId=")), (0, 1), "{seen:?}");
    let escaped = id.replace('~', "%7E");
    assert!(of("POST", id) + of("POST", &escaped) > 0, "{id}: {seen:?}");
    assert!(state().is_none(), "what was remembered of the upload is forgotten");
    daemon.stop_drained();
    let verified = json_of(0, &site, &["artifacts", "verify"]);
    assert!(verified["artifacts"].as_array().unwrap().iter().any(|a| a["kind"] == "segment"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_server_forgot_is_begun_again() {
    let Some(s3) = s3() else { return };
    let proxy = Proxy::before(&s3.endpoint).await;
    let folder = tempfile::tempdir().unwrap();
    let artifacts = s3.artifacts(&proxy.endpoint, folder.path()).await;
    let (content, digest) = random_bytes(2 * PART + 5);
    let file = folder.path().join("file");
    fs::write(&file, &content).unwrap();
    proxy.parts(1);
    let state = folder.path().join(format!("uploads/{digest}.upload.json"));
    let read = || serde_json::from_slice::<Value>(&fs::read(&state).ok()?).ok();
    let one_part = eventually("a part is there", async || {
        read().is_some_and(|state| state["parts"].as_object().unwrap().len() == 1)
    });
    tokio::select! {
        () = one_part => {}
        done = artifacts.put_file(&file, &digest, thing("cut off")) => panic!("{done:?}"),
    }
    let left = read().unwrap();
    let (key, id) = (left["key"].as_str().unwrap(), left["id"].as_str().unwrap().to_owned());
    s3.client().abort_multipart(&key.into(), &id).await.unwrap();
    proxy.parts(usize::MAX);
    artifacts.put_file(&file, &digest, thing("begun again")).await.unwrap();
    let rows = artifacts.list().await.unwrap();
    assert_eq!(artifacts.verify(&rows[0]).await.unwrap(), Verified::Intact);
    assert!(!state.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_altered_on_the_way_are_refused() {
    let Some(s3) = s3() else { return };
    let proxy = Proxy::before(&s3.endpoint).await;
    let folder = tempfile::tempdir().unwrap();
    let artifacts = s3.artifacts(&proxy.endpoint, folder.path()).await;
    for bytes in [10_000, PART + 10_000] {
        let (content, digest) = random_bytes(bytes);
        let file = folder.path().join("file");
        fs::write(&file, &content).unwrap();
        proxy.alter();
        let error = artifacts.put_file(&file, &digest, thing("altered")).await.unwrap_err().to_string();
        assert!(error.contains("XAmzContentSHA256Mismatch") && error.contains("altered"), "{error}");
        assert!(artifacts.find(&digest).await.is_err());
        let location = Artifacts::location("thing", &digest, "bin");
        assert!(s3.client().head(&s3.at(&location)).await.is_err(), "nothing is there under that name");
        artifacts.put_file(&file, &digest, thing("whole")).await.unwrap();
        let row = artifacts.find(&digest).await.unwrap();
        assert_eq!(artifacts.verify(&row).await.unwrap(), Verified::Intact);
        // A file that rotted is found before anything is sent.
        fs::write(&file, &content[1..]).unwrap();
        let error = artifacts.put_file_again(&file, &digest, thing("rotten")).await.unwrap_err();
        assert!(error.to_string().contains("altered after it was written"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_what_to_do() {
    let Some(s3) = s3() else { return };
    let refuses = |section: String, what: [&str; 2]| {
        let exit = Site::new(&format!("{TCP}{SMALL}{section}")).run(&[], b"");
        assert_eq!(exit.code, Some(1), "{}", exit.log);
        assert!(what.iter().all(|what| exit.log.contains(what)), "{what:?}: {}", exit.log);
        assert!(!exit.log.contains(&s3.secret), "{}", exit.log);
    };
    let section = s3.section(&s3.endpoint);
    refuses(section.replace(&s3.bucket, "there-is-no-such-bucket"), ["NoSuchBucket", "make it"]);
    let keys = fs::read_to_string(&s3.credentials).unwrap();
    fs::write(&s3.credentials, keys.replace(&s3.key, "nobody")).unwrap();
    refuses(section.clone(), ["InvalidAccessKeyId", "does not know this access key"]);
    fs::write(&s3.credentials, keys.trim_end().to_owned() + "x").unwrap();
    refuses(section.clone(), ["SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"]);
    fs::remove_file(&s3.credentials).unwrap();
    refuses(section, ["cannot be read", "credentials_file"]);
    // The server here takes any region; this is what Amazon's answers.
    let endpoint = answering(
        "400 Bad Request",
        "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>",
    )
    .await;
    fs::write(&s3.credentials, keys).unwrap();
    refuses(s3.section(&endpoint), ["AuthorizationHeaderMalformed", "set `region = \"eu-west-3\"`"]);
}

/// A fake that answers every request alike.
async fn answering(status: &'static str, body: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 64 << 10];
            let _ = client.read(&mut request).await;
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_delays_and_loses_nothing_and_is_said_once() {
    let Some(s3) = s3() else { return };
    let proxy = Proxy::before(&s3.endpoint).await;
    // Away before the start already.
    proxy.away(true);
    let site = s3.site(&proxy.endpoint, SMALL);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put_all(&frames(800, 4_000, 3)).await;
    eventually("sealing goes on", async || site.log_files(".seg.zst").len() >= 2).await;
    let troubled = async || {
        daemon.status().await["derived"]["trouble"]["archive"]
            .as_str()
            .is_some_and(|why| why.contains("does not answer"))
    };
    eventually("it is shown", troubled).await;
    let failing = |page: &str| page.lines().any(|line| line == "archive_failing 1");
    assert!(failing(&daemon.get("/metrics").await.1));
    let exit = command(&site, &["artifacts", "check"]);
    let said = String::from_utf8_lossy(&exit.stderr).into_owned();
    assert!(exit.status.code() == Some(1) && said.contains("`endpoint` in [artifacts]"), "{said}");
    let complaints = || daemon.log().matches("archiving failed").count();
    assert_eq!(complaints(), 1, "{}", daemon.log());
    assert!(!daemon.log().contains("backing off"));

    proxy.away(false);
    registered(&site, 2).await;
    eventually("all is well", async || daemon.status().await["derived"]["trouble"] == json!({})).await;
    assert!(!failing(&daemon.get("/metrics").await.1));
    assert!(daemon.log().contains("archiving goes on"));
    producer.put_all(&frames(300, 4_000, 4)).await;
    sealed(&daemon, 3).await;
    daemon.stop_drained();
    assert_eq!(json_of(0, &site, &["artifacts", "check"])["missing"]["count"], 0);
    json_of(0, &site, &["artifacts", "verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_finds_one_of_each_kind_and_removes_orphans_when_told() {
    let Some(s3) = s3() else { return };
    let section = format!(
        "{SMALL}{}grace = \"0s\"\n[[schedule]]\njob = \"orphan_check\"\ncron = \"* * * * * *\"\n",
        s3.section(&s3.endpoint)
    );
    let site = Site::new(&format!("{TCP}{section}"));
    let daemon = site.start();
    Producer::tcp(daemon.tcp()).await.put_all(&frames(2_400, 4_000, 5)).await;
    sealed(&daemon, 7).await;
    daemon.stop_drained();
    let rows: Vec<_> = {
        let store = site.store().await;
        let rows = store.artifacts().await.unwrap();
        store.close().await;
        rows.into_iter().filter(|row| row.kind == "segment").collect()
    };
    json_of(0, &site, &["artifacts", "check"]);

    let client = s3.client();
    client.delete(&s3.at(&rows[0].location)).await.unwrap();
    client.put(&s3.at(&rows[1].location), "cut".into()).await.unwrap();
    let stray = Artifacts::location("segment", &"0".repeat(64), "seg.zst");
    client.put(&s3.at(&stray), "stray".into()).await.unwrap();
    client.put(&s3.at("somebody/elses"), "x".into()).await.unwrap();
    sql(&site, &format!("DELETE FROM artifacts WHERE digest = '{}'", rows[2].digest)).await;

    let found = json_of(3, &site, &["artifacts", "check"]);
    let first = |kind: &str, key: &str| found[kind]["first"][0][key].clone();
    assert_eq!(first("missing", "location"), json!(rows[0].location), "{found}");
    assert_eq!(
        (first("resized", "digest"), first("resized", "found_bytes")),
        (json!(rows[1].digest), json!(3))
    );
    assert_eq!(first("segments", "object_digest"), json!(rows[2].digest));
    let orphans: Vec<_> = found["orphans"]["first"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| (o["location"].as_str().unwrap(), o["is_ours"].as_bool().unwrap()))
        .collect();
    let mut wanted =
        vec![(stray.as_str(), true), ("somebody/elses", false), (rows[2].location.as_str(), true)];
    wanted.sort_unstable();
    assert_eq!(orphans, wanted);
    for kind in ["missing", "resized", "segments"] {
        assert_eq!(found[kind]["count"], 1, "{kind}");
    }

    let daemon = site.start();
    eventually("the daemon shows it", async || {
        daemon.status().await["derived"]["trouble"]["artifacts"]
            .as_str()
            .is_some_and(|why| why.contains("1 artifacts have no object"))
    })
    .await;
    assert!(daemon.get("/metrics").await.1.contains("artifacts_wrong{kind=\"missing\"} 1"));
    daemon.stop();
    assert!(client.head(&s3.at(&stray)).await.is_ok(), "nothing is removed unless told to");

    let removed = json_of(3, &site, &["artifacts", "check", "--delete-orphans"]);
    assert!(removed["removed"].as_array().unwrap().contains(&json!(stray)), "{removed}");
    assert!(client.head(&s3.at(&stray)).await.is_err());
    assert!(client.head(&s3.at("somebody/elses")).await.is_ok(), "what others put there stays");
    // Another registry knows none of these.
    let other = Site::new(&format!("{TCP}{section}"));
    other.start().stop_drained();
    let refused = command(&other, &["artifacts", "check", "--delete-orphans"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another one; none was removed"));
}

async fn sql(site: &Site, statement: &str) {
    use sqlx::{ConnectOptions, Executor, sqlite::SqliteConnectOptions};
    let mut connection = SqliteConnectOptions::new().filename(site.database()).connect().await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_tls_is_believed_if_its_authority_is_trusted() {
    let Some(s3) = s3() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some((authority, cert, key)) = tools::issued_certificate(folder.path()) else { return };
    let endpoint = behind_tls(&s3.endpoint, &cert, &key).await;
    let mut site = s3.site(&endpoint, SMALL);
    let untrusted = site.run(&[], b"");
    assert_eq!(untrusted.code, Some(1));
    assert!(
        untrusted.log.contains("certificate") && untrusted.log.contains("SSL_CERT_FILE"),
        "{}",
        untrusted.log
    );
    site.set("SSL_CERT_FILE", authority.to_str().unwrap());
    let daemon = site.start();
    assert_eq!(daemon.status().await["derived"]["trouble"], json!({}));
    daemon.stop_drained();
}

/// The server at `endpoint`, with TLS before it.
async fn behind_tls(endpoint: &str, cert: &Path, key: &Path) -> String {
    use tokio_rustls::rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    };
    let certs = CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = endpoint.strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    format!("https://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_works_with_the_object_store_and_leaves_nothing_there() {
    let Some(s3) = s3() else { return };
    let site = s3.site(&s3.endpoint, SMALL);
    let checks = json_of(0, &site, &["doctor", "--connect"]);
    let of =
        |name: &str| checks.as_array().unwrap().iter().find(|check| check["name"] == name).unwrap().clone();
    for name in ["object store", "object store: conditional put", "object store: clock"] {
        assert_eq!(of(name)["verdict"], "ok", "{checks}");
    }
    let left = s3.client().list_with_delimiter(Some(&s3.prefix.as_str().into())).await.unwrap();
    assert!(left.objects.is_empty() && left.common_prefixes.is_empty());
    site.configure(&format!(
        "{TCP}{}",
        s3.section(&s3.endpoint).replace(&s3.bucket, "there-is-no-such-bucket")
    ));
    let checks = json_of(3, &site, &["doctor", "--connect"]);
    assert!(checks.to_string().contains("NoSuchBucket"), "{checks}");
}

/// Kills and starts the gateway itself:
/// `THALWEG_TEST_S3_CRASHES=10 cargo nextest run --run-ignored only a_gateway_that_is_killed`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other tests use that gateway at the same time"]
async fn a_gateway_that_is_killed_under_load_costs_nothing() {
    let Some(s3) = s3() else { return };
    let crashes = std::env::var("THALWEG_TEST_S3_CRASHES").map_or(3, |n| n.parse().unwrap());
    let services = |action: &str| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let done = std::process::Command::new(script).args([action, "s3"]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let seed =
        std::env::var("THALWEG_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("THALWEG_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let large = LARGE.replace("16MiB", "8MiB");
    let site = s3.site(&s3.endpoint, &large);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let mut acked = 0;
    for crash in 0..crashes {
        let sent = frames(random.random_range(600..1_400), 15_000, seed ^ crash);
        acked += producer.put_all(&sent).await.len() as u64;
        tokio::time::sleep(std::time::Duration::from_millis(random.random_range(0..400))).await;
        services("kill");
        let sent = frames(random.random_range(100..800), 15_000, seed ^ crash ^ (1 << 32));
        acked += producer.put_all(&sent).await.len() as u64;
        services("start");
    }
    assert_eq!(daemon.status().await["end_offset"], acked);
    let closed = async || {
        site.log_files(".log").len() == 1 && daemon.status().await["derived"]["trouble"] == json!({})
    };
    eventually("everything closed is archived", closed).await;
    registered(&site, site.log_files(".seg.zst").len()).await;
    daemon.stop_drained();
    let checked = json_of(0, &site, &["artifacts", "check"]);
    assert_eq!(checked["rows"], checked["objects"], "{checked}");
    json_of(0, &site, &["artifacts", "verify"]);
    let records: u64 = site.store().await.segments("main").await.unwrap().iter().map(|row| row.records).sum();
    println!("{acked} records acknowledged, {records} of them in sealed segments, {crashes} crashes");
}
