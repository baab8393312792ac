//! `thalweg send`.

mod input;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::input::{Places, Selection};
use super::{
    Output,
    meter::Meter,
    output::{count, facts, rate},
};
use crate::{
    log::MAX_NAME_BYTES,
    secret::Secret,
    source::{
        amend::Field,
        client::{Client, Producer, Report, Settings, Tally, Target},
        file::Content,
        hello::{MAX_NUMBER, is_name},
    },
    units::ByteSize,
};

/// Send files or standard input to a running pipeline over TCP or a Unix socket.
///
/// Every frame is answered: acknowledged once it is on the server's disk, or
/// refused with a reason. When the connection breaks, what has no answer is
/// sent again on a new one; a refused frame is not. The records of a run are
/// numbered, so that none is stored twice however often the connection breaks.
///
/// Exit codes: 0 everything acknowledged; 1 something refused, unreadable or
/// not acknowledged.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg send fixtures/python311.jsonl.zst --set tenant=docs
  thalweg send --to unix:///run/thalweg.sock --rate 500/s events.jsonl
  thalweg send --producer import-2024 big.jsonl     # the same again goes on where it stopped
  journalctl -o cat | jq -Rc '{text: .}' | thalweg send -")]
pub struct Send {
    /// JSON Lines (.jsonl, .ndjson) or frames (.frames, .seg, .msgpack), also
    /// as .zst; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Where to: tcp://HOST:PORT or unix:///PATH
    #[arg(long, value_name = "ADDRESS", env = "THALWEG_TO", default_value = "tcp://127.0.0.1:7410")]
    to: Target,
    /// API key or token, where the pipeline asks for one. Better in the
    /// environment: arguments are seen by everybody on the machine
    #[arg(long, value_name = "KEY", env = "THALWEG_KEY", hide_env_values = true, value_parser = secret)]
    key: Option<Secret>,
    /// What the files hold
    #[arg(long, value_enum, default_value = "auto")]
    format: Format,
    /// Pass over the first N records
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: u64,
    /// Send at most N records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Send at most this many records a second, such as 500/s
    #[arg(long, value_name = "N/s", value_parser = per_second)]
    rate: Option<f64>,
    /// Set a field of every record
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    set: Vec<Field>,
    /// Attempts to connect again, in a row
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,
    /// Name of this input. Records are known by the name and their place in
    /// the input: the same command run again stores only what is not stored
    /// yet. Another input needs another name. Without it each run has its own
    #[arg(long, value_name = "NAME", value_parser = producer_name)]
    producer: Option<String>,
    /// Epoch of the producer. A higher one stores the input anew and stops
    /// whoever still sends under a lower one
    #[arg(long, value_name = "N", default_value_t = 0, requires = "producer", value_parser = clap::value_parser!(u64).range(0..=MAX_NUMBER))]
    epoch: u64,
    /// Records that may wait for their acknowledgement
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(1..))]
    window: u64,
    /// Bytes that may wait for their acknowledgement
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    window_bytes: ByteSize,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// By the file's name; JSON Lines on standard input
    Auto,
    /// A JSON object a line
    Jsonl,
    /// Length-prefixed MessagePack
    Frames,
}

/// A key as it is given, kept out of everything that is printed.
#[expect(clippy::unnecessary_wraps, reason = "a value parser may fail")]
pub fn secret(s: &str) -> Result<Secret, String> {
    Ok(s.to_owned().into())
}

/// `500/s` or `500`.
pub fn per_second(s: &str) -> Result<f64, String> {
    let number = s.strip_suffix("/s").unwrap_or(s);
    number
        .parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| format!("`{s}` is no rate; write a number a second, such as 500/s"))
}

fn producer_name(s: &str) -> Result<String, String> {
    match is_name(s) {
        true => Ok(s.to_owned()),
        false => Err(format!("a name has 1 to {MAX_NAME_BYTES} bytes and no control characters")),
    }
}

