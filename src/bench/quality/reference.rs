//! The same model in Python, on the same texts.
//!
//! The engine cuts a long abstract into chunks and Python cuts it off at 256
//! tokens, so the two do not see the same text. Hence two references: one of
//! the engine's own chunks, a record scored by its best one, to which the
//! engine must be equal; and one of whole texts, cut off, to which chunking is
//! compared.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dataset::TOP;
use crate::bench::progress;

/// How the reference is run.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The Python that has sentence-transformers.
    pub python: PathBuf,
    /// `scripts/quality-reference.py`.
    pub script: PathBuf,
    /// Folder of the model.
    pub model: PathBuf,
    /// Where results are kept, by the digest of all that went in.
    pub kept: PathBuf,
}

/// What the reference is given.
#[derive(Serialize)]
pub struct Texts<'a> {
    /// Folder of the model.
    model: &'a Path,
    /// Length of each ranking.
    top: usize,
    /// Questions.
    queries: &'a [String],
    /// The chunks of each record, as the engine cut them.
    chunks: &'a [Vec<String>],
    /// Each record whole.
    whole: &'a [String],
}

/// For each question the numbers of the nearest records, nearest first.
#[derive(Deserialize)]
pub struct Rankings {
    /// Who computed them.
    pub by: String,
    /// By the best chunk.
    pub chunks: Vec<Vec<usize>>,
    /// By the whole text, cut off where the model's reading ends.
    pub whole: Vec<Vec<usize>>,
}

impl Reference {
    /// Ranks in Python, or takes what Python gave for exactly these texts
    /// before.
    pub fn rank(&self, queries: &[String], chunks: &[Vec<String>], whole: &[String]) -> Result<Rankings> {
        let input = serde_json::to_vec(&Texts { model: &self.model, top: TOP, queries, chunks, whole })?;
        let output = self.kept.join(format!("{}.json", self.digest(&input)?));
        if output.exists() {
            progress(format_args!("Python's rankings of these very texts are kept in {}", output.display()));
        } else {
            std::fs::create_dir_all(&self.kept)?;
            let given = self.kept.join("texts.json");
            std::fs::write(&given, &input)?;
            self.run(&given, &output)?;
        }
        let rankings: Rankings = serde_json::from_slice(&std::fs::read(&output)?)
            .with_context(|| format!("{} is not what the script writes", output.display()))?;
        ensure!(
            rankings.chunks.len() == queries.len() && rankings.whole.len() == queries.len(),
            "{} does not rank every question; remove it",
            output.display()
        );
        Ok(rankings)
    }

    /// Of everything that decides the result but the versions of the
    /// libraries.
    fn digest(&self, input: &[u8]) -> Result<String> {
        let script = std::fs::read(&self.script)
            .with_context(|| format!("cannot read {}; run in the repository", self.script.display()))?;
        let digest = Sha256::new().chain_update(script).chain_update(input).finalize();
        Ok(digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect())
    }

    fn run(&self, input: &Path, output: &Path) -> Result<()> {
        progress(format_args!("embedding the same texts with {}; this takes minutes", self.python.display()));
        let ended = Command::new(&self.python)
            .arg(&self.script)
            .args([input, output])
            .status()
            .with_context(|| format!("cannot run {}", self.python.display()))?;
        ensure!(ended.success(), "{} ended with {ended}", self.script.display());
        Ok(())
    }
}
