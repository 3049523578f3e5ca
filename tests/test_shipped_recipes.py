"""The recipes that ship: each runs on the toy, makes the rows, the shape and the loss that its paper's loop has.

What is demanded of each is a line of the reduction of arXiv 2402.13116's systems: who writes, who judges, what is kept,
what trains. Read from the store of a finished run, never from the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from redistill.agents.extending import shipped
from redistill.agents.loop import Place, run
from redistill.agents.operators.improve import Train
from redistill.commands.shared import read_recipe
from redistill.policies import catalog
from redistill.store.identify import identify
from redistill.store.lineage import Branch, lineage
from redistill.store.nodes import taught_sql
from redistill.store.query import read_rows
from redistill.testing import tutor
from redistill.testing.fake_server import FakeServer

pytestmark = pytest.mark.recipes

Row = dict[str, Any]
PROMPTS = {"train": 16, "heldout": 40, "test": 24}
"""Of each split: enough for some to pass, and some not."""
PROPOSED = 12


@dataclass(frozen=True)
class Loop:
    """A line of the table; one entry a stage where there are several."""

    writes: str
    """Steps that write text, with the role of each."""
    judges: str
    """Judges of what trains, each with how it was asked; nothing where the rule alone decides."""
    keeps: str
    """How rows are chosen: `select`, or the rule of `pair`."""
    shape: str
    """D1 answers, D2 pairs, D2s pairs with soft labels, D4 lists, D5 prompts with rewards, D6 with privileged text, D7 with what
    a teacher thinks of each token."""
    loss: str
    start: str = "champion"
    """Where training begins."""


GRPO, DPO, SFT = "grpo", "dpo sigmoid", "sft"
RPO = "dpo sigmoid+sft"
REWARD_THEN_RL = f"reward, {GRPO}"
TABLE: dict[str, tuple[Loop, ...]] = {
    "sft_distill": (Loop("sample teacher", "", "select", "D1", SFT),),
    "rejection_sft": (Loop("sample student", "verifier score", "select", "D1", SFT),),
    "critique_revise": (
        Loop("sample student, rewrite reviser", "chat critique", "select", "D1", SFT),
    ),
    "judge_dpo": (Loop("sample student", "judge score", "best_worst", "D2", DPO),),
    "contrast_dpo": (Loop("good better, bad worse", "", "contrast", "D2", RPO),),
    "reward_rl": (Loop("train student", "judge score", "", "D5", GRPO),),
    "on_policy_distill": (Loop("train student", "", "", "D7", "distill beta 1"),),
    "constitutional_ai": (
        Loop("sample student, rewrite self", "chat critique", "select", "D1", SFT),
        Loop(
            "sample student, train student",
            "choice compare, preference score",
            "best_worst",
            "D2s, D5",
            REWARD_THEN_RL,
        ),
    ),
    "rlaif": (
        Loop(
            "sample student, train student",
            "choice compare, preference score",
            "best_worst",
            "D2s, D5",
            REWARD_THEN_RL,
        ),
    ),
    "ultrafeedback": (
        Loop(
            "sample student, older earlier, other twin, train student",
            "rated score, chat critique, reward_model score",
            "correct_incorrect",
            "D2, D5",
            REWARD_THEN_RL,
        ),
    ),
    "zephyr": (
        Loop("sample teacher", "", "select", "D1", SFT),
        Loop("pool student, taught teacher", "judge score", "best_random", "D2", DPO),
    ),
    "self_instruct": (Loop("propose self, sample self", "", "select", "D1", SFT),),
    "self_rewarding": (
        Loop("propose self, sample student", "rating score", "best_worst", "D2", DPO),
    ),
    "spin": (Loop("gold gold, self student", "", "gold_self", "D2", DPO),),
    "star": (
        Loop("sample student, rewrite hinted", "verifier score", "select", "D1", SFT, "initial"),
    ),
    "rest_em": (Loop("sample student", "verifier score", "select", "D1", SFT, "initial"),),
    "gkd": (Loop("sample teacher, train student", "", "select", "D7", "distill beta 0.5"),),
    "sdft": (
        Loop("sample student, train student", "verifier score", "select", "D6, D7", "self_distill"),
    ),
    "rrhf": (Loop("own student, other twin", "judge score", "correct_incorrect", "D4", "rrhf"),),
    "pro": (Loop("sample student", "judge compare", "correct_incorrect", "D4", "pro"),),
    "lmsi": (Loop("sample student", "agreement score", "select", "D1", SFT),),
    "ultrachat": (Loop("propose teacher, sample teacher", "", "select", "D1", SFT),),
    "iterative_rpo": (Loop("sample student", "verifier score", "correct_incorrect", "D2", RPO),),
}


def few_prompts(folder: Path) -> Path:
    """Write the first prompts of each split of the toy."""
    whole = resources.files("redistill") / "recipes" / "data" / "tiny.jsonl"
    lines = whole.read_text("utf-8").splitlines()
    kept = [
        line
        for split, count in PROMPTS.items()
        for line in [each for each in lines if f'"split": "{split}"' in each][:count]
    ]
    file = folder / "few.jsonl"
    file.write_text("\n".join(kept) + "\n", "utf-8")
    return file


def shorten(name: str, tmp: Path) -> Path:
    """Write a recipe that extends the one that ships: few prompts, few steps, as many rounds as it has stages."""
    recipe = read_recipe(name, [])
    steps = [step for stage in recipe.stages for step in stage.steps]
    changes: Row = {f"{s.step}.count": PROPOSED for s in steps if s.name == "propose"}
    for name_ in {s.step for s in steps if isinstance(s, Train)}:
        changes |= {f"{name_}.steps": 2, f"{name_}.epochs": None}
        trainers = {s.trainer_name for s in steps if isinstance(s, Train) and s.step == name_}
        if "grpo" not in trainers:  # its groups are to be several
            changes |= {f"{name_}.batch_size": 4, f"{name_}.micro_batch": 4}
    leave = ["unproven_judge", "self_judge", "same_judge"]
    data = {
        "extends": name,
        "prompts": {"file": few_prompts(tmp).name, "per_round": PROMPTS["train"]},
        "execution": {"threads": 1},
        "loop": {"rounds": len(TABLE[name])},
        "set": changes,
        **{key: "allow" for key in leave if getattr(recipe, key) == "allow"},
    }
    file = tmp / f"{name}.yaml"
    file.write_text(json.dumps(data), "utf-8")
    return file


def ran(name: str, tmp: Path, *settings: str) -> Path:
    """Run the short form of a recipe, and return the run's folder."""
    recipe = read_recipe(str(shorten(name, tmp)), list(settings))
    return run(recipe, place=Place(tmp / "runs", catalog.default_cache()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by the recipe's name, each made once."""
    return {}


# A group a recipe, so that whatever process has run it reads it too.
GROUPED = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in TABLE]


@pytest.fixture(params=GROUPED)
def finished_run(
    request: pytest.FixtureRequest,
    finished: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Path]]:
    """Run each recipe once for all tests of this file."""
    name = request.param
    if name not in finished:
        finished[name] = ran(name, tmp_path_factory.mktemp(name))
    yield name, finished[name]


