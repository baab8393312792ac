//! `thalweg segments verify`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::{
    artifact::hex,
    cli::{
        FOUND_WRONG, Output,
        meter::Meter,
        offline,
        output::{count, short},
    },
    config::Pipeline,
    log::{self, Segment},
    segment::{self, Damage},
};

/// What was found in one file.
#[derive(Debug, Serialize)]
struct Found {
    file: PathBuf,
    base_offset: Option<u64>,
    state: &'static str,
    intact: bool,
    records: Option<u64>,
    object_digest: Option<String>,
    content_digest: Option<String>,
    /// Whether the catalog says which file it should be.
    in_catalog: bool,
    damage: Vec<Wrong>,
}

#[derive(Debug, Serialize)]
struct Wrong {
    what: &'static str,
    block: Option<usize>,
    bytes: Option<(u64, u64)>,
    offsets: Option<(u64, u64)>,
    records_lost: Option<u64>,
    message: String,
}

/// What is to be verified.
enum Target {
    Sealed(u64),
    Raw(u64),
    File(PathBuf),
    Unreadable(PathBuf),
}

pub(super) async fn verify(pipeline: &Pipeline, targets: &[String], output: Output) -> Result<ExitCode> {
    let only_files = !targets.is_empty() && targets.iter().all(|target| target.parse::<u64>().is_err());
    let files = || targets.iter().map(|target| Target::File(target.into())).collect();
    let mut found = Vec::new();
    if only_files {
        judge_all(files(), |target| found.extend(judge_file(target)))?;
    } else {
        let scope = Scope::open(pipeline).await?;
        let chosen = scope.choose(targets)?;
        judge_all(chosen, |target| found.push(scope.judge(target)))?;
    }
    let found: Vec<Found> = found.into_iter().collect::<Result<_>>()?;
    output.print(&found, |found| text(found))?;
    let intact = found.iter().all(|file| file.intact);
    Ok(if intact { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
}

/// Judges each target off the runtime's threads, with progress.
fn judge_all(targets: Vec<Target>, mut judge: impl FnMut(Target)) -> Result<()> {
    let mut meter = Meter::new(Some(targets.len() as u64));
    for (done, target) in (1..).zip(targets) {
        tokio::task::block_in_place(|| judge(target));
        meter.at(done, "");
    }
    Ok(())
}

fn judge_file(target: Target) -> Option<Result<Found>> {
    match target {
        Target::File(path) => Some(sealed(path, None, None)),
        _ => None,
    }
}

/// The log of a pipeline and what its catalog says.
struct Scope {
    reader: log::LogReader,
    recovery: log::Recovery,
    folder: log::Directory,
    digests: BTreeMap<u64, String>,
}

impl Scope {
    async fn open(pipeline: &Pipeline) -> Result<Self> {
        let (reader, recovery) = offline::log(pipeline)?;
        let mut digests = BTreeMap::new();
        if let Some(store) = offline::find_store(pipeline).await? {
            for row in store.segments(&pipeline.stream).await? {
                digests.insert(row.base_offset, row.object_digest);
            }
            store.close().await;
        }
        Ok(Self { reader, recovery, folder: offline::log_folder(pipeline), digests })
    }

    /// Everything, or what was named. A file that the catalog names and that
    /// is gone counts as damaged, not as absent.
    fn choose(&self, named: &[String]) -> Result<Vec<Target>> {
        let sealed: BTreeSet<u64> =
            self.folder.list()?.1.into_iter().chain(self.digests.keys().copied()).collect();
        let raw: BTreeSet<u64> = self
            .reader
            .segments()
            .into_iter()
            .filter_map(|(base, segment)| matches!(segment, Segment::Raw(_)).then_some(base))
            .filter(|base| !sealed.contains(base))
            .collect();
        if named.is_empty() {
            let unreadable = self.recovery.quarantined.iter().filter(|path| !is_sealed(path));
            return Ok(sealed
                .into_iter()
                .map(Target::Sealed)
                .chain(raw.into_iter().map(Target::Raw))
                .chain(unreadable.cloned().map(Target::Unreadable))
                .collect());
        }
        let target = |name: &String| match name.parse::<u64>() {
            Err(_) => Ok(Target::File(name.into())),
            Ok(base) if sealed.contains(&base) => Ok(Target::Sealed(base)),
            Ok(base) if raw.contains(&base) => Ok(Target::Raw(base)),
            Ok(base) => bail!("no segment begins at offset {base}; `thalweg segments list` shows them"),
        };
        named.iter().map(target).collect()
    }

    fn judge(&self, target: Target) -> Result<Found> {
        match target {
            Target::Sealed(base) => {
                let expected = self.digests.get(&base).map(String::as_str);
                sealed(self.folder.sealed(base), Some(base), expected)
            }
            Target::File(path) => sealed(path, None, None),
            Target::Raw(base) => self.raw(base),
            Target::Unreadable(path) => Ok(broken(
                path,
                None,
                "raw",
                false,
                "its header cannot be read, so no record of it can".into(),
            )),
        }
    }

    /// What is wrong with a segment that is not sealed.
    fn raw(&self, base: u64) -> Result<Found> {
        let path = self.folder.raw(base);
        let damage = match self.reader.segments().get(&base) {
            Some(Segment::Raw(raw)) => raw.prove()?,
            _ => Vec::new(),
        };
        let damage: Vec<_> = damage.iter().map(raw_damage).collect();
        let lost: u64 = damage.iter().filter_map(|wrong| wrong.records_lost).sum();
        let next = self.reader.segments().range(base + 1..).next().map(|(next, _)| *next);
        let end = next.unwrap_or_else(|| self.reader.end_offset());
        Ok(Found {
            file: path,
            base_offset: Some(base),
            state: super::raw_state(&self.reader, base),
            intact: damage.is_empty(),
            records: Some(end.saturating_sub(base + lost)),
            object_digest: None,
            content_digest: None,
            in_catalog: false,
            damage,
        })
    }
}

fn is_sealed(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".seg.zst")
}

fn sealed(file: PathBuf, base_offset: Option<u64>, expected: Option<&str>) -> Result<Found> {
    let digest = expected.and_then(digest_of_hex);
    let report = match segment::verify(&file, digest.as_ref()) {
        Ok(report) => report,
        Err(segment::ReadError::Io { source, .. })
            if expected.is_some() && source.kind() == std::io::ErrorKind::NotFound =>
        {
            return Ok(broken(
                file,
                base_offset,
                "sealed",
                true,
                "the catalog names it, and it is gone".into(),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Found {
        base_offset: base_offset.or(report.info.as_ref().map(|info| info.base_offset)),
        file,
        state: "sealed",
        intact: report.is_intact(),
        records: report.info.as_ref().map(|info| info.records),
        object_digest: Some(hex(&report.object_digest)),
        content_digest: report.content_digest.map(|digest| hex(&digest)),
        in_catalog: expected.is_some(),
        damage: report.damage.iter().map(wrong).collect(),
    })
}

fn broken(
    file: PathBuf,
    base_offset: Option<u64>,
    state: &'static str,
    in_catalog: bool,
    message: String,
) -> Found {
    let damage =
        vec![Wrong { what: "file", block: None, bytes: None, offsets: None, records_lost: None, message }];
    Found {
        file,
        base_offset,
        state,
        intact: false,
        records: None,
        object_digest: None,
        content_digest: None,
        in_catalog,
        damage,
    }
}

fn wrong(damage: &Damage) -> Wrong {
    let message = damage.to_string();
    let none = Wrong { what: "object", block: None, bytes: None, offsets: None, records_lost: None, message };
    match damage {
        Damage::Block { block, bytes, offsets, records_lost, .. } => Wrong {
            what: "block",
            block: Some(*block),
            bytes: Some((bytes.start, bytes.end)),
            offsets: offsets.as_ref().map(|range| (range.start, range.end)),
            records_lost: records_lost.map(u64::from),
            ..none
        },
        Damage::Index { .. } => Wrong { what: "index", ..none },
        Damage::SeekTable { .. } => Wrong { what: "seek_table", ..none },
        Damage::Content { .. } => Wrong { what: "content", ..none },
        Damage::Object { .. } => none,
    }
}

fn raw_damage(damage: &log::Damage) -> Wrong {
    let lost = damage.next_offset - damage.first_offset;
    Wrong {
        what: "batches",
        block: None,
        bytes: Some((damage.from, damage.to)),
        offsets: Some((damage.first_offset, damage.next_offset)),
        records_lost: Some(lost),
        message: format!(
            "file bytes {}..{} are damaged: {lost} records are lost, offsets {}..{}",
            damage.from, damage.to, damage.first_offset, damage.next_offset
        ),
    }
}

/// 32 bytes from 64 hex digits.
fn digest_of_hex(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

fn text(found: &[Found]) -> String {
    let mut text = String::new();
    for file in found {
        let records = file.records.map_or_else(String::new, |n| format!("  {} records", count(n)));
        let digest = file.object_digest.as_deref().map_or_else(String::new, |d| format!("  {}", short(d)));
        let state = if file.intact { "intact " } else { "DAMAGED" };
        text += &format!("{state}  {}  {}{records}{digest}\n", file.file.display(), file.state);
        for wrong in &file.damage {
            text += &format!("         {}\n", wrong.message);
        }
    }
    let damaged = found.iter().filter(|file| !file.intact).count();
    text + &format!("{} files, {damaged} damaged\n", found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_back_from_its_hex() {
        let digest: [u8; 32] = std::array::from_fn(|n| n as u8 * 7);
        assert_eq!(digest_of_hex(&hex(&digest)), Some(digest));
        assert_eq!(digest_of_hex("ab"), None);
        assert_eq!(digest_of_hex(&"g".repeat(64)), None);
    }
}
