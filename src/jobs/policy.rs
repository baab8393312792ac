//! Which job may begin, which is taken up again, and which is given up: pure
//! functions of what is open and of the time.

use std::fmt;

use super::work::{Access, Kind, Work};
use crate::store::{JobEnd, JobRow, JobState};

/// A worker that says nothing for so long is taken for dead.
pub const LEASE_MS: i64 = 30_000;
/// A job that ends its daemon, or fails for want of something, so often is
/// given up.
pub const MOST_ATTEMPTS: u32 = 3;
/// First wait before a job is tried again; four times as long after each
/// further failure.
const FIRST_WAIT_MS: i64 = 15_000;

/// Who works on jobs: a data directory, and a start of its daemon. As no two
/// daemons run on one directory, an earlier start is known to be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerId {
    /// Identity of the data directory.
    pub home: String,
    /// Drawn at the start.
    pub start: String,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.home, self.start)
    }
}

/// Who looks for work.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// Who it is.
    pub id: WorkerId,
    /// The pipeline it runs.
    pub pipeline: String,
    /// The stream whose log it has.
    pub stream: String,
    /// How many jobs it works on at once.
    pub at_once: usize,
}

/// What a job keeps others from.
#[derive(Clone, Copy)]
struct Need<'a> {
    kind: Kind,
    access: Access,
    stream: Option<&'a str>,
}

impl<'a> Need<'a> {
    /// None of a job that this version does not know.
    fn of(job: &'a JobRow) -> Option<Self> {
        let work: Work = serde_json::from_str(&job.work).ok()?;
        Some(Self { kind: work.kind(), access: work.access(), stream: job.stream.as_deref() })
    }

    fn excludes(&self, other: &Self) -> bool {
        let apart = matches!((self.stream, other.stream), (Some(a), Some(b)) if a != b);
        let contrary = matches!(
            (self.access, other.access),
            (Access::Rewrites, Access::Rewrites | Access::Reads) | (Access::Reads, Access::Rewrites)
        );
        !apart && (self.kind == other.kind || contrary)
    }
}

impl Claimant {
    /// Whether somebody works on `job` still.
    fn is_held(&self, job: &JobRow, now_ms: i64) -> bool {
        let worker = job.worker.as_deref().unwrap_or_default();
        let earlier = worker.strip_prefix(&self.id.home).and_then(|rest| rest.strip_prefix('/'));
        let is_over = earlier.is_some_and(|start| start != self.id.start);
        job.state == JobState::Running && !is_over && job.lease_ms.is_some_and(|lease| lease >= now_ms)
    }

    fn is_mine(&self, job: &JobRow) -> bool {
        job.worker.as_deref() == Some(&self.id.to_string())
    }

    fn may(&self, job: &JobRow) -> bool {
        match &job.stream {
            Some(stream) => *stream == self.stream && job.pipeline == self.pipeline,
            None => true,
        }
    }

    /// The job to begin now, by its number. Jobs go by priority and then by
    /// age; one that has to wait holds up those behind it that exclude it, so
    /// that it is not overtaken for ever.
    pub fn next(&self, open: &[JobRow], now_ms: i64) -> Option<i64> {
        let (held, free): (Vec<_>, Vec<_>) = open.iter().partition(|job| self.is_held(job, now_ms));
        if held.iter().filter(|job| self.is_mine(job)).count() >= self.at_once {
            return None;
        }
        let mut ahead: Vec<Need<'_>> = held.into_iter().filter_map(Need::of).collect();
        let mut waiting: Vec<_> = free
            .into_iter()
            .filter(|job| self.may(job) && job.not_before_ms <= now_ms && self.loss(job, now_ms).is_none())
            .collect();
        waiting.sort_unstable_by_key(|job| (-job.priority, job.asked_ms, job.job_id));
        for job in waiting {
            let Some(need) = Need::of(job) else { continue };
            if !ahead.iter().any(|other| other.excludes(&need)) {
                return Some(job.job_id);
            }
            ahead.push(need);
        }
        None
    }

    /// How a job ends that nobody works on any more, and that is not to be
    /// taken up again.
    pub fn loss(&self, job: &JobRow, now_ms: i64) -> Option<JobEnd> {
        if job.state != JobState::Running || self.is_held(job, now_ms) {
            return None;
        }
        if job.cancel_ms.is_some() {
            return Some(JobEnd::Cancelled);
        }
        (job.attempts >= MOST_ATTEMPTS).then(|| {
            JobEnd::Failed(format!(
                "the daemon that worked on it ended {} times in the middle of it; its log says why",
                job.attempts
            ))
        })
    }
}

