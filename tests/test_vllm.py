"""The real vLLM engine on this machine's CPU: it says what transformers says, and wrong weights are found.

Run by `make test-vllm`, in an environment that has vLLM.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.errors import EnvironmentProblem
from redistill.policies import catalog
from redistill.policies.policy import Request, Sampling
from redistill.policies.proof import prove
from redistill.policies.revision import Revision
from redistill.policies.transformers import TransformersPolicy
from redistill.policies.vllm import EngineSettings, VllmPolicy
from redistill.store.query import read_rows
from redistill.testing.tiny import make_tiny_revision

pytestmark = pytest.mark.vllm
BOUND = 2e-5
"""Nats by which one token's log-prob may differ between two fp32 engines."""
PROMPTS = [(5, 6, 7), (9, 8), tuple(range(10, 90)), tuple(range(20, 60))]
Family = tuple[Revision, Revision]


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Family]:
    """Return a parent and a child with a tied head, and the same with a head of their own."""
    found = {}
    for tied in (True, False):
        root = tmp_path_factory.mktemp("revisions")
        parent = make_tiny_revision(root, seed=1, hidden=128, tied=tied)
        child = make_tiny_revision(root, seed=2, hidden=128, tied=tied, parent=parent.id)
        found[tied] = parent, child
    return found


Make = Callable[..., VllmPolicy]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make policies whose engines end with the test."""
    made = []

    def one(revision: Revision, **settings: Any) -> VllmPolicy:
        chosen = EngineSettings(**{"stays": True, "cache_gib": 0.25} | settings)
        made.append(VllmPolicy(revision, settings=chosen, log=tmp_path / "engine.log"))
        return made[-1]

    yield one
    for policy in made:
        policy.close()


@pytest.fixture(scope="module")
def pair(
    families: dict[bool, Family], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmPolicy, TransformersPolicy]]:
    """Return both engines with the same weights, for tests that only read."""
    revision = families[True][0]
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    fast = VllmPolicy(revision, settings=EngineSettings(cache_gib=0.25), log=log)
    plain = TransformersPolicy(revision)
    fast.load(revision)
    plain.load(revision)
    yield fast, plain
    fast.close()


Pair = tuple[VllmPolicy, TransformersPolicy]


def test_greedy_answers_and_their_log_probs_are_those_of_transformers(pair: Pair) -> None:
    """Token for token, and within 2e-5 nats, for prompts shorter and longer than a block of the cache."""
    asked = [Request(prompt, 0) for prompt in PROMPTS]
    for here, there in zip(
        *(p.generate(asked, Sampling(0.0, max_tokens=40)) for p in pair), strict=True
    ):
        assert (here.token_ids, here.text) == (there.token_ids, there.text)
        assert here.finish_reason == there.finish_reason
        assert here.logprobs == pytest.approx(there.logprobs, abs=BOUND)


def test_scores_are_those_of_transformers_whichever_way_they_are_asked(pair: Pair) -> None:
    """`score` and `recite` agree with the embedded policy, an empty answer and a full context included."""
    fast, plain = pair
    pairs = [((5, 6), (7, 8, 9)), ((5,), ()), (PROMPTS[2], PROMPTS[3]), ((1,), (9,) * 511)]
    for here, there in zip(fast.score(pairs), plain.score(pairs), strict=True):
        assert here == pytest.approx(there, abs=BOUND)
    for here, there in zip(fast.recite(pairs[:3]), plain.score(pairs[:3]), strict=True):
        assert here == pytest.approx(there, abs=BOUND)


def test_choices_and_distributions_are_those_of_transformers(pair: Pair) -> None:
    """Options of one token and of several; the likeliest tokens in their order, with their log-probs."""
    fast, plain = pair
    for options in (["A", "B"], ["yes", "no", "perhaps"]):
        for here, there in zip(*(p.choose(PROMPTS, options) for p in pair), strict=True):
            assert here == pytest.approx(there, abs=1e-5)
    pairs = [((5, 6), (7, 8, 9)), ((5,), ()), (PROMPTS[2], PROMPTS[3])]
    for here, there in zip(
        fast.distributions(pairs, 12), plain.distributions(pairs, 12), strict=True
    ):
        assert here[0] == there[0]
        for a, b in zip(here[1], there[1], strict=True):
            assert a == pytest.approx(b, abs=BOUND)


def test_a_rows_answer_is_of_its_own_seed(pair: Pair) -> None:
    """Whoever shares the batch: the same seed gives the same answer, another seed another one."""
    fast, _ = pair
    sampling = Sampling(1.0, max_tokens=16)
    many = fast.generate([Request(PROMPTS[0], seed) for seed in range(12)], sampling)
    alone = [fast.generate([Request(PROMPTS[0], seed)], sampling)[0] for seed in range(12)]
    assert [m.token_ids for m in many] == [a.token_ids for a in alone]
    assert len({m.token_ids for m in many}) > 8
    spread = fast.generate([Request(PROMPTS[0], 2**62 + seed) for seed in range(4)], sampling)
    assert len({m.token_ids for m in spread}) > 2


def test_log_probs_are_raw_whatever_is_drawn_from(pair: Pair) -> None:
    """Temperature, top-k and top-p change what is drawn and not what is told of it."""
    fast, plain = pair
    [said] = fast.generate([Request(PROMPTS[0], 3)], Sampling(1.7, 0.8, 5, 12))
    [scored] = plain.score([(PROMPTS[0], said.token_ids)])
    assert said.logprobs == pytest.approx(scored, abs=BOUND)


def test_an_answer_is_held_to_a_schema(pair: Pair) -> None:
    """A random model answers with JSON of the schema's shape, each time, beside one that is held to nothing."""
    fast, _ = pair
    schema = {
        "type": "object",
        "properties": {"better": {"enum": ["A", "B"]}, "sure": {"type": "boolean"}},
        "required": ["better", "sure"],
        "additionalProperties": False,
    }
    asked = [Request(PROMPTS[0], seed, schema) for seed in range(6)] + [Request(PROMPTS[0], 6)]
    *held, free = fast.generate(asked, Sampling(1.0, max_tokens=60))
    for answer in held:
        said = json.loads(answer.text)
        assert said.keys() == {"better", "sure"}
        assert said["better"] in ("A", "B")
    with pytest.raises(json.JSONDecodeError):
        json.loads(free.text)


