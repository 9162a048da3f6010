-- Times are nanoseconds since 1970 UTC, 0 meaning "not yet". Columns named *_json hold
-- values of the root package's types.

-- +goose Up
CREATE TABLE templates (
    id          TEXT    NOT NULL PRIMARY KEY,
    org_id      TEXT    NOT NULL,              -- '' for built-in templates
    name        TEXT    NOT NULL,
    description TEXT    NOT NULL,
    author      TEXT    NOT NULL,
    icon        TEXT    NOT NULL,
    tags_json   TEXT    NOT NULL,
    quota_json  TEXT    NOT NULL DEFAULT '{}', -- what holds for all versions
    current     BIGINT  NOT NULL DEFAULT 0,    -- version that sandboxes start from, 0 before the first
    promoted    BIGINT  NOT NULL DEFAULT 0,    -- newest version that a build promoted; current is older after a rollback
    latest      BIGINT  NOT NULL DEFAULT 0,    -- newest version, whatever became of it
    created_at  BIGINT  NOT NULL,
    updated_at  BIGINT  NOT NULL,
    deleted_at  BIGINT  NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX templates_by_name ON templates (org_id, name) WHERE deleted_at = 0;
CREATE INDEX templates_deleted ON templates (org_id, name) WHERE deleted_at <> 0;

CREATE TABLE versions (
    template_id      TEXT   NOT NULL REFERENCES templates (id),
    number           BIGINT NOT NULL,
    build_id         TEXT   NOT NULL UNIQUE,
    status           TEXT   NOT NULL,
    created_at       BIGINT NOT NULL,
    started_at       BIGINT NOT NULL DEFAULT 0,
    ended_at         BIGINT NOT NULL DEFAULT 0,
    collected_at     BIGINT NOT NULL DEFAULT 0, -- when its files were given up
    build_error_json TEXT   NOT NULL DEFAULT 'null',
    source_blob      TEXT   NOT NULL,
    source_digest    TEXT   NOT NULL,
    options_json     TEXT   NOT NULL,
    metadata_json    TEXT   NOT NULL,
    config_json      TEXT   NOT NULL DEFAULT '{}',
    bases_json       TEXT   NOT NULL DEFAULT 'null',
    rootfs_json      TEXT   NOT NULL DEFAULT '{}',
    stages_json      TEXT   NOT NULL DEFAULT 'null',
    PRIMARY KEY (template_id, number)
);
CREATE INDEX versions_by_source ON versions (source_blob);

-- What only matters while a version is being built.
CREATE TABLE builds (
    id               TEXT    NOT NULL PRIMARY KEY REFERENCES versions (build_id),
    node             TEXT    NOT NULL,            -- whose job it is
    attempts         BIGINT  NOT NULL DEFAULT 0,
    cancel_requested BOOLEAN NOT NULL DEFAULT FALSE,
    needs_secrets    BOOLEAN NOT NULL DEFAULT FALSE,
    traceparent      TEXT    NOT NULL DEFAULT '',  -- the span of the request for it
    active           BOOLEAN NOT NULL DEFAULT TRUE -- the version is building, or pending and on the queue
);
CREATE INDEX builds_active ON builds (node) WHERE active;

-- Further names of built-in templates.
CREATE TABLE template_aliases (
    name        TEXT NOT NULL PRIMARY KEY,
    template_id TEXT NOT NULL REFERENCES templates (id)
);

CREATE TABLE version_tags (
    template_id TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (template_id, name),
    FOREIGN KEY (template_id, number) REFERENCES versions (template_id, number)
);

CREATE TABLE stage_cache (
    stage       TEXT   NOT NULL,
    key         TEXT   NOT NULL,
    output_json TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (stage, key)
);

-- Equal versions share snapshots: the key covers all that a snapshot depends on.
CREATE TABLE snapshots (
    key           TEXT   NOT NULL PRIMARY KEY,
    snapshot_json TEXT   NOT NULL,
    created_at    BIGINT NOT NULL
);
CREATE TABLE version_snapshots (
    template_id TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    size        TEXT   NOT NULL,
    key         TEXT   NOT NULL REFERENCES snapshots (key) ON DELETE CASCADE,
    PRIMARY KEY (template_id, number, size, key),
    FOREIGN KEY (template_id, number) REFERENCES versions (template_id, number)
);
CREATE INDEX version_snapshots_by_key ON version_snapshots (key);

CREATE TABLE sandboxes (
    id           TEXT    NOT NULL PRIMARY KEY,
    org_id       TEXT    NOT NULL,
    template_id  TEXT    NOT NULL,
    template     TEXT    NOT NULL,             -- its name when the sandbox was created
    version      BIGINT  NOT NULL,
    status       TEXT    NOT NULL,
    living       BOOLEAN NOT NULL,
    created_at   BIGINT  NOT NULL,
    sandbox_json TEXT    NOT NULL
);
CREATE INDEX sandboxes_living ON sandboxes (created_at, id) WHERE living;
CREATE INDEX sandboxes_by_org ON sandboxes (org_id, created_at, id);

CREATE TABLE sandbox_metadata (
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    value      TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, name)
);
CREATE INDEX sandboxes_by_version ON sandboxes (template_id, version) WHERE living;
CREATE INDEX sandboxes_ended ON sandboxes (created_at) WHERE NOT living;

CREATE TABLE orgs (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);
INSERT INTO orgs (id, name, created_at) VALUES ('local', 'local', 0); -- who runs the server

-- Written before a slot exists and removed after it.
CREATE TABLE network_slots (
    node   TEXT   NOT NULL,
    slot   BIGINT NOT NULL,
    owner  TEXT   NOT NULL DEFAULT '', -- a sandbox or a bake
    PRIMARY KEY (node, slot)
);

-- How many warm slots are kept of a template's promoted version.
CREATE TABLE warm_targets (
    org_id      TEXT   NOT NULL,
    template_id TEXT   NOT NULL REFERENCES templates (id),
    size        TEXT   NOT NULL,
    slots       BIGINT NOT NULL,
    PRIMARY KEY (org_id, template_id, size)
);

CREATE TABLE tokens (
    id          TEXT   NOT NULL PRIMARY KEY,
    org_id      TEXT   NOT NULL REFERENCES orgs (id),
    name        TEXT   NOT NULL,
    scopes_json TEXT   NOT NULL,
    hash        TEXT   NOT NULL UNIQUE, -- SHA-256 of the secret, which is random enough to need no salt
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX tokens_by_org ON tokens (org_id, created_at, id);

-- Who changed what. Rows are never changed; those that are old enough are removed.
CREATE TABLE audit (
    id          TEXT   NOT NULL PRIMARY KEY,
    org_id      TEXT   NOT NULL,
    at          BIGINT NOT NULL,
    token_id    TEXT   NOT NULL,
    token_name  TEXT   NOT NULL,
    address     TEXT   NOT NULL,
    action      TEXT   NOT NULL,
    target      TEXT   NOT NULL,
    detail_json TEXT   NOT NULL
);
CREATE INDEX audit_by_org ON audit (org_id, at, id);
CREATE INDEX audit_by_time ON audit (at, id);

-- +goose Down
DROP TABLE audit;
DROP TABLE tokens;
DROP TABLE warm_targets;
DROP TABLE sandbox_metadata;
DROP TABLE orgs;
DROP TABLE network_slots;
DROP TABLE sandboxes;
DROP TABLE version_snapshots;
DROP TABLE snapshots;
DROP TABLE stage_cache;
DROP TABLE version_tags;
DROP TABLE template_aliases;
DROP TABLE builds;
DROP TABLE versions;
DROP TABLE templates;
