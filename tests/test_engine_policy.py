"""The policy whose weights are in another process: what it asks of an engine, and what becomes of one that fails.

The engine is `fake_engine`, the embedded policy behind the same questions; the real one is in `test_vllm`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from fake_engine import FAULT
from planted_cards import plant

from redistill.agents import opening
from redistill.agents.cast import Cast
from redistill.agents.engines import Seat, Vllm, open_engine
from redistill.agents.loop import Place, run
from redistill.agents.opening import adopt, prepared
from redistill.agents.recipe import load_recipe
from redistill.errors import BadInput, EnvironmentProblem, WrongWeights
from redistill.policies import catalog, vllm
from redistill.policies.placement import Card, Placement
from redistill.policies.policy import Policy, Request, Sampling
from redistill.policies.proof import prove
from redistill.policies.revision import Revision
from redistill.policies.transformers import TransformersPolicy
from redistill.policies.vllm import EngineSettings, VllmPolicy
from redistill.store.query import read_rows
from redistill.store.store import Store
from redistill.testing.tiny import make_tiny_revision
from redistill.types import TokenIds

FAKE = EngineSettings(module="fake_engine", stays=True)
PROMPTS = [(5, 6, 7), (9,), tuple(range(10, 60))]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Revision, Revision]:
    """Return a revision and what could have been trained from it."""
    root = tmp_path_factory.mktemp("revisions")
    parent = make_tiny_revision(root, seed=1)
    return parent, make_tiny_revision(root, seed=2, parent=parent.id)


@pytest.fixture(autouse=True)
def _as_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vllm, opening):
        monkeypatch.setattr(module, "check_vllm", lambda: None)


@pytest.fixture
def policy(family: tuple[Revision, Revision], tmp_path: Path) -> Iterator[VllmPolicy]:
    """Return a policy that holds nothing yet."""
    made = VllmPolicy(family[0], settings=FAKE, log=tmp_path / "engine.log")
    yield made
    made.close()


def engine_of(policy: VllmPolicy) -> psutil.Process:
    """Return the process that holds a policy's weights."""
    [found] = [p for p in psutil.Process().children() if "fake_engine" in " ".join(p.cmdline())]
    return found


def test_it_speaks_as_the_embedded_policy(
    policy: VllmPolicy, family: tuple[Revision, Revision]
) -> None:
    """Answers, scores, choices and distributions pass through the process unchanged, empty answers included."""
    embedded = TransformersPolicy(family[0], threads=1)
    for one in (policy, embedded):
        one.load(family[0])
    asked = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    pairs = [((5, 6), (7, 8, 9)), ((5,), ()), ((1, 2, 3), (4,))]
    for sampling in (Sampling(0.0, max_tokens=8), Sampling(0.9, 0.95, 20, 8)):
        assert policy.generate(asked, sampling) == embedded.generate(asked, sampling)
    assert policy.score(pairs) == embedded.score(pairs)
    assert [len(row) for row in policy.recite(pairs)] == [3, 0, 1]
    both = zip(
        policy.choose(PROMPTS, ["A", "B"]), embedded.choose(PROMPTS, ["A", "B"]), strict=True
    )
    for here, there in both:
        assert here == pytest.approx(there, abs=1e-6)
    assert policy.choose(PROMPTS[:1], ["yes", "no"])[0] == pytest.approx(
        embedded.choose(PROMPTS[:1], ["yes", "no"])[0], abs=1e-6
    )
    assert policy.distributions(pairs[::2], 5) == embedded.distributions(pairs[::2], 5)
    assert policy.distributions(pairs[1:2], 5) == [([], [])]


def test_the_engines_context_counts(policy: VllmPolicy, family: tuple[Revision, Revision]) -> None:
    """An engine whose cache holds less than the model could read says so, and a longer prompt is refused."""
    assert policy.context_length == 512
    policy.load(family[0])
    assert policy.context_length == 200
    with pytest.raises(ValueError, match="exceed the context of 200"):
        policy.generate([Request((1,) * 190, 0)], Sampling(max_tokens=11))


