//! A daemon under test: the real binary, in a folder of its own, on ports that
//! the system chooses.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use thalweg::store::Store;

/// Longest wait for anything that should happen soon; generous, because tests
/// share the machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A source of type `tcp` on a port of the system's choice.
pub const TCP: &str = "[[source]]\ntype = \"tcp\"\nlisten = \"127.0.0.1:0\"\n";

/// A source of type `http`.
pub const HTTP: &str = "[[source]]\ntype = \"http\"\n";

/// A folder with a pipeline file. Whatever is kept between two daemons is
/// here.
pub struct Site {
    folder: PathBuf,
    data: PathBuf,
    environment: Vec<(&'static str, String)>,
    _temporary: tempfile::TempDir,
}

/// What a process left behind.
pub struct Exit {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it logged.
    pub log: String,
    /// How long it took to end.
    pub took: Duration,
}

impl Site {
    /// With `sections` after the settings that every test needs.
    pub fn new(sections: &str) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        let site = Self { data: folder.join("data"), folder, environment: Vec::new(), _temporary: temporary };
        site.configure(sections);
        site
    }

    /// As [`Site::new`], with the data directory elsewhere.
    pub fn with_data(sections: &str, data: PathBuf) -> Self {
        let mut site = Self::new(sections);
        site.data = data;
        site.configure(sections);
        site
    }

    /// Gives its daemons a variable of the environment.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    /// Writes the pipeline file anew, for the next start.
    pub fn configure(&self, sections: &str) {
        let text = format!(
            "name = \"it\"\nstream = \"main\"\nbatch_tag = \"batch-7\"\ndata_dir = {:?}\n\
             [embed]\nprovider = \"hashing\"\n[http]\nlisten = \"127.0.0.1:0\"\n{sections}",
            self.data
        );
        fs::write(self.pipeline(), text).unwrap();
    }

    /// The pipeline file.
    pub fn pipeline(&self) -> PathBuf {
        self.folder.join("pipeline.toml")
    }

    /// A path in the site's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder of the stream's log.
    pub fn log_folder(&self) -> PathBuf {
        self.data.join("log/main")
    }

    /// Files of the log whose names end in `suffix`, by name.
    pub fn log_files(&self, suffix: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.log_folder()) else { return Vec::new() };
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.to_str().unwrap().ends_with(suffix));
        files.sort();
        files
    }

    /// The store, opened beside the daemon or after it.
    pub async fn store(&self) -> Store {
        Store::open(&self.data.join("store.sqlite")).await.unwrap()
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.data.join("store.sqlite")
    }

    /// The folder of the object store.
    pub fn artifacts(&self) -> PathBuf {
        self.data.join("artifacts")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        command.arg("run").arg(self.pipeline()).args(more).env_remove("THALWEG_LOG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn spawn(&self, more: &[&str]) -> Daemon {
        let log = tempfile::Builder::new().prefix("log").tempfile_in(&self.folder).unwrap();
        let (file, log) = log.keep().unwrap();
        let mut child = self.command(more).stderr(file).spawn().unwrap();
        let stdin = child.stdin.take();
        Daemon { child, stdin, http: String::new(), sources: BTreeMap::new(), log, ended: false }
    }

    /// Starts a daemon and waits until it is ready.
    pub fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    /// As [`Site::start`], with more arguments.
    pub fn start_with(&self, more: &[&str]) -> Daemon {
        let mut daemon = self.spawn(more);
        daemon.wait_until_ready();
        daemon
    }

    /// Runs a daemon that is expected to end by itself, with `input` on its
    /// standard input.
    pub fn run(&self, more: &[&str], input: &[u8]) -> Exit {
        let mut daemon = self.spawn(more);
        // A daemon that refuses to start closes its end.
        let _ = daemon.stdin.take().unwrap().write_all(input);
        daemon.wait(SOON)
    }
}

