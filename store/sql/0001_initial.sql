-- Rendered from tables.py by `make schema`.
CREATE TABLE run (
    id UUID NOT NULL,
    name VARCHAR NOT NULL,
    key VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    recipe JSON NOT NULL,
    student VARCHAR NOT NULL,
    redistill_version VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE run IS 'The one run that this store belongs to';
COMMENT ON COLUMN run.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN run.name IS 'Folder name under runs/';
COMMENT ON COLUMN run.key IS 'Hash of the recipe without name, paths and execution';
COMMENT ON COLUMN run.seed IS 'Seed of the run';
COMMENT ON COLUMN run.recipe IS 'The resolved recipe';
COMMENT ON COLUMN run.student IS 'revision.id of the initial student';
COMMENT ON COLUMN run.redistill_version IS 'Version that made the store';
COMMENT ON COLUMN run.created_at IS 'When the row was made, UTC';

CREATE TABLE round (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    champion VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE round IS 'One row a round, written when it begins';
COMMENT ON COLUMN round.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN round.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN round.stage IS 'Index of the stage in the recipe, from 1';
COMMENT ON COLUMN round.champion IS 'revision.id from which the round starts';
COMMENT ON COLUMN round.created_at IS 'When the row was made, UTC';

CREATE TABLE step (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    operator VARCHAR NOT NULL,
    settings JSON NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE step IS 'The steps of each round with their resolved settings';
COMMENT ON COLUMN step.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN step.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN step.step IS 'Name of the step in the round';
COMMENT ON COLUMN step.position IS 'Place in the round, from 1';
COMMENT ON COLUMN step.operator IS 'Name of the operator';
COMMENT ON COLUMN step.settings IS 'Resolved settings';
COMMENT ON COLUMN step.created_at IS 'When the row was made, UTC';

CREATE TABLE prompt (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    messages_hash VARCHAR NOT NULL,
    details_hash VARCHAR NOT NULL,
    tags VARCHAR[] NOT NULL,
    source VARCHAR NOT NULL,
    licence VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split IN ('train', 'heldout', 'test'))
);
COMMENT ON TABLE prompt IS 'What is asked, with what its checker needs';
COMMENT ON COLUMN prompt.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN prompt.round IS '0: prompts are there before the first round';
COMMENT ON COLUMN prompt.split IS 'train, heldout or test';
COMMENT ON COLUMN prompt.position IS 'Place in its split, from 0';
COMMENT ON COLUMN prompt.messages_hash IS 'content.hash of the JSON list of messages';
COMMENT ON COLUMN prompt.details_hash IS 'content.hash of verify, answer, reference, privileged';
COMMENT ON COLUMN prompt.tags IS 'key:value labels';
COMMENT ON COLUMN prompt.source IS 'Where it comes from';
COMMENT ON COLUMN prompt.licence IS 'Licence of the source';
COMMENT ON COLUMN prompt.created_at IS 'When the row was made, UTC';

CREATE TABLE rendered_prompt (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    prompt_id UUID NOT NULL,
    context VARCHAR NOT NULL,
    vocabulary VARCHAR NOT NULL,
    token_ids INTEGER[] NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE rendered_prompt IS 'A prompt with a role''s context as the exact token ids that a policy saw';
COMMENT ON COLUMN rendered_prompt.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN rendered_prompt.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN rendered_prompt.prompt_id IS 'prompt.id';
COMMENT ON COLUMN rendered_prompt.context IS 'Hash of the role''s context; empty for the plain prompt';
COMMENT ON COLUMN rendered_prompt.vocabulary IS 'Hash of the tokenizer that made the ids';
COMMENT ON COLUMN rendered_prompt.token_ids IS 'Prompt token ids, template included';
COMMENT ON COLUMN rendered_prompt.created_at IS 'When the row was made, UTC';

CREATE TABLE completion (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    prompt_id UUID NOT NULL,
    rendered_prompt_id UUID NOT NULL,
    parent_id UUID,
    slot INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    role VARCHAR NOT NULL,
    revision VARCHAR NOT NULL,
    text_hash VARCHAR NOT NULL,
    payload_hash VARCHAR NOT NULL,
    finish_reason VARCHAR NOT NULL,
    temperature DOUBLE NOT NULL,
    sampling JSON NOT NULL,
    tokens INTEGER NOT NULL,
    seconds DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split IN ('train', 'heldout', 'test')),
    CHECK (finish_reason IN ('stop', 'length'))
);
COMMENT ON TABLE completion IS 'One answer of a policy';
COMMENT ON COLUMN completion.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN completion.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN completion.step IS 'Name of the step in the round';
COMMENT ON COLUMN completion.split IS 'train, heldout or test';
COMMENT ON COLUMN completion.prompt_id IS 'prompt.id';
COMMENT ON COLUMN completion.rendered_prompt_id IS 'rendered_prompt.id: what the policy saw';
COMMENT ON COLUMN completion.parent_id IS 'completion.id that this one rewrites';
COMMENT ON COLUMN completion.slot IS 'Which of the k answers to the prompt, from 0';
COMMENT ON COLUMN completion.attempt IS 'From 0';
COMMENT ON COLUMN completion.role IS 'Role that spoke';
COMMENT ON COLUMN completion.revision IS 'Content hash of the weights that spoke';
COMMENT ON COLUMN completion.text_hash IS 'content.hash of the answer';
COMMENT ON COLUMN completion.payload_hash IS 'Hash of token ids and finish reason';
COMMENT ON COLUMN completion.finish_reason IS 'stop, or length where the answer was cut';
COMMENT ON COLUMN completion.temperature IS '0 is greedy';
COMMENT ON COLUMN completion.sampling IS 'All sampling settings';
COMMENT ON COLUMN completion.tokens IS 'Tokens of the answer, end token included';
COMMENT ON COLUMN completion.seconds IS 'Its share of the wall time of its chunk';
COMMENT ON COLUMN completion.created_at IS 'When the row was made, UTC';

CREATE TABLE completion_tokens (
    completion_id UUID NOT NULL,
    round INTEGER NOT NULL,
    token_ids INTEGER[] NOT NULL,
    logprobs FLOAT[] NOT NULL,
    CHECK (len(token_ids) = len(logprobs))
);
COMMENT ON TABLE completion_tokens IS 'Token ids and raw log-probs as they were sampled';
COMMENT ON COLUMN completion_tokens.completion_id IS 'completion.id';
COMMENT ON COLUMN completion_tokens.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN completion_tokens.token_ids IS 'As sampled, end token included';
COMMENT ON COLUMN completion_tokens.logprobs IS 'Natural log, T = 1, before top-k and top-p';

CREATE TABLE judgement (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    completion_id UUID NOT NULL,
    judge VARCHAR NOT NULL,
    judge_revision VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    status VARCHAR NOT NULL,
    value DOUBLE,
    raw DOUBLE,
    parts JSON NOT NULL,
    text_hash VARCHAR,
    seconds DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (status IN ('ok', 'parse_error', 'refused', 'timeout', 'error', 'too_big', 'not_applicable')),
    CHECK ((status = 'ok') = (value IS NOT NULL)),
    CHECK (value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)),
    CHECK (raw IS NULL OR isfinite(raw))
);
COMMENT ON TABLE judgement IS 'What one judge said of one completion; a failure has a status and no value';
COMMENT ON COLUMN judgement.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN judgement.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN judgement.step IS 'Name of the step in the round';
COMMENT ON COLUMN judgement.completion_id IS 'completion.id';
COMMENT ON COLUMN judgement.judge IS 'Name of the judge';
COMMENT ON COLUMN judgement.judge_revision IS 'Hash of the judge''s kind, settings and version';
COMMENT ON COLUMN judgement.attempt IS 'From 0';
COMMENT ON COLUMN judgement.status IS 'ok, or why there is no value';
COMMENT ON COLUMN judgement.value IS 'In [0, 1]; NULL unless the status is ok';
COMMENT ON COLUMN judgement.raw IS 'The judge''s own number';
COMMENT ON COLUMN judgement.parts IS 'Named parts of the verdict';
COMMENT ON COLUMN judgement.text_hash IS 'content.hash of the judge''s words';
COMMENT ON COLUMN judgement.seconds IS 'Its share of the wall time of its chunk';
COMMENT ON COLUMN judgement.created_at IS 'When the row was made, UTC';

CREATE TABLE pair (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    prompt_id UUID NOT NULL,
    chosen_id UUID NOT NULL,
    rejected_id UUID NOT NULL,
    judge VARCHAR NOT NULL,
    rule VARCHAR NOT NULL,
    margin DOUBLE NOT NULL,
    probability DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split = 'train'),
    CHECK (chosen_id <> rejected_id),
    CHECK (isfinite(margin))
);
COMMENT ON TABLE pair IS 'Two completions of one prompt, one preferred';
COMMENT ON COLUMN pair.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN pair.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN pair.step IS 'Name of the step in the round';
COMMENT ON COLUMN pair.split IS 'train, heldout or test';
COMMENT ON COLUMN pair.prompt_id IS 'prompt.id';
COMMENT ON COLUMN pair.chosen_id IS 'completion.id of the preferred answer';
COMMENT ON COLUMN pair.rejected_id IS 'completion.id of the other';
COMMENT ON COLUMN pair.judge IS 'Judge whose values were compared';
COMMENT ON COLUMN pair.rule IS 'Pairing rule';
COMMENT ON COLUMN pair.margin IS 'Value of chosen less value of rejected';
COMMENT ON COLUMN pair.probability IS 'How sure the label is';
COMMENT ON COLUMN pair.created_at IS 'When the row was made, UTC';

