//! `thalweg dead-letters`.

mod letters;
mod redrive;

use std::process::ExitCode;

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};

use self::letters::Letters;
use super::{
    Output,
    output::{facts, table, time},
    place::Place,
};
use crate::{
    api::Letter,
    artifact::hex,
    record::RecordRef,
    source::{amend::Field, client::Target},
};

/// List frames and records that could not be taken, and send them again.
///
/// Over --url the daemon itself takes what is sent again, so `--to` is not
/// looked at; to mend it with --set takes a key with the right to ingest too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg dead-letters list --code unknown_tier
  thalweg dead-letters show 17
  thalweg dead-letters redrive 17 --set tier=event
  thalweg dead-letters redrive --all-open --to unix:///run/thalweg.sock
  thalweg dead-letters redrive --all-open --url https://memory.example.org")]
pub struct DeadLetters {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List those that wait
    List {
        /// Those that were sent again too
        #[arg(long)]
        all: bool,
        /// Only those with this code
        #[arg(long)]
        code: Option<String>,
    },
    /// Show one with its bytes
    Show {
        /// Its number
        id: i64,
    },
    /// Send again to the running pipeline, and mark what it takes
    Redrive {
        /// Their numbers
        #[arg(value_name = "ID", required_unless_present = "all_open")]
        ids: Vec<i64>,
        /// All that wait
        #[arg(long, conflicts_with = "ids")]
        all_open: bool,
        /// Where to: tcp://HOST:PORT or unix:///PATH
        #[arg(long, value_name = "ADDRESS", env = "THALWEG_TO", default_value = "tcp://127.0.0.1:7410")]
        to: Target,
        /// Mend a field of every record on the way
        #[arg(long = "set", value_name = "FIELD=VALUE")]
        set: Vec<Field>,
    },
}

impl DeadLetters {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            let letters = Letters::open(self.place.find()?).await?;
            let code = self.ask(&letters).await;
            letters.close().await;
            code
        })
    }

    async fn ask(self, letters: &Letters) -> Result<ExitCode> {
        match self.what {
            What::List { all, code } => {
                let mut rows = letters.list(all).await?;
                rows.retain(|letter| code.as_ref().is_none_or(|code| *code == letter.code));
                self.output.print(&rows, |rows| list_text(rows))?;
            }
            What::Show { id } => self.output.print(&letters.show(id).await?, show_text)?,
            What::Redrive { mut ids, all_open, to, set } => {
                if all_open {
                    ids = letters.list(false).await?.iter().map(|letter| letter.id).collect();
                }
                let outcomes = letters.redrive(ids, (to, self.place.key), &set).await?;
                return redrive::told(&outcomes, self.output);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Where it failed.
fn place(letter: &Letter) -> String {
    let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    match (&letter.stream, &letter.peer) {
        (Some(stream), _) => format!("{stream}@{}", number(letter.offset)),
        (None, Some(peer)) => format!("{} {peer} frame {}", letter.source, number(letter.frame)),
        (None, None) => format!("{} frame {}", letter.source, number(letter.frame)),
    }
}

fn list_text(rows: &[Letter]) -> String {
    if rows.is_empty() {
        return "none\n".into();
    }
    let mut cells =
        vec![["id", "time", "code", "state", "where", "bytes", "what"].map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            row.id.to_string(),
            time(row.at_ms),
            row.code.clone(),
            row.state.clone(),
            place(row),
            row.payload_bytes.to_string(),
            row.message.clone(),
        ]
    }));
    table(&cells)
}

fn show_text(row: &Letter) -> String {
    let mut lines = vec![
        ("id", row.id.to_string()),
        ("state", row.state.clone()),
        ("time", time(row.at_ms)),
        ("where", place(row)),
        ("code", row.code.clone()),
        ("what", row.message.clone()),
        ("bytes", row.payload_bytes.to_string()),
    ];
    if let Some(at) = row.redriven_ms {
        lines.push(("sent again", time(at)));
    }
    let payload = row.payload.as_ref().and_then(|payload| STANDARD.decode(payload).ok()).unwrap_or_default();
    if let Ok(record) = RecordRef::parse(&payload) {
        let shown =
            serde_json::json!({"tenant": record.tenant, "text": record.text, "attrs": record.attrs()});
        lines.push(("record", shown.to_string()));
    }
    let payload = if payload.is_empty() { String::new() } else { format!("\n{}\n", readable(&payload)) };
    facts(&lines) + &payload
}

/// As text, or in hex where it is none, or would move a terminal's cursor.
fn readable(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => text.to_owned(),
        _ => hex(payload),
    }
}
