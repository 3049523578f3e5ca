"""What runs inside the sandbox: it limits itself, runs the code on one case, and replies.

Never imported: its text is handed to an interpreter that has no packages. The code that it runs may do to
it what it likes: nothing that is right or wrong is known in here.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Read one request, run it, write one reply."""
    request = json.loads(sys.stdin.buffer.read())
    reply = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.write(reply, (request["nonce"] + " begins\n").encode())
    for name, most in request["limits"].items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
    found: dict[str, Any] = {"ok": False, "value": None, "reason": ""}
    try:
        found.update(ok=True, value=run(request))
        text = json.dumps(found)
    except BaseException as error:  # noqa: BLE001 - whatever the code raises is its result
        reason = type(error).__name__ + ": " + str(error)[:200]
        text = json.dumps({"ok": False, "value": None, "reason": reason})
    send(reply, (request["nonce"] + " " + text + "\n").encode())
    os._exit(0)


def run(request: dict[str, Any]) -> Any:
    """Return what the code returns, or prints."""
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    code = compile(request["program"], "<answer>", "exec")
    if "input" in request:
        sys.stdin, sys.stdout = io.StringIO(request["input"]), io.StringIO()
        try:
            exec(code, space)  # noqa: S102 - what the sandbox is for
        except SystemExit as error:
            if error.code not in (None, 0):
                raise
        return sys.stdout.getvalue()
    # The name of a module, so that what only a script does is not done.
    space["__name__"] = "answer"
    exec(code, space)  # noqa: S102
    return space[request["function"]](*request["args"])


def send(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
