//! `thalweg why`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::{FOUND_WRONG, Output, daemon::Daemon, output::facts};
use crate::{
    api::{Answer, Question},
    pipeline::why::{Fate, Whereabouts},
};

/// Show where a record is, and what keeps it from being found.
///
/// Exit codes: 0 it is found, or was left out for a reason that is shown; 3 it
/// waits, is lost, or is not there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg why 17400
  thalweg why main@17400 --json")]
pub struct Why {
    /// Its offset in the stream, as `search` shows it: 17400 or main@17400
    #[arg(value_name = "RECORD", value_parser = place)]
    record: Place,
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

/// An offset, and of which stream if that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    stream: Option<String>,
    offset: u64,
}

fn place(text: &str) -> Result<Place, String> {
    let (stream, offset) = match text.rsplit_once('@') {
        Some((stream, offset)) => (Some(stream.to_owned()), offset),
        None => (None, text),
    };
    let offset = offset.parse().map_err(|_| {
        format!("`{text}` is no record; write its offset, such as 17400 or main@17400, as `search` shows it")
    })?;
    Ok(Place { stream, offset })
}

impl Why {
    pub(super) fn run(self) -> Result<ExitCode> {
        let question = Question::Record { offset: self.record.offset };
        let answer: Answer = super::block_on(self.daemon.post("/api/v1/query", &question))?;
        let Answer::Record { record } = answer else {
            bail!("the daemon at {} answered another question", self.daemon.url)
        };
        if let Some(stream) = self.record.stream.filter(|stream| *stream != record.stream) {
            bail!("the daemon at {} has stream `{}`, not `{stream}`", self.daemon.url, record.stream);
        }
        self.output.print(&*record, text)?;
        Ok(match record.fate {
            Fate::Unknown | Fate::InFlight | Fate::Deferred | Fate::Lost => ExitCode::from(FOUND_WRONG),
            Fate::Indexed | Fate::Rejected | Fate::Deduplicated | Fate::DeadLettered => ExitCode::SUCCESS,
        })
    }
}

fn text(record: &Whereabouts) -> String {
    let fate = match record.fate {
        Fate::Unknown => "not in the log",
        Fate::InFlight => "in flight",
        Fate::Indexed => "indexed",
        Fate::Deferred => "deferred",
        Fate::Rejected => "rejected",
        Fate::Deduplicated => "deduplicated",
        Fate::DeadLettered => "dead-lettered",
        Fate::Lost => "lost",
    };
    let mut lines =
        vec![("record", format!("{}@{}", record.stream, record.offset)), ("fate", fate.to_owned())];
    lines.extend(record.reason.iter().map(|reason| ("reason", reason.clone())));
    lines.push(("detail", record.detail.clone()));
    lines.extend(record.blocked_by.iter().map(|what| ("blocked by", what.clone())));
    if record.chunks > 0 {
        lines.push(("chunks", format!("{}, {} with vectors", record.chunks, record.vectors)));
    }
    lines.extend(record.batch_tag.iter().map(|tag| ("batch", tag.clone())));
    let segment = record.segment.clone().unwrap_or_else(|| "not sealed yet".to_owned());
    if record.fate != Fate::Unknown {
        lines.push(("segment", segment));
        lines.push((
            "object",
            record.artifact.clone().unwrap_or_else(|| "not in the object store yet".to_owned()),
        ));
    }
    facts(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_an_offset_with_or_without_its_stream() {
        assert_eq!(place("7"), Ok(Place { stream: None, offset: 7 }));
        assert_eq!(place("a@b@7"), Ok(Place { stream: Some("a@b".into()), offset: 7 }));
        for bad in ["", "x", "main@", "-1"] {
            assert!(place(bad).unwrap_err().contains("write its offset"), "{bad}");
        }
    }
}
