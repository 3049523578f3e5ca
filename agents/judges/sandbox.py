"""Running untrusted code: one process a case, in namespaces of its own, and the right answer stays outside.

The code of an answer is written by a model under optimisation, which is an adaptive attacker. So what is
right never enters the sandbox: it gets one case's input and sends back what the code returned, and the
comparison is made here. There is nothing in there to be patched, read or printed that would make a wrong
answer right. Exit codes are not looked at.

The walls are bubblewrap's (https://github.com/containers/bubblewrap): new user, process, network, mount,
IPC and UTS namespaces, a read-only root that holds Python and its libraries alone, one small writable
folder in memory, no environment, no capability, no further user namespace. A system call filter forbids
new processes, because the kernel's own limit on them does not hold for root. Limits on processor time,
memory, files and their size come from inside, a limit on the wall clock from outside.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .syscalls import no_new_process

HOW_TO_INSTALL = "install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`)"
LONGEST = 100_000
"""Characters of a program that are run; longer ones are refused."""
MOST_REPLY = 1 << 20
"""Bytes of a reply that are read; a longer one is none."""
_WORK = "/scratch"


class SandboxError(Exception):
    """The code could not be run at all; says nothing about the code."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one case may use."""

    seconds: int = 5
    """Of processor time."""
    wall: float = 17.0
    """Seconds by the clock: more, because other work may hold the processor."""
    memory: int = 512 << 20
    """Bytes of address space."""
    file: int = 16 << 20
    """Bytes of all files together."""
    files: int = 32
    """Open files."""
    threads: int = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """The sandbox of this machine."""

    bwrap: str
    version: str
    userns_off: bool
    """Whether it can forbid further user namespaces (0.8.0 and later)."""
    filtered: bool
    """Whether the system call filter is known for this processor."""

    @property
    def told(self) -> str:
        """One line for people."""
        inner = "no further user namespace" if self.userns_off else "user namespaces inside allowed"
        calls = "no new process" if self.filtered else "no system call filter on this processor"
        return f"bubblewrap {self.version}: {inner}, {calls}, rlimits"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case."""

    ok: bool
    """Whether the code returned something."""
    value: Any = None
    """What it returned, as JSON has it."""
    reason: str = ""
    """Why it returned nothing."""


def layer() -> Layer | None:
    """Return the sandbox that is active on this machine, or None."""
    return _probe(shutil.which("bwrap") or "")[0]


def why_none() -> str:
    """Return why there is no sandbox and what to do about it, in one line; empty where there is one."""
    return _probe(shutil.which("bwrap") or "")[1]


@functools.lru_cache(maxsize=4)
def _probe(bwrap: str) -> tuple[Layer | None, str]:
    """Look at a bubblewrap once: what it can do, and whether it works here."""
    if sys.platform != "linux":
        return None, "code runs in a sandbox on Linux alone"
    if not bwrap:
        return None, f"no sandbox is installed; {HOW_TO_INSTALL}"
    told = [_said(bwrap, "--version"), _said(bwrap, "--help")]
    words = told[0].split()
    found = Layer(
        bwrap, words[-1] if words else "?", "--disable-userns" in told[1], _filter() != b""
    )
    try:
        outcome = _run(found, {"program": "def f(): return 42", "function": "f", "args": []})
    except SandboxError as error:
        way_out = "allow user namespaces (on Ubuntu the AppArmor profile bwrap-userns-restrict)"
        return None, f"bubblewrap is installed and does not work here ({error}); {way_out}"
    if outcome.value != 42:
        return None, f"bubblewrap is installed and ran nothing ({outcome.reason})"
    return found, ""


def _said(bwrap: str, flag: str) -> str:
    try:
        done = subprocess.run(
            [bwrap, flag], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def call(program: str, function: str, args: Sequence[Any], limits: Limits | None = None) -> Outcome:
    """Run a program and call one of its functions.

    Args:
        program: Python source.
        function: name of a function that the program defines.
        args: positional arguments, JSON values.
        limits: what it may use.

    Raises:
        SandboxError: there is no sandbox, it failed, or the program is too long.
    """
    request = {"program": program, "function": function, "args": list(args)}
    return _run(_active(program), request, limits)


def feed(program: str, text: str, limits: Limits | None = None) -> Outcome:
    """Run a program with a text as its standard input; its value is what it has printed.

    Raises:
        SandboxError: there is no sandbox, it failed, or the program is too long.
    """
    return _run(_active(program), {"program": program, "input": text}, limits)


def _active(program: str) -> Layer:
    found = layer()
    if found is None:
        raise SandboxError(why_none())
    if len(program) > LONGEST:
        raise SandboxError(f"a program of {len(program)} characters is too long")
    return found


def _run(found: Layer, request: dict[str, Any], limits: Limits | None = None) -> Outcome:
    """Run one case: start, hand over, read until the end or a limit, kill all that is left."""
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    told = {"nonce": nonce, "limits": _inner_limits(limits), **request}
    with contextlib.ExitStack() as stack:
        blocked = stack.enter_context(_as_descriptor(_filter()))
        try:
            process = subprocess.Popen(
                command(found, limits, blocked),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[blocked] if blocked >= 0 else [],
                env={},
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{found.bwrap}: {error.strerror}") from error
        try:
            out, err, late = _exchange(process, json.dumps(told).encode(), limits.wall)
        finally:
            _kill(process)
    return _read(out, err, nonce, late=late)


def command(found: Layer, limits: Limits, blocked: int) -> list[str]:
    """Return the command line of the sandbox.

    Args:
        found: the sandbox.
        limits: what the case may use.
        blocked: descriptor of the system call filter; negative where there is none.
    """
    options = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    options += ["--unshare-cgroup-try"]
    options += ["--disable-userns"] if found.userns_off else []
    options += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    options += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    for path in _read_only():
        options += ["--ro-bind", path, path]
    for link, target in _links():
        options += ["--symlink", target, link]
    for device in ("null", "zero", "urandom"):
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for folder in _foreign_packages():
        options += ["--tmpfs", folder, "--remount-ro", folder]
    options += ["--size", str(limits.file), "--tmpfs", _WORK, "--chdir", _WORK]
    # What bubblewrap puts its mounts on is itself writable until it is told otherwise.
    options += ["--remount-ro", "/"]
    options += ["--seccomp", str(blocked)] if blocked >= 0 else []
    return [found.bwrap, *options, "--", _python(), "-I", "-S", "-B", "-c", _runner()]


def _inner_limits(limits: Limits) -> dict[str, int]:
    return {
        "CPU": limits.seconds,
        "AS": limits.memory,
        "FSIZE": limits.file,
        "NOFILE": limits.files,
        "NPROC": limits.threads,
        "CORE": 0,
    }


# -- what is in there


def _python() -> str:
    """Return the interpreter itself, not the link of a virtual environment."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


