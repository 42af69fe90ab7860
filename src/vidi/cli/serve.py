"""Answer over HTTP: a server, and a page that shows what it says."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from vidi.cli.arguments import parse
from vidi.deploy.serving.limits import Limits
from vidi.errors import InputError


@dataclass(frozen=True)
class Serve:
    """Serve runs over HTTP: images in, answers out, and at / a page to try it.

    vidi serve runs/photos-resnet18

    vidi serve runs/photos runs/cells --port 8080

    VIDI_TOKEN=secret vidi serve runs/photos --host 0.0.0.0
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN...")]
    """Folders that `vidi train` wrote. The first answers where no run is named."""
    host: str = "127.0.0.1"
    """The address to listen at. Any but this machine's own asks for a token, or for --no-auth."""
    port: int = 8000
    """The port; 0 = any that is free."""
    token: str | None = None
    """What requests have to carry (Authorization: Bearer TOKEN). none = $VIDI_TOKEN, which others on this machine do not see."""  # noqa: E501
    no_auth: FlagCreatePairsOff[bool] = False
    """Let anyone who reaches the address in, without a token."""
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = "auto"
    """What computes the network. auto = the fastest that gives what torch gives."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps. auto = the fastest that is there."""
    batch_size: int | Literal["auto"] = "auto"
    """Images of several requests that go through the network together. auto = 32; 8 in detection; 4 where each pixel is answered."""  # noqa: E501
    latency: Annotated[float, arg(metavar="MS")] = 5.0
    """Milliseconds for which an image may wait for others that are on their way."""
    limits: Annotated[Limits, arg(name="")] = field(default_factory=Limits)


def main(arguments: Sequence[str]) -> int:
    told = parse(Serve, arguments, prog="vidi serve")
    _check(told)
    token = _token(told)

    from vidi.deploy import serving

    serving.check_installed()

    import cv2

    from vidi import api
    from vidi.deploy.serving import app, server
    from vidi.deploy.serving.metrics import Metrics
    from vidi.deploy.serving.served import Served

    loopback = server.is_loopback(told.host)
    if not loopback and token is None and not told.no_auth:
        raise InputError(
            f"At {told.host} others than this machine reach the server. Give it a token (set "
            "VIDI_TOKEN, or --token), or say --no-auth to let everyone in."
        )
    # What is wrong with an image is in the answer. Here it would fill the log, and a table of
    # Python's that grows with each new text.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with server.listen(told.host, told.port) as listening:
        metrics = Metrics()
        runs = []
        for name, run in zip(_names(told.runs), told.runs, strict=True):
            with contextlib.redirect_stdout(sys.stderr):
                model = api.load(run, device=told.device, backend=told.backend)
            for note in model.notes:
                print(f"vidi: {note}", file=sys.stderr)
            model.notes.clear()
            size = None if told.batch_size == "auto" else told.batch_size
            runs.append(Served(name, model, told.limits, metrics, size, told.latency / 1000))
            classes = f", {len(model.classes)} classes" if model.classes else ""
            print(f"{name}: {model.recipe.task}{classes} ({model.recipe.model}, {model.backend})")
        guarded = loopback and token is None and not told.no_auth
        hosts = server.names(listening, told.host.lower()) if guarded else None
        made, state = app.create(runs, told.limits, metrics, token=token, hosts=hosts)
        print(f"serving at {server.url(listening)}", flush=True)
        server.run(made, state, listening, told.limits)
    return 0


def _check(told: Serve) -> None:
    if not told.runs:
        raise InputError("There is nothing to serve. Name the folder of a run.")
    if not 0 <= told.port < 1 << 16:
        raise InputError(f"--port is {told.port}; a number from 0 to 65535 is expected.")
    if told.batch_size != "auto" and told.batch_size < 1:
        raise InputError(f"--batch-size is {told.batch_size}; at least 1 is expected.")
    if not 0 <= told.latency <= 10_000:
        raise InputError(f"--latency is {told.latency:g} ms; 0 to 10000 is expected.")
    told.limits.check()


def _token(told: Serve) -> str | None:
    token = os.environ.get("VIDI_TOKEN") if told.token is None else told.token
    if token is not None and told.no_auth:
        raise InputError("--no-auth lets everyone in, and there is a token. Leave out one of them.")
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token
                                  and token):  # fmt: skip
        raise InputError(
            "The token is empty, or not of plain letters, digits and signs. Take one such as "
            "`openssl rand -hex 16` gives."
        )
    return token


def _names(runs: Sequence[str]) -> list[str]:
    """The folders' names, with -2, -3 … where a name comes again."""
    from vidi.report.names import readable

    names: list[str] = []
    for run in runs:
        path = Path(run).expanduser().resolve()
        stem = readable(path.parent.name if path.suffix == ".safetensors" else path.name)
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names
