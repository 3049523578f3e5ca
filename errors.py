"""The error model of redistill.

1. A user's mistake is a `BadInput`: found before a model loads or a call is paid, shown as one line a
   problem (what, where, why, what to do), exit code 2. All problems of a file come in one go.
2. A thing in use by another process is `Busy` (exit 3); a machine that lacks something is
   `EnvironmentProblem` (exit 4): a package, memory, a full disk. What was asked to stop and only has to be
   asked again is `TryLater` (exit 75).
3. A failed judgement, an unfinished answer, a training job that went wrong are *data*: a status on a row.
   They are never an exception that ends the run, and never a score.
4. `WrongWeights`, `UnfitJudge` and `StoreProblem` mean that going on could write a false fact: the run stops, keeps
   what is committed, and can be resumed. A store that is damaged, newer, or no store is a file that the
   user has to replace, so `StoreProblem` ends with exit 2; nothing is written into it.
5. Anything else is a bug in redistill and ends with a traceback.

Only `cli.main` turns these into text and exit codes.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_SAID = ("No space left on device", "File too large", "Disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with what the user gave, in the order in which it is printed."""

    where: str
    """File and line, or the key's path: `recipe.yaml:14 round[2].score.judge`."""
    what: str
    """What is wrong, with the value as given."""
    hint: str = ""
    """What to do about it; empty where the fault says it already."""

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}; {self.hint}" if self.hint else line


class RedistillError(Exception):
    """Base of all errors that redistill raises on purpose."""

    exit_code = 1


class BadInput(RedistillError):
    """The user's input is wrong; carries every problem found in it."""

    exit_code = 2

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    @classmethod
    def at(cls, where: str, what: str, hint: str = "") -> BadInput:
        """Make one from a single problem."""
        return cls(Problem(where, what, hint))


class Busy(RedistillError):
    """Another process holds what this one needs."""

    exit_code = 3


class EnvironmentProblem(RedistillError):
    """The machine lacks something: a package, memory, disk space, a network."""

    exit_code = 4


class TryLater(RedistillError):
    """The same command may succeed later."""

    exit_code = 75


class StoreProblem(RedistillError):
    """The store refuses, or holds what it must not hold; nothing was overwritten."""

    exit_code = 2


def no_space(error: BaseException) -> bool:
    """Whether an error says that nothing more could be written; libraries wrap the system's in their own."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(said in str(error) for said in _FULL_SAID)


class UnfitJudge(RedistillError):
    """A judge that was admitted falls for attacks now: what it labels would teach them."""


class WrongWeights(RedistillError):
    """A policy does not answer with the weights that it was told to load."""
