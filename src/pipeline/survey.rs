//! What is wrong with the files of a stream, as they lie on disk.
//!
//! Reads names, indexes and what opening the log found; no block is read. So
//! it costs nothing at a start, and finds every offset that is gone.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use super::offsets::Offsets;
use crate::{
    log::{LogReader, Recovery, Segment, segment_name},
    store::{Damage, DamageKind, SegmentRow},
};

/// What the store remembers of a stream.
#[derive(Clone, Debug, Default)]
pub struct Remembered {
    /// The catalog.
    pub segments: Vec<SegmentRow>,
    /// Damage found earlier, open or settled.
    pub damage: Vec<Damage>,
    /// The first offset that was ever read of the stream, if one was.
    pub start_offset: Option<u64>,
}

impl Remembered {
    /// The offset that a stream must go on at, at least: every one before it
    /// was given once.
    pub fn end_offset(&self, next_offset: u64) -> u64 {
        let sealed = self.segments.iter().map(|row| row.end_offset);
        let lost = self.damage.iter().map(|damage| damage.next_offset);
        sealed.chain(lost).fold(next_offset, u64::max)
    }
}

/// Everything that is wrong in `folder` and not remembered yet.
///
/// # Errors
/// If the folder cannot be listed.
pub fn survey(
    log: &LogReader,
    folder: &Path,
    recovery: &Recovery,
    remembered: &Remembered,
    now_ms: i64,
) -> io::Result<Vec<Damage>> {
    let quarantine = list(&folder.join("quarantine"))?;
    let segments = log.segments();
    let mut extents = Vec::new();
    for (base, segment) in &segments {
        let next = segments.range(base + 1..).next().map_or_else(|| log.end_offset(), |(next, _)| *next);
        extents.push(match segment {
            Segment::Raw(raw) => {
                Extent { file: relative(raw.path(), folder), offsets: *base..next, gaps: Vec::new() }
            }
            Segment::Sealed(sealed) => Extent {
                file: format!("{base:020}.seg.zst"),
                offsets: *base..sealed.info().end_offset,
                gaps: sealed.gaps(),
            },
        });
    }
    let recovered = recovered(recovery, folder, &extents);
    let facts = Facts { extents, recovered, quarantine, end_offset: log.end_offset() };
    Ok(judge(&facts, remembered, now_ms))
}

/// A segment that can be read.
#[derive(Clone, Debug)]
struct Extent {
    file: String,
    offsets: Range<u64>,
    gaps: Vec<Range<u64>>,
}

struct Facts {
    extents: Vec<Extent>,
    recovered: Vec<Damage>,
    /// Names of the files in quarantine.
    quarantine: Vec<String>,
    end_offset: u64,
}

fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The name of a file of `folder` as [`Damage`] has it.
pub(super) fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}

/// The name that a file had before it was set aside, and so what it was.
pub(super) fn original_name(name: &str) -> &str {
    let name = name.rsplit('/').next().unwrap_or(name);
    match name.rsplit_once('.') {
        Some((before, copy)) if !copy.is_empty() && copy.bytes().all(|b| b.is_ascii_digit()) => before,
        _ => name,
    }
}

fn damage(file: String, kind: DamageKind, offsets: Range<u64>, detail: impl Into<String>) -> Damage {
    let Range { start, end } = offsets;
    Damage {
        file,
        kind,
        first_offset: start,
        next_offset: end.max(start),
        detail: detail.into(),
        found_ms: 0,
        settled_ms: None,
    }
}

/// What opening the log found. Files that could not be read are here without
/// offsets unless opening found these too.
fn recovered(recovery: &Recovery, folder: &Path, extents: &[Extent]) -> Vec<Damage> {
    let mut found: Vec<Damage> = Vec::new();
    for stretch in &recovery.damage {
        let offsets = stretch.first_offset..stretch.next_offset;
        if stretch.path == folder {
            // The last file before the end that is known: it lost its own.
            let last = extents.iter().rfind(|extent| extent.offsets.start < offsets.end);
            let file = last.map_or_else(|| file_at(offsets.start), |extent| extent.file.clone());
            found.push(damage(file, DamageKind::Missing, offsets, "the log lost its end"));
            continue;
        }
        let file = relative(&stretch.path, folder);
        let kind = match segment_name(original_name(&file)) {
            Some((_, true)) => DamageKind::Index,
            _ if is_set_aside(&file) => DamageKind::Header,
            _ => DamageKind::Batches,
        };
        let detail = format!("file bytes {}..{}", stretch.from, stretch.to);
        found.push(damage(file, kind, offsets, detail));
    }
    for path in &recovery.quarantined {
        let file = relative(path, folder);
        if !found.iter().any(|damage| damage.file == file) {
            found.push(unreadable(path, file));
        }
    }
    found
}

