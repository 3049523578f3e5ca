-- What a role proposed, and why it became a prompt or did not.

CREATE TABLE proposal (
    id UUID NOT NULL,
    round INTEGER NOT NULL,
    step VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    completion_id UUID NOT NULL,
    seeds UUID[] NOT NULL,
    answer_id UUID,
    text_hash VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL,
    nearest_id UUID,
    similarity DOUBLE,
    measure VARCHAR,
    prompt_id UUID,
    created_at TIMESTAMPTZ NOT NULL,
    CHECK (verdict IN ('kept', 'known', 'alike', 'leaks', 'short', 'long', 'empty', 'cut')),
    CHECK ((verdict = 'kept') = (prompt_id IS NOT NULL)),
    CHECK (similarity >= 0 AND similarity <= 1)
);
COMMENT ON TABLE proposal IS 'What a propose step was told by a role, read as a prompt, and what became of it';
COMMENT ON COLUMN proposal.id IS 'Hash of what was asked for; a retry has the same id';
COMMENT ON COLUMN proposal.round IS 'From 1; 0 is the baseline before the first round';
COMMENT ON COLUMN proposal.step IS 'Name of the step in the round';
COMMENT ON COLUMN proposal.position IS 'Place among the calls of its step, from 0';
COMMENT ON COLUMN proposal.completion_id IS 'completion.id of what the role said';
COMMENT ON COLUMN proposal.seeds IS 'prompt.ids that it was shown';
COMMENT ON COLUMN proposal.answer_id IS 'completion.id of the failed answer that it was shown';
COMMENT ON COLUMN proposal.text_hash IS 'content.hash of the prompt as it was read';
COMMENT ON COLUMN proposal.verdict IS 'kept, or why it was refused';
COMMENT ON COLUMN proposal.nearest_id IS 'prompt.id of the prompt that it is most like';
COMMENT ON COLUMN proposal.similarity IS 'How alike the two are';
COMMENT ON COLUMN proposal.measure IS 'What the similarity is: rouge_l, minhash, ngrams or equal';
COMMENT ON COLUMN proposal.prompt_id IS 'prompt.id that it became; NULL where it was refused';
COMMENT ON COLUMN proposal.created_at IS 'When the row was made, UTC';
