"""The probe: the last layer fitted in closed form on what the frozen network sees before it.

Ridge regression of the classes (1 for an image's own, 0 for the others) from the features, with an
intercept that is not penalised (Bishop 2006, "Pattern Recognition and Machine Learning", sections
3.1.4 and 4.1.3). It needs sums over the training images alone, so one pass is enough, and memory
hangs on the number of features and not of images. One eigendecomposition gives the fit for every
weight λ of the penalty at once; validation chooses among them.

What is fitted are probabilities, more or less, and the layer is to give logits. So it is multiplied
by a scale, for which validation's cross-entropy is least.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vidi.engine import distributed
from vidi.engine.evaluate import evaluate, predictions
from vidi.engine.prepare import unreadable
from vidi.engine.region_fits import Ridge
from vidi.engine.train import Outcome, Position, write_weights
from vidi.errors import InputError
from vidi.types import Array

if TYPE_CHECKING:
    from vidi.data.loader import Loader
    from vidi.engine.prepare import Prepared
    from vidi.engine.run import RunDirectory
    from vidi.engine.train import Progress
    from vidi.recipe import Recipe

RELATIVE = tuple(10 ** (k / 2) for k in range(-12, 5))
"""λ that are tried, 1e-6 to 100, relative to the mean of the features' variances times the number
of images, so that they mean the same for any features."""
SCALES = tuple(2 ** (k / 2) for k in range(17))
"""Scales of the logits that are tried, 1 to 256. Fitted values lie between 0 and 1, most of
them."""


@dataclass(frozen=True)
class Fits:
    """The ridge regressions for every λ > 0, from one eigendecomposition of the features' products:
    with C = V diag(e) Vᵀ the coefficients are V (Vᵀ B / (e + λ))."""

    values: Array
    """e: float64 [D]."""
    vectors: Array
    """V: float64 [D, D], a column each."""
    right: Array
    """Vᵀ B: float64 [D, K]."""
    x: Array
    """The features' means: float64 [D]."""
    y: Array
    """The targets' means: float64 [K]."""

    @staticmethod
    def of(ridge: Ridge) -> Fits:
        """Takes the sums over: ``ridge`` is used up."""
        import scipy.linalg

        xx, xy, x, y = ridge.centred()
        # It is symmetric, and only in LAPACK's order of numbers is it overwritten, not copied.
        values, vectors = scipy.linalg.eigh(xx.T, overwrite_a=True, driver="evd")
        # Rounding may leave a zero a little below it.
        return Fits(np.maximum(values, 0), vectors, vectors.T @ xy, x, y)

    def line(self, weight: float) -> tuple[Array, Array]:
        """(float64 [K, D], [K]): coefficients and intercepts for λ = ``weight``."""
        found = self.vectors @ (self.right / (self.values + weight)[:, None])
        return found.T, self.y - self.x @ found


@dataclass(frozen=True)
class Probe:
    """What :func:`probe` did. The rows go by λ."""

    layer: str
    """The output layer's name."""
    features: int
    images: int
    """Of training, each read once."""
    weights: tuple[float, ...]
    """λ."""
    right: tuple[float, ...]
    """Share of the validation's images whose highest output is their class; of several labels per
    image, share of the decisions that are right, at one half."""
    squared_error: tuple[float, ...]
    """Of validation, a mean over images and classes."""
    chosen: float
    """λ of the layer."""
    scale: float
    """What the outputs were multiplied by to be logits."""
    seconds: float
    constant: bool = False
    """Whether the features are the same for all images, which leaves the classes' shares."""

    @property
    def sentence(self) -> str:
        if self.constant:
            return (
                f"probe: what {self.layer} is given is the same for every image, so nothing can be "
                "told by it: the layers before it are dead, or their weights were not loaded"
            )
        k = self.weights.index(self.chosen)
        return (
            f"probe: {self.layer} ({self.features:,} features) fitted in closed form, in one pass "
            f"over {self.images:,} images and {self.seconds:.1f} s; λ = {self.chosen:.3g} of "
            f"{len(self.weights)} by validation ({self.right[k]:.4f} right), logits times "
            f"{self.scale:.3g}"
        )


MOST = 10_000
"""Features. Time goes with their third power; this many take minutes."""


def settled(recipe: Recipe, task: str, loss: Any) -> Recipe:
    """The recipe of one pass. Raises :class:`InputError` for what a probe cannot do."""
    if task not in ("classification", "multilabel"):
        raise InputError(
            f"--probe fits the last layer of a classifier; this is data for {task}. Leave it out, "
            "or train that layer alone: --freeze names all others."
        )
    length = recipe.length
    given = {
        f"--data.balance {recipe.data.balance}": recipe.data.balance != "none",
        f"--members {recipe.members}": recipe.members > 1,
        "--lr find": recipe.lr == "find",
        "a length": recipe.epochs not in ("auto", 1.0) or bool(length.steps or length.minutes),
        "a loss of your own": loss is not None,
    }
    for what, there in given.items():
        if there:
            raise InputError(
                f"--probe fits squared errors, of all images alike, in one network and one pass; "
                f"{what} has no part in that. Leave out one or the other."
            )
    return dataclasses.replace(recipe, epochs=1.0)


