"""The picture of a finding: every kind of series can be drawn, with its level and names."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from vidi.doctor import Finding, Series
from vidi.report import doctor, pictures

STEPS = tuple(float(s) for s in range(1, 9))
CURVE = Series(
    x=STEPS,
    ys={"training loss": tuple(2.0**s for s in STEPS)},
    xlabel="step",
    ylabel="loss",
    log=True,
    threshold=2.3,
    meaning="nothing learned",
)
LAYERS = Series(
    x=tuple(float(i) for i in range(40)),
    ys={"norm of the gradient": tuple(10.0**-i for i in range(40))},
    xlabel="layer",
    ylabel="norm of the gradient",
    log=True,
    names=tuple(f"stages.{i}.0.a_long_name_of_a_layer.conv1.weight" for i in range(40)),
)
GAPS = Series(
    x=STEPS,
    ys={"a": (None, *STEPS[1:]), "b": STEPS, "c": (0.0,) * 8},
    xlabel="step",
    ylabel="share",
)


def finding(series: Series, step: int | None = None) -> Finding:
    return Finding(
        "rate-too-high", "problem", "what", ("evidence",), "do", step=step, series=series
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, which are saved all the same."""
    kept: list[Figure] = []
    save = pictures._save

    def keep(figure: Figure, path: Path) -> None:
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(doctor, "_save", keep)
    return kept


@pytest.mark.parametrize("series", [CURVE, LAYERS, GAPS], ids=["curve", "layers", "gaps"])
def test_it_is_drawn(series: Series, tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "picture.png"
    doctor.draw(finding(series, step=4), path)
    picture = cv2.imread(str(path))
    assert picture is not None and picture.std() > 5
    (axes,) = drawn[0].axes
    lines = axes.get_lines()[: len(series.ys)]
    for line, values in zip(lines, series.ys.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), np.array(values, float))
    assert axes.get_yscale() == ("log" if series.log else "linear")
    assert len(axes.get_xticklabels()) <= 2 * doctor.NAMED
    assert axes.get_title(loc="left") == "problem: rate-too-high"


def test_the_level_and_the_step_are_marked(tmp_path: Path, drawn: list[Figure]) -> None:
    for step, marks in ((4, 3), (1, 2), (None, 2), (99, 2)):
        doctor.draw(finding(CURVE, step), tmp_path / "picture.png")
        assert len(drawn[-1].axes[0].get_lines()) == marks
    (axes,) = drawn[-1].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training loss", "nothing learned"]
