//! The trail, listed.

use anyhow::Result;

use crate::{
    cli::{
        Output,
        output::{count, table, time},
    },
    identity::TrailRow,
    store::Store,
};

/// Prints at most `limit` rows before the number `before`, the newest first.
pub(super) async fn print(store: &Store, before: Option<i64>, limit: u32, output: Output) -> Result<()> {
    let rows = store.trail(before.unwrap_or(i64::MAX), limit).await?;
    output.print(&rows, |rows| text(rows))?;
    Ok(())
}

fn text(rows: &[TrailRow]) -> String {
    let heading = ["ID", "AT", "WHO", "ACT", "ON", "OUTCOME", "TIMES", "DETAIL", "FROM"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let TrailRow { id, entry, times, .. } = row;
        vec![
            id.to_string(),
            time(entry.at_ms),
            printable(&entry.principal),
            printable(&entry.act),
            printable(&entry.subject),
            entry.outcome.name().into(),
            count(*times),
            printable(&entry.detail),
            printable(entry.peer.as_deref().unwrap_or("-")),
        ]
    }));
    table(&lines)
}

/// What others chose must not speak to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
