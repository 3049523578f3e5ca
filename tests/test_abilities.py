"""What servers can do: seen in replies and not believed from names, and known before a run needs it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from test_on_policy import STAND, lesson

from redistill.agents import server_needs
from redistill.agents.exam_speaker import ExamSpeaker
from redistill.agents.loop import Place, resume, run
from redistill.agents.recipe import Recipe, load_recipe
from redistill.agents.remote_speaker import Reader, RemoteSpeaker
from redistill.agents.roles import Role
from redistill.agents.server_needs import ask_servers, check_servers, needs
from redistill.agents.servers import Servers
from redistill.agents.speaker import Given
from redistill.agents.weighing import measure
from redistill.cli import main
from redistill.errors import BadInput, TryLater
from redistill.policies import catalog
from redistill.policies.abilities import ABILITIES, Ability, abilities, cost
from redistill.policies.address import Address
from redistill.policies.policy import Teaching
from redistill.policies.server import ServerPolicy
from redistill.policies.transformers import TransformersPolicy
from redistill.policies.transport import Client
from redistill.report.examine import _servers
from redistill.store.query import read_rows
from redistill.testing.fake_server import FakeServer
from redistill.testing.fake_vllm import FakeVllm
from redistill.testing.fakes import fake_prompts
from redistill.testing.tiny import make_tiny_revision
from redistill.types import Completion, Message

QUICK: dict[str, Any] = {"deadline": 20.0, "attempts": 1, "patience": 0.2, "breaker": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TransformersPolicy:
    """A tiny random model that holds its weights."""
    revision = make_tiny_revision(tmp_path_factory.mktemp("teacher"), seed=3)
    policy = TransformersPolicy(revision, threads=1)
    policy.load(revision)
    return policy


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    """Let each test find out for itself."""
    server_needs._known.clear()
    yield


def seen(server: FakeServer, *wanted: Ability) -> dict[Ability, tuple[int, str]]:
    """Ask a server what it can do."""

    async def work() -> dict[Ability, tuple[int, str]]:
        client = Client(Address(server.url, "m", **QUICK))
        try:
            found = await abilities(client, wanted or ABILITIES)
            return {name: (each.level, each.why) for name, each in found.items()}
        finally:
            await client.close()

    return asyncio.run(work())


def test_a_vllm_can_do_all(teacher: TransformersPolicy) -> None:
    """Every ability is seen, in as many calls as were announced, and in few tokens."""
    with FakeVllm(teacher) as server:
        found = seen(server)
        calls, read, written = cost()
        assert server.requests == calls
    assert {name: level for name, (level, _) in found.items()} == {
        **dict.fromkeys(ABILITIES, 1),
        "log_probs": 2,
    }
    assert (read + written) < 1000


@pytest.mark.parametrize(
    ("parameter", "ability"),
    [
        ("logprobs", "log_probs"),
        ("structured_outputs", "choice"),
        ("response_format", "json_schema"),
        ("n", "n"),
        ("seed", "seed"),
        ("return_token_ids", "token_ids"),
        ("prompt_logprobs", "prompt_log_probs"),
    ],
)
def test_what_is_ignored_without_a_word_is_not_believed(
    teacher: TransformersPolicy, parameter: str, ability: Ability
) -> None:
    """A server that takes a parameter and does nothing about it has not the ability."""
    with FakeVllm(teacher, without=[parameter]) as server:
        level, why = seen(server, ability)[ability]
    assert level == 0
    assert why


@pytest.mark.parametrize(
    ("parameter", "ability"), [("structured_outputs", "choice"), ("seed", "seed"), ("n", "n")]
)
def test_what_is_refused_is_told_in_the_servers_words(
    teacher: TransformersPolicy, parameter: str, ability: Ability
) -> None:
    """A 400 is the reason, and the other abilities are found all the same."""
    with FakeVllm(teacher, not_taken=(parameter,)) as server:
        found = seen(server, ability, "json_schema")
    assert found[ability][0] == 0
    assert parameter in found[ability][1]
    assert found["json_schema"][0] == 1


def test_a_server_of_words_can_do_little() -> None:
    """One that only talks holds to nothing, tells nothing, and says always the same."""
    with FakeServer(lambda _: "blue") as server:
        found = seen(server)
    assert [name for name, (level, _) in found.items() if level] == ["seed"]


def test_a_server_that_does_not_answer_is_no_server_that_cannot() -> None:
    """What is away is told as such."""
    with FakeServer(modes="unavailable") as server, pytest.raises(TryLater, match="not answer"):
        seen(server, "n")


# -- a teacher behind an address

PAIRS = [((5, 9, 11), (20, 21, 22, 2)), ((7,), (30, 31, 32)), ((40, 41), (2,))]


def test_a_served_teacher_tells_what_the_same_weights_tell_here(
    teacher: TransformersPolicy,
) -> None:
    """Log-probs of given tokens and the likeliest ones in their places equal those of the model itself."""
    with FakeVllm(teacher) as server:
        far: Any = ServerPolicy(Address(server.url, "m"), teacher)
        assert far.vocabulary == teacher.vocabulary
        for own, told in zip(teacher.score(PAIRS), far.score(PAIRS), strict=True):
            assert told == pytest.approx(own, abs=1e-5)
        here, there = teacher.distributions(PAIRS, 5), far.distributions(PAIRS, 5)
    for (ids, values), (other_ids, others) in zip(here, there, strict=True):
        assert other_ids == ids
        for mine, other in zip(values, others, strict=True):
            assert other == pytest.approx(mine, abs=1e-5)


def test_a_teacher_with_other_tokens_is_refused(teacher: TransformersPolicy) -> None:
    """The server says how it cuts a text, and that is not how the student does."""

    class Shifted(FakeVllm):
        def _read(self, body: Any) -> dict[str, Any]:
            found = super()._read(body)
            for choice in found["choices"]:
                choice["prompt_token_ids"] = [i + 1 for i in choice["prompt_token_ids"]]
            return found

    with (
        Shifted(teacher) as server,
        pytest.raises(BadInput, match="its vocabulary is another one"),
    ):
        ServerPolicy(Address(server.url, "m"), teacher)


def test_a_server_that_does_not_say_its_ids_is_refused(teacher: TransformersPolicy) -> None:
    """Nobody guesses."""
    with (
        FakeVllm(teacher, without=["return_token_ids"]) as server,
        pytest.raises(BadInput, match="return_token_ids"),
    ):
        ServerPolicy(Address(server.url, "m"), teacher)


def test_more_than_a_server_tells_is_told(teacher: TransformersPolicy) -> None:
    """The server's own words, and the flag that raises it."""
    with FakeVllm(teacher, most=4) as server:
        far: Any = ServerPolicy(Address(server.url, "m"), teacher)
        with pytest.raises(BadInput, match="--max-logprobs"):
            far.distributions(PAIRS, 5)


