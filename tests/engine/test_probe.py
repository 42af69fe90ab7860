"""The probe: scikit-learn's ridge regression, in one pass, in memory that no image adds to."""

from __future__ import annotations

import copy
import dataclasses
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import logsumexp
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor, nn

import vidi
from vidi import models
from vidi.data.open import open_data
from vidi.engine import defaults, lr_range, region_fits
from vidi.engine.evaluate import evaluate
from vidi.engine.prepare import Prepared, prepare
from vidi.engine.probe import MOST, RELATIVE, SCALES, _entropies, output_layer, probe
from vidi.engine.region_fits import Ridge
from vidi.errors import InputError
from vidi.recipe import Recipe, replace
from vidi.types import Array, Sample


class Blobs:
    """``n`` noisy images of 8 px in three classes, told apart by their colour; with ``several``,
    each colour is there or not by itself."""

    def __init__(self, n: int = 120, seed: int = 0, *, several: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.several = several
        self.has = rng.random((n, 3)) < 0.4 if several else np.eye(3, dtype=bool)[np.arange(n) % 3]
        self.images = rng.integers(0, 150, (n, 8, 8, 3), dtype=np.uint8)
        self.images += (45 * self.has[:, None, None, :]).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.has)

    def __getitem__(self, i: int) -> Any:
        if self.several:
            return Sample(key=f"{i:04}", image=self.images[i], label=self.has[i].astype(np.uint8))
        return self.images[i], int(self.has[i].argmax())


class Net(nn.Module):
    """Two layers, and beside them one for the same classes that takes no part."""

    def __init__(self, num_classes: int, hidden: int = 20) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, hidden), nn.ReLU(), nn.Dropout(0.5))
        self.classifier = nn.Linear(hidden, num_classes)
        self.unused = nn.Linear(hidden, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.body(image))
        return out


def made_of(data: Any, network: Any = Net, **fields: Any) -> Prepared:
    given = {"model": "python:net", "precision": "fp32", "image_size": 8, "batch_size": 16}
    recipe = replace(Recipe(), {**given, "data": {"threads": 0}, **fields})
    return prepare(recipe, open_data(data, seed=0), torch.device("cpu"), network=network)


def seen(made: Prepared, split: str) -> tuple[Array, Array]:
    """(features [N, D], targets [N, K]), by hand: the network without its last layer, on the images
    as they lie in the data."""
    loader = made.plain if split == "train" else made.loaders[split]
    samples = [loader.dataset.sample(int(i)) for i in loader.ids]
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (made.compute.normalisation.mean, made.compute.normalisation.std)
    )
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        features = made.model.eval().body((images - mean) / std)  # type: ignore[operator]
    labels = np.array([s.label for s in samples])
    targets = labels if labels.ndim == 2 else np.eye(len(made.description.classes))[labels]
    return features.numpy().astype(np.float64), targets


def line(made: Prepared, scale: float) -> tuple[Array, Array]:
    """The fit that lies in the network's last layer."""
    head: Any = made.model.classifier
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (head.weight, head.bias))
    return weight / scale, bias / scale + 0.5


