-- +goose Up
-- The version that was asked for last: rebuilds start from its source.
ALTER TABLE templates ADD COLUMN recipe BIGINT NOT NULL DEFAULT 0;
UPDATE templates SET recipe = latest;

-- Warm slots are a template's and so its owner's. What other organisations wanted of built-in
-- templates is given up.
CREATE TABLE warm_slots (
    template_id TEXT   NOT NULL REFERENCES templates (id),
    size        TEXT   NOT NULL,
    slots       BIGINT NOT NULL,
    PRIMARY KEY (template_id, size)
);
INSERT INTO warm_slots (template_id, size, slots)
    SELECT w.template_id, w.size, w.slots FROM warm_targets w JOIN templates t ON t.id = w.template_id
    WHERE w.org_id = t.org_id OR t.org_id = '' AND w.org_id = 'local';
DROP TABLE warm_targets;
ALTER TABLE warm_slots RENAME TO warm_targets;
