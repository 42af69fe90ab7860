"""The addresses, and the way of a request through them."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import cv2
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from vidi import __version__
from vidi.deploy.serving import bodies, decoding, openapi, page
from vidi.deploy.serving.bodies import Files
from vidi.deploy.serving.gate import Gate, Receive, Scope, Send, error
from vidi.deploy.serving.limits import TOGETHER, Budget, Limits, Refused, busy
from vidi.deploy.serving.metrics import Metrics
from vidi.deploy.serving.served import Served
from vidi.engine import defaults
from vidi.report.answer_json import as_json
from vidi.report.drawn import drawn

log = logging.getLogger("vidi.serve")
T = TypeVar("T")
Names = tuple[str, ...]

PIECE = 1 << 18
"""Bytes of an answer that are handed to its connection at once."""


@dataclass
class State:
    """What the server is at."""

    ready: bool = False
    """All runs have made their first prediction."""
    draining: bool = False
    """It was told to stop, and answers what it has taken."""
    running: int = 0
    """Requests for predictions that are not answered yet."""
    failed: BaseException | None = None
    """Why a run could not make its first prediction."""


@dataclass(frozen=True)
class Asked:
    """How the answers are to be."""

    top: int
    least: float
    picture: bool
    arrays: bool


def asked_for(
    top: Annotated[int, Query(ge=1, le=1000, description="Classes named.")] = 5,
    least: Annotated[float, Query(ge=0, le=1, description="Objects' lowest score.")] = 0.5,
    picture: Annotated[bool, Query(description="Draw each, too: PNG in base64.")] = False,
    arrays: Annotated[bool, Query(description="What each pixel has, too.")] = False,
) -> Asked:
    """The query of both addresses that predict."""
    return Asked(top, least, picture, arrays)


def create(
    runs: Sequence[Served],
    limits: Limits,
    metrics: Metrics,
    *,
    token: str | None = None,
    hosts: frozenset[str] | None = None,
) -> tuple[FastAPI, State]:
    """The application of these runs, of which the first is the default.

    ``token``, ``hosts``: as for :class:`Gate`. The runs' threads start and end with it.
    """
    state = State()
    by_name = {one.name: one for one in runs}
    pool = ThreadPoolExecutor(defaults.cores(), "vidi-requests")
    held = Budget(TOGETHER * limits.body_bytes)
    on_their_way = Budget(TOGETHER * limits.body_bytes)
    html = page.read()
    page_headers = {"Content-Security-Policy": page.policy(html)}

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(asyncio.to_thread(_warm_up, runs, state))
        yield
        await warming
        for one in runs:
            await asyncio.to_thread(one.batcher.close)
        pool.shutdown(wait=False, cancel_futures=True)  # a thread may be at it for long

    app = FastAPI(
        title="vidi",
        version=__version__,
        description="What trained networks say of images.",
        lifespan=living,
        docs_url=None,  # they fetch from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Gate, metrics=metrics, limits=limits, token=token, hosts=hosts)

    async def answer(request: Request, one: Served, asked: Asked) -> Response:
        """The way of a request for a prediction."""
        if state.draining:
            raise Refused(503, "The server is about to stop.", "stopping", {"Retry-After": "5"})
        if not state.ready:
            raise Refused(
                503, "The runs are being made ready. Ask again.", "starting", {"Retry-After": "1"}
            )
        one.batcher.check_room()
        state.running += 1
        taken = 0
        try:
            with one.batcher.coming() as arrived:
                body = await bodies.read(request.stream(), request.headers, limits, held)
                taken = len(body)
                box = [body]
                del body
                async with asyncio.timeout(limits.max_seconds):
                    said = await predicted(box, request.headers, one, asked, arrived)
        except TimeoutError:
            raise Refused(
                503,
                f"It took more than {limits.max_seconds:g} seconds. Send fewer or smaller images, "
                "or ask again later.",
                "time",
                {"Retry-After": "5"},
            ) from None
        finally:
            held.give_back(taken)
            state.running -= 1
        if not on_their_way.take(len(said)):
            raise busy("Too many large answers are on their way. Ask again later.", "answers")
        return _Said(said, on_their_way)

    async def predicted(
        box: list[bytes],
        headers: Mapping[str, str],
        one: Served,
        asked: Asked,
        arrived: Callable[[], None],
    ) -> bytes:
        began = time.monotonic()
        with one.batcher.places() as take:
            take(1, 0)  # before anything is unpacked
            files, inputs = await in_thread(pool, _opened, box.pop(), headers, one, take)
            futures = one.batcher.submit(inputs)
            arrived()
            try:
                found = await asyncio.gather(*map(asyncio.wrap_future, futures))
            finally:
                one.batcher.forget(futures)
        return await in_thread(pool, _said, one, files, inputs, found, asked, began)

    def named(name: str | None) -> Served:
        if name is None:
            return runs[0]
        if name not in by_name:
            raise Refused(
                404, f"No run of that name is served; what is: {', '.join(by_name)}.", "run"
            )
        return by_name[name]

    @app.get("/", include_in_schema=False)
    async def the_page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=page_headers)

    @app.get("/health", summary="Whether the server lives")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Whether it predicts", responses=openapi.errors(503))
    async def ready() -> dict[str, str]:
        if state.draining or not state.ready:
            what = "about to stop" if state.draining else "being made ready"
            raise Refused(503, f"The server is {what}.", "probe")
        return {"status": "ready"}

    @app.get("/runs", summary="The runs that are served", responses=openapi.errors(401))
    async def all_runs() -> dict[str, Any]:
        return {
            "runs": [one.described() | {"default": one is runs[0]} for one in runs],
            "limits": {
                "body_mib": limits.max_body,
                "megapixels": limits.max_megapixels,
                "images": limits.max_images,
            },
        }

    @app.get("/metrics", summary="Counts, for Prometheus", responses=openapi.errors(401),
             response_class=_Counts)  # fmt: skip
    async def counts() -> Response:
        return _Counts(await in_thread(pool, metrics.text))

    @app.post(
        "/predict",
        summary="What the default run, or the one named, says of images",
        **openapi.PREDICTION,
    )
    async def predict(
        request: Request,
        asked: Annotated[Asked, Depends(asked_for)],
        run: Annotated[str | None, Query(description="One of /runs.")] = None,
    ) -> Response:
        return await answer(request, named(run), asked)

    @app.post(
        "/runs/{name}/predict",
        summary="What a run says of images",
        **openapi.PREDICTION,
    )
    async def predict_by(
        request: Request, name: str, asked: Annotated[Asked, Depends(asked_for)]
    ) -> Response:
        return await answer(request, named(name), asked)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, raised: HTTPException) -> Response:
        sentence = {
            404: "There is nothing at this address; /openapi.json says what there is.",
            405: "This address does not know that method; /openapi.json says which it does.",
        }.get(raised.status_code, str(raised.detail))
        return error(raised.status_code, sentence, dict(raised.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def wrong_query(request: Request, raised: RequestValidationError) -> Response:
        first = raised.errors()[0]
        return error(422, f"The query's {first['loc'][-1]} is not right: {first['msg']}.")

    return app, state


class _Counts(Response):
    media_type = CONTENT_TYPE_LATEST


class _Said(Response):
    """An answer, sent in pieces, so that it is held here, and not by the connection, until the
    client has taken it; then its bytes are given back to the budget."""

    media_type = "application/json"

    def __init__(self, said: bytes, budget: Budget) -> None:
        super().__init__(said)
        self.budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = len(self.body)
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            for k in range(0, size, PIECE):
                piece = self.body[k : k + PIECE]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            self.budget.give_back(size)


async def in_thread(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    """``work`` of these in one of the pool's threads. A call that was given up stays in the pool's
    queue until its turn comes, but without its arguments, which may be large."""
    box = [arguments]
    del arguments
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*box.pop()))
    finally:
        box.clear()


def _warm_up(runs: Sequence[Served], state: State) -> None:
    try:
        for one in runs:
            one.warm_up()
            one.batcher.start()
        state.ready = True
    except BaseException as raised:
        state.failed = raised


def _opened(
    body: bytes, headers: Mapping[str, str], one: Served, take: Callable[[int, float], None]
) -> tuple[list[Files], list[Any]]:
    """The images' files, and their pixels. ``take``: places for all but one of them."""
    files = bodies.files(body, headers, pairs=one.pairs, most=one.limits.max_images)
    names = decoding.names(len(files), pairs=one.pairs)
    pixels = _pixels(names, files, one.limits)
    if pixels > one.most_pixels:
        raise Refused(
            413,
            f"The images have {pixels / 1e6:,.0f} million pixels together; at most "
            f"{one.most_pixels / 1e6:g} million are looked at. Send fewer a request.",
            "pixels",
        )
    take(len(files) - 1, pixels)
    return files, _decoded(names, files, one, take)


