-- What is told by webhooks: waiting to be sent, sent, or given up, and
-- remembered for a while.

-- `due_ms`: it is not tried before; while somebody tries, the end of his claim.
-- `claim` counts the claims: what is said of an attempt counts only with the
-- number of its own. `status`, `took_ms` and `error` are of the last attempt.
CREATE TABLE webhook_deliveries (
    delivery_id TEXT PRIMARY KEY,
    pipeline    TEXT NOT NULL,
    webhook     TEXT NOT NULL,
    event       TEXT NOT NULL,
    tenant      TEXT,
    body        TEXT NOT NULL,
    state       TEXT NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'delivered', 'failed')),
    created_ms  INTEGER NOT NULL,
    due_ms      INTEGER NOT NULL,
    give_up_ms  INTEGER NOT NULL,
    claim       INTEGER NOT NULL DEFAULT 0,
    attempts    INTEGER NOT NULL DEFAULT 0,
    tried_ms    INTEGER,
    took_ms     INTEGER,
    status      INTEGER,
    error       TEXT,
    ended_ms    INTEGER
) WITHOUT ROWID;
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (pipeline, webhook, due_ms) WHERE state = 'waiting';
