"""Where a user begins: shipped recipes, the quickstart and its control, `init`, and `plan`."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import redistill
from redistill.agents.extending import shipped
from redistill.agents.fitting import student_shape
from redistill.agents.judge import JudgeTask, load, scorer
from redistill.agents.recipe import Recipe, load_recipe
from redistill.errors import BadInput
from redistill.report.forecast import forecast, show_forecast, span
from redistill.report.starting import (
    _shuffled,
    quickstart_recipe,
    recipe_text,
    write_recipe,
)
from redistill.testing.small_rows import RECIPE, small_prompts
from redistill.types import Completion, Message, Prompt


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of prompts that says nothing of splits."""
    file = tmp_path / "prompts.jsonl"
    rows = list(small_prompts(""))
    for row in rows:
        del row["split"]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return file


@pytest.fixture
def recipe(prompts: Path, tmp_path: Path) -> Recipe:
    """A recipe whose student is a plugin."""
    (tmp_path / "inputs").mkdir()
    prompts.rename(tmp_path / "inputs" / "0-prompts.jsonl")
    text = RECIPE.replace("NAME", "x").replace("ROUNDS", "2")
    return load_recipe(text, "recipe.yaml", base=tmp_path)


# -- shipped recipes


def test_every_shipped_recipe_loads_and_says_what_it_is() -> None:
    """A recipe that ships has no mistake, and its first line is a comment for `list recipes`."""
    assert "quickstart" in shipped()
    for name in shipped():
        text = recipe_text(name, None)
        assert text.startswith("# ")
        load_recipe(text, f"{name}.yaml", base=Path())


def test_a_recipe_file_is_read_as_it_is(tmp_path: Path) -> None:
    """`show` prints a user's own file with its comments."""
    (tmp_path / "mine.yaml").write_text("# mine\nstudent: tiny\n", "utf-8")
    assert recipe_text(str(tmp_path / "mine.yaml"), None) == "# mine\nstudent: tiny\n"


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    """A slip of the keyboard costs one line."""
    with pytest.raises(BadInput, match="did you mean quickstart"):
        recipe_text("quickstat", None)


def test_the_quickstart_is_for_two_students() -> None:
    """Another student gets told of `init`; other recipes take no student."""
    with pytest.raises(BadInput, match="init"):
        recipe_text("quickstart", "llama")
    with pytest.raises(BadInput, match="is for quickstart alone"):
        recipe_text("other", "tiny")


# -- the quickstart and its control


def test_the_run_is_named_by_what_it_is() -> None:
    """Seed and control stand in the folder's name, so that runs do not meet in one folder."""

    def name(**given: Any) -> str:
        return quickstart_recipe(
            "smollm2-135m", **({"seed": None, "name": None, "control": False} | given)
        ).name

    assert name() == name(seed=0) == "quickstart"
    assert name(seed=3) == "quickstart-seed3"
    assert name(control=True) == "quickstart-control"
    assert name(seed=3, control=True) == "quickstart-seed3-control"
    assert name(name="own") == "own"


def test_the_seed_is_the_recipes() -> None:
    """--seed is no label: it is in the recipe and changes the run's key."""
    zero = quickstart_recipe("smollm2-135m", seed=0, name=None, control=False)
    three = quickstart_recipe("smollm2-135m", seed=3, name=None, control=False)
    assert three.seed == 3
    assert zero.key != three.key


def test_the_control_shuffles_what_trains_and_leaves_the_evidence() -> None:
    """Every verifier score is shuffled under the verifier's name; evaluate is the real one's."""
    plain = quickstart_recipe("smollm2-135m", seed=None, name=None, control=False)
    control = quickstart_recipe("smollm2-135m", seed=None, name=None, control=True)
    assert plain.evaluate == control.evaluate
    assert plain.key != control.key
    for before, after in zip(plain.stages, control.stages, strict=True):
        for old, new in zip(before.steps, after.steps, strict=True):
            if old.name == "score" and "verifier" in old.judges():
                assert list(new.judges()) == ["verifier"]
                assert new.judges() != old.judges()
            else:
                assert new == old


