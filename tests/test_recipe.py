"""Recipes: every mistake in one go with its line, one resolved form, and an id of all that matters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.agents.operators.curate import Pair, Select
from redistill.agents.operators.elicit import Sample
from redistill.agents.operators.feedback import Score
from redistill.agents.operators.gate import Gate
from redistill.agents.operators.improve import Evaluate, Train
from redistill.agents.recipe import Recipe, load_recipe
from redistill.agents.yaml_lines import line_of, parse
from redistill.errors import BadInput

PLAIN = """\
name: plain
student: redistill.testing.fakes:FakeStudent
prompts:
  file: prompts.jsonl
  per_round: 8
roles:
  teacher:
    context: {system: Be brief.}
round:
  - sample:
      k: 2
  - score:
      judge: verifier
  - pair:
      rule: best_worst
  - train:
      trainer: dpo
      beta: 0.1
  - evaluate:
      judge: verifier
  - gate:
loop:
  rounds: 2
"""
STAGED = """\
stages:
  - repeat: 1
  - repeat: 2
    set:
      sample.k: 3
      score.judge: longest
  - round:
      - sample: {as: draft}
      - score: {judge: longest}
      - select: {where: longest > 0.1}
      - train: {trainer: sft}
      - evaluate: {judge: verifier}
      - gate
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a folder with a prompts file."""
    rows = [{"prompt": s, "split": s} for s in ("train", "heldout", "test")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "shots.jsonl").write_text('{"prompt": "q", "answer": "a"}\n', "utf-8")
    return tmp_path


def _load(text: str, base: Path = Path(), overrides: Sequence[str] = ()) -> Recipe:
    return load_recipe(text, "r.yaml", base=base, overrides=overrides)


def _faults(text: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(BadInput) as error:
        _load(text, overrides=overrides)
    told = [str(problem) for problem in error.value.problems]
    assert not any("\n" in line for line in told)
    assert len(set(told)) == len(told)
    return told


# -- mistakes


MISTAKES: list[tuple[str, str, str, str]] = [
    ("prompts:", "promts:", "r.yaml:3 promts: unknown key", "did you mean prompts?"),
    ("loop:", "looop:", "r.yaml:22 looop: unknown key", "did you mean loop?"),
    ("round:\n", "rounds:\n", "r.yaml:9 rounds: unknown key", "did you mean round?"),
    ("name: plain", "base: /tmp", "r.yaml:1 base: unknown key", "keys are"),
    ("name: plain", "7: plain", "r.yaml:1 7: unknown key", "keys are"),
    ("name: plain", "name: no", "r.yaml:1 name: ", "given: False"),
    ("name: plain", "seed: -1", "r.yaml:1 seed: ", "given: -1"),
    ("name: plain", "seed: .nan", "r.yaml:1 seed: ", "given: nan"),
    ("name: plain", "chunk: 0", "r.yaml:1 chunk: ", "given: 0"),
    ("name: plain", "name: 2026-13-45", "r.yaml: no valid YAML", "month must be in 1..12"),
    ("name: plain", "name: plain\nname: other", "r.yaml:2 name: key given twice", "line 1"),
    ("name: plain", 'name: "\\ud83d"', "r.yaml:1: holds half of a surrogate pair", ""),
    ("  per_round: 8", "  per_rounds: 8", "r.yaml:5 prompts.per_rounds: unknown key", "did you mean per_round?"),
    ("  per_round: 8", "  per_round: eight", "r.yaml:5 prompts.per_round: ", "given: 'eight'"),
    ("  per_round: 8", "  heldout_share: 0.7", "r.yaml:5 prompts.heldout_share: ", "given: 0.7"),
    ("  teacher:", "  verifier:", "r.yaml:7 roles.verifier: is the name of a judge", "another name"),
    ("  teacher:", "  student:", "r.yaml:7 roles.student: the student's own role", "another name"),
    ("{system: Be brief.}", "{sytem: x}", "r.yaml:8 roles.teacher.context.sytem: unknown key", "system"),
    ("{system: Be brief.}", "{system: 5}", "r.yaml:8 roles.teacher.context.system: ", "given: 5"),
    ("  - sample:", "  - smaple:", "r.yaml:10 round[0]: unknown operator 'smaple'", "did you mean sample?"),
    ("      k: 2", "      kk: 2", "r.yaml:11 round[0].sample.kk: unknown key", "did you mean k?"),
    ("      k: 2", "      k: four", "r.yaml:11 round[0].sample.k: ", "given: 'four'"),
    ("      k: 2", "      k: 2\n      k: 3", "r.yaml:12 k: key given twice", "line 11"),
    ("      k: 2", "      role: techer", "r.yaml:11 round[0].sample.role: unknown role 'techer'", "did you mean teacher?"),
    ("      k: 2", "      as: gain", "r.yaml:9 round: 'gain' cannot name a step", "another word"),
    ("      k: 2", "      as: cursor", "r.yaml:9 round: 'cursor' cannot name a step", "another word"),
    ("      k: 2", "      as: __end__", "r.yaml:9 round: '__end__' cannot name a step", "another word"),
    ("      k: 2", "      as: a b", "r.yaml:9 round: 'a b' cannot name a step", "another word"),
    ("      k: 2", "      as: pair", "r.yaml:9 round: two steps are named 'pair'", "`as:`"),
    ("judge: verifier\n  - pair", "judge: verifer\n  - pair", "r.yaml:13 round[1].score.judge: unknown judge 'verifer'", "did you mean verifier?"),
    ("judge: verifier\n  - pair", "judge: {longest: {unt: x}}\n  - pair", "r.yaml:13 round[1].score.judge.longest.unt: unknown key", "did you mean unit?"),
    ("judge: verifier\n  - pair", "judge: no.such.module:f\n  - pair", "r.yaml:13 round[1].score.judge: judge", "no.such"),
    ("judge: verifier\n  - pair", "judge: [a]\n  - pair", "r.yaml:13 round[1].score.judge: ", "given: ['a']"),
    ("  - score:\n      judge: verifier\n", "", "r.yaml:12 round[1].pair: nothing has scored", "`score`"),
    ("rule: best_worst", "rule: bestworst", "r.yaml:15 round[2].pair.rule: ", "given: 'bestworst'"),
    ("rule: best_worst", "by: longest", "r.yaml:15 round[2].pair.by: 'longest' has not scored", "by: verifier"),
    ("rule: best_worst", "of: smple", "r.yaml:15 round[2].pair.of: 'smple' makes no completions", "did you mean sample?"),
    ("rule: best_worst", "of: score", "r.yaml:15 round[2].pair.of: 'score' makes no completions", "sample"),
    ("trainer: dpo", "trainer: dpp", "r.yaml:17 round[3].train.trainer: unknown trainer 'dpp'", "did you mean dpo?"),
    ("beta: 0.1", "bta: 0.1", "round[3].train.trainer.dpo.bta: unknown key", "did you mean beta?"),
    ("beta: 0.1", "from: last", "r.yaml:18 round[3].train.from: ", "given: 'last'"),
    ("  - pair:\n      rule: best_worst\n", "  - select: {}\n", "r.yaml:15 round[3].train: dpo needs pairs", "`pair`"),
    ("  - gate:\n", "", "r.yaml:9 round: has 0 gate steps", "exactly one"),
    ("  - gate:\n", "  - gate:\n  - sample: {as: late}\n", "r.yaml:9 round: must end with", "in this order"),
    ("  - gate:\n", "  - [gate]\n", "r.yaml:21 round[5]: ['gate'] is no name", "write a name"),
    ("  - gate:\n", "  - gate:\n    x: 1\n", "r.yaml:21 round[5]: exactly one name is wanted", "gate, x"),
    ("  - gate:\n", "  - gate: 5\n", "r.yaml:21 round[5].gate: settings are a mapping", "5"),
    ("  rounds: 2", "  rounds: two", "r.yaml:23 loop.rounds: ", "given: 'two'"),
    ("  rounds: 2", "  rounds: 0", "r.yaml:23 loop.rounds: ", "given: 0"),
    ("loop:\n  rounds: 2", "loop: 3", "r.yaml:22 loop: ", "given: 3"),
    ("loop:\n  rounds: 2", "stages: 3", "r.yaml:22 stages: must be a list of stages, not 3", ""),
    ("loop:\n  rounds: 2", "stages: [3]", "r.yaml:22 stages[0]: must be a mapping, not 3", ""),
    ("loop:\n  rounds: 2", "stages: [{repeat: 0}]", "r.yaml:22 stages[0].repeat: ", "given: 0"),
    ("loop:\n  rounds: 2", "stages: [{repat: 2}]", "r.yaml:22 stages[0].repat: unknown key", "did you mean repeat?"),
    ("loop:\n  rounds: 2", "stages: [{set: [a]}]", "r.yaml:22 stages[0].set: must be a mapping", "['a']"),
    ("loop:\n  rounds: 2", "stages: [{set: {smple.k: 3}}]", "r.yaml:22 stages[0].set.smple.k: names no setting", "did you mean sample?"),
    ("loop:\n  rounds: 2", "stages: [{set: {sample: 3}}]", "r.yaml:22 stages[0].set.sample: names no setting", "steps are"),
    ("loop:\n  rounds: 2", "stages: [{round: []}]", "r.yaml:22 stages[0].round: a round is a list", "`- sample: {}`"),
    ("loop:\n  rounds: 2", "stages: [{}, {set: {evaluate.judge: longest}}]", "r.yaml:22 stages: evaluate differs", "comparable"),
    ("      k: 2", "      k: *two", "r.yaml:11: *two: aliases are not read", "write it out"),
    ("      k: 2", "      k: !!python/object:os.system x", "r.yaml:11: no valid YAML", "python/object"),
    ("      k: 2", "\t k: 2", "r.yaml:11: no valid YAML", "\\t"),
    ("      k: 2", "      k: [2", "no valid YAML", ""),
    ("      k: 2", "      ? {a: b}\n      : 2", "no valid YAML", "unhashable"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "hint"), MISTAKES, ids=lambda text: text[:30])
def test_a_mistake_is_one_line_with_its_place(old: str, new: str, where: str, hint: str) -> None:
    """One mistake gives one line: file and line, key path, what is wrong, what to do."""
    assert PLAIN.count(old) == 1
    [told] = _faults(PLAIN.replace(old, new))
    assert where in told
    assert hint in told


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "a recipe is a mapping"),
        ("- a", "a recipe is a mapping"),
        ("just words", "a recipe is a mapping"),
        ("a: \0", "no valid YAML"),
        ("a: b\n---\nc: d", "no valid YAML"),
        ("a: " + "[" * 2000, "r.yaml"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: &x [1]\nb: [*x, *x]", "aliases are not read"),
    ],
)
def test_what_is_no_recipe_is_told(text: str, what: str) -> None:
    """Nothing, a list, words, binary, bombs: one clear line each."""
    told = _faults(text)
    assert what in told[0]


def test_all_mistakes_come_in_one_go() -> None:
    """Mistakes of top level, prompts, roles, steps and loop are told together, each with its line."""
    text = PLAIN
    for old, new in (
        ("name: plain", "nam: plain"),
        ("  per_round: 8", "  per_round: eight"),
        ("  teacher:", "  random:"),
        ("  - sample:", "  - smaple:"),
        ("rule: best_worst", "rule: bad"),
        ("beta: 0.1", "beta: wide"),
        ("  rounds: 2", "  rounds: none"),
    ):
        text = text.replace(old, new)
    told = _faults(text)
    lines = sorted(line.split(" ")[0] for line in told)
    assert lines == [f"r.yaml:{n}" for n in ("1", "10", "15", "18", "23", "5", "7")]


def test_sql_that_fails_is_told_at_load() -> None:
    """A select step's SQL is tried on an empty store that has the recipe's judges."""
    wrong = PLAIN.replace(
        "  - pair:\n      rule: best_worst\n", "  - select: {where: verifer = 1}\n"
    )
    [told] = _faults(wrong.replace("trainer: dpo\n      beta: 0.1", "trainer: sft"))
    assert told.startswith("r.yaml:14 round[2].select: SQL: Binder Error")
    assert 'Candidate bindings: "verifier"' in told


def test_a_recipe_of_nothing_is_told_what_it_lacks() -> None:
    """Every key that is needed is named once."""
    told = _faults("name: x")
    assert sorted(line.split(":")[0] for line in told) == [
        "r.yaml prompts",
        "r.yaml round",
        "r.yaml student",
    ]
    assert len(_faults("student: x\nprompts: {file: x}")) == 1


def test_two_candidates_are_refused() -> None:
    """Where `of` could mean two steps, the recipe must say which."""
    both = PLAIN.replace("  - score:", "  - sample: {as: again, role: teacher}\n  - score:")
    told = _faults(both)
    assert told[0].startswith("r.yaml:13 round[2].score: sample and again make completions")
    assert "say which with `of:`" in told[0]
    named = both.replace("  - score:\n", "  - score:\n      of: [sample, again]\n")
    _load(named.replace("  - pair:\n", "  - pair:\n      of: again\n"))


def test_two_judges_of_one_name_are_refused() -> None:
    """Two settings under one name would be one column, and pairs of neither."""
    two = PLAIN.replace(
        "  - score:\n      judge: verifier\n",
        "  - score: {judge: {longest: {unit: words}}}\n"
        "  - score: {as: more, judge: {longest: {unit: characters}}}\n",
    ).replace("      rule: best_worst", "      by: longest")
    [told] = _faults(two)
    assert told.startswith(
        "r.yaml:13 round[2].score.judge: two different judges are named 'longest'"
    )
    _load(two.replace("{unit: characters}", "{unit: characters, name: letters}"))


@pytest.mark.parametrize("name", ["answer", "Answer", "short_id"])
def test_a_judge_may_not_hide_a_column_of_answers(name: str) -> None:
    """Its column would stand beside one of ours of the same name, whatever the case."""
    judge = f"{{longest: {{name: {name}}}}}"
    told = _faults(PLAIN.replace("judge: verifier\n  - pair", f"judge: {judge}\n  - pair"))
    assert "has the name of a column" in told[0]


def test_train_reads_one_step() -> None:
    """Of two named steps the second would be dropped without a word."""
    two = PLAIN.replace(
        "  - train:\n", "  - pair: {as: more}\n  - train:\n      of: [pair, more]\n"
    )
    [told] = _faults(two)
    assert "round[4].train.of: names 2 steps; train reads exactly one" in told


def test_a_broken_step_brings_no_false_alarms() -> None:
    """Beside an unknown operator, nobody is told that its completions are missing."""
    assert len(_faults(PLAIN.replace("  - sample:", "  - smaple:"))) == 1


# -- settings from the command line


def test_set_reaches_every_setting() -> None:
    """By the name of a step, by `round.`, by key, by path, and into a bare step."""
    recipe = _load(
        PLAIN.replace("  - gate:\n", "  - gate\n"),
        overrides=[
            "sample.k=5",
            "round.train.beta=0.3",
            "prompts.per_round=3",
            "loop.stop.patience=2",
            "gate.level=0.9",
            "name=other",
            "score.judge={longest: {unit: words}}",
            "pair.by=longest",
        ],
    )
    steps = {step.step: step for step in recipe.stages[0].steps}
    assert steps["sample"].k == 5  # type: ignore[attr-defined]
    assert steps["train"].trainer == {"dpo": {"beta": 0.3}}  # type: ignore[attr-defined]
    assert steps["gate"].level == 0.9  # type: ignore[attr-defined]
    assert (recipe.prompts.per_round, recipe.loop.stop.patience, recipe.name) == (3, 2, "other")


def test_set_reaches_into_stages_and_lists() -> None:
    """Items of a list are numbered from 0."""
    recipe = _load(PLAIN + STAGED, overrides=["stages.1.repeat=5", "stages.2.round.0.sample.k=7"])
    assert recipe.stages[1].repeat == 5
    assert recipe.stages[2].steps[0].k == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("student", "is no a.b=c"),
        ("=3", "is no a.b=c"),
        ("sample.k=[", "the value is no YAML"),
        ("name=2026-13-45", "the value is no YAML"),
        ("sampel.k=3", "'sampel' is no step and no key; did you mean sample?"),
        ("stages.7.repeat=2", "names no setting"),
        ("stages.x.repeat=2", "names no setting"),
        ("sample.kk=3", "unknown key"),
        ("sample.k=lots", "given: 'lots'"),
    ],
)
def test_a_wrong_set_is_told(setting: str, what: str) -> None:
    """What cannot be set is one line, and never makes a key of its own."""
    [told] = _faults(PLAIN + STAGED.replace("set:\n      sample.k: 3\n", "set:\n"), [setting])
    assert what in told


# -- one resolved form


def _quickstart() -> str:
    return (resources.files("redistill") / "recipes" / "quickstart.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    "text", [PLAIN, PLAIN + STAGED, _quickstart()], ids=["plain", "staged", "quickstart"]
)
def test_the_resolved_recipe_is_the_same_run(base: Path, text: str) -> None:
    """Loading what `to_yaml` says gives the same YAML and the same key."""
    recipe = _load(text, base)
    again = _load(recipe.to_yaml(), base)
    assert again.to_yaml() == recipe.to_yaml()
    assert again.key == recipe.key
    assert again.stages == recipe.stages


SYSTEMS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(max_examples=15)
@given(
    st.integers(1, 6),
    st.floats(0, 4),
    SYSTEMS,
    st.sampled_from(["best_worst", "best_random", "correct_incorrect"]),
    st.integers(0, 2**31 - 1),
    st.booleans(),
)
def test_any_recipe_survives_its_yaml(
    k: int, temperature: float, system: str, rule: Any, seed: int, staged: bool
) -> None:
    """Numbers, words of all scripts, and stages come back as they were."""
    data = yaml.safe_load(PLAIN)
    data["prompts"]["file"] = "redistill:tiny.jsonl"
    data["roles"]["teacher"]["context"]["system"] = system
    data["round"][0]["sample"] |= {"k": k, "temperature": temperature, "role": "teacher"}
    data["round"][2]["pair"]["rule"] = rule
    data |= {"seed": seed} | (yaml.safe_load(STAGED) if staged else {})
    recipe = _load(yaml.safe_dump(data, allow_unicode=True))
    again = _load(recipe.to_yaml())
    assert (again.to_yaml(), again.key) == (recipe.to_yaml(), recipe.key)


def test_stages_reuse_the_round_with_changes(base: Path) -> None:
    """`set` changes its own stage alone; a stage may bring a round of its own."""
    recipe = _load(PLAIN + STAGED.replace("loop:", ""), base)
    assert [stage.repeat for stage in recipe.stages] == [1, 2, 1]
    ks = [stage.steps[0].k for stage in recipe.stages]  # type: ignore[attr-defined]
    assert ks == [2, 3, 4]
    assert [dict(stage.steps[1].judges()).popitem()[0] for stage in recipe.stages] == [
        "verifier",
        "longest",
        "longest",
    ]
    assert [stage.steps[0].step for stage in recipe.stages] == ["sample", "sample", "draft"]
    assert [recipe.stage_of(n)[0] for n in (1, 2, 3, 4, 9)] == [1, 2, 2, 3, 3]


def test_what_is_left_out_is_filled_in(base: Path) -> None:
    """`of` names the one step before, `by` the one judge, in a form that does not depend on the writing."""
    recipe = _load(PLAIN, base)
    pair = recipe.stages[0].steps[2]
    assert isinstance(pair, Pair)
    assert (pair.of, pair.by) == (("sample",), "verifier")
    said = _load(PLAIN.replace("rule: best_worst", "{of: sample, by: verifier}"), base)
    assert said.key == recipe.key


def test_python_and_yaml_are_the_same_recipe(base: Path) -> None:
    """The same objects are the Python API, stages with changes included."""
    steps = [
        Sample(k=2),
        Score(judge="verifier"),
        Pair(rule="best_worst"),
        Train(trainer={"dpo": {"beta": 0.1}}),
        Evaluate(judge="verifier"),
        Gate(),
    ]
    shared: dict[str, Any] = {
        "name": "plain",
        "student": "redistill.testing.fakes:FakeStudent",
        "prompts": {"file": "prompts.jsonl", "per_round": 8},
        "roles": {"teacher": {"context": {"system": "Be brief."}}},
        "base": base,
    }
    python = Recipe(**shared, round=steps, loop={"rounds": 2})
    assert python.to_yaml() == _load(PLAIN, base).to_yaml()
    assert python.key == _load(PLAIN, base).key
    own = [Sample(as_="draft"), Score(judge="longest"), Select(where="longest > 0.1")]
    own += [Train(trainer="sft"), Evaluate(judge="verifier"), Gate()]
    staged = Recipe(
        **shared,
        round=steps,
        loop={"rounds": 2},
        stages=[
            {"repeat": 1},
            {"repeat": 2, "set": {"sample.k": 3, "score.judge": "longest"}},
            {"round": own},
        ],
    )
    assert staged.to_yaml() == _load(PLAIN + STAGED, base).to_yaml()


# -- the key


MATTERS = [
    ("seed", "name: plain", "name: plain\nseed: 1"),
    ("student", "fakes:FakeStudent", "fakes:DeafStudent"),
    ("per_round", "per_round: 8", "per_round: 7"),
    ("heldout_share", "per_round: 8", "per_round: 8\n  heldout_share: 0.2"),
    ("chunk", "name: plain", "name: plain\nchunk: 8"),
    ("system", "Be brief.", "Be long."),
    ("revision", "context: {", "revision: initial\n    context: {"),
    ("few shot", "Be brief.", "Be brief., few_shot: {file: shots.jsonl, n: 1}"),
    ("k", "k: 2", "k: 3"),
    ("temperature", "k: 2", "k: 2\n      temperature: 0.5"),
    ("judge", "judge: verifier\n  - pair", "judge: longest\n  - pair"),
    ("rule", "rule: best_worst", "rule: best_random"),
    ("beta", "beta: 0.1", "beta: 0.2"),
    ("name of a step", "k: 2", "k: 2\n      as: draft"),
    ("gate", "  - gate:\n", "  - gate: {level: 0.9}\n"),
]


@pytest.mark.parametrize(("what", "old", "new"), MATTERS, ids=[m[0] for m in MATTERS])
def test_the_key_changes_with_all_that_decides_rows(
    base: Path, what: str, old: str, new: str
) -> None:
    """Another seed or setting is another run, which may not go on in the folder of this one."""
    assert PLAIN.count(old) == 1
    assert _load(PLAIN, base).key != _load(PLAIN.replace(old, new), base).key


def test_the_key_changes_with_the_examples_that_are_shown(base: Path) -> None:
    """Count, match and content of worked examples decide what a teacher says."""
    shown = PLAIN.replace("Be brief.", "Be brief., few_shot: {file: shots.jsonl, n: 1}")
    key = _load(shown, base).key
    assert key != _load(shown.replace("n: 1", "n: 2"), base).key
    (base / "shots.jsonl").write_text('{"prompt": "q", "answer": "b"}\n', "utf-8")
    assert key != _load(shown, base).key


def test_the_key_changes_with_the_prompts_and_where_they_stand(base: Path) -> None:
    """Another text is another run, and so is the same file as another split."""
    key = _load(PLAIN, base).key
    assert key != _load(PLAIN.replace("  file:", "  train:"), base).key
    (base / "prompts.jsonl").write_text('{"prompt": "other"}\n', "utf-8")
    assert key != _load(PLAIN, base).key


def test_name_paths_and_execution_change_no_key(base: Path) -> None:
    """The same work under another name, from another folder, with other threads has the same ids."""
    key = _load(PLAIN, base).key
    assert key == _load(PLAIN.replace("name: plain", "name: other"), base).key
    assert key == _load(PLAIN + "execution: {threads: 1}\n", base).key
    elsewhere = base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "moved.jsonl").write_bytes((base / "prompts.jsonl").read_bytes())
    assert key == _load(PLAIN.replace("prompts.jsonl", "moved.jsonl"), elsewhere).key


def test_the_path_of_a_model_folder_changes_no_key(base: Path) -> None:
    """A student in a folder is known by what it is, not by where it lies or how that is written."""
    for place, layers in (("model", 2), ("moved/model", 2), ("larger", 3)):
        (base / place).mkdir(parents=True)
        (base / place / "config.json").write_text(
            json.dumps({"num_hidden_layers": layers}), "utf-8"
        )
    student = "redistill.testing.fakes:FakeStudent"
    keys = [
        _load(PLAIN.replace(student, spec), base).key
        for spec in ("./model", str(base / "model"), "moved/model", "./larger")
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]


# -- lines


def test_lines_are_those_of_keys_and_items() -> None:
    """Each key and item has its line; a path into the unknown has its nearest parent's."""
    _, lines = parse(PLAIN + STAGED, "r.yaml")
    assert line_of("round[0].sample.k", lines) == 11
    assert line_of("round[0].sample.unheard.of", lines) == 10
    assert line_of("stages[1].set.score.judge", lines) == 29
    assert line_of("stages[1].repeat", lines) == 26
    assert line_of("nowhere", lines) is None
    assert line_of("", lines) is None


def test_numbers_and_words_keep_their_kind() -> None:
    """What YAML would make of `007` or `1e5` is told where it is wrong, and right where it fits."""
    recipe = _load(PLAIN.replace("beta: 0.1", "learning_rate: 2e-5"))
    assert recipe.stages[0].steps[3].load_trainer().learning_rate == 2e-5  # type: ignore[attr-defined]
    assert "given: 7" in _faults(PLAIN.replace("name: plain", "name: 007"))[0]
