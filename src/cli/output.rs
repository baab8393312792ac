//! How commands speak: to people on a terminal, or to programs.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

/// How a command prints its result.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

impl Output {
    /// Prints `value` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// If standard output cannot be written to.
    pub fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        let shown = if self.json { serde_json::to_string_pretty(value)? } else { text(value) };
        line(shown.trim_end())
    }
}

/// Prints a line. A reader that has gone away is no failure of ours.
///
/// # Errors
/// If standard output cannot be written to for another reason.
pub fn line(text: &str) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

/// Prints an error with its causes.
pub fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error:#}");
}

/// Columns of text, aligned; the first row is the heading. Numbers are
/// right-aligned.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let numeric = |c: usize| {
        let mut cells = rows.iter().skip(1).filter_map(|r| r.get(c)).peekable();
        cells.peek().is_some() && cells.all(|cell| is_quantity(cell))
    };
    let right: Vec<bool> = (0..columns).map(numeric).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).zip(&right).map(|((cell, width), right)| {
            if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// As [`table`], in Markdown.
pub fn markdown(rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let Some((heading, rows)) = rows.split_first() else { return String::new() };
    let rule = vec!["---".to_owned(); heading.len()];
    [line(heading), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}

/// Whether `cell` is a number, perhaps with a unit, or the dash for none. A
/// digest may begin with digits and is neither.
fn is_quantity(cell: &str) -> bool {
    let number = cell.trim_end_matches(['K', 'M', 'G', 'i', 'B']);
    cell == "-" || !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '.'))
}

/// A number with its thousands apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A rate: one decimal while it is small.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded on purpose; not negative"
)]
pub fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 99.5 {
        format!("{per_second:.1}")
    } else {
        count(per_second.round() as u64)
    }
}

/// Names and values, one a line, values aligned.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

/// A time in milliseconds since the Unix epoch, in UTC.
pub fn time(ms: i64) -> String {
    let Ok(time) = jiff::Timestamp::from_millisecond(ms) else { return format!("{ms} ms") };
    time.strftime("%F %T").to_string()
}

/// As much of a digest as people compare.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        let shown = [0, 999, 1_000, 1_234_567].map(count);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([rate(0.0), rate(12.34), rate(1_234.5)], ["0", "12.3", "1,235"]);
    }

    #[test]
    fn a_bar_in_a_cell_ends_no_column_of_markdown() {
        let rows = [["name", "n"], ["a|b", "10"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(markdown(&rows), "| name | n |\n| --- | --- |\n| a\\|b | 10 |\n");
    }

    #[test]
    fn numbers_are_aligned_right_and_words_left() {
        let rows = [["name", "n"], ["a", "10"], ["long", "9"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "name   n\na     10\nlong   9\n");
        assert!(["1,234", "3.4MiB", "-"].iter().all(|cell| is_quantity(cell)));
        assert!(["12abc3", "", "2026-01-01", "B"].iter().all(|cell| !is_quantity(cell)));
    }
}
