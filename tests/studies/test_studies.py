"""Every study holds at its small size and draws something; with a fault planted, it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vidi import studies
from vidi.errors import InputError


def small(name: str, folder: Path) -> studies.Study:
    found: studies.Study = studies.find(name).run(small=True, folder=folder)
    return found


@pytest.mark.parametrize("name", studies.names())
def test_it_holds_and_its_picture_is_drawn(name: str, tmp_path: Path) -> None:
    study = small(name, tmp_path / "state")
    failed = [f"{m.what}: {m.value}; {m.expected}" for m in study.measured if not m.holds]
    assert study.holds, failed
    assert study.pictures
    for caption, draw in study.pictures:
        assert caption
        draw(tmp_path / "it.png")
        with Image.open(tmp_path / "it.png") as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert min(pixels.shape[:2]) >= 300
        marked = pixels.min(2) < 200
        assert marked.mean() > 0.01, "hardly anything is drawn"
        # An empty frame has marks at its edge only.
        height, width = marked.shape
        middle = marked[height // 4 : -height // 4, width // 4 : -width // 4]
        assert middle.mean() > 0.003
        coloured = (np.ptp(pixels.astype(int), 2) > 60).mean()
        assert coloured > 0.0005


@pytest.mark.parametrize("name", studies.names())
def test_it_says_what_it_claims(name: str) -> None:
    module = studies.find(name)
    assert 1 <= module.CLAIM <= 17
    assert 10 <= len(studies.title(module)) <= 100
    assert len(studies.claim(module)) > 100


def test_all_claims_of_the_lecture_have_a_study() -> None:
    assert {studies.find(name).CLAIM for name in studies.names()} == set(range(1, 18))


def test_an_unknown_name_is_a_sentence() -> None:
    with pytest.raises(InputError, match="Did you mean momentum"):
        studies.find("momentun")


def test_nothing_measured_does_not_hold() -> None:
    assert not studies.Study(()).holds


# ------------------------------------------------------------------------- a fault, and it is seen


def wrong_jacobian(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import toy_trainer

    patch.setattr(toy_trainer.ReLU, "backward", lambda self, g: g)


def wrong_sign(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import toy_trainer

    backward = toy_trainer.Linear.backward

    def flipped(self: Any, g: Any) -> Any:
        by_input = backward(self, g)
        self.bias_gradient = -self.bias_gradient
        return by_input

    patch.setattr(toy_trainer.Linear, "backward", flipped)


def gradient_without_target(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import cross_entropy

    right = cross_entropy.gradient
    patch.setattr(cross_entropy, "gradient", lambda o, y: right(o, 0.99 * y))


def slope_astray(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import gradient_descent

    right = gradient_descent.convex_gradient
    patch.setitem(gradient_descent.GRADIENTS, "convex", lambda at: right(at) + 1e-3)


def only_the_first_rows(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import least_squares

    right = least_squares.closed_form
    patch.setattr(least_squares, "closed_form", lambda rows: right(rows - 1))


def one_dual_too_large(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import units

    name, forward, backward, size = units.DUALS[-1]
    wrong = (name, forward, lambda g: 1.001 * backward(g), size)
    patch.setattr(units, "DUALS", (*units.DUALS[:-1], wrong))


def not_so_small(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import ravine

    patch.setitem(ravine.RATES, "small", ravine.RATES["best"] / 2)


def momentum_too_small(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import momentum

    right = momentum.descend
    patch.setattr(
        momentum, "descend", lambda form, rate, alpha, steps: right(form, rate, 0.99 * alpha, steps)
    )


def no_penalty(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import polynomials

    right = polynomials.fit
    patch.setattr(polynomials, "fit", lambda t, b, order, penalty=0.0: right(t, b, order))


def not_quite_equal(patch: pytest.MonkeyPatch) -> None:
    from vidi.studies import symmetry

    right = symmetry.filled

    def filled(value: float, hidden: int = 32) -> Any:
        network = right(value, hidden)
        network.linear[0].weight[0] += 1e-6
        return network

    patch.setattr(symmetry, "filled", filled)


@pytest.mark.parametrize(
    ("name", "sabotage"),
    [
        ("toy-trainer", wrong_jacobian),
        ("wiggle", wrong_sign),
        ("cross-entropy", gradient_without_target),
        ("gradient-descent", slope_astray),
        ("least-squares", only_the_first_rows),
        ("units", one_dual_too_large),
        ("ravine", not_so_small),
        ("momentum", momentum_too_small),
        ("polynomials", no_penalty),
        ("symmetry", not_quite_equal),
    ],
)
def test_a_fault_is_seen(
    name: str,
    sabotage: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    assert not small(name, tmp_path).holds