fn unreadable(path: &PathBuf, file: String) -> Damage {
    let kind = match segment_name(original_name(&file)) {
        _ if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) => DamageKind::Unreadable,
        Some((_, true)) if is_set_aside(&file) => DamageKind::Index,
        Some((_, true)) => sealed_in_place(path),
        Some((_, false)) => DamageKind::Header,
        None => DamageKind::Unreadable,
    };
    let base = segment_name(original_name(&file)).map_or(0, |(base, _)| base);
    let detail = if is_set_aside(&file) { "set aside" } else { "cannot be read" };
    damage(file, kind, base..base, detail)
}

fn sealed_in_place(path: &Path) -> DamageKind {
    match crate::segment::Reader::open(path) {
        Err(error) if !error.is_damage() => DamageKind::Unreadable,
        _ => DamageKind::Index,
    }
}

fn is_set_aside(file: &str) -> bool {
    file.starts_with("quarantine/")
}

/// The name of a file that is gone and of which nothing else is known.
fn file_at(offset: u64) -> String {
    format!("{offset:020}.log")
}

fn judge(facts: &Facts, remembered: &Remembered, now_ms: i64) -> Vec<Damage> {
    let mut found = facts.recovered.clone();
    let known_files: Vec<&str> = remembered.damage.iter().map(|d| base_name(&d.file)).collect();
    for name in &facts.quarantine {
        let file = format!("quarantine/{name}");
        let known = known_files.contains(&name.as_str()) || found.iter().any(|d| d.file == file);
        if let (false, Some((base, sealed))) = (known, segment_name(original_name(name))) {
            let kind = if sealed { DamageKind::Index } else { DamageKind::Header };
            found.push(damage(file, kind, base..base, "set aside"));
        }
    }
    for one in &mut found {
        if one.lost() == 0 {
            one.next_offset = end_of(one, facts, remembered);
        }
    }
    let mut explained: Offsets = found.iter().map(Damage::offsets).collect();
    remembered.damage.iter().for_each(|known| explained.insert(known.offsets()));
    for extent in &facts.extents {
        for gap in extent.gaps.iter().flat_map(|gap| explained.missing(gap.clone())) {
            found.push(damage(extent.file.clone(), DamageKind::Gap, gap, "sealed without them"));
        }
    }
    found.extend(missing(facts, remembered, explained));
    let known: Offsets = remembered.damage.iter().map(Damage::offsets).collect();
    found.retain(|one| !is_known(one, &known, remembered));
    found.iter_mut().for_each(|one| one.found_ms = now_ms);
    found
}

