"""No test may reach beyond this machine: sockets to other addresses are refused, and name look-ups with them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


class BeyondLoopbackError(OSError):
    """A test tried to leave this machine."""


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Refuse sockets beyond loopback; yields the addresses that were tried."""
    tried: list[str] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else str(address)
        if isinstance(address, tuple) and not str(host).startswith(LOCAL):
            tried.append(str(host))
            raise BeyondLoopbackError(f"a test tried to reach {host}")
        connect(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host is not None and not str(host).startswith(LOCAL):
            tried.append(str(host))
            raise BeyondLoopbackError(f"a test tried to look up {host}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield tried
