"""Comparisons as pairs: what the verdicts on answers that were shown beside each other say of any two.

A showing of several answers is a duel of every two of them. The duels of two answers, in whichever order
they were shown, are averaged: a verdict that turns with the order ends at one half. Who abstained says
nothing, and a tie counts one half and moves no label across it.
"""

# ruff: noqa: S608 - pieces of constants of this module; whatever comes from outside is bound
from __future__ import annotations

from typing import NamedTuple

from .sources import PLACED, SOURCE

SURE = 0.9
"""What a bare vote, one without a probability, counts as where effects are taken out: certainty has
infinite log-odds, which nothing moves."""
CLIP = 0.01
"""Where effects are taken out, probabilities are cut to within [CLIP, 1 - CLIP]."""


class Shift(NamedTuple):
    """Log-odds of what is no merit, taken out of every duel: see `store/bias.py`."""

    position: float = 0.0
    """Being shown first and not second."""
    length: float = 0.0
    """Being e times as long."""
    own: float = 0.0
    """Being written by the judge itself."""


NOTHING = Shift()

# Of the showings in the rounds asked for, one row for each two answers, `one` shown before `two`. Only the
# last attempt with a verdict counts, as with values. `position` is 1 for the first against the last of a
# list. Lengths are in characters; a text that was forgotten has none, and is taken to be as long as the
# other one.
DUELS = """
shown AS (
    SELECT round, presented,
           arg_max({{'ranks': ranks, 'probability': probability, 'role': role, 'revision': revision}},
                   epoch_us(created_at) * 1024 + attempt) AS said
    FROM judgement
    WHERE round {rounds} AND judge = $judge AND mode = 'compare' AND aspect = '' AND ranks IS NOT NULL
    GROUP BY round, presented
),
duel AS (
    SELECT s.round, s.presented[a.i] AS one, s.presented[b.j] AS two, s.said.role, s.said.revision,
           (b.j - a.i) / (len(s.presented) - 1) AS position,
           sign(s.said.ranks[b.j] - s.said.ranks[a.i]) AS won,
           CASE WHEN len(s.presented) = 2 THEN s.said.probability END AS probability
    FROM shown s, unnest(range(1, len(s.presented))) a(i), unnest(range(a.i + 1, len(s.presented) + 1)) b(j)
),
met AS (
    SELECT d.one, d.two, d.position, d.won, x.prompt_id,
           d.probability IS NULL AS bare,
           CASE WHEN d.won = 0 THEN 0.5 ELSE coalesce(d.probability, (d.won + 1) / 2) END AS share,
           CASE WHEN t.forgotten_at IS NULL AND u.forgotten_at IS NULL
                THEN greatest(-2, least(2, ln((len(t.text) + 1) / (len(u.text) + 1)))) ELSE 0 END AS length,
           coalesce(x.role = d.role OR x.revision = d.revision, false)::INTEGER
             - coalesce(y.role = d.role OR y.revision = d.revision, false)::INTEGER AS own
    FROM duel d
    JOIN completion x ON x.id = d.one AND x.round = d.round AND x.split = 'train'
    JOIN completion y ON y.id = d.two AND y.round = d.round AND y.prompt_id = x.prompt_id
    JOIN content t ON t.hash = x.text_hash AND t.round = x.round
    JOIN content u ON u.hash = y.text_hash AND u.round = y.round
    WHERE x.text_hash <> y.text_hash
      -- Said again of each table, so that blocks of other rounds are not read.
      AND x.round {rounds} AND y.round {rounds} AND t.round {rounds} AND u.round {rounds}
)
"""

