//! The stages that a record passes, as `/api/v1/status` and `thalweg top` show
//! them: what each has done, what it has before it, what it waits for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    derive::BATCHES_AHEAD,
    flow::{Load, Part},
    progress::Snapshot,
};
use crate::log::Backlog;

/// One stage of the dataflow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Stage {
    /// `log`, `judge`, `embed`, `commit`, `backfill` or `archive`.
    pub name: String,
    /// Records that have left it, counted from the stream's start; of
    /// `backfill` that is not known.
    pub done: Option<u64>,
    /// Records that it has at hand or before it; of `log` that is not known.
    pub queued: Option<u64>,
    /// Share of its queue that is taken, from 0 to 1, where the queue has a
    /// bound.
    pub fill: Option<f64>,
    /// What it waits for: another stage, or something outside. `None`: it
    /// works.
    pub waits_for: Option<String>,
    /// Milliseconds since the oldest record at hand was appended; of `log`,
    /// since it began to write what it has not acknowledged.
    pub oldest_ms: Option<u64>,
    /// What is not right with it.
    pub trouble: Option<String>,
}

/// What the stages are made of.
pub struct Standing<'a> {
    /// The time, in milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// The offset after the last durable frame.
    pub end_offset: u64,
    /// The offset after the last closed segment.
    pub closed_end: u64,
    /// The offset after the last sealed segment.
    pub sealed_end: u64,
    /// What the log has not answered.
    pub log: Backlog,
    /// Why the log takes nothing.
    pub log_trouble: Option<String>,
    /// What became of the records.
    pub derived: &'a Snapshot,
    /// The batches between log and commit.
    pub underway: BTreeMap<Part, Load>,
}

/// The stages, in the order in which a record passes them.
pub fn stages(at: &Standing<'_>) -> Vec<Stage> {
    vec![log(at), judge(at), embed(at), commit(at), backfill(at), archive(at)]
}

