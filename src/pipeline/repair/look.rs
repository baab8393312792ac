//! Looking: every file of the stream and every object that may be of it, each
//! judged by its bytes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Repair, RepairError, blocking};
use crate::{
    artifact::{Artifacts, hex},
    log::{Proof, Salvage, Salvaged, salvage, segment_name},
    pipeline::{
        catalog::{EXTENSION, KIND},
        survey::{original_name, relative},
    },
    segment::{self, SegmentInfo},
    store::{ArtifactRow, DamageKind},
};

/// An intact copy of a sealed segment.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub place: Place,
    pub info: SegmentInfo,
    pub object_digest: String,
    /// Number of offsets within it that it has no frame for.
    pub gaps: Vec<std::ops::Range<u64>>,
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Where the log looks for it.
    Here,
    /// In another file of the folder.
    File(PathBuf),
    /// Fetched from the object store.
    Fetched { file: PathBuf, location: String },
}

/// A file that is not as it was written.
#[derive(Debug)]
pub(super) struct Wounded {
    pub path: PathBuf,
    /// Relative to the folder of the stream.
    pub file: String,
    /// Its first offset, as its name says.
    pub base: u64,
    pub kind: DamageKind,
    pub wrong: String,
    pub left: Left,
}

/// What is left of a damaged file.
#[derive(Debug)]
pub(super) enum Left {
    Raw(Salvage),
    /// A raw segment of which nothing can be proven, and what its batches
    /// claim to hold.
    Claims(u64),
    Sealed,
    Nothing,
}

/// A raw segment without damage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub base: u64,
    pub end: u64,
}

/// Everything that was looked at.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub copies: Vec<Copy>,
    pub raws: Vec<Raw>,
    pub wounded: Vec<Wounded>,
    /// Files that cannot be judged: (file, first offset, why).
    pub unjudged: Vec<(String, u64, String)>,
    pub objects_altered: Vec<String>,
}

impl Repair {
    pub(super) async fn look(&self) -> Result<Found, RepairError> {
        let folder = self.directory.path().to_owned();
        let quarantine = self.directory.quarantine();
        let mut files = names(&folder).map_err(|source| RepairError::Io { path: folder.clone(), source })?;
        files.retain(|path| {
            segment_of(path).is_some_and(|(base, sealed)| path == &self.path_of(base, sealed))
        });
        let aside = names(&quarantine).map_err(|source| RepairError::Io { path: quarantine, source })?;
        let settled = |path: &Path| {
            let file = relative(path, &folder);
            self.remembered.damage.iter().any(|d| d.settled_ms.is_some() && d.file == file)
        };
        files.extend(aside.into_iter().filter(|path| !settled(path)));
        let mut found = Found::default();
        for path in files {
            let (stream, folder) = (self.stream.clone(), folder.clone());
            blocking(move || judge(&path, &folder, &stream)).await??.add_to(&mut found);
        }
        self.look_at_objects(&mut found).await?;
        self.sort_out_empty(&mut found);
        Ok(found)
    }

    /// A raw segment that holds nothing, although offsets after its first were
    /// given, is damaged as a whole.
    fn sort_out_empty(&self, found: &mut Found) {
        let empty = |raw: &Raw| raw.end == raw.base && self.known_end > raw.base;
        for raw in found.raws.extract_if(.., |raw| empty(raw)) {
            let path = self.directory.raw(raw.base);
            found.wounded.push(Wounded {
                file: relative(&path, self.directory.path()),
                path,
                base: raw.base,
                kind: DamageKind::Batches,
                wrong: "nothing in it can be proven".into(),
                left: Left::Nothing,
            });
        }
    }

    fn path_of(&self, base: u64, sealed: bool) -> PathBuf {
        if sealed { self.directory.sealed(base) } else { self.directory.raw(base) }
    }

    /// Fetches the objects that may hold what no intact file does.
    async fn look_at_objects(&self, found: &mut Found) -> Result<(), RepairError> {
        let rows = self.artifacts.list().await?;
        for (location, digest) in self.artifacts.objects(KIND).await? {
            let row = rows.iter().find(|row| row.location == location);
            if found.copies.iter().any(|copy| copy.object_digest == digest)
                || row.is_some_and(|row| !self.may_help(row, found))
                || location != Artifacts::location(KIND, &digest, EXTENSION)
            {
                continue;
            }
            let file = self.directory.path().join(format!("{digest}{}", super::STAGED));
            self.artifacts.fetch_object(&location, &file).await?;
            let (path, stream) = (file.clone(), self.stream.clone());
            let verified = blocking(move || verified(&path, &stream)).await?;
            match verified {
                Ok(Verified::Intact { info, object_digest, gaps, .. }) if object_digest == digest => {
                    found.copies.push(Copy {
                        place: Place::Fetched { file, location },
                        info,
                        object_digest,
                        gaps,
                    });
                }
                Ok(Verified::OtherStream) => super::remove(&file)?,
                Ok(_) => {
                    found.objects_altered.push(location);
                    super::remove(&file)?;
                }
                Err(error) => {
                    found.unjudged.push((location, 0, error.to_string()));
                    super::remove(&file)?;
                }
            }
        }
        Ok(())
    }

