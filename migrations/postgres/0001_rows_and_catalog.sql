-- Rows, vectors, keywords and catalog of one store, in the schema `thalweg`.
--
-- Text and metadata live apart from vectors: each embedding space has a table
-- `vectors_KEY` of its own, narrow and never updated, made when the space is
-- registered (src/store/postgres/spaces.rs), for its columns depend on it.
--
-- Hot tables carry no foreign keys: rows, vectors, keywords and the checkpoint
-- are written by one transaction, so a check per row would cost without ever
-- finding anything.
--
-- Times are milliseconds since the Unix epoch, offsets count frames from 0,
-- ranges exclude their end. Digests of 32 bytes are bytea; those that people
-- read and compare (segments, artifacts, configuration) are lower-case hex.
-- PostgreSQL holds no U+0000 in text: it is stored as U+FDD0 `0`, and U+FDD0
-- itself as U+FDD0 `1` (src/store/postgres/text.rs).

-- Whose rows the reading role sees: set per transaction, none otherwise.
CREATE FUNCTION thalweg.current_tenant() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT nullif(current_setting('thalweg.tenant', true), '')::bigint $$;

-- What makes vectors comparable; `json` is the space's whole description.
-- `element` is how this store keeps its numbers: vector, halfvec or jsonb.
CREATE TABLE thalweg.spaces (
    space_key  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    space_id   text NOT NULL UNIQUE,
    json       text NOT NULL,
    state      text NOT NULL CHECK (state IN ('building', 'shadow', 'live', 'retired')),
    created_ms bigint NOT NULL,
    element    text NOT NULL CHECK (element IN ('vector', 'halfvec', 'jsonb')),
    dimensions integer NOT NULL
);
CREATE UNIQUE INDEX spaces_one_live ON thalweg.spaces (state) WHERE state = 'live';

CREATE TABLE thalweg.tenants (
    tenant_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE
);

CREATE TABLE thalweg.batches (
    batch_key     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_tag     text NOT NULL,
    config_digest text NOT NULL,
    created_ms    bigint NOT NULL,
    UNIQUE (batch_tag, config_digest)
);

-- Keys of records and chunks are drawn before the rows are copied.
CREATE SEQUENCE thalweg.record_keys;
CREATE SEQUENCE thalweg.chunk_keys;

-- tier: 0 event, 1 summary, 2 doc, 3 profile, 4 artifact. Never renumbered.
CREATE TABLE thalweg.records (
    record_key bigint NOT NULL PRIMARY KEY,
    tenant_key bigint NOT NULL,
    "offset"   bigint NOT NULL,
    ts_ms      bigint NOT NULL,
    batch_key  bigint NOT NULL,
    tier       smallint NOT NULL,
    stream     text NOT NULL,
    session    text,
    source     text NOT NULL,
    record_id  text,
    attrs      json NOT NULL,
    UNIQUE (stream, "offset")
);
CREATE INDEX records_by_time ON thalweg.records (tenant_key, ts_ms);
CREATE INDEX records_by_session ON thalweg.records (tenant_key, session, ts_ms) WHERE session IS NOT NULL;
CREATE INDEX records_by_batch ON thalweg.records (batch_key);

-- `terms` are the text's words as src/store/keywords.rs analyses them, each
-- with its tenant and tier in front.
CREATE TABLE thalweg.chunks (
    chunk_key  bigint NOT NULL PRIMARY KEY,
    record_key bigint NOT NULL,
    tenant_key bigint NOT NULL,
    chunk      integer NOT NULL,
    start_byte integer NOT NULL,
    end_byte   integer NOT NULL,
    tokens     integer NOT NULL,
    tier       smallint NOT NULL,
    digest     bytea NOT NULL,
    text       text NOT NULL,
    terms      tsvector NOT NULL,
    UNIQUE (record_key, chunk)
);
CREATE INDEX chunks_by_text ON thalweg.chunks (digest);
CREATE INDEX chunks_by_term ON thalweg.chunks USING gin (terms);

