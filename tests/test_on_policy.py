"""A round whose student samples while it trains: the store has all of it, and no crash costs a verdict twice."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import fake_judges
import pyarrow.parquet as pq
import pytest
import yaml
from children import start
from test_crash import CHILD

from redistill.agents import servers
from redistill.agents.forking import fork
from redistill.agents.loop import Place, resume, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput, TryLater
from redistill.policies import catalog
from redistill.policies.transformers import TransformersPolicy
from redistill.report.forecast import forecast
from redistill.report.integrity import examine_run
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer
from redistill.testing.fakes import fake_prompts
from redistill.testing.tiny import make_tiny_model
from redistill.trainers.callback import Caller, Desk, listening

GRPO: dict[str, Any] = {
    "trainer": "grpo",
    "k": 4,
    "batch_size": 16,
    "micro_batch": 8,
    "max_tokens": 24,
    "learning_rate": 1e-4,
    "steps": 4,
    "save_every": 2,
}


def base_of(folder: Path, judge: Any, **settings: Any) -> Path:
    """Write a recipe whose round samples, is rewarded, and is trained in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = fake_prompts(train=12, heldout=8, test=8)
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = {
        "name": "one",
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "execution": {"threads": 1},
        "unproven_judge": "allow",
        "round": [
            {"train": {**GRPO, "judge": judge, **settings}},
            {"evaluate": {"judge": "verifier", "max_tokens": 8}},
            {"gate": {"guards": []}},
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return folder


def loaded(base: Path) -> Recipe:
    """Load a base's recipe."""
    return load_recipe((base / "recipe.yaml").read_text("utf-8"), "recipe.yaml", base=base)


def go(base: Path) -> Path:
    """Run it here, and return the run's folder."""
    return run(loaded(base), place=Place(base / "runs", catalog.default_cache()))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One undisturbed round under a judge that fails on one answer in ten."""
    base = base_of(tmp_path_factory.mktemp("ran"), "counted_judges:sick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BILL", str(base / "bill"))
        return go(base)


def test_every_rollout_is_a_completion_of_the_job(ran: Path) -> None:
    """Four steps of sixteen rollouts: with tokens, log-probs, job, step and slot, their verdicts, and what they were worth."""
    rows = read_rows(
        ran,
        """
        SELECT c.optimizer_step AS step, c.slot, c.training_run_id = j.id AS of_job, c.split,
               len(t.token_ids) = c.tokens AS whole, len(t.logprobs) = c.tokens AS scored,
               r.advantage, r.weight, r.reward, v.status, v.value
        FROM completion c JOIN training_run j ON j.round = c.round
        JOIN completion_tokens t ON t.completion_id = c.id
        JOIN training_row r ON r.completion_id = c.id
        JOIN judgement v ON v.completion_id = c.id
        WHERE c.step = 'train' ORDER BY 1, 2
        """,
    )
    assert [(r["step"], r["slot"]) for r in rows] == [
        (s, n) for s in range(1, 5) for n in range(16)
    ]
    assert all(r["of_job"] and r["whole"] and r["scored"] and r["split"] == "train" for r in rows)
    assert [r["reward"] for r in rows] == [r["value"] for r in rows]
    [job] = read_rows(ran, "SELECT status, message, steps FROM training_run")
    assert (job["status"], job["steps"]) == ("trained", 4), job["message"]


def test_one_failed_judgement_in_ten_leaves_its_group(ran: Path) -> None:
    """A failed judgement is a status, no reward and weight 0; the advantages are those of the others alone."""
    rows = read_rows(
        ran,
        """
        SELECT c.optimizer_step AS step, c.slot, v.status, r.reward, r.advantage, r.weight
        FROM completion c JOIN training_row r ON r.completion_id = c.id
        JOIN judgement v ON v.completion_id = c.id WHERE c.step = 'train' ORDER BY 1, 2
        """,
    )
    failed = [r for r in rows if r["status"] == "error"]
    assert len(failed) == 6  # of 64
    assert all(r["reward"] is None and r["weight"] == 0 for r in failed)
    for begin in range(0, len(rows), 4):
        kept = [r for r in rows[begin : begin + 4] if r["status"] == "ok"]
        rewards = [r["reward"] for r in kept]
        if len(kept) > 1 and max(rewards) - min(rewards) > 1e-6:
            assert sum(r["advantage"] for r in kept) == pytest.approx(0, abs=1e-6)
            assert all(r["weight"] == 1 for r in kept)
        else:
            assert all(r["weight"] == 0 for r in kept)


def test_a_fork_has_the_rollouts_with_their_ledger(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another gate on the same job: nothing is sampled or judged again, and every check of the store holds."""
    monkeypatch.setenv("BILL", str(tmp_path / "bill"))
    folder = fork(ran, round_=1, changes=["gate.level=0.9"], name="again")
    resume(folder, place=Place(ran.parent, catalog.default_cache()))
    assert not (tmp_path / "bill").exists()
    said = "SELECT id::VARCHAR AS i FROM completion WHERE step = 'train' ORDER BY 1"
    assert read_rows(folder, said) == read_rows(ran, said)
    assert [check for check in examine_run(folder) if check["state"] == "bad"] == []


def facts(base: Path) -> dict[str, Any]:
    """Return what no crash may change."""
    folder = base / "runs" / "one"
    queries = {
        "said": "SELECT id::VARCHAR AS i, payload_hash, attempt FROM completion ORDER BY 1",
        "earned": "SELECT id::VARCHAR AS i, status, value FROM judgement ORDER BY 1",
        "learned": "SELECT id::VARCHAR AS i, position, reward, advantage, weight FROM training_row ORDER BY 1",
        "trained": "SELECT status, revision, steps FROM training_run",
        "decided": "SELECT decision, delta FROM decision",
        "gain": "SELECT detail FROM event WHERE kind = 'gain'",
    }
    return {name: read_rows(folder, query) for name, query in queries.items()}


def _bill(base: Path) -> list[str]:
    """Return the id of each answer that the judge was asked about."""
    file = base / "bill"  # there is none before the first question
    return file.read_text("utf-8").splitlines() if file.exists() else []


def _judged(base: Path) -> set[str]:
    """Return the ids of those answers whose verdicts stand in the live store, whoever has just died."""
    with duckdb.connect(str(base / "runs" / "one" / "store.duckdb")) as store:
        sql = "SELECT completion_id::VARCHAR FROM judgement WHERE step = 'train'"
        return {identifier for (identifier,) in store.execute(sql).fetchall()}


@pytest.mark.parametrize("ahead", [0, 1])
def test_killed_while_it_samples_ends_like_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """SIGKILL after sampling, before and after judging, before a step and between two: the same rollouts, rewards and weights.

    Only verdicts that were on their way when it died are asked for again. What was sampled ahead of a checkpoint comes
    from it: the weights that said it are no more.
    """
    bills = {}
    points: list[list[Any]] = [
        [1, "train:said:", 10_000, "after"],
        [1, "train:judge-0:", 20_000, "before"],
        [1, "train:judge-0:", 30_000, "after"],
        [1, "train:learned:", 3, "after"],
        [1, "train", 3, "during"],
        [1, "train", 1, "before"],
    ]
    if ahead:  # the checkpoint is of step 2: before it, and twice after it
        points = [points[1], points[3], points[4]]
    for name, kills in (("calm", []), ("struck", points)):
        base = base_of(tmp_path / name, "counted_judges:early", ahead=ahead)
        monkeypatch.setenv("BILL", str(base / "bill"))
        monkeypatch.setenv("PYTHONPATH", str(CHILD.parent))
        asked, stood = 0, set[str]()
        for kill in [*kills, None]:
            told = {"base": str(base), "kill": kill, "log": str(base / "log.jsonl")}
            ended = start(CHILD, told)
            wanted = -signal.SIGKILL if kill else 0
            assert ended.returncode == wanted, (kill, ended.stderr[-3000:])
            later = _bill(base)[asked:]
            assert not stood & set(later), (
                kill
            )  # nobody is asked again about what stands in the store
            asked, stood = asked + len(later), _judged(base)
        bills[name] = _bill(base)
    assert facts(tmp_path / "struck") == facts(tmp_path / "calm")
    assert set(bills["struck"]) == set(bills["calm"])
    again = len(bills["struck"]) - len(bills["calm"])
    batch = 16
    if ahead:
        # At the first kill the step before may be on its way too, at the others the step after.
        assert batch <= again <= 4 * batch
    else:
        assert again == batch


def test_a_try_that_breaks_off_asks_nobody_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out while the next step's answers are with the judge: the next try waits for these verdicts."""
    base = base_of(tmp_path, "stumbling:slow", ahead=1, steps=2, trainer="stumbling:Stumbling")
    monkeypatch.setenv("BILL", str(base / "bill"))
    monkeypatch.setenv("STUMBLED", str(base / "stumbled"))
    monkeypatch.setenv("PYTHONPATH", str(CHILD.parent))
    folder = go(base)
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained"
    assert "memory ran out" in job["message"]
    assert len(_bill(base)) == len(set(_bill(base))) == 32


def test_a_judge_that_goes_away_parks_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that goes away after 24 verdicts stops the run; when it is back the run goes on, and asks for the rest."""
    before = servers.address_of
    quick: dict[str, Any] = {"patience": 0.2, "backoff": 0.01, "longest_pause": 0.05}
    quick |= {"breaker": 2, "attempts": 2}
    monkeypatch.setattr(
        servers, "address_of", lambda n, r: dataclasses.replace(before(n, r), **quick)
    )
    base = base_of(tmp_path, {"chat": {"role": "helper"}}, steps=3)
    recipe = yaml.safe_load((base / "recipe.yaml").read_text("utf-8"))
    place = Place(base / "runs", catalog.default_cache())
    with FakeServer(fake_judges.judge, "unavailable", script=["ok"] * 24) as server:
        recipe["roles"] = {"helper": {"policy": server.url, "model": "m"}}
        (base / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
        with pytest.raises(TryLater, match="has been away"):
            run(loaded(base), place=place)
        assert not read_rows(base / "runs" / "one", "SELECT * FROM training_run")
        server.modes = {}
        folder = resume(base / "runs" / "one", place=place)
    rows = read_rows(
        folder, "SELECT status, count(*) AS n FROM judgement WHERE step = 'train' GROUP BY ALL"
    )
    assert rows == [{"status": "ok", "n": 48}]
    # The first step's sixteen stood in the store; the eight of the second one that were answered were not yet.
    assert server.counts["ok"] == 48 + 8


def test_who_judges_is_asked_for_before_anything_runs(tmp_path: Path) -> None:
    """A trainer that samples needs a judge, one that does not takes none, and people cannot be waited for."""
    for settings, told in (
        ({"judge": "verifier", "trainer": {"sft": {}}}, "asks no judge"),
        ({"rewards": []}, "nobody judges that"),
        ({"judge": "human"}, "cannot wait for people"),
        ({"judge": "verifyer"}, "verifyer"),
        (
            {"rewards": [{"judge": "longest"}, {"judge": {"longest": {"unit": "characters"}}}]},
            "two judges are named 'longest'",
        ),
    ):
        base = base_of(tmp_path, "verifier")
        recipe = yaml.safe_load((base / "recipe.yaml").read_text("utf-8"))
        recipe["round"][0]["train"] = {**GRPO, **settings} if "k" not in str(settings) else settings
        if "trainer" in settings:
            recipe["round"][0]["train"] = settings
            recipe["round"].insert(0, {"sample": {"k": 2, "max_tokens": 8}})
            recipe["round"].insert(1, {"score": {"judge": "verifier"}})
            recipe["round"].insert(2, {"select": {}})
        (base / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
        with pytest.raises(BadInput, match=told):
            loaded(base)


# -- teachers

STAND: list[Any] = [
    {"sample": {"role": "teacher", "k": 2, "max_tokens": 24}},
    {"score": {"judge": "verifier"}},
    {"select": {}},
]
DISTIL: dict[str, Any] = {
    "batch_size": 8,
    "micro_batch": 4,
    "max_tokens": 24,
    "learning_rate": 1e-4,
    "steps": 2,
}


def lesson(base: Path, steps: list[Any], train: dict[str, Any], **fields: Any) -> Recipe:
    """Return a recipe in which a student is taught."""
    base.mkdir(parents=True, exist_ok=True)
    rows = fake_prompts(train=12, heldout=8, test=8)
    for place, row in enumerate(rows):
        row["reference"] = row["verify"]["equals"]
        row["tags"] = [f"kind:{place % 2}"]
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = {
        "name": "one",
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "roles": {"teacher": {"policy": "tiny-teacher"}},
        "execution": {"threads": 1},
        "round": [
            *steps,
            {"train": {**_usual(train), **train}},
            {"evaluate": {"judge": "verifier", "max_tokens": 8}},
            {"gate": {"guards": []}},
        ],
    }
    return load_recipe(json.dumps(data | fields), "recipe.yaml", base=base)


def _usual(train: dict[str, Any]) -> dict[str, Any]:
    """Return what a small job of a trainer has; one on rows samples nothing."""
    return {k: v for k, v in DISTIL.items() if k != "max_tokens" or train["trainer"] != "sft"}


def test_a_teacher_of_this_machine(tmp_path: Path) -> None:
    """Rollouts are rows with what each token earned; the job's file names the teacher by its hash."""
    recipe = lesson(tmp_path, [], {"trainer": "distill", "teacher": "teacher"})
    folder = run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    rows = read_rows(
        folder,
        """
        SELECT len(t.rewards) = c.tokens AS whole, list_avg(t.rewards) AS mean, r.reward
        FROM completion c JOIN completion_tokens t ON t.completion_id = c.id
        JOIN training_row r ON r.completion_id = c.id WHERE c.step = 'train'
        """,
    )
    assert len(rows) == 16
    assert all(r["whole"] and r["mean"] == pytest.approx(r["reward"], abs=1e-4) for r in rows)
    told = json.loads((folder / "jobs" / "1" / "job.json").read_text("utf-8"))
    held = told["held"]["teacher"]
    assert (
        catalog.resolve("tiny-teacher", cache=catalog.default_cache()).revision.id
        == held["revision"]
    )


def test_stored_distributions_are_taken_once(tmp_path: Path) -> None:
    """The teacher's likeliest tokens are rows; a fork that trains on the same answers asks it for nothing."""
    train = {"trainer": "distill", "teacher": "teacher", "on_policy": 0, "top_k": 4, "beta": 0}
    place = Place(tmp_path / "runs", catalog.default_cache())
    folder = run(lesson(tmp_path, STAND, train), place=place)
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    rows = read_rows(
        folder,
        """
        SELECT len(d.logprobs) = c.tokens AS whole, len(d.top_ids[1]) AS k, d.top_logprobs[1][1] AS best,
               d.logprobs[1] AS own
        FROM token_distribution d JOIN completion c ON c.id = d.completion_id
        """,
    )
    assert rows
    assert all(r["whole"] and r["k"] == 4 and r["best"] >= r["own"] - 1e-4 for r in rows)
    kept = read_rows(folder, "SELECT count(*) AS n FROM selection")[0]["n"]
    assert len(rows) == kept
    assert not read_rows(folder, "SELECT 1 FROM completion WHERE step = 'train'")


def test_a_teacher_whose_likeliest_tokens_say_little_is_refused(tmp_path: Path) -> None:
    """A model that knows nothing has little probability on its best token, and the run says how little."""
    model = make_tiny_model(tmp_path / "model", seed=5)
    roles = {"teacher": {"policy": str(model)}}
    train = {"trainer": "distill", "teacher": "teacher", "on_policy": 0, "top_k": 1, "beta": 0}
    steps = [{"sample": {"k": 2, "max_tokens": 24}}, *STAND[1:]]
    student = str(make_tiny_model(tmp_path / "student", seed=6))
    recipe = lesson(tmp_path, steps, train, student=student, roles=roles)
    with pytest.raises(BadInput, match=r"1 likeliest tokens have \d+% of its probability"):
        run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))


