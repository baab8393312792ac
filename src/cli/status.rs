//! `thalweg status`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use super::{
    Output,
    daemon::Daemon,
    meter::Meter,
    output::{self, count, facts},
};
use crate::{
    api::Status as Standing,
    units::{ByteSize, Period},
};

/// Show where a running pipeline stands.
///
/// Exit codes: 0 shown, or drained; 1 the daemon cannot be reached, or was not
/// drained in time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg status
  thalweg status --watch
  thalweg status --until-drained --expect 17400 --json")]
pub struct Status {
    #[command(flatten)]
    daemon: Daemon,
    /// Go on showing progress until interrupted
    #[arg(long)]
    watch: bool,
    /// Show progress until everything received is derived, then the summary
    #[arg(long, conflicts_with = "watch")]
    until_drained: bool,
    /// Records that are to be received in all, counted from the stream's start
    #[arg(long, value_name = "N")]
    expect: Option<u64>,
    /// How long to wait for that
    #[arg(long, value_name = "DURATION", requires = "until_drained")]
    timeout: Option<Period>,
    #[command(flatten)]
    output: Output,
}

/// Between two looks at the daemon.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a daemon that was there may be away while it is watched.
const MAY_BE_AWAY: Duration = Duration::from_secs(10);

impl Status {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            let standing = match self.watch || self.until_drained {
                true => self.follow().await?,
                false => Some(self.look().await?),
            };
            if let Some(standing) = standing {
                self.output.print(&standing, text)?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    async fn look(&self) -> Result<Standing> {
        self.daemon.get("/api/v1/status").await
    }

    /// Shows progress until it is drained, if that is asked for. Without
    /// anything to print at the end if it was interrupted in JSON, whose
    /// documents are printed on the way.
    async fn follow(&self) -> Result<Option<Standing>> {
        let mut last = self.look().await?;
        let mut meter = Meter::new(self.expect);
        let (started, mut seen) = (Instant::now(), Instant::now());
        loop {
            meter.at(last.derived.next_offset, &lag(&last));
            if self.until_drained && is_drained(&last, self.expect) {
                return Ok(Some(last));
            }
            if self.watch && self.output.json {
                output::line(&serde_json::to_string(&last)?)?;
            }
            if self.timeout.is_some_and(|timeout| started.elapsed() > timeout.0) {
                bail!("not drained in time: received {}, in flight {}", last.end_offset, last.in_flight);
            }
            let pause = if self.watch && self.output.json { 5 * LOOK_EVERY } else { LOOK_EVERY };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {
                    if self.until_drained {
                        bail!("interrupted before everything was derived");
                    }
                    return Ok((!self.output.json).then_some(last));
                }
                () = tokio::time::sleep(pause) => {}
            }
            match self.look().await {
                Ok(standing) => (last, seen) = (standing, Instant::now()),
                Err(error) if seen.elapsed() > MAY_BE_AWAY => return Err(error),
                Err(_) => {}
            }
        }
    }
}

/// Whether all that is expected is received, and all that is received is
/// derived.
fn is_drained(standing: &Standing, expect: Option<u64>) -> bool {
    standing.end_offset >= expect.unwrap_or(0) && standing.in_flight == 0
}

fn lag(standing: &Standing) -> String {
    let mut text =
        format!("  received {}  in flight {}", count(standing.end_offset), count(standing.in_flight));
    for (component, what) in &standing.derived.trouble {
        text += &format!("  {component}: {what}");
    }
    text
}

fn text(standing: &Standing) -> String {
    let Standing { derived, segments, .. } = standing;
    let by = |counts: &std::collections::BTreeMap<String, u64>| {
        counts.iter().map(|(name, n)| format!("  {name} {}", count(*n))).collect::<String>()
    };
    let uptime = Duration::from_secs_f64(standing.uptime_s.max(0.0).round());
    let mut lines = vec![
        (
            "pipeline",
            format!("{}  stream {}  batch {}", standing.pipeline, standing.stream, standing.batch_tag),
        ),
        ("up", humantime::format_duration(uptime).to_string()),
        ("received", count(standing.end_offset)),
        ("indexed", count(derived.indexed)),
        ("rejected", count(derived.rejected)),
        ("deduplicated", count(derived.deduplicated)),
        ("deferred", count(derived.deferred)),
        ("dead-lettered", count(derived.dead_lettered)),
        ("lost", count(derived.lost)),
        ("in flight", count(standing.in_flight)),
        ("not indexed, why", by(&derived.reasons).trim_start().to_owned()),
        ("refused at the door", count(derived.refused.values().sum()) + &by(&derived.refused)),
        ("sealed segments", sealed(segments)),
        ("index", format!("{} in {}", standing.space, ByteSize(standing.index_bytes))),
    ];
    let quantiles = derived.searchable_ms;
    if quantiles.count > 0 {
        let shown = format!(
            "p50 {} ms  p95 {} ms  p99 {} ms  max {} ms",
            quantiles.p50, quantiles.p95, quantiles.p99, quantiles.max
        );
        lines.push(("ack to searchable", shown));
    }
    lines.retain(|(name, value)| !(value.is_empty() || value == "0" && *name == "lost"));
    let troubles = derived.trouble.iter().map(|(component, what)| format!("NOT WELL  {component}: {what}\n"));
    facts(&lines) + &troubles.collect::<String>()
}

fn sealed(segments: &crate::api::Segments) -> String {
    if segments.sealed == 0 {
        return "0".into();
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let ratio = segments.plain_bytes as f64 / segments.object_bytes.max(1) as f64;
    format!(
        "{}  {} records, {} as {}, {ratio:.1} to 1",
        count(segments.sealed),
        count(segments.records),
        ByteSize(segments.plain_bytes),
        ByteSize(segments.object_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drained_is_all_expected_received_and_all_received_derived() {
        let at = |end_offset, in_flight| Standing { end_offset, in_flight, ..Standing::default() };
        assert!(is_drained(&at(10, 0), Some(10)));
        assert!(!is_drained(&at(9, 0), Some(10)));
        assert!(!is_drained(&at(12, 1), Some(10)));
        assert!(is_drained(&at(0, 0), None));
    }
}
