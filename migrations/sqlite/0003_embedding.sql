-- What keeps an embedding from being paid for twice, and what waits for one.

-- A text that has a vector lends it to every other chunk of the same text.
CREATE INDEX chunks_by_text ON chunks (digest);

CREATE INDEX outcomes_deferred ON outcomes (pipeline, stream, "offset") WHERE kind = 'deferred';

-- What the processes of a pipeline have spent in a day of UTC (days since
-- 1970-01-01), added up. Money is in millionths of the currency.
CREATE TABLE spending (
    pipeline TEXT NOT NULL,
    day      INTEGER NOT NULL,
    work     TEXT NOT NULL CHECK (work IN ('live', 'backfill')),
    tokens   INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    micros   INTEGER NOT NULL,
    PRIMARY KEY (pipeline, day, work)
) WITHOUT ROWID;

-- Vectors of the canary texts as they were when the space was new. f32,
-- little endian.
CREATE TABLE canaries (
    space_key   INTEGER NOT NULL,
    digest      BLOB NOT NULL,
    vector      BLOB NOT NULL,
    recorded_ms INTEGER NOT NULL,
    PRIMARY KEY (space_key, digest)
) WITHOUT ROWID;

-- Searches compare vectors of one space.
UPDATE spaces SET state = 'shadow'
WHERE state = 'live' AND space_key <> (SELECT max(space_key) FROM spaces WHERE state = 'live');
CREATE UNIQUE INDEX spaces_one_live ON spaces (state) WHERE state = 'live';