-- One tenant's tier: what BM25 needs to know of it, and how many there are.
-- The generation is SQLite's and stays 0.
CREATE TABLE thalweg.partitions (
    tenant_key bigint NOT NULL,
    tier       smallint NOT NULL,
    chunks     bigint NOT NULL,
    terms      bigint NOT NULL,
    generation bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_key, tier)
) WITH (fillfactor = 50);

-- Approximate indexes, each over the chunk keys `first_key..next_key` of one
-- tenant's tier in one space. What lies beyond the last is compared exactly.
CREATE TABLE thalweg.vector_indexes (
    name       text PRIMARY KEY,
    space_key  bigint NOT NULL,
    tenant_key bigint NOT NULL,
    tier       smallint NOT NULL,
    first_key  bigint NOT NULL,
    next_key   bigint NOT NULL CHECK (next_key > first_key),
    rows       bigint NOT NULL,
    state      text NOT NULL CHECK (state IN ('building', 'ready', 'dropping')),
    since_ms   bigint NOT NULL
);
CREATE INDEX vector_indexes_of_partition ON thalweg.vector_indexes (space_key, tenant_key, tier, first_key);

CREATE TABLE thalweg.dedupe (
    key      bytea PRIMARY KEY,
    "offset" bigint NOT NULL,
    stream   text NOT NULL
);

-- Why an offset was read and not indexed.
CREATE TABLE thalweg.outcomes (
    pipeline text NOT NULL,
    stream   text NOT NULL,
    "offset" bigint NOT NULL,
    kind     text NOT NULL CHECK (kind IN ('rejected', 'deduplicated', 'deferred', 'dead_lettered')),
    reason   text NOT NULL,
    detail   text NOT NULL,
    PRIMARY KEY (pipeline, stream, "offset")
);
CREATE INDEX outcomes_deferred ON thalweg.outcomes (pipeline, stream, "offset") WHERE kind = 'deferred';

-- Which data directory's log gives a stream its offsets.
CREATE TABLE thalweg.streams (
    stream   text PRIMARY KEY,
    identity text NOT NULL,
    host     text NOT NULL,
    since_ms bigint NOT NULL
);

-- The conservation law is a constraint: no write can break it.
CREATE TABLE thalweg.checkpoints (
    pipeline      text NOT NULL,
    stream        text NOT NULL,
    epoch         bigint NOT NULL,
    start_offset  bigint NOT NULL,
    next_offset   bigint NOT NULL,
    indexed       bigint NOT NULL DEFAULT 0 CHECK (indexed >= 0),
    rejected      bigint NOT NULL DEFAULT 0 CHECK (rejected >= 0),
    deduplicated  bigint NOT NULL DEFAULT 0 CHECK (deduplicated >= 0),
    deferred      bigint NOT NULL DEFAULT 0 CHECK (deferred >= 0),
    dead_lettered bigint NOT NULL DEFAULT 0 CHECK (dead_lettered >= 0),
    lost          bigint NOT NULL DEFAULT 0 CHECK (lost >= 0),
    updated_ms    bigint NOT NULL,
    PRIMARY KEY (pipeline, stream),
    CONSTRAINT conservation CHECK (
        next_offset - start_offset = indexed + rejected + deduplicated + deferred + dead_lettered + lost
    )
) WITH (fillfactor = 20);

CREATE TABLE thalweg.dead_letters (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_ms       bigint NOT NULL,
    pipeline    text NOT NULL,
    source      text NOT NULL,
    peer        text,
    stream      text,
    "offset"    bigint,
    frame_index bigint,
    byte_offset bigint,
    code        text NOT NULL,
    message     text NOT NULL,
    payload     bytea,
    state       text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'redriven')),
    redriven_ms bigint
);
CREATE INDEX dead_letters_by_state ON thalweg.dead_letters (state, id);

