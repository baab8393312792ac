//! What is embedded: chat, logs and documents.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::bench::{data::Corpus, progress, quality};

/// Texts of one run: some seconds of the slowest side.
const SHORT_TEXTS: usize = 1_000;
const DOCUMENTS: usize = 200;

/// One corpus.
pub struct Texts {
    /// What it is called in cases.
    pub name: &'static str,
    /// In the order of the data.
    pub texts: Vec<String>,
}

#[derive(Deserialize)]
struct LogLine {
    raw: String,
}

/// LoCoMo's turns and loghub's lines where `data` has them, and SciFact's
/// abstracts; chat from IRC where there is no LoCoMo.
pub fn all(fixtures: &Path, data: &Path) -> Result<Vec<Texts>> {
    let mut all = Vec::new();
    let fixture = |name, fixture, most| -> Result<Texts> {
        let mut texts = Corpus::load(fixtures, fixture)?.texts()?;
        texts.truncate(most);
        Ok(Texts { name, texts })
    };
    match quality::locomo_turns(data) {
        Ok(mut texts) => {
            texts.truncate(SHORT_TEXTS);
            all.push(Texts { name: "LoCoMo turns", texts });
        }
        Err(error) => {
            progress(format_args!("SKIPPED: LoCoMo is not measured, IRC instead: {error:#}; see --data"));
            all.push(fixture("IRC messages", "irc_ubuntu", SHORT_TEXTS)?);
        }
    }
    match quality::lines::<LogLine>(&data.join("loghub.jsonl.zst")) {
        Ok(lines) => {
            // Of every system some.
            let step = lines.len().div_ceil(SHORT_TEXTS).max(1);
            let texts = lines.into_iter().step_by(step).map(|line| line.raw).collect();
            all.push(Texts { name: "loghub lines", texts });
        }
        Err(error) => progress(format_args!("SKIPPED: loghub is not measured: {error:#}; see --data")),
    }
    all.push(fixture("documents", "scifact_docs", DOCUMENTS)?);
    Ok(all)
}
