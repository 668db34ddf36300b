"""What a worker process takes from itself before it loads anything: files, network, memory."""

from __future__ import annotations

import ctypes
import resource
import struct
import sys
from pathlib import Path

from device_agent.contract.manifest import Limits
from device_agent.worker import landlock, seccomp

FILE_MAX_BYTES = 64 * 2**20
"""Largest file that a worker may write in its scratch folder."""

FILES_MAX = 128
"""File descriptors that a worker may hold."""

STACK_BYTES = 8 * 2**20
DATA_SLACK_BYTES = 64 * 2**20
"""What the address space may hold over the memory limit: reserved, and mostly never touched. The
resident set itself is bounded by the supervisor, which reads it."""

_SYSTEM_PATHS = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems",
    "/proc/version", "/proc/sys/kernel", "/proc/sys/vm",
    "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm",
    "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random",
)  # fmt: skip
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_READ_SEARCH = 2


def confine(folder: Path, scratch: Path, limits: Limits) -> tuple[str, ...]:
    """Give up all that serving the release in ``folder`` does not need; return what is in force.

    Args:
        folder: The release folder; stays readable.
        scratch: The only folder that stays writable.
        limits: The release's limits.

    Raises:
        OSError: The kernel has a protection and refuses to turn it on.
    """
    set_rlimits(limits)
    turned_on = ["rlimits"]
    drop_capabilities()
    if landlock.restrict([*_interpreter_paths(), folder], [scratch, Path("/dev/null")]):
        turned_on.append("landlock")
    if seccomp.restrict():
        turned_on.append("seccomp")
    return tuple(turned_on)


def set_rlimits(limits: Limits) -> None:
    """Bound memory, files and core dumps of this process.

    There is no bound on the number of processes: it counts all of the user's, with their threads.
    The seccomp filter refuses new processes instead.
    """
    # RLIMIT_AS would count what runtimes only reserve, far more than they use.
    data_bytes = limits.memory_bytes + DATA_SLACK_BYTES + STACK_BYTES * (limits.threads + 2)
    for what, bound in (
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_FSIZE, FILE_MAX_BYTES),
        (resource.RLIMIT_NOFILE, FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)  # noqa: PLW2901 - the smaller one stands
        resource.setrlimit(what, (bound, bound))


def drop_capabilities() -> None:
    """Give up all capabilities of root but reading files, which Landlock bounds.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    keep = 1 << _CAP_DAC_READ_SEARCH
    low = [word & keep for word in struct.unpack("6I", held.raw)[:3]]
    if libc.capset(header, struct.pack("6I", *low, 0, 0, 0)) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def _interpreter_paths() -> list[Path]:
    roots = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    return [Path(p) for p in (*roots, *(p for p in sys.path if p), *_SYSTEM_PATHS)]
