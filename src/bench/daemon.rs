//! A daemon of this program as a child process, in a folder of its own.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::time::sleep;

use super::usage::{self, Usage};
use crate::{
    api::Status,
    config::{self, Pipeline},
    http_client,
};

/// How long it may take to get ready: a model is read, files are zeroed.
const READY: Duration = Duration::from_secs(120);
/// Nothing derived for so long is a fault: the embedding of one group of
/// records alone takes minutes on a busy machine.
const STALLED: Duration = Duration::from_secs(900);
/// Time between two looks at where it stands.
const POLL: Duration = Duration::from_millis(10);
/// Processor time over which a server that is asked nothing still works.
const BUSY: Duration = Duration::from_millis(20);
/// How long it is watched to tell.
const WATCHED: Duration = Duration::from_millis(250);

/// A pipeline file and the data it points at; removed when dropped.
#[derive(Debug)]
pub struct Folder {
    dir: TempDir,
    file: PathBuf,
}

impl Folder {
    /// In `scratch`, with a TCP and an HTTP source on free ports, and
    /// `settings`, a piece of a pipeline file; all else is as users get it.
    pub fn new(scratch: &Path, settings: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("thalweg-bench-").tempdir_in(scratch)?;
        let file = dir.path().join("bench.toml");
        let data = dir.path().join("data");
        let text = format!(
            "name = \"bench\"\ndata_dir = {data:?}\n\n\
             [[source]]\ntype = \"tcp\"\nlisten = \"127.0.0.1:0\"\n\n\
             [[source]]\ntype = \"http\"\n\n\
             [http]\nlisten = \"127.0.0.1:0\"\n\n{settings}\n"
        );
        fs::write(&file, text)?;
        Ok(Self { dir, file })
    }

    /// The pipeline that runs in it.
    pub fn pipeline(&self) -> Result<Pipeline> {
        Ok(config::load(&self.file, &|name| std::env::var(name).ok())?)
    }

    /// Its pipeline file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Runs its pipeline in a process of its own until all files are read and
    /// derived. Returns what that used.
    pub fn run_once(&self) -> Result<Usage> {
        let process = Process::start(self.command()?.arg("--once").stdout(Stdio::null()))?;
        let (status, usage) = process.wait()?;
        ensure!(status.success(), "the daemon ended with {status}: {}", self.last_words());
        Ok(usage)
    }

    /// This program's own `run`.
    fn command(&self) -> Result<Command> {
        let mut command = program()?;
        command.arg("run").arg(&self.file).args(["--log", "warn"]);
        command.stdin(Stdio::null()).stderr(File::create(self.log())?);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// The end of what the daemon said, for an error message.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(3)).copied().collect::<Vec<_>>().join("; ")
    }
}

/// This program, to be started once more.
pub fn program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program's own file")?))
}

/// A process that ends with this one, or when it is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Result<Self> {
        let die_with_parent = || {
            // SAFETY: a system call that allocates nothing and takes no lock,
            // so it may stand between fork and exec.
            let done = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: see above.
        let command = unsafe { command.pre_exec(die_with_parent) };
        let child = command.spawn().with_context(|| {
            format!("cannot start `{}`; is it installed?", command.get_program().to_string_lossy())
        })?;
        Ok(Self(child))
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        usage::of_process(self.0.id()).context("cannot see what the process uses")
    }

    /// Waits until it does nothing any more, so that what it left undone does
    /// not fall on whoever is measured next. Returns what it has used.
    pub fn rest(&self) -> Result<Usage> {
        loop {
            let before = self.usage()?;
            std::thread::sleep(WATCHED);
            let after = self.usage()?;
            if after.cpu.saturating_sub(before.cpu) <= BUSY {
                return Ok(after);
            }
        }
    }

    /// Waits until it ends by itself. Returns what it and its children used;
    /// the memory is its own, as seen up to [`POLL`] before its end. Nobody
    /// else may wait for a child meanwhile.
    pub fn wait(mut self) -> Result<(ExitStatus, Usage)> {
        let before = usage::children().cpu;
        let mut peak_rss_bytes = 0;
        loop {
            // What has ended and was not waited for has no memory to tell of.
            if let Ok(usage) = self.usage() {
                peak_rss_bytes = usage.peak_rss_bytes;
            }
            if let Some(status) = self.0.try_wait()? {
                let cpu = usage::children().cpu.saturating_sub(before);
                return Ok((status, Usage { cpu, peak_rss_bytes }));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks it to end and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        let pid = libc::pid_t::try_from(self.0.id())?;
        // SAFETY: sends a signal to our own child, which has not been waited
        // for, so its id cannot belong to another process.
        ensure!(unsafe { libc::kill(pid, libc::SIGTERM) } == 0, "cannot stop process {pid}");
        let status = self.0.wait()?;
        ensure!(status.success(), "process {pid} ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    ready: Ready,
    http: reqwest::Client,
    folder: Folder,
}

#[derive(Debug, Deserialize)]
struct Ready {
    http: String,
    sources: std::collections::BTreeMap<String, String>,
}

impl Daemon {
    /// Starts this program's own `run` in `folder`.
    pub fn start(folder: Folder) -> Result<Self> {
        let mut process = Process::start(folder.command()?.stdout(Stdio::piped()))?;
        let ready = ready_line(&mut process.0).with_context(|| folder.last_words())?;
        Ok(Self { process, ready, http: http_client::local()?, folder })
    }

    /// Address of its TCP source.
    pub fn address(&self) -> Result<&str> {
        Ok(self.ready.sources.get("tcp").context("the daemon has no TCP source")?)
    }

    /// The address of `path` over HTTP.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.ready.http)
    }

    /// A client that keeps its connections.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Where it stands.
    pub async fn status(&self) -> Result<Status> {
        let response = self.http.get(self.url("/api/v1/status")).send().await?;
        Ok(response.error_for_status()?.json().await?)
    }

    /// Waits until everything up to `offset` is derived.
    pub async fn derived(&self, offset: u64) -> Result<Status> {
        let mut moved = (Instant::now(), 0);
        loop {
            let status = self.status().await?;
            if status.derived.next_offset >= offset {
                return Ok(status);
            }
            if status.derived.next_offset > moved.1 {
                moved = (Instant::now(), status.derived.next_offset);
            }
            ensure!(
                moved.0.elapsed() < STALLED && status.derived.trouble.is_empty(),
                "the daemon does not derive: {:?}; {}",
                status.derived,
                self.folder.last_words()
            );
            sleep(POLL).await;
        }
    }

    /// Kills it where it stands.
    pub fn kill(self) -> Folder {
        let Self { process, folder, .. } = self;
        drop(process);
        folder
    }

    /// Stops it in order. What it stored stays until the folder is dropped.
    pub fn stop(self) -> Result<Folder> {
        let Self { process, folder, .. } = self;
        process.stop().with_context(|| folder.last_words())?;
        Ok(folder)
    }
}

fn ready_line(child: &mut Child) -> Result<Ready> {
    let stdout = child.stdout.take().context("the daemon has no output")?;
    let (send, line) = mpsc::channel();
    // Ends with the line, or with the daemon.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let _ = send.send(read.map(|_| line));
    });
    let line = line.recv_timeout(READY).context("the daemon was not ready in time")??;
    serde_json::from_str(&line).with_context(|| format!("the daemon said {line:?} instead of being ready"))
}
