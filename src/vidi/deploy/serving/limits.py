"""How much of anything a server takes, and what it says beyond that."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from vidi.errors import InputError

TOGETHER = 8
"""All bodies that are held at once may have so many times the bytes that one may have."""
WAITING = 4
"""All images that wait may have so many times the pixels that one may have."""
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one request and all of them may have."""

    max_body: float = 32.0
    """MiB of a request's body; beyond it 413."""
    max_megapixels: float = 50.0
    """Million pixels of an image, by its header, before it is decoded; beyond it 413."""
    max_images: int = 16
    """Images (flow: pairs) of a request; beyond it 413."""
    max_seconds: float = 30.0
    """Seconds that a request may take from its last byte to its answer; then 503."""
    body_seconds: float = 30.0
    """Seconds in which a request's headers, its body, and its answer on the way back each must pass; a body that does not, 408."""  # noqa: E501
    max_queue: int = 64
    """Images that may wait for a run; beyond it 429 with Retry-After. Fewer where the last would wait longer than half of max_seconds."""  # noqa: E501
    max_connections: int = 256
    """Connections at once; beyond it 429, beyond twice as many they are dropped."""
    max_headers: int = 16
    """KiB of a request's line and headers; beyond it 400 or 431."""

    def check(self) -> None:
        """Raises :class:`InputError` for what no server could work with."""
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if not 0 < value < math.inf:
                raise InputError(
                    f"--{each.name.replace('_', '-')} is {value}; more than 0 is expected."
                )
        if self.max_images > self.max_queue:
            raise InputError(
                f"--max-images is {self.max_images} and --max-queue {self.max_queue}: such a "
                "request would never find room. Let more wait, or allow fewer a request."
            )

    @property
    def body_bytes(self) -> int:
        return int(self.max_body * MIB)


class Refused(Exception):
    """A request that gets no answer: the status, a sentence, and under what name it is counted.

    ``why`` is one of a few fixed words, since each is a row of the metrics.
    """

    def __init__(
        self, status: int, sentence: str, why: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.why = why
        self.headers = headers or {}


def busy(sentence: str, why: str, after: float = 1.0) -> Refused:
    """429, with the whole seconds after which it is worth while to ask again."""
    return Refused(429, sentence, why, {"Retry-After": str(max(1, math.ceil(after)))})


class Budget:
    """An amount of which no more than ``most`` is out at once. For one thread."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.out = 0.0

    def take(self, amount: float) -> bool:
        """Whether there was so much left. To one that is alone all is given."""
        if self.out and self.out + amount > self.most:
            return False
        self.out += amount
        return True

    def give_back(self, amount: float) -> None:
        self.out -= amount
