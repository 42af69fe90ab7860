"""What is counted, in the text form that Prometheus reads.

Labels are names of runs, statuses and words from fixed lists: however many requests come, and
whatever is in them, there are no more rows.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
ROUTES = ("/", "/predict", "/runs", "/health", "/ready", "/metrics", "/openapi.json")


def route_of(path: str) -> str:
    """The address under which a request is counted."""
    if path.startswith("/runs/") and path.endswith("/predict"):
        return "/predict"
    return path if path in ROUTES else "other"


class Metrics:
    """A registry of its own, so that several servers of one process keep apart."""

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vidi_requests", "Requests answered.", ("route", "status"), registry=of
        )
        self.seconds = Histogram(
            "vidi_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=of,
        )
        self.refusals = Counter(
            "vidi_refusals", "Requests refused, by reason.", ("why",), registry=of
        )
        self.images = Histogram(
            "vidi_batch_images", "Images predicted together.", ("run",), buckets=IMAGES, registry=of
        )
        self.batches = Histogram(
            "vidi_batch_seconds",
            "Seconds to predict a batch.",
            ("run",),
            buckets=SECONDS,
            registry=of,
        )
        self.queue = Gauge(
            "vidi_queue_images", "Images that wait or are predicted now.", ("run",), registry=of
        )

    def add(self, run: str, waiting: Callable[[], int]) -> None:
        """A run whose queue is as long as ``waiting`` says, with rows of zeros from the start."""
        self.images.labels(run)
        self.batches.labels(run)
        self.queue.labels(run).set_function(waiting)

    def batch(self, run: str, images: int, seconds: float) -> None:
        self.images.labels(run).observe(images)
        self.batches.labels(run).observe(seconds)

    def request(self, path: str, status: int, seconds: float) -> None:
        route = route_of(path)
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))
