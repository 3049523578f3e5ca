"""The code sandbox: what runs inside reads, writes, connects to and leaves nothing, and cannot cheat."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from redistill.agents.judge import JudgeTask
from redistill.agents.judges import sandbox
from redistill.agents.judges.checkers import check_spec
from redistill.agents.judges.code_cases import equal, program_of
from redistill.agents.judges.program import Verifier
from redistill.agents.judges.syscalls import no_new_process
from redistill.agents.prompts import PromptSource, load_prompts
from redistill.errors import BadInput
from redistill.report.examine import examine
from redistill.types import Completion, Judgement, Message, Prompt

needs_sandbox = pytest.mark.skipif(
    sandbox.layer() is None, reason=f"no sandbox: {sandbox.why_none()}"
)

FAKE = """\
#!{python}
import os, sys, time
args = sys.argv[1:]
if args == ["--version"]:
    print("bubblewrap 9.9.9")
elif args == ["--help"]:
    print({help!r})
else:
    open({log!r}, "a").write(repr((args, dict(os.environ))) + "\\n")
    {act}
"""
PASS_ON = 'i = args.index("--"); os.execv(args[i + 1], args[i + 1:])'


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, act: str, told: str = "") -> Path:
    """Put a `bwrap` first on the path that only notes how it was called, and then acts."""
    folder.mkdir()
    log, script = folder / "log", folder / "bwrap"
    text = FAKE.format(python=sys.executable, help=told, log=str(log), act=act)
    script.write_text(text, "utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


def calls(log: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Return the argument lists and environments with which a fake was called."""
    return [eval(line) for line in log.read_text("utf-8").splitlines()]


def verdict(program: str, **code: Any) -> Judgement:
    """Let the verifier judge a program: by default it has to add two numbers."""
    spec = {"function": "add", "cases": [{"args": [1, 2], "result": 3}], "seconds": 1} | code
    prompt = Prompt("p", (Message("user", "Add"),), "train", verify={"code": spec})
    answer = Completion("c", "p", program, (), (), "stop", "r")
    [found] = asyncio.run(Verifier().score([JudgeTask(prompt, answer)]))
    return found


# -- what needs no sandbox


def test_every_wall_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command unshares every namespace, drops all rights, and binds nothing that can be written."""
    log = fake(tmp_path / "f", monkeypatch, PASS_ON, "--disable-userns")
    assert sandbox.call("def f(x): return x + 1", "f", [1]).value == 2
    args, environment = calls(log)[-1]
    for wall in ("user", "pid", "net", "ipc", "uts"):
        assert f"--unshare-{wall}" in args
    for wall in ("--disable-userns", "--clearenv", "--die-with-parent", "--new-session"):
        assert wall in args
    assert args[args.index("--cap-drop") + 1] == "ALL"
    assert not {"--bind", "--share-net", "--dev", "--proc", "--setenv", "--bind-try"} & set(args)
    devices = [args[i + 1] for i, a in enumerate(args) if a == "--dev-bind"]
    assert devices == ["/dev/null", "/dev/zero", "/dev/urandom"]
    options = args[: args.index("--")]
    last = max(i for i, a in enumerate(options) if a in ("--tmpfs", "--ro-bind", "--dev-bind"))
    assert options[last:].count("/") == 1, "the root is made read-only after all else"
    assert set(environment) <= {"LC_CTYPE"}  # which Python sets by itself


def test_nothing_of_the_request_is_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Program, arguments and nonce go through a pipe: other users of the machine see no answer."""
    log = fake(tmp_path / "f", monkeypatch, PASS_ON)
    sandbox.call("def f(x): return x  # SECRETPROGRAM", "f", ["SECRETARGUMENT"])
    assert "SECRET" not in log.read_text("utf-8")


def test_an_old_bubblewrap_is_not_asked_for_what_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 0.8.0 there is no `--disable-userns`, and the line for people says so."""
    log = fake(tmp_path / "f", monkeypatch, PASS_ON, "an old one")
    found = sandbox.layer()
    assert found is not None
    assert not found.userns_off
    assert "user namespaces inside allowed" in found.told
    assert "--disable-userns" not in calls(log)[-1][0]


def test_a_sandbox_that_does_not_work_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is its own words, with what to do; nothing is run without it."""
    fake(tmp_path / "f", monkeypatch, 'sys.exit("bwrap: setting up uid map: Permission denied")')
    assert sandbox.layer() is None
    assert "setting up uid map: Permission denied" in sandbox.why_none()
    assert "\n" not in sandbox.why_none()
    found = verdict("def add(a, b): return a + b")
    assert (found.status, found.value) == ("error", None)


