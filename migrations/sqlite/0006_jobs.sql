-- Long work: asked for, done by one daemon, remembered for a while.

-- `stream` is null for work that is not of one stream's. `epoch` counts the
-- claims: what a worker says of a job counts only with the epoch of its own
-- claim. `attempts` counts those claims that no stop gave back.
CREATE TABLE jobs (
    job_id        INTEGER PRIMARY KEY AUTOINCREMENT,
    kind          TEXT NOT NULL,
    work          TEXT NOT NULL,
    pipeline      TEXT NOT NULL,
    stream        TEXT,
    tenant        TEXT,
    asked_by      TEXT NOT NULL,
    schedule      TEXT,
    due_ms        INTEGER,
    state         TEXT NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    priority      INTEGER NOT NULL,
    asked_ms      INTEGER NOT NULL,
    not_before_ms INTEGER NOT NULL,
    started_ms    INTEGER,
    claimed_ms    INTEGER,
    ended_ms      INTEGER,
    cancel_ms     INTEGER,
    epoch         INTEGER NOT NULL DEFAULT 0,
    attempts      INTEGER NOT NULL DEFAULT 0,
    worker        TEXT,
    lease_ms      INTEGER,
    done          INTEGER NOT NULL DEFAULT 0,
    done_before   INTEGER NOT NULL DEFAULT 0,
    total         INTEGER,
    note          TEXT NOT NULL DEFAULT '',
    place         TEXT,
    result        TEXT,
    error         TEXT
);
CREATE INDEX jobs_open ON jobs (job_id) WHERE state IN ('queued', 'running');
-- A due time is kept once, whoever keeps it.
CREATE UNIQUE INDEX jobs_due ON jobs (schedule, coalesce(stream, ''), due_ms) WHERE schedule IS NOT NULL;

-- Up to when the due times of a schedule are seen to; `stream` is empty where
-- the work is not of one stream's.
CREATE TABLE schedules (
    schedule   TEXT NOT NULL,
    stream     TEXT NOT NULL,
    settled_ms INTEGER NOT NULL,
    PRIMARY KEY (schedule, stream)
) WITHOUT ROWID;
