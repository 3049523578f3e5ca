-- What a select step says of an answer beside its weight, and what an unpaired loss sets it beside.

ALTER TABLE selection RENAME TO selection_2;
CREATE TABLE selection (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    prompt_id UUID NOT NULL,
    completion_id UUID NOT NULL,
    position INTEGER NOT NULL,
    weight DOUBLE NOT NULL,
    wanted BOOLEAN,
    told VARCHAR,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split = 'train'),
    CHECK (isfinite(weight) AND weight >= 0)
);
COMMENT ON TABLE selection IS 'Completions that a select step kept';
COMMENT ON COLUMN selection.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN selection.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN selection.step IS 'Name of the step in the round';
COMMENT ON COLUMN selection.split IS 'train, heldout or test';
COMMENT ON COLUMN selection.prompt_id IS 'prompt.id';
COMMENT ON COLUMN selection.completion_id IS 'completion.id';
COMMENT ON COLUMN selection.position IS 'Place in the order asked for, from 0';
COMMENT ON COLUMN selection.weight IS 'Weight of its loss';
COMMENT ON COLUMN selection.wanted IS 'Whether the answer is wanted, for unpaired losses';
COMMENT ON COLUMN selection.told IS 'What the prompt says first of the answer that follows';
COMMENT ON COLUMN selection.created_at IS 'When the row was made, UTC';
INSERT INTO selection BY NAME SELECT * FROM selection_2;
DROP TABLE selection_2;

ALTER TABLE training_row RENAME TO training_row_2;
CREATE TABLE training_row (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    training_run_id UUID NOT NULL,
    position INTEGER NOT NULL,
    prompt_id UUID NOT NULL,
    completion_id UUID NOT NULL,
    rejected_id UUID,
    pair_id UUID,
    selection_id UUID,
    weight DOUBLE NOT NULL,
    margin DOUBLE,
    probability DOUBLE,
    label BOOLEAN,
    other_id UUID,
    told VARCHAR,
    reward DOUBLE,
    advantage DOUBLE,
    ranked UUID[],
    token_weights FLOAT[],
    tokens_from VARCHAR NOT NULL,
    reference_chosen DOUBLE,
    reference_rejected DOUBLE,
    reference_from VARCHAR,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split = 'train'),
    CHECK (tokens_from IN ('sampled', 'encoded'))
);
COMMENT ON TABLE training_row IS 'Frozen: what a revision was trained on';
COMMENT ON COLUMN training_row.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN training_row.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN training_row.step IS 'Name of the step in the round';
COMMENT ON COLUMN training_row.split IS 'train, heldout or test';
COMMENT ON COLUMN training_row.training_run_id IS 'training_run.id';
COMMENT ON COLUMN training_row.position IS 'Place in the training file, from 0';
COMMENT ON COLUMN training_row.prompt_id IS 'prompt.id';
COMMENT ON COLUMN training_row.completion_id IS 'completion.id that is learned, or the chosen one';
COMMENT ON COLUMN training_row.rejected_id IS 'completion.id of the rejected one';
COMMENT ON COLUMN training_row.pair_id IS 'pair.id that it froze';
COMMENT ON COLUMN training_row.selection_id IS 'selection.id that it froze';
COMMENT ON COLUMN training_row.weight IS 'Weight of its loss';
COMMENT ON COLUMN training_row.margin IS 'Value of chosen less value of rejected';
COMMENT ON COLUMN training_row.probability IS 'How sure the label is';
COMMENT ON COLUMN training_row.label IS 'Whether the answer is wanted, for unpaired losses';
COMMENT ON COLUMN training_row.other_id IS 'completion.id, of another prompt, that it is beside';
COMMENT ON COLUMN training_row.told IS 'What the prompt says first of the answer that follows';
COMMENT ON COLUMN training_row.reward IS 'What the answer earned, for on-policy losses';
COMMENT ON COLUMN training_row.advantage IS 'Reward beside that of its group';
COMMENT ON COLUMN training_row.ranked IS 'completion.ids best first, for listwise losses';
COMMENT ON COLUMN training_row.token_weights IS 'Weight of each token of the completion';
COMMENT ON COLUMN training_row.tokens_from IS 'sampled: ids as the policy gave them; encoded: from text';
COMMENT ON COLUMN training_row.reference_chosen IS 'Reference log-prob of chosen, nats, summed';
COMMENT ON COLUMN training_row.reference_rejected IS 'Reference log-prob of rejected, nats, summed';
COMMENT ON COLUMN training_row.reference_from IS 'stored: kept at sampling; scored: one forward pass';
COMMENT ON COLUMN training_row.created_at IS 'When the row was made, UTC';
INSERT INTO training_row BY NAME SELECT * FROM training_row_2;
DROP TABLE training_row_2;
