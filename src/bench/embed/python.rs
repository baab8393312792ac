//! The same model in Python, on the same texts: `scripts/embed-peer.py`.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Run;

/// Where the peer's exported model is kept.
const CACHE: &str = "target/embed-peer";
const SCRIPT: &str = "scripts/embed-peer.py";

/// The script, running: it loads its models once.
pub struct Python {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Who embeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Who {
    /// In fp32.
    #[serde(rename = "sentence-transformers")]
    SentenceTransformers,
    /// Quantised dynamically.
    #[serde(rename = "onnxruntime-int8")]
    OnnxRuntimeInt8,
}

#[derive(Serialize)]
struct Request<'a> {
    peer: Who,
    batch: usize,
    texts: &'a Path,
    vectors: Option<&'a Path>,
}

#[derive(Deserialize)]
struct Answer {
    seconds: f64,
    cpu_seconds: f64,
    by: String,
}

impl Python {
    /// Starts the script with `python` for the model in `model`.
    pub fn start(python: &Path, model: &Path) -> Result<Self> {
        let mut child = Command::new(python)
            .arg(SCRIPT)
            .args([model, Path::new(CACHE)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {} {SCRIPT}; run in the repository", python.display()))?;
        let requests = child.stdin.take().context("no way to ask it")?;
        let answers = BufReader::new(child.stdout.take().context("no way to hear it")?);
        Ok(Self { child, requests, answers })
    }

    /// Has the texts in the file `texts` embedded in batches of `batch`;
    /// `vectors` is where to, if they are wanted. Says who did it, too.
    pub fn embed(
        &mut self,
        peer: Who,
        batch: usize,
        texts: &Path,
        vectors: Option<&PathBuf>,
    ) -> Result<(Run, String)> {
        let request = Request { peer, batch, texts, vectors: vectors.map(PathBuf::as_path) };
        let mut line = serde_json::to_string(&request)?;
        line.push('\n');
        let asked = self.requests.write_all(line.as_bytes()).and_then(|()| self.requests.flush());
        line.clear();
        let read = asked.and_then(|()| self.answers.read_line(&mut line));
        ensure!(
            read.is_ok_and(|bytes| bytes > 0),
            "{SCRIPT} failed as {peer:?}; what it said is above (it needs sentence-transformers, onnx and onnxruntime)"
        );
        let Answer { seconds, cpu_seconds, by } = serde_json::from_str(&line)?;
        Ok((Run { seconds, cpu_seconds }, by))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
