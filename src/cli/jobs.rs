//! `thalweg jobs`.

mod queue;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use self::queue::Queue;
use super::{
    Output,
    meter::Meter,
    output::{count, facts, table, time},
    place::Place,
};
use crate::{
    api::Page,
    jobs::{Job, Kind, Planned, Work},
    store::JobState,
};

/// Long work beside the streams: what is queued, under way and done, and when
/// it comes again.
///
/// Jobs are queued in the store, so this works beside a running daemon and
/// without one, and, with --url, from other machines; a daemon of the pipeline
/// does them. After a crash they go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg jobs run audit --wait
  thalweg jobs run replay mode=restore from=1200 to=1300
  thalweg jobs run train_dictionary if_new_segments=8
  thalweg jobs list --state running
  thalweg jobs run audit --wait --url https://memory.example.org
  thalweg jobs schedules")]
pub struct Jobs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Queue a job
    #[command(after_help = "Parameters:
  replay            mode=verify|recompute|restore from=OFFSET to=OFFSET tenant=NAME tier=TIER
                    since_ms=MS until_ms=MS
  pack              since_ms=MS until_ms=MS
  train_dictionary  if_new_segments=N
  retention         dry_run=true
  backup            to=FOLDER objects=true
  maintain          vacuum=true")]
    Run {
        /// What to do
        kind: Kind,
        /// With what: KEY=VALUE, by kind
        #[arg(value_name = "KEY=VALUE", value_parser = parameter)]
        parameters: Vec<(String, Value)>,
        /// Show how far it is until it ends; interrupted, the job goes on.
        /// Exit code 1 if it does not end well
        #[arg(long)]
        wait: bool,
    },
    /// The latest jobs
    List {
        /// Only in this state
        #[arg(long)]
        state: Option<JobState>,
        /// Only of this kind
        #[arg(long)]
        kind: Option<Kind>,
        /// Only jobs with smaller numbers
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// One job, with what came of it
    Show {
        /// Its number
        id: i64,
    },
    /// Cancel a job; what is done by then stays done
    Cancel {
        /// Its number
        id: i64,
    },
    /// What comes again by itself, and when
    Schedules,
}

/// How long a job waits before people are told why it may.
const UNUSUAL: Duration = Duration::from_secs(5);

impl Jobs {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            let queue = Queue::open(self.place.find()?).await?;
            let code = self.ask(&queue).await;
            queue.close().await;
            code
        })
    }

    async fn ask(self, queue: &Queue) -> Result<ExitCode> {
        match self.what {
            What::Run { kind, parameters, wait } => {
                let work = Work::of(kind, Map::from_iter(parameters))
                    .with_context(|| format!("a job `{}` cannot be asked for so", kind.as_str()))?;
                let mut job = queue.enqueue(&work).await?;
                if wait {
                    job = follow(queue, job).await?;
                }
                self.output.print(&job, shown)?;
                let bad = matches!(job.state, JobState::Failed | JobState::Cancelled);
                return Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS });
            }
            What::List { state, kind, before, limit } => {
                let page = queue.list((state, kind), before, limit).await?;
                self.output.print(&page.items, |_| listed(&page))?;
            }
            What::Show { id } => self.output.print(&queue.get(id).await?, shown)?,
            What::Cancel { id } => self.output.print(&queue.cancel(id).await?, shown)?,
            What::Schedules => self.output.print(&queue.schedules().await?, |all| planned(all))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows how far `job` is until it ends.
async fn follow(queue: &Queue, mut job: Job) -> Result<Job> {
    let (began, mut seen) = (Instant::now(), Instant::now());
    let (mut meter, mut pause, mut told) = (None, Duration::ZERO, false);
    while !job.state.is_end() {
        if job.state == JobState::Running && job.progress.total.is_some() {
            let meter = meter.get_or_insert_with(|| Meter::new(job.progress.total));
            meter.at(job.progress.done, &format!("  {}", job.progress.note));
        }
        if job.state == JobState::Queued && began.elapsed() > UNUSUAL && !told {
            told = true;
            eprintln!(
                "job {} waits: for other jobs, or for a daemon of this pipeline (`thalweg run`)",
                job.id
            );
        }
        pause = queue.pause(pause);
        tokio::time::sleep(pause).await;
        match queue.get(job.id).await {
            Ok(now) => (job, seen) = (now, Instant::now()),
            Err(error) if seen.elapsed() >= queue.may_be_away() => {
                return Err(error.context(format!("job {} goes on, but cannot be watched", job.id)));
            }
            Err(_) => {}
        }
    }
    Ok(job)
}