@functools.cache
def _read_only() -> tuple[str, ...]:
    """Return what of this machine can be seen: the interpreter, its library, the shared libraries."""
    shared = {str(Path(file).parent) for file in _mapped()}
    own = sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})
    # `/lib64` holds the loader, by the name that is written into every program.
    wanted = {_python(), sysconfig.get_path("stdlib"), own, *shared, "/lib64"}
    wanted = {str(Path(path).resolve()) for path in wanted if Path(path).exists()}
    inside = {p for p in wanted for q in wanted if p != q and Path(p).is_relative_to(q)}
    return tuple(sorted(wanted - inside))


def _mapped() -> set[str]:
    """Return the shared libraries that an interpreter without packages has loaded."""
    code = "import _hashlib, _json, math, zlib; print(open('/proc/self/maps').read())"
    done = subprocess.run(
        [_python(), "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    return {line.split()[-1] for line in done.stdout.splitlines() if ".so" in line}


@functools.cache
def _links() -> tuple[tuple[str, str], ...]:
    """Return the links at the root through which the loader finds its libraries."""
    folders = [Path(f"/{name}") for name in ("lib", "lib64", "lib32")]
    return tuple((str(f), str(f.readlink())) for f in folders if f.is_symlink())


@functools.cache
def _foreign_packages() -> tuple[str, ...]:
    """Return the folders of installed packages inside what can be seen: their code is nobody's to read."""
    seen = [Path(path) for path in _read_only()]
    library = Path(sysconfig.get_path("stdlib")).resolve()
    places = [library / "site-packages", library / "dist-packages"]
    return tuple(
        str(p) for p in places if p.is_dir() and any(p.is_relative_to(folder) for folder in seen)
    )


@functools.cache
def _runner() -> str:
    return Path(__file__).with_name("sandbox_runner.py").read_text("utf-8")


@functools.cache
def _filter() -> bytes:
    return no_new_process(os.uname().machine)


@contextlib.contextmanager
def _as_descriptor(data: bytes) -> Any:
    """Lend a descriptor from which data can be read; -1 where there is none."""
    if not data:
        yield -1
        return
    read, write = os.pipe()
    os.write(write, data)  # far less than a pipe holds
    os.close(write)
    try:
        yield read
    finally:
        os.close(read)


# -- talking to it


def _exchange(
    process: subprocess.Popen[bytes], request: bytes, wall: float
) -> tuple[bytes, bytes, bool]:
    """Hand over the request and read both outputs, each up to a limit; True where the clock ran out."""
    assert process.stdin and process.stdout and process.stderr
    writer = threading.Thread(target=_hand_over, args=(process.stdin, request), daemon=True)
    writer.start()
    read: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    end = time.monotonic() + wall
    late = False
    with selectors.DefaultSelector() as selector:
        for pipe in read:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and not late:
            for key, _ in selector.select(max(0.0, end - time.monotonic())):
                piece = os.read(key.fd, 1 << 16)
                read[key.fileobj] += piece
                if not piece:
                    selector.unregister(key.fileobj)
            late = time.monotonic() >= end
            if max(map(len, read.values())) > MOST_REPLY:
                break
    return bytes(read[process.stdout]), bytes(read[process.stderr]), late


def _hand_over(pipe: Any, request: bytes) -> None:
    with contextlib.suppress(OSError):  # who does not read the request has no reply
        pipe.write(request)
        pipe.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group; the first process of a process namespace takes all others with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def _read(out: bytes, err: bytes, nonce: str, *, late: bool) -> Outcome:
    """Read the reply: one line that begins the case and one that ends it, both with the nonce.

    Raises:
        SandboxError: the case has not begun, so that the code is not to blame.
    """
    begun, _, rest = out.partition(b"\n")
    if begun.decode("ascii", "replace") != f"{nonce} begins":
        told = " ".join(err.decode("utf-8", "replace").split())[:300]
        raise SandboxError(told or ("it did not start in time" if late else "it ended at once"))
    if late:
        return Outcome(ok=False, reason="it ran out of time")
    line, newline, more = rest.partition(b"\n")
    said, _, text = line.partition(b" ")
    if not newline or more or said.decode("ascii", "replace") != nonce:
        return Outcome(ok=False, reason="it ended without a result")
    try:
        reply = json.loads(text, parse_constant=_no_constant)
        return Outcome(bool(reply["ok"]), reply["value"], str(reply["reason"])[:300])
    except (ValueError, RecursionError, KeyError, TypeError):
        return Outcome(ok=False, reason="its result is no JSON")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