/// A daemon that runs. Killed when dropped; its log is shown if the test
/// fails.
pub struct Daemon {
    child: Child,
    /// Its standard input, while it is open.
    pub stdin: Option<ChildStdin>,
    /// Base of the HTTP interface.
    pub http: String,
    /// Addresses of the sources that listen, by name.
    pub sources: BTreeMap<String, String>,
    log: PathBuf,
    ended: bool,
}

#[derive(Deserialize)]
struct Ready {
    ready: bool,
    http: String,
    sources: BTreeMap<String, String>,
}

impl Daemon {
    fn wait_until_ready(&mut self) {
        let mut line = String::new();
        let stdout = self.child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready: Ready = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("no ready line ({e}) but {line:?}; the log:\n{}", self.log()));
        assert!(ready.ready);
        self.http = format!("http://{}", ready.http);
        self.sources = ready.sources;
    }

    /// Address of the TCP source.
    pub fn tcp(&self) -> &str {
        &self.sources["tcp"]
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What was logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: `kill` touches no memory; the process is a child not yet
        // waited for, so its number is its own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Asks to stop with SIGTERM and waits for the end.
    pub fn stop(mut self) -> Exit {
        self.signal(libc::SIGTERM);
        self.wait(SOON)
    }

    /// Stops and insists that everything was derived.
    pub fn stop_drained(self) {
        let exit = self.stop();
        assert_eq!(exit.code, Some(0), "the log:\n{}", exit.log);
    }

    /// Ends at once, as a crash does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.wait(SOON);
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the process to end.
    pub fn wait(&mut self, most: Duration) -> Exit {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = true;
                return Exit { code: status.code(), log: self.log(), took: started.elapsed() };
            }
            assert!(started.elapsed() < most, "the daemon did not end in {most:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `GET path`: status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response =
            thalweg::http_client::local().unwrap().get(format!("{}{path}", self.http)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// `/api/v1/status`.
    pub async fn status(&self) -> Value {
        let (code, body) = self.get("/api/v1/status").await;
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// `POST path`: status and body, which is JSON.
    pub async fn post(&self, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
        let request = thalweg::http_client::local().unwrap().post(format!("{}{path}", self.http));
        let response = request.header("content-type", content_type).body(body).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}")))
    }

    /// The hits of a search with these fields.
    pub async fn search(&self, request: Value) -> Vec<Value> {
        let (status, reply) = self.post("/api/v1/search", "application/json", request.to_string()).await;
        assert_eq!(status, 200, "{reply}");
        reply["hits"].as_array().unwrap().clone()
    }

    /// The offsets of the hits for `query` in the default tenant, best first.
    pub async fn find(&self, query: &str) -> Vec<u64> {
        let hits = self.search(json!({"tenant": "default", "query": query, "limit": 1000})).await;
        hits.iter().map(|hit| hit["lineage"]["offset"].as_u64().unwrap()).collect()
    }

    /// Waits until the log ends at `end` or later and all of it is derived;
    /// gives the status then. Checks the law of conservation on the way.
    pub async fn derived(&self, end: u64) -> Value {
        let started = Instant::now();
        loop {
            let status = self.status().await;
            let count = |key: &str| status["derived"][key].as_u64().unwrap();
            let accounted: u64 = ["indexed", "rejected", "deduplicated", "deferred", "dead_lettered", "lost"]
                .map(count)
                .iter()
                .sum();
            assert_eq!(accounted, count("next_offset"), "{status}");
            let (ends, in_flight) = (&status["end_offset"], &status["in_flight"]);
            if ends.as_u64().unwrap() >= end && *in_flight == 0 {
                return status;
            }
            assert!(started.elapsed() < SOON, "offset {end} was not derived in {SOON:?}: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}---", tail(&self.log, 8 << 10));
        }
    }
}

/// The end of a file, for people.
fn tail(path: &Path, bytes: usize) -> String {
    let mut text = Vec::new();
    let _ = File::open(path).and_then(|mut file| file.read_to_end(&mut text));
    String::from_utf8_lossy(&text[text.len().saturating_sub(bytes)..]).into_owned()
}

/// Waits until `holds`, and says what was waited for if that takes too long.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file of `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}