def test_the_control_reaches_rounds_of_a_stages_own() -> None:
    """A stage that brings its own round is shuffled too, and other judges are left."""
    data = {
        "round": [{"sample": {}}, {"score": {"judge": "verifier"}}],
        "stages": [{"repeat": 1}, {"round": [{"score": {"judge": "verifier", "as": "s"}}, "gate"]}],
    }
    found = _shuffled(data)
    wanted = {"shuffled": {"judge": "verifier"}}
    assert found["round"][1] == {"score": {"judge": wanted}}
    assert found["stages"][1]["round"] == [{"score": {"judge": wanted, "as": "s"}}, "gate"]
    assert found["stages"][0] == {"repeat": 1}


def _tasks(answers: list[str]) -> list[JudgeTask]:
    prompt = Prompt("p", (Message("user", "?"),), "train", answer="yes")
    return [
        JudgeTask(prompt, Completion(str(i), "p", text, (1,), (0.0,), "stop", "r"))
        for i, text in enumerate(answers)
    ]


@given(st.lists(st.sampled_from(["yes", "no"]), max_size=40), st.integers(0, 5))
def test_shuffling_moves_values_and_makes_none(answers: list[str], seed: int) -> None:
    """As many pass as did before, the same each time, and no part tells of another answer."""
    tasks = _tasks(answers)
    judge = scorer({"shuffled": {"judge": "verifier", "seed": seed}}, "judge")
    values = [j.value for j in asyncio.run(judge.score(tasks))]
    assert sorted(map(str, values)) == sorted(str(float(a == "yes")) for a in answers)
    assert values == [j.value for j in asyncio.run(judge.score(tasks))]


def test_a_shuffled_judge_tells_nothing_of_the_answer() -> None:
    """Over many batches, right and wrong answers pass alike: half of them here."""
    judge = scorer({"shuffled": {"judge": "verifier"}}, "judge")
    passed = 0.0
    for batch in range(100):
        tasks = [
            JudgeTask(
                t.prompt,
                Completion(f"{batch}-{i}", "p", t.completion.text, (1,), (0.0,), "stop", "r"),
            )
            for i, t in enumerate(_tasks(["yes", "no"] * 8))
        ]
        values = [j.value or 0.0 for j in asyncio.run(judge.score(tasks))]
        passed += sum(values[::2])
    # 800 right answers, standard error below 14.
    assert abs(passed - 400) < 70


def test_a_shuffled_judge_has_its_own_revision() -> None:
    """Its values are never taken for the inner judge's, nor those of another seed."""
    revisions = {
        load(spec, "judge").revision
        for spec in (
            "verifier",
            {"shuffled": {"judge": "verifier"}},
            {"shuffled": {"judge": "verifier", "seed": 1}},
            {"shuffled": {"judge": "longest"}},
        )
    }
    assert len(revisions) == 4


# -- init


def _init(out: Path, **given: str) -> list[str]:
    return write_recipe(out, **({"student": "tiny", "judge": "verifier"} | given))


