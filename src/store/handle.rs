//! A store is one of two databases.
//!
//! Everything that the rest of the engine asks of a store stands here, once;
//! `sqlite` and `postgres` answer it, each in its own dialect and file by
//! file. An enum rather than a trait object: the two are known, their futures
//! need no box, and a call that one of them lacks does not compile.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::embed::{Known, Space, Spending};
use crate::identity::{ApiKey, Entry, TrailRow};

use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::*;

/// The rows, vectors, keywords and catalog of a pipeline. Cheap to clone;
/// clones share the connections.
#[derive(Clone)]
pub struct Store {
    database: Database,
}

#[derive(Clone)]
enum Database {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
}

impl Store {
    /// Opens the SQLite file at `path` with default settings, creating it and
    /// its schema where missing.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, &Settings::default()).await
    }

    /// Opens the PostgreSQL database that `settings` name, or else the SQLite
    /// file at `path`, and brings its schema to this version's.
    pub async fn open_with(path: &Path, settings: &Settings) -> Result<Self, StoreError> {
        let database = match &settings.url {
            Some(url) => Database::Postgres(PostgresStore::connect(url.reveal(), settings).await?),
            None => Database::Sqlite(SqliteStore::open(path, settings).await?),
        };
        Ok(Self { database })
    }

    /// Whether [`Self::open_with`] would find a store rather than make one.
    pub async fn exists(path: &Path, settings: &Settings) -> Result<bool, StoreError> {
        match &settings.url {
            Some(url) => PostgresStore::exists(url.reveal()).await,
            None => Ok(path.exists()),
        }
    }
}

/// Copies.
impl Store {
    /// Which database it is.
    pub fn engine(&self) -> Engine {
        match self.database {
            Database::Sqlite(_) => Engine::Sqlite,
            Database::Postgres(_) => Engine::Postgres,
        }
    }

    /// Copies everything, as it is at one moment, to the new file `to`, and
    /// says what that is. Nobody is kept from writing. `bin` is the folder of
    /// `pg_dump` if `PATH` is not to be asked; `reader`, pipeline and stream,
    /// is whose checkpoint is told.
    pub async fn copy_to(
        &self,
        to: &Path,
        bin: Option<&Path>,
        reader: (&str, &str),
    ) -> Result<Copied, StoreError> {
        match &self.database {
            Database::Sqlite(store) => store.copy_to(to, reader).await,
            Database::Postgres(store) => store.dump_to(to, bin, reader).await,
        }
    }

    /// Puts the copy `from` where [`Self::open_with`] would look for it, and
    /// returns the content that is there then. Nothing is opened, so nothing
    /// is migrated.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] if a store is there already.
    pub async fn restore(
        from: &Path,
        bin: Option<&Path>,
        (path, settings): (&Path, &Settings),
    ) -> Result<Vec<TableDigest>, StoreError> {
        match &settings.url {
            Some(url) => PostgresStore::restore(from, bin, url.reveal(), settings).await,
            None => SqliteStore::restore(from, path).await,
        }
    }

    /// The content of a copy as it lies there. Of PostgreSQL's, none: it is
    /// told only whether the copy can be read.
    pub async fn content_of_copy(
        from: &Path,
        bin: Option<&Path>,
        engine: Engine,
    ) -> Result<Option<Vec<TableDigest>>, StoreError> {
        match engine {
            Engine::Sqlite => SqliteStore::content_of(from).await.map(Some),
            Engine::Postgres => PostgresStore::check_dump(from, bin).await.map(|()| None),
        }
    }
}

impl Store {
    /// Makes `batch` ready and writes it: [`Self::analyse`], then
    /// [`Self::commit_analysed`].
    ///
    /// # Errors
    /// Those of both.
    pub async fn commit(&self, lease: &mut Lease, batch: Batch) -> Result<(), StoreError> {
        self.commit_analysed(lease, &self.analyse(batch).await?).await
    }
}

