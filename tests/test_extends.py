"""`extends:` and `set:`: a variant of a recipe is the recipe that one could have written out in full."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redistill.agents.recipe import KEYS, LEAVE, Recipe, load_recipe
from redistill.cli import main
from redistill.errors import BadInput
from redistill.report.header import header_of

BASE = """\
name: base
student: redistill.testing.fakes:FakeStudent
prompts:
  file: prompts.jsonl
  per_round: 8
unproven_judge: allow
self_judge: allow
roles:
  teacher:
    context: {system: Be brief.}
round:
  - sample: {role: teacher, k: 2}
  - score: {judge: verifier}
  - pair: {rule: best_worst}
  - train: {trainer: dpo, beta: 0.1}
  - evaluate: {judge: verifier}
  - gate
loop: {rounds: 2, stop: {patience: 2}}
execution: {threads: 2}
"""
STAGES = """\
stages:
  - repeat: 1
  - repeat: 2
    set: {sample.k: 3, train.beta: 0.3}
  - round:
      - sample: {as: draft}
      - score: {judge: longest}
      - select: {where: longest > 0.1}
      - train: {trainer: sft}
      - evaluate: {judge: verifier}
      - gate
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a base and its prompts, below which the extending recipes lie."""
    rows = [{"prompt": s, "split": s} for s in ("train", "heldout", "test")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "base.yaml").write_text(BASE, "utf-8")
    return tmp_path


def _load(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    return load_recipe(file.read_text("utf-8"), str(file), base=file.parent, overrides=overrides)


def _variant(home: Path, text: str, name: str = "mine.yaml") -> Recipe:
    (home / name).write_text(text, "utf-8")
    return _load(home / name)


def _faults(home: Path, text: str, name: str = "mine.yaml") -> list[str]:
    with pytest.raises(BadInput) as error:
        _variant(home, text, name)
    return [str(problem).replace(f"{home}/", "") for problem in error.value.problems]


# -- what comes out


def test_a_variant_that_says_nothing_is_its_base(home: Path) -> None:
    """All is inherited but the leaves and the name, which is the file's own."""
    mine, base = _variant(home, "extends: base.yaml"), _load(home / "base.yaml")
    assert mine.key == base.key
    assert (mine.name, base.name) == ("mine", "base")
    assert (mine.unproven_judge, mine.self_judge) == ("refuse", "refuse")
    assert (base.unproven_judge, base.self_judge) == ("allow", "allow")


def test_what_is_resolved_extends_nothing(home: Path) -> None:
    """The resolved recipe stands alone: loaded from elsewhere it is the same run."""
    mine = _variant(home, "extends: base.yaml\nset: {sample.k: 8}\nseed: 3")
    data = yaml.safe_load(mine.to_yaml())
    assert not {"extends", "set"} & {*data}
    again = load_recipe(mine.to_yaml(), "recipe.yaml", base=home)
    assert again.key == mine.key
    assert again.resolved() == mine.resolved()


def test_mappings_are_replaced_key_by_key_and_roles_whole(home: Path) -> None:
    """`prompts`, `loop` and `execution` keep what is not said; a role that is said is all new."""
    mine = _variant(
        home,
        "extends: base.yaml\nprompts: {per_round: 4}\nloop: {rounds: 5}\nexecution: {anchors: 0}\n"
        "roles: {teacher: {revision: initial}, helper: {}}",
    )
    assert (mine.prompts.file, mine.prompts.per_round) == ("prompts.jsonl", 4)
    assert (mine.loop.rounds, mine.loop.stop.patience) == (5, 2)
    assert (mine.execution.threads, mine.execution.anchors) == (2, 0)
    assert mine.roles["teacher"].context.system is None
    assert {*mine.roles} == {"student", "teacher", "helper"}


def test_a_round_is_replaced_whole(home: Path) -> None:
    """Steps are never merged: their order is what a round is."""
    steps = ["{sample: {}}", "{score: {judge: verifier}}", "{select: {where: verifier = 1}}"]
    steps += ["{train: {trainer: sft}}", "{evaluate: {judge: verifier}}", "gate"]
    mine = _variant(home, "extends: base.yaml\nround:\n" + "\n".join(f"  - {s}" for s in steps))
    assert [step.step for step in mine.stages[0].steps][2] == "select"


