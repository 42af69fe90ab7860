"""Listening, slow and silent clients, and stopping in good order (uvicorn)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vidi.deploy.serving.app import State
from vidi.deploy.serving.gate import error
from vidi.deploy.serving.limits import Limits
from vidi.errors import InputError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket of that address. Raises :class:`InputError` where it is not to be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family)
    except (OSError, OverflowError, UnicodeError) as raised:
        reason = str(raised)
        if isinstance(raised, OSError) and not isinstance(raised, socket.gaierror):
            reason = os.strerror(raised.errno or 0)
        raise InputError(
            f"The server cannot listen at {host}, port {port}: {reason}. Choose another --port or "
            "--host."
        ) from raised


def names(listening: socket.socket, host: str) -> frozenset[str]:
    """Under which a server of this machine alone, told to listen at ``host``, may be asked for."""
    return LOOPBACK | {host, url(listening).removeprefix("http://").rpartition(":")[0]}


def url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's, which by itself waits for ever for a request's headers, for the rest of a body
    that nobody reads, and for a client that does not take its answer."""

    class Impatient(H11Protocol):
        waiting: asyncio.TimerHandle | None = None
        writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # asyncio does it only where the listening socket names its protocol. Without it an
            # answer's body waits 40 ms for the client to have confirmed its headers.
            wire = transport.get_extra_info("socket")
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there = len(self.connections)
            if there > 2 * limits.max_connections:
                transport.abort()
                return
            if there > limits.max_connections:
                self.app = _too_many
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()
            if not self.flow.write_paused:
                self._written()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.waiting, self.writing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self.writing is None:  # one clock for all pieces of an answer
                self.writing = self.loop.call_later(limits.body_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.cycle is None or self.cycle.response_complete:
                self._written()

        def send_400_response(self, msg: str) -> None:
            text = json.dumps(
                {
                    "error": "This is no HTTP request, or its headers have more than "
                    f"{limits.max_headers} KiB."
                }
            ).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(text)).encode()),
                (b"connection", b"close"),
            ]
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                for event in (response, h11.Data(data=text), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _written(self) -> None:
            if self.writing is not None:
                self.writing.cancel()
                self.writing = None

        def _watch(self) -> None:
            """A clock runs while headers are awaited, and while what is left of a body is thrown
            away; it is not set anew by what comes meanwhile."""
            awaited = self.conn.their_state is h11.IDLE or (
                self.conn.their_state is h11.SEND_BODY
                and self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE, h11.SEND_BODY)
            )
            if not awaited and self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None
            elif awaited and self.waiting is None:
                self.waiting = self.loop.call_later(limits.body_seconds, self.transport.abort)

    return Impatient


async def _too_many(scope: Any, receive: Any, send: Any) -> None:
    sentence = "There are too many connections. Ask again later."
    await error(429, sentence, {"Retry-After": "1", "Connection": "close"})(scope, receive, send)


class Server(uvicorn.Server):
    """At the first signal it says that it is not ready, takes no new work and answers what it has;
    then it stops. The second signal ends the process."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn would raise the signal again at the end; here a drained server ends with 0.
        if self.state.draining:
            # Threads that decode cannot be broken off, and would be waited for.
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.state.draining = True

    async def on_tick(self, counter: int) -> bool:
        done = self.state.draining and not self.state.running
        self.should_exit = self.should_exit or done or self.state.failed is not None
        return await super().on_tick(counter)


SWITCH = 5e-4
"""Seconds after which a Python thread gives way to another (else 5e-3). Under load the thread that
listens always has something to do, and those that predict would wait so long at each turn."""


def run(app: Any, state: State, listening: socket.socket, limits: Limits) -> None:
    """Serves until a signal. Raises what a run's first prediction raised."""
    config = uvicorn.Config(
        app,
        http=protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,  # its own would close every handler that there is in the process
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.max_headers << 10,
        timeout_graceful_shutdown=int(limits.max_seconds + limits.body_seconds) + 1,
    )
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        Server(config, state).run([listening])
    finally:
        sys.setswitchinterval(before)
    if state.failed is not None:
        raise state.failed