def engines() -> set[int]:
    """Return the processes that hold an engine."""
    return {p.pid for p in psutil.Process().children() if "engine" in " ".join(p.cmdline())}


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_loaded_in_place_round_after_round(
    families: dict[bool, Family], make: Make, *, tied: bool
) -> None:
    """One process over three rounds: each time it answers with the new weights, and no more with the old ones."""
    parent, child = families[tied]
    policy = make(parent)
    others, pids = engines(), set()
    for revision, before in ((parent, child), (child, parent), (parent, child), (child, parent)):
        policy.load(revision)
        proof = prove(policy, revision, before)
        assert (proof.verdict, proof.canary, policy.fingerprint()) == ("ok", "ok", revision.id)
        assert proof.d_new < BOUND
        assert proof.d_parent is not None
        assert proof.d_parent > 0.1
        pids |= engines() - others
        policy.release()
    assert len(pids) == 1


SILENT = [
    ("path", True),
    ("no_head", True),
    ("nothing", True),
    ("nothing", False),
    ("a_layer_missing", True),
    ("stale_prefixes", True),
]


@pytest.mark.parametrize(("fault", "tied"), SILENT)
def test_each_silent_failure_is_caught(
    families: dict[bool, Family],
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    *,
    tied: bool,
) -> None:
    """The engine reports success and holds other weights: the proof says wrong, with a distance far above the noise."""
    monkeypatch.setenv("REDISTILL_FAULT", fault)
    parent, child = families[tied]
    policy = make(parent, module="sabotaged_engine")
    policy.load(parent)
    assert prove(policy, parent, None).verdict == "ok"
    policy.load(child)
    proof = prove(policy, child, parent)
    assert proof.verdict == "wrong"
    assert proof.d_new > 20 * proof.noise
    if fault == "nothing":  # the others keep old what the engine does not show
        assert policy.fingerprint() == ""


def test_a_load_that_breaks_off_leaves_nothing_to_believe(
    families: dict[bool, Family], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of before are handed over again when they are asked for, for the engine may hold others now."""
    monkeypatch.setenv("REDISTILL_FAULT", "breaks_off")
    parent, child = families[True]
    policy = make(parent, module="sabotaged_engine")
    policy.load(parent)
    with pytest.raises(EnvironmentProblem, match="cannot load: RuntimeError: it broke off"):
        policy.load(child)
    assert policy.revision == ""
    policy.load(parent)
    assert prove(policy, parent, child).verdict == "ok"


def adapters(root: Path, base: Revision) -> Family:
    """Publish two adapters of a base that differ."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from redistill.policies import adapter
    from redistill.policies.revision import canary_sequences, publish, record_canary

    found = []
    for seed in (1, 2):
        model = AutoModelForCausalLM.from_pretrained(base.folder)
        wanted = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])
        adapted = peft.get_peft_model(model, wanted)
        torch.manual_seed(seed)
        for name, tensor in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor, std=0.3)
        adapted.eval()
        staging = root / f"staging-{seed}"
        adapter.save(adapted, staging, base.id)
        canary = record_canary(
            adapted, canary_sequences(AutoTokenizer.from_pretrained(base.folder))
        )
        made = adapter.fingerprint_adapted(adapted)
        facts = {"base": base.id, "weights": "lora"}
        found.append(
            publish(staging, root, revision=made, parent=base.id, canary=canary, facts=facts)
        )
    return found[0], found[1]


