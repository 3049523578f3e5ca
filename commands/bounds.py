"""Bounds on a command that runs SQL of a user, set on the process itself.

The engine counts its own memory and looks at its clock between batches of rows. One function call on one
huge text does neither: `repeat('x', 2000000000)` takes gigabytes and minutes beyond every limit of the jail.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Iterator

import psutil

from ..errors import BadInput

SECONDS = 90.0
"""Beyond the jail's own limit, which leaves a line of its own; this one ends the process."""
BYTES = 4 << 30
"""Memory that a query may take beside what the process has."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, extra: int = BYTES) -> Iterator[None]:
    """Bound memory and time of what is inside.

    Raises:
        BadInput: it needs more memory. More time ends the process, with a line and exit code 2.
    """
    clock = threading.Timer(seconds, _end, [seconds])
    clock.daemon = True
    clock.start()
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + extra
    # Not every system can bound this; then the jail's own limits are all there is.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    except MemoryError as error:
        hint = "ask for less at once"
        raise BadInput.at("SQL", f"needs more than {extra >> 30} GiB of memory", hint) from error
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, before)
        clock.cancel()


def _end(seconds: float) -> None:
    # Nothing is open but a file that is only read: there is nothing to lose.
    os.write(2, f"SQL: took more than {seconds:.0f} s in one step; ask for less at once\n".encode())
    os._exit(BadInput.exit_code)
