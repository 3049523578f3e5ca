-- Room for all that feedback can be: several judges beside each other, comparisons, critiques, votes, rubrics,
-- exams, what people say, teachers' distributions, costs. A check cannot be added to a table, so a table that
-- changes is made anew and filled from the old one.

ALTER TABLE run RENAME TO run_1;
CREATE TABLE run (
    id UUID NOT NULL,
    name VARCHAR NOT NULL,
    key VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    recipe JSON NOT NULL,
    student VARCHAR,
    redistill_version VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE run IS 'The one run that this store belongs to';
COMMENT ON COLUMN run.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN run.name IS 'Folder name under runs/';
COMMENT ON COLUMN run.key IS 'Hash of the recipe without name, paths and execution';
COMMENT ON COLUMN run.seed IS 'Seed of the run';
COMMENT ON COLUMN run.recipe IS 'The resolved recipe';
COMMENT ON COLUMN run.student IS 'revision.id of the initial student; NULL in a run of imports';
COMMENT ON COLUMN run.redistill_version IS 'Version that made the store';
COMMENT ON COLUMN run.created_at IS 'When the row was made, UTC';
INSERT INTO run BY NAME SELECT * FROM run_1;
DROP TABLE run_1;

ALTER TABLE step RENAME TO step_1;
CREATE TABLE step (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    operator VARCHAR NOT NULL,
    settings JSON NOT NULL,
    origin VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (origin IN ('round', 'applied', 'imported'))
);
COMMENT ON TABLE step IS 'The steps of each round with their resolved settings';
COMMENT ON COLUMN step.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN step.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN step.step IS 'Name of the step in the round';
COMMENT ON COLUMN step.position IS 'Place in the round, from 1';
COMMENT ON COLUMN step.operator IS 'Name of the operator';
COMMENT ON COLUMN step.settings IS 'Resolved settings';
COMMENT ON COLUMN step.origin IS 'round: the recipe''s; applied: afterwards; imported: from a file';
COMMENT ON COLUMN step.created_at IS 'When the row was made, UTC';
INSERT INTO step BY NAME SELECT *, 'round' AS origin FROM step_1;
DROP TABLE step_1;

ALTER TABLE prompt RENAME TO prompt_1;
CREATE TABLE prompt (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    messages_hash VARCHAR NOT NULL,
    details_hash VARCHAR NOT NULL,
    tools_hash VARCHAR,
    parent_id UUID,
    completion_id UUID,
    tags VARCHAR[] NOT NULL,
    source VARCHAR NOT NULL,
    licence VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split IN ('train', 'heldout', 'test'))
);
COMMENT ON TABLE prompt IS 'What is asked, with what its checker needs';
COMMENT ON COLUMN prompt.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN prompt.round IS 'Round that proposed it; 0 where it was there before';
COMMENT ON COLUMN prompt.split IS 'train, heldout or test';
COMMENT ON COLUMN prompt.position IS 'Place in its split, from 0';
COMMENT ON COLUMN prompt.messages_hash IS 'content.hash of the JSON list of messages';
COMMENT ON COLUMN prompt.details_hash IS 'content.hash of verify, answer, reference, privileged';
COMMENT ON COLUMN prompt.tools_hash IS 'content.hash of the JSON list of tools that may be called';
COMMENT ON COLUMN prompt.parent_id IS 'prompt.id that it was evolved from';
COMMENT ON COLUMN prompt.completion_id IS 'completion.id that proposed it';
COMMENT ON COLUMN prompt.tags IS 'key:value labels';
COMMENT ON COLUMN prompt.source IS 'Where it comes from';
COMMENT ON COLUMN prompt.licence IS 'Licence of the source';
COMMENT ON COLUMN prompt.created_at IS 'When the row was made, UTC';
INSERT INTO prompt BY NAME SELECT * FROM prompt_1;
DROP TABLE prompt_1;