def test_the_table_is_of_all_that_ship() -> None:
    """No recipe ships that the table does not know, but for the two quickstarts."""
    assert set(TABLE) == {name for name in shipped() if not name.startswith("quickstart")}
    assert len(TABLE) == 23


def test_each_makes_its_rows_shape_and_loss(finished_run: tuple[str, Path]) -> None:
    """Who wrote, who judged, what was kept and what trained, by the store, are what the table says of each round."""
    name, folder = finished_run
    for round_, wanted in enumerate(TABLE[name], start=1):
        found = Loop(
            writes=_writes(folder, round_),
            judges=_judges(folder, round_),
            keeps=_keeps(folder, round_),
            shape=_shape(folder, round_),
            loss=_loss(folder, round_),
            start=_start(folder, round_),
        )
        assert found == wanted, f"round {round_}"


def test_each_ends_with_a_decision_and_a_gain(finished_run: tuple[str, Path]) -> None:
    """Every round published weights that were measured and decided on, and the end measured `test` once for each side."""
    name, folder = finished_run
    decided = read_rows(folder, "SELECT round, challenger, n FROM decision ORDER BY round")
    assert [row["round"] for row in decided] == list(range(1, len(TABLE[name]) + 1))
    assert all(row["challenger"] and row["n"] == PROMPTS["heldout"] for row in decided)
    [gain] = read_rows(folder, "SELECT detail FROM event WHERE kind = 'gain'")
    assert json.loads(gain["detail"])["n"] == PROMPTS["test"]


def test_no_row_that_trains_is_of_another_split(finished_run: tuple[str, Path]) -> None:
    """Prompts that are held out or of test train nothing, whoever proposed or selected them."""
    _, folder = finished_run
    rows = read_rows(
        folder,
        "SELECT DISTINCT p.split FROM training_row r JOIN prompt p ON p.id = r.prompt_id",
    )
    assert [row["split"] for row in rows] == ["train"]