def fit(directory: RunDirectory, made: Prepared, progress: Progress) -> Outcome:
    """Probe in place of training, and leave the run that training would: best weights, and rows for
    an evaluation. Nothing of it is saved on the way; a run that was killed begins again."""
    again = (directory.path / "metrics.jsonl").is_file()
    progress.note(
        f"probe: one pass over {len(made.plain):,} training images, as evaluation sees them; "
        "augmentation, optimiser and rate have no part in it"
    )
    found = probe(made)
    meter, _, failed = evaluate(
        made.model, made.task, made.loaders["val"], made.compute, quick=True
    )
    _stop_on(failed, made)
    steps = made.train.steps_per_epoch  # in the terms of a training, one epoch
    metrics = meter.compute()
    if distributed.is_writer():
        if again:
            directory.append(event="resume", step=0)
        at: dict[str, Any] = {"step": steps, "epoch": 1.0}
        directory.append(
            event="probe",
            **at,
            layer=found.layer,
            weights=found.weights,
            right=found.right,
            squared_error=found.squared_error,
            chosen=found.chosen,
            scale=found.scale,
            seconds=found.seconds,
        )
        # There is no loss of training: that would take a second pass.
        directory.append(event="evaluation", **at, split="val", train_loss=None, metrics=metrics)
        write_weights(directory, made.model, made.description)
    progress.note(found.sentence)
    position = Position(step=steps, total=steps, best=metrics[made.task.headline])
    return Outcome(position, found.images / found.seconds)


def probe(made: Prepared, weights: Sequence[float] | None = None) -> Probe:
    """Fit the network's last layer, in place, to the training images as evaluation sees them.

    ``weights``: the λ to choose from, in the terms of scikit-learn's ``Ridge(alpha=λ)``; unless
    told, those of :data:`RELATIVE`. λ is chosen by the validation images that are right, of equals
    by their squared error; where an image may have several labels, by that alone.

    Raises :class:`InputError` for a network whose output is not that of a linear layer with a bias,
    for more than :data:`MOST` features, and for images that cannot be read.
    """
    assert weights is None or min(weights) > 0
    began = time.perf_counter()
    name, head = output_layer(made)
    if head.in_features > MOST:
        # The products of all pairs, and twice that while their eigenvectors are found.
        memory = 3 * 8 * head.in_features**2
        raise InputError(
            f"The last layer, {name}, is given {head.in_features:,} features, and --probe would "
            f"need {memory / 1e9:.1f} GB for the products of all pairs; it takes {MOST:,} at most. "
            "Leave out --probe and train that layer by gradient descent, with --freeze for all "
            "others."
        )
    ridge = Ridge(head.in_features, head.out_features)
    for features, targets in _described(made, made.plain, head):
        ridge.add(features.float().cpu().numpy(), targets)
    ridge = _merged(ridge)
    images = ridge.examples
    fits = Fits.of(ridge)
    # Of sums of squares, rounding leaves a 1e-16th.
    constant = bool(fits.values.sum() <= 1e-12 * images * (fits.x @ fits.x))
    if weights is None:
        mean = 1.0 if constant else float(fits.values.mean())
        weights = [mean * relative for relative in RELATIVE]
    layers = [_layer(fits, weight) for weight in weights]
    right, error, entropy = _judged(made, layers, head)
    several = made.description.recipe.task == "multilabel"
    k = int(np.lexsort((error,) if several else (error, -right))[0])
    scale = SCALES[int(entropy[k].argmin())]
    with torch.no_grad():
        head.weight.copy_(scale * layers[k][0])
        head.bias.copy_(scale * layers[k][1])
    return Probe(
        layer=name,
        features=head.in_features,
        images=images,
        weights=tuple(weights),
        right=tuple(right.tolist()),
        squared_error=tuple(error.tolist()),
        chosen=weights[k],
        scale=scale,
        seconds=time.perf_counter() - began,
        constant=constant,
    )


def output_layer(made: Prepared) -> tuple[str, nn.Linear]:
    """(its name, the linear layer whose output is the network's), found by looking at what goes
    through; no image of the data is read."""
    size = made.description.recipe.image_size
    assert size != "auto"
    seen: dict[str, Tensor] = {}
    linear = {n: m for n, m in made.model.named_modules() if isinstance(m, nn.Linear)}
    with contextlib.ExitStack() as stack:
        for name, module in linear.items():
            hook = module.register_forward_hook(
                lambda _, __, out, name=name: seen.update({name: out})
            )
            stack.callback(hook.remove)
        # Of a blank image, several layers might make the same.
        image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        was_training = made.model.training
        made.model.eval()
        with torch.inference_mode(), made.compute.autocast():
            found = made.model(image.to(made.compute.device))
        made.model.train(was_training)
    output = found[0] if isinstance(found, tuple) else found
    for name, value in reversed(seen.items()):
        if value.shape == output.shape and torch.equal(value, output):
            if linear[name].bias is None:
                raise InputError(
                    f"The network's last layer, {name}, has no bias, which --probe fits too. Give "
                    "it one, or train it with --freeze for all others."
                )
            return name, linear[name]
    raise InputError(
        f"--probe fits a last layer that is fully connected, and the output of "
        f"{made.description.recipe.model} is that of none (its linear layers: "
        f"{', '.join(linear) or 'none'}). Train its last layer with --freeze for all others."
    )