CREATE TABLE thalweg.segments (
    stream         text NOT NULL,
    base_offset    bigint NOT NULL,
    end_offset     bigint NOT NULL CHECK (end_offset > base_offset),
    segment_id     text NOT NULL,
    records        bigint NOT NULL,
    plain_bytes    bigint NOT NULL,
    object_bytes   bigint NOT NULL,
    content_digest text NOT NULL,
    object_digest  text NOT NULL,
    first_time_ms  bigint NOT NULL,
    last_time_ms   bigint NOT NULL,
    sealed_at_ms   bigint NOT NULL,
    file           text NOT NULL,
    artifact       text,
    PRIMARY KEY (stream, base_offset)
);

CREATE TABLE thalweg.artifacts (
    digest     text PRIMARY KEY,
    kind       text NOT NULL,
    name       text NOT NULL,
    bytes      bigint NOT NULL,
    location   text NOT NULL,
    created_ms bigint NOT NULL,
    meta       text NOT NULL
);

CREATE TABLE thalweg.source_progress (
    source   text NOT NULL,
    path     text NOT NULL,
    size     bigint NOT NULL,
    mtime_ns bigint NOT NULL,
    records  bigint NOT NULL,
    done     boolean NOT NULL,
    PRIMARY KEY (source, path)
);

-- What was found damaged or gone in the streams' files. A row without
-- `settled_ms` is open: it is reported until `segments repair`. A settled one
-- says what is lost for good; one of no offsets says that a file was looked at
-- and cost nothing.
CREATE TABLE thalweg.damage (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream       text NOT NULL,
    file         text NOT NULL,
    kind         text NOT NULL,
    first_offset bigint NOT NULL,
    next_offset  bigint NOT NULL CHECK (next_offset >= first_offset),
    detail       text NOT NULL,
    found_ms     bigint NOT NULL,
    settled_ms   bigint
);
CREATE INDEX damage_of_stream ON thalweg.damage (stream, first_offset);
CREATE UNIQUE INDEX damage_once ON thalweg.damage (stream, file, kind, first_offset) WHERE settled_ms IS NULL;

-- Which offsets a pipeline counted as lost; those that a repair brings back
-- change sides in its counters.
CREATE TABLE thalweg.lost (
    pipeline     text NOT NULL,
    stream       text NOT NULL,
    first_offset bigint NOT NULL,
    next_offset  bigint NOT NULL,
    PRIMARY KEY (pipeline, stream, first_offset)
);

-- What the processes of a pipeline have spent in a day of UTC (days since
-- 1970-01-01), added up. Money is in millionths of the currency.
CREATE TABLE thalweg.spending (
    pipeline text NOT NULL,
    day      bigint NOT NULL,
    work     text NOT NULL CHECK (work IN ('live', 'backfill')),
    tokens   bigint NOT NULL,
    requests bigint NOT NULL,
    micros   bigint NOT NULL,
    PRIMARY KEY (pipeline, day, work)
);

-- Vectors of the canary texts as they were when the space was new. f32,
-- little endian.
CREATE TABLE thalweg.canaries (
    space_key   bigint NOT NULL,
    digest      bytea NOT NULL,
    vector      bytea NOT NULL,
    recorded_ms bigint NOT NULL,
    PRIMARY KEY (space_key, digest)
);

-- Who is to be erased. The names stand here only until it is done: both are
-- null from then on.
CREATE TABLE thalweg.erasures (
    erasure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text,
    session    text,
    asked_ms   bigint NOT NULL,
    done_ms    bigint
);

-- A stream's part of it, done where the stream's log is: its records before
-- `until_offset`, which is set when that begins.
CREATE TABLE thalweg.erasure_streams (
    erasure_id   bigint NOT NULL,
    stream       text NOT NULL,
    until_offset bigint,
    report       text,
    done_ms      bigint,
    PRIMARY KEY (erasure_id, stream)
);

-- Objects that no artifact names any more and that are still to be deleted.
CREATE TABLE thalweg.doomed (
    location text PRIMARY KEY,
    since_ms bigint NOT NULL
);

