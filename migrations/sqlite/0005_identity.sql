-- API keys: of the secret only its SHA-256. `roles` are names with spaces
-- between them; `tenant` is null where the key speaks for any.
CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    tenant     TEXT,
    roles      TEXT NOT NULL,
    tier       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    revoked_ms INTEGER,
    used_ms    INTEGER,
    replaces   TEXT
) WITHOUT ROWID;

-- What was done and refused, by whom. Equal refusals of a minute may be one
-- row: `times`, from `at_ms` to `last_ms`. Rows are only ever added.
CREATE TABLE trail (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms      INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,
    times      INTEGER NOT NULL CHECK (times > 0),
    principal  TEXT NOT NULL,
    scheme     TEXT NOT NULL,
    act        TEXT NOT NULL,
    subject    TEXT NOT NULL,
    outcome    TEXT NOT NULL CHECK (outcome IN ('done', 'refused')),
    detail     TEXT NOT NULL,
    peer       TEXT,
    request_id TEXT
);
CREATE TRIGGER trail_stays BEFORE UPDATE ON trail BEGIN SELECT raise(ABORT, 'the trail is only added to'); END;
CREATE TRIGGER trail_keeps BEFORE DELETE ON trail BEGIN SELECT raise(ABORT, 'the trail is only added to'); END;
