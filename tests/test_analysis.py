"""Numbers from rows: the paired bootstrap against scipy and by simulation, and the small measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from redistill.store.analysis import distinct_share, paired_bootstrap, smallest_gain

VALUES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
    min_size=1,
    max_size=30,
)
WORDS = st.lists(st.text("ab ", max_size=12), max_size=6)


def _difference(a: list[float], b: list[float]) -> float:
    return float(np.mean(b) - np.mean(a))


@pytest.mark.parametrize("n", [20, 100, 400])
def test_the_interval_is_scipys(n: int) -> None:
    """Mean and percentile interval agree with `scipy.stats.bootstrap(paired=True)`."""
    generator = np.random.default_rng(n)
    before = (generator.random(n) < 0.4).astype(float)
    after = np.where(generator.random(n) < 0.3, generator.random(n), before)
    ours = paired_bootstrap(list(before), list(after), seed="s")
    theirs = stats.bootstrap(
        (after, before),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    noise = 4 * np.std(after - before) / math.sqrt(n) / math.sqrt(10_000 * 0.025)
    assert ours.delta == pytest.approx((after - before).mean())
    assert (ours.before, ours.after, ours.n) == (before.mean(), after.mean(), n)
    assert ours.ci_low == pytest.approx(theirs.low, abs=noise)
    assert ours.ci_high == pytest.approx(theirs.high, abs=noise)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 300 simulated sets of 100 prompts, about 95 % of the 95 % intervals hold the true gain."""
    generator = np.random.default_rng(7)
    truth = 0.1
    held = 0
    for index in range(300):
        before = generator.random(100) < 0.4
        # Of the prompts, 20 % are won and 10 % are lost.
        draw = generator.random(100)
        after = np.where(draw < 0.2, 1.0, np.where(draw < 0.3, -1.0, 0.0)) + before
        found = paired_bootstrap(list(before), list(after), seed=str(index), samples=1000)
        held += found.ci_low <= truth <= found.ci_high
    # Binomial noise of 300 draws is 1.3 %; a percentile interval covers a little less than it says.
    assert 0.92 <= held / 300 <= 0.98


@given(VALUES)
def test_swapping_the_sides_swaps_the_sign(pairs: list[tuple[float, float]]) -> None:
    """Champion against challenger and the other way round say the same thing."""
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one = paired_bootstrap(a, b, seed="s", samples=300)
    other = paired_bootstrap(b, a, seed="s", samples=300)
    assert (one.before, one.after) == (other.after, other.before)
    assert one.delta == pytest.approx(-other.delta)
    assert one.ci_low == pytest.approx(-other.ci_high)
    assert one.ci_high == pytest.approx(-other.ci_low)


@given(VALUES)
def test_the_interval_is_the_same_each_time_and_holds_the_mean(
    pairs: list[tuple[float, float]],
) -> None:
    """Equal seeds give equal intervals; a wider level gives no narrower one."""
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one = paired_bootstrap(a, b, seed="s", samples=300)
    assert one == paired_bootstrap(a, b, seed="s", samples=300)
    assert one.delta == pytest.approx(_difference(a, b))
    wide = paired_bootstrap(a, b, seed="s", samples=300, level=0.99)
    assert wide.ci_low <= one.ci_low <= one.ci_high <= wide.ci_high


def test_equal_sides_have_no_difference() -> None:
    """No change is an interval of nothing, never a proof."""
    found = paired_bootstrap([0.0, 1.0, 1.0], [0.0, 1.0, 1.0], seed="s")
    assert (found.delta, found.ci_low, found.ci_high) == (0, 0, 0)


def test_blocks_of_resamples_are_resamples() -> None:
    """A set too large for one block still gives the interval of its mean."""
    values = list(np.random.default_rng(0).normal(0.1, 1.0, 50_000))
    found = paired_bootstrap([0.0] * 50_000, values, seed="s", samples=200)
    assert found.ci_high - found.ci_low == pytest.approx(2 * 1.96 / math.sqrt(50_000), rel=0.25)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], []), ([1.0], [1.0, 0.0])])
def test_sides_that_make_no_pairs_are_refused(before: list[float], after: list[float]) -> None:
    """No pair is no evidence, and is said so."""
    with pytest.raises(ValueError, match="make no pairs"):
        paired_bootstrap(before, after, seed="s")


@given(WORDS)
def test_distinct_share_is_a_share(texts: list[str]) -> None:
    """It lies in [0, 1], does not depend on order or case, and no words give 0."""
    share = distinct_share(texts)
    assert 0 <= share <= 1
    assert share == distinct_share(texts[::-1]) == distinct_share([t.upper() for t in texts])
    assert (share == 0) == (not "".join(texts).split())


@given(WORDS)
def test_saying_it_again_halves_the_share(texts: list[str]) -> None:
    """Every answer twice has the same n-grams twice."""
    assert distinct_share(texts * 2) == pytest.approx(distinct_share(texts) / 2)


def test_distinct_share_by_hand() -> None:
    """Words and bigrams count together; all different is 1."""
    assert distinct_share(["a b c"]) == 1
    assert distinct_share(["a b", "a b"]) == 0.5
    assert distinct_share(["a a a"]) == pytest.approx(2 / 5)
    assert distinct_share(["a b c"], n=1) == 1


@given(st.integers(1, 10_000), st.floats(0.01, 1))
def test_more_prompts_show_smaller_gains(n: int, discordant: float) -> None:
    """The gain that can be seen falls with the prompts and rises with the noise."""
    here = smallest_gain(n, discordant=discordant)
    assert 0 < smallest_gain(n + 1, discordant=discordant) < here
    assert here <= smallest_gain(n, discordant=1.0)
    assert smallest_gain(4 * n, discordant=discordant) == pytest.approx(here / 2)


def test_no_prompts_show_nothing() -> None:
    """Without prompts no gain is large enough."""
    assert smallest_gain(0) == math.inf
