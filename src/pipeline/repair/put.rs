//! Putting: files, objects and rows as the plan says.

use std::path::{Path, PathBuf};

use super::{
    Copy, FileReport, Found, Place, Plan, Repair, RepairError, Report, Restored, Run, STAGED, blocking,
    put_in_place,
};
use crate::{
    artifact::{Artifacts, Verified, hex},
    frame::FrameBatch,
    pipeline::{archive::time_of, catalog, survey::relative},
    segment::{self, SegmentHeader, SegmentInfo},
    store::DamageKind,
};

/// A segment that is in its place.
struct InPlace {
    info: SegmentInfo,
    object_digest: String,
}

impl Repair {
    pub(super) async fn put(&self, found: Found, plan: Plan, report: &mut Report) -> Result<(), RepairError> {
        // Written first, so that an original is moved only when what it still
        // holds is safe.
        let mut written = Vec::new();
        for run in plan.runs {
            written.push(self.write(run, report).await?);
        }
        self.set_aside(&found, &plan.superseded, report)?;
        let mut segments = Vec::new();
        for copy in plan.chosen {
            segments.push(self.put_copy(copy, report)?);
        }
        for (staged, segment) in written.into_iter().flatten() {
            put_in_place(&staged, &self.directory.sealed(segment.info.base_offset))?;
            segments.push(segment);
        }
        self.put_objects(&segments, report).await?;
        self.put_rows(&segments, report).await
    }

    /// Seals a run beside its place.
    async fn write(&self, run: Run, report: &mut Report) -> Result<Option<(PathBuf, InPlace)>, RepairError> {
        let first = run.batches.first().map_or(0, |batch| batch.base_offset);
        report.changed = true;
        report.restored.push(Restored {
            file: self.name_of(first),
            first_offset: first,
            next_offset: run.batches.last().map_or(first, FrameBatch::end_offset),
            records: run.batches.iter().map(|batch| u64::from(batch.count)).sum(),
            from: run.from.join(", "),
        });
        if self.dry_run {
            let known = self.remembered.segments.iter().any(|row| row.base_offset == first);
            if known {
                report.rows.corrected.push(first)
            } else {
                report.rows.added.push(first)
            }
            return Ok(None);
        }
        let staged = self.directory.path().join(format!("{first:020}{STAGED}"));
        let header = SegmentHeader {
            stream: self.stream.clone(),
            segment_id: run.segment_id,
            sealed_at_ms: (self.clock)(),
        };
        let (settings, path) = (self.settings.clone(), staged.clone());
        let sealed = blocking(move || -> Result<InPlace, RepairError> {
            let batches = run.batches.into_iter().map(Ok::<_, std::convert::Infallible>);
            let sealed = segment::seal(batches, header, &settings, time_of, &path)?;
            let info = segment::Reader::open(&path)?.info().clone();
            Ok(InPlace { info, object_digest: hex(&sealed.object_digest) })
        })
        .await??;
        Ok(Some((staged, sealed)))
    }

    /// Moves damaged and superseded files of the folder into quarantine.
    fn set_aside(&self, found: &Found, superseded: &[Copy], report: &mut Report) -> Result<(), RepairError> {
        let folder = self.directory.path();
        let mut paths: Vec<PathBuf> = found.wounded.iter().map(|wounded| wounded.path.clone()).collect();
        for copy in superseded {
            let path = match &copy.place {
                Place::Here => self.directory.sealed(copy.info.base_offset),
                Place::File(path) => path.clone(),
                Place::Fetched { .. } => continue,
            };
            let wrong = "it is intact, and another copy holds as much or more";
            report.files.push(FileReport::new(relative(&path, folder), DamageKind::Altered, wrong));
            report.changed = true;
            paths.push(path);
        }
        for path in paths {
            let file = relative(&path, folder);
            let Some(one) = report.files.iter_mut().find(|one| one.file == file && !one.is_set_aside())
            else {
                continue;
            };
            one.now = format!("quarantine/{file}");
            if !self.dry_run {
                let at = |source| RepairError::Io { path: path.clone(), source };
                one.now = relative(&self.directory.put_aside(&path).map_err(at)?, folder);
            }
        }
        Ok(())
    }

    /// Brings a copy to where the log looks for it.
    fn put_copy(&self, copy: Copy, report: &mut Report) -> Result<InPlace, RepairError> {
        let Copy { place, info, object_digest, .. } = copy;
        let from = match &place {
            Place::Here => None,
            Place::File(path) => Some((path.clone(), relative(path, self.directory.path()))),
            Place::Fetched { file, location } => Some((file.clone(), location.clone())),
        };
        if let Some((path, from)) = from {
            report.changed = true;
            report.restored.push(Restored {
                file: self.name_of(info.base_offset),
                first_offset: info.base_offset,
                next_offset: info.end_offset,
                records: info.records,
                from,
            });
            if !self.dry_run {
                put_in_place(&path, &self.directory.sealed(info.base_offset))?;
            }
        }
        Ok(InPlace { info, object_digest })
    }

    fn name_of(&self, base: u64) -> String {
        relative(&self.directory.sealed(base), self.directory.path())
    }

    /// Sees to it that each segment has its object, whole, and its artifact.
    async fn put_objects(&self, segments: &[InPlace], report: &mut Report) -> Result<(), RepairError> {
        let registered = self.artifacts.list().await?;
        for InPlace { info, object_digest } in segments {
            let location = Artifacts::location(catalog::KIND, object_digest, catalog::EXTENSION);
            let object = self.artifacts.verify_object(&location, object_digest).await?;
            let is_registered = registered.iter().any(|row| row.digest == *object_digest);
            if object == Verified::Intact && is_registered {
                continue;
            }
            report.changed = true;
            report.objects_altered.retain(|altered| *altered != location);
            if object != Verified::Intact {
                report.objects_restored.push(location);
            }
            if self.dry_run {
                continue;
            }
            let (path, what) =
                (self.directory.sealed(info.base_offset), catalog::description(info, (self.clock)()));
            match object {
                Verified::Intact => self.artifacts.put_file(&path, object_digest, what).await?,
                _ => self.artifacts.put_file_again(&path, object_digest, what).await?,
            };
        }
        Ok(())
    }

    async fn put_rows(&self, segments: &[InPlace], report: &mut Report) -> Result<(), RepairError> {
        let rows = &self.remembered.segments;
        for InPlace { info, object_digest } in segments {
            let path: &Path = &self.directory.sealed(info.base_offset);
            let right = catalog::row(info, path, object_digest);
            match rows.iter().find(|row| row.base_offset == info.base_offset) {
                Some(row) if *row == right => continue,
                Some(_) => report.rows.corrected.push(info.base_offset),
                None => report.rows.added.push(info.base_offset),
            }
            report.changed = true;
            if !self.dry_run {
                self.store.put_segment(&right, &[]).await?;
            }
        }
        for row in rows {
            if segments.iter().any(|segment| segment.info.base_offset == row.base_offset)
                || report.undecided.iter().any(|lost| lost.first_offset == row.base_offset)
                || report.restored.iter().any(|one| one.first_offset == row.base_offset)
            {
                continue;
            }
            report.changed = true;
            report.rows.removed.push(row.base_offset);
            if !self.dry_run {
                self.store.remove_segment(&self.stream, row.base_offset).await?;
            }
        }
        Ok(())
    }
}