def test_an_engine_that_stays_takes_the_next_weights_in_place(
    policy: VllmPolicy, family: tuple[Revision, Revision]
) -> None:
    """One process over a round's loads and releases, each proven; a released policy answers nothing."""
    for revision, before in (family, family[::-1], family):
        policy.load(revision)
        engine = engine_of(policy)
        proof = prove(policy, revision, before)
        assert (proof.verdict, proof.canary, policy.revision) == ("ok", "ok", revision.id)
        policy.release()
        assert policy.revision == ""
        assert engine.is_running()
    policy.close()
    assert not engine.is_running()


def test_an_engine_that_does_not_stay_gives_its_memory_back(
    family: tuple[Revision, Revision], tmp_path: Path
) -> None:
    """After a release there is no process, and the next load starts one."""
    made = VllmPolicy(
        family[0], settings=EngineSettings(module="fake_engine"), log=tmp_path / "log"
    )
    made.load(family[0])
    first = engine_of(made)
    made.release()
    assert not first.is_running()
    made.load(family[1])
    assert engine_of(made).pid != first.pid
    assert prove(made, *family[::-1]).verdict == "ok"
    made.close()


@pytest.mark.parametrize("fault", ["deaf", "stale"])
def test_weights_that_were_not_loaded_are_found(
    policy: VllmPolicy,
    family: tuple[Revision, Revision],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """An engine that keeps the old weights is found, also where only its answers come from them."""
    monkeypatch.setenv(FAULT, fault)
    parent, child = family
    policy.load(parent)
    assert prove(policy, parent, None).verdict == "ok"
    policy.load(child)
    proof = prove(policy, child, parent)
    assert proof.verdict == "wrong"
    assert proof.d_new > 100 * proof.noise


def test_an_engine_that_never_speaks_is_given_up(
    family: tuple[Revision, Revision], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so within the deadline, and its process has ended."""
    monkeypatch.setenv(FAULT, "mute")
    settings = EngineSettings(module="fake_engine", start_seconds=8)
    policy = VllmPolicy(family[0], settings=settings, log=tmp_path / "engine.log")
    with pytest.raises(EnvironmentProblem, match="fake_engine did not answer within"):
        policy.load(family[0])
    assert not [p for p in psutil.Process().children() if "fake_engine" in " ".join(p.cmdline())]
    assert policy.revision == ""


def test_an_engine_that_dies_is_told_with_its_last_words(
    policy: VllmPolicy, family: tuple[Revision, Revision], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the signal and where the log lies; the next load starts another engine."""
    monkeypatch.setenv(FAULT, "mortal")
    policy.load(family[0])
    with pytest.raises(EnvironmentProblem, match=r"fake_engine died of SIGKILL .*engine\.log"):
        policy.generate([Request((1, 2), 0)], Sampling(max_tokens=2))
    monkeypatch.delenv(FAULT)
    policy.load(family[0])
    assert policy.generate([Request((1, 2), 0)], Sampling(max_tokens=2))


def test_an_engine_whose_cache_is_too_small_is_refused(family: tuple[Revision, Revision]) -> None:
    """What would be left out for want of room is told at the start, and not found in the rows; more room is named."""
    settings = EngineSettings(module="fake_engine", needed=201)
    policy = VllmPolicy(family[0], settings=settings)
    with pytest.raises(
        EnvironmentProblem, match=r"holds 200 tokens, and a row may have 201.*cache_gib"
    ):
        policy.load(family[0])
    assert not [p for p in psutil.Process().children() if "fake_engine" in " ".join(p.cmdline())]


@pytest.mark.parametrize(
    ("fault", "told"),
    [("half", "died of SIGKILL"), ("hangs", "did not answer within"), ("odd", "cannot generate")],
)
def test_an_engine_that_fails_in_the_middle(
    family: tuple[Revision, Revision], monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    """Half an answer is a death, silence has an end, and a request that it refuses leaves it up for the next one."""
    monkeypatch.setenv(FAULT, fault)
    monkeypatch.setattr(vllm, "SLOWEST", 1e6)
    policy = VllmPolicy(family[0], settings=EngineSettings(module="fake_engine", start_seconds=60))
    policy.load(family[0])
    policy._settings = EngineSettings(start_seconds=4)
    with pytest.raises(EnvironmentProblem, match=told):
        policy.generate([Request((1, 2), 0)], Sampling(max_tokens=2))
    assert (policy.revision == family[0].id) == (fault == "odd")
    if fault == "odd":
        assert len(policy.score([((1, 2), (3,))])) == 1
    policy.close()


def test_an_engine_that_contradicts_itself_is_wrong(family: tuple[Revision, Revision]) -> None:
    """Right for one row and wrong for several: what it says of itself must not be the measure of what is near."""

    class Torn(TransformersPolicy):
        def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, ...]]:
            found = super().score(pairs)
            return [tuple(x - 0.3 * i for x in row) for i, row in enumerate(found)]

    policy = Torn(family[0], threads=1)
    policy.load(family[0])
    assert prove(policy, family[0], None).verdict == "wrong"
    assert prove(policy, *family).verdict == "wrong"


def cast_of(base: Path, family: tuple[Revision, Revision], policy: VllmPolicy) -> Cast:
    """Return a cast whose student is in an engine, and whose teacher is in this process."""
    for revision in family:
        adopt(revision, base / "revisions")
    policies: dict[str, Policy] = {"student": policy, "teacher": TransformersPolicy(family[1])}
    return Cast(base, family[0].id, {}, policies, {"teacher": family[1]})


@pytest.mark.parametrize("card", [False, True])
def test_an_engine_that_stays_leaves_a_card_to_the_next_speaker(
    tmp_path: Path, policy: VllmPolicy, family: tuple[Revision, Revision], card: bool
) -> None:
    """Where both share a card it is ended before another model loads; without one it stays up."""
    (tmp_path / "revisions").mkdir()
    store, cast = Store(tmp_path), cast_of(tmp_path, family, policy)
    if card:
        cast.placement = Placement(sampler=(Card("GPU-a", 4 << 30, 4 << 30),))

    async def speak() -> None:
        await cast.hold("student", family[0], store, 1)
        engine = engine_of(policy)
        await cast.hold("teacher", family[1], store, 1)
        assert engine.is_running() != card

    asyncio.run(speak())
    cast.close()
    store.close()


def test_wrong_weights_are_told_with_both_distances_and_not_believed_next(
    tmp_path: Path,
    policy: VllmPolicy,
    family: tuple[Revision, Revision],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line has how far it is from both revisions; asked again it is proven again; both verdicts are kept."""
    (tmp_path / "revisions").mkdir()
    store, cast = Store(tmp_path), cast_of(tmp_path, family, policy)

    async def speak() -> None:
        monkeypatch.setenv(FAULT, "deaf")
        await cast.hold("student", family[0], store, 1)
        with pytest.raises(WrongWeights, match=r"nats a token away, .* to what it held before"):
            await cast.hold("student", family[1], store, 1)
        assert policy.revision == ""
        monkeypatch.delenv(FAULT)
        policy.close()
        await cast.hold("student", family[1], store, 1)

    asyncio.run(speak())
    told = store.rows("SELECT detail->>'verdict' AS v FROM event WHERE kind = 'canary' ORDER BY v")
    assert [row["v"] for row in told] == ["ok", "ok", "wrong"]
    cast.close()
    store.close()


def test_an_engine_that_would_keep_the_trainers_card_is_refused(
    tmp_path: Path, family: tuple[Revision, Revision], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one card an engine may stay up with a cache of known size alone."""
    plant(monkeypatch, tmp_path, ("GPU-a", 4000, 4000))
    seat = Seat(Placement(sampler=(Card("GPU-a", 4 << 30, 4 << 30),)), 1, tmp_path / "log")
    with pytest.raises(BadInput, match=r"execution\.vllm\.stays: .*cache_gib"):
        open_engine(family[0], "vllm", Vllm(stays=True), seat, rank=0)
    assert open_engine(family[0], "vllm", Vllm(stays=True, cache_gib=1), seat, rank=0)


def test_an_engine_ends_with_its_parent(family: tuple[Revision, Revision], tmp_path: Path) -> None:
    """A driver that is killed leaves no engine behind."""
    code = f"""
import sys, time
from pathlib import Path
from redistill.policies import vllm
from redistill.policies.revision import Revision
vllm.check_vllm = lambda: None
start = Revision.read(Path({str(family[0].folder)!r}))
policy = vllm.VllmPolicy(start, settings=vllm.EngineSettings(module="fake_engine"), log=Path({str(tmp_path / "log")!r}))
policy.load(start)
print(policy._process._process.pid, flush=True)
time.sleep(600)
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as driver:
        assert driver.stdout is not None
        engine = psutil.Process(int(driver.stdout.readline()))
        driver.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the engine goes on without its parent"
        time.sleep(0.05)


RECIPE = """
name: fast
student: tiny
prompts: {file: "redistill:tiny.jsonl", per_round: 8}
round:
  - sample:   {k: 2, max_tokens: 44}
  - score:    {judge: verifier}
  - select:   {where: verifier = 1}
  - train:    {trainer: sft, steps: 1}
  - evaluate: {judge: verifier, max_tokens: 44}
  - gate
"""


def test_a_recipe_says_which_engine_samples_and_no_id_depends_on_it() -> None:
    """The sampler is of the execution: the run's key stays, and what is usual is not written out."""
    plain = load_recipe(RECIPE, "r.yaml", base=Path())
    fast = load_recipe(
        RECIPE + "execution: {sampler: vllm, vllm: {cache_gib: 2}}", "r.yaml", base=Path()
    )
    assert fast.key == plain.key
    assert plain.resolved()["execution"] == {"threads": None}
    assert load_recipe(fast.to_yaml(), "again.yaml", base=Path()).execution == fast.execution


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "execution: {vllm: {cache_gib: 2}}",
            "execution.vllm: says nothing to the sampler transformers",
        ),
        ("execution: {sampler: vllm, vllm: {cache_gib: 0}}", "execution.vllm.cache_gib"),
        ("execution: {sampler: sglang}", "execution.sampler"),
    ],
)
def test_a_recipe_with_a_useless_engine_is_refused(more: str, told: str) -> None:
    """Settings of an engine that is not used, or that no engine can have, are found at load."""
    with pytest.raises(BadInput, match=told):
        load_recipe(RECIPE + more, "r.yaml", base=Path())