def test_set_reaches_every_stage_that_has_the_step(home: Path) -> None:
    """It wins over the base's own `set`; a stage without the step is left as it is."""
    (home / "base.yaml").write_text(BASE + STAGES, "utf-8")
    changes = "{sample.k: 8, pair.rule: best_random, train.weight_decay: 0.5, draft.k: 1}"
    mine = _variant(home, f"extends: base.yaml\nset: {changes}")
    ks = [getattr(stage.steps[0], "k", None) for stage in mine.stages]
    assert ks == [8, 8, 1]
    assert [trainer.weight_decay for trainer in mine.trainers()] == [0.5, 0.5, 0.5]
    assert [getattr(trainer, "beta", None) for trainer in mine.trainers()] == [0.1, 0.3, None]


def test_set_changes_a_part_of_what_a_stage_sets(home: Path) -> None:
    """A stage sets the whole trainer, the variant one setting of it: the rest stays."""
    stages = "stages: [{set: {train.trainer: {dpo: {beta: 0.3, steps: 4}}}}]"
    (home / "base.yaml").write_text(BASE.replace(", beta: 0.1", "") + stages, "utf-8")
    mine = _variant(home, "extends: base.yaml\nset: {train.trainer.dpo.beta: 0.5}")
    [trainer] = mine.trainers()
    assert (getattr(trainer, "beta", None), trainer.steps) == (0.5, 4)


def test_set_on_the_command_line_comes_last(home: Path) -> None:
    """`--set` works on a variant as on any recipe, whoever has written the step."""
    (home / "mine.yaml").write_text("extends: base.yaml\nset: {sample.k: 8}", "utf-8")
    mine = _load(home / "mine.yaml", ["sample.k=5", "loop.rounds=1"])
    assert getattr(mine.stages[0].steps[0], "k", 0) == 5
    assert mine.rounds == 1


def test_a_chain_is_followed(home: Path) -> None:
    """The nearest recipe wins, and none of the leaves comes from below."""
    (home / "middle.yaml").write_text(
        "extends: base.yaml\nset: {sample.k: 8}\nseed: 3\nself_judge: allow", "utf-8"
    )
    mine = _variant(home, "extends: middle.yaml\nset: {sample.k: 9}")
    assert (mine.seed, mine.name, mine.self_judge) == (3, "mine", "refuse")
    assert getattr(mine.stages[0].steps[0], "k", 0) == 9


def test_a_recipe_that_ships_is_named(tmp_path: Path) -> None:
    """Its name is enough, from any folder."""
    mine = _variant(tmp_path, "extends: quickstart-tiny\nset: {evaluate.max_tokens: 40}")
    assert (mine.evaluate.max_tokens, len(mine.stages)) == (40, 3)
    assert mine.unproven_judge == "refuse"


def test_paths_of_the_base_stay_its_own(home: Path) -> None:
    """Prompts, worked examples, rubrics and folders of models are found from elsewhere, with the same key."""
    shots = home / "shots.jsonl"
    shots.write_text('{"prompt": "q", "answer": "a"}\n', "utf-8")
    (home / "rubric.txt").write_text("Look at {answer}.", "utf-8")
    model = home / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", "utf-8")
    text = BASE.replace("context: {system: Be brief.}", "context: {few_shot: {file: shots.jsonl}}")
    text = text.replace("student: redistill.testing.fakes:FakeStudent", "student: model")
    text = text.replace("  - score", "  - critique: {role: teacher, rubric: rubric.txt}\n  - score")
    (home / "base.yaml").write_text(text, "utf-8")
    below = home / "a" / "b"
    below.mkdir(parents=True)
    mine, base = _variant(below, "extends: ../../base.yaml"), _load(home / "base.yaml")
    assert mine.key == base.key
    assert mine.prompts.file == "../../prompts.jsonl"
    assert (below / mine.student).resolve() == model
    assert [file.resolve() for file in mine.step_files()] == [home / "rubric.txt"]
    shot = mine.roles["teacher"].context.few_shot
    assert shot
    assert (below / shot.file).resolve() == shots