macro_rules! answered_by_each {
    ($($(#[$meta:meta])* pub async fn $name:ident(&self $(, $arg:ident: $of:ty)* $(,)?) -> $answer:ty;)*) => {
        impl Store {
            $($(#[$meta])* pub async fn $name(&self $(, $arg: $of)*) -> $answer {
                match &self.database {
                    Database::Sqlite(store) => store.$name($($arg),*).await,
                    Database::Postgres(store) => store.$name($($arg),*).await,
                }
            })*
        }
    };
}

answered_by_each! {

    /// As [`Analysed::of`], by the dimensions of the batch's space.
    pub async fn analyse(&self, batch: Batch) -> Result<Analysed, StoreError>;

    /// Writes a batch and moves the lease's checkpoint from its beginning to
    /// its end, both or neither. After an error, or if the call is dropped,
    /// the lease may lag behind the store; acquire again to be sure.
    pub async fn commit_analysed(&self, lease: &mut Lease, analysed: &Analysed) -> Result<(), StoreError>;

    /// Has a stream belong to `owner` if it is nobody's yet, or in any case if
    /// `take_over`. Returns whose it is. A SQLite file lies in its owner's own
    /// directory, so there it is always `owner`'s.
    pub async fn claim_stream(&self, stream: &str, owner: &StreamOwner, take_over: bool) -> Result<StreamOwner, StoreError>;

    /// Takes over `stream` for `pipeline`: every older lease of the two is
    /// void from here on. A pair never seen before starts at `start_offset`.
    pub async fn acquire(
        &self,
        pipeline: &str,
        stream: &str,
        start_offset: u64,
        now_ms: i64,
    ) -> Result<Lease, StoreError>;

    /// The checkpoint of `pipeline` in `stream`, if it ever read it.
    pub async fn counts(&self, pipeline: &str, stream: &str) -> Result<Option<Checkpoint>, StoreError>;

    /// Every checkpoint, as (pipeline, stream, checkpoint) in that order.
    pub async fn checkpoints(&self) -> Result<Vec<(String, String, Checkpoint)>, StoreError>;

    /// Counts what is really stored of `stream`, on one snapshot; none if
    /// `pipeline` never read it. Reads the keys of everything.
    pub async fn counted(&self, pipeline: &str, stream: &str) -> Result<Option<Counted>, StoreError>;

    /// Adds whatever of `batch` is not stored: records, and vectors in the
    /// batch's space. The checkpoint does not move; an offset that had not
    /// been indexed and now is changes sides in its counters. The batch need
    /// not be complete and its outcomes are not written.
    pub async fn put_missing(
        &self,
        pipeline: &str,
        stream: &str,
        batch: Batch,
    ) -> Result<Replayed, StoreError>;

    /// At most `records` records of a stream that wait for vectors, the oldest
    /// first, from offset `from` on, with at most `chunks` of their chunks.
    pub async fn waiting_records(
        &self,
        reader: (&str, &str),
        space_key: i64,
        from: u64,
        most: (u32, u32),
    ) -> Result<WaitingPage, StoreError>;

    /// At most `limit` chunks, of all streams and tenants, that have no vector
    /// in a space, in the order of their keys, beyond the key `after`.
    pub async fn waiting_chunks(
        &self,
        space_key: i64,
        after: i64,
        limit: u32,
    ) -> Result<Vec<WaitingChunk>, StoreError>;

    /// Adds vectors to chunks that have none in a space; those that got one
    /// meanwhile keep it. Chunks that are gone are passed over.
    pub async fn put_vectors(
        &self,
        space_key: i64,
        vectors: &[(WaitingChunk, Vec<f32>)],
    ) -> Result<(), StoreError>;

    /// As [`put_vectors`](Self::put_vectors) for the live space, and settles
    /// those of the records `offsets` that wait for nothing any more, all or
    /// nothing: their counters change sides. Records that are `refused` become
    /// dead letters, and stay where they are found by keyword.
    ///
    /// # Errors
    /// [`StoreError::NotLive`] if another space has gone live.
    pub async fn settle_waiting(
        &self,
        reader: (&str, &str),
        space_key: i64,
        vectors: &[(WaitingChunk, Vec<f32>)],
        records: (&[u64], &[(u64, String)]),
        now_ms: i64,
    ) -> Result<Moved, StoreError>;

    /// Who holds each of `keys`, as stream and offset; those that nobody
    /// holds are left out.
    pub async fn known(&self, keys: &[[u8; 32]]) -> Result<HashMap<[u8; 32], (String, u64)>, StoreError>;

    /// The records of `stream` with offsets `from..to`, in order, with the
    /// vectors they have in one space.
    pub async fn stored(
        &self,
        stream: &str,
        from: u64,
        to: u64,
        space_key: i64,
    ) -> Result<Vec<StoredRecord>, StoreError>;

    /// Why offsets of `from..to` are not indexed, in order.
    pub async fn outcomes(
        &self,
        pipeline: &str,
        stream: &str,
        from: u64,
        to: u64,
    ) -> Result<Vec<OutcomeRow>, StoreError>;

    /// The best chunks of one tenant for a query.
    pub async fn search(&self, query: &Query) -> Result<Answer, StoreError>;

    /// The key of `space` here. One never seen before, or retired, becomes live
    /// if no space is, else building.
    pub async fn register_space(&self, space: &Space, now_ms: i64) -> Result<i64, StoreError>;

    /// Every space, oldest first.
    pub async fn spaces(&self) -> Result<Vec<SpaceRow>, StoreError>;

    /// Makes a space live in place of one that has no vectors: of a model that
    /// was named and never used.
    pub async fn replace_unused(&self, space_key: i64) -> Result<(), StoreError>;

    /// Where a space stands in its life, now.
    pub async fn space_state(&self, space_key: i64) -> Result<SpaceState, StoreError>;

    /// Key of the live space; there is at most one.
    pub async fn live_space(&self) -> Result<Option<i64>, StoreError>;

    /// Moves a space on in its life.
    pub async fn set_space_state(&self, space_key: i64, state: SpaceState) -> Result<(), StoreError>;

    /// What a space lacks of all that is stored.
    pub async fn missing_in(&self, space_key: i64) -> Result<Missing, StoreError>;

    /// Chunks that have a vector in the live space and none in `space_key`.
    pub async fn behind_live(&self, space_key: i64) -> Result<u64, StoreError>;

    /// Makes `space_key` the live space and the live one its shadow, at once,
    /// if it lacks at most `most_behind` of the live one's vectors.
    pub async fn switch_space(&self, space_key: i64, most_behind: u64) -> Result<(), StoreError>;

    /// Retires a space that is not live and deletes its vectors; how many.
    /// Broken off, it can be called again.
    pub async fn retire_space(&self, space_key: i64) -> Result<u64, StoreError>;

    /// Some chunks that have vectors in the live space, spread over all of
    /// them: tenant, record, and text.
    pub async fn sample_chunks(&self, count: u32, seed: i64) -> Result<Vec<Sample>, StoreError>;

    /// The vectors in one space of the texts with these SHA-256 digests,
    /// whoever's they are: a vector depends on nothing but its text. Texts
    /// that have none are left out, as may be those of whose many chunks the
    /// first have none.
    pub async fn vectors_of_texts(&self, space_key: i64, digests: &[[u8; 32]]) -> Result<Known, StoreError>;

    /// The recorded vectors of a space, by the SHA-256 of their texts.
    pub async fn canaries(&self, space_key: i64) -> Result<HashMap<[u8; 32], Vec<f32>>, StoreError>;

    /// Records vectors of a space; those that are recorded stay as they are.
    pub async fn record_canaries(
        &self,
        space_key: i64,
        vectors: &[([u8; 32], Vec<f32>)],
        now_ms: i64,
    ) -> Result<(), StoreError>;

    /// Adds a segment, or replaces what is known of it, and queues what is told
    /// of it.
    pub async fn put_segment(&self, segment: &SegmentRow, told: &[NewDelivery]) -> Result<(), StoreError>;

    /// Forgets the segment of `stream` that begins at `base`.
    pub async fn remove_segment(&self, stream: &str, base: u64) -> Result<(), StoreError>;

    /// The sealed segments of `stream`, in order.
    pub async fn segments(&self, stream: &str) -> Result<Vec<SegmentRow>, StoreError>;

    /// The sealed segment that holds `offset`; none while it is in the active
    /// one.
    pub async fn segment_at(&self, stream: &str, offset: u64) -> Result<Option<SegmentRow>, StoreError>;

    /// Registers an artifact. One that is registered keeps its row: the
    /// digest says that it is the same object. Returns whether it was new.
    pub async fn put_artifact(&self, artifact: &ArtifactRow) -> Result<bool, StoreError>;

    /// Names of the archived segments that cannot be read without the
    /// dictionary with this digest, in hex. As long as there are any, neither
    /// its artifact nor its copy beside the log may be removed.
    pub async fn dictionary_users(&self, digest: &str) -> Result<Vec<String>, StoreError>;

    /// Every artifact, oldest first.
    pub async fn artifacts(&self) -> Result<Vec<ArtifactRow>, StoreError>;

    /// The next `limit` artifacts whose locations come after `location`, in
    /// the order of the bytes of their locations, which is how an object store
    /// lists them.
    pub async fn artifacts_after(&self, location: &str, limit: u32) -> Result<Vec<ArtifactRow>, StoreError>;

    /// The sealed segments of all streams whose artifact is not registered.
    pub async fn segments_without_artifact(&self) -> Result<Vec<SegmentRow>, StoreError>;

    /// Keeps a dead letter and returns its id.
    pub async fn add_dead_letter(&self, letter: &NewDeadLetter) -> Result<i64, StoreError>;

    /// Dead letters with an id above `after`, in that order, `limit` at most;
    /// of one state if given.
    pub async fn dead_letters(
        &self,
        state: Option<DeadLetterState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// Dead letters of `pipeline` without their payloads, otherwise as
    /// [`Store::dead_letters`].
    pub async fn dead_letter_heads(
        &self,
        pipeline: &str,
        state: Option<DeadLetterState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetterHead>, StoreError>;

    /// The dead letter with this id.
    pub async fn dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError>;

    /// Marks an open dead letter as sent again. False if it is not open: of
    /// two who try, one wins.
    pub async fn mark_redriven(&self, id: i64, now_ms: i64) -> Result<bool, StoreError>;

    /// Removes dead letters; how many there were.
    pub async fn remove_dead_letters(&self, ids: &[i64]) -> Result<u64, StoreError>;

    /// At most `limit` offsets of stored records of `subject` in `stream`,
    /// before offset `until`, in no order.
    pub async fn holdings(
        &self,
        subject: &Subject,
        stream: &str,
        until: u64,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError>;

    /// At most `limit` offsets of stored records of `stream` with times before
    /// `before_ms`, of other tenants and batches than those that are pinned.
    pub async fn expired(
        &self,
        stream: &str,
        before_ms: i64,
        pinned: &PinnedRecords,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError>;

    /// Whether a record at one of the offsets `range` of `stream` is pinned.
    pub async fn holds_pinned(
        &self,
        stream: &str,
        range: Range<u64>,
        pinned: &PinnedRecords,
    ) -> Result<bool, StoreError>;

    /// The digests of the texts of stored records.
    pub async fn text_digests(&self, stream: &str, offsets: &[u64]) -> Result<Vec<[u8; 32]>, StoreError>;

    /// Takes away whatever is stored of these offsets of `stream`: rows,
    /// vectors of all spaces, keywords and dead letters. Those that a pipeline
    /// has read count as rejected from then on, for the reason `why`. All or
    /// nothing, and the same again does nothing.
    pub async fn forget(&self, stream: &str, offsets: &[u64], why: Forgetting) -> Result<Forgotten, StoreError>;

    /// Lets contents be stored again whose records in `stream` were taken
    /// away. Reads all claims.
    pub async fn drop_stale_claims(&self, stream: &str) -> Result<u64, StoreError>;

    /// Forgets the name of a tenant that has no records; whether it did.
    pub async fn drop_empty_tenant(&self, name: &str) -> Result<bool, StoreError>;

    /// Has the database let go of what its files hold of rows that are gone, as
    /// far as it can be made to. Takes as long as writing it anew, and writers
    /// wait meanwhile.
    pub async fn scrub(&self) -> Result<(), StoreError>;

    /// Asks for everything of `subject` to be erased, from `streams` and every
    /// stream that was ever read. Returns the erasure's number.
    pub async fn ask_erasure(&self, subject: &Subject, streams: &[String], now_ms: i64) -> Result<i64, StoreError>;

    /// What was asked to be erased, oldest first; only what is not done yet if
    /// `open_only`.
    pub async fn erasures(&self, open_only: bool) -> Result<Vec<Erasure>, StoreError>;

    /// An erasure goes up to the offset `until` of `stream`, unless another
    /// was set before.
    pub async fn begin_erasure(&self, erasure_id: i64, stream: &str, until: u64) -> Result<(), StoreError>;

    /// What was done so far of a stream's part of an erasure; `done_ms` once
    /// nothing is left of it.
    pub async fn note_erasure(
        &self,
        erasure_id: i64,
        stream: &str,
        report: &str,
        done_ms: Option<i64>,
    ) -> Result<(), StoreError>;

    /// Forgets who was erased; with a whole tenant go the API keys that speak
    /// for it, and the jobs and deliveries of webhooks that name it.
    pub async fn forget_subject(&self, erasure_id: i64) -> Result<(), StoreError>;

    /// Nothing is left to do of an erasure.
    pub async fn close_erasure(&self, erasure_id: i64, now_ms: i64) -> Result<(), StoreError>;

    /// Takes artifacts out of the registry, and the segments they are with
    /// them, and notes that their objects are to be deleted; puts `instead` in
    /// the place of the segment that it renews. All or nothing.
    pub async fn doom(
        &self,
        digests: &[String],
        instead: Option<&SegmentRow>,
        now_ms: i64,
    ) -> Result<(), StoreError>;

    /// Locations of the objects that are to be deleted, and since when, in
    /// milliseconds since the Unix epoch.
    pub async fn doomed(&self) -> Result<Vec<(String, i64)>, StoreError>;

    /// The object at `location` is deleted.
    pub async fn object_deleted(&self, location: &str) -> Result<(), StoreError>;

    /// Everything ever found in `stream`, in the order of offsets.
    pub async fn damage(&self, stream: &str) -> Result<Vec<Damage>, StoreError>;

    /// Remembers what was found, unless it is known and still open.
    pub async fn put_damage(&self, stream: &str, found: &[Damage]) -> Result<(), StoreError>;

    /// Declares everything open in `stream` repaired, but for what is lost
    /// for good: `settled`.
    pub async fn settle_damage(&self, stream: &str, settled: &[Damage]) -> Result<(), StoreError>;

    /// Remembers how far files were read, none of them named twice.
    pub async fn set_progress(&self, files: &[SourceProgress]) -> Result<(), StoreError>;

    /// How far `source` has read each of its files, in no order.
    pub async fn progress(&self, source: &str) -> Result<Vec<SourceProgress>, StoreError>;

    /// Adds what one process has spent on a day, or gives back what it had
    /// reserved, and returns what all have spent on it.
    pub async fn add_spending(&self, pipeline: &str, spent: &Spending) -> Result<Spending, StoreError>;

    /// Keeps a new key, and says in the trail who made it. The key that it
    /// replaces is good until `old_until_ms` at most. All or nothing.
    pub async fn add_key(&self, key: &ApiKey, old_until_ms: Option<i64>, entry: &Entry) -> Result<(), StoreError>;

    /// Takes a key back, and says in the trail who did. False, and nothing is
    /// written, if there is none or it was taken back before.
    pub async fn revoke_key(&self, id: &str, now_ms: i64, entry: &Entry) -> Result<bool, StoreError>;

    /// Notes when keys were last used. Keys that are gone are passed over.
    pub async fn note_key_uses(&self, uses: &[(String, i64)]) -> Result<(), StoreError>;

    /// The key with this id.
    pub async fn key(&self, id: &str) -> Result<Option<ApiKey>, StoreError>;

    /// Every key, oldest first; those that are over as well.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, StoreError>;

    /// Adds to the trail, all or nothing.
    pub async fn append_trail(&self, acts: &[NewTrailRow]) -> Result<(), StoreError>;

    /// At most `limit` rows of the trail with numbers below `before`, the
    /// newest first.
    pub async fn trail(&self, before: i64, limit: u32) -> Result<Vec<TrailRow>, StoreError>;
    /// Queues a job, and returns its number.
    pub async fn add_job(&self, job: &NewJob) -> Result<i64, StoreError>;

    /// Up to when the due times of a schedule are seen to; from `now_ms` on,
    /// if it is seen for the first time. `stream` is empty where the work is
    /// of no stream in particular.
    pub async fn schedule_seen(&self, schedule: &str, stream: &str, now_ms: i64) -> Result<i64, StoreError>;

    /// Sees to a due time, once: of all who try, one has `job` queued, and
    /// learns its number. Without a job the time is passed over.
    pub async fn settle_due(
        &self,
        schedule: &str,
        stream: &str,
        due_ms: i64,
        job: Option<&NewJob>,
    ) -> Result<Option<i64>, StoreError>;

    /// Every job that is queued or running, in the order they were asked for.
    pub async fn open_jobs(&self) -> Result<Vec<JobRow>, StoreError>;

    /// At most `limit` jobs with numbers below `before`, the latest first.
    pub async fn jobs(
        &self,
        filter: &JobFilter,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<JobRow>, StoreError>;

    /// The job with this number.
    pub async fn job(&self, job_id: i64) -> Result<Option<JobRow>, StoreError>;

    /// Claims the job that `choose` takes from those that are queued or
    /// running; nobody else claims meanwhile. Every older claim to it is void
    /// from here on.
    pub async fn claim_job(
        &self,
        claim: &JobClaim,
        choose: ChooseJob<'_>,
    ) -> Result<Option<JobRow>, StoreError>;

    /// Notes how far a job is and renews its lease. Returns whether it was
    /// asked to be cancelled; none if the claim is void.
    pub async fn report_job(
        &self,
        held: HeldJob,
        progress: &JobProgress,
        lease_ms: i64,
    ) -> Result<Option<bool>, StoreError>;

    /// Ends a claim, and queues what is told of it; false if it is void, and
    /// then nothing is changed.
    pub async fn end_job(
        &self,
        held: HeldJob,
        end: &JobEnd,
        told: &[NewDelivery],
        now_ms: i64,
    ) -> Result<bool, StoreError>;

    /// Cancels a job that is queued, or asks whoever works on it to stop.
    /// Returns its state then; none if there is no such job, or it has ended.
    pub async fn cancel_job(&self, job_id: i64, now_ms: i64) -> Result<Option<JobState>, StoreError>;

    /// Forgets the jobs that ended before; how many.
    pub async fn remove_old_jobs(&self, before_ms: i64) -> Result<u64, StoreError>;

    /// Queues what webhooks are to tell, all or nothing.
    pub async fn add_deliveries(&self, deliveries: &[NewDelivery]) -> Result<(), StoreError>;

    /// Names of the webhooks of `pipeline` that have something to tell by now.
    pub async fn webhooks_due(&self, pipeline: &str, now_ms: i64) -> Result<Vec<String>, StoreError>;

    /// Claims deliveries that are due, in no order: of all who try, one has
    /// each, until the claim is over.
    pub async fn claim_deliveries(&self, claim: DeliveryClaim<'_>) -> Result<Vec<Delivery>, StoreError>;

    /// Notes what came of an attempt; false, and nothing is noted, if somebody
    /// else has claimed the delivery meanwhile.
    pub async fn note_delivery(
        &self,
        delivery_id: &str,
        claim: i64,
        note: &DeliveryNote,
    ) -> Result<bool, StoreError>;

    /// At most `limit` deliveries with ids below `before`, the latest first.
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError>;

    /// The delivery with this id.
    pub async fn delivery(&self, delivery_id: &str) -> Result<Option<Delivery>, StoreError>;

    /// Has a delivery sent again, whatever became of it; none if there is no
    /// such delivery.
    pub async fn redeliver(
        &self,
        delivery_id: &str,
        now_ms: i64,
        give_up_ms: i64,
    ) -> Result<Option<Delivery>, StoreError>;

    /// Forgets the deliveries that ended, or were to be given up, before; how
    /// many.
    pub async fn remove_old_deliveries(&self, before_ms: i64) -> Result<u64, StoreError>;

    /// Number of the last change of the schema that the file has seen.
    pub async fn schema_version(&self) -> Result<i64, StoreError>;

    /// Vectors of a space. Reads the keys of all of them.
    pub async fn vectors_in(&self, space_key: i64) -> Result<u64, StoreError>;

    /// Does what makes searches of large tenants fast, where the database needs
    /// it done: builds approximate indexes over what has come since the last
    /// time. Returns how many. Streams go on meanwhile.
    pub async fn maintain(&self, now_ms: i64) -> Result<u64, StoreError>;

    /// Brings the database's statistics up to date and has it find its free
    /// space again, beside all other work. `anew`: a SQLite file is written
    /// anew, and writers wait meanwhile.
    pub async fn tidy(&self, anew: bool) -> Result<(), StoreError>;

    /// Every table with its number of rows, by name. Reads all of them.
    pub async fn inventory(&self) -> Result<Vec<TableCount>, StoreError>;

    /// Bytes of the database, indexes included.
    pub async fn database_bytes(&self) -> Result<u64, StoreError>;

    /// Waits for running calls and closes every connection.
    pub async fn close(&self) -> ();
}
