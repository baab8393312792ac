//! The trail, listed.

use anyhow::Result;

use crate::{
    api::Act,
    cli::{
        Output,
        output::{count, table, time},
    },
};

/// Prints acts, the newest first.
pub(super) fn print(acts: &[Act], output: Output) -> Result<()> {
    Ok(output.print(&acts, |acts| text(acts))?)
}

fn text(acts: &[Act]) -> String {
    let heading = ["ID", "AT", "WHO", "ACT", "ON", "OUTCOME", "TIMES", "DETAIL", "FROM"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(acts.iter().map(|entry| {
        vec![
            entry.id.to_string(),
            time(entry.at_ms),
            printable(&entry.principal),
            printable(&entry.act),
            printable(&entry.subject),
            entry.outcome.name().into(),
            count(entry.times),
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
