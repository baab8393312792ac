//! A daemon of this program as a child process.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    api::Status,
    bench::usage::{self, Usage},
};

/// How long it may take to get ready: a model is read, files are zeroed.
const READY: Duration = Duration::from_secs(120);
/// Time between two looks at where it stands.
const POLL: Duration = Duration::from_millis(10);

/// A running daemon; killed if dropped.
pub struct Daemon {
    child: Child,
    ready: Ready,
    http: reqwest::Client,
}

#[derive(Deserialize)]
struct Ready {
    http: String,
    sources: std::collections::BTreeMap<String, String>,
}

impl Daemon {
    /// Starts a pipeline with one TCP source and the embedder `provider` that
    /// keeps everything in `dir`; all else is as users get it.
    pub fn start(dir: &Path, provider: &str) -> Result<Self> {
        let file = dir.join("bench.toml");
        let data = dir.join("data");
        std::fs::write(
            &file,
            format!(
                "name = \"bench\"\ndata_dir = {data:?}\n\n[[source]]\ntype = \"tcp\"\nname = \"tcp\"\n\
                 listen = \"127.0.0.1:0\"\n\n[http]\nlisten = \"127.0.0.1:0\"\n\n[embed]\n\
                 provider = \"{provider}\"\n"
            ),
        )?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut child = Command::new(program)
            .arg("run")
            .arg(&file)
            .args(["--log", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the daemon")?;
        match ready_line(&mut child) {
            Ok(ready) => Ok(Self { child, ready, http: reqwest::Client::new() }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Address of its TCP source.
    pub fn address(&self) -> Result<&str> {
        Ok(self.ready.sources.get("tcp").context("the daemon has no TCP source")?)
    }

    /// What it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        usage::of_process(self.child.id()).context("cannot see what the daemon uses")
    }

    /// Where it stands.
    pub async fn status(&self) -> Result<Status> {
        let response = self.http.get(format!("http://{}/v1/status", self.ready.http)).send().await?;
        Ok(response.error_for_status()?.json().await?)
    }

    /// Waits until everything up to `offset` is derived.
    pub async fn derived(&self, offset: u64) -> Result<Status> {
        loop {
            let status = self.status().await?;
            if status.derived.next_offset >= offset {
                return Ok(status);
            }
            ensure!(
                status.derived.trouble.is_empty(),
                "the daemon is in trouble: {:?}",
                status.derived.trouble
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Tells it to stop and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        let pid = libc::pid_t::try_from(self.child.id())?;
        // SAFETY: sends a signal to our own child, which has not been waited
        // for, so its id cannot belong to another process.
        ensure!(unsafe { libc::kill(pid, libc::SIGTERM) } == 0, "cannot stop the daemon");
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon stopped with {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails where it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ready_line(child: &mut Child) -> Result<Ready> {
    let stdout = child.stdout.take().context("the daemon has no output")?;
    let (send, line) = std::sync::mpsc::channel();
    // Ends with the line, or with the daemon.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let _ = send.send(read.map(|_| line));
    });
    let started = Instant::now();
    match line.recv_timeout(READY) {
        Ok(line) => {
            let line = line?;
            serde_json::from_str(&line).with_context(|| {
                format!("the daemon ended before it was ready; what it said is above (its output: {line:?})")
            })
        }
        Err(_) => bail!("the daemon was not ready within {} s", started.elapsed().as_secs()),
    }
}
