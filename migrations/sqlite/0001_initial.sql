-- Times are milliseconds since 1970 in UTC. Identifiers are UUIDs of version 7, so that they sort by the time of their making.
-- What is JSON is TEXT. Nothing but the state of a job is ever updated in place; deployments and audit only grow.

-- Training data that was uploaded. The lines themselves are an object in the store.
CREATE TABLE datasets (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT,
    sha256     TEXT   NOT NULL UNIQUE,
    examples   BIGINT NOT NULL,
    bytes      BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT   NOT NULL
);

-- The queue. A row is a job for as long as the service keeps it, finished or not.
CREATE TABLE jobs (
    id                TEXT   NOT NULL PRIMARY KEY,
    kind              TEXT   NOT NULL,
    -- queued, running, succeeded, failed, cancelled
    state             TEXT   NOT NULL,
    -- Higher ones first; equal ones in the order they came.
    priority          BIGINT NOT NULL DEFAULT 0,
    request           TEXT   NOT NULL,
    -- The request's name, to filter by.
    name              TEXT   NOT NULL,
    dataset           TEXT   REFERENCES datasets (id),
    idempotency_key   TEXT,
    created_at        BIGINT NOT NULL,
    created_by        TEXT   NOT NULL,
    -- Not to be claimed before.
    run_after         BIGINT NOT NULL,
    attempts          BIGINT NOT NULL DEFAULT 0,
    max_attempts      BIGINT NOT NULL,
    cancel_requested  BIGINT NOT NULL DEFAULT 0,
    -- Counts the claims. Whoever writes to a running job names the epoch it claimed; a later claim shuts it out.
    epoch             BIGINT NOT NULL DEFAULT 0,
    worker            TEXT,
    lease_until       BIGINT,
    heartbeat_at      BIGINT,
    started_at        BIGINT,
    finished_at       BIGINT,
    -- preparing, training, evaluating, registering
    phase             TEXT,
    step              BIGINT,
    steps             BIGINT,
    loss              DOUBLE PRECISION,
    tokens_per_second DOUBLE PRECISION,
    eta_seconds       DOUBLE PRECISION,
    -- Key of the last checkpoint in the store, and its step.
    checkpoint        TEXT,
    checkpoint_step   BIGINT,
    metrics           TEXT,
    error             TEXT,
    adapter_name      TEXT,
    adapter_number    BIGINT,
    -- Counts the changes of the row: what a follower of the job has seen.
    revision          BIGINT NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX jobs_idempotency ON jobs (created_by, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_claim ON jobs (priority DESC, id) WHERE state = 'queued';
CREATE INDEX jobs_lease ON jobs (lease_until) WHERE state = 'running';
CREATE INDEX jobs_state ON jobs (state, id);

-- Names of adapters, each with the number its next version gets: a deleted version's number is not given again.
CREATE TABLE adapter_names (
    name        TEXT   NOT NULL PRIMARY KEY,
    next_number BIGINT NOT NULL
);

-- Versions never change but for being pinned and deleted.
CREATE TABLE adapter_versions (
    name            TEXT   NOT NULL REFERENCES adapter_names (name),
    number          BIGINT NOT NULL,
    -- Over the configuration and the weights.
    sha256          TEXT   NOT NULL,
    bytes           BIGINT NOT NULL,
    lora_rank       BIGINT NOT NULL,
    base            TEXT   NOT NULL,
    base_fingerprint TEXT  NOT NULL,
    -- shipped, import, job
    source          TEXT   NOT NULL,
    job             TEXT,
    dataset         TEXT,
    dataset_sha256  TEXT,
    hyperparameters TEXT,
    metrics         TEXT,
    pinned          BIGINT NOT NULL DEFAULT 0,
    created_at      BIGINT NOT NULL,
    created_by      TEXT   NOT NULL,
    deleted_at      BIGINT,
    PRIMARY KEY (name, number)
);
CREATE UNIQUE INDEX adapter_versions_job ON adapter_versions (job) WHERE job IS NOT NULL;

-- What is to be served, one row a change; the last row holds. Its number is what compare-and-set compares.
CREATE TABLE deployments (
    revision      BIGINT NOT NULL PRIMARY KEY,
    active_name   TEXT   NOT NULL,
    active_number BIGINT NOT NULL,
    -- [{"adapter": "name@number", "weight": 0.1}, ...]
    traffic       TEXT   NOT NULL,
    -- name@number
    shadow        TEXT,
    -- start, activate, rollback, traffic, policy
    action        TEXT   NOT NULL,
    reason        TEXT,
    at            BIGINT NOT NULL,
    actor         TEXT   NOT NULL
);

-- What each serving process has in use.
CREATE TABLE replicas (
    id            TEXT   NOT NULL PRIMARY KEY,
    base          TEXT   NOT NULL,
    revision      BIGINT NOT NULL,
    active        TEXT   NOT NULL,
    error         TEXT,
    seen_at       BIGINT NOT NULL
);

-- Keys of the service. The key itself is not kept.
CREATE TABLE api_keys (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL,
    sha256     TEXT   NOT NULL UNIQUE,
    -- use, train, admin; each holds those before it
    scope      TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT   NOT NULL,
    revoked_at BIGINT
);

-- Who did what to which, and when.
CREATE TABLE audit (
    id      TEXT   NOT NULL PRIMARY KEY,
    at      BIGINT NOT NULL,
    -- Id of a key, `anonymous`, `worker`, or `cli`.
    actor   TEXT   NOT NULL,
    action  TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    detail  TEXT
);
CREATE INDEX audit_at ON audit (at);
