//! `thalweg top`.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{
    Output,
    daemon::Daemon,
    output::{self, count, rate, table},
};
use crate::{api::Status as Standing, pipeline::stages::Stage};

/// Show the dataflow of a running daemon: how fast records pass each stage,
/// how many wait, and for what.
///
/// Looks every second until interrupted; on a terminal the screen is drawn
/// anew each time.
///
/// Exit codes: 0 shown; 1 the daemon cannot be reached.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg top
  thalweg top --url https://memory.example:7400 --once
  thalweg top --once --json")]
pub struct Top {
    #[command(flatten)]
    daemon: Daemon,
    /// Show one second, then end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    output: Output,
}

/// Between two looks at the daemon.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a daemon that was there may be away.
const MAY_BE_AWAY: Duration = Duration::from_secs(10);

/// What happened between two looks.
#[derive(Debug, Serialize)]
struct Shown {
    pipeline: String,
    stream: String,
    /// Durable frames that are not derived yet.
    in_flight: u64,
    stages: Vec<Passed>,
}

/// A stage, and its pace.
#[derive(Debug, Serialize)]
struct Passed {
    #[serde(flatten)]
    stage: Stage,
    /// Records that came to it, a second.
    in_per_s: Option<f64>,
    /// Records that left it, a second.
    out_per_s: Option<f64>,
}

impl Top {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                done = self.follow() => done?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    async fn look(&self) -> Result<Standing> {
        self.daemon.get("/api/v1/status").await
    }

    async fn follow(&self) -> Result<()> {
        let (mut last, mut at) = (self.look().await?, Instant::now());
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.look().await {
                Ok(now) => {
                    self.show(&shown(&last, &now, at.elapsed()))?;
                    (last, at) = (now, Instant::now());
                }
                Err(error) if self.once || at.elapsed() > MAY_BE_AWAY => return Err(error),
                Err(_) => {}
            }
            if self.once {
                return Ok(());
            }
        }
    }

    fn show(&self, shown: &Shown) -> Result<()> {
        if self.once {
            return Ok(self.output.print(shown, text)?);
        }
        if self.output.json {
            return Ok(output::line(&serde_json::to_string(shown)?)?);
        }
        if io::stdout().is_terminal() {
            // To the upper left corner, and everything below it away.
            write!(io::stdout().lock(), "\x1b[H\x1b[J")?;
        }
        Ok(output::line(text(shown).trim_end())?)
    }
}

/// What happened in the `time` from `before` to `now`.
fn shown(before: &Standing, now: &Standing, time: Duration) -> Shown {
    let out = |stage: &Stage| {
        let was = before.stages.iter().find(|was| was.name == stage.name)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
        let records = stage.done?.saturating_sub(was.done?) as f64;
        Some(records / time.as_secs_f64().max(0.001))
    };
    let rate_of = |name: &str| now.stages.iter().find(|stage| stage.name == name).and_then(out);
    let stages = now.stages.iter().map(|stage| Passed {
        in_per_s: before_it(&stage.name).and_then(rate_of),
        out_per_s: out(stage),
        stage: stage.clone(),
    });
    Shown {
        pipeline: now.pipeline.clone(),
        stream: now.stream.clone(),
        in_flight: now.in_flight,
        stages: stages.collect(),
    }
}

/// The stage that a stage gets its records from.
fn before_it(name: &str) -> Option<&'static str> {
    match name {
        "judge" => Some("log"),
        "embed" => Some("judge"),
        "commit" => Some("embed"),
        _ => None,
    }
}

fn text(shown: &Shown) -> String {
    let head = ["stage", "in/s", "out/s", "waiting", "full", "oldest", "waits for"].map(str::to_owned);
    let dash = || "-".to_owned();
    let pace = |pace: Option<f64>| pace.map_or_else(dash, rate);
    let row = |passed: &Passed| {
        let Stage { name, queued, fill, waits_for, oldest_ms, .. } = &passed.stage;
        vec![
            name.clone(),
            pace(passed.in_per_s),
            pace(passed.out_per_s),
            queued.map_or_else(dash, count),
            fill.map_or_else(dash, |share| format!("{:.0}%", 100.0 * share)),
            oldest_ms
                .map_or_else(dash, |ms| humantime::format_duration(Duration::from_millis(ms)).to_string()),
            waits_for.clone().unwrap_or_else(|| "nothing, it works".into()),
        ]
    };
    let rows: Vec<Vec<String>> = [head.to_vec()].into_iter().chain(shown.stages.iter().map(row)).collect();
    let title = format!(
        "pipeline {}  stream {}  in flight {}\n\n",
        shown.pipeline,
        shown.stream,
        count(shown.in_flight)
    );
    let troubles = shown.stages.iter().filter_map(|passed| {
        let trouble = passed.stage.trouble.as_ref()?;
        Some(format!("NOT WELL  {}: {trouble}\n", passed.stage.name))
    });
    title + &table(&rows) + &troubles.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(done: [u64; 2]) -> Standing {
        let stage = |(name, done): (&str, u64)| Stage {
            name: name.into(),
            done: Some(done),
            queued: Some(12),
            fill: Some(0.5),
            oldest_ms: Some(1_500),
            waits_for: (name == "judge").then(|| "embed".into()),
            trouble: (name == "judge").then(|| "poor sight".into()),
        };
        Standing {
            stages: ["log", "judge"].into_iter().zip(done).map(stage).collect(),
            ..Standing::default()
        }
    }

    #[test]
    fn what_leaves_one_stage_comes_to_the_next() {
        let shown = shown(&standing([100, 100]), &standing([500, 200]), Duration::from_secs(2));
        let paces: Vec<_> = shown.stages.iter().map(|passed| (passed.in_per_s, passed.out_per_s)).collect();
        assert_eq!(paces, [(None, Some(200.0)), (Some(200.0), Some(50.0))]);
        let text = text(&shown);
        let judge = text.lines().find(|line| line.starts_with("judge")).unwrap();
        let cells: Vec<&str> = judge.split_whitespace().collect();
        assert_eq!(cells, ["judge", "200", "50.0", "12", "50%", "1s", "500ms", "embed"], "{text}");
        assert!(text.contains("NOT WELL  judge: poor sight"), "{text}");
    }
}
