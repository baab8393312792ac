//! Sealed segments without a subject's frames, and what was made of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::{EraseError, Renewed, Work, matcher::Matcher};
use crate::{
    artifact::hex,
    dictionary::{Identity, Library},
    frame::{FrameBatch, put_frame},
    log::Segment,
    pipeline::{
        archive::{Turn, time_of},
        catalog,
    },
    segment::{self, DictionaryUse, Reader, SegmentHeader},
    store::ArtifactRow,
};

/// What is emptied of a segment.
#[derive(Clone)]
struct Emptied {
    matcher: Matcher,
    until: u64,
}

impl Emptied {
    fn takes(&self, offset: u64, payload: &[u8]) -> bool {
        offset < self.until && self.matcher.takes(payload)
    }

    /// The offsets in a segment that are to be emptied.
    fn offsets(&self, reader: &Reader) -> Result<Vec<u64>, segment::ReadError> {
        let mut found = Vec::new();
        for batch in reader.batches_from(0) {
            let batch = batch?;
            found.extend(batch.payloads().filter(|(at, payload)| self.takes(*at, payload)).map(|(at, _)| at));
        }
        Ok(found)
    }

    /// The batch with the frames emptied that are to be.
    fn apply(&self, batch: FrameBatch) -> FrameBatch {
        if !batch.payloads().any(|(at, payload)| self.takes(at, &payload)) {
            return batch;
        }
        let mut bytes = BytesMut::with_capacity(batch.bytes.len());
        for (at, payload) in batch.payloads() {
            let payload = if self.takes(at, &payload) { Bytes::new() } else { payload };
            put_frame(&mut bytes, &payload);
        }
        FrameBatch { bytes: bytes.freeze(), ..batch }
    }
}