def _layer(fits: Fits, weight: float) -> tuple[Tensor, Tensor]:
    """The fit for a λ, less one half, as the layer has it: float32 [K, D], [K]. For softmax the
    half is no matter; a sigmoid gives one half where the fit does."""
    coefficients, intercepts = fits.line(weight)
    return torch.from_numpy(coefficients).float(), torch.from_numpy(intercepts - 0.5).float()


def _described(made: Prepared, loader: Loader, head: nn.Linear) -> Iterator[tuple[Tensor, Array]]:
    """This process's share of the samples, batch by batch: ([B, D] what the last layer is given, on
    the device; float64 [B, K], 1 for the classes that an image has)."""
    given: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        with contextlib.closing(
            predictions(made.model, made.task, loader, made.compute)
        ) as batches:
            for batch, _ in batches:
                features = given.pop()
                features = features[torch.from_numpy(batch.valid).to(features.device)]
                if len(features):
                    labels = np.array([sample.label for sample in batch.samples])
                    one_hot = labels if labels.ndim == 2 else np.eye(head.out_features)[labels]
                    yield features, one_hot.astype(np.float64)
    finally:
        hook.remove()
    _stop_on(dict(loader.failures), made)
    loader.failures.clear()


def _merged(ridge: Ridge) -> Ridge:
    """The sums over all processes, in each of them."""
    first, *others = distributed.gathered(ridge)
    for other in others:
        first.merge(other)
    merged: Ridge = first
    return merged


def _judged(
    made: Prepared, layers: Sequence[tuple[Tensor, Tensor]], head: nn.Linear
) -> tuple[Array, Array, Array]:
    """Of validation, for each layer, in the very arithmetic in which it will be used: the share
    that is right and the squared error, [L] each; and the cross-entropy for each scale of the
    logits, [L, S]."""
    several = made.description.recipe.task == "multilabel"
    right, error = np.zeros(len(layers)), np.zeros(len(layers))
    entropy, count = np.zeros((len(layers), len(SCALES))), 0
    layers = [(w.to(head.weight.device), b.to(head.weight.device)) for w, b in layers]
    for features, targets in _described(made, made.loaders["val"], head):
        count += len(features)
        for k, (weight, bias) in enumerate(layers):
            with torch.inference_mode(), made.compute.autocast():
                given = nn.functional.linear(features, weight, bias)
            out = given.float().cpu().numpy().astype(np.float64)
            error[k] += ((out + 0.5 - targets) ** 2).mean(1).sum()
            if several:
                right[k] += ((out >= 0) == (targets > 0)).mean(1).sum()
            else:
                right[k] += (out.argmax(1) == targets.argmax(1)).sum()
            entropy[k] += _entropies(out, targets, several=several)
    parts = distributed.gathered((right, error, entropy, count))
    right, error, entropy, count = (sum(part) for part in zip(*parts, strict=True))
    n = max(1, count)
    return right / n, error / n, entropy / n


def _entropies(out: Array, targets: Array, *, several: bool) -> Array:
    """The cross-entropy for each scale of the outputs, float64 [B, K]: a sum over images, [S]."""
    if several:
        logits = torch.tensor(SCALES, dtype=torch.float64)[:, None, None] * torch.from_numpy(out)
        each = nn.functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(targets).expand_as(logits), reduction="none"
        )
        found: Array = each.mean(2).sum(1).numpy()
        return found
    top = out.max(1, keepdims=True)
    below = out - top
    # Every other scale is twice as large, and the square of e^x is e^2x, which is sooner there.
    powers = [np.exp(scale * below) for scale in SCALES[:2]]
    sums = np.empty((len(SCALES), len(out)))
    for s in range(len(SCALES)):
        sums[s] = powers[s % 2].sum(1)
        np.square(powers[s % 2], out=powers[s % 2])
    scales = np.array(SCALES)
    entropy: Array = np.log(sums).sum(1) + scales * (top.sum() - (targets * out).sum())
    return entropy


def _stop_on(failures: dict[str, str], made: Prepared) -> None:
    """Images that cannot be read end the run, unless the recipe passes them over."""
    if failures and made.description.recipe.bad_images == "error":
        raise InputError(unreadable(failures, "for the probe"))