@pytest.mark.parametrize("given", ["reference", "unrelated", "critique"])
def test_what_the_teaching_student_sees(tmp_path: Path, given: str) -> None:
    """The job's rows show the teacher what the recipe says, in the words of the shipped templates."""
    steps = list(STAND)
    fields: dict[str, Any] = {}
    if given == "critique":
        fields = {
            "roles": {"teacher": {"policy": "tiny-teacher"}, "critic": {"policy": "tiny-teacher"}}
        }
        steps.insert(1, {"critique": {"role": "critic", "judge": "counted_judges:Critic"}})
    recipe = lesson(tmp_path, steps, {"trainer": "self_distill", "given": given}, **fields)
    folder = run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    tokenizer = TransformersPolicy(
        catalog.resolve("tiny", cache=catalog.default_cache()).revision
    )._codec
    said = {
        row["id"]: row["text"]
        for row in read_rows(
            folder,
            """
            SELECT c.id::VARCHAR AS id, a.text FROM completion c
            JOIN content a ON a.hash = c.text_hash AND a.round = c.round WHERE c.step = 'sample'
            """,
        )
    }
    rows = pq.read_table(folder / "jobs" / "1" / "rows.parquet").to_pylist()
    assert rows
    for row in rows:
        plain, seen = (tokenizer.decode(row[n]) for n in ("prompt_ids", "teacher_prompt_ids"))
        own = said.get(row["completion_id"], "nothing")
        wanted = {
            "reference": "good answer",
            "unrelated": "good answer",
            "critique": "too plain",
        }[given]
        assert wanted in seen, (wanted, seen)
        assert wanted not in plain
        if given == "unrelated":
            assert f"this:\n\n{own}\n" not in seen


