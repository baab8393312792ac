//! `thalweg dictionaries list` and `show`.

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cli::{
        Output,
        output::{count, facts, short, table, time},
    },
    dictionary::Identity,
    pipeline::dictionaries::Dictionaries,
    store::{ArtifactRow, Store},
    units::ByteSize,
};

/// A dictionary of the stream.
#[derive(Debug, Serialize)]
struct Row {
    digest: String,
    zstd_id: Option<u64>,
    bytes: u64,
    created_ms: i64,
    /// Whether new segments are sealed with it.
    adopted: bool,
    /// Whether a sound copy lies beside the log.
    beside_log: bool,
    /// Segments that cannot be read without it.
    segments: usize,
}

/// A dictionary with all that is known of it.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Row,
    file: std::path::PathBuf,
    /// Names of the segments that cannot be read without it.
    needed_by: Vec<String>,
    /// What its training found.
    trial: Value,
}

pub(super) async fn list(dictionaries: &Dictionaries, store: &Store, output: Output) -> Result<()> {
    let mut rows = Vec::new();
    for row in dictionaries.registered().await? {
        rows.push(known(dictionaries, store, row).await?.row);
    }
    output.print(&rows, |rows| list_text(rows))?;
    Ok(())
}

pub(super) async fn show(
    dictionaries: &Dictionaries,
    store: &Store,
    digest: &str,
    output: Output,
) -> Result<()> {
    let mut found = dictionaries.registered().await?;
    found.retain(|row| row.digest.starts_with(digest));
    let Some(row) = found.pop() else {
        bail!(
            "no dictionary has a digest that begins with `{digest}`; `thalweg dictionaries list` shows them"
        )
    };
    if !found.is_empty() {
        bail!("{} dictionaries have a digest that begins with `{digest}`; write more of it", found.len() + 1);
    }
    let shown = known(dictionaries, store, row).await?;
    output.print(&shown, text)?;
    Ok(())
}

async fn known(dictionaries: &Dictionaries, store: &Store, row: ArtifactRow) -> Result<Shown> {
    let Some(digest) = Identity::digest_of_hex(&row.digest) else {
        bail!("the registry has a dictionary with digest `{}`, which is none", row.digest)
    };
    let library = &dictionaries.library;
    let trial: Value = serde_json::from_str(&row.meta)?;
    let needed_by = store.dictionary_users(&row.digest).await?;
    Ok(Shown {
        row: Row {
            zstd_id: trial.pointer("/best/zstd_id").and_then(Value::as_u64),
            bytes: row.bytes,
            created_ms: row.created_ms,
            adopted: library.adopted_digest()? == Some(digest),
            beside_log: library.holds(&digest)?,
            segments: needed_by.len(),
            digest: row.digest,
        },
        file: library.path(&digest),
        needed_by,
        trial,
    })
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn list_text(rows: &[Row]) -> String {
    let heading = ["digest", "zstd id", "size", "trained", "adopted", "beside log", "segments"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            short(&row.digest).to_owned(),
            row.zstd_id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            ByteSize(row.bytes).to_string(),
            time(row.created_ms),
            yes_no(row.adopted),
            yes_no(row.beside_log),
            count(row.segments as u64),
        ]
    }));
    table(&cells)
}

fn text(shown: &Shown) -> String {
    let Shown { row, file, needed_by, trial } = shown;
    let number = |pointer: &str| trial.pointer(pointer).and_then(Value::as_u64).map_or("-".to_owned(), count);
    let length = |pointer: &str| trial.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
    let facts = facts(&[
        ("digest", row.digest.clone()),
        ("zstd id", row.zstd_id.map_or_else(|| "-".to_owned(), |id| id.to_string())),
        ("size", ByteSize(row.bytes).to_string()),
        ("trained", time(row.created_ms)),
        ("adopted", yes_no(row.adopted)),
        ("file", format!("{}{}", file.display(), if row.beside_log { "" } else { " (missing)" })),
        ("trained on", format!("{} segments", length("/trained_on"))),
        ("held out", format!("{} segments, {} bytes of frames", length("/held_out"), number("/plain_bytes"))),
        ("with it", format!("{} bytes, and itself", number("/contest/entrant/segment_bytes"))),
        ("without, same blocks", format!("{} bytes", number("/contest/without"))),
        ("without, larger blocks", format!("{} bytes", number("/contest/undivided"))),
        ("needed by", format!("{} segments", needed_by.len())),
    ]);
    let names: String = needed_by.iter().map(|name| format!("  {name}\n")).collect();
    facts + &names
}