fn parameter(text: &str) -> Result<(String, Value)> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("`{text}` is not KEY=VALUE");
    };
    let is_word = |value: &Value| matches!(value, Value::Object(_) | Value::Array(_) | Value::Null);
    let parsed = serde_json::from_str(value).ok().filter(|value| !is_word(value));
    Ok((key.to_owned(), parsed.unwrap_or_else(|| value.into())))
}

fn listed(page: &Page<Job>) -> String {
    if page.items.is_empty() {
        return "no jobs\n".into();
    }
    let heading = ["job", "kind", "state", "asked", "by", "took", "progress"].map(str::to_owned).to_vec();
    let row = |job: &Job| {
        let by = job.schedule.as_ref().unwrap_or(&job.asked_by).clone();
        vec![
            job.id.to_string(),
            job.kind.clone(),
            state(job),
            time(job.asked_ms),
            by,
            took(job).unwrap_or_default(),
            progress(job),
        ]
    };
    let last = page.items.last().filter(|_| page.next_cursor.is_some());
    let more = last.map(|last| format!("there are more: --before {}\n", last.id));
    let rows: Vec<_> = std::iter::once(heading).chain(page.items.iter().map(row)).collect();
    table(&rows) + &more.unwrap_or_default()
}

fn shown(job: &Job) -> String {
    let mut shown = vec![
        ("job", format!("{}  {}", job.id, job.kind)),
        ("state", state(job)),
        ("work", job.work.to_string()),
        ("of", format!("{} {}", job.pipeline, job.stream.as_deref().unwrap_or("(every stream)"))),
        ("asked", format!("{} by {}", time(job.asked_ms), job.asked_by)),
    ];
    let optional = [
        (
            "schedule",
            job.schedule.clone().zip(job.due_ms).map(|(name, due)| format!("{name}, due {}", time(due))),
        ),
        ("again", job.again_ms.map(time)),
        ("begun", job.started_ms.map(|at| format!("{}, attempt {}", time(at), job.attempts))),
        ("progress", Some(progress(job)).filter(|shown| !shown.is_empty())),
        ("ended", job.ended_ms.map(time)),
        ("took", took(job)),
        ("error", job.error.clone()),
    ];
    shown.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let result = job.result.as_ref().and_then(|result| serde_json::to_string_pretty(result).ok());
    facts(&shown) + &result.map(|result| result + "\n").unwrap_or_default()
}

fn state(job: &Job) -> String {
    match job.cancelling {
        true => "cancelling".into(),
        false => job.state.as_str().into(),
    }
}

fn progress(job: &Job) -> String {
    let progress = &job.progress;
    let mut shown = match progress.total {
        Some(total) => format!("{} of {}", count(progress.done), count(total)),
        None if progress.done > 0 => count(progress.done),
        None => String::new(),
    };
    if let Some(left) = progress.left_ms {
        shown += &format!(", {} left", duration(left));
    }
    if !progress.note.is_empty() && !job.state.is_end() {
        shown += &format!(" {}", progress.note);
    }
    shown.trim().to_owned()
}

fn took(job: &Job) -> Option<String> {
    Some(duration(job.ended_ms? - job.started_ms?))
}

fn duration(ms: i64) -> String {
    let ms = u64::try_from(ms).unwrap_or(0);
    let shown = if ms < 10_000 { ms } else { ms / 1_000 * 1_000 };
    humantime::format_duration(Duration::from_millis(shown)).to_string()
}

fn planned(all: &[Planned]) -> String {
    if all.is_empty() {
        return "no schedules; `[[schedule]]` in the pipeline file makes them\n".into();
    }
    let heading = ["schedule", "job", "cron", "zone", "next", "last"].map(str::to_owned).to_vec();
    let row = |one: &Planned| {
        let last = one.last.as_ref().map(|job| format!("{} {}", time(job.asked_ms), state(job)));
        vec![
            if one.built_in { format!("{} (built in)", one.name) } else { one.name.clone() },
            one.work.kind().as_str().into(),
            one.cron.clone(),
            one.timezone.clone(),
            one.next_ms.map(time).unwrap_or_default(),
            last.unwrap_or_else(|| "-".into()),
        ]
    };
    let rows: Vec<_> = std::iter::once(heading).chain(all.iter().map(row)).collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_parameter_is_a_number_a_truth_or_a_word() {
        let of = |text: &str| parameter(text).unwrap();
        assert_eq!(of("from=12"), ("from".into(), json!(12)));
        assert_eq!(of("objects=true"), ("objects".into(), json!(true)));
        assert_eq!(of("mode=restore"), ("mode".into(), json!("restore")));
        assert_eq!(of("to=a=b"), ("to".into(), json!("a=b")));
        assert_eq!(of("to=null"), ("to".into(), json!("null")));
        assert!(parameter("restore").is_err());
    }
}
