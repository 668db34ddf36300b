"""A seccomp filter, by system call: no sockets, no new processes, no other process' memory.

Written against Linux' ``Documentation/userspace-api/seccomp_filter.rst``. What is refused gets
EPERM, so a library that tries has an ordinary error; ``clone3``, whose flags a filter cannot see,
gets ENOSYS, on which the C library falls back to ``clone``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from device_agent.worker.landlock import no_new_privileges

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_LOAD, _JUMP_EQUAL, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARG0 = 0, 4, 16
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000
_CLONE3 = 435

_X86_64 = {
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "fork": 57, "vfork": 58,
    "execve": 59, "ptrace": 101, "accept4": 288, "process_vm_readv": 310,
    "process_vm_writev": 311, "bpf": 321, "execveat": 322, "clone": 56,
}  # fmt: skip
_ARM64 = {
    "ptrace": 117, "socket": 198, "bind": 200, "listen": 201, "accept": 202, "connect": 203,
    "clone": 220, "execve": 221, "accept4": 242, "process_vm_readv": 270,
    "process_vm_writev": 271, "bpf": 280, "execveat": 281,
}  # fmt: skip
_ARM = {
    "fork": 2, "execve": 11, "ptrace": 26, "clone": 120, "vfork": 190, "socket": 281, "bind": 282,
    "connect": 283, "listen": 284, "accept": 285, "accept4": 366, "process_vm_readv": 376,
    "process_vm_writev": 377, "bpf": 386, "execveat": 387,
}  # fmt: skip
_SAME_EVERYWHERE = {"io_uring_setup": 425}

ARCHITECTURES: dict[tuple[str, bool], tuple[int, dict[str, int]]] = {
    ("x86_64", True): (0xC000003E, _X86_64),
    ("aarch64", True): (0xC00000B7, _ARM64),
    ("armv7l", False): (0x40000028, _ARM),
    ("armv6l", False): (0x40000028, _ARM),
    # A 32-bit system under a 64-bit kernel, as Raspberry Pi OS ships it.
    ("aarch64", False): (0x40000028, _ARM),
    ("armv8l", False): (0x40000028, _ARM),
}
"""Machine and whether this process has 64 bits, to audit number and system call numbers."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def program(machine: str, *, is_64_bit: bool) -> bytes | None:
    """Return the filter for ``machine`` as BPF instructions, or None when it is not known."""
    known = ARCHITECTURES.get((machine, is_64_bit))
    if known is None:
        return None
    audit, numbers = known
    refuse = _instruction(_RETURN, _ERRNO | errno.EPERM)
    allow = _instruction(_RETURN, _ALLOW)
    lines = [
        _instruction(_LOAD, _OFFSET_ARCH),
        _instruction(_JUMP_EQUAL, audit, 1, 0),
        refuse,
        _instruction(_LOAD, _OFFSET_NUMBER),
    ]
    if numbers is _X86_64:
        lines += [_instruction(_JUMP_GE, _X32_BIT, 0, 1), refuse]
    lines += [
        _instruction(_JUMP_EQUAL, _CLONE3, 0, 1),
        _instruction(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    for name, number in (numbers | _SAME_EVERYWHERE).items():
        if name != "clone":
            lines += [_instruction(_JUMP_EQUAL, number, 0, 1), refuse]
    lines += [
        # A clone that is not a thread would be a process.
        _instruction(_JUMP_EQUAL, numbers["clone"], 0, 3),
        _instruction(_LOAD, _OFFSET_ARG0),
        _instruction(_JUMP_SET, _CLONE_THREAD, 1, 0),
        refuse,
        allow,
    ]
    return b"".join(lines)


def restrict() -> bool:
    """Put the filter on this thread and those it starts; say whether kernel and machine can.

    Raises:
        OSError: The kernel refuses for another reason than not having seccomp.
    """
    instructions = program(platform.machine(), is_64_bit=sys.maxsize > 2**32)
    if instructions is None:
        return False
    no_new_privileges()
    memory = ctypes.create_string_buffer(instructions, len(instructions))
    filter_program = _Program(len(instructions) // 8, ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_program), 0, 0) < 0:
        code = ctypes.get_errno()
        if code == errno.EINVAL:
            return False
        raise OSError(code, f"seccomp: {os.strerror(code)}")
    return True