def test_a_query_says_which_judgement_made_which_row(finished_run: tuple[str, Path]) -> None:
    """Of each row that a judge had a part in, the answers that trained have that judge's verdict in the same run."""
    name, folder = finished_run
    for round_, loop in enumerate(TABLE[name], start=1):
        if "D6" in loop.shape:
            continue  # its verdicts chose what the teacher sees: the test below follows them
        parts = [part for part in loop.judges.split(", ") if part and "critique" not in part]
        labels = [part.split()[0] for part in parts]
        rows = read_rows(
            folder,
            """
            SELECT r.id, list(DISTINCT j.judge) FILTER (j.status = 'ok') AS judged
            FROM training_row r LEFT JOIN judgement j
              ON j.completion_id = r.completion_id OR list_contains(j.presented, r.completion_id)
            WHERE r.round = ? GROUP BY r.id
            """,
            [round_],
        )
        assert rows
        told = {judge for row in rows for judge in row["judged"] or ()}
        assert set(labels) <= told


def test_lineage_leads_from_a_row_to_its_verdict_and_to_the_weights(
    finished_run: tuple[str, Path],
) -> None:
    """From a row that trained `lineage` goes up to answer, prompt and verdict, and down to the weights it trained."""
    name, folder = finished_run
    for round_, loop in enumerate(TABLE[name], start=1):
        [row] = read_rows(
            folder,
            """
            SELECT r.id::VARCHAR AS id, t.revision FROM training_row r JOIN training_run t ON t.id = r.training_run_id
            JOIN decision d ON d.challenger = t.revision WHERE r.round = ? ORDER BY r.position LIMIT 1
            """,
            [round_],
        )
        found = lineage(folder, identify(folder, row["id"]))
        above, below = set(_nodes(found.up)), set(_nodes(found.down))
        assert {"completion", "prompt"} <= {kind for kind, _ in above}
        assert ("revision", row["revision"]) in below
        if "score" in loop.judges or "compare" in loop.judges:
            assert "judgement" in {kind for kind, _ in above}


def test_each_row_rests_on_its_step_and_its_judge(finished_run: tuple[str, Path]) -> None:
    """What names the rows nearest to a loss has each row once, and a list by the step and the judge of its pairs."""
    name, folder = finished_run
    for round_, loop in enumerate(TABLE[name], start=1):
        found = read_rows(
            folder, f"SELECT origin, judges FROM ({taught_sql()}) WHERE round = ?", [round_]
        )
        [rows] = read_rows(
            folder, "SELECT count(*) AS n FROM training_row WHERE round = ?", [round_]
        )
        assert len(found) == rows["n"] > 0
        if loop.shape == "D4":
            assert all((row["origin"], row["judges"]) == ("pair", ["judge"]) for row in found)


def _nodes(branch: Branch | None) -> Iterator[tuple[str, str]]:
    if branch is None:
        return
    yield branch.node.kind, branch.node.id
    for fan in branch.fans:
        for each in fan.branches:
            yield from _nodes(each)


# -- other teachers by role lines alone


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("critique_revise", ("critic", "reviser")),
        ("judge_dpo", ("judge",)),
        ("reward_rl", ("judge",)),
        ("self_instruct", ("self",)),
    ],
)
def test_a_teacher_behind_an_address_is_a_role_line(
    name: str, roles: tuple[str, ...], tmp_path: Path
) -> None:
    """The same recipe, with an address for the tutor, makes the same kinds of rows, said by a model elsewhere."""
    with FakeServer(tutor.reply) as server:
        there = [f"roles.{role}={{policy: '{server.url}', model: tutor}}" for role in roles]
        folder = ran(name, tmp_path, *there)
        asked = server.requests
    assert asked > 0
    [wanted] = TABLE[name]
    assert (_shape(folder, 1), _loss(folder, 1)) == (wanted.shape, wanted.loss)
    assert _judges(folder, 1) == wanted.judges


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("critique_revise", ("critic", "reviser")),
        ("judge_dpo", ("judge",)),
        ("self_rewarding", ("self",)),
        ("on_policy_distill", ("teacher",)),
    ],
)
def test_the_student_as_its_own_teacher_is_a_role_line(
    name: str, roles: tuple[str, ...], tmp_path: Path
) -> None:
    """The same recipe runs to its decision with the student in the teacher's place.

    Asked for a judgement, a toy that reads 256 characters has no room to read, or says nothing that can be read: each time
    a status, never a score, and so no row that trains. As a teacher token by token it needs no words.
    """
    context = ", context: {system: 'please'}" if name == "on_policy_distill" else ""
    own = [f"roles.{role}={{policy: student, revision: initial{context}}}" for role in roles]
    folder = ran(name, tmp_path, "self_judge=allow", *own)
    [decided] = read_rows(folder, "SELECT decision FROM decision")
    [job] = read_rows(folder, "SELECT status FROM training_run")
    asked = read_rows(
        folder,
        """
        SELECT DISTINCT status FROM judgement WHERE judge <> 'verifier' AND round > 0
        """,
    )
    if name == "on_policy_distill":
        assert (job["status"], asked) == ("trained", [])
    else:
        assert (job["status"], decided["decision"]) == ("no_rows", "rejected")
        assert {row["status"] for row in asked} <= {"parse_error", "too_big"}
        assert asked


