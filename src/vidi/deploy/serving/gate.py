"""What every request passes: who may come in, how it is counted, and that errors are sentences."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from vidi.deploy.serving.limits import Limits, Refused
from vidi.deploy.serving.metrics import Metrics

log = logging.getLogger("vidi.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health", "/ready")
"""What needs no token: the page asks for it itself, and who watches a server has none."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one form in which a request is refused."""
    return JSONResponse({"error": sentence}, status, headers)


class Gate:
    """``token``: what a request has to carry; None: nothing. ``hosts``: names under which the
    server may be asked for, so that no web page elsewhere reaches a server of this machine under a
    name of its own (DNS rebinding); None: any."""

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        limits: Limits,
        token: str | None,
        hosts: frozenset[str] | None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.token = None if token is None else token.encode()
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # starting and stopping
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        answer = None
        try:
            try:
                self._check(scope)
                await self.app(scope, receive, counted)
            except Refused as refused:
                self.metrics.refusals.labels(refused.why).inc()
                answer = error(refused.status, refused.sentence, refused.headers)
            except ClientDisconnect:
                pass  # nobody is there to be answered
            except Exception:
                log.exception("a request failed")
                if status:  # half an answer is out: the connection has to end
                    raise
                answer = error(500, "The server failed at this; its log says how.")
            # The error is gone by now, and with it the images that its frames held: it may take
            # long until the client has this.
            if answer is not None:
                await answer(scope, receive, counted)
        finally:
            self.metrics.request(scope["path"], status or 499, time.monotonic() - began)

    def _check(self, scope: Scope) -> None:
        size = len(scope["query_string"]) + sum(len(k) + len(v) for k, v in scope["headers"])
        if size > self.limits.max_headers << 10:  # uvicorn refuses those that come in pieces
            raise Refused(
                431, f"The headers have more than {self.limits.max_headers} KiB.", "headers"
            )
        headers = dict(scope["headers"])
        if self.hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if name not in self.hosts:
                raise Refused(
                    400,
                    "This server is asked for under a name that is not its own. Ask for it at "
                    "the address that it printed, or start it with a token.",
                    "host",
                )
        if self.token is None or scope["path"] in OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self.token)
        if scheme.lower() != b"bearer" or not right:
            raise Refused(
                401,
                "A token is needed: the header Authorization: Bearer TOKEN, with the server's.",
                "token",
                {"WWW-Authenticate": "Bearer"},
            )