/// How the claim of a job ends that failed for `reason` the `attempts`th
/// time.
pub fn after_failure(attempts: u32, is_transient: bool, reason: String, now_ms: i64) -> JobEnd {
    if !is_transient || attempts >= MOST_ATTEMPTS {
        return JobEnd::Failed(reason);
    }
    let wait = FIRST_WAIT_MS << (2 * attempts.saturating_sub(1)).min(10);
    JobEnd::Again(now_ms.saturating_add(wait), reason)
}

/// How long a running job has still to go, in milliseconds, at the pace of
/// its last claim; none where that cannot be told.
pub fn left_ms(job: &JobRow, now_ms: i64) -> Option<i64> {
    let (total, since) = (job.total?.cast_unsigned(), job.claimed_ms?);
    let here = job.done.checked_sub(job.done_before).filter(|done| *done > 0)?;
    let took = u128::try_from(now_ms - since).ok()?;
    let left = u128::from(total.saturating_sub(job.done));
    (job.state == JobState::Running)
        .then(|| i64::try_from(took * left / u128::from(here)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::work::{Pack, Replay, ReplayMode, Retention};

    const NOW: i64 = 1_000_000;

    fn me() -> Claimant {
        let id = WorkerId { home: "h".into(), start: "2".into() };
        Claimant { id, pipeline: "p".into(), stream: "s".into(), at_once: 2 }
    }

    fn queued(job_id: i64, work: &Work) -> JobRow {
        JobRow {
            job_id,
            kind: work.kind().as_str().into(),
            work: serde_json::to_string(work).unwrap(),
            pipeline: "p".into(),
            stream: work.kind().is_of_a_stream().then(|| "s".into()),
            tenant: None,
            asked_by: "a".into(),
            schedule: None,
            due_ms: None,
            state: JobState::Queued,
            priority: 0,
            asked_ms: job_id,
            not_before_ms: job_id,
            started_ms: None,
            claimed_ms: None,
            ended_ms: None,
            cancel_ms: None,
            epoch: 0,
            attempts: 0,
            worker: None,
            lease_ms: None,
            done: 0,
            done_before: 0,
            total: None,
            note: String::new(),
            place: None,
            result: None,
            error: None,
        }
    }

    fn running(job_id: i64, work: &Work, worker: &str, lease_ms: i64) -> JobRow {
        let (state, worker, lease_ms) = (JobState::Running, Some(worker.into()), Some(lease_ms));
        JobRow { state, worker, lease_ms, attempts: 1, epoch: 1, claimed_ms: Some(0), ..queued(job_id, work) }
    }

    fn verify() -> Work {
        Work::Replay(Replay::default())
    }

    fn restore() -> Work {
        Work::Replay(Replay { mode: ReplayMode::Restore, ..Replay::default() })
    }

    fn pack() -> Work {
        Work::Pack(Pack::default())
    }

    fn retention() -> Work {
        Work::Retention(Retention::default())
    }

    fn audit() -> Work {
        Work::Audit(crate::jobs::work::Audit {})
    }

    #[test]
    fn what_rewrites_is_alone_with_readers_and_its_like_and_audits_run_beside() {
        let beside = |one: &Work, other: &Work| {
            me().next(&[running(1, one, "x/1", NOW), queued(2, other)], NOW) == Some(2)
        };
        for (one, other, together) in [
            (verify(), pack(), true),
            (verify(), verify(), false),
            (verify(), retention(), false),
            (restore(), retention(), false),
            (restore(), pack(), false),
            (restore(), audit(), true),
            (audit(), audit(), false),
        ] {
            assert_eq!(beside(&one, &other), together, "{one:?} and {other:?}");
            assert_eq!(beside(&other, &one), together, "{other:?} and {one:?}");
        }
    }

    #[test]
    fn streams_do_not_concern_each_other_and_what_is_of_none_concerns_all() {
        let elsewhere = JobRow { stream: Some("t".into()), ..running(1, &restore(), "x/1", NOW) };
        let backup = Work::Backup(crate::jobs::work::Backup::default());
        assert_eq!(me().next(&[elsewhere.clone(), queued(2, &restore())], NOW), Some(2));
        assert_eq!(me().next(&[elsewhere, queued(2, &backup)], NOW), None);
        let not_mine = JobRow { stream: Some("t".into()), ..queued(1, &verify()) };
        assert_eq!(me().next(&[not_mine, JobRow { pipeline: "q".into(), ..queued(2, &pack()) }], NOW), None);
        assert_eq!(me().next(&[JobRow { pipeline: "q".into(), ..queued(2, &backup) }], NOW), Some(2));
    }

    #[test]
    fn the_urgent_go_first_then_the_old_and_who_waits_is_not_overtaken() {
        let urgent = JobRow { priority: 1, ..queued(3, &audit()) };
        assert_eq!(me().next(&[queued(1, &verify()), queued(2, &pack()), urgent], NOW), Some(3));
        assert_eq!(me().next(&[queued(2, &pack()), queued(1, &verify())], NOW), Some(1));
        // A pack could run beside the replay, but would keep the older
        // retention waiting.
        let open = [running(1, &verify(), "x/1", NOW), queued(2, &retention()), queued(3, &pack())];
        assert_eq!(me().next(&open, NOW), None);
        let later = JobRow { not_before_ms: NOW + 1, ..queued(2, &retention()) };
        assert_eq!(me().next(&[open[0].clone(), later, queued(3, &pack())], NOW), Some(3));
    }

    #[test]
    fn a_worker_has_no_more_than_so_many_at_once() {
        let one = running(1, &verify(), "h/2", NOW);
        let both = [one.clone(), running(2, &pack(), "h/2", NOW), queued(3, &audit())];
        assert_eq!(me().next(&[one, queued(3, &audit())], NOW), Some(3));
        assert_eq!(me().next(&both, NOW), None);
    }

    #[test]
    fn a_job_is_taken_up_when_its_lease_is_over_or_its_daemon_was_started_again() {
        let next = |job: JobRow| me().next(&[job], NOW);
        assert_eq!(next(running(1, &pack(), "x/1", NOW)), None);
        assert_eq!(next(running(1, &pack(), "x/1", NOW - 1)), Some(1));
        assert_eq!(next(running(1, &pack(), "h/2", NOW)), None);
        assert_eq!(next(running(1, &pack(), "h/1", NOW + 99)), Some(1), "an earlier start of this daemon");
        assert_eq!(next(running(1, &pack(), "hh/1", NOW)), None);
    }

    #[test]
    fn a_job_that_ended_its_daemon_three_times_is_given_up_and_that_is_said() {
        let dead = |attempts| JobRow { attempts, ..running(1, &pack(), "x/1", 0) };
        assert_eq!(me().loss(&dead(2), NOW), None);
        assert!(
            matches!(me().loss(&dead(3), NOW), Some(JobEnd::Failed(why)) if why.contains("ended 3 times"))
        );
        assert_eq!(me().next(&[dead(3)], NOW), None);
        let cancelled = JobRow { cancel_ms: Some(1), ..dead(1) };
        assert_eq!(me().loss(&cancelled, NOW), Some(JobEnd::Cancelled));
        assert_eq!(me().loss(&JobRow { lease_ms: Some(NOW), ..dead(3) }, NOW), None, "it lives");
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_later_each_time() {
        let after = |attempts, transient| after_failure(attempts, transient, "x".into(), NOW);
        assert_eq!(after(1, false), JobEnd::Failed("x".into()));
        assert_eq!(after(1, true), JobEnd::Again(NOW + 15_000, "x".into()));
        assert_eq!(after(2, true), JobEnd::Again(NOW + 60_000, "x".into()));
        assert_eq!(after(3, true), JobEnd::Failed("x".into()));
    }

    #[test]
    fn the_time_left_is_told_by_the_pace_since_it_was_taken_up() {
        let job =
            JobRow { done: 500, done_before: 400, total: Some(1_000), ..running(1, &verify(), "x/1", NOW) };
        assert_eq!(left_ms(&job, 10_000), Some(50_000));
        assert_eq!(left_ms(&JobRow { done: 400, ..job.clone() }, 10_000), None);
        assert_eq!(left_ms(&JobRow { total: None, ..job.clone() }, 10_000), None);
        assert_eq!(left_ms(&JobRow { state: JobState::Done, ..job }, 10_000), None);
    }
}
