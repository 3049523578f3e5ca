"""The judge `cached`: the same words are paid once, and nothing else is taken for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_judges

from redistill.agents.judge import JudgeTask, load, modes
from redistill.agents.judges.cached import Cached
from redistill.agents.loop import Place, run
from redistill.agents.recipe import load_recipe
from redistill.agents.speaker import Ask, Reply, bind
from redistill.policies.policy import Sampling
from redistill.store.query import read_rows
from redistill.store.store import Store
from redistill.store.verdicts import read_verdicts
from redistill.testing.fake_server import FakeServer
from redistill.testing.fakes import fake_prompts, fake_recipe
from redistill.types import Completion, Judgement, Message, Prompt, Usage

SPEC = {"cached": {"judge": {"chat": {"role": "helper"}}}}


def _run(base: Path, server: FakeServer, *steps: dict[str, Any]) -> Path:
    """Run two rounds over the same twelve prompts, four samples each."""
    (base / "prompts.jsonl").write_text(
        "\n".join(map(json.dumps, fake_prompts(train=12, heldout=20, test=10))), "utf-8"
    )
    recipe = fake_recipe(rounds=2) | {"unproven_judge": "allow"}
    recipe["roles"] = {"helper": {"policy": server.url, "model": "m"}}
    recipe["prompts"]["per_round"] = 12
    recipe["round"][2]["select"]["of"] = "sample"
    recipe["round"][1:1] = steps
    read = load_recipe(json.dumps(recipe), "recipe.yaml", base=base)
    return run(read, place=Place(base / "runs", base / "cache"))


def test_the_same_words_are_paid_once_in_a_run(tmp_path: Path) -> None:
    """Over two rounds and two steps the server is asked once for each answer to each prompt."""
    with FakeServer(fake_judges.judge) as server:
        again = {"score": {"judge": SPEC, "of": "sample", "as": "again"}}
        folder = _run(tmp_path, server, {"score": {"judge": SPEC, "as": "first"}}, again)
    distinct = """
        SELECT count(DISTINCT (prompt_id, text_hash)) AS n, count(*) AS answers
        FROM completion WHERE step = 'sample'
    """
    [asked] = read_rows(folder, distinct)
    assert server.requests == asked["n"] < asked["answers"]
    said = """
        SELECT c.prompt_id, c.text_hash, count(*) AS rows, count(DISTINCT j.value) AS said,
               count(*) FILTER (j.tokens_out > 0) AS paid, count(DISTINCT j.role) AS roles
        FROM judgement j JOIN completion c ON c.id = j.completion_id
        WHERE j.judge = 'cached' AND c.step = 'sample' GROUP BY ALL
    """
    rows = read_rows(folder, said)
    assert {(row["said"], row["paid"], row["roles"]) for row in rows} == {(1, 1, 1)}
    assert sum(row["rows"] for row in rows) == 2 * asked["answers"]


def test_both_orders_of_a_comparison_are_two_questions(tmp_path: Path) -> None:
    """What is presented in another order is asked; the same order again is not."""
    compare = {"compare": {"of": "sample", "judge": SPEC}}
    again = {"compare": {"of": "sample", "judge": SPEC, "as": "again"}}
    with FakeServer(fake_judges.judge) as server:
        folder = _run(tmp_path, server, compare, again)
    shown = """
        SELECT count(DISTINCT (a.prompt_id, a.text_hash, b.text_hash)) AS n, count(*) AS rows
        FROM judgement j JOIN completion a ON a.id = j.presented[1] JOIN completion b ON b.id = j.presented[2]
    """
    [asked] = read_rows(folder, shown)
    assert server.requests == asked["n"] <= asked["rows"] / 2


def test_a_failure_is_asked_again(tmp_path: Path) -> None:
    """A reply that could not be read is no verdict: the next step asks, and gets one."""
    again = {"score": {"judge": SPEC, "of": "sample", "as": "again"}}
    broken = iter(range(10))
    replies: list[str] = []

    def reply(messages: list[dict[str, Any]]) -> str:
        replies.append(
            "no verdict" if next(broken, None) is not None else fake_judges.judge(messages)
        )
        return replies[-1]

    with FakeServer(reply) as server:
        folder = _run(tmp_path, server, {"score": {"judge": SPEC, "as": "first"}}, again)
    failed = read_rows(folder, "SELECT DISTINCT step, status FROM judgement WHERE judge = 'cached'")
    assert {("first", "parse_error"), ("first", "ok"), ("again", "ok")} == {
        (row["step"], row["status"]) for row in failed
    }
    assert replies.count("no verdict") == 10


def test_other_weights_and_other_judges_are_not_taken(tmp_path: Path) -> None:
    """A verdict is found by the judge's revision and the weights that gave it."""
    with FakeServer(fake_judges.judge) as server:
        folder = _run(tmp_path, server, {"score": {"judge": SPEC, "as": "first"}})
    [row] = read_rows(
        folder, "SELECT DISTINCT judge_revision AS judge FROM judgement WHERE judge = 'cached'"
    )
    prompts = [r["id"] for r in read_rows(folder, "SELECT id::VARCHAR AS id FROM prompt")]
    store = Store(folder)
    try:
        known = read_verdicts(store, prompts, judge=row["judge"], mode="score", weights="")
        assert len(known) == server.requests
        for other in ({"weights": "f" * 32}, {"judge": "0" * 32}, {"mode": "compare"}):
            asked: dict[str, Any] = {"judge": row["judge"], "mode": "score", "weights": ""} | other
            assert read_verdicts(store, prompts, **asked) == {}
    finally:
        store.close()


class _Voice:
    """Says one verdict, remembers one, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def say(self, role: str, asks: Sequence[Ask], sampling: Sampling) -> list[Reply]:
        """Give every answer five points."""
        self.asked += len(asks)
        told = json.dumps({"reasoning": "", "score": 5})
        return [Reply(told, usage=Usage(role, "m", "", 7, 3, 0.5)) for _ in asks]

    async def recall(
        self, judge: str, mode: str, roles: Sequence[str], tasks: Sequence[JudgeTask]
    ) -> list[Judgement | None]:
        """Remember what starts with `old`."""
        old = Judgement(1.0, usage=Usage("helper", "m", "", 9, 9, 9.0))
        return [old if t.completion.text.startswith("old") else None for t in tasks]


def test_the_bill_names_each_call_once() -> None:
    """Of equal tasks the first is billed; what was remembered costs nothing; who spoke stays known."""
    judge = load(SPEC, "judge")
    assert isinstance(judge, Cached)
    assert modes(judge) == ("score", "compare", "critique")
    voice = _Voice()
    bound = bind(judge, voice)  # type: ignore[arg-type]
    prompt = Prompt("p", (Message("user", "q"),), "train")
    tasks = [
        JudgeTask(prompt, Completion(str(n), "p", text, (), (), "stop", "r"))
        for n, text in enumerate(["new", "old", "new", "newer"])
    ]
    found = asyncio.run(bound.score(tasks))
    assert voice.asked == 2
    usages = [judgement.usage for judgement in found if judgement.usage]
    assert [u.tokens_in for u in usages] == [7, 0, 0, 7]
    assert [u.dollars for u in usages] == [0.5, 0.0, 0.0, 0.5]
    assert {u.role for u in usages} == {"helper"}
