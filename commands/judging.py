"""Commands that examine judges: may their labels train?"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput
from .shared import RUNS, Json, RunName, Runs, cache_folder, print_json, read_recipe, terminal

if TYPE_CHECKING:
    from ..agents.exam_speaker import ExamSpeaker
    from ..agents.examining import Sitting
    from ..agents.judge import Judge
    from ..agents.registry import Record
    from ..agents.roles import Role

app = typer.Typer(help="Examine judges: may their labels train?", no_args_is_help=True)

JudgeArg = Annotated[
    str,
    typer.Argument(
        help="A judge's name, module:object, or inline YAML as in a recipe.", show_default=False
    ),
]


@app.command()
def admit(
    judge: JudgeArg,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled pairs, JSONL; each file is a slice. The starter exam without."),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="NAME=FILE1,FILE2: several files as one slice."),
    ] = None,
    roles: Annotated[
        list[str] | None,
        typer.Option("--role", help="NAME=MODEL: who speaks as a role of the judge."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe whose roles speak, with their keys and contexts.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a judge sit an exam, and keep what came of it."""
    from ..agents.examining import examine, headline, price
    from ..agents.registry import keep

    loaded, spec = _judge(judge)
    sitting = _sitting(pairs or [], slices or [])
    models, speaker = _speaker(loaded, roles or [], recipe)
    asked = price(loaded, sitting.exam, speaker.tariff() if speaker else None)
    # On the other stream: the first line of the answer is the outcome.
    terminal(stderr=True).print(asked.line, highlight=False, style="dim", soft_wrap=True)

    async def sit() -> Record:
        if speaker is None:
            return await examine(loaded, sitting, spec=spec)
        async with speaker:
            return await examine(loaded, sitting, spec=spec, roles=models, speaker=speaker)

    record = asyncio.run(sit())
    kept = keep(record)
    if as_json:
        print_json(record.as_dict())
        return
    _show(headline(record), record)
    terminal().print(f"kept in {kept}", highlight=False, markup=False, style="dim", soft_wrap=True)


@app.command()
def train(
    run: RunName,
    trainer: Annotated[
        str,
        typer.Option(help="`reward` on pairs or `sft` on verdicts, with settings as in a recipe."),
    ] = "reward",
    judge: Annotated[
        str, typer.Option(help="Whose verdicts sft learns; needed where several have judged.")
    ] = "",
    asks: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="How the judge of sft asks, as in a recipe; else as the judge that it learns from.",
        ),
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option("--step", help="Only rows of this step; may be given more than once."),
    ] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Train a judge on the pairs or verdicts of a run; it has yet to pass its exam."""
    from ..agents import plugins
    from ..agents.judge_lessons import Wanted
    from ..agents.judge_training import train_judge
    from ..report.console import Progressing
    from ..store.query import snapshot
    from ..trainers.trainer import BUILTINS

    folder = runs / run
    snapshot(folder)  # a log file of a run that is not there would make its folder
    made = plugins.build("trainers", _yaml(trainer, "--trainer"), BUILTINS, "--trainer")
    wanted = Wanted(judge, None if asks is None else _yaml(asks, "--as"), steps or ())
    progress = Progressing(terminal(stderr=as_json), quiet=as_json)
    progress.open(folder)
    try:
        found = train_judge(folder, made, wanted, progress)
    finally:
        progress.close()
    if as_json:
        print_json(
            {"judge": found.spec, "role": found.role, found.material.what: found.rows}
            | {"left_out": found.material.detail.get("left_out", {})}
            | {"steps": found.result.steps, "metrics": found.result.metrics}
        )
        return
    told = f"trained on {found.rows} {found.material.what} in {found.result.steps} steps"
    left = [f"left out: {n} {why}" for why, n in found.material.detail.get("left_out", {}).items()]
    for line in [f"{told}: {found.folder}", *left, f"examine it: {found.admit}"]:
        terminal().print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def demo(as_json: Json = False) -> None:
    """Show an exam on a recorded judge that ships: it likes long answers, and is refused."""
    from importlib import resources

    from ..agents.exam import starter_exam
    from ..agents.examining import STARTER, Sitting, examine, headline
    from ..agents.judges.replay import Replay

    votes = str(resources.files("redistill.agents.exams") / "demo_votes.csv")
    judge = Replay(votes=votes, judge="talker", strategy="plain")
    record = asyncio.run(examine(judge, Sitting(starter_exam(), STARTER, "a program")))
    record = replace(record, judge="talker")
    if as_json:
        print_json(record.as_dict())
        return
    _show(headline(record), record)
    terminal().print(
        "This judge is made up: a program voted, and its votes ship. Examine your own:\n"
        "  redistill judge admit JUDGE",
        highlight=False,
        markup=False,
    )


@app.command()
def card(
    judges: Annotated[
        list[str], typer.Argument(help="Judges that were examined, as `admit` took them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("judge-cards"),
    roles: Annotated[
        list[str] | None, typer.Option("--role", help="NAME=MODEL, as `admit` took it.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe, as `admit` took it.")] = None,
    as_json: Json = False,
) -> None:
    """Write what an exam found as a page and as Markdown, one of each a judge."""
    from ..report.judge_card import write_cards

    files = write_cards([_record(spec, roles or [], recipe) for spec in judges], out)
    if as_json:
        print_json([str(file) for file in files])
        return
    for file in files:
        typer.echo(str(file))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the judges that have sat an exam on this computer."""
    from ..agents import registry
    from ..report.judge_card import registry_table

    records = registry.every()
    if as_json:
        print_json([record.as_dict() for record in records])
    elif records:
        terminal().print(registry_table(records))
    else:
        terminal().print(
            f"no judge has sat an exam yet ({registry.folder()}); `redistill judge admit JUDGE` "
            "examines one",
            highlight=False,
            markup=False,
        )