/// How the sending went.
#[derive(Debug, Serialize)]
struct Summary {
    to: String,
    sent: u64,
    acknowledged: u64,
    /// Of those, how many were stored before.
    duplicates: u64,
    refused: BTreeMap<String, u64>,
    unreadable: u64,
    unanswered: u64,
    /// The first that were refused or could not be read.
    problems: Vec<Problem>,
    resent: u64,
    reconnects: u64,
    bytes: u64,
    seconds: f64,
    records_per_s: f64,
    ack_ms: Latency,
    /// Offsets of acknowledged records: first, and the one after the last.
    offsets: Option<(u64, u64)>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Problem {
    place: String,
    code: String,
    message: String,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Send {
    pub(super) fn run(self) -> Result<ExitCode> {
        let summary = super::block_on(self.send())?;
        self.output.print(&summary, Summary::text)?;
        Ok(if summary.is_fine() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn send(&self) -> Result<Summary> {
        let selection = Selection {
            content: match self.format {
                Format::Auto => None,
                Format::Jsonl => Some(Content::JsonLines),
                Format::Frames => Some(Content::Frames),
            },
            skip: self.skip,
            limit: self.limit,
            set: self.set.clone(),
        };
        let settings = Settings {
            window_frames: self.window,
            window_bytes: self.window_bytes.as_usize().max(1),
            rate: self.rate,
            retries: self.retries,
            producer: Some(self.producer()),
            key: self.key.clone(),
        };
        let (places, tally) = (Arc::new(Places::default()), Tally::default());
        let started = Instant::now();
        let (frames, reading) = input::start(self.files.clone(), selection, places.clone());
        let client = Client::new(self.to.clone(), settings);
        let sent = self.watched(client.send(frames, &tally), &tally).await;
        let seconds = started.elapsed().as_secs_f64();
        // When sending was given up, reading may still wait for its input.
        let error = match sent {
            Some(Ok(())) => reading.await.context("reading panicked").flatten().err(),
            Some(Err(error)) => Some(error.into()),
            None => Some(anyhow::anyhow!("interrupted")),
        };
        Ok(Summary::new(&self.to, &tally.look(), &places, seconds, error.as_ref()))
    }

    fn producer(&self) -> Producer {
        let name = self.producer.clone();
        let name = name.unwrap_or_else(|| format!("send-{:016x}", rand::random::<u64>()));
        Producer { name, epoch: self.epoch }
    }

    /// Shows progress until `sending` is done; `None` if interrupted.
    async fn watched<T>(&self, sending: impl Future<Output = T>, tally: &Tally) -> Option<T> {
        let mut meter = Meter::new(self.limit);
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut sending = std::pin::pin!(sending);
        let mut reconnects = 0;
        loop {
            tokio::select! {
                done = &mut sending => return Some(done),
                _ = tokio::signal::ctrl_c() => return None,
                _ = tick.tick() => {
                    let report = tally.look();
                    if report.reconnects > reconnects {
                        reconnects = report.reconnects;
                        meter.say(&format!("connecting to {} again", self.to));
                    }
                    let more = match report.refused_total() {
                        0 => String::new(),
                        refused => format!("  {} refused", count(refused)),
                    };
                    meter.at(report.acknowledged, &more);
                }
            }
        }
    }
}

impl Summary {
    fn new(
        to: &Target,
        report: &Report,
        places: &Places,
        seconds: f64,
        error: Option<&anyhow::Error>,
    ) -> Self {
        let (unreadable, first_unreadable) = places.unreadable();
        let refused = report.first_refused.iter().map(|refused| Problem {
            place: places.of(refused.frame),
            code: refused.code.clone(),
            message: refused.message.clone(),
        });
        let unread = first_unreadable.into_iter().map(|(place, message)| Problem {
            place,
            code: "unreadable".into(),
            message,
        });
        #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
        let ms = |q| report.latency_us.value_at_quantile(q) as f64 / 1_000.0;
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
        let records_per_s = report.acknowledged as f64 / seconds.max(1e-9);
        let first = report.ranges.iter().map(|range| range.offset).min();
        let end = report.ranges.iter().map(|range| range.offset + range.count).max();
        Self {
            to: to.to_string(),
            sent: report.sent,
            acknowledged: report.acknowledged,
            duplicates: report.duplicates,
            refused: report.refused.clone(),
            unreadable,
            unanswered: report.unanswered(),
            problems: refused.chain(unread).collect(),
            resent: report.resent,
            reconnects: report.reconnects,
            bytes: report.bytes,
            seconds,
            records_per_s,
            ack_ms: Latency { p50: ms(0.5), p95: ms(0.95), p99: ms(0.99), max: ms(1.0) },
            offsets: first.zip(end),
            error: error.map(|error| format!("{error:#}")),
        }
    }

    fn is_fine(&self) -> bool {
        self.error.is_none() && self.acknowledged == self.sent && self.unreadable == 0
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for Problem { place, code, message } in &self.problems {
            text += &format!("{place}: {code}: {message}\n");
        }
        let refused: u64 = self.refused.values().sum();
        let by_code: Vec<_> = self.refused.iter().map(|(code, n)| format!("{code} {}", count(*n))).collect();
        let Latency { p50, p95, p99, max } = self.ack_ms;
        let mut lines = vec![
            ("acknowledged", format!("{} of {}", count(self.acknowledged), count(self.sent))),
            ("refused", [vec![count(refused)], by_code].concat().join("  ")),
        ];
        if self.duplicates > 0 {
            lines.push(("stored before", count(self.duplicates)));
        }
        if self.unreadable > 0 {
            lines.push(("unreadable", count(self.unreadable)));
        }
        if self.unanswered > 0 {
            lines.push(("no answer", count(self.unanswered)));
        }
        if self.reconnects > 0 {
            let again = format!("{} times, {} records sent again", self.reconnects, count(self.resent));
            lines.push(("connected again", again));
        }
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let mb = self.bytes as f64 / 1e6 / self.seconds.max(1e-9);
        let speed = format!("{}/s, {mb:.1} MB/s, {:.2} s in all", rate(self.records_per_s), self.seconds);
        lines.push(("rate", speed));
        lines.push((
            "ack latency",
            format!("p50 {p50:.2} ms  p95 {p95:.2} ms  p99 {p99:.2} ms  max {max:.2} ms"),
        ));
        if let Some((first, end)) = self.offsets {
            lines.push(("offsets", format!("{first}..{end}")));
        }
        if let Some(error) = &self.error {
            lines.push(("stopped early", error.clone()));
        }
        text + &facts(&lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_and_without_their_unit() {
        assert_eq!(per_second("500/s"), Ok(500.0));
        assert_eq!(per_second("0.5"), Ok(0.5));
        for wrong in ["0", "-1/s", "inf", "fast", "5/m"] {
            assert!(per_second(wrong).is_err(), "{wrong}");
        }
    }
}
