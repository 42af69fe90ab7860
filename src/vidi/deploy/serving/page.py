"""The page at ``/``, and a policy that allows it itself and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources


def read() -> bytes:
    return resources.files("vidi.deploy.serving").joinpath("page.html").read_bytes()


def policy(page: bytes) -> str:
    """The Content-Security-Policy: its inline scripts and styles by their hashes, requests to its
    own server, pictures from memory; and no other page may frame it."""
    scripts, styles = (
        " ".join(map(_hash, re.findall(b"<%b[^>]*>(.*?)</%b>" % (tag, tag), page, re.S)))
        for tag in (b"script", b"style")
    )
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data: blob:; "
        "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _hash(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