def _show(first_line: str, record: Record) -> None:
    from ..report.console import clean
    from ..report.judge_card import attacks_line, slices_table

    console = terminal()
    style = {"admitted": "bold green", "refused": "bold red"}.get(record.verdict, "bold yellow")
    # A line is a line, for whoever reads it from a pipe; a terminal folds it by itself.
    console.print(clean(first_line), style=style, highlight=False, markup=False, soft_wrap=True)
    console.print(slices_table(record))
    for line in [*(f"- {reason}" for reason in record.admission.reasons), attacks_line(record)]:
        console.print(clean(line), highlight=False, markup=False, soft_wrap=True)


def _judge(text: str) -> tuple[Judge, Any]:
    """Return the judge that is named, and how a recipe names it."""
    from ..agents.judge import load
    from ..agents.plugins import one_of

    spec = _yaml(text, "JUDGE")
    one_of(spec, "JUDGE")
    return load(spec, "JUDGE"), spec


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput.at(where, f"is no YAML: {str(error).splitlines()[0]}") from error


def _sitting(pairs: list[Path], slices: list[str]) -> Sitting:
    from ..agents.exam import load_exam, starter_exam
    from ..agents.examining import STARTER, Sitting

    joined: dict[str, list[Path]] = {}
    for text in slices:
        name, equals, files = text.partition("=")
        if not name or not equals or not all(files.split(",")):
            raise BadInput.at(f"--slice {text}", "is no NAME=FILE1,FILE2")
        if name in joined:
            raise BadInput.at(f"--slice {text}", f"the name {name} is taken", "choose another")
        joined[name] = [Path(file) for file in files.split(",")]
    if not pairs and not joined:
        return Sitting(starter_exam(), STARTER, "a program")
    exam = load_exam(pairs, joined)
    return Sitting(exam, "+".join(exam.slices), "people")


def _speaker(
    judge: Judge, roles: list[str], recipe: str | None
) -> tuple[dict[str, str], ExamSpeaker | None]:
    """Return who speaks for a judge's roles: role -> model, and the speaker; none for a program."""
    from ..agents.exam_speaker import ExamSpeaker
    from ..agents.judge import roles_of
    from ..agents.server_needs import lacking, of_judge

    needed = roles_of(judge)
    if not needed:
        return {}, None
    bound, student, base, models = _bound(roles, recipe)
    if missing := [role for role in needed if role not in models]:
        raise BadInput.at(
            "JUDGE",
            f"{judge.name} speaks as {' and '.join(missing)}, and nobody does",
            f"say who it is: --role {missing[0]}=MODEL, or --recipe RECIPE",
        )
    named = {role: models[role] for role in needed}
    wanted = {role: bound[role] for role in needed}
    if unable := lacking(wanted, of_judge(judge, "JUDGE")):
        raise BadInput(*unable)
    return named, ExamSpeaker(wanted, student, base, cache_folder())


def _bound(
    roles: list[str], recipe: str | None
) -> tuple[dict[str, Role], str, Path, dict[str, str]]:
    """Return roles, the student's model, the folder of their paths, and role -> model."""
    from ..agents.gating import role_models
    from ..agents.opening import anchored
    from ..agents.roles import STUDENT, Role, check_roles

    bound: dict[str, Role] = {}
    models: dict[str, str] = {}
    student, base = "", Path()
    if recipe is not None:
        loaded = anchored(read_recipe(recipe, None))
        bound, models = dict(loaded.roles), role_models(loaded)
        student, base = loaded.student, loaded.base
    for text in roles:
        name, equals, told = text.partition("=")
        policy, _, model = told.strip().partition(" ")
        if not name or not equals or not policy:
            raise BadInput.at(f"--role {text}", "is no NAME=MODEL")
        if Path(policy).is_dir():
            policy = str(Path(policy).resolve())
        if name == STUDENT:
            student = policy
            bound[name] = Role()
        else:
            bound[name] = Role(policy=policy, model=model.strip() or None)
        models[name] = f"{policy} {model}".strip()
    if problems := check_roles({k: r for k, r in bound.items() if k != STUDENT}, []):
        raise BadInput(*problems)
    return bound, student, base, models


def _record(text: str, roles: list[str], recipe: str | None) -> Record:
    from ..agents.judge import roles_of
    from ..agents.registry import find

    judge, _ = _judge(text)
    needed = roles_of(judge)
    models = _bound(roles, recipe)[3] if needed else {}
    found = find(judge.revision, {role: models.get(role, "") for role in needed})
    if found is None:
        raise BadInput.at(
            "JUDGE",
            f"{judge.name} has not sat the exam",
            f"`redistill judge admit` comes first{' (with the same --role)' if needed else ''}",
        )
    return found
