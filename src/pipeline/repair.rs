//! `segments repair`: the catalog's segment part made again from files and
//! objects, and every provable frame of a damaged file put into a segment.
//!
//! ```text
//! look    every file and object, judged by its bytes
//! choose  of each segment the intact copy with most frames
//! gather  frames that only damaged files hold, into new segments
//! put     originals into quarantine, segments in their place, rows, objects
//! settle  what is lost now is lost for good, and remembered
//! ```
//!
//! Nothing is deleted, and nothing is entered that was not verified. A second
//! run finds nothing to do. One that is broken off can be run again: an
//! original goes into quarantine before its successor takes its place, and is
//! a source there until it is settled.

mod gather;
mod look;
mod put;
mod report;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use report::{FileReport, Lost, Report, Restored, Rows};

use self::{
    gather::Run,
    look::{Copy, Found, Place, Wounded},
    report::pairs,
};
use super::{Offsets, survey::Remembered};
use crate::{
    artifact::{ArtifactError, Artifacts},
    clock::Clock,
    durable,
    log::Directory,
    segment::{self, SealError},
    store::{Damage, DamageKind, Store, StoreError},
};

/// What the names of files end with that are not in their place yet.
const STAGED: &str = ".repair";

/// Why a repair stopped. What was done stays; run it again.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Another process has the stream.
    #[error(
        "{path} is in use by another process; stop the daemon first: a repair needs the stream for itself"
    )]
    Locked {
        /// The stream's folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A segment could not be read for another reason than damage.
    #[error(transparent)]
    Read(#[from] segment::ReadError),
    /// What was salvaged could not be sealed.
    #[error("what was salvaged could not be sealed: {0}")]
    Seal(#[from] SealError),
    /// The object store or registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The catalog refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A step of the work panicked.
    #[error("a step of the repair broke off: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Repairs one stream.
#[derive(Clone)]
pub struct Repair {
    /// The stream.
    pub stream: String,
    /// Its folder.
    pub directory: Directory,
    /// The catalog.
    pub store: Store,
    /// Where segments are kept.
    pub artifacts: Artifacts,
    /// How segments are sealed.
    pub settings: segment::Settings,
    /// What the catalog says now.
    pub remembered: Remembered,
    /// Every offset before this one was given once.
    pub known_end: u64,
    /// What time it is.
    pub clock: Clock,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What is to be done.
struct Plan {
    /// The segments as they shall be, but for those of `runs`.
    chosen: Vec<Copy>,
    /// Segments to be written.
    runs: Vec<Run>,
    /// Intact copies that others take the place of.
    superseded: Vec<Copy>,
    /// Every offset that is held then.
    held: Offsets,
    /// Frames of each damaged file that are not proven, by its name.
    unproven: Vec<(String, u64)>,
}

impl Repair {
    /// Repairs, or says what a repair would do.
    ///
    /// # Errors
    /// See [`RepairError`].
    pub async fn run(&self) -> Result<Report, RepairError> {
        let at = |source| RepairError::Io { path: self.directory.path().to_owned(), source };
        let Some(_lock) = self.directory.lock().map_err(at)? else {
            return Err(RepairError::Locked { path: self.directory.path().to_owned() });
        };
        self.sweep().map_err(at)?;
        let done = self.repair().await;
        self.sweep().map_err(at)?;
        done
    }

    async fn repair(&self) -> Result<Report, RepairError> {
        let mut found = self.look().await?;
        let this = self.clone();
        let (plan, found) = blocking(move || this.plan(&mut found).map(|plan| (plan, found))).await??;
        let mut report = Report { dry_run: self.dry_run, ..Report::default() };
        report.objects_altered.clone_from(&found.objects_altered);
        self.account(&found, &plan, &mut report);
        report.changed |= !found.wounded.is_empty() || !report.lost.is_empty();
        self.put(found, plan, &mut report).await?;
        for file in &report.files {
            let lost =
                |&(first_offset, next_offset)| Lost { first_offset, next_offset, file: file.now.clone() };
            report.lost.extend(file.lost.iter().map(lost));
        }
        report.lost.sort_by_key(|lost| lost.first_offset);
        self.settle(&mut report).await?;
        Ok(report)
    }

    /// Removes what an earlier run left behind.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.directory.path())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(STAGED) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn plan(&self, found: &mut Found) -> Result<Plan, RepairError> {
        let (chosen, superseded, taken) = choose(std::mem::take(&mut found.copies), &found.raws);
        let mut given = Vec::new();
        let mut unproven = Vec::new();
        let mut bases: Vec<u64> = chosen.iter().map(|copy| copy.info.base_offset).collect();
        bases.extend(found.raws.iter().map(|raw| raw.base));
        bases.extend(found.wounded.iter().map(|wounded| wounded.base));
        for wounded in &found.wounded {
            let next = bases.iter().copied().filter(|base| *base > wounded.base).min();
            let one = self.readable(wounded, next)?;
            unproven.push((wounded.file.clone(), one.unproven));
            given.push((wounded.file.clone(), one));
        }
        let runs = gather::runs(given, &taken);
        let mut held: Offsets = found.raws.iter().map(|raw| raw.base..raw.end).collect();
        for copy in &chosen {
            let gaps: Offsets = copy.gaps.iter().cloned().collect();
            gaps.missing(copy.info.base_offset..copy.info.end_offset)
                .into_iter()
                .for_each(|r| held.insert(r));
        }
        runs.iter().flat_map(|run| run.offsets().ranges().collect::<Vec<_>>()).for_each(|r| held.insert(r));
        Ok(Plan { chosen, runs, superseded, held, unproven })
    }

    /// Says what is lost, and with which file.
    fn account(&self, found: &Found, plan: &Plan, report: &mut Report) {
        let rows = &self.remembered.segments;
        let mut starts: Vec<u64> = plan.held.ranges().map(|range| range.start).collect();
        starts.extend(found.wounded.iter().map(|wounded| wounded.base));
        starts.extend(rows.iter().map(|row| row.base_offset));
        starts.extend(self.remembered.start_offset);
        let end = plan.held.ranges().map(|range| range.end).fold(self.known_end, u64::max);
        let start = starts.iter().copied().min().unwrap_or(end);
        let mut lost: Offsets = plan.held.missing(start..end).into_iter().collect();
        let expired: Offsets = self
            .remembered
            .damage
            .iter()
            .filter(|damage| damage.kind == DamageKind::Expired)
            .map(Damage::offsets)
            .collect();
        lost = lost.ranges().flat_map(|range| expired.missing(range)).collect();
        report.lost_in_all = lost.count();
        let settled: Offsets =
            self.remembered.damage.iter().filter(|d| d.settled_ms.is_some()).map(Damage::offsets).collect();
        lost = lost.ranges().flat_map(|range| settled.missing(range)).collect();
        let nominal_end = |base: u64| {
            let row = rows.iter().find(|row| row.base_offset == base).map(|row| row.end_offset);
            row.or_else(|| starts.iter().copied().filter(|next| *next > base).min()).unwrap_or(end).max(base)
        };
        let mut explain = |base: u64| {
            let outside: Offsets = [0..base, nominal_end(base)..u64::MAX].into_iter().collect();
            let mine: Offsets = lost.ranges().flat_map(|range| outside.missing(range)).collect();
            lost = lost.ranges().flat_map(|range| mine.missing(range)).collect();
            mine
        };
        for wounded in &found.wounded {
            let mine = explain(wounded.base);
            report.files.push(file_report(wounded, plan, &mine));
        }
        for (file, base, why) in &found.unjudged {
            let mine = explain(*base);
            let lost = |r: std::ops::Range<u64>| Lost {
                first_offset: r.start,
                next_offset: r.end,
                file: file.clone(),
            };
            report.undecided.extend(mine.ranges().map(lost));
            let wrong = format!("it cannot be judged: {why}");
            report.files.push(FileReport::new(file.clone(), DamageKind::Unreadable, wrong));
        }
        let undecided: u64 = report.undecided.iter().map(|lost| lost.next_offset - lost.first_offset).sum();
        report.lost_in_all = report.lost_in_all.saturating_sub(undecided);
        for range in lost.ranges() {
            let row = rows.iter().find(|row| (row.base_offset..row.end_offset).contains(&range.start));
            let name = row
                .and_then(|row| Path::new(&row.file).file_name())
                .map(|n| n.to_string_lossy().into_owned());
            let file = name.unwrap_or_else(|| format!("{:020}.log", range.start));
            report.lost.push(Lost { first_offset: range.start, next_offset: range.end, file });
        }
    }

    /// Remembers what is lost for good, and that the files in quarantine were
    /// seen to.
    async fn settle(&self, report: &mut Report) -> Result<(), RepairError> {
        let was_open = self.remembered.damage.iter().any(|damage| damage.settled_ms.is_none());
        let left_open: Vec<Damage> = report.undecided.iter().map(|lost| self.unreadable(lost)).collect();
        if self.dry_run || !(report.changed || was_open) {
            report.changed |= was_open && left_open.is_empty();
            return Ok(());
        }
        let now = (self.clock)();
        let settled = |file: &str, kind, first_offset, next_offset, detail: &str| Damage {
            file: file.to_owned(),
            kind,
            first_offset,
            next_offset,
            detail: detail.to_owned(),
            found_ms: now,
            settled_ms: Some(now),
        };
        let mut rows = left_open;
        for Lost { first_offset, next_offset, file } in &report.lost {
            let (kind, detail) = match report.files.iter().find(|one| one.now == *file) {
                Some(one) => (one.kind, one.wrong.as_str()),
                None => (DamageKind::Missing, "nothing holds these offsets"),
            };
            rows.push(settled(file, kind, *first_offset, *next_offset, detail));
        }
        // So that a file in quarantine is not reported as news again.
        let costless = |file: &&FileReport| {
            file.is_set_aside()
                && file.lost.is_empty()
                && !report.undecided.iter().any(|one| one.file == file.file)
        };
        rows.extend(report.files.iter().filter(costless).map(|f| settled(&f.now, f.kind, 0, 0, &f.wrong)));
        report.changed |= was_open;
        Ok(self.store.settle_damage(&self.stream, &rows).await?)
    }

    fn unreadable(&self, lost: &Lost) -> Damage {
        Damage {
            file: lost.file.clone(),
            kind: DamageKind::Unreadable,
            first_offset: lost.first_offset,
            next_offset: lost.next_offset,
            detail: "a repair could not judge it".into(),
            found_ms: (self.clock)(),
            settled_ms: None,
        }
    }
}

fn file_report(wounded: &Wounded, plan: &Plan, lost: &Offsets) -> FileReport {
    let salvaged: Offsets = plan
        .runs
        .iter()
        .filter(|run| run.from.contains(&wounded.file))
        .flat_map(|run| run.offsets().ranges().collect::<Vec<_>>())
        .collect();
    // Where nothing is lost they are held elsewhere.
    let unproven = plan.unproven.iter().find(|(file, _)| *file == wounded.file).map_or(0, |(_, n)| *n);
    let unproven = if lost.count() == 0 { 0 } else { unproven };
    let report = FileReport::new(wounded.file.clone(), wounded.kind, wounded.wrong.clone());
    FileReport { salvaged: pairs(&salvaged), lost: pairs(lost), unproven, ..report }
}

/// The copies that shall be the segments, in order; those that they take the
/// place of; and the offsets they and the raw segments stretch over.
///
/// Those with most frames go first, and among equals those that are in place.
/// A raw segment is as good as what will be sealed from it.
fn choose(mut copies: Vec<Copy>, raws: &[look::Raw]) -> (Vec<Copy>, Vec<Copy>, Offsets) {
    copies.sort_by_key(|copy| {
        (std::cmp::Reverse(copy.info.records), copy.place != Place::Here, copy.info.base_offset)
    });
    let (mut chosen, mut superseded, mut taken) = (Vec::<Copy>::new(), Vec::new(), Offsets::default());
    for copy in copies {
        let offsets = copy.info.base_offset..copy.info.end_offset;
        let free = taken.missing(offsets.clone()) == [offsets.clone()];
        let raw = raws.iter().find(|raw| raw.base < offsets.end && offsets.start < raw.end);
        // It was sealed from the raw segment, which was not removed yet.
        let of_raw = raw.is_none_or(|raw| copy.place == Place::Here && raw.base == offsets.start);
        if free && of_raw && raw.is_none_or(|raw| raw.end <= offsets.end) {
            taken.insert(offsets);
            chosen.push(copy);
        } else {
            superseded.push(copy);
        }
    }
    chosen.sort_by_key(|copy| copy.info.base_offset);
    raws.iter().for_each(|raw| taken.insert(raw.base..raw.end));
    (chosen, superseded, taken)
}

/// Runs what computes or waits for the disk where it holds up nothing else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RepairError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

fn remove(path: &Path) -> Result<(), RepairError> {
    fs::remove_file(path).map_err(|source| RepairError::Io { path: path.to_owned(), source })
}

/// Gives a staged file its name, durably.
fn put_in_place(staged: &Path, path: &Path) -> Result<(), RepairError> {
    let at = |source| RepairError::Io { path: path.to_owned(), source };
    fs::rename(staged, path).map_err(at)?;
    durable::sync_dir(path.parent().unwrap_or(path)).map_err(at)
}