@pytest.mark.parametrize("value", [-9999.0, None, "x"])
def test_what_is_no_number_is_no_log_prob(teacher: TransformersPolicy, value: Any) -> None:
    """VLLM writes -9999 for NaN: that is a failure, and not a very unlikely token."""

    class Sick(FakeVllm):
        def _places(self, ids: Any, k: int) -> list[dict[str, Any]]:
            found = super()._places(ids, k)
            for place in found:
                place[next(reversed(place))]["logprob"] = value
            return found

    with Sick(teacher) as server:
        far: Any = ServerPolicy(Address(server.url, "m"), teacher)
        with pytest.raises(BadInput, match="no finite log-prob"):
            far.score(PAIRS)


def test_the_likelihood_of_answers_is_told_by_a_server(teacher: TransformersPolicy) -> None:
    """`RemoteSpeaker.logprobs` gives what the model gives here; an answer without a token is no number."""
    given = [
        Given((Message("user", "Say hello."),), _said("hello", (20, 21, 2))),
        Given((Message("user", "Say it."),), _said("", ())),
    ]

    async def work(url: str) -> list[Any]:
        servers = Servers({"helper": Role(policy=url, model="m")})
        reader = Reader(teacher, asyncio.to_thread, lambda _: teacher.vocabulary)
        try:
            speaker = RemoteSpeaker(servers, reader=reader)
            return await speaker.logprobs("helper", given)
        finally:
            await servers.close()

    with FakeVllm(teacher) as server:
        first, empty = asyncio.run(work(server.url))
    asked = [(g.messages, g.answer, teacher.vocabulary) for g in given[:1]]
    [mine] = measure(teacher, "helper", asked)
    assert first.logprobs == pytest.approx(mine.logprobs, abs=1e-5)
    assert empty.status in ("ok", "not_applicable")