@pytest.mark.parametrize("several", [False, True], ids=["classes", "several labels"])
@pytest.mark.parametrize("weight", [0.01, 1.0, 30.0, 1e4])
def test_it_is_scikit_learns_ridge(weight: float, several: bool) -> None:
    made = made_of(Blobs(several=several))
    x, y = seen(made, "train")
    expected = SklearnRidge(alpha=weight).fit(x, y)
    found = probe(made, [weight])
    assert found.chosen == weight and found.layer == "classifier"
    coefficients, intercepts = line(made, found.scale)
    for ours, theirs in ((coefficients, expected.coef_), (intercepts, expected.intercept_)):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_each_training_image_is_read_once() -> None:
    made = made_of(Blobs())
    read: Counter[int] = Counter()
    for loader in (made.plain, *made.loaders.values()):
        load = loader.load
        loader.load = lambda i, load=load: (read.update([i]), load(i))[1]  # type: ignore[misc]
    found = probe(made)
    assert set(read.values()) == {1}
    assert set(read) == {*made.plain.ids.tolist(), *made.loaders["val"].ids.tolist()}
    assert found.images == len(made.plain.ids)


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What NumPy holds at its most, for so many images and for four times as many."""
    monkeypatch.setattr(region_fits, "ROWS", 32)
    made = made_of(Blobs(), lambda num_classes: Net(num_classes, 150))
    few = made.plain.ids
    peaks = []
    for times in (1, 1, 4):  # the first warms up
        made.plain = copy.copy(made.plain)
        made.plain.ids = np.tile(few, times)
        tracemalloc.start()
        found = probe(made)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.images == times * len(few)
    features = 8 * 150 * len(few)
    assert peaks[2] - peaks[1] < features / 4, "kept, those of three times as many would be more"


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_chosen_is_best_in_validation(seed: int) -> None:
    made = made_of(Blobs(240, seed))
    (x, y), (held, truth) = seen(made, "train"), seen(made, "val")
    found = probe(made)
    variance = len(x) * x.var(0).mean()
    assert found.weights == pytest.approx([variance * r for r in RELATIVE], rel=1e-6)
    right, error = [], []
    for weight in found.weights:
        out = SklearnRidge(alpha=weight).fit(x, y).predict(held)
        right.append((out.argmax(1) == truth.argmax(1)).mean())
        error.append(((out - truth) ** 2).mean())
    assert found.right == pytest.approx(right) and found.squared_error == pytest.approx(error)
    best = [k for k in range(len(right)) if right[k] == max(right)]
    assert len(set(right)) > 1
    assert (int(np.argmin(error)) in best) == (seed == 0), "the least error is not always right"
    assert found.weights.index(found.chosen) == min(best, key=lambda k: error[k])


def test_of_several_labels_the_squared_error_chooses() -> None:
    made = made_of(Blobs(240, several=True))
    found = probe(made)
    k = found.weights.index(found.chosen)
    assert found.squared_error[k] == min(found.squared_error)
    meter, _, _ = evaluate(made.model, made.task, made.loaders["val"], made.compute)
    assert meter.compute()["map"] > 0.7, "colours at random would come to about 0.4"


@pytest.mark.parametrize("several", [False, True], ids=["classes", "several labels"])
def test_the_scale_gives_the_least_cross_entropy(several: bool) -> None:
    made = made_of(Blobs(240, several=several))
    found = probe(made)
    coefficients, intercepts = line(made, found.scale)
    held, truth = seen(made, "val")
    logits = torch.from_numpy(held @ coefficients.T + intercepts - 0.5)
    loss: Any = nn.functional.cross_entropy
    if several:
        loss = nn.functional.binary_cross_entropy_with_logits
    entropy = [float(loss(scale * logits, torch.from_numpy(truth).double())) for scale in SCALES]
    assert SCALES.index(found.scale) == int(np.argmin(entropy))
    assert 0 < int(np.argmin(entropy)) < len(SCALES) - 1, "none of the ends, so that it can fail"


@pytest.mark.parametrize("several", [False, True], ids=["classes", "several labels"])
def test_the_cross_entropies_are_those_written_out(several: bool) -> None:
    rng = np.random.default_rng(3)
    out = rng.normal(size=(40, 12)) * rng.choice([0.01, 1, 30], size=(40, 1))
    targets = np.eye(12)[rng.integers(12, size=40)]
    if several:
        targets = (rng.random((40, 12)) < 0.3).astype(np.float64)
    expected = []
    for scale in SCALES:
        logits = scale * out
        if several:
            expected.append((np.logaddexp(0, logits) - targets * logits).mean(1).sum())
        else:
            expected.append((logsumexp(logits, axis=1) - (targets * logits).sum(1)).sum())
    np.testing.assert_allclose(_entropies(out, targets, several=several), expected, rtol=1e-12)


def test_parts_come_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 7)) + 3, rng.normal(size=(50, 2))
    whole, one, other = Ridge(7, 2), Ridge(7, 2), Ridge(7, 2)
    whole.add(x, y)
    one.add(x[:20], y[:20])
    other.add(x[20:], y[20:])
    one.merge(other)
    assert one.examples == 50
    for a, b in zip(whole.solve(2.0), one.solve(2.0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("hidden", [400, 3])
def test_more_features_than_images(hidden: int) -> None:
    made = made_of(Blobs(60), lambda num_classes: Net(num_classes, hidden))
    x, y = seen(made, "train")
    x[:, 0] = 0
    with torch.no_grad():  # one feature that is constant, at a value that is no round number
        made.model.body[1].weight[0] = 0  # type: ignore[index,union-attr]
        made.model.body[1].bias[0] = 1.7  # type: ignore[index,union-attr]
    found = probe(made)
    assert not found.constant
    coefficients, intercepts = line(made, found.scale)
    assert np.isfinite(coefficients).all()
    expected = SklearnRidge(alpha=found.chosen).fit(x, y)
    fitted = np.c_[x[:, 1:], np.full(len(x), 1.7)] @ np.roll(coefficients, -1, 1).T + intercepts
    np.testing.assert_allclose(fitted, expected.predict(x), atol=1e-4)


def test_more_features_than_it_takes() -> None:
    """They are counted before an image is read."""
    made = made_of(Blobs(30), lambda num_classes: Net(num_classes, MOST + 1))
    made.plain = None  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"classifier, is given 10,001 .* need 2.4 GB .*--freeze"):
        probe(made)


def test_features_that_are_all_the_same() -> None:
    """Nothing can be told: each class has its share, and that is said."""

    def dead(num_classes: int) -> nn.Module:
        net = Net(num_classes)
        nn.init.zeros_(net.body[1].weight)  # type: ignore[arg-type]
        nn.init.constant_(net.body[1].bias, 1.7)  # type: ignore[arg-type]
        return net

    made = made_of(Blobs(), dead)
    found = probe(made)
    assert found.constant and "dead" in found.sentence
    coefficients, intercepts = line(made, found.scale)
    assert np.abs(coefficients).max() < 1e-6  # processors sum in other orders
    assert intercepts == pytest.approx([1 / 3] * 3)


def without_bias(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes, bias=False))


def convolutional(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 8), nn.Flatten())


@pytest.mark.parametrize(
    ("network", "said"), [(without_bias, "has no bias"), (convolutional, "fully connected")]
)
def test_networks_without_such_a_layer(network: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        probe(made_of(Blobs(), network))


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("googlenet", 64), ("mlp", 8)])
def test_the_output_layer_of_the_packages_networks(name: str, size: int) -> None:
    """Also where others for the same classes are beside it (GoogLeNet's auxiliary heads)."""
    made = made_of(Blobs(30))
    made.model = models.build(name, num_classes=3, image_size=size)
    recipe = replace(made.description.recipe, {"image_size": size})
    made.description = dataclasses.replace(made.description, recipe=recipe)
    found, layer = output_layer(made)
    given: list[Tensor] = []
    layer.register_forward_hook(lambda _, __, out: given.append(out))
    image = torch.rand(2, 3, size, size)
    assert torch.equal(made.model.eval()(image), given[0]) and "aux" not in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"balance": "sampler", "threads": 0}}, "balance sampler"),
        ({"members": 2}, "--members 2"),
        ({"lr": "find"}, "--lr find"),
        ({"epochs": 4}, "a length"),
        ({"length": {"minutes": 1.0}}, "a length"),
        ({"loss": nn.functional.cross_entropy}, "loss of your own"),
    ],
)
def test_what_has_no_part_in_it_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        vidi.train(Blobs(), model=Net, probe=True, run=tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_no_rate_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though in a training of that length it would be."""
    swept = []

    def sweep(*_: Any, **__: Any) -> Any:
        swept.append(1)
        return SimpleNamespace(suggestion=0.125, sentence="")

    monkeypatch.setattr(defaults, "LONG", 1)
    monkeypatch.setattr(lr_range, "sweep", sweep)
    plain = made_of(Blobs(30), model="python:net", epochs=1.0)
    probing = made_of(Blobs(30), model="python:net", epochs=1.0, probe=True)
    assert plain.description.recipe.lr == 0.125 and swept == [1]
    assert plain.description.data["asked"] == {"lr": "find"}
    assert probing.description.recipe.lr != "find" and not probing.description.data["asked"]


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data for segmentation"):
        vidi.train("scenes:segmentation,size=32,n=4,val=2,test=0", probe=True, run=tmp_path / "r")


def test_it_leaves_a_run_like_any_other(tmp_path: Path) -> None:
    """And again the same one; its figures are those of the weights that it leaves."""
    fields: dict[str, Any] = {"model": Net, "image_size": 8, "data": {"threads": 0}, "probe": True}
    run = vidi.train(Blobs(240), run=tmp_path / "run", precision="fp32", **fields)
    assert (run.epochs, run.recipe.epochs, run.recipe.probe) == (1.0, 1.0, True)
    row = next(row for row in run.history() if row["event"] == "probe")
    assert run.metrics["accuracy"] == pytest.approx(
        row["right"][row["weights"].index(row["chosen"])]
    )
    assert run.metrics["accuracy"] > 0.8
    assert [row["event"] for row in run.history()] == ["probe", "evaluation", "end"]
    before = load_file(run.path / "best.safetensors")
    assert (run.path / "probe.png").is_file()

    model = vidi.load(run.path, network=Net)
    said = model.predict([Blobs(240).images[i] for i in range(30)])
    assert np.mean([int(p.label) == i % 3 for i, p in enumerate(said)]) > 0.7

    again = vidi.train(
        Blobs(240), run=run.path, resume=True, model=Net, logging={"pictures": False}
    )
    assert again.metrics == run.metrics
    after = load_file(run.path / "best.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [r["event"] for r in again.history()] == ["resume", "probe", "evaluation", "end"]


def test_digits_are_told_better_than_by_their_pixels(tmp_path: Path) -> None:
    """Random features of a network that has learned nothing are more than scikit-learn's ridge on
    the pixels, which is right for about 0.93 of them."""
    from sklearn.datasets import load_digits

    def random(num_classes: int) -> nn.Module:
        return Net(num_classes, 400)

    fields: dict[str, Any] = {"image_size": 8, "logging": {"pictures": False}}
    run = vidi.train("digits", model=random, probe=True, run=tmp_path / "run", **fields)
    x, y = load_digits(return_X_y=True)
    pixels = SklearnRidge(alpha=1.0).fit(x[:1400], np.eye(10)[y[:1400]]).predict(x[1400:])
    assert run.test_metrics is not None
    assert run.test_metrics["accuracy"] > (pixels.argmax(1) == y[1400:]).mean() + 0.02