ALTER TABLE completion RENAME TO completion_1;
CREATE TABLE completion (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    prompt_id UUID NOT NULL,
    rendered_prompt_id UUID,
    parent_id UUID,
    critique_id UUID,
    slot INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    role VARCHAR NOT NULL,
    revision VARCHAR,
    model VARCHAR,
    text_hash VARCHAR NOT NULL,
    thinking_hash VARCHAR,
    turns_hash VARCHAR,
    payload_hash VARCHAR NOT NULL,
    finish_reason VARCHAR NOT NULL,
    temperature DOUBLE,
    sampling JSON NOT NULL,
    tokens INTEGER,
    seconds DOUBLE NOT NULL,
    training_run_id UUID,
    optimizer_step INTEGER,
    source VARCHAR,
    licence VARCHAR,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split IN ('train', 'heldout', 'test')),
    CHECK (finish_reason IN ('stop', 'length', 'tool_calls', 'refused'))
);
COMMENT ON TABLE completion IS 'One answer of a policy';
COMMENT ON COLUMN completion.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN completion.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN completion.step IS 'Name of the step in the round';
COMMENT ON COLUMN completion.split IS 'train, heldout or test';
COMMENT ON COLUMN completion.prompt_id IS 'prompt.id';
COMMENT ON COLUMN completion.rendered_prompt_id IS 'rendered_prompt.id: what the policy saw; NULL if imported';
COMMENT ON COLUMN completion.parent_id IS 'completion.id that this one rewrites';
COMMENT ON COLUMN completion.critique_id IS 'judgement.id of the critique that it answers';
COMMENT ON COLUMN completion.slot IS 'Which of the k answers to the prompt, from 0';
COMMENT ON COLUMN completion.attempt IS 'From 0';
COMMENT ON COLUMN completion.role IS 'Role that spoke';
COMMENT ON COLUMN completion.revision IS 'Content hash of the weights that spoke; NULL if unknown';
COMMENT ON COLUMN completion.model IS 'Name of the model, where it is none of ours';
COMMENT ON COLUMN completion.text_hash IS 'content.hash of the answer, without thinking';
COMMENT ON COLUMN completion.thinking_hash IS 'content.hash of what was thought before the answer';
COMMENT ON COLUMN completion.turns_hash IS 'content.hash of the JSON list of messages, if several turns';
COMMENT ON COLUMN completion.payload_hash IS 'Hash of token ids and finish reason';
COMMENT ON COLUMN completion.finish_reason IS 'stop; length where it was cut; tool_calls or refused';
COMMENT ON COLUMN completion.temperature IS '0 is greedy; NULL if unknown';
COMMENT ON COLUMN completion.sampling IS 'All sampling settings';
COMMENT ON COLUMN completion.tokens IS 'Tokens of the answer, end token included; NULL if unknown';
COMMENT ON COLUMN completion.seconds IS 'Its share of the wall time of its chunk';
COMMENT ON COLUMN completion.training_run_id IS 'training_run.id that sampled it while it trained';
COMMENT ON COLUMN completion.optimizer_step IS 'Its optimizer step, from 1';
COMMENT ON COLUMN completion.source IS 'Where it comes from, if imported';
COMMENT ON COLUMN completion.licence IS 'Licence of the source';
COMMENT ON COLUMN completion.created_at IS 'When the row was made, UTC';
INSERT INTO completion BY NAME SELECT * FROM completion_1;
DROP TABLE completion_1;

ALTER TABLE completion_tokens RENAME TO completion_tokens_1;
CREATE TABLE completion_tokens (
    completion_id UUID NOT NULL,
    round INTEGER NOT NULL,
    token_ids INTEGER[] NOT NULL,
    logprobs FLOAT[] NOT NULL,
    rewards FLOAT[],
    trainable BOOLEAN[],
    answer_from INTEGER,
    CHECK (len(token_ids) = len(logprobs)),
    CHECK (trainable IS NULL OR len(trainable) = len(token_ids)),
    CHECK (rewards IS NULL OR len(rewards) = len(token_ids))
);
COMMENT ON TABLE completion_tokens IS 'Token ids and raw log-probs as they were sampled';
COMMENT ON COLUMN completion_tokens.completion_id IS 'completion.id';
COMMENT ON COLUMN completion_tokens.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN completion_tokens.token_ids IS 'As sampled, end token included';
COMMENT ON COLUMN completion_tokens.logprobs IS 'Natural log, T = 1, before top-k and top-p';
COMMENT ON COLUMN completion_tokens.rewards IS 'What each token earned, for on-policy losses';
COMMENT ON COLUMN completion_tokens.trainable IS 'Tokens that the policy spoke itself; NULL: all';
COMMENT ON COLUMN completion_tokens.answer_from IS 'Index of the first token after thinking; NULL: 0';
INSERT INTO completion_tokens BY NAME SELECT * FROM completion_tokens_1;
DROP TABLE completion_tokens_1;

