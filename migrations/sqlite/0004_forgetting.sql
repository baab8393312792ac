-- What is to be forgotten, and what has been.

-- Who is to be erased. The names stand here only until it is done: both are
-- null from then on.
CREATE TABLE erasures (
    erasure_id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant     TEXT,
    session    TEXT,
    asked_ms   INTEGER NOT NULL,
    done_ms    INTEGER
);

-- A stream's part of it, done where the stream's log is: its records before
-- `until_offset`, which is set when that begins.
CREATE TABLE erasure_streams (
    erasure_id   INTEGER NOT NULL,
    stream       TEXT NOT NULL,
    until_offset INTEGER,
    report       TEXT,
    done_ms      INTEGER,
    PRIMARY KEY (erasure_id, stream)
) WITHOUT ROWID;

-- Objects that no artifact names any more and that are still to be deleted.
CREATE TABLE doomed (
    location TEXT PRIMARY KEY,
    since_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- The highest keys that rows had which are gone: keys are not given twice.
CREATE TABLE forgotten_keys (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    record_key INTEGER NOT NULL,
    chunk_key  INTEGER NOT NULL
);
INSERT INTO forgotten_keys VALUES (1, 0, 0);