@pytest.mark.parametrize("rank", [0, 4], ids=["merged", "live"])
def test_adapters_speak_as_they_do_in_transformers(
    families: dict[bool, Family], make: Make, tmp_path: Path, rank: int
) -> None:
    """Merged into their base or as they are, one after the other, and the base alone again."""
    base = families[True][0]
    home = shutil.copytree(base.folder, tmp_path / base.id)
    base = Revision.read(home)
    one, other = adapters(tmp_path, base)
    policy, plain = make(base, adapter_rank=rank), TransformersPolicy(base)
    for revision, before in ((one, base), (other, one), (base, other), (one, base)):
        policy.load(revision)
        plain.load(revision)
        proof = prove(policy, revision, before)
        assert (proof.verdict, policy.fingerprint()) == ("ok", revision.id)
        asked = [Request(prompt, 0) for prompt in PROMPTS]
        said = [p.generate(asked, Sampling(0.0, max_tokens=12)) for p in (policy, plain)]
        assert [a.token_ids for a in said[0]] == [a.token_ids for a in said[1]]


def test_an_adapter_under_a_number_that_was_used_is_caught(
    families: dict[bool, Family], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwritten in its folder under the same number, an adapter is the old one to vLLM."""
    home = shutil.copytree(families[True][0].folder, tmp_path / families[True][0].id)
    base = Revision.read(home)
    one, other = adapters(tmp_path, base)
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("REDISTILL_FAULT", "same_number")
    monkeypatch.setenv("REDISTILL_ADAPTER", str(tmp_path / "shared"))
    policy = make(base, adapter_rank=4, module="sabotaged_engine")
    policy.load(one)
    assert prove(policy, one, base).verdict == "ok"
    policy.load(other)
    assert prove(policy, other, one).verdict == "wrong"


def test_three_rounds_are_sampled_by_the_real_engine(tmp_path: Path, session_cache: Path) -> None:
    """One engine over three rounds, each load proven; each stored log-prob is of the revision that its row names."""
    text = """
name: three
student: tiny
prompts: {file: "redistill:tiny.jsonl", per_round: 40}
execution: {sampler: vllm, vllm: {cache_gib: 0.25, stays: true}}
round:
  - sample:   {k: 4, temperature: 0.7, max_tokens: 44}
  - score:    {judge: verifier}
  - pair:     {by: verifier, rule: best_worst}
  - train:    {trainer: dpo, beta: 0.1, learning_rate: 5.0e-5, batch_size: 8, micro_batch: 8, steps: 6}
  - evaluate: {judge: verifier, max_tokens: 44}
  - gate:     {guards: [length, diversity]}
loop: {rounds: 3}
"""
    recipe = load_recipe(text, "three.yaml", base=tmp_path)
    run(recipe, place=Place(tmp_path / "runs", session_cache))
    folder = tmp_path / "runs" / "three"
    loads = read_rows(
        folder,
        """
        SELECT detail->>'revision' AS revision, detail->>'engine' AS engine, detail->>'verdict' AS verdict,
               (detail->>'d_new')::DOUBLE AS drift
        FROM event WHERE kind = 'canary' ORDER BY created_at
        """,
    )
    assert {row["verdict"] for row in loads} == {"ok"}
    assert {row["engine"] for row in loads} == {"vllm 0.31.0"}
    assert max(row["drift"] for row in loads) < BOUND
    spoken = read_rows(
        folder,
        """
        SELECT c.round, c.revision, p.token_ids AS asked, t.token_ids AS said, t.logprobs
        FROM completion c
        JOIN completion_tokens t ON t.completion_id = c.id
        JOIN rendered_prompt p ON p.id = c.rendered_prompt_id
        WHERE c.role = 'student' AND c.split <> 'test'
        """,
    )
    sampled = [row for row in spoken if row["round"] > 0]
    assert {row["round"] for row in sampled} == {1, 2, 3}
    revisions = {row["revision"] for row in spoken}
    assert len(revisions) > 1, "nothing was trained, so that nothing was to be told apart"
    for identifier in revisions:
        held = Revision.read(folder / "revisions" / identifier)
        plain = TransformersPolicy(held)
        plain.load(held)
        mine = [row for row in spoken if row["revision"] == identifier][:100]
        scores = plain.score([(tuple(row["asked"]), tuple(row["said"])) for row in mine])
        for row, score in zip(mine, scores, strict=True):
            assert row["logprobs"] == pytest.approx(score, abs=BOUND)
    log = (folder / "engine.log").read_text("utf-8")
    assert log.count("shards: 100%") == 1, "the engine was started more than once"


def test_the_catalogs_student_agrees_too(make: Make, session_cache: Path) -> None:
    """The trained toy, greedy over 40 prompts of its task: the same answers in both engines."""
    from redistill.agents.prompts import PromptSource, load_prompts

    student = catalog.resolve("tiny", cache=session_cache).revision
    prompts = load_prompts(PromptSource(file="redistill:tiny.jsonl"), Path(), 0)[:40]
    policy, plain = make(student), TransformersPolicy(student)
    policy.load(student)
    plain.load(student)
    asked = [Request(plain.encode(prompt.messages), 0) for prompt in prompts]
    said = [p.generate(asked, Sampling(0.0, max_tokens=44)) for p in (policy, plain)]
    assert [a.token_ids for a in said[0]] == [a.token_ids for a in said[1]]