def _said(text: str, ids: tuple[int, ...]) -> Completion:
    return Completion("c", "p", text, ids, tuple(-1.0 for _ in ids), "stop", "r")


# -- a recipe


def recipe(base: Path, url: Any, judge: Any, **role: Any) -> Recipe:
    """Return a recipe whose labels come from a judge on a helper behind an address."""
    rows = fake_prompts(train=4, heldout=4, test=4)
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = {
        "student": "tiny",
        "prompts": {"file": "prompts.jsonl"},
        "roles": {"helper": {"policy": url, "model": "m", **role}},
        "unproven_judge": "allow",
        "round": [
            {"sample": {"k": 2, "max_tokens": 8}},
            {"score": {"judge": judge}},
            {"select": {}},
            {"train": {"trainer": "sft"}},
            {"evaluate": {"judge": "verifier", "max_tokens": 8}},
            {"gate": {}},
        ],
    }
    return load_recipe(json.dumps(data), "recipe.yaml", base=base)


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ({"choice": {"role": "helper"}}, "choice needs replies held to options"),
        ({"rating": {"role": "helper"}}, "rating needs replies held to options"),
        ({"likelihood": {"role": "helper"}}, "likelihood needs token ids"),
        (
            {"repeat": {"judge": {"choice": {"role": "helper"}}, "k": 2}},
            "choice needs replies held to options",
        ),
    ],
)
def test_a_judge_that_needs_more_than_the_server_has_says_so_first(
    tmp_path: Path, judge: Any, told: str
) -> None:
    """One line with the key, before a model loads or a chunk is paid."""
    with FakeServer(lambda _: "blue") as server:
        with pytest.raises(BadInput, match=told) as caught:
            run(recipe(tmp_path, server.url, judge), place=Place(tmp_path / "runs"))
        assert server.requests <= 2
    assert str(caught.value).startswith("score.judge: ")
    assert not (tmp_path / "runs").exists()


def test_words_alone_are_not_tried(tmp_path: Path) -> None:
    """A judge that is asked in words costs no call before the run."""
    with FakeServer() as server:
        found = recipe(tmp_path, server.url, "helper")
        assert needs(found) == []
        assert check_servers(found) == []
        assert server.requests == 0


def test_a_server_is_tried_once(tmp_path: Path, teacher: TransformersPolicy) -> None:
    """And only for what is needed of it."""
    with FakeVllm(teacher) as server:
        found = recipe(tmp_path, server.url, {"choice": {"role": "helper"}})
        assert check_servers(found) == []
        assert server.requests == 2
        assert check_servers(found) == []
        assert server.requests == 2


def test_all_servers_of_a_pool_must_be_able(tmp_path: Path, teacher: TransformersPolicy) -> None:
    """What one of them lacks, the pool lacks, and it is named."""
    with FakeVllm(teacher) as able, FakeVllm(teacher, without=["structured_outputs"]) as other:
        role = Role.model_validate({"policy": [able.url, other.url], "model": "m"})
        found = ask_servers({"helper": role}, {"helper": ("choice", "n")})["helper"]
    assert (found["choice"].level, found["n"].level) == (0, 1)
    assert other.url.split("/")[2] in found["choice"].why


