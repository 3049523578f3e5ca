"""The command line. Each command is thin: it reads its arguments, calls one function, shows the result.

Everything heavy is imported inside the commands, so that `redistill --help` loads neither torch nor
duckdb nor langgraph nor pandas.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import sys
from pathlib import Path
from typing import Annotated

import typer

from .commands import (
    bakeoff,
    course,
    files,
    judging,
    keeping,
    lineage,
    model,
    people,
    reading,
    second_thoughts,
)
from .errors import BadInput, EnvironmentProblem, RedistillError

app = typer.Typer(
    name="redistill",
    help="Make a language model better with feedback, round after round, and know why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_debug = {"on": False}


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"redistill {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    debug: Debug = False,
    version: Annotated[  # noqa: ARG001 - the callback has answered already
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    _debug["on"] = debug


for command in (
    course.init,
    course.plan,
    course.quickstart,
    course.run,
    course.resume,
    reading.status,
    reading.query,
    reading.show,
    reading.graph,
    reading.report,
    lineage.lineage,
    people.review,
    model.chat,
    model.serve,
    second_thoughts.apply,
    second_thoughts.diff,
    second_thoughts.fork,
    second_thoughts.compare,
    bakeoff.bakeoff,
    files.export,
    files.contamination,
    keeping.doctor,
    keeping.backup,
    keeping.restore,
    keeping.forget,
):
    app.command()(command)
app.command("import")(files.import_)
app.command("list")(reading.list_)
app.add_typer(judging.app, name="judge")
app.add_typer(model.app, name="model")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; turn the errors of `errors.py` into lines and exit codes."""
    # Last, never first: a recipe may name a module of the folder, which must hide nobody else's.
    sys.path.append(str(Path.cwd()))
    # Where it is installed, whoever imports transformers is told that some of its kernels are not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app(arguments, standalone_mode=True)
    except RedistillError as error:
        if _debug["on"]:
            raise
        typer.echo(
            f"redistill: {error}" if error.exit_code != BadInput.exit_code else str(error), err=True
        )
        raise SystemExit(error.exit_code) from None
    except (OSError, sqlite3.OperationalError) as error:
        # A full disk, a folder without rights: the machine's fault, told in a line.
        if _debug["on"] or getattr(error, "errno", errno.ENOSPC) not in _MACHINE:
            raise
        typer.echo(f"redistill: {error}; what was committed is kept, and can be resumed", err=True)
        raise SystemExit(EnvironmentProblem.exit_code) from None


_MACHINE = frozenset(
    [
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
    ]
)


if __name__ == "__main__":
    main()
