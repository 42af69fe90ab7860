"""A network that another library computes: OpenVINO or ONNX Runtime, from one ONNX file.

The file holds the network alone, from normalised images to its output, for any number of images
and, where the network takes them, of any size. It is read by both libraries as it is: there is one
conversion, and nothing of it asks the network (openvino's own converter reports its use).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from vidi.deploy import libraries, onnx_files
from vidi.deploy.function import first

NAMES = ("image", "image2")
"""Of inputs."""


class Library(Protocol):
    """Computes a network of an ONNX file. Not to be called by two threads at once."""

    name: str
    """Library and arithmetic, such as ``openvino bf16``."""

    def __call__(self, *images: Tensor) -> Tensor:
        """The output for normalised images, fp32 [B, 3, H, W] on the CPU."""


class Converted(nn.Module):
    """``trained``, computed by ``library``: the same call, and the same output as in evaluation
    mode, of several outputs the first.

    Where torch itself is asked it still answers: in training mode, and under a dispatch mode, which
    looks at what happens inside (:mod:`vidi.ops.receptive` measures so how far a network sees).
    Several threads may call it.
    """

    def __init__(
        self, trained: nn.Module, library: Library, alone: Callable[..., Tensor] | None = None
    ) -> None:
        super().__init__()
        self.trained = trained
        self.library = library
        self._alone = alone
        self._lock = threading.Lock()
        self.eval()

    @property
    def name(self) -> str:
        return self.library.name

    def forward(self, *images: Tensor) -> Any:
        if self.training or is_in_torch_dispatch_mode():
            return self.trained(*images)
        if self._alone is not None:
            return self._alone(*images)
        with self._lock:
            return self.library(*images)

    def apart(self) -> Converted | None:
        """The same for threads that all call it with a few images, where the library is for that:
        each call is computed by one thread of the processor beside the others, so that none waits
        for another. A call by itself takes longer so."""
        if not isinstance(self.library, OpenVINO):
            return None
        return Converted(self.trained, self.library, self.library.alone)


class OpenVINO:
    """``precision``: fp32 or bf16, in which it computes. ``threads``: of the processor.

    Few images are computed by all threads together; of many each thread computes its share, so that
    none waits for another.
    """

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        openvino = libraries.openvino()
        from openvino.preprocess import PrePostProcessor

        self.name = f"openvino {precision}"
        self._tensor = openvino.Tensor
        self._core = libraries.openvino_core()
        # Pixel by pixel, as images come and as it computes; torch's [B, 3, H, W] is a view of that.
        model = self._core.read_model(str(file))
        laid = PrePostProcessor(model)
        for i in range(len(model.inputs)):
            laid.input(i).tensor().set_layout(openvino.Layout("NHWC"))
            laid.input(i).model().set_layout(openvino.Layout("NCHW"))
        self._model = laid.build()
        self._settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            # Where it was tied to one core, it would wait while a reading thread has that one.
            "ENABLE_CPU_PINNING": False,
        }
        self._threads = threads
        self._idle: dict[tuple[int, bool], SimpleQueue[Any]] = {}
        self._compiling = threading.Lock()

    def __call__(self, *images: Tensor) -> Tensor:
        many = self._threads > 1 and len(images[0]) >= 2 * self._threads
        return self._computed(images, self._threads if many else 1, spread=True)

    def alone(self, *images: Tensor) -> Tensor:
        """By one thread, while others compute theirs."""
        return self._computed(images, self._threads, spread=False)

    def _computed(self, images: Sequence[Tensor], streams: int, *, spread: bool) -> Tensor:
        """By one of the requests that compute at the same time, or ``spread`` over all of them."""
        pixels = [image.float().permute(0, 2, 3, 1).contiguous() for image in images]
        idle = self._ready(streams, single=len(images[0]) == 1)
        requests: list[Any] = []
        begun = []
        try:
            while len(requests) < (streams if spread else 1):
                requests.append(idle.get())
            shares = zip(*(image.tensor_split(len(requests)) for image in pixels), strict=True)
            for request, share in zip(requests, shares, strict=True):
                if len(share[0]):
                    for i, image in enumerate(share):
                        # It reads where torch has written: nothing is copied.
                        given = self._tensor(image.numpy(), shared_memory=True)
                        request.set_input_tensor(i, given)
                    begun.append((request, share))
            if len(begun) == 1:
                begun[0][0].infer(share_outputs=True)  # waking another thread would take its time
            else:
                _together([request for request, _ in begun])
            # A copy, for the next call writes into the same memory.
            return torch.cat([torch.from_numpy(r.get_output_tensor(0).data) for r, _ in begun])
        finally:
            for request in requests:
                idle.put(request)

    def _ready(self, streams: int, *, single: bool) -> SimpleQueue[Any]:
        """Requests that compute at the same time, each with its share of the threads. Compiled for
        a ``single`` image it is faster with that by a thirtieth; for several, any number is as fast
        as one."""
        with self._compiling:
            if (streams, single) not in self._idle:
                settings = self._settings | {"NUM_STREAMS": streams}
                model = _of_one(self._model) if single else self._model
                compiled = self._core.compile_model(model, "CPU", settings)
                idle: SimpleQueue[Any] = SimpleQueue()
                # One more than compute at a time: what it is given lies ready when another one's
                # thread of the processor is free.
                for _ in range(streams + 1):
                    idle.put(compiled.create_infer_request())
                self._idle[streams, single] = idle
        return self._idle[streams, single]


def _of_one(model: Any) -> Any:
    """The network for one image at a time, of the same sizes."""
    model = model.clone()
    shapes = [given.partial_shape for given in model.inputs]
    for shape in shapes:
        shape[0] = 1
    model.reshape(dict(enumerate(shapes)))
    return model


def _together(requests: Sequence[Any]) -> None:
    failed = None
    for request in requests:
        request.start_async()
    for request in requests:
        try:
            request.wait()
        except RuntimeError as error:  # the others are to end, too, or the next call would fail
            failed = error
    if failed is not None:
        raise failed


class ONNXRuntime:
    """In fp32. ``threads``: of the processor."""

    def __init__(self, file: Path, threads: int) -> None:
        self.name = "onnxruntime fp32"
        self._session = onnx_files.session(file, threads)
        self._inputs = [given.name for given in self._session.get_inputs()]

    def __call__(self, *images: Tensor) -> Tensor:
        given = [image.float().contiguous().numpy() for image in images]
        (found,) = self._session.run(None, dict(zip(self._inputs, given, strict=True)))
        return torch.from_numpy(found)


class _First(nn.Module):
    """The first of a network's outputs, with what :mod:`vidi.deploy.onnx_files` asks for: which
    sides of ``inputs`` and ``outputs`` are free, by name."""

    def __init__(self, network: nn.Module, images: Sequence[Tensor], sizes: bool) -> None:
        super().__init__()
        self.network = network
        height, width = images[0].shape[2:]
        sides = ("batch", 3, "height", "width") if sizes else ("batch", 3, height, width)
        self.inputs = dict.fromkeys(NAMES[: len(images)], sides)
        self.outputs = {"output": tuple(self(*images).shape)}

    def forward(self, image: Tensor, image2: Tensor | None = None) -> Tensor:
        return first(self.network(image) if image2 is None else self.network(image, image2))


def write_onnx(network: nn.Module, images: Sequence[Tensor], file: Path, *, sizes: bool) -> None:
    """The network in evaluation mode, as ONNX, for any number of ``images``; ``sizes``: of any
    height and width, too.

    Raises :class:`vidi.errors.InputError` for one above ONNX's 2 GB, and whatever torch's exporter
    says of a network that it cannot follow.
    """
    with _quiet(), torch.no_grad():
        function = _First(network, images, sizes).eval()
        onnx_files.write(function, dict(zip(NAMES, images, strict=False)), file, {})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice to developers is not for the user of a finished network."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