CREATE TABLE token_distribution (
    completion_id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    revision VARCHAR NOT NULL,
    context VARCHAR NOT NULL,
    logprobs FLOAT[] NOT NULL,
    top_ids INTEGER[][],
    top_logprobs FLOAT[][],
    created_at TIMESTAMPTZ NOT NULL,
    CHECK ((top_ids IS NULL) = (top_logprobs IS NULL)),
    CHECK (top_ids IS NULL OR len(top_ids) = len(logprobs)),
    CHECK (top_ids IS NULL OR len(top_logprobs) = len(logprobs))
);
COMMENT ON TABLE token_distribution IS 'What weights thought of the tokens of a completion: a teacher''s, or a reference''s';
COMMENT ON COLUMN token_distribution.completion_id IS 'completion.id';
COMMENT ON COLUMN token_distribution.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN token_distribution.step IS 'Name of the step in the round';
COMMENT ON COLUMN token_distribution.revision IS 'Content hash of the weights that were asked';
COMMENT ON COLUMN token_distribution.context IS 'Hash of the role''s context; empty for the plain prompt';
COMMENT ON COLUMN token_distribution.logprobs IS 'Natural log of each token of the completion';
COMMENT ON COLUMN token_distribution.top_ids IS 'Most likely token ids at each place, likeliest first';
COMMENT ON COLUMN token_distribution.top_logprobs IS 'Their natural logs';
COMMENT ON COLUMN token_distribution.created_at IS 'When the row was made, UTC';

ALTER TABLE judgement RENAME TO judgement_1;
CREATE TABLE judgement (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    mode VARCHAR NOT NULL,
    completion_id UUID,
    presented UUID[],
    ranks INTEGER[],
    judge VARCHAR NOT NULL,
    judge_revision VARCHAR NOT NULL,
    role VARCHAR,
    revision VARCHAR,
    rubric_id VARCHAR,
    aspect VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    status VARCHAR NOT NULL,
    value DOUBLE,
    probability DOUBLE,
    raw DOUBLE,
    parts JSON NOT NULL,
    partial BOOLEAN,
    text_hash VARCHAR,
    reply_hash VARCHAR,
    tokens_in INTEGER,
    tokens_out INTEGER,
    dollars DOUBLE,
    seconds DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (mode IN ('score', 'compare', 'critique')),
    CHECK (status IN ('ok', 'parse_error', 'refused', 'timeout', 'error', 'too_big', 'not_applicable')),
    CHECK ((mode = 'compare') = (presented IS NOT NULL)),
    CHECK ((mode = 'compare') = (completion_id IS NULL)),
    CHECK (status = 'ok' OR (value IS NULL AND ranks IS NULL)),
    CHECK (mode <> 'score' OR status <> 'ok' OR value IS NOT NULL),
    CHECK (mode <> 'compare' OR status <> 'ok' OR len(ranks) = len(presented)),
    CHECK (value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)),
    CHECK (probability IS NULL OR (probability >= 0 AND probability <= 1)),
    CHECK (raw IS NULL OR isfinite(raw))
);
COMMENT ON TABLE judgement IS 'What one judge said of a completion, or of several beside each other; a failure has no value';
COMMENT ON COLUMN judgement.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN judgement.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN judgement.step IS 'Name of the step in the round';
COMMENT ON COLUMN judgement.mode IS 'score, compare or critique';
COMMENT ON COLUMN judgement.completion_id IS 'completion.id; NULL where several were compared';
COMMENT ON COLUMN judgement.presented IS 'completion.ids in the order in which the judge saw them';
COMMENT ON COLUMN judgement.ranks IS 'Rank of each presented one, 1 is best, equal is a tie';
COMMENT ON COLUMN judgement.judge IS 'Name of the judge';
COMMENT ON COLUMN judgement.judge_revision IS 'Hash of the judge''s kind, settings and version';
COMMENT ON COLUMN judgement.role IS 'Role that spoke as the judge';
COMMENT ON COLUMN judgement.revision IS 'Content hash of the weights that judged';
COMMENT ON COLUMN judgement.rubric_id IS 'rubric.id';
COMMENT ON COLUMN judgement.aspect IS 'What was looked at; empty for the whole';
COMMENT ON COLUMN judgement.attempt IS 'From 0';
COMMENT ON COLUMN judgement.status IS 'ok, or why there is no value';
COMMENT ON COLUMN judgement.value IS 'In [0, 1]; of two compared: how far the first one won';
COMMENT ON COLUMN judgement.probability IS 'Probability of the verdict, where the judge gives one';
COMMENT ON COLUMN judgement.raw IS 'The judge''s own number';
COMMENT ON COLUMN judgement.parts IS 'Named parts of the verdict';
COMMENT ON COLUMN judgement.partial IS 'Whether members of a jury were missing';
COMMENT ON COLUMN judgement.text_hash IS 'content.hash of the judge''s words: reasons, critique';
COMMENT ON COLUMN judgement.reply_hash IS 'content.hash of the raw reply';
COMMENT ON COLUMN judgement.tokens_in IS 'Tokens that the judge read';
COMMENT ON COLUMN judgement.tokens_out IS 'Tokens that the judge wrote';
COMMENT ON COLUMN judgement.dollars IS 'Its share of what was paid';
COMMENT ON COLUMN judgement.seconds IS 'Its share of the wall time of its chunk';
COMMENT ON COLUMN judgement.created_at IS 'When the row was made, UTC';
INSERT INTO judgement BY NAME SELECT *, 'score' AS mode, '' AS aspect FROM judgement_1;
DROP TABLE judgement_1;

