"""Mathematical equality of two answers, by math-verify in a process that can be killed.

math-verify's own time limit needs the main thread, and cannot stop a computation inside C (a short
text such as a tower of powers is enough). So the comparison runs in one helper process that sets the
kernel's alarm on itself: it dies at the deadline wherever it hangs, also when its parent is gone.
"""

from __future__ import annotations

import atexit
import json
import signal
import subprocess
import sys
import threading
from fractions import Fraction

DEADLINE = 5
"""Seconds for one comparison."""
LONGEST = 20_000
"""Characters of an answer that are looked at; longer ones are refused."""
MEMORY = 4 << 30
"""Bytes of address space of the helper, on Linux."""


class MathTimeout(Exception):
    """The comparison took too long."""


class MathError(Exception):
    """The comparison could not be made."""


def equal(gold: str, answer: str) -> bool:
    """Tell whether the last mathematical answer in a text equals the given one.

    Args:
        gold: the right answer, a number or LaTeX, with or without dollar signs.
        answer: the whole text of a completion, at most `LONGEST` characters.

    Raises:
        MathTimeout: no result within `DEADLINE` seconds.
        MathError: the answer is too long, or math-verify failed on it.
    """
    if len(answer) > LONGEST:
        raise MathError(f"an answer of {len(answer)} characters is too long to be parsed")
    if (right := plain_number(gold)) is not None and (given := plain_number(answer)) is not None:
        return right == given
    return _helper.ask(gold, answer)


def plain_number(text: str) -> Fraction | None:
    """Read digits with an optional sign, thousands commas and decimal dot; None for all else."""
    text = text.strip().removesuffix(".")
    digits = text.removeprefix("-").replace(",", "").replace(".", "", 1)
    if not (digits.isascii() and digits.isdigit() and len(text) <= 40):
        return None
    whole, dot, decimals = text.partition(".")
    groups = whole.removeprefix("-").split(",")
    if len(groups) > 1 and (len(groups[0]) > 3 or any(len(group) != 3 for group in groups[1:])):
        return None  # "1,2" is a list or a decimal comma
    if "," in decimals or not groups[0]:
        return None
    return Fraction(
        whole.replace(",", "") + dot + (decimals or "0") if dot else whole.replace(",", "")
    )


class _Helper:
    """The helper process: started at the first question, started anew after a deadline."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, answer: str) -> bool:
        with self._lock:
            process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([gold, answer]) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if not reply:
                self._process = None
                self._raise_for_end(process)
        told: bool | str = json.loads(reply)
        if isinstance(told, str):
            raise MathError(told)
        return told

    def _start(self) -> subprocess.Popen[str]:
        # -P: without it a folder that holds a `types.py` would hide Python's own.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        atexit.register(_end, self._process)
        return self._process

    @staticmethod
    def _raise_for_end(process: subprocess.Popen[str]) -> None:
        _end(process)
        atexit.unregister(_end)
        if process.returncode == -signal.SIGALRM:
            raise MathTimeout(f"not compared within {DEADLINE} s")
        raise MathError(f"the helper process ended with {process.returncode}")


def _end(process: subprocess.Popen[str]) -> None:
    """Close the helper's pipes, at which it ends by itself."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what was still buffered has no reader
    process.wait()


_helper = _Helper()


def _compare(gold: str, answer: str) -> bool | str:
    from math_verify import parse, verify

    right = parse(gold, parsing_timeout=None) or parse(f"${gold}$", parsing_timeout=None)
    if not right:
        return f"the right answer {gold[:40]!r} is no mathematical expression"
    return bool(verify(right, parse(answer, parsing_timeout=None), timeout_seconds=None))


def _serve() -> None:
    """Answer one JSON line with one JSON line until the input ends."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        signal.alarm(DEADLINE)
        try:
            reply: bool | str = _compare(*json.loads(line))
        except Exception as error:  # noqa: BLE001 - told to the parent, which makes it a status
            reply = f"{type(error).__name__}: {error}"[:300]
        signal.alarm(0)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
