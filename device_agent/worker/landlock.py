"""Landlock by system call: which files, TCP ports and processes this process can still reach.

The kernel's interface is specified in Linux' ``Documentation/userspace-api/landlock.rst``; the
three system calls have the same number on every architecture. Only the calling thread is
restricted and those it starts later, so this comes before anything that starts threads.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
_FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE

_FILE_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file-system rights that each version of the interface knows."""

_NET_ABI = 4
_NET_RIGHTS = 0b11
_SCOPE_ABI = 6
_SCOPES = 0b11

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the version of Landlock that the kernel offers; 0 when it offers none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Leave this process ``readable`` and ``writable`` paths, and no TCP port; say whether it can.

    Where the kernel knows how, signals to and abstract Unix sockets of processes outside are
    out of reach too. Paths that do not exist are left out.

    Raises:
        OSError: The kernel has Landlock and refuses.
    """
    version = abi()
    if not version:
        return False
    rights = (1 << _FILE_RIGHTS_OF_ABI.get(version, 16)) - 1
    attributes = struct.pack(
        "QQQ",
        rights,
        _NET_RIGHTS if version >= _NET_ABI else 0,
        _SCOPES if version >= _SCOPE_ABI else 0,
    )[: 24 if version >= _SCOPE_ABI else 16 if version >= _NET_ABI else 8]
    ruleset = _checked(
        _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    )
    try:
        for path in readable:
            _allow(ruleset, path, READ & rights)
        for path in writable:
            _allow(ruleset, path, rights & ~EXECUTE)
        no_new_privileges()
        _checked(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def no_new_privileges() -> None:
    """Never gain privileges by executing a program again; both filters require it."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            rights &= _FOR_FILES
        rule = struct.pack("=Qi", rights, target)
        _checked(_libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(target)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return int(result)