CREATE TABLE vote (
    judgement_id UUID NOT NULL,
    round INTEGER NOT NULL,
    judge VARCHAR NOT NULL,
    judge_revision VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    value DOUBLE,
    weight DOUBLE,
    CHECK (status IN ('ok', 'parse_error', 'refused', 'timeout', 'error', 'too_big', 'not_applicable')),
    CHECK (value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)),
    CHECK (weight IS NULL OR isfinite(weight))
);
COMMENT ON TABLE vote IS 'What each member of a jury said, or each answer of a majority vote';
COMMENT ON COLUMN vote.judgement_id IS 'judgement.id of the jury''s verdict';
COMMENT ON COLUMN vote.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN vote.judge IS 'Name of the member';
COMMENT ON COLUMN vote.judge_revision IS 'Hash of the member';
COMMENT ON COLUMN vote.status IS 'ok, or why it did not vote';
COMMENT ON COLUMN vote.value IS 'In [0, 1]';
COMMENT ON COLUMN vote.weight IS 'Weight of the vote; NULL where it did not count';

CREATE TABLE rubric (
    id VARCHAR NOT NULL,
    round INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    text_hash VARCHAR NOT NULL,
    aspects VARCHAR[] NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE rubric IS 'What a judge was told to look at';
COMMENT ON COLUMN rubric.id IS 'Content hash of text and aspects';
COMMENT ON COLUMN rubric.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN rubric.name IS 'Name of the rubric';
COMMENT ON COLUMN rubric.text_hash IS 'content.hash of its text';
COMMENT ON COLUMN rubric.aspects IS 'Names of its aspects';
COMMENT ON COLUMN rubric.created_at IS 'When the row was made, UTC';

CREATE TABLE feedback (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    prompt_id UUID NOT NULL,
    kind VARCHAR NOT NULL,
    completion_id UUID NOT NULL,
    other_id UUID,
    value DOUBLE,
    text_hash VARCHAR,
    author VARCHAR,
    source VARCHAR NOT NULL,
    licence VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (kind IN ('thumbs', 'rating', 'preference', 'edit', 'demonstration')),
    CHECK (value IS NULL OR (isfinite(value) AND value >= 0 AND value <= 1)),
    CHECK ((kind IN ('preference', 'edit')) = (other_id IS NOT NULL))
);
COMMENT ON TABLE feedback IS 'What people gave: thumbs, ratings, preferences, edits, demonstrations';
COMMENT ON COLUMN feedback.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN feedback.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN feedback.step IS 'Name of the step in the round';
COMMENT ON COLUMN feedback.prompt_id IS 'prompt.id';
COMMENT ON COLUMN feedback.kind IS 'thumbs, rating, preference, edit or demonstration';
COMMENT ON COLUMN feedback.completion_id IS 'completion.id that it is about';
COMMENT ON COLUMN feedback.other_id IS 'completion.id that lost, or that was edited';
COMMENT ON COLUMN feedback.value IS 'In [0, 1]: 1 is thumbs up or the best rating';
COMMENT ON COLUMN feedback.text_hash IS 'content.hash of a remark';
COMMENT ON COLUMN feedback.author IS 'Who gave it, as the file says';
COMMENT ON COLUMN feedback.source IS 'Where it comes from';
COMMENT ON COLUMN feedback.licence IS 'Licence of the source';
COMMENT ON COLUMN feedback.created_at IS 'When the row was made, UTC';

CREATE TABLE admission (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    judge VARCHAR NOT NULL,
    judge_revision VARCHAR NOT NULL,
    exam VARCHAR NOT NULL,
    exam_hash VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    n INTEGER NOT NULL,
    accuracy DOUBLE,
    ci_low DOUBLE,
    ci_high DOUBLE,
    swap_consistency DOUBLE,
    detail JSON NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (verdict IN ('admitted', 'refused', 'unproven'))
);
COMMENT ON TABLE admission IS 'An exam of a judge on labelled rows, and whether its labels may train';
COMMENT ON COLUMN admission.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN admission.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN admission.step IS 'Name of the step in the round';
COMMENT ON COLUMN admission.judge IS 'Name of the judge';
COMMENT ON COLUMN admission.judge_revision IS 'Hash of the judge';
COMMENT ON COLUMN admission.exam IS 'Name of the labelled rows';
COMMENT ON COLUMN admission.exam_hash IS 'Content hash of the labelled rows';
COMMENT ON COLUMN admission.verdict IS 'admitted: its labels may train; refused; or unproven';
COMMENT ON COLUMN admission.reason IS 'One line for people';
COMMENT ON COLUMN admission.n IS 'Labelled rows with a verdict';
COMMENT ON COLUMN admission.accuracy IS 'Share of verdicts that agree with the label';
COMMENT ON COLUMN admission.ci_low IS 'Lower end of its 95 % interval';
COMMENT ON COLUMN admission.ci_high IS 'Upper end of its 95 % interval';
COMMENT ON COLUMN admission.swap_consistency IS 'Share of verdicts that survive the other order';
COMMENT ON COLUMN admission.detail IS 'Every other number: baselines, strata, statuses';
COMMENT ON COLUMN admission.created_at IS 'When the row was made, UTC';

ALTER TABLE pair RENAME TO pair_1;
CREATE TABLE pair (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    split VARCHAR NOT NULL,
    prompt_id UUID NOT NULL,
    chosen_id UUID NOT NULL,
    rejected_id UUID NOT NULL,
    judge VARCHAR NOT NULL,
    judge_revision VARCHAR,
    rule VARCHAR NOT NULL,
    margin DOUBLE NOT NULL,
    probability DOUBLE NOT NULL,
    weight DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (split = 'train'),
    CHECK (chosen_id <> rejected_id),
    CHECK (isfinite(margin)),
    CHECK (probability >= 0 AND probability <= 1),
    CHECK (isfinite(weight) AND weight >= 0)
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
COMMENT ON COLUMN pair.judge_revision IS 'Hash of that judge';
COMMENT ON COLUMN pair.rule IS 'Pairing rule';
COMMENT ON COLUMN pair.margin IS 'Value of chosen less value of rejected';
COMMENT ON COLUMN pair.probability IS 'How sure the label is';
COMMENT ON COLUMN pair.weight IS 'Weight of its loss';
COMMENT ON COLUMN pair.created_at IS 'When the row was made, UTC';
INSERT INTO pair BY NAME SELECT *, 1.0 AS weight FROM pair_1;
DROP TABLE pair_1;

ALTER TABLE training_row RENAME TO training_row_1;
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
COMMENT ON COLUMN training_row.reward IS 'What the answer earned, for on-policy losses';
COMMENT ON COLUMN training_row.advantage IS 'Reward beside that of its group';
COMMENT ON COLUMN training_row.ranked IS 'completion.ids best first, for listwise losses';
COMMENT ON COLUMN training_row.token_weights IS 'Weight of each token of the completion';
COMMENT ON COLUMN training_row.tokens_from IS 'sampled: ids as the policy gave them; encoded: from text';
COMMENT ON COLUMN training_row.reference_chosen IS 'Reference log-prob of chosen, nats, summed';
COMMENT ON COLUMN training_row.reference_rejected IS 'Reference log-prob of rejected, nats, summed';
COMMENT ON COLUMN training_row.reference_from IS 'stored: kept at sampling; scored: one forward pass';
COMMENT ON COLUMN training_row.created_at IS 'When the row was made, UTC';
INSERT INTO training_row BY NAME SELECT * FROM training_row_1;
DROP TABLE training_row_1;

ALTER TABLE revision RENAME TO revision_1;
CREATE TABLE revision (
    id VARCHAR NOT NULL,
    round INTEGER NOT NULL,
    parent VARCHAR,
    folder VARCHAR NOT NULL,
    training_run_id UUID,
    base VARCHAR,
    precision VARCHAR,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE revision IS 'A set of weights';
COMMENT ON COLUMN revision.id IS 'Content hash of the weights';
COMMENT ON COLUMN revision.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN revision.parent IS 'revision.id that it was trained from';
COMMENT ON COLUMN revision.folder IS 'Relative to the run''s folder';
COMMENT ON COLUMN revision.training_run_id IS 'training_run.id that made it';
COMMENT ON COLUMN revision.base IS 'revision.id under an adapter';
COMMENT ON COLUMN revision.precision IS 'Precision in which it is loaded; NULL is float32';
COMMENT ON COLUMN revision.created_at IS 'When the row was made, UTC';
INSERT INTO revision BY NAME SELECT * FROM revision_1;
DROP TABLE revision_1;

ALTER TABLE decision RENAME TO decision_1;
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
    level DOUBLE,
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
COMMENT ON COLUMN decision.ci_low IS 'Lower end of its interval';
COMMENT ON COLUMN decision.ci_high IS 'Upper end of its interval';
COMMENT ON COLUMN decision.n IS 'Paired prompts';
COMMENT ON COLUMN decision.level IS 'Coverage of the interval';
COMMENT ON COLUMN decision.heldout_reads IS 'How often a gate has read these prompts, this one included';
COMMENT ON COLUMN decision.guards IS 'Each guard with its numbers and whether it held';
COMMENT ON COLUMN decision.created_at IS 'When the row was made, UTC';
INSERT INTO decision BY NAME SELECT * FROM decision_1;
DROP TABLE decision_1;

CREATE TABLE reservation (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    role VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    tokens BIGINT NOT NULL,
    dollars DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE reservation IS 'The most that a chunk may cost, set aside before its first call';
COMMENT ON COLUMN reservation.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN reservation.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN reservation.step IS 'Name of the step in the round';
COMMENT ON COLUMN reservation.role IS 'Role that will speak';
COMMENT ON COLUMN reservation.model IS 'Name of the model';
COMMENT ON COLUMN reservation.tokens IS 'Most tokens, read and written';
COMMENT ON COLUMN reservation.dollars IS 'Most dollars';
COMMENT ON COLUMN reservation.created_at IS 'When the row was made, UTC';

CREATE TABLE charge (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    reservation_id UUID,
    role VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    host VARCHAR,
    purpose VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    tokens_in BIGINT NOT NULL,
    tokens_cached BIGINT NOT NULL,
    tokens_out BIGINT NOT NULL,
    dollars DOUBLE,
    price VARCHAR,
    seconds DOUBLE NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE charge IS 'One call to a server, whether or not its reply could be used';
COMMENT ON COLUMN charge.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN charge.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN charge.step IS 'Name of the step in the round';
COMMENT ON COLUMN charge.reservation_id IS 'reservation.id that covers it';
COMMENT ON COLUMN charge.role IS 'Role that spoke';
COMMENT ON COLUMN charge.model IS 'Name of the model';
COMMENT ON COLUMN charge.host IS 'Host that was called';
COMMENT ON COLUMN charge.purpose IS 'sample, judge or score';
COMMENT ON COLUMN charge.status IS 'ok, or what went wrong';
COMMENT ON COLUMN charge.tokens_in IS 'Tokens read';
COMMENT ON COLUMN charge.tokens_cached IS 'Of these, from the server''s cache';
COMMENT ON COLUMN charge.tokens_out IS 'Tokens written';
COMMENT ON COLUMN charge.dollars IS 'What it cost; NULL where no price is known';
COMMENT ON COLUMN charge.price IS 'Where the price is from';
COMMENT ON COLUMN charge.seconds IS 'Wall seconds';
COMMENT ON COLUMN charge.created_at IS 'When the row was made, UTC';

ALTER TABLE content RENAME TO content_1;
CREATE TABLE content (
    hash VARCHAR NOT NULL,
    round INTEGER NOT NULL,
    text VARCHAR NOT NULL,
    forgotten_at TIMESTAMPTZ
);
COMMENT ON TABLE content IS 'Payload text by hash, once a round, so that it can be forgotten while rows and ids stay';
COMMENT ON COLUMN content.hash IS 'Content hash of the text';
COMMENT ON COLUMN content.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN content.text IS 'The text; empty where it was forgotten';
COMMENT ON COLUMN content.forgotten_at IS 'When the text was blanked, UTC';
INSERT INTO content BY NAME SELECT * FROM content_1;
DROP TABLE content_1;
