-- Rows, vectors, keywords and catalog of one store.
--
-- Hot tables carry no foreign keys: rows, vectors, keywords and the checkpoint
-- are written by one transaction of one writer, so a check per row would cost
-- without ever finding anything.
--
-- Times are milliseconds since the Unix epoch, offsets count frames from 0,
-- ranges exclude their end. Digests of 32 bytes are blobs; those that people
-- read and compare (segments, artifacts, configuration) are lower-case hex.

-- What makes vectors comparable; `json` is the space's whole description.
CREATE TABLE spaces (
    space_key  INTEGER PRIMARY KEY,
    space_id   TEXT NOT NULL UNIQUE,
    json       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('building', 'shadow', 'live', 'retired')),
    created_ms INTEGER NOT NULL
);

-- Keys of tenants are never reused: keywords carry them inside each term.
CREATE TABLE tenants (
    tenant_key INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE
);

CREATE TABLE batches (
    batch_key     INTEGER PRIMARY KEY,
    batch_tag     TEXT NOT NULL,
    config_digest TEXT NOT NULL,
    created_ms    INTEGER NOT NULL,
    UNIQUE (batch_tag, config_digest)
);

-- tier: 0 event, 1 summary, 2 doc, 3 profile, 4 artifact. Never renumbered.
CREATE TABLE records (
    record_key INTEGER PRIMARY KEY,
    stream     TEXT NOT NULL,
    "offset"   INTEGER NOT NULL,
    tenant_key INTEGER NOT NULL,
    tier       INTEGER NOT NULL,
    session    TEXT,
    source     TEXT NOT NULL,
    record_id  TEXT,
    ts_ms      INTEGER NOT NULL,
    batch_key  INTEGER NOT NULL,
    attrs      TEXT NOT NULL,
    UNIQUE (stream, "offset")
);
CREATE INDEX records_by_time ON records (tenant_key, ts_ms);
CREATE INDEX records_by_session ON records (tenant_key, session, ts_ms) WHERE session IS NOT NULL;

CREATE TABLE chunks (
    chunk_key  INTEGER PRIMARY KEY,
    record_key INTEGER NOT NULL,
    chunk      INTEGER NOT NULL,
    start_byte INTEGER NOT NULL,
    end_byte   INTEGER NOT NULL,
    tokens     INTEGER NOT NULL,
    text       TEXT NOT NULL,
    digest     BLOB NOT NULL,
    UNIQUE (record_key, chunk)
);

-- One tenant's tier is contiguous, in the order of arrival, so that an exact
-- scan reads only what it needs. f32, little endian.
CREATE TABLE vectors (
    space_key  INTEGER NOT NULL,
    tenant_key INTEGER NOT NULL,
    tier       INTEGER NOT NULL,
    chunk_key  INTEGER NOT NULL,
    vector     BLOB NOT NULL,
    PRIMARY KEY (space_key, tenant_key, tier, chunk_key)
) WITHOUT ROWID;

-- Terms arrive analysed and with their tenant and tier inside
-- (src/store/keywords.rs), hence the plainest tokenizer and no content.
CREATE VIRTUAL TABLE keywords USING fts5 (
    terms, content = '', contentless_delete = 1, tokenize = 'ascii'
);
CREATE VIRTUAL TABLE keyword_terms USING fts5vocab ('keywords', 'row');

-- One tenant's tier: what BM25 needs to know of it, and a generation that
-- moves whenever vectors come or go other than at the end.
CREATE TABLE partitions (
    tenant_key INTEGER NOT NULL,
    tier       INTEGER NOT NULL,
    chunks     INTEGER NOT NULL,
    terms      INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (tenant_key, tier)
) WITHOUT ROWID;

CREATE TABLE dedupe (
    key      BLOB PRIMARY KEY,
    stream   TEXT NOT NULL,
    "offset" INTEGER NOT NULL
) WITHOUT ROWID;

-- Why an offset was read and not indexed.
CREATE TABLE outcomes (
    pipeline TEXT NOT NULL,
    stream   TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('rejected', 'deduplicated', 'deferred', 'dead_lettered')),
    reason   TEXT NOT NULL,
    detail   TEXT NOT NULL,
    PRIMARY KEY (pipeline, stream, "offset")
) WITHOUT ROWID;

-- The conservation law is a constraint: no write can break it.
CREATE TABLE checkpoints (
    pipeline      TEXT NOT NULL,
    stream        TEXT NOT NULL,
    epoch         INTEGER NOT NULL,
    start_offset  INTEGER NOT NULL,
    next_offset   INTEGER NOT NULL,
    indexed       INTEGER NOT NULL DEFAULT 0 CHECK (indexed >= 0),
    rejected      INTEGER NOT NULL DEFAULT 0 CHECK (rejected >= 0),
    deduplicated  INTEGER NOT NULL DEFAULT 0 CHECK (deduplicated >= 0),
    deferred      INTEGER NOT NULL DEFAULT 0 CHECK (deferred >= 0),
    dead_lettered INTEGER NOT NULL DEFAULT 0 CHECK (dead_lettered >= 0),
    lost          INTEGER NOT NULL DEFAULT 0 CHECK (lost >= 0),
    updated_ms    INTEGER NOT NULL,
    PRIMARY KEY (pipeline, stream),
    CONSTRAINT conservation CHECK (
        next_offset - start_offset = indexed + rejected + deduplicated + deferred + dead_lettered + lost
    )
) WITHOUT ROWID;

CREATE TABLE dead_letters (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms       INTEGER NOT NULL,
    pipeline    TEXT NOT NULL,
    source      TEXT NOT NULL,
    peer        TEXT,
    stream      TEXT,
    "offset"    INTEGER,
    frame_index INTEGER,
    byte_offset INTEGER,
    code        TEXT NOT NULL,
    message     TEXT NOT NULL,
    payload     BLOB,
    state       TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'redriven')),
    redriven_ms INTEGER
);
CREATE INDEX dead_letters_by_state ON dead_letters (state, id);

CREATE TABLE segments (
    stream         TEXT NOT NULL,
    base_offset    INTEGER NOT NULL,
    end_offset     INTEGER NOT NULL CHECK (end_offset > base_offset),
    segment_id     TEXT NOT NULL,
    records        INTEGER NOT NULL,
    plain_bytes    INTEGER NOT NULL,
    object_bytes   INTEGER NOT NULL,
    content_digest TEXT NOT NULL,
    object_digest  TEXT NOT NULL,
    first_time_ms  INTEGER NOT NULL,
    last_time_ms   INTEGER NOT NULL,
    sealed_at_ms   INTEGER NOT NULL,
    file           TEXT NOT NULL,
    artifact       TEXT,
    PRIMARY KEY (stream, base_offset)
) WITHOUT ROWID;

CREATE TABLE artifacts (
    digest     TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    location   TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    meta       TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE source_progress (
    source   TEXT NOT NULL,
    path     TEXT NOT NULL,
    size     INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    records  INTEGER NOT NULL,
    done     INTEGER NOT NULL,
    PRIMARY KEY (source, path)
) WITHOUT ROWID;
