//! `thalweg dead-letters`.

mod redrive;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use super::{
    Output, PipelineFile, offline,
    output::{facts, table, time},
    send::secret,
};
use crate::{
    artifact::hex,
    record::RecordRef,
    secret::Secret,
    source::{amend::Field, client::Target},
    store::{DeadLetter, DeadLetterHead, DeadLetterState, Store},
};

/// List frames and records that could not be taken, and send them again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg dead-letters list --code unknown_tier
  thalweg dead-letters show 17
  thalweg dead-letters redrive 17 --set tier=event
  thalweg dead-letters redrive --all-open --to unix:///run/thalweg.sock")]
pub struct DeadLetters {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pipeline: PipelineFile,
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
        /// API key or token, where the pipeline asks for one
        #[arg(long, value_name = "KEY", env = "THALWEG_KEY", hide_env_values = true, value_parser = secret)]
        key: Option<Secret>,
        /// Mend a field of every record on the way
        #[arg(long = "set", value_name = "FIELD=VALUE")]
        set: Vec<Field>,
    },
}

#[derive(Debug, Serialize)]
struct Row {
    id: i64,
    state: &'static str,
    at_ms: i64,
    redriven_ms: Option<i64>,
    pipeline: String,
    source: String,
    peer: Option<String>,
    /// Where it is in the log, if it got there.
    stream: Option<String>,
    offset: Option<u64>,
    /// Where it was in the connection or file.
    frame: Option<u64>,
    byte: Option<u64>,
    code: String,
    message: String,
    payload_bytes: u64,
    /// The payload as text, or in hex where it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Value>,
}

impl Row {
    fn new(letter: DeadLetter) -> Self {
        let DeadLetter { id, letter, state, redriven_ms } = letter;
        let payload = letter.payload.unwrap_or_default();
        let record = RecordRef::parse(&payload).ok().map(|record| {
            serde_json::json!({"tenant": record.tenant, "text": record.text, "attrs": record.attrs()})
        });
        let shown = match std::str::from_utf8(&payload) {
            Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => text.to_owned(),
            _ => hex(&payload),
        };
        Self {
            id,
            state: state.as_str(),
            at_ms: letter.at_ms,
            redriven_ms,
            pipeline: letter.pipeline,
            source: letter.source,
            peer: letter.peer,
            stream: letter.stream,
            offset: letter.offset,
            frame: letter.frame_index,
            byte: letter.byte_offset,
            code: letter.code,
            message: letter.message,
            payload_bytes: payload.len() as u64,
            payload: (!payload.is_empty()).then_some(shown),
            record,
        }
    }

    /// Without its bytes.
    fn of_head(head: DeadLetterHead) -> Self {
        Self { payload_bytes: head.payload_bytes, ..Self::new(head.letter) }
    }

    /// Where it failed.
    fn place(&self) -> String {
        let number = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        match (&self.stream, &self.peer) {
            (Some(stream), _) => format!("{stream}@{}", number(self.offset)),
            (None, Some(peer)) => format!("{} {peer} frame {}", self.source, number(self.frame)),
            (None, None) => format!("{} frame {}", self.source, number(self.frame)),
        }
    }
}

impl DeadLetters {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        super::block_on(async {
            let store = offline::store(&pipeline).await?;
            let place = (&store, pipeline.name.as_str());
            let code = match self.what {
                What::List { all, code } => {
                    let mut heads = every(place, (!all).then_some(DeadLetterState::Open)).await?;
                    heads.retain(|head| code.as_ref().is_none_or(|code| *code == head.letter.letter.code));
                    let rows: Vec<Row> = heads.into_iter().map(Row::of_head).collect();
                    self.output.print(&rows, |rows| list_text(rows))?;
                    ExitCode::SUCCESS
                }
                What::Show { id } => {
                    self.output.print(&Row::new(one(place, id).await?), show_text)?;
                    ExitCode::SUCCESS
                }
                What::Redrive { mut ids, all_open, to, key, set } => {
                    if all_open {
                        let open = every(place, Some(DeadLetterState::Open)).await?;
                        ids = open.iter().map(|head| head.letter.id).collect();
                    }
                    let mut letters = Vec::new();
                    for id in ids {
                        letters.push(one(place, id).await?);
                    }
                    redrive::redrive(&store, letters, (to, key), &set, self.output).await?
                }
            };
            store.close().await;
            Ok(code)
        })
    }
}

/// The dead letter `id` of a pipeline, in its store.
async fn one((store, pipeline): (&Store, &str), id: i64) -> Result<DeadLetter> {
    let found = store.dead_letter(id).await?.filter(|letter| letter.letter.pipeline == pipeline);
    found.with_context(|| format!("there is no dead letter {id} of the pipeline `{pipeline}`"))
}

/// Rows read at once.
const PAGE: u32 = 1_000;
/// More would neither be read nor fit into memory for sure.
const MOST: usize = 100_000;

/// The dead letters of a pipeline, in its store.
async fn every(
    (store, pipeline): (&Store, &str),
    state: Option<DeadLetterState>,
) -> Result<Vec<DeadLetterHead>> {
    let mut heads: Vec<DeadLetterHead> = Vec::new();
    loop {
        let after = heads.last().map_or(0, |head| head.letter.id);
        let page = store.dead_letter_heads(pipeline, state, after, PAGE).await?;
        let last = page.len() < PAGE as usize;
        heads.extend(page);
        if last {
            return Ok(heads);
        }
        if heads.len() > MOST {
            bail!(
                "there are over {MOST} dead letters; mend the producer first, and send some by their number"
            );
        }
    }
}

fn list_text(rows: &[Row]) -> String {
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
            row.state.to_owned(),
            row.place(),
            row.payload_bytes.to_string(),
            row.message.clone(),
        ]
    }));
    table(&cells)
}

fn show_text(row: &Row) -> String {
    let mut lines = vec![
        ("id", row.id.to_string()),
        ("state", row.state.to_owned()),
        ("time", time(row.at_ms)),
        ("where", row.place()),
        ("code", row.code.clone()),
        ("what", row.message.clone()),
        ("bytes", row.payload_bytes.to_string()),
    ];
    if let Some(at) = row.redriven_ms {
        lines.push(("sent again", time(at)));
    }
    if let Some(record) = &row.record {
        lines.push(("record", record.to_string()));
    }
    let payload = row.payload.as_ref().map_or_else(String::new, |payload| format!("\n{payload}\n"));
    facts(&lines) + &payload
}