-- One term of the transaction's tenant, as a query. Quoted, for the term may
-- be anybody's: unquoted it could ask for another tenant's as well.
CREATE FUNCTION thalweg.lexeme(of_tier smallint, term text) RETURNS tsquery
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT ('''' || thalweg.current_tenant() || 'k' || of_tier
            || replace(replace(term, '\', '\\'), '''', '''''') || '''')::tsquery
$$;

-- The chunks of one tenant's tier that hold each term, the newest first, one
-- row per term. It answers for `thalweg_reader`, who may not use the index
-- himself: under row-level security PostgreSQL applies an operator that is
-- not leakproof, such as @@, only to rows that are known to be visible. Hence
-- the tenant comes from the transaction, and is put into each term here.
CREATE FUNCTION thalweg.postings(of_tier smallint, wanted text[], most bigint)
RETURNS TABLE (term text, chunk_keys bigint[])
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT w.term, ARRAY(
        SELECT c.chunk_key FROM thalweg.chunks c
        WHERE c.terms @@ thalweg.lexeme(of_tier, w.term)
        ORDER BY c.chunk_key DESC LIMIT most)
    FROM unnest(wanted) AS w(term)
$$;

-- As `postings`, but only how many there are.
CREATE FUNCTION thalweg.document_counts(of_tier smallint, wanted text[])
RETURNS TABLE (term text, chunks bigint)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT w.term, (
        SELECT count(*) FROM thalweg.chunks c
        WHERE c.terms @@ thalweg.lexeme(of_tier, w.term))
    FROM unnest(wanted) AS w(term)
$$;
REVOKE ALL ON FUNCTION thalweg.postings, thalweg.document_counts FROM PUBLIC;

-- The role that searches run as sees one tenant, and writes nothing. It belongs
-- to the server, not to the database: src/store/postgres/reader.sql makes it.
GRANT USAGE ON SCHEMA thalweg TO thalweg_reader;
GRANT EXECUTE ON FUNCTION thalweg.postings, thalweg.document_counts TO thalweg_reader;
GRANT SELECT ON thalweg.records, thalweg.chunks, thalweg.tenants, thalweg.partitions, thalweg.batches,
    thalweg.segments, thalweg.spaces, thalweg.vector_indexes TO thalweg_reader;

ALTER TABLE thalweg.records ENABLE ROW LEVEL SECURITY;
ALTER TABLE thalweg.chunks ENABLE ROW LEVEL SECURITY;
ALTER TABLE thalweg.tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE thalweg.partitions ENABLE ROW LEVEL SECURITY;
ALTER TABLE thalweg.vector_indexes ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON thalweg.records FOR SELECT TO thalweg_reader USING (tenant_key = thalweg.current_tenant());
CREATE POLICY of_tenant ON thalweg.chunks FOR SELECT TO thalweg_reader USING (tenant_key = thalweg.current_tenant());
CREATE POLICY of_tenant ON thalweg.tenants FOR SELECT TO thalweg_reader USING (tenant_key = thalweg.current_tenant());
CREATE POLICY of_tenant ON thalweg.partitions FOR SELECT TO thalweg_reader USING (tenant_key = thalweg.current_tenant());
CREATE POLICY of_tenant ON thalweg.vector_indexes FOR SELECT TO thalweg_reader USING (tenant_key = thalweg.current_tenant());

-- API keys: of the secret only its SHA-256. `roles` are names with spaces
-- between them; `tenant` is null where the key speaks for any.
CREATE TABLE thalweg.api_keys (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    digest     bytea NOT NULL CHECK (length(digest) = 32),
    tenant     text,
    roles      text NOT NULL,
    tier       text NOT NULL,
    created_ms bigint NOT NULL,
    expires_ms bigint,
    revoked_ms bigint,
    used_ms    bigint,
    replaces   text
);

-- What was done and refused, by whom. Equal refusals of a minute may be one
-- row: `times`, from `at_ms` to `last_ms`. Rows are only ever added.
CREATE TABLE thalweg.trail (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_ms      bigint NOT NULL,
    last_ms    bigint NOT NULL,
    times      bigint NOT NULL CHECK (times > 0),
    principal  text NOT NULL,
    scheme     text NOT NULL,
    act        text NOT NULL,
    subject    text NOT NULL,
    outcome    text NOT NULL CHECK (outcome IN ('done', 'refused')),
    detail     text NOT NULL,
    peer       text,
    request_id text
);
CREATE FUNCTION thalweg.keep_trail() RETURNS trigger
LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'the trail is only added to'; END $$;
CREATE TRIGGER trail_keeps BEFORE UPDATE OR DELETE OR TRUNCATE ON thalweg.trail
FOR EACH STATEMENT EXECUTE FUNCTION thalweg.keep_trail();

-- Long work: asked for, done by one daemon, remembered for a while. `stream`
-- is null for work that is not of one stream's. `epoch` counts the claims:
-- what a worker says of a job counts only with the epoch of its own claim.
-- `attempts` counts those claims that no stop gave back.
CREATE TABLE thalweg.jobs (
    job_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind          text NOT NULL,
    work          text NOT NULL,
    pipeline      text NOT NULL,
    stream        text,
    tenant        text,
    asked_by      text NOT NULL,
    schedule      text,
    due_ms        bigint,
    state         text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    priority      bigint NOT NULL,
    asked_ms      bigint NOT NULL,
    not_before_ms bigint NOT NULL,
    started_ms    bigint,
    claimed_ms    bigint,
    ended_ms      bigint,
    cancel_ms     bigint,
    epoch         bigint NOT NULL DEFAULT 0,
    attempts      bigint NOT NULL DEFAULT 0,
    worker        text,
    lease_ms      bigint,
    done          bigint NOT NULL DEFAULT 0,
    done_before   bigint NOT NULL DEFAULT 0,
    total         bigint,
    note          text NOT NULL DEFAULT '',
    place         text,
    result        text,
    error         text
);
CREATE INDEX jobs_open ON thalweg.jobs (job_id) WHERE state IN ('queued', 'running');
-- A due time is kept once, whoever keeps it.
CREATE UNIQUE INDEX jobs_due ON thalweg.jobs (schedule, coalesce(stream, ''), due_ms) WHERE schedule IS NOT NULL;

-- Up to when the due times of a schedule are seen to; `stream` is empty where
-- the work is not of one stream's.
CREATE TABLE thalweg.schedules (
    schedule   text NOT NULL,
    stream     text NOT NULL,
    settled_ms bigint NOT NULL,
    PRIMARY KEY (schedule, stream)
);

-- What is told by webhooks: waiting to be sent, sent, or given up, and
-- remembered for a while. `due_ms`: it is not tried before; while somebody
-- tries, the end of his claim. `claim` counts the claims: what is said of an
-- attempt counts only with the number of its own. `status`, `took_ms` and
-- `error` are of the last attempt.
CREATE TABLE thalweg.webhook_deliveries (
    delivery_id text COLLATE "C" PRIMARY KEY,
    pipeline    text NOT NULL,
    webhook     text NOT NULL,
    event       text NOT NULL,
    tenant      text,
    body        text NOT NULL,
    state       text NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'delivered', 'failed')),
    created_ms  bigint NOT NULL,
    due_ms      bigint NOT NULL,
    give_up_ms  bigint NOT NULL,
    claim       bigint NOT NULL DEFAULT 0,
    attempts    bigint NOT NULL DEFAULT 0,
    tried_ms    bigint,
    took_ms     bigint,
    status      bigint,
    error       text,
    ended_ms    bigint
);
CREATE INDEX webhook_deliveries_waiting ON thalweg.webhook_deliveries (pipeline, webhook, due_ms)
WHERE state = 'waiting';