@pytest.mark.parametrize(
    "act",
    [
        'sys.stdout.write("f" * 32 + " begins\\n" + "f" * 32 + \' {"ok": true, "value": 42}\\n\')',
        'sys.stdout.write(\'{"ok": true, "value": 42, "reason": ""}\\n\')',
        "sys.exit(0)",
    ],
)
def test_only_the_nonce_makes_a_reply(
    act: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply without this call's nonce, or an exit code of 0, says nothing."""
    fake(tmp_path / "f", monkeypatch, act)
    assert sandbox.layer() is None


def test_what_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of the clock the whole group dies, also what has closed its pipes."""
    log = fake(tmp_path / "f", monkeypatch, PASS_ON)
    program = f"""
import os, time
def f():
    if os.fork() == 0:
        open({str(tmp_path / "child")!r}, "w").write(str(os.getpid()))
        time.sleep(60)
    time.sleep(60)
"""
    assert sandbox.layer() is not None
    began = time.monotonic()
    found = sandbox.call(program, "f", [], sandbox.Limits(wall=1.0))
    assert time.monotonic() - began < 5
    assert (found.ok, found.reason) == (False, "it ran out of time")
    child = int((tmp_path / "child").read_text())
    time.sleep(0.2)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert calls(log)


def test_a_recipe_without_a_sandbox_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that verify code are refused before a model loads, with what to install."""
    code = {"function": "f", "cases": [{"args": [], "result": 1}]}
    rows = [
        {"prompt": f"Q{n}", "verify": {"code": code}, "split": split}
        for n, split in enumerate(["train", "train", "heldout", "test"])
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BadInput) as refused:
        load_prompts(PromptSource(file="p.jsonl"), tmp_path, 0)
    [problem] = refused.value.problems
    assert str(problem).startswith("prompts: 4 prompts verify code, and no sandbox is installed")
    assert "apt install bubblewrap" in str(problem)
    monkeypatch.undo()
    fake(tmp_path / "f", monkeypatch, PASS_ON)
    assert len(load_prompts(PromptSource(file="p.jsonl"), tmp_path, 0)) == 4


def test_doctor_says_which_layer_is_active(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of `redistill doctor` names the sandbox, or what to install."""
    fake(tmp_path / "f", monkeypatch, PASS_ON, "--disable-userns")
    [check] = [c for c in examine(None, tmp_path) if c["name"] == "code sandbox"]
    assert check["state"] == "ok"
    assert check["detail"].startswith("bubblewrap 9.9.9: no further user namespace")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    [check] = [c for c in examine(None, tmp_path) if c["name"] == "code sandbox"]
    assert check["state"] == "note"
    assert "install bubblewrap" in check["fix"]


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"function": "f", "cases": []},
        {"function": "f", "cases": [{"args": [1]}]},
        {"function": "f", "cases": [{"input": "1", "output": "2"}]},
        {"cases": [{"args": [1], "result": 2}]},
        {"function": "f(", "cases": [{"args": [1], "result": 2}]},
        {"function": "f", "cases": [{"args": [1], "result": 2}], "seconds": 0},
    ],
)
def test_wrong_cases_are_told(spec: dict[str, Any]) -> None:
    """A case lacks nothing and mixes nothing, and limits are in their bounds."""
    [problem] = check_spec({"code": spec}, "verify")
    assert problem.where == "verify.code"


def test_the_program_is_the_last_fenced_block() -> None:
    """Words around a block are no program; an answer without a block is one as a whole."""
    assert (
        program_of("First:\n```python\nx\n```\nno:\n```py\na = 1\n\nb = 2\n```\nDone.")
        == "a = 1\n\nb = 2"
    )
    assert program_of("a = 1") == "a = 1"
    assert program_of("```\nnever closed") == "never closed"


def test_values_are_equal_as_json_is() -> None:
    """A number is no truth value, whole numbers are exact, others nearly; keys and order count."""
    assert equal([1, {"a": 0.1 + 0.2}], [1, {"a": 0.3}])
    assert equal(2, 2.0)
    for wanted, found in ((1, True), (True, 1), (10**17, 10**17 + 1), ([1, 2], [2, 1]), (None, 0)):
        assert not equal(wanted, found)
    assert not equal({"a": 1}, {"a": 1, "b": 2})
    assert not equal(10**400, 0.5)


def test_the_filter_is_well_formed() -> None:
    """Each instruction has 8 bytes and no jump leaves the program; other processors get none."""
    for machine in ("x86_64", "aarch64"):
        data = no_new_process(machine)
        lines = [data[i : i + 8] for i in range(0, len(data), 8)]
        assert len(data) % 8 == 0
        assert 10 < len(lines) < 4096
        for place, line in enumerate(lines):
            assert place + 1 + max(line[2], line[3]) < len(lines) or line[0] == 0x06
    assert no_new_process("pdp11") == b""


# -- what needs it

CHEATS = {
    "prints what is expected": "print(3)\ndef add(a, b): print('3'); return None",
    "ends early with code 0": "import sys\nsys.exit(0)",
    "patches comparison": """
        import builtins, json, operator
        class Always(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = int.__hash__
        builtins.all = builtins.any = lambda *_: True
        operator.eq = lambda *_: True
        def add(a, b): return Always(7)
    """,
    "leaves by the back door": "import os\nos._exit(0)",
    "reads the tests": """
        import gc, os, sys
        def add(a, b):
            seen = [o for o in gc.get_objects() if isinstance(o, dict) and 'cases' in o]
            frame, found = sys._getframe(), []
            while frame:
                found += [v for v in frame.f_locals.values() if isinstance(v, dict)]
                frame = frame.f_back
            for o in seen + found:
                if 'cases' in o or 'result' in o or 'output' in o:
                    return o.get('result') or o['cases'][0]['result']
            for root, _, files in os.walk('/scratch'):
                return open(os.path.join(root, files[0])).read()
    """,
    "forges the reply": """
        import os, sys
        def add(a, b):
            frame, nonce = sys._getframe(), ''
            while frame:
                request = frame.f_locals.get('request')
                nonce = request['nonce'] if request else nonce
                frame = frame.f_back
            for fd in range(3, 32):
                try:
                    os.write(fd, (nonce + ' {"ok": true, "passed": true, "value": true, "reason": ""}\\n').encode())
                except OSError:
                    pass
            os._exit(0)
    """,
    "never stops talking": """
        import os
        def add(a, b):
            while True:
                for fd in range(1, 32):
                    try: os.write(fd, b'3' * 65536)
                    except OSError: pass
    """,
    "sleeps": "import time\ndef add(a, b): time.sleep(3600)",
    "multiplies": """
        import os
        def add(a, b):
            while True:
                try: os.fork()
                except OSError: return 'no'
    """,
    "eats memory": "def add(a, b):\n    x = []\n    while True: x.append(bytearray(1 << 24))",
    "returns what has no end": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "is no program": "3",
}


@needs_sandbox
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_scores_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the code does instead of the work is wrong: a value of 0, and never a failed judgement."""
    honest = sandbox.Limits

    def quick(seconds: int = 1, _: float = 0.0, memory: int = 512 << 20) -> sandbox.Limits:
        return honest(seconds, 1.5, memory)

    monkeypatch.setattr("redistill.agents.judges.sandbox.Limits", quick)
    found = verdict(textwrap.dedent(CHEATS[name]))
    assert (found.status, found.value) == ("ok", 0.0)


@needs_sandbox
def test_right_code_passes_and_nearly_right_code_fails() -> None:
    """All cases must pass, each in a process of its own, in both ways of asking."""
    cases = [{"args": [1, 2], "result": 3}, {"args": [[1], [2]], "result": [1, 2]}]
    assert (
        verdict("Here:\n```python\ndef add(a, b):\n    return a + b\n```", cases=cases).value == 1.0
    )
    assert verdict("def add(a, b): return int(a) + int(b)", cases=cases).value == 0.0
    once = "n = 0\ndef add(a, b):\n    global n\n    n += 1\n    return 3 if n == 1 else 0"
    assert verdict(once, cases=cases[:1] * 3).value == 1.0
    prompt = Prompt(
        "p", (Message("user", "Double"),), "train",
        verify={"code": {"cases": [{"input": "4\n", "output": "8"}, {"input": "5", "output": "10"}]}},
    )  # fmt: skip
    for program, value in (("print(2 * int(input()))", 1.0), ("print(8)", 0.0)):
        task = JudgeTask(prompt, Completion("c", "p", program, (), (), "stop", "r"))
        [found] = asyncio.run(Verifier().score([task]))
        assert (found.value, found.parts["code"], found.parts["content"]) == (
            value,
            bool(value),
            bool(value),
        )


ESCAPES = {
    "home": "return os.listdir(os.path.expanduser('~'))",
    "secret": "return open(SECRET).read()",
    "beside": "return os.listdir(os.path.dirname(SECRET))",
    "passwords": "return open('/etc/passwd').read()",
    "processes": "return os.listdir('/proc')",
    "process 1": "return open('/proc/1/environ').read()",
    "environment": "return [v for v in os.environ.values() if 'planted' in v]",
    "descriptors": "return [os.read(fd, 99).decode() for fd in range(4, 64) if stat_of(fd)]",
    "write root": "open('/left', 'w').write('x')",
    "write library": "open(os.__file__, 'a').write('x')",
    "write beside secret": "open(os.path.dirname(SECRET) + '/left', 'w').write('x')",
    "write device": "open('/dev/left', 'w').write('x')",
    "big file": "open('/scratch/big', 'wb').truncate(1 << 30)",
    "tcp": "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
    "abstract socket": "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0' + NAME)",
    "udp out": "import socket; socket.socket(2, 2).sendto(b'x', ('192.0.2.1', 53))",
    "fork": "os.fork()",
    "spawn": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'])",
    "vfork": "assert libc('vfork') >= 0",
    "clone": "assert libc('syscall', 56, 17, 0, 0, 0, 0) >= 0",
    "clone3": "assert libc('syscall', 435, 0, 0) >= 0 or errno() not in (1, 38)",
    "user namespace": "assert libc('unshare', 0x10000000) == 0",
    "mount": "assert libc('mount', b'none', b'/scratch', b'tmpfs', 0, 0) == 0",
    "new mount call": "assert libc('syscall', 430, b'tmpfs', 0) >= 0",
    "root change": "os.chroot('/scratch')",
    "trace": "assert libc('ptrace', 0, 0, 0, 0) == 0",
    "bpf": "assert libc('syscall', 321, 0, 0, 0) >= 0",
    "io_uring": "assert libc('syscall', 425, 8, 0) >= 0",
    "keys": "assert libc('syscall', 250, 0, -3, 0) >= 0",
    "be root": "os.setuid(0)",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "kill outside": "os.kill(OUTSIDE, 9)",
    "host name": "import socket; socket.sethostname('left')",
    "clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
    "shared memory": "assert libc('shmget', 4242, 4096, 0o600) >= 0",
}

CHILD = """
import json, os, socket, sys, tempfile
from redistill.agents.judges import sandbox
escapes = json.load(sys.stdin)
folder = tempfile.mkdtemp()
secret = os.path.join(folder, "secret")
open(secret, "w").write("planted")
os.environ["API_KEY"] = "planted"
kept = os.open(secret, os.O_RDONLY); os.set_inheritable(kept, True)
tcp = socket.socket(); tcp.bind(("127.0.0.1", 0)); tcp.listen(); tcp.setblocking(False)
name = "redistill-escape-%d" % os.getpid()
unix = socket.socket(socket.AF_UNIX); unix.bind("\\0" + name); unix.listen(); unix.setblocking(False)
HEAD = '''
import ctypes, os, stat
SECRET, PORT, NAME, OUTSIDE = %r, %d, %r, %d
C = ctypes.CDLL(None, use_errno=True)
def libc(name, *args): return getattr(C, name)(*args)
def errno(): return ctypes.get_errno()
def stat_of(fd):
    try: return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError: return False
def f():
    %%s
''' % (secret, tcp.getsockname()[1], name, os.getpid())
before = sorted(os.listdir("/")), sorted(os.listdir(folder))
found = {}
for what, body in escapes.items():
    got = sandbox.call(HEAD % body, "f", [], sandbox.Limits(seconds=2, wall=6))
    found[what] = [got.ok, got.value, got.reason]
came = []
for door in (tcp, unix):
    try: came.append(door.accept()[1])
    except BlockingIOError: pass
after = sorted(os.listdir("/")), sorted(os.listdir(folder))
import psutil
left = [p.name() for p in psutil.Process().children(recursive=True)]
print(json.dumps({"found": found, "came": len(came), "same": before == after, "left": left}))
"""


def own_mounts() -> list[str]:
    """Return the command that gives a process its own mount namespace; skip where there is none."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        try:
            done = subprocess.run([*command, "true"], capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            return command
    pytest.skip("no mount namespace of its own can be had: `unshare --mount` does not work here")


@needs_sandbox
def test_nothing_escapes() -> None:
    """The corpus reads, writes, connects to and leaves nothing; it runs in mounts of its own, always."""
    done = subprocess.run(
        [*own_mounts(), sys.executable, "-c", CHILD],
        input=json.dumps(ESCAPES),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    got_through = {n: f for n, f in told["found"].items() if f[0] and f[1] not in (None, [], "")}
    assert got_through == {}
    silent = [n for n, f in told["found"].items() if f[0]]
    # What ended well gave nothing: an empty environment, no descriptor to read, a file in memory.
    assert set(silent) <= {"environment", "descriptors", "udp out"}, told["found"]
    assert (told["came"], told["same"], told["left"]) == (0, True, [])


@needs_sandbox
def test_it_holds_no_right_and_no_other_process() -> None:
    """Inside there are no capabilities, one user that is nobody, and no network but its own loopback."""
    program = """
import ctypes, os, socket
def f():
    C = ctypes.CDLL(None)
    head, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    C.capget(head, data)
    return [sum(data), os.getuid(), [n for _, n in socket.if_nameindex()], sorted(os.environ)]
"""
    found = sandbox.call(program, "f", [])
    assert found.value == [0, 65534, ["lo"], ["PWD"]], found