def test_paths_of_a_variant_are_its_own(home: Path) -> None:
    """A rubric that `set` names lies beside the file that says so, also where that is a base itself."""
    text = BASE.replace("  - score", "  - critique: {role: teacher}\n  - score")
    (home / "base.yaml").write_text(text, "utf-8")
    below = home / "below"
    below.mkdir()
    (below / "rubric.txt").write_text("Look at {answer}.", "utf-8")
    said = "extends: ../base.yaml\nset: {critique.rubric: rubric.txt}"
    assert _variant(below, said).step_files() == [below / "rubric.txt"]
    assert _variant(home, "extends: below/mine.yaml").step_files() == [below / "rubric.txt"]


def test_the_documents_variant_loads(tmp_path: Path) -> None:
    """What docs/recipes.md says to write is a recipe, and its example of a header is one."""
    blocks = (Path(__file__).parents[1] / "docs/recipes.md").read_text("utf-8").split("```yaml\n")
    variant, header = (block.partition("```")[0] for block in blocks[1:])
    assert getattr(_variant(tmp_path, variant).stages[0].steps[0], "k", 0) == 8
    assert header_of(header, "recipes.md")


_VALUES: dict[str, Any] = {
    "seed": 7,
    "chunk": 8,
    "precision": "float32",
    "prompts": {"file": "prompts.jsonl", "per_round": 4},
    "loop": {"rounds": 3, "stop": {"patience": 1}},
    "roles": {"teacher": {"revision": "initial"}, "helper": {"context": {"system": "Think."}}},
    "execution": {"threads": 1},
}
_SETS: dict[str, Any] = {
    "sample.k": 6,
    "sample.role": "teacher",
    "pair.rule": "best_random",
    "train.weight_decay": 0.2,
    "train.trainer.dpo.nll": 0.5,
    "evaluate.max_tokens": 32,
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    split=st.sets(st.sampled_from(sorted(_VALUES))),
    sets=st.sets(st.sampled_from(sorted(_SETS))),
    staged=st.booleans(),
)
def test_a_variant_has_the_key_of_the_recipe_written_out(
    home: Path, split: set[str], sets: set[str], staged: bool
) -> None:
    """Law: whatever is said by the variant and whatever by its base, the run is the one of a single file."""
    # A `select` step would try its SQL each time, which is what takes long.
    quick = STAGES.replace("select: {where: longest > 0.1}", "pair: {}").replace("sft", "orpo")
    stages = {"stages": yaml.safe_load(quick)["stages"]} if staged else {}
    below = (
        yaml.safe_load(BASE.replace("{trainer: dpo, beta: 0.1}", "{trainer: {dpo: {}}}")) | stages
    )
    above = {key: _VALUES[key] for key in split}
    changes = {key: _SETS[key] for key in sets if not (staged and "dpo" in key)}
    full = copy.deepcopy(below) | {k: v for k, v in above.items() if k != "roles"}
    for key in ("prompts", "loop", "execution", "roles"):
        full[key] = {**below[key], **above.get(key, {})}
    for path, value in changes.items():
        _put(full, path, value)
    (home / "base.yaml").write_text(yaml.safe_dump(below, sort_keys=False), "utf-8")
    said = {"extends": "base.yaml", **above, **({"set": changes} if changes else {})}
    mine = _variant(home, yaml.safe_dump(said, sort_keys=False))
    whole = load_recipe(yaml.safe_dump(full), "full.yaml", base=home)
    assert mine.key == whole.key
    left_out = ("name", *LEAVE)
    assert {k: v for k, v in mine.resolved().items() if k not in left_out} == {
        k: v for k, v in whole.resolved().items() if k not in left_out
    }


def _put(full: dict[str, Any], path: str, value: Any) -> None:
    """Write a setting into each round that has its step, by hand."""
    name, *keys = path.split(".")
    owned = [stage["round"] for stage in full.get("stages", ()) if "round" in stage]
    for steps in (full["round"], *owned):
        for step in steps:
            [(operator, inner)] = step.items() if isinstance(step, dict) else [(step, {})]
            if name == inner.get("as", operator):
                for key in keys[:-1]:
                    if not isinstance(inner.get(key), dict):
                        inner[key] = {}
                    inner = inner[key]
                inner[keys[-1]] = value
    for stage in full.get("stages", ()):
        stage.get("set", {}).pop(path, None)