def test_a_provider_is_refused_without_a_call(tmp_path: Path) -> None:
    """LangChain tells no log-probs, whoever is behind it."""
    base = recipe(tmp_path, "http://a/v1", "helper")
    helper = base.roles["helper"].model_copy(update={"policy": "openai:gpt-x", "model": None})
    judged = recipe(tmp_path, "http://a/v1", {"choice": {"role": "helper"}})
    roles = {**judged.roles, "helper": helper}
    [problem] = check_servers(judged.model_copy(update={"roles": roles}))
    assert "provider does not tell" in problem.what


def test_stored_distributions_of_a_served_teacher(tmp_path: Path) -> None:
    """A server answers and teaches `distill` on what it said, with the same numbers as by the model here."""
    cache = catalog.default_cache()
    revision = catalog.resolve("tiny-teacher", cache=cache).revision
    policy = TransformersPolicy(revision, threads=1)
    policy.load(revision)
    train = {"trainer": "distill", "teacher": "teacher", "on_policy": 0, "top_k": 4, "beta": 0}
    with FakeVllm(policy) as server:
        roles = {"teacher": {"policy": server.url, "model": "m"}}
        folder = run(
            lesson(tmp_path, STAND, train, roles=roles), place=Place(tmp_path / "r", cache)
        )
        asked = server.requests
    [job] = read_rows(folder, "SELECT status, message FROM training_run")
    assert job["status"] == "trained", job["message"]
    rows = read_rows(
        folder,
        """
        SELECT d.logprobs, d.top_ids, d.top_logprobs, a.prompt, a.answer
        FROM token_distribution d JOIN answers a ON a.id = d.completion_id
        """,
    )
    assert rows
    check_rows(policy, rows)
    charged = read_rows(folder, "SELECT purpose, status FROM charge")
    assert {(c["purpose"], c["status"]) for c in charged} == {("sample", "ok"), ("score", "ok")}
    assert asked == len(charged) + 4
    told = json.loads((folder / "jobs" / "1" / "job.json").read_text("utf-8"))
    assert not told["held"]
    server_needs._known.clear()
    resume(folder, place=Place(tmp_path / "r", cache))  # the server has gone, and nothing asks it


def test_a_served_teacher_of_other_tokens_is_refused_before_the_first_answer(
    tmp_path: Path, teacher: TransformersPolicy
) -> None:
    """The run ends with the role's key, and nothing was sampled."""

    class Shifted(FakeVllm):
        def _read(self, body: Any) -> dict[str, Any]:
            found = super()._read(body)
            if isinstance(body["prompt"], str) and len(body["prompt"]) > 60:
                found["choices"][0]["prompt_token_ids"][0] += 1
            return found

    train = {"trainer": "distill", "teacher": "teacher", "on_policy": 0, "top_k": 4, "beta": 0}
    with Shifted(teacher) as server:
        roles = {"teacher": {"policy": server.url, "model": "m"}}
        with pytest.raises(BadInput, match=r"roles\.teacher\.policy: .* vocabulary is another one"):
            run(lesson(tmp_path, STAND, train, roles=roles), place=Place(tmp_path / "r"))
        assert not any("messages" in body for body in server.bodies)


def check_rows(policy: Teaching, rows: list[dict[str, Any]]) -> None:
    """Compare stored opinions with those of the policy itself."""
    pairs = [
        (policy.encode([Message("user", row["prompt"])]), policy.spell(row["answer"]))
        for row in rows
    ]
    told = policy.distributions(pairs, 4)
    for row, own, (ids, values) in zip(rows, policy.score(pairs), told, strict=True):
        assert row["logprobs"] == pytest.approx(own, abs=1e-4)
        for mine, theirs, place in zip(row["top_ids"], ids, row["top_logprobs"], strict=True):
            assert set(mine) == set(theirs) or math.isclose(place[3], place[2], abs_tol=1e-4)
        assert [p[0] for p in row["top_logprobs"]] == pytest.approx(
            [v[0] for v in values], abs=1e-4
        )