fn base_name(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

fn is_known(one: &Damage, known: &Offsets, remembered: &Remembered) -> bool {
    let same = |d: &Damage| base_name(&d.file) == base_name(&one.file);
    match one.lost() {
        0 => remembered.damage.iter().any(|d| same(d) && d.kind == one.kind),
        _ => known.contains(&one.offsets()),
    }
}

/// Where a file that cannot be read ended: as the catalog says, or else where
/// the next segment begins. Nothing, where another file holds its offsets.
fn end_of(one: &Damage, facts: &Facts, remembered: &Remembered) -> u64 {
    let base = one.first_offset;
    if facts.extents.iter().any(|extent| extent.offsets.contains(&base)) {
        return base;
    }
    let row = remembered.segments.iter().find(|row| row.base_offset == base).map(|row| row.end_offset);
    let next = facts.extents.iter().map(|extent| extent.offsets.start).find(|start| *start > base);
    row.or(next).unwrap_or(facts.end_offset).max(base)
}

/// Offsets that were there once, that no file holds, and that nothing
/// explains.
fn missing(facts: &Facts, remembered: &Remembered, mut explained: Offsets) -> Vec<Damage> {
    facts.extents.iter().for_each(|extent| explained.insert(extent.offsets.clone()));
    let mut found = Vec::new();
    for row in &remembered.segments {
        let file = base_name(&row.file);
        for gone in explained.missing(row.base_offset..row.end_offset) {
            found.push(damage(
                file.to_owned(),
                DamageKind::Missing,
                gone,
                "the catalog names it, and it is gone",
            ));
        }
        explained.insert(row.base_offset..row.end_offset);
    }
    let first = facts.extents.iter().map(|extent| extent.offsets.start).min();
    let start = remembered.start_offset.into_iter().chain(first).min().unwrap_or(facts.end_offset);
    for gone in explained.missing(start..facts.end_offset) {
        let file = file_at(gone.start);
        found.push(damage(file, DamageKind::Missing, gone, "no file holds these offsets"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file: &str, offsets: Range<u64>, gaps: &[Range<u64>]) -> Extent {
        Extent { file: file.into(), offsets, gaps: gaps.to_vec() }
    }

    fn facts(extents: &[Extent], recovered: &[Damage], quarantine: &[&str]) -> Facts {
        Facts {
            extents: extents.to_vec(),
            recovered: recovered.to_vec(),
            quarantine: quarantine.iter().map(|name| (*name).to_owned()).collect(),
            end_offset: extents.iter().map(|e| e.offsets.end).max().unwrap_or(0),
        }
    }

    fn found(facts: &Facts, remembered: &Remembered) -> Vec<(String, DamageKind, Range<u64>)> {
        judge(facts, remembered, 5).into_iter().map(|d| (d.file.clone(), d.kind, d.offsets())).collect()
    }

    #[test]
    fn a_whole_log_has_no_damage() {
        let whole = facts(&[extent("a", 0..10, &[]), extent("b", 10..20, &[])], &[], &[]);
        let remembered = Remembered { start_offset: Some(0), ..Remembered::default() };
        assert_eq!(found(&whole, &remembered), []);
        assert_eq!(found(&facts(&[], &[], &[]), &Remembered::default()), []);
    }

    #[test]
    fn offsets_that_no_file_holds_are_missing_also_before_the_first() {
        let holey = facts(&[extent("b", 10..20, &[]), extent("c", 30..40, &[])], &[], &[]);
        let gone = |at: Range<u64>| (file_at(at.start), DamageKind::Missing, at);
        assert_eq!(found(&holey, &Remembered::default()), [gone(20..30)]);
        let read_from_0 = Remembered { start_offset: Some(0), ..Remembered::default() };
        assert_eq!(found(&holey, &read_from_0), [gone(0..10), gone(20..30)]);
    }

    #[test]
    fn a_file_that_only_the_catalog_knows_is_missing_by_its_name() {
        let row = SegmentRow {
            base_offset: 0,
            end_offset: 10,
            file: "/x/0.seg.zst".into(),
            ..SegmentRow::default()
        };
        let remembered = Remembered { segments: vec![row], ..Remembered::default() };
        let rest = facts(&[extent("b", 10..20, &[])], &[], &[]);
        assert_eq!(found(&rest, &remembered), [("0.seg.zst".into(), DamageKind::Missing, 0..10)]);
        // A raw segment in its place has the frames.
        let raw = facts(&[extent("a", 0..10, &[]), extent("b", 10..20, &[])], &[], &[]);
        assert_eq!(found(&raw, &remembered), []);
    }

    #[test]
    fn a_file_in_quarantine_is_reported_with_its_offsets_until_it_is_remembered() {
        let name = "00000000000000000000.seg.zst";
        let aside = facts(&[extent("b", 10..20, &[])], &[], &[name]);
        let one = (format!("quarantine/{name}"), DamageKind::Index, 0..10);
        assert_eq!(found(&aside, &Remembered::default()), [one]);
        let known = judge(&aside, &Remembered::default(), 5);
        let remembered = Remembered { damage: known.clone(), start_offset: Some(0), ..Remembered::default() };
        assert_eq!(found(&aside, &remembered), []);
        let settled = known.into_iter().map(|d| Damage { settled_ms: Some(9), ..d }).collect();
        let remembered = Remembered { damage: settled, start_offset: Some(0), ..Remembered::default() };
        assert_eq!(found(&aside, &remembered), []);
        // Set aside, and its frames are back.
        let back = facts(&[extent("a", 0..10, &[]), extent("b", 10..20, &[])], &[], &[name]);
        assert_eq!(found(&back, &Remembered::default())[0].2, 0..0);
    }

    #[test]
    fn a_gap_in_a_sealed_segment_is_damage_unless_it_is_known() {
        let sealed = facts(&[extent("a", 0..10, &[3..5])], &[], &[]);
        assert_eq!(found(&sealed, &Remembered::default()), [("a".into(), DamageKind::Gap, 3..5)]);
        let known = damage("quarantine/other".into(), DamageKind::Batches, 3..5, "");
        let remembered = Remembered { damage: vec![known], ..Remembered::default() };
        assert_eq!(found(&sealed, &remembered), []);
    }

    #[test]
    fn a_stream_goes_on_after_everything_that_was_ever_given() {
        let row = SegmentRow { end_offset: 30, ..SegmentRow::default() };
        let lost = damage("x".into(), DamageKind::Missing, 30..40, "");
        let remembered = Remembered { segments: vec![row], damage: vec![lost], start_offset: None };
        assert_eq!((remembered.end_offset(50), remembered.end_offset(7)), (50, 40));
    }

    #[test]
    fn the_name_before_quarantine_is_found_again() {
        let names = ["quarantine/00000000000000000007.log.2", "00000000000000000007.log"];
        assert!(names.iter().all(|name| segment_name(original_name(name)) == Some((7, false))));
        assert_eq!(original_name("a.seg.zst"), "a.seg.zst");
    }
}
