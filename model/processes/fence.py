"""A fence around a process that reads strangers' files: no network, no other program, no look into other processes.

It is a seccomp filter on Linux, installed by the process itself once its libraries are loaded: what a taken-over
decoder would need next fails with EPERM. Elsewhere, and where the system forbids filters, `fence` says why there is
none. Where the system has Landlock, other processes cannot be looked into either. Reads of files are not fenced: the
process's user may read what it may read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x00010000
_OTHER_ABI = 0x40000000  # x32 on x86_64, which would name the same calls by other numbers
_MOST_FILES = 256
_CAPABILITIES_VERSION, _READ_ANY_FILE = 0x20080522, 1 << 2
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446  # on every architecture
_ALL_WRITES = 0b1_1111_1111_0011  # of Landlock's first version: execute, write, and all but reading files and folders

_DENIED = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
        "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "ptrace": 101, "mount": 165, "setns": 308,
        "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "accept4": 288, "perf_event_open": 298,
        "sendmmsg": 307, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "execveat": 322,
        "userfaultfd": 323, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438,
    },
    "aarch64": {
        "mount": 40, "unshare": 97, "ptrace": 117, "socket": 198, "socketpair": 199, "bind": 200, "listen": 201,
        "accept": 202, "connect": 203, "sendto": 206, "sendmsg": 211, "add_key": 217, "request_key": 218,
        "keyctl": 219, "execve": 221, "perf_event_open": 241, "accept4": 242, "setns": 268, "sendmmsg": 269,
        "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "execveat": 281, "userfaultfd": 282,
        "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438,
    },
}  # fmt: skip
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def fence() -> str:
    """Fence this process in, for good; why that cannot be done here, or nothing.

    From now on it may make threads, but no processes, sockets or files, and look at no other process.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected; its core file is not wanted
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it answers through memory and a pipe
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    least = _MOST_FILES if most == resource.RLIM_INFINITY else min(_MOST_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, least))
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _DENIED:
        return f"{sys.platform} on {machine} has no filter of system calls that is known here"
    program = _program(machine)
    code = ctypes.create_string_buffer(b"".join(program), 8 * len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    filters = ctypes.create_string_buffer(head, len(head))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"the system forbids it: {os.strerror(ctypes.get_errno())}"
    _give_up_privileges(libc)
    confine(libc)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(filters)), 0, 0) != 0:
        return f"the system has no filters of system calls: {os.strerror(ctypes.get_errno())}"
    return ""


def _give_up_privileges(libc: ctypes.CDLL) -> None:
    """Keep of what root may do only to read files: with the rest, other processes can be looked into all the same."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITIES_VERSION, 0), 8)
    held = ctypes.create_string_buffer(24)  # two times effective, permitted and inheritable
    if libc.capget(header, held) != 0:
        return
    permitted = struct.unpack("6I", held.raw)[1] & _READ_ANY_FILE
    kept = struct.pack("6I", permitted, permitted, 0, 0, 0, 0)
    libc.capset(header, ctypes.create_string_buffer(kept, len(kept)))


def confine(libc: ctypes.CDLL) -> bool:
    """Forbid writing to the file system, and looking into processes outside, by Landlock; whether the system has it.

    A confined process cannot trace one that is not: `/proc/PID/mem` and `environ` of its owner are closed to it.
    """
    handled = struct.pack("Q", _ALL_WRITES)
    rules = libc.syscall(_LANDLOCK_CREATE, ctypes.c_char_p(handled), ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    done = libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return bool(done)


def _program(machine: str) -> list[bytes]:
    """The filter: what is denied answers EPERM, all else is allowed."""
    denied = _instruction(_RETURN, _ERRNO | errno.EPERM)
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, _AUDIT[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, _OTHER_ABI, 0, 1),
        denied,
    ]
    for number in sorted(_DENIED[machine].values()):
        program += [_instruction(_EQUAL, number, 0, 1), denied]
    # The C library makes threads by clone where clone3 is not there, and only of clone can a filter see the flags.
    program += [_instruction(_EQUAL, _CLONE3, 0, 1), _instruction(_RETURN, _ERRNO | errno.ENOSYS)]
    program += [
        _instruction(_EQUAL, _CLONE[machine], 0, 3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_ANY_BIT, _CLONE_THREAD, 1, 0),
        denied,
    ]
    return [*program, _instruction(_RETURN, _ALLOW)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter."""
    return struct.pack("HBBI", code, if_true, if_false, value)