def _pixels(names: list[Names], files: list[Files], limits: Limits) -> int:
    """Of all images, by their headers. Raises Refused for those that may not be decoded."""
    pixels = 0
    for called, each in zip(names, files, strict=True):
        found = [
            decoding.header(data, name, limits) for data, name in zip(each, called, strict=True)
        ]
        if len({one.size for one in found}) > 1:
            (h, w), (h2, w2) = (one.size for one in found)
            raise Refused(
                422,
                f"{called[0]} is {w} × {h} pixels and the second {w2} × {h2}; both frames of a "
                "pair have one size.",
                "image",
            )
        pixels += sum(one.width * one.height for one in found)
    return pixels


def _decoded(
    names: list[Names], files: list[Files], one: Served, take: Callable[[int, float], None]
) -> list[Any]:
    """An array for each image, a pair of them for each pair."""
    out: list[Any] = []
    for called, each in zip(names, files, strict=True):
        take(0, 0)  # raises where nobody waits for it any more
        images = tuple(
            decoding.pixels(data, name, one.limits, one.shorter)
            for data, name in zip(each, called, strict=True)
        )
        out.append(images if one.pairs else images[0])
    return out


def _said(
    one: Served,
    files: list[Files],
    inputs: list[Any],
    found: list[Any],
    asked: Asked,
    began: float,
) -> bytes:
    """The answers as JSON."""
    answers, classes = [], one.model.classes
    for each, image, answer in zip(files, inputs, found, strict=True):
        said = as_json(answer, classes, top=asked.top, least=asked.least, arrays=asked.arrays)
        if asked.picture:
            if one.shorter is not None:  # it was decoded smaller than it is
                image = decoding.pixels(each[0], "The image", one.limits, None)
            said["picture"] = _picture(one, image[0] if one.pairs else image, answer, asked)
        answers.append(said)
    spent = round(time.monotonic() - began, 4)
    told = {"run": one.name, "task": one.task, "seconds": spent, "answers": answers}
    return json.dumps(told, allow_nan=False, ensure_ascii=False).encode()


def _picture(one: Served, image: Any, answer: Any, asked: Asked) -> str:
    made = drawn(image, answer, one.model.classes, one.model.palette, least=asked.least)
    png = cv2.imencode(".png", cv2.cvtColor(made, cv2.COLOR_RGB2BGR))[1]
    return base64.b64encode(png.tobytes()).decode()