# -- mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nextends: bass.yaml", "mine.yaml:2 extends: no such recipe: bass.yaml"),
        ("extends: base", "mine.yaml:1 extends: no such recipe: base; did you mean base.yaml?"),
        ("extends: quickstrat", "did you mean quickstart?"),
        ("extends: [base.yaml]", "mine.yaml:1 extends: names one recipe"),
        ("extends: mine.yaml", "mine.yaml:1 extends: goes in a circle: mine.yaml -> mine.yaml"),
        ("extends: base.yaml\nset: 3", "mine.yaml:2 set: must be a mapping, not 3"),
        ("extends: base.yaml\nset: {smple.k: 3}", "mine.yaml:2 set.smple.k: names no setting of a step; did you mean sample?"),
        ("extends: base.yaml\nset: {sample: 3}", "mine.yaml:2 set.sample: names no setting of a step"),
        ("extends: base.yaml\nset:\n  sample.kk: 3", "mine.yaml:3 round[0].sample.kk: unknown key"),
        ("extends: base.yaml\nset:\n  train.rewards.x: 3", "mine.yaml:3 round[3].train.rewards"),
        ("extends: base.yaml\nsed: 3", "mine.yaml:2 sed: unknown key"),
        ("extends: base.yaml\n\nseed: x", "mine.yaml:3 seed: "),
        ("extends: base.yaml\nroles:\n  teacher: {polcy: x}", "mine.yaml:3 roles.teacher.polcy: unknown key"),
        ("extends: base.yaml\nroles: {teacher: 5}", "mine.yaml:2 roles.teacher"),
        ("extends: base.yaml\nprompts: {per_round: x}", "mine.yaml:2 prompts.per_round"),
        ("seed: 1\nset: {sample.k: 3}", "mine.yaml:2 set: changes what is extended, and nothing is"),
    ],
)  # fmt: skip
def test_a_mistake_has_the_place_where_it_is_written(home: Path, text: str, told: str) -> None:
    """What the variant has wrong is told with its own line."""
    assert any(told in fault for fault in _faults(home, text)), _faults(home, text)


def test_a_mistake_of_the_base_has_the_bases_place(home: Path) -> None:
    """The fault stands in the base, also if the variant changes something beside it."""
    faulty = BASE.replace("role: teacher, k: 2", "role: techer, k: 2")
    (home / "base.yaml").write_text(faulty, "utf-8")
    [fault] = _faults(home, "extends: base.yaml\nset: {sample.temperature: 0.2}\nseed: 1")
    assert fault.startswith("base.yaml:12 round[0].sample.role: unknown role 'techer'")
    (home / "base.yaml").write_text("student: [", "utf-8")
    [fault] = _faults(home, "extends: base.yaml")
    assert fault.startswith("base.yaml:1: no valid YAML")


def test_a_circle_is_named(home: Path) -> None:
    """Two recipes that extend each other end at the third look, in one line."""
    (home / "other.yaml").write_text("extends: mine.yaml", "utf-8")
    [fault] = _faults(home, "extends: other.yaml")
    assert "other.yaml:1 extends: goes in a circle: mine.yaml -> other.yaml -> mine.yaml" in fault


def test_a_round_that_no_stage_uses_is_refused(home: Path) -> None:
    """A variant's round would be read by nobody where each stage of the base has its own."""
    steps = yaml.safe_dump(yaml.safe_load(STAGES)["stages"][2]["round"])
    own = "stages:\n- round:\n" + "".join(f"  {line}\n" for line in steps.splitlines())
    (home / "base.yaml").write_text(BASE + own, "utf-8")
    [fault] = _faults(home, f"extends: base.yaml\nround:\n{steps}")
    assert fault.startswith("mine.yaml:2 round: is used nowhere")


def test_what_is_no_key_of_a_run_is_no_setting(home: Path) -> None:
    """`--set extends=...` would do nothing, so it is refused."""
    assert not {"extends", "set"} & {*KEYS}
    with pytest.raises(BadInput, match="'extends' is no step and no key"):
        _load(home / "base.yaml", ["extends=quickstart"])


# -- every door


def test_every_command_reads_a_variant(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints the file, and `show --resolved` and `graph` what comes of it."""
    file = home / "mine.yaml"
    file.write_text("# mine\nextends: base.yaml\nset: {sample.k: 8}\n", "utf-8")

    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    assert told("show", str(file)) == file.read_text("utf-8")
    resolved = yaml.safe_load(told("show", str(file), "--resolved"))
    assert resolved["stages"][0]["round"][0]["sample"]["k"] == 8
    assert "sample -.-> score" in told("graph", str(file))
