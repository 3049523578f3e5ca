"""Commands for the model that a run has made: take it away, talk with it, serve it."""

from __future__ import annotations

import errno
import getpass
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BadInput, Busy, EnvironmentProblem
from .shared import RUNS, Author, Json, RunName, Runs, cache_folder, print_json, terminal

app = typer.Typer(help="Take away the model that a run has made.", no_args_is_help=True)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
Which = Annotated[
    str,
    typer.Option("--revision", help="champion, initial, previous, or the beginning of an id."),
]


@app.command("export")
def export(
    run: RunName,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: a whole model; lora: an adapter alone; merged: an adapter in its base; gguf.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not be there.")],
    revision: Which = "champion",
    base: Annotated[
        str, typer.Option(help="How an adapter names its base; where the base is from, without.")
    ] = "",
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Write a revision as a folder that others load, with its card; what was written is loaded and compared first.

    gguf goes through llama.cpp's convert_hf_to_gguf.py, where LLAMA_CPP names a checkout or the PATH has it; else the
    whole model is written, and the command to type is printed.
    """
    from ..report.taking_away import FORMS, Away, take_away

    if form not in FORMS:
        raise BadInput.at(
            "--format", f"there is no format {form!r}", f"formats: {', '.join(FORMS)}"
        )
    found = take_away(runs / run, Away(revision, form, out, base), cache_folder())
    if as_json:
        print_json(found)
        return
    lines = [
        f"{found['called']} {found['revision'][:8]} of {found['run']}: {found['form']}, {found['precision']}, in {out}",
        found["checked"],
        f"card: {found['card']}",
    ]
    if found["command"]:
        lines.append(f"no converter was found ($LLAMA_CPP, PATH); type: {found['command']}")
    for line in lines:
        terminal().print(line, highlight=False, markup=False, soft_wrap=True)


def chat(
    run: RunName,
    revision: Which = "champion",
    beside: Annotated[str, typer.Option(help="The revision to compare with.")] = "initial",
    open_: Annotated[
        bool,
        typer.Option(
            "--open", help="Say which answer is whose; blind, in an order by chance, without."
        ),
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0, max=2)] = 0.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest answer, in tokens; 256, or half of the context, without.", min=1
        ),
    ] = None,
    author: Author = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Talk with two revisions side by side; which answer is better, or a better one, becomes feedback of the run.

    Prompts and verdicts are lines of the terminal or of standard input. Each prompt is a conversation of its own. Its
    feedback may train and is never evaluated on; what overlaps with held-out or test prompts is not kept.
    """
    from ..agents.chatting import STEP
    from ..policies.policy import Sampling
    from ..report.talking import Talk, talk

    sampling = Sampling(temperature=temperature, max_tokens=max_tokens or 256)
    who = author or getpass.getuser()
    wanted = Talk(beside, revision, sampling, who, not open_, longest=max_tokens is not None)
    console = terminal(stderr=as_json)
    hear = partial(_hear, console)
    found = talk(runs / run, wanted, console, hear, partial(_improve, hear))
    if as_json:
        print_json(found)
        return
    counts = ", ".join(f"{count} {name}" for name, count in found.items() if name != "run")
    console.print(counts, highlight=False, markup=False, soft_wrap=True)
    if found["preferred"] + found["edited"]:
        where = "" if runs == RUNS else f" --runs {runs}"
        told = f"redistill export {run} --format trl --step {STEP} --out FILE{where}"
        console.print(f"as a file: {told}", highlight=False, markup=False, soft_wrap=True)


def _hear(console: Any, asked: str) -> str | None:
    """Return the next line, after a prompt where a person sits; None at the end."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        line: str = console.input(asked, markup=False)
    except (KeyboardInterrupt, EOFError):
        return None  # to go is not to fail: all that was said is kept
    return line


def _improve(hear: Any, text: str) -> str | None:
    """Let a person change a text: in the editor of VISUAL or EDITOR, or in lines up to one that is `.` alone."""
    from ..report.talking import in_editor, lines_until_end

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if sys.stdin.isatty() and editor:
        return in_editor(editor, text)
    return lines_until_end(hear)


def serve(
    run: RunName,
    revision: Which = "champion",
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; others than this machine's own reach it only if you say so."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[str, typer.Option(help="How clients call the model; RUN without.")] = "",
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Serve one revision at an OpenAI-compatible address until it is stopped by Ctrl-C or SIGTERM.

    /v1/models, /v1/chat/completions, /v1/completions and /health. There is no key: who reaches the address may ask.
    """
    import asyncio

    from ..agents.held_revision import find_revision, speaking
    from ..policies.serving import Endpoint

    named = find_revision(runs / run, revision)
    if not (named.initial.folder / "config.json").is_file():
        raise BadInput.at(
            "RUN", f"{run} has a student of a plugin", "only models of transformers are served"
        )
    policy: Any = speaking(named)
    endpoint = Endpoint(policy, name or run)
    try:
        asyncio.run(_serve(endpoint, named.line, (host, port), as_json=as_json))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        kind = Busy if error.errno == errno.EADDRINUSE else EnvironmentProblem
        raise kind(f"{host}:{port} cannot be listened on: {os.strerror(error.errno)}") from error


async def _serve(endpoint: Any, told: str, where: tuple[str, int], *, as_json: bool) -> None:
    """Serve until a signal comes; a second one ends it at once."""
    import asyncio

    from ..policies.serving import serve as work

    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def ask_to_stop(number: int) -> None:
        loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask_to_stop, number)

    def ready(port: int) -> None:
        host = f"[{where[0]}]" if ":" in where[0] else where[0]
        url = f"http://{host}:{port}/v1"
        if as_json:
            print_json({"url": url, "model": endpoint.name, "revision": endpoint.policy.revision})
        else:
            open_ = "" if where[0] in _LOOPBACK else "; whoever reaches this address may ask"
            typer.echo(f"serving {told} at {url} as {endpoint.name!r}; Ctrl-C stops it{open_}")
        sys.stdout.flush()

    await work(endpoint, *where, ready, stop)
