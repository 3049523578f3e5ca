"""A system call filter as a classic BPF program: no new process, and no door to the kernel that code needs.

The format is that of seccomp(2), `struct sock_filter`; bubblewrap installs it. Threads are let through.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FLAGS = 0, 4, 16
"""Offsets in `struct seccomp_data`: the call's number, the architecture, the first argument."""
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _UNKNOWN = 0x00050000 | 1, 0x00050000 | 38
"""EPERM; ENOSYS, at which the C library goes back to `clone`, whose flags can be looked at."""
_THREAD = 0x00010000
"""CLONE_THREAD."""
_X32 = 0x40000000
"""Bit of the numbers of a second table of calls on x86-64, which would pass by the first one."""

_MODERN = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442)
"""io_uring and the new mount calls; one number everywhere."""
_CLONE3 = 435
_CALLS: Mapping[str, tuple[int, int, tuple[int, ...]]] = {
    # fork vfork ptrace mount umount2 pivot_root chroot unshare setns add_key request_key keyctl
    # perf_event_open bpf userfaultfd kexec_load init_module finit_module process_vm_writev
    "x86_64": (
        0xC000003E,
        56,
        (
            57,
            58,
            101,
            165,
            166,
            155,
            161,
            272,
            308,
            248,
            249,
            250,
            298,
            321,
            323,
            246,
            175,
            313,
            311,
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (117, 40, 39, 41, 51, 97, 268, 217, 218, 219, 241, 280, 282, 104, 105, 273, 271),
    ),
}
"""Machine -> its architecture's number, `clone`, and the calls that are refused."""


def no_new_process(machine: str) -> bytes:
    """Return the filter for a machine as `uname -m` names it; empty where it is not known."""
    if machine not in _CALLS:
        return b""
    architecture, clone, refused = _CALLS[machine]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE)]
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _UNKNOWN)]
    for number in (*refused, *_MODERN):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    program += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FLAGS),
        (_ANY_BIT, 1, 0, _THREAD),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in program)