def test_an_exam_says_so_too() -> None:
    """`judge admit` pays no exam that can give no verdict."""
    with FakeServer(lambda _: "blue") as server:
        spec = json.dumps({"choice": {"role": "helper"}})
        line = told("judge", "admit", spec, "--role", f"helper={server.url} m", code=2)
        assert server.requests == 2
    assert line.startswith("JUDGE: choice needs replies held to options")


def test_an_exam_reads_log_probs_of_a_server(tmp_path: Path) -> None:
    """The student's tokenizer is enough: no weights are loaded, and without a student nobody reads."""
    cache = catalog.default_cache()
    revision = catalog.resolve("tiny", cache=cache).revision
    policy = TransformersPolicy(revision, threads=1)
    policy.load(revision)
    given = [Given((Message("user", "Say hello."),), _said("hello", ()))]

    async def measured(url: str, student: str) -> Any:
        roles = {"helper": Role(policy=url, model="m")}
        async with ExamSpeaker(roles, student, tmp_path, cache) as speaker:
            [found] = await speaker.logprobs("helper", given)
            assert not speaker._held
            return found

    with FakeVllm(policy) as server:
        found = asyncio.run(measured(server.url, "tiny"))
        with pytest.raises(BadInput, match="no student whose tokens"):
            asyncio.run(measured(server.url, ""))
    [mine] = measure(policy, "helper", [(g.messages, g.answer, None) for g in given])
    assert found.logprobs == pytest.approx(mine.logprobs, abs=1e-5)


# -- what people see


def test_plan_and_doctor_say_what_servers_can_do(
    tmp_path: Path, teacher: TransformersPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only when told to; what is needed and missing does not fit, and what asking costs is said before."""
    monkeypatch.chdir(tmp_path)
    with FakeVllm(teacher, without=["structured_outputs"]) as server:
        found = recipe(
            tmp_path, server.url, {"choice": {"role": "helper"}}, price={"in": 1, "out": 2}
        )
        (tmp_path / "recipe.yaml").write_text(found.to_yaml(), "utf-8")
        folder = tmp_path / "runs" / "one"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(found.to_yaml(), "utf-8")
        (folder / "prompts.jsonl").write_bytes((tmp_path / "prompts.jsonl").read_bytes())

        plain = told("plan", "recipe.yaml")
        assert server.requests == 0
        assert "not asked what it can do; --ask-servers asks: 9 short calls, at most" in plain
        assert "before the run 2 short calls, at most 0.0" in plain

        asked = told("plan", "recipe.yaml", "--ask-servers", code=0)
        assert "json schema, n, seed, token ids, log-probs of given tokens; not: choice" in asked
        assert "does not fit: score.judge: choice needs replies held to options" in asked

        row = json.loads(told("plan", "recipe.yaml", "--ask-servers", "--json"))["servers"][0]
        assert row["can"]["choice"]["level"] == 0
        assert row["can"]["seed"]["level"] == 1

        checks = list(_servers(folder, ask=True))
        assert [(c["name"], c["state"]) for c in checks] == [("server of helper", "ok")]
        assert "seed" in checks[0]["detail"]
    server_needs._known.clear()
    [away] = _servers(folder, ask=True)
    assert (away["state"], "does not answer" in away["detail"]) == ("bad", True)
    [quiet] = _servers(folder, ask=False)
    assert quiet["state"] == "note"
    assert "name the run" in told("doctor", "--ask-servers", code=2)


def told(*command: str, code: int = 0) -> str:
    """Return what a command prints, its lines joined."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        with pytest.raises(SystemExit) as ended:
            main(list(command))
        assert (ended.value.code or 0) == code
    return " ".join((out.getvalue() + errors.getvalue()).split())
