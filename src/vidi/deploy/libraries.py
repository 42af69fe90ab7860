"""OpenVINO and ONNX Runtime, imported so that they report nothing to their makers."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
from typing import Any

from vidi.errors import InputError

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What tells a terminal in which colour to go on."""


def openvino() -> Any:
    """The package. Raises :class:`InputError` where it is not installed.

    When it is imported, it tells its makers by way of the package openvino_telemetry, unless that
    is not there. So it is not there, for that moment.
    """
    reporter = "openvino_telemetry"
    before = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise InputError(_missing("openvino")) from error
    finally:
        del sys.modules[reporter]
        if before is not None:
            sys.modules[reporter] = before
    return openvino


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's entrance, one for the whole process and never given back.

    On Linux each gives the thread a stack of its own for signals, and takes it back at its end,
    whichever is in use by then. After two that overlapped a signal lands on memory that is gone:
    Ctrl-C would be a crash.
    """
    return openvino().Core()


def onnxruntime() -> Any:
    """The package. Raises :class:`InputError` where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(_missing("onnxruntime")) from error
    onnxruntime.disable_telemetry_events()  # on Windows it reports to the system
    return onnxruntime


def onnx() -> Any:
    """The package, with what writes its files. Raises :class:`InputError` where one of them is not
    installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(_missing(error.name or "onnx")) from error
    return onnx


def version(package: str) -> str | None:
    """That of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def short(error: Exception) -> str:
    """The first line of what a library says, which may go on for pages, without its colours; at
    most 160 characters."""
    plain = COLOURS.sub("", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]} …"


def _missing(package: str) -> str:
    return f"The package {package} is not installed: pip install 'vidi[export]'."
