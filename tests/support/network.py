"""A network of a thread's own, in which there is nothing but loopback: what listens everywhere listens there alone."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_OWN = "/proc/thread-self/ns/net"
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def only_loopback() -> Iterator[None]:
    """Let this thread, and what it starts, have such a network; where it may not make one, it keeps its own."""
    with _back_afterwards():
        if _libc.unshare(_CLONE_NEWNET) == 0:
            _bring_up("lo")
        yield


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Let this thread, and what it starts, have the network of a process."""
    with _back_afterwards():
        _enter(f"/proc/{pid}/ns/net")
        yield


@contextmanager
def _back_afterwards() -> Iterator[None]:
    before = os.open(_OWN, os.O_RDONLY)
    try:
        yield
    finally:
        _enter(f"/proc/self/fd/{before}")
        os.close(before)


def _enter(network: str) -> None:
    if os.path.samefile(network, _OWN):
        return
    descriptor = os.open(network, os.O_RDONLY)
    try:
        assert _libc.setns(descriptor, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sh", interface.encode(), 0)
        _, flags = struct.unpack("16sh", fcntl.ioctl(probe, _SIOCGIFFLAGS, request))
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh", interface.encode(), flags | _IFF_UP))