def test_four_bits_are_refused_before_a_model_loads(tmp_path: Path) -> None:
    """The precision that a run would have is known before anything starts."""
    more = "precision: nf4\nexecution: {sampler: vllm}"
    text = RECIPE.replace("trainer: sft,", "trainer: sft, weights: qlora,") + more
    recipe = load_recipe(text, "r.yaml", base=tmp_path)
    with pytest.raises(BadInput, match="no weights in four bits"):
        prepared(recipe, Place(tmp_path / "runs", catalog.default_cache()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_engine_that_is_not_installed_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says how to get it."""
    monkeypatch.undo()
    recipe = load_recipe(RECIPE + "execution: {sampler: vllm}", "r.yaml", base=tmp_path)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'redistill\[vllm\]'"):
        prepared(recipe, Place(tmp_path / "runs", tmp_path / "cache"))


def test_a_round_is_sampled_by_an_engine_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole round through it gives the answers of a round in this process; no process is left."""
    monkeypatch.setattr(vllm, "EngineSettings", partial(EngineSettings, module="fake_engine"))
    place = Place(tmp_path / "runs", catalog.default_cache())
    asked = """
        SELECT c.id, a.answer, a.verifier, c.revision FROM completion c JOIN answers a ON a.id = c.id ORDER BY c.id
    """
    found = []
    for name, more in (("plain", ""), ("fast", "execution: {sampler: vllm}")):
        text = (RECIPE + more).replace("name: fast", f"name: {name}")
        folder = run(load_recipe(text, "r.yaml", base=tmp_path), place=place)
        found.append(read_rows(folder, asked))
        engines = read_rows(
            folder, "SELECT DISTINCT detail->>'engine' AS e FROM event WHERE kind = 'canary'"
        )
        assert [row["e"] for row in engines] == ["vllm 0" if more else "transformers"]
    assert found[0] == found[1]
    assert len(found[0]) > 16
    assert not [p for p in psutil.Process().children() if "fake_engine" in " ".join(p.cmdline())]