# -- what the store says of a round


def _writes(folder: Path, round_: int) -> str:
    rows = read_rows(
        folder,
        """
        SELECT step, role, min(created_at) AS first FROM completion
        WHERE round = ? AND split = 'train' GROUP BY step, role ORDER BY first
        """,
        [round_],
    )
    return ", ".join(f"{row['step']} {row['role']}" for row in rows)


def _judges(folder: Path, round_: int) -> str:
    rows = read_rows(
        folder,
        """
        SELECT j.judge, j.mode, min(j.created_at) AS first FROM judgement j
        JOIN completion c ON c.id = coalesce(j.completion_id, j.presented[1])
        WHERE j.round = ? AND c.split = 'train' AND j.aspect = '' AND j.status = 'ok'
          AND j.judge <> j.step  -- the exam of a judge that a step has made
        GROUP BY j.judge, j.mode ORDER BY first
        """,
        [round_],
    )
    return ", ".join(f"{row['judge']} {row['mode']}" for row in rows)


def _keeps(folder: Path, round_: int) -> str:
    rules = read_rows(folder, "SELECT DISTINCT rule FROM pair WHERE round = ?", [round_])
    if rules:
        return ", ".join(row["rule"] for row in rules)
    kept = read_rows(folder, "SELECT count(*) AS n FROM selection WHERE round = ?", [round_])
    return "select" if kept[0]["n"] else ""


def _shape(folder: Path, round_: int) -> str:
    [found] = read_rows(
        folder,
        """
        SELECT count(*) FILTER (r.rejected_id IS NOT NULL AND r.probability > 0 AND r.probability < 1) AS soft,
               count(*) FILTER (r.rejected_id IS NOT NULL) AS pairs,
               count(*) FILTER (len(r.ranked) > 1) AS lists,
               count(*) FILTER (t.trainer = 'grpo' AND r.reward IS NOT NULL) AS rewarded,
               count(*) FILTER (r.rejected_id IS NULL AND r.reward IS NULL AND t.trainer = 'sft') AS answers,
               count(*) FILTER (t.trainer IN ('distill', 'self_distill')) AS thought_of,
               count(*) FILTER (t.trainer = 'self_distill' AND s.settings ->> 'given' <> '') AS shown
        FROM training_row r JOIN training_run t ON t.id = r.training_run_id
        JOIN step s ON s.round = t.round AND s.step = t.step WHERE r.round = ?
        """,
        [round_],
    )
    shapes = [
        ("D1", found["answers"]),
        ("D2s" if found["soft"] else "D2", found["pairs"]),
        ("D4", found["lists"]),
        ("D5", found["rewarded"]),
        ("D6", found["shown"]),
        ("D7", found["thought_of"]),
    ]
    return ", ".join(name for name, count in shapes if count)


def _loss(folder: Path, round_: int) -> str:
    rows = read_rows(
        folder,
        "SELECT trainer, settings, status FROM training_run WHERE round = ? ORDER BY created_at",
        [round_],
    )
    assert {row["status"] for row in rows} == {"trained"}
    return ", ".join(_told(row["trainer"], json.loads(row["settings"])) for row in rows)


def _told(trainer: str, settings: Row) -> str:
    if trainer == "dpo":
        kinds = settings.get("options", {}).get("loss_type", "sigmoid")
        return f"dpo {kinds if isinstance(kinds, str) else '+'.join(kinds)}"
    return f"distill beta {settings['beta']:g}" if trainer == "distill" else trainer


def _start(folder: Path, round_: int) -> str:
    """Say where training began, told apart where the champion is another one than the first student."""
    [row] = read_rows(
        folder,
        "SELECT json_extract_string(settings, '$.from') AS begins FROM step WHERE round = ? AND operator = 'train' "
        "ORDER BY position DESC LIMIT 1",
        [round_],
    )
    return str(row["begins"])
