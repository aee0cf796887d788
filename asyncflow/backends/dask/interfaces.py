"""On which of a node's addresses to listen: one that others of the cluster reach, never all of them."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import psutil

from asyncflow.errors import InvalidOptionError


def own_address(interface: str | None, scheduler: str | None = None) -> str:
    """The IPv4 address of `interface` here; by default the one that leads to the scheduler, else the host's own."""
    if interface is not None:
        return _address_of(interface)
    if scheduler is not None:
        return _towards(urlsplit(scheduler).hostname or "127.0.0.1")
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _address_of(interface: str) -> str:
    found = psutil.net_if_addrs()
    for each in found.get(interface, []):
        if each.family == socket.AF_INET:
            return str(each.address)
    raise InvalidOptionError("interface", interface, f"a network interface with an IPv4 address: {', '.join(found)}")


def _towards(host: str) -> str:
    """The address from which packets to `host` leave; none is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
