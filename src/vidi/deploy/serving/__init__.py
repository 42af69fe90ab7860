"""A run as an HTTP server: what ``vidi serve`` starts.

:mod:`app` has the addresses, :mod:`bodies` finds the images in what was sent, :mod:`decoding` makes
pixels of them, :mod:`batching` has them predicted together, :mod:`limits` says how much of anything
there may be, :mod:`gate` lets in, :mod:`metrics` counts, :mod:`server` listens and stops.
"""

from __future__ import annotations

import importlib.util

from vidi.errors import InputError

NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus-client": "prometheus_client",
    "python-multipart": "python_multipart",
}


def check_installed() -> None:
    """Raises :class:`InputError` that names the extra if a package of it is missing."""
    missing = [p for p, module in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"Serving needs {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install 'vidi[serve]'."
        )