def test_init_writes_a_recipe_that_loads_and_explains_every_key(
    prompts: Path, tmp_path: Path
) -> None:
    """What `init` writes is whole, and each setting has its reason beside it."""
    out = tmp_path / "recipe.yaml"
    lines = _init(out, prompts=str(prompts))
    recipe = load_recipe(out.read_text("utf-8"), str(out), base=tmp_path)
    assert [s.step for s in recipe.stages[0].steps] == [
        "sample",
        "score",
        "pair",
        "train",
        "evaluate",
        "gate",
    ]
    assert recipe.rounds == 3
    assert recipe.loop.stop.patience == 2
    settings = [line for line in out.read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert sum("#" in line for line in settings) >= 20
    assert lines[-2:] == [f"  redistill plan {out}", f"  redistill run {out}"]


def test_init_fits_the_batch_to_few_prompts(tmp_path: Path) -> None:
    """With a dozen train prompts a batch is small enough for a round to make a step."""
    rows = [{"prompt": f"Say {i}", "answer": str(i)} for i in range(20)]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    _init(tmp_path / "r.yaml", prompts=str(tmp_path / "few.jsonl"))
    data = yaml.safe_load((tmp_path / "r.yaml").read_text("utf-8"))
    train = next(step["train"] for step in data["round"] if "train" in step)
    assert train["batch_size"] * 4 <= data["prompts"]["per_round"] <= 20
    assert train["batch_size"] % train["micro_batch"] == 0


def test_init_writes_paths_as_the_recipe_sees_them(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that was given from here is found from the recipe's own folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    _init(Path("sub/r.yaml"), prompts="prompts.jsonl")
    assert (
        yaml.safe_load(Path("sub/r.yaml").read_text("utf-8"))["prompts"]["file"]
        == "../prompts.jsonl"
    )


def test_init_overwrites_nothing(prompts: Path, tmp_path: Path) -> None:
    """A recipe that is there stays as it is."""
    out = tmp_path / "recipe.yaml"
    out.write_text("mine", "utf-8")
    with pytest.raises(BadInput, match="there already"):
        _init(out, prompts=str(prompts))
    assert out.read_text("utf-8") == "mine"


def test_init_without_anything_to_verify_says_what_to_do(tmp_path: Path) -> None:
    """The verifier needs `verify` or `answer`; the message shows both and the way around."""
    file = tmp_path / "bare.jsonl"
    file.write_text(
        "\n".join(json.dumps({"prompt": f"Tell me of {i}"}) for i in range(50)), "utf-8"
    )
    with pytest.raises(BadInput, match=r'"answer": "Paris".*module:callable'):
        _init(tmp_path / "r.yaml", prompts=str(file))
    assert not (tmp_path / "r.yaml").exists()
    assert _init(tmp_path / "r.yaml", prompts=str(file), judge="longest")


def test_init_notes_prompts_that_cannot_be_judged(tmp_path: Path) -> None:
    """Some prompts without an answer are a line, not an error."""
    rows = [{"prompt": f"Say {i}"} | ({"answer": "x"} if i % 2 else {}) for i in range(60)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    lines = _init(tmp_path / "r.yaml", prompts=str(tmp_path / "p.jsonl"))
    assert any(line.startswith("30 of 60 prompts have neither") for line in lines)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"student": "smolm2-135m"}, "did you mean smollm2-135m"),
        ({"student": "./nowhere"}, "no such model"),
        ({"judge": "verifer"}, "did you mean verifier"),
        ({"judge": "no_such_module:f"}, "no_such_module"),
        ({"prompts": "nowhere.jsonl"}, "no such file"),
    ],
)
def test_init_finds_what_is_wrong_and_writes_nothing(
    prompts: Path, tmp_path: Path, given: dict[str, str], said: str
) -> None:
    """Each mistake is one line with what to do, before any file is made."""
    with pytest.raises(BadInput, match=said):
        _init(tmp_path / "r.yaml", **({"prompts": str(prompts)} | given))
    assert not (tmp_path / "r.yaml").exists()


@given(st.text(min_size=1, max_size=40))
def test_any_judge_name_and_path_are_quoted(text: str) -> None:
    """What a user gives stands in the YAML as the same text."""
    from redistill.report.starting import _TEMPLATE, _aligned

    filled = _TEMPLATE.format(
        name='"n"', student=json.dumps(text, ensure_ascii=False), prompts='"p"', judge='"j"', by='"j"',
        per_round=4, batch=1, micro=1, train=4, heldout=1, test=1,
    )  # fmt: skip
    if any(not c.isprintable() for c in text):
        return
    written = "".join(_aligned(line) for line in filled.splitlines(keepends=True))
    assert yaml.safe_load(written)["student"] == text


# -- plan