def test_teachers_by_tag(tmp_path: Path) -> None:
    """Prompts are taught by the role of their tag, all others by that of the star; a tag without either is refused."""
    roles = {
        "teacher": {"policy": "tiny-teacher"},
        "twin": {"policy": "student", "revision": "initial", "context": {"system": "Be brief."}},
    }
    both = {"trainer": "distill", "teacher": {"kind:0": "teacher", "*": "twin"}}
    folder = run(
        lesson(tmp_path, [], both, roles=roles),
        place=Place(tmp_path / "runs", catalog.default_cache()),
    )
    rows = pq.read_table(folder / "jobs" / "1" / "rows.parquet").to_pylist()
    assert {row["teacher"] for row in rows} == {"teacher", "twin"}
    assert [j["status"] for j in read_rows(folder, "SELECT status FROM training_run")] == [
        "trained"
    ]
    alone = lesson(
        tmp_path, [], {"trainer": "distill", "teacher": {"kind:0": "teacher"}}, name="two"
    )
    with pytest.raises(BadInput, match="no teacher for a prompt tagged kind:1"):
        run(alone, place=Place(tmp_path / "runs", catalog.default_cache()))


@pytest.mark.parametrize(
    ("train", "fields", "told"),
    [
        ({"trainer": "distill"}, {}, "distill needs it"),
        ({"trainer": "self_distill"}, {}, "say what it sees"),
        ({"trainer": "distill", "teacher": "nobody"}, {}, "unknown role 'nobody'"),
        ({"trainer": "grpo", "judge": "verifier", "teacher": "teacher"}, {}, "no use for it"),
        ({"trainer": "distill", "teacher": "student"}, {}, "nothing to learn"),
        (
            {"trainer": "distill", "teacher": "far"},
            {"roles": {"far": {"policy": "http://127.0.0.1:9/v1", "model": "m"}}},
            "of answers that stand only",
        ),
        (
            {"trainer": "distill", "teacher": "teacher", "on_policy": 0.5},
            {},
            "no earlier step makes rows",
        ),
        (
            {"trainer": "distill", "teacher": "teacher", "beta": 0.5, "skew": 0.1},
            {},
            "beta is 0 or 1",
        ),
        (
            {"trainer": "distill", "teacher": "plug"},
            {"roles": {"plug": {"policy": "redistill.testing.fakes:FakeStudent"}}},
            "a training job cannot hold",
        ),
        ({"trainer": "self_distill", "given": "critique"}, {}, "no earlier step makes rows"),
        (
            {"trainer": "self_distill", "given": "reference", "across": True},
            {},
            "another tokenizer",
        ),
        (
            {
                "trainer": "self_distill",
                "given": "reference",
                "teacher_weights": "live",
                "on_policy": 0,
                "top_k": 4,
            },
            {},
            "cannot be stored",
        ),
        ({"trainer": "distill", "teacher": "teacher", "on_policy": 0, "k": 2}, {}, "nothing is"),
        (
            {"trainer": "grpo", "k": 4, "judge": "verifier", "reference": "initial"},
            {},
            "`beta` is 0",
        ),
        (
            {"trainer": "grpo", "k": 4, "judge": "verifier", "keep_context": True},
            {},
            "plain prompts",
        ),
    ],
)
def test_a_teacher_that_cannot_be_is_told_at_load(
    tmp_path: Path, train: dict[str, Any], fields: dict[str, Any], told: str
) -> None:
    """One line, before a model loads: no teacher, an unknown one, one with the student's own view, one far away."""
    with pytest.raises(BadInput, match=told):
        lesson(tmp_path, [], train, **fields)


