//! A daemon as a child process, in a folder of its own.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    api::Status,
    config::{self, Pipeline},
    pipeline::search::{SearchReply, SearchRequest},
};

/// Records of one request.
const RECORDS_PER_REQUEST: usize = 500;

/// Questions asked at once: enough that no core waits for the network.
const ASKED_AT_ONCE: usize = 4;

/// Loading the model and opening the store.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Nothing derived for so long is a fault: records are committed in groups
/// whose embedding alone takes minutes on a busy machine.
const STALL_TIMEOUT: Duration = Duration::from_secs(900);

/// A stop with nothing left to derive.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A running daemon. Dropping it kills the process and removes the folder.
pub struct Daemon {
    process: Process,
    client: reqwest::Client,
    url: String,
    folder: Folder,
}

/// What a daemon leaves behind; removed when dropped.
pub struct Folder {
    folder: TempDir,
    file: PathBuf,
}

/// Killed when dropped, so that no failure leaves a daemon behind.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Deserialize)]
struct Ready {
    http: String,
}

impl Folder {
    /// With a pipeline file of defaults and `settings`.
    fn new(settings: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("thalweg-bench-").tempdir()?;
        let file = folder.path().join("pipeline.toml");
        let data = folder.path().join("data");
        let text = format!(
            "name = \"quality\"\ndata_dir = {:?}\n\n[[source]]\ntype = \"http\"\n\n\
             [http]\nlisten = \"127.0.0.1:0\"\n\n{settings}\n",
            data.display().to_string()
        );
        std::fs::write(&file, text)?;
        Ok(Self { folder, file })
    }

    /// The pipeline that ran in it.
    pub fn pipeline(&self) -> Result<Pipeline> {
        Ok(config::load(&self.file, &|name| std::env::var(name).ok())?)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }
}

impl Daemon {
    /// Starts this program's own `run` with default settings, but for what
    /// `settings`, a piece of a pipeline file, says.
    pub async fn start(settings: &str) -> Result<Self> {
        let folder = Folder::new(settings)?;
        let mut process = Process(
            Command::new(std::env::current_exe()?)
                .arg("run")
                .arg(&folder.file)
                .env("THALWEG_LOG", "warn")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(std::fs::File::create(folder.log())?)
                .spawn()
                .context("cannot start the daemon")?,
        );
        let Some(stdout) = process.0.stdout.take() else { bail!("the daemon has no standard output") };
        let line = timeout(START_TIMEOUT, spawn_blocking(|| first_line(stdout)))
            .await
            .context("the daemon does not get ready")???;
        ensure!(!line.is_empty(), "the daemon ended at once: {}", tail(&folder.log()));
        let ready: Ready =
            serde_json::from_str(&line).with_context(|| format!("the daemon said {line:?}"))?;
        let url = format!("http://{}", ready.http);
        Ok(Self { process, client: reqwest::Client::new(), url, folder })
    }

    /// Sends `records` over HTTP and waits until every one is derived.
    pub async fn ingest(&self, records: &[Value]) -> Result<Status> {
        for some in records.chunks(RECORDS_PER_REQUEST) {
            let lines: String = some.iter().map(|record| format!("{record}\n")).collect();
            let request = self
                .client
                .post(format!("{}/v1/ingest", self.url))
                .header("content-type", "application/x-ndjson")
                .body(lines);
            let reply: Value = request.send().await?.error_for_status()?.json().await?;
            let taken = reply.get("acknowledged").and_then(Value::as_u64);
            ensure!(taken == Some(some.len() as u64), "not every record was taken: {reply}");
        }
        self.settled(records.len() as u64).await
    }

    async fn settled(&self, records: u64) -> Result<Status> {
        let mut moved = (Instant::now(), 0);
        loop {
            let reply = self.client.get(format!("{}/v1/status", self.url)).send().await?;
            let status: Status = reply.error_for_status()?.json().await?;
            if status.in_flight == 0 && status.end_offset >= records {
                return Ok(status);
            }
            if status.derived.next_offset > moved.1 {
                moved = (Instant::now(), status.derived.next_offset);
            }
            ensure!(
                moved.0.elapsed() < STALL_TIMEOUT,
                "nothing was derived for {STALL_TIMEOUT:?}: {:?}; {}",
                status.derived,
                tail(&self.folder.log())
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks all `requests`; the answers are in their order.
    pub async fn ask(&self, requests: Vec<SearchRequest>) -> Result<Vec<SearchReply>> {
        stream::iter(requests).map(|request| self.search(request)).buffered(ASKED_AT_ONCE).try_collect().await
    }

    async fn search(&self, request: SearchRequest) -> Result<SearchReply> {
        let reply = self.client.post(format!("{}/v1/search", self.url)).json(&request).send().await?;
        let status = reply.status();
        let body = reply.text().await?;
        ensure!(status.is_success(), "a search was answered with {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Stops the daemon in order; what it stored stays until the folder is
    /// dropped.
    pub async fn stop(mut self) -> Result<Folder> {
        let pid = i32::try_from(self.process.0.id())?;
        // SAFETY: a plain system call; the child has not been waited for, so
        // the number is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let ended = timeout(STOP_TIMEOUT, self.ended()).await.context("the daemon does not stop")??;
        ensure!(ended.success(), "the daemon ended with {ended}: {}", tail(&self.folder.log()));
        Ok(self.folder)
    }

    async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.process.0.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Empty if the output ended before.
fn first_line(stdout: ChildStdout) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(line)
}

/// The end of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(3)).copied().collect::<Vec<_>>().join("; ")
}
