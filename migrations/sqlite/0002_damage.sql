-- What was found damaged or gone in the streams' files.
--
-- A row without `settled_ms` is open: it is reported until `segments repair`.
-- A settled one says what is lost for good; one of no offsets says that a file
-- was looked at and cost nothing.
CREATE TABLE damage (
    id           INTEGER PRIMARY KEY,
    stream       TEXT NOT NULL,
    file         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    first_offset INTEGER NOT NULL,
    next_offset  INTEGER NOT NULL CHECK (next_offset >= first_offset),
    detail       TEXT NOT NULL,
    found_ms     INTEGER NOT NULL,
    settled_ms   INTEGER
);
CREATE INDEX damage_of_stream ON damage (stream, first_offset);
CREATE UNIQUE INDEX damage_once ON damage (stream, file, kind, first_offset) WHERE settled_ms IS NULL;

-- Which offsets a pipeline counted as lost; those that a repair brings back
-- change sides in its counters.
CREATE TABLE lost (
    pipeline     TEXT NOT NULL,
    stream       TEXT NOT NULL,
    first_offset INTEGER NOT NULL,
    next_offset  INTEGER NOT NULL,
    PRIMARY KEY (pipeline, stream, first_offset)
) WITHOUT ROWID;