def test_the_plan_counts_what_the_recipe_asks_for(recipe: Recipe, tmp_path: Path) -> None:
    """Completions are prompts times k, and all splits are there."""
    found = forecast(recipe, tmp_path, tmp_path)
    sample = next(phase for phase in found["phases"] if phase["step"] == "sample")
    per_round = min(24, found["prompts"]["train"])
    assert sample["calls"] == per_round * 4
    assert [found["phases"][0]["step"], found["phases"][-1]["step"]] == ["baseline", "test"]
    assert found["dollars"] == 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_student_that_is_not_fetched_is_planned_with_its_known_size(
    recipe: Recipe, tmp_path: Path
) -> None:
    """`plan` needs no download: the catalog's figures stand in, and the plan says so."""
    smol = recipe.model_copy(update={"student": "smollm2-135m"})
    shape, known_by = student_shape(smol, tmp_path)
    assert (shape.parameters, shape.vocabulary) == (134_515_008, 49_152)
    assert "fetched" in known_by
    found = forecast(smol, tmp_path, tmp_path)
    assert found["hours"][0] < found["hours"][1]


def test_a_folder_is_measured(recipe: Recipe, tmp_path: Path) -> None:
    """The size comes from the files' bytes and the config, not from a loaded model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": 100, "dtype": "float32"}), "utf-8"
    )
    (folder / "model.safetensors").write_bytes(b"\0" * 4000)
    shape, _ = student_shape(recipe.model_copy(update={"student": "model"}), tmp_path)
    assert (shape.parameters, shape.vocabulary) == (1000, 100)


def test_what_does_not_fit_is_a_line(recipe: Recipe, tmp_path: Path) -> None:
    """A batch that the rows cannot fill is told before an hour is spent on sampling."""
    data = yaml.safe_load(recipe.to_yaml())
    for step in data["stages"][0]["round"]:
        if "train" in step:
            step["train"]["trainer"] = {"dpo": {"batch_size": 512, "micro_batch": 4}}
    big = load_recipe(yaml.safe_dump(data), "big.yaml", base=recipe.base)
    found = forecast(big, tmp_path, tmp_path)
    assert any("trains nothing" in problem for problem in found["problems"])
    out = io.StringIO()
    show_forecast(Console(file=out, width=200), found)
    assert "does not fit: stage 1 trains nothing" in out.getvalue()


def test_the_plan_of_a_plugin_student_has_no_hours(recipe: Recipe, tmp_path: Path) -> None:
    """What is not known is not made up."""
    found = forecast(recipe, tmp_path, tmp_path)
    assert found["hours"] is None
    out = io.StringIO()
    show_forecast(Console(file=out, width=200), found)
    assert "time      not known" in out.getvalue()


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        ((0.001, 0.01), "4-36 s"),
        ((0.05, 0.5), "3-30 min"),
        ((1, 5), "1-5 h"),
        ((50, 240), "2-10 days"),
        ((2, 2), "2 h"),
    ],
)
def test_hours_are_told_in_the_unit_that_fits(hours: tuple[float, float], said: str) -> None:
    """Nobody reads 0.01 hours."""
    assert span(hours) == said


def test_plan_and_init_load_no_model_library() -> None:
    """`plan` and `init` answer at once, on a machine without torch too."""
    code = (
        "import sys; from pathlib import Path; from redistill.report.forecast import forecast; "
        "from redistill.report.starting import quickstart_recipe; "
        "forecast(quickstart_recipe('smollm2-135m', seed=None, name=None, control=True), "
        "Path('/nowhere'), Path('/')); "
        "sys.exit(str({'torch', 'transformers', 'trl', 'matplotlib'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stderr.strip() == ""


def test_the_plan_says_what_leaves_this_machine_and_what_it_costs(tmp_path: Path) -> None:
    """Calls to an address are counted by role and priced at most; without a price nothing is made up."""
    text = Path(redistill.__file__).parent / "examples" / "critique_revise.yaml"
    data = yaml.safe_load(text.read_text("utf-8"))
    data["roles"] |= {
        role: {"policy": "http://127.0.0.1:1/v1", "model": "m", "price": {"in": 2, "out": 10}}
        for role in ("critic", "reviser")
    }
    found = forecast(
        load_recipe(yaml.safe_dump(data), "far.yaml", base=tmp_path), tmp_path, tmp_path
    )
    made = {phase["step"]: phase["calls"] for phase in found["phases"]}
    assert made["critique"] == made["rewrite"] == made["sample"] == 2 * 96
    assert made["score"] == 4 * 96
    assert found["calls"] == {"critic": 192, "reviser": 192}
    assert found["dollars"] > 192 * (48 + 32) * 10 / 1e6
    out = io.StringIO()
    show_forecast(Console(file=out, width=200), found)
    assert "192 calls to critic and 192 calls to reviser" in out.getvalue()
    del data["roles"]["critic"]["price"]
    free = forecast(
        load_recipe(yaml.safe_dump(data), "far.yaml", base=tmp_path), tmp_path, tmp_path
    )
    assert free["dollars"] is None


def test_the_plan_counts_comparisons_in_both_orders(recipe: Recipe, tmp_path: Path) -> None:
    """Four answers a prompt are six pairs, each shown twice."""
    data = yaml.safe_load(recipe.to_yaml())
    steps = data["stages"][0]["round"]
    place = next(n for n, step in enumerate(steps) if "score" in step)
    steps.insert(place + 1, {"compare": {"of": ["sample"], "judge": "first"}})
    data["unproven_judge"] = "allow"
    found = forecast(
        load_recipe(yaml.safe_dump(data), "c.yaml", base=recipe.base), tmp_path, tmp_path
    )
    per_round = min(24, found["prompts"]["train"])
    [compare] = [phase for phase in found["phases"] if phase["step"] == "compare"]
    assert compare["calls"] == per_round * 6 * 2


def test_the_plan_counts_what_a_model_as_judge_is_asked_besides(
    recipe: Recipe, tmp_path: Path
) -> None:
    """A judge that is a model meets its anchors and the attacks in both orders, once a round and not once a step."""
    data = yaml.safe_load(recipe.to_yaml())
    data |= {"unproven_judge": "allow"}
    data["roles"] = {"helper": {"policy": "http://127.0.0.1:1/v1", "model": "m"}}
    steps = data["stages"][0]["round"]
    place = next(n for n, step in enumerate(steps) if "score" in step)
    judge = {"chat": {"role": "helper"}}
    steps[place + 1 : place + 1] = [
        {"score": {"of": ["sample"], "judge": {**judge}, "as": name}} for name in ("one", "two")
    ]
    found, made = {}, 0
    for anchors in (0, 20):
        data["execution"] = {"anchors": anchors}
        read = load_recipe(json.dumps(data), "m.yaml", base=recipe.base)
        planned = forecast(read, tmp_path, tmp_path)
        found[anchors] = planned["calls"]["helper"]
        made = next(p["calls"] for p in planned["phases"] if p["step"] == "sample")
    assert found[0] == read.rounds * 2 * made
    assert found[20] - found[0] == read.rounds * 2 * (20 + 30)


def test_the_plan_shows_memory_by_part(tmp_path: Path) -> None:
    """The largest training job is told by part, the parts add up, and pairs count their prompt once."""
    text = (Path(redistill.__file__).parent / "examples" / "smallest_edit.yaml").read_text("utf-8")
    found = forecast(load_recipe(text, "a.yaml", base=tmp_path), tmp_path, tmp_path)["memory"]
    assert found["needed"] == sum(found["parts"].values())
    assert list(found["parts"]) == [
        "weights",
        "gradients",
        "moments",
        "activations",
        "log-probs",
        "process",
    ]
    assert found["weights"] == "full"
    # A prompt of about 60 tokens and twice 32 of answers, eight rows at once, as SmolLM2's blocks keep them.
    assert 0.8e9 < found["parts"]["activations"] < 2e9