impl Standing<'_> {
    fn load(&self, part: Part) -> Load {
        self.underway.get(&part).copied().unwrap_or_default()
    }

    fn age(&self, since_ms: Option<i64>) -> Option<u64> {
        Some(u64::try_from(self.now_ms - since_ms?).unwrap_or(0))
    }

    fn trouble(&self, components: &[&str]) -> Option<String> {
        components.iter().find_map(|component| self.derived.trouble.get(*component).cloned())
    }

    /// Batches that are read and not committed.
    fn batches(&self) -> u64 {
        self.underway.values().map(|load| load.batches).sum()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
fn share(part: u64, most: u64) -> Option<f64> {
    (most > 0).then(|| (part as f64 / most as f64).min(1.0))
}

fn log(at: &Standing<'_>) -> Stage {
    let waits_for = match (&at.log_trouble, at.log.writing_for) {
        (Some(_), _) | (None, Some(_)) => "the disk",
        (None, None) => "the sources",
    };
    Stage {
        name: "log".into(),
        done: Some(at.end_offset),
        queued: None,
        fill: share(at.log.bytes, at.log.most_bytes),
        waits_for: Some(waits_for.into()),
        oldest_ms: at.log.writing_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        trouble: at.log_trouble.clone().or(at.trouble(&["log"])),
    }
}

fn judge(at: &Standing<'_>) -> Stage {
    let load = at.load(Part::Judge);
    let after: u64 = [Part::Embed, Part::Wait, Part::Commit].map(|part| at.load(part).records).iter().sum();
    let queued = at.end_offset.saturating_sub(at.derived.next_offset + after);
    let waits_for = match (load.batches, queued) {
        (_, 0) => Some("log"),
        // It has a batch in its hands while the queue is full.
        _ if at.batches() > BATCHES_AHEAD as u64 && load.batches == 0 => Some(what_holds(at)),
        _ => None,
    };
    Stage {
        name: "judge".into(),
        done: Some(at.derived.next_offset + after),
        queued: Some(queued),
        waits_for: waits_for.map(str::to_owned),
        oldest_ms: at.age(load.oldest_ms),
        ..Stage::default()
    }
}

/// The stage that holds up the batches before it.
fn what_holds(at: &Standing<'_>) -> &'static str {
    if at.load(Part::Commit).batches > 0 { "commit" } else { "embed" }
}

fn embed(at: &Standing<'_>) -> Stage {
    let load = at.load(Part::Embed);
    let trouble = at.trouble(&["embed"]);
    let waits_for = match (load.batches, &trouble) {
        (0, _) => Some("judge"),
        (_, Some(_)) => Some("the embedder"),
        (_, None) => None,
    };
    let after = at.load(Part::Wait).records + at.load(Part::Commit).records;
    Stage {
        name: "embed".into(),
        done: Some(at.derived.next_offset + after),
        queued: Some(load.records),
        fill: share(load.batches, BATCHES_AHEAD as u64),
        waits_for: waits_for.map(str::to_owned),
        oldest_ms: at.age(load.oldest_ms),
        trouble,
    }
}

fn commit(at: &Standing<'_>) -> Stage {
    let (waiting, committing) = (at.load(Part::Wait), at.load(Part::Commit));
    let trouble = at.trouble(&["store"]);
    let waits_for = match (committing.batches, &trouble) {
        (0, _) => Some("embed"),
        (_, Some(_)) => Some("the store"),
        (_, None) => None,
    };
    Stage {
        name: "commit".into(),
        done: Some(at.derived.next_offset),
        queued: Some(waiting.records + committing.records),
        fill: share(waiting.batches + committing.batches, BATCHES_AHEAD as u64),
        waits_for: waits_for.map(str::to_owned),
        oldest_ms: at.age(waiting.oldest_ms.into_iter().chain(committing.oldest_ms).min()),
        trouble,
    }
}

fn backfill(at: &Standing<'_>) -> Stage {
    let trouble = at.trouble(&["backfill", "embed"]);
    let waits_for = match (at.derived.deferred, &trouble) {
        (0, _) => Some("commit"),
        (_, Some(_)) => Some("the embedder"),
        (_, None) => None,
    };
    Stage {
        name: "backfill".into(),
        queued: Some(at.derived.deferred),
        waits_for: waits_for.map(str::to_owned),
        trouble,
        ..Stage::default()
    }
}

fn archive(at: &Standing<'_>) -> Stage {
    let queued = at.closed_end.saturating_sub(at.sealed_end);
    let trouble = at.trouble(&["archive", "artifacts"]);
    let waits_for = match (queued, &trouble) {
        (0, _) => Some("log"),
        (_, Some(_)) => Some("the object store"),
        (_, None) => None,
    };
    Stage {
        name: "archive".into(),
        done: Some(at.sealed_end),
        queued: Some(queued),
        waits_for: waits_for.map(str::to_owned),
        trouble,
        ..Stage::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn standing(derived: &Snapshot) -> Standing<'_> {
        Standing {
            now_ms: 10_000,
            end_offset: 100,
            closed_end: 90,
            sealed_end: 90,
            log: Backlog { bytes: 0, most_bytes: 1_000, writing_for: None },
            log_trouble: None,
            derived,
            underway: BTreeMap::new(),
        }
    }

    /// What each stage waits for, in order.
    fn waits(at: &Standing<'_>) -> Vec<String> {
        stages(at).into_iter().map(|stage| stage.waits_for.unwrap_or_default()).collect()
    }

    fn load(batches: u64, records: u64) -> Load {
        Load { batches, records, oldest_ms: Some(4_000) }
    }

    #[test]
    fn where_nothing_comes_each_waits_for_the_one_before_it() {
        let derived = Snapshot { next_offset: 100, ..Snapshot::default() };
        assert_eq!(waits(&standing(&derived)), ["the sources", "log", "judge", "embed", "commit", "log"]);
    }

    #[test]
    fn an_embedder_that_is_away_is_what_all_before_it_wait_for() {
        let trouble = [("embed".to_owned(), "no answer".to_owned())].into();
        let derived = Snapshot { next_offset: 20, deferred: 7, trouble, ..Snapshot::default() };
        let underway = [(Part::Embed, load(4, 40))].into();
        let at = Standing { underway, sealed_end: 50, ..standing(&derived) };
        assert_eq!(waits(&at), ["the sources", "embed", "the embedder", "embed", "the embedder", ""]);
        let stages = stages(&at);
        let queued: Vec<_> = stages.iter().map(|stage| stage.queued).collect();
        assert_eq!(queued, [None, Some(40), Some(40), Some(0), Some(7), Some(40)]);
        assert_eq!((stages[1].done, stages[2].done, stages[3].done), (Some(60), Some(20), Some(20)));
        assert_eq!((stages[2].oldest_ms, stages[2].fill), (Some(6_000), Some(1.0)));
        assert_eq!(stages[2].trouble.as_deref(), Some("no answer"));
    }

    #[test]
    fn a_slow_disk_and_a_slow_store_are_named() {
        let derived = Snapshot { next_offset: 50, ..Snapshot::default() };
        let log = Backlog { bytes: 250, most_bytes: 1_000, writing_for: Some(Duration::from_secs(1)) };
        let underway = [(Part::Wait, load(3, 30)), (Part::Commit, load(1, 10))].into();
        let at = Standing { log, underway, ..standing(&derived) };
        assert_eq!(waits(&at), ["the disk", "commit", "judge", "", "commit", "log"]);
        let stages = stages(&at);
        assert_eq!((stages[0].fill, stages[0].oldest_ms), (Some(0.25), Some(1_000)));
        assert_eq!((stages[3].queued, stages[3].oldest_ms), (Some(40), Some(6_000)));
    }
}