    /// Whether an object that the registry knows may hold frames of this
    /// stream that no intact file has.
    fn may_help(&self, row: &ArtifactRow, found: &Found) -> bool {
        let Ok(meta) = serde_json::from_str::<serde_json::Value>(&row.meta) else { return true };
        let number = |key: &str| meta.get(key).and_then(serde_json::Value::as_u64);
        let (Some(base), Some(records)) = (number("base_offset"), number("records")) else { return true };
        let ours = meta.get("stream").and_then(serde_json::Value::as_str) == Some(&self.stream);
        let better = |copy: &Copy| copy.info.base_offset == base && copy.info.records >= records;
        ours && !found.copies.iter().any(better)
    }
}

/// Paths in a folder, in order; none if there is no folder.
fn names(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                paths.push(entry?.path());
            }
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

fn segment_of(path: &Path) -> Option<(u64, bool)> {
    segment_name(original_name(&path.file_name()?.to_string_lossy()))
}

enum Judged {
    Nothing,
    Copy(Copy),
    Raw(Raw),
    Wounded(Wounded),
    Unjudged(String, u64, String),
}

impl Judged {
    fn add_to(self, found: &mut Found) {
        match self {
            Self::Nothing => {}
            Self::Copy(copy) => found.copies.push(copy),
            Self::Raw(raw) => found.raws.push(raw),
            Self::Wounded(wounded) => found.wounded.push(wounded),
            Self::Unjudged(file, base, why) => found.unjudged.push((file, base, why)),
        }
    }
}

fn judge(path: &Path, folder: &Path, stream: &str) -> Result<Judged, RepairError> {
    let Some((base, sealed)) = segment_of(path) else { return Ok(Judged::Nothing) };
    let file = relative(path, folder);
    let at = |source| RepairError::Io { path: path.to_owned(), source };
    let wounded = |kind, wrong: String, left| {
        Judged::Wounded(Wounded { path: path.to_owned(), file: file.clone(), base, kind, wrong, left })
    };
    if !fs::symlink_metadata(path).map_err(at)?.is_file() {
        return Ok(wounded(DamageKind::Unreadable, "it is no file".into(), Left::Nothing));
    }
    if sealed {
        return Ok(match verified(path, stream) {
            Ok(Verified::Intact { info, object_digest, gaps }) => {
                let here = info.base_offset == base && path.parent() == Some(folder);
                let place = if here { Place::Here } else { Place::File(path.to_owned()) };
                Judged::Copy(Copy { place, info, object_digest, gaps })
            }
            Ok(Verified::OtherStream) => {
                wounded(DamageKind::Altered, "it is a segment of another stream".into(), Left::Nothing)
            }
            Ok(Verified::Damaged { kind, wrong }) => wounded(kind, wrong, Left::Sealed),
            Err(error) => Judged::Unjudged(file, base, error.to_string()),
        });
    }
    let aside = path.parent() != Some(folder);
    Ok(match salvage(path, base) {
        Err(error) => Judged::Unjudged(file, base, error.to_string()),
        Ok(Salvaged::Unproven { claimed_end }) => {
            let claimed = claimed_end.map_or(0, |end| end - base);
            let wrong = "its header is destroyed, and what it held cannot be proven without it";
            wounded(DamageKind::Header, wrong.into(), Left::Claims(claimed))
        }
        Ok(Salvaged::Proven(found)) => match (found.proof, found.damage.is_empty(), aside) {
            (Proof::Header, true, false) => Judged::Raw(Raw { base, end: found.end_offset }),
            (Proof::Header, true, true) => wounded(DamageKind::Batches, "set aside".into(), Left::Raw(found)),
            (Proof::Header, false, _) => {
                let wrong = format!("damaged before proven data in {} places", found.damage.len());
                wounded(DamageKind::Batches, wrong, Left::Raw(found))
            }
            (Proof::Batches(n), ..) => {
                let wrong = format!("its header is destroyed; {n} batches prove each other");
                wounded(DamageKind::Header, wrong, Left::Raw(found))
            }
        },
    })
}

#[expect(clippy::large_enum_variant, reason = "one lives at a time")]
enum Verified {
    Intact { info: SegmentInfo, object_digest: String, gaps: Vec<std::ops::Range<u64>> },
    OtherStream,
    Damaged { kind: DamageKind, wrong: String },
}

fn verified(path: &Path, stream: &str) -> Result<Verified, segment::ReadError> {
    let report = segment::verify(path, None)?;
    Ok(match &report.info {
        Some(info) if info.stream != stream => Verified::OtherStream,
        Some(info) if report.is_intact() => Verified::Intact {
            info: info.clone(),
            object_digest: hex(&report.object_digest),
            gaps: segment::Reader::open(path)?.gaps(),
        },
        info => {
            let first = report.damage.first().map(ToString::to_string).unwrap_or_default();
            let wrong = match report.damage.len() {
                0 | 1 => first,
                n => format!("{first}; and {} more", n - 1),
            };
            let lossy =
                |d: &segment::Damage| matches!(d, segment::Damage::Block { records_lost: Some(1..), .. });
            let kind = match info {
                None => DamageKind::Index,
                Some(_) if report.damage.iter().any(lossy) => DamageKind::Block,
                Some(_) => DamageKind::Altered,
            };
            Verified::Damaged { kind, wrong }
        }
    })
}