# A tie is nobody's merit, whatever would have tipped it. Bare votes can lose all their worth, alone and
# together, but say never the opposite of what they said, and what turned with the order stays a tie: they
# tell of no distance that an effect could be set against. Means are rounded, so that no pair hangs on the
# order of a sum.
_WON = (
    "WITH "
    + SOURCE
    + ","
    + PLACED
    + ","
    + DUELS.format(rounds="= $round")
    + """,
moved AS (
    SELECT *, ln(kept / (1 - kept)) - ($position * position + $length * length + $own * own) AS log_odds
    FROM (SELECT *, CASE WHEN bare THEN 0.5 + (share - 0.5) * (2 * $sure - 1)
                         ELSE greatest($clip, least(1 - $clip, share)) END AS kept FROM met)
),
freed AS (
    SELECT prompt_id, one, two, bare, share AS said,
           CASE WHEN won = 0 OR NOT $shifted THEN share
                WHEN NOT bare THEN 1 / (1 + exp(-log_odds))
                WHEN won > 0 THEN greatest(0.5, 1 / (1 + exp(-log_odds)))
                ELSE least(0.5, 1 / (1 + exp(-log_odds))) END AS share
    FROM moved
),
side AS (
    SELECT prompt_id, one AS id, two AS other, bare, said, share FROM freed
    UNION ALL
    SELECT prompt_id, two, one, bare, 1 - said, 1 - share FROM freed
),
folded AS (
    SELECT prompt_id, id, other, bool_and(bare) AS bare, round(avg(said), 9) AS said, round(avg(share), 9) AS share
    FROM side GROUP BY prompt_id, id, other
),
every AS (
    SELECT * REPLACE (CASE WHEN NOT bare THEN share WHEN said > 0.5 THEN greatest(0.5, share)
                           WHEN said < 0.5 THEN least(0.5, share) ELSE 0.5 END AS share)
    FROM folded
),
among AS (
    SELECT * FROM every WHERE id IN (SELECT id FROM source) AND other IN (SELECT id FROM source)
),
worth AS (SELECT id, round(avg(share), 9) AS value FROM among GROUP BY id),
beat AS (
    SELECT e.prompt_id, e.id AS chosen, e.other AS rejected, e.share AS probability, w.value,
           round(w.value - l.value, 9) AS ahead, round(2 * e.share - 1, 9) AS margin,
           md5(e.id::VARCHAR || e.other::VARCHAR) AS drawn
    FROM among e
    JOIN worth w ON w.id = e.id
    JOIN worth l ON l.id = e.other
    JOIN completion c ON c.id = e.id AND c.round = $round
    WHERE e.share > 0.5 AND c.finish_reason = 'stop'
)
"""
)

# Which of the two is the better one the steps say, and where the verdicts agree there is a pair. By text, because of
# equal texts a comparison has shown one.
_PLACED = """
    SELECT e.prompt_id, e.id AS chosen, e.other AS rejected, round(2 * e.share - 1, 9) AS margin,
           e.share AS probability
    FROM every e
    JOIN completion c ON c.id = e.id AND c.round = $round
    JOIN completion o ON o.id = e.other AND o.round = $round
    JOIN placed good ON good.prompt_id = e.prompt_id AND good.text_hash = c.text_hash
    JOIN placed bad ON bad.prompt_id = e.prompt_id AND bad.text_hash = o.text_hash AND bad.place > good.place
    WHERE c.finish_reason = 'stop' AND e.share > 0.5
"""

RULES: dict[str, str] = {
    "contrast": _PLACED,
    "gold_self": _PLACED,
    "best_worst": """
        SELECT prompt_id, best.chosen AS chosen, best.rejected AS rejected, best.ahead AS margin,
               best.probability AS probability
        FROM (
            SELECT prompt_id, max({'ahead': ahead, 'probability': probability, 'drawn': drawn,
                                   'chosen': chosen, 'rejected': rejected}) AS best
            FROM beat WHERE ahead > 0 GROUP BY prompt_id
        )
    """,
    "best_random": """
        SELECT b.prompt_id, b.chosen, b.rejected, b.ahead AS margin, b.probability
        FROM beat b
        JOIN (SELECT prompt_id, arg_max(chosen, (value, md5(chosen::VARCHAR), chosen)) AS chosen
              FROM beat WHERE ahead > 0 GROUP BY prompt_id) best ON best.chosen = b.chosen
        WHERE b.ahead > 0
        QUALIFY row_number() OVER (
            PARTITION BY b.prompt_id ORDER BY md5(b.rejected::VARCHAR || $seed), b.rejected) = 1
    """,
    "correct_incorrect": "SELECT prompt_id, chosen, rejected, margin, probability FROM beat",
    "revised_original": """
        SELECT e.prompt_id, e.id AS chosen, e.other AS rejected, round(2 * e.share - 1, 9) AS margin,
               e.share AS probability
        FROM every e
        JOIN completion c ON c.id = e.id AND c.round = $round
        JOIN completion o ON o.id = e.other AND o.round = $round
        WHERE c.parent_id = e.other AND c.id IN (SELECT id FROM source) AND c.finish_reason = 'stop'
          AND e.share > 0.5
        QUALIFY row_number() OVER (PARTITION BY c.prompt_id, c.text_hash, o.text_hash ORDER BY c.id) = 1
    """,
}
"""By rule, the query of pairs: prompt_id, chosen, rejected, margin, probability."""


def sql(rule: str) -> str:
    """Return the query of a rule."""
    return _WON + RULES[rule]


def parameters(shift: Shift) -> dict[str, float | bool]:
    """Return the parameters that say what is taken out."""
    return {**shift._asdict(), "shifted": any(shift), "sure": SURE, "clip": CLIP}