CREATE TABLE selection (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    prompt_id UUID NOT NULL,
    completion_id UUID NOT NULL,
    position INTEGER NOT NULL,
    weight DOUBLE NOT NULL,
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
COMMENT ON COLUMN selection.created_at IS 'When the row was made, UTC';

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
    weight DOUBLE NOT NULL,
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
COMMENT ON COLUMN training_row.weight IS 'Weight of its loss';
COMMENT ON COLUMN training_row.tokens_from IS 'sampled: ids as the policy gave them; encoded: from text';
COMMENT ON COLUMN training_row.reference_chosen IS 'Reference log-prob of chosen, nats, summed';
COMMENT ON COLUMN training_row.reference_rejected IS 'Reference log-prob of rejected, nats, summed';
COMMENT ON COLUMN training_row.reference_from IS 'stored: kept at sampling; scored: one forward pass';
COMMENT ON COLUMN training_row.created_at IS 'When the row was made, UTC';

CREATE TABLE training_run (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    trainer VARCHAR NOT NULL,
    settings JSON NOT NULL,
    start_revision VARCHAR NOT NULL,
    reference_revision VARCHAR,
    dataset_hash VARCHAR NOT NULL,
    rows INTEGER NOT NULL,
    status VARCHAR NOT NULL,
    message VARCHAR NOT NULL,
    revision VARCHAR,
    steps INTEGER NOT NULL,
    seconds DOUBLE NOT NULL,
    cpu_seconds DOUBLE NOT NULL,
    peak_rss_mb DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE training_run IS 'One training job and how it ended';
COMMENT ON COLUMN training_run.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN training_run.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN training_run.step IS 'Name of the step in the round';
COMMENT ON COLUMN training_run.trainer IS 'Name of the trainer';
COMMENT ON COLUMN training_run.settings IS 'Resolved settings of the trainer';
COMMENT ON COLUMN training_run.start_revision IS 'revision.id from which training began';
COMMENT ON COLUMN training_run.reference_revision IS 'revision.id of the reference policy';
COMMENT ON COLUMN training_run.dataset_hash IS 'Content hash of the training rows';
COMMENT ON COLUMN training_run.rows IS 'Training rows';
COMMENT ON COLUMN training_run.status IS 'trained, or why nothing was published';
COMMENT ON COLUMN training_run.message IS 'One line for people';
COMMENT ON COLUMN training_run.revision IS 'revision.id that came of it';
COMMENT ON COLUMN training_run.steps IS 'Optimizer steps done';
COMMENT ON COLUMN training_run.seconds IS 'Wall seconds';
COMMENT ON COLUMN training_run.cpu_seconds IS 'CPU seconds of the worker';
COMMENT ON COLUMN training_run.peak_rss_mb IS 'Peak memory of the worker, MiB';
COMMENT ON COLUMN training_run.created_at IS 'When the row was made, UTC';

CREATE TABLE training_metric (
    training_run_id UUID NOT NULL,
    round INTEGER NOT NULL,
    optimizer_step INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    value DOUBLE NOT NULL
);
COMMENT ON TABLE training_metric IS 'Every number that a trainer logged';
COMMENT ON COLUMN training_metric.training_run_id IS 'training_run.id';
COMMENT ON COLUMN training_metric.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN training_metric.optimizer_step IS 'From 1';
COMMENT ON COLUMN training_metric.name IS 'Name of the number';
COMMENT ON COLUMN training_metric.value IS 'The number';

CREATE TABLE revision (
    id VARCHAR NOT NULL,
    round INTEGER NOT NULL,
    parent VARCHAR,
    folder VARCHAR NOT NULL,
    training_run_id UUID,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE revision IS 'A set of weights';
COMMENT ON COLUMN revision.id IS 'Content hash of the weights';
COMMENT ON COLUMN revision.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN revision.parent IS 'revision.id that it was trained from';
COMMENT ON COLUMN revision.folder IS 'Relative to the run''s folder';
COMMENT ON COLUMN revision.training_run_id IS 'training_run.id that made it';
COMMENT ON COLUMN revision.created_at IS 'When the row was made, UTC';

CREATE TABLE evaluation (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    revision VARCHAR NOT NULL,
    prompts_hash VARCHAR NOT NULL,
    judge VARCHAR NOT NULL,
    judge_revision VARCHAR NOT NULL,
    decoding JSON NOT NULL,
    n INTEGER NOT NULL,
    value DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE evaluation IS 'A finished evaluation of one revision on one split';
COMMENT ON COLUMN evaluation.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN evaluation.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN evaluation.step IS 'Name of the step in the round';
COMMENT ON COLUMN evaluation.split IS 'train, heldout or test';
COMMENT ON COLUMN evaluation.revision IS 'revision.id that answered';
COMMENT ON COLUMN evaluation.prompts_hash IS 'Hash of the ids of the prompts';
COMMENT ON COLUMN evaluation.judge IS 'Name of the judge';
COMMENT ON COLUMN evaluation.judge_revision IS 'Hash of the judge';
COMMENT ON COLUMN evaluation.decoding IS 'Sampling settings';
COMMENT ON COLUMN evaluation.n IS 'Prompts with a value';
COMMENT ON COLUMN evaluation.value IS 'Mean value';
COMMENT ON COLUMN evaluation.created_at IS 'When the row was made, UTC';

CREATE TABLE decision (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    decision VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    champion VARCHAR NOT NULL,
    challenger VARCHAR,
    test VARCHAR NOT NULL,
    champion_value DOUBLE,
    challenger_value DOUBLE,
    delta DOUBLE,
    ci_low DOUBLE,
    ci_high DOUBLE,
    n INTEGER NOT NULL,
    heldout_reads INTEGER NOT NULL,
    guards JSON NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (decision IN ('promoted', 'rejected'))
);
COMMENT ON TABLE decision IS 'Whether a challenger became champion, with every number that led to it';
COMMENT ON COLUMN decision.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN decision.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN decision.step IS 'Name of the step in the round';
COMMENT ON COLUMN decision.decision IS 'promoted or rejected';
COMMENT ON COLUMN decision.reason IS 'One line for people';
COMMENT ON COLUMN decision.champion IS 'revision.id of the champion before the decision';
COMMENT ON COLUMN decision.challenger IS 'revision.id; NULL where training published none';
COMMENT ON COLUMN decision.test IS 'Statistical test of the gate';
COMMENT ON COLUMN decision.champion_value IS 'Mean held-out value of the champion';
COMMENT ON COLUMN decision.challenger_value IS 'Mean held-out value of the challenger';
COMMENT ON COLUMN decision.delta IS 'Mean paired difference';
COMMENT ON COLUMN decision.ci_low IS 'Lower end of its 95 % interval';
COMMENT ON COLUMN decision.ci_high IS 'Upper end of its 95 % interval';
COMMENT ON COLUMN decision.n IS 'Paired prompts';
COMMENT ON COLUMN decision.heldout_reads IS 'How often a gate has read these prompts, this one included';
COMMENT ON COLUMN decision.guards IS 'Each guard with its numbers and whether it held';
COMMENT ON COLUMN decision.created_at IS 'When the row was made, UTC';

CREATE TABLE event (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    detail JSON NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE event IS 'What happened, in order: canaries, failures, stops, the gain';
COMMENT ON COLUMN event.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN event.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN event.step IS 'Name of the step in the round';
COMMENT ON COLUMN event.kind IS 'Kind of event';
COMMENT ON COLUMN event.detail IS 'Its facts';
COMMENT ON COLUMN event.created_at IS 'When the row was made, UTC';

CREATE TABLE content (
    hash VARCHAR NOT NULL,
    round INTEGER NOT NULL,
    text VARCHAR NOT NULL
);
COMMENT ON TABLE content IS 'Payload text by hash, once a round, so that it can be forgotten while rows and ids stay';
COMMENT ON COLUMN content.hash IS 'Content hash of the text';
COMMENT ON COLUMN content.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN content.text IS 'The text';

CREATE TABLE write_batch (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    chunk INTEGER NOT NULL,
    counts JSON NOT NULL,
    seconds DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE write_batch IS 'Ledger: one row a committed chunk, written in the chunk''s own transaction';
COMMENT ON COLUMN write_batch.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN write_batch.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN write_batch.step IS 'Name of the step in the round';
COMMENT ON COLUMN write_batch.chunk IS 'Index of the chunk in the step''s planned order, from 0';
COMMENT ON COLUMN write_batch.counts IS 'Rows sent, by table';
COMMENT ON COLUMN write_batch.seconds IS 'Wall time of the work that made the chunk';
COMMENT ON COLUMN write_batch.created_at IS 'When the row was made, UTC';