impl Work<'_> {
    /// Writes every segment anew that holds the subject's frames, and whatever
    /// was made of such segments.
    pub(super) async fn rewrite_segments(&mut self, turn: &Turn) -> Result<(), EraseError> {
        let emptied = Emptied { matcher: self.matcher.clone(), until: self.until };
        let nothing = Emptied { until: 0, ..emptied.clone() };
        let mut affected: BTreeMap<u64, u64> = BTreeMap::new();
        let mut ranges = Vec::new();
        for (base, reader) in self.sealed() {
            self.eraser.go_on()?;
            let (looked, scan) = (emptied.clone(), reader.clone());
            let found = self.eraser.archive.cpu.run(move || looked.offsets(&scan)).await?;
            // Frames that were never rows count as erased as well.
            self.forget(&found).await?;
            if !found.is_empty() {
                affected.insert(base, found.len() as u64);
                ranges.push(base..reader.info().end_offset);
            }
            tracing::info!(stream = self.eraser.stream(), base, frames = found.len(), "looked at a segment");
        }
        // Before the frames are gone that tell which they are.
        let retired = self.retired(&ranges).await?;
        self.stop_using(&retired)?;
        for (_, segment) in self.eraser.archive.log.segments() {
            let Segment::Sealed(reader) = segment else { continue };
            let needs_one = reader.info().dictionary.is_some_and(|used| retired.contains(&used.digest));
            if needs_one || self.is_unknown(&reader).await? {
                self.renew(&reader, (&nothing, 0), turn).await?;
            }
        }
        self.remove_dictionaries(&retired).await?;
        for (base, frames) in affected {
            if let Some(Segment::Sealed(reader)) = self.eraser.archive.log.segments().get(&base) {
                self.renew(reader, (&emptied, frames), turn).await?;
            }
        }
        self.doom_superseded().await
    }

    /// The sealed segments with offsets that are meant.
    fn sealed(&self) -> Vec<(u64, Arc<Reader>)> {
        let segments = self.eraser.archive.log.segments().into_iter();
        segments
            .filter_map(|(base, segment)| match segment {
                Segment::Sealed(reader) if base < self.until => Some((base, reader)),
                _ => None,
            })
            .collect()
    }

    /// Whether a segment was sealed and not entered: an earlier run was broken
    /// off in between.
    async fn is_unknown(&self, reader: &Reader) -> Result<bool, EraseError> {
        let (info, store) = (reader.info(), &self.eraser.archive.store);
        let row = store.segment_at(&info.stream, info.base_offset).await?;
        Ok(row.is_none_or(|row| row.sealed_at_ms != info.sealed_at_ms))
    }

    /// Seals a segment anew and puts it, its object and its row in the place
    /// of the old ones.
    async fn renew(
        &mut self,
        reader: &Arc<Reader>,
        (emptied, frames): (&Emptied, u64),
        turn: &Turn,
    ) -> Result<(), EraseError> {
        self.eraser.go_on()?;
        let archive = &self.eraser.archive;
        let info = reader.info().clone();
        let path = archive.folder.join(format!("{:020}.seg.zst", info.base_offset));
        let header = SegmentHeader {
            stream: info.stream.clone(),
            segment_id: info.segment_id,
            sealed_at_ms: (archive.clock)(),
        };
        let dictionary = match archive.settings.dictionary {
            DictionaryUse::Off => None,
            DictionaryUse::Adopted => Library::of_segments(&archive.folder).adopted()?,
        };
        let (from, emptied, settings, to) =
            (reader.clone(), emptied.clone(), archive.settings.clone(), path.clone());
        let turn = turn.clone();
        let seal = move || {
            let _turn = turn;
            let batches = from.batches_from(0).map(|batch| batch.map(|batch| emptied.apply(batch)));
            segment::seal_with(batches, header, &settings, dictionary.as_deref(), time_of, &to)
        };
        let sealed = archive.cpu.run(seal).await?;
        let (renewed, digest) = (Reader::open(&path)?, hex(&sealed.object_digest));
        let row = archive.store.segment_at(&info.stream, info.base_offset).await?;
        let before = row.and_then(|row| row.artifact).filter(|before| *before != digest);
        archive.sealer.renew(Reader::open(&path)?);
        let what = catalog::description(renewed.info(), (archive.clock)());
        archive.artifacts.put_file(&path, &digest, what).await?;
        let row = catalog::row(renewed.info(), &path, &digest);
        let doomed: Vec<String> = before.iter().cloned().collect();
        archive.store.doom(&doomed, Some(&row), (archive.clock)()).await?;
        self.report.frames += frames;
        let name = format!("{}/{:020}", info.stream, info.base_offset);
        self.report.segments.push(Renewed { name, frames, before, after: Some(digest) });
        self.note(None).await
    }

    /// Dictionaries of this stream that segments in `ranges` were samples of, or
    /// segments that nobody can look at any more.
    async fn retired(&self, ranges: &[Range<u64>]) -> Result<BTreeSet<[u8; 32]>, EraseError> {
        let mut retired = BTreeSet::new();
        let there: Vec<Range<u64>> =
            self.sealed().iter().map(|(base, reader)| *base..reader.info().end_offset).collect();
        let within = |ranges: &[Range<u64>], base: u64| ranges.iter().any(|range| range.contains(&base));
        for (row, meta) in self.artifacts("dictionary").await? {
            let samples = meta.get("trained_on").and_then(Value::as_array).into_iter().flatten();
            let mut bases = samples.filter_map(|used| used.get("base_offset")?.as_u64());
            if bases.any(|base| within(ranges, base) || (base < self.until && !within(&there, base))) {
                retired.extend(Identity::digest_of_hex(&row.digest));
            }
        }
        Ok(retired)
    }

    /// From here on nothing is sealed with these dictionaries.
    fn stop_using(&self, retired: &BTreeSet<[u8; 32]>) -> Result<(), EraseError> {
        let library = Library::of_segments(&self.eraser.archive.folder);
        match library.adopted_digest()? {
            Some(adopted) if retired.contains(&adopted) => {
                let failed = |source| EraseError::Io { path: library.folder(), source };
                library.abandon().map_err(failed)
            }
            _ => Ok(()),
        }
    }

    async fn remove_dictionaries(&mut self, retired: &BTreeSet<[u8; 32]>) -> Result<(), EraseError> {
        let archive = &self.eraser.archive;
        let library = Library::of_segments(&archive.folder);
        let digests: Vec<String> = retired.iter().map(|digest| hex(digest)).collect();
        let remove = || {
            retired.iter().try_for_each(|digest| {
                let failed = |source| EraseError::Io { path: library.path(digest), source };
                library.remove(digest).map_err(failed)
            })
        };
        // While the registry knows which, and once more for a copy that was
        // put back from there meanwhile.
        remove()?;
        archive.store.doom(&digests, None, (archive.clock)()).await?;
        remove()?;
        self.report.dictionaries.extend(digests);
        self.note(None).await
    }

    /// Objects of this stream's segments that no segment is kept as any more:
    /// those that a renewed one or a repair took the place of.
    async fn doom_superseded(&mut self) -> Result<(), EraseError> {
        let archive = &self.eraser.archive;
        let rows = archive.store.segments(self.eraser.stream()).await?;
        let kept: BTreeSet<&String> = rows.iter().filter_map(|row| row.artifact.as_ref()).collect();
        let mut superseded = Vec::new();
        for (row, meta) in self.artifacts(catalog::KIND).await? {
            let base = meta.get("base_offset").and_then(Value::as_u64);
            if !kept.contains(&row.digest) && base.is_none_or(|base| base < self.until) {
                superseded.push(row.digest);
            }
        }
        Ok(archive.store.doom(&superseded, None, (archive.clock)()).await?)
    }

    /// The artifacts of one kind that are about this stream, with their meta.
    async fn artifacts(&self, kind: &str) -> Result<Vec<(ArtifactRow, Value)>, EraseError> {
        let of_stream = |row: ArtifactRow| {
            let meta: Value = serde_json::from_str(&row.meta).ok()?;
            let mine = row.kind == kind && meta.get("stream")?.as_str()? == self.eraser.stream();
            mine.then_some((row, meta))
        };
        Ok(self.eraser.archive.artifacts.list().await?.into_iter().filter_map(of_stream).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::Defaults, store::Subject};

    fn batch(payloads: &[&[u8]]) -> FrameBatch {
        let mut bytes = BytesMut::new();
        payloads.iter().for_each(|payload| put_frame(&mut bytes, payload));
        let count = u32::try_from(payloads.len()).unwrap();
        FrameBatch { base_offset: 10, append_time_ms: 5, count, bytes: bytes.freeze() }
    }

    #[test]
    fn only_the_subjects_frames_before_the_end_are_emptied_and_offsets_stay() {
        let frame =
            |tenant: &str| rmp_serde::to_vec(&serde_json::json!({"tenant": tenant, "text": "x"})).unwrap();
        let (ann, bob) = (frame("ann"), frame("bob"));
        let subject = Subject { tenant: "ann".into(), session: None };
        let emptied = Emptied { matcher: Matcher::new(&subject, &Defaults::default()), until: 13 };
        let before = batch(&[&ann, &bob, &ann, &ann]);
        let after = emptied.apply(before.clone());
        assert_eq!(after, batch(&[b"", &bob, b"", &ann]));
        assert_eq!(after.bytes.len(), before.bytes.len() - 2 * ann.len());
        assert_eq!(emptied.apply(after.clone()), after, "nothing is left to do");
        assert_eq!(after.payloads().count(), 4);
    }
}