def test_the_plan_counts_models_that_are_held(tmp_path: Path) -> None:
    """A reference, or a teacher of the student's size, is a part of the estimate; stored distributions need none."""
    roles = {"teacher": {"policy": "student", "revision": "initial"}}

    def parts(train: dict[str, Any], steps: Sequence[Any] = ()) -> dict[str, int]:
        recipe = lesson(tmp_path, list(steps), train, roles=roles)
        found = forecast(recipe, catalog.default_cache(), tmp_path / "runs")
        told: dict[str, int] = found["memory"]["parts"]
        return told

    distil = {"trainer": "distill", "teacher": "teacher"}
    plain = parts({"trainer": "grpo", "judge": "verifier", "k": 4})
    assert "held models" not in plain
    anchored = parts({"trainer": "grpo", "judge": "verifier", "k": 4, "beta": 0.1})
    assert anchored["held models"] == parts(distil)["held models"] == plain["weights"]
    steps = [{"sample": {"k": 2, "max_tokens": 24}}, *STAND[1:]]
    assert "held models" not in parts(distil | {"on_policy": 0, "top_k": 4}, steps)


def test_a_teacher_that_is_the_student_is_refused_in_its_round(tmp_path: Path) -> None:
    """The initial student with no context is the student itself in round 1, and teaches it nothing."""
    roles = {"twin": {"policy": "student", "revision": "initial"}}
    recipe = lesson(tmp_path, [], {"trainer": "distill", "teacher": "twin"}, roles=roles)
    with pytest.raises(BadInput, match="own weights in round 1"):
        run(recipe, place=Place(tmp_path / "runs", catalog.default_cache()))


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("gone"), KeyError("what"), TryLater("later")]
)
def test_whatever_a_judge_raises_ends_the_job(error: Exception) -> None:
    """An error of the driver is raised where the job is waited for, and the job is given up; nobody hangs."""
    left: list[str] = []

    async def work(desk: Desk) -> None:
        def ask() -> None:
            caller = Caller(desk.address)
            caller.reply(caller.ask("judge", step=1))

        try:
            await asyncio.to_thread(ask)
        except asyncio.CancelledError:
            left.append("given up")
            raise

    async def answer(what: str, told: Any) -> Any:
        raise error

    async def drive() -> None:
        async with listening(answer) as desk:
            await desk.beside(work(desk))

    with pytest.raises(type(error)):
        asyncio.run(asyncio.wait_for(drive(), 20))
    assert left == ["given up"]


def test_nobody_else_is_answered() -> None:
    """Who does not know the password of the address is hung up on."""

    async def answer(what: str, told: Any) -> Any:
        return {"what": what, **told}

    async def drive() -> tuple[Any, Any]:
        async with listening(answer) as desk:
            port = desk.address.partition(":")[0]

            def ask(address: str) -> Any:
                caller = Caller(address)
                try:
                    return caller.reply(caller.ask("judge", n=3))
                except ConnectionError:
                    return None
                finally:
                    caller.close()

            return await asyncio.to_thread(ask, desk.address), await asyncio.to_thread(
                ask, f"{port}:guess"
            )

    known, stranger = asyncio.run(asyncio.wait_for(drive(), 20))
    assert known == {"what": "judge", "n": 3}
    assert stranger is None
