"""What sections say in words and figures, counted here anew from the data and the evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import vidi
from vidi import api
from vidi.report import compare, compare_pictures
from vidi.report.html import Html
from vidi.report.run_report import calibration, several
from vidi.report.run_report.looked import Looked


def measured(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())["test"]
    return found


def section(text: str, name: str) -> str:
    return text[text.index(f'<section id="{name}">') :].partition("</section>")[0]


def rows(text: str) -> list[list[str]]:
    """The words in the cells of all tables."""
    return [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    ]


def test_what_knowing_nothing_would_come_to(runs: dict[str, Path], pages: dict[str, str]) -> None:
    counts = {row["class"]: row["samples"] for row in measured(runs["classification"])["per_class"]}
    [(name, share)] = re.findall(
        r"Always answering (\d) would be right for ([\d.]+)% of the images", pages["classification"]
    )
    assert counts[name] == max(counts.values())
    assert float(share) == pytest.approx(100 * counts[name] / sum(counts.values()), abs=0.05)


def test_the_balance_of_classes(pages: dict[str, str]) -> None:
    data = vidi.open("digits")
    assert data.labels is not None
    total = np.bincount(np.asarray(data.labels, np.int64))
    test = np.bincount(np.asarray(data.labels, np.int64)[data.splits["test"]])
    found = [row for row in rows(section(pages["classification"], "data")) if len(row) == 5]
    assert sorted(row[0] for row in found) == [str(k) for k in range(10)]
    train = [int(row[2]) for row in found]
    assert train == sorted(train, reverse=True)
    for name, _, *some in found:
        assert sum(map(int, some)) == total[int(name)] and int(some[2]) == test[int(name)]
        assert int(some[0]) > int(some[1]), "training has more than validation"


def test_the_most_frequent_confusions(runs: dict[str, Path], pages: dict[str, str]) -> None:
    counts = np.array(measured(runs["classification"])["confusion"])
    found = [row for row in rows(section(pages["classification"], "errors")) if row]
    assert len(found) == 8
    for words, count, share in found:
        i, j = map(int, words.split(" → "))
        assert i != j and int(count) == counts[i, j]
        assert share == f"{counts[i, j] / counts[i].sum():.1%}"
    off = np.sort((counts - np.diag(np.diag(counts))).ravel())[::-1]
    assert [int(count) for _, count, _ in found] == off[:8].tolist()


def test_the_settings_that_were_told(pages: dict[str, str]) -> None:
    text = section(pages["classification"], "recipe")
    told = dict(re.findall(r"<dt>([\w.]+)</dt><dd>(.*?)</dd>", text))
    assert told["model"] == "mlp" and told["lr"] == "0.05" and told["length.steps"] == "30"
    assert "epochs" not in told, "its length is of steps"
    assert not [name for name in told if name.startswith(("detection.", "augmentation.pair_"))]


@pytest.mark.parametrize(
    ("said", "right", "words"),
    [
        (0.9, 5, "surer than it should be"),
        (0.9, 9, "about as sure as it should be"),
        (0.6, 9, "less sure than it could be"),
    ],
)
def test_how_sure_it_is(said: float, right: int, words: str, runs: dict[str, Path]) -> None:
    [subject] = api.run_report(runs["begun"], data=False, device="cpu").subjects
    bins = np.zeros((15, 3))
    bins[int(said * 15)] = 10, 10 * said, right
    looked = Looked(10, 10, "loss", (), (), bins, 1.0, "cpu")
    shown = calibration.shown(subject, looked)
    assert words in shown and f"Bin by bin the two are {abs(said - right / 10):.4f} apart" in shown


def test_two_networks_side_by_side(runs: dict[str, Path]) -> None:
    """The difference is the second's figure less the first's; a curve is of the run's own rows."""
    found = compare.compare([runs["classification"], runs["probe"]])
    a, b = (measured(runs[name])["metrics"] for name in ("classification", "probe"))
    shown = {row[0]: row[1:] for row in rows(several.shown(found, Html(""))) if row}
    assert shown["test accuracy"] == [
        f"{a['accuracy']:.4f}",
        f"{b['accuracy']:.4f}",
        f"{b['accuracy'] - a['accuracy']:+.4f}",
    ]
    assert shown["seed"] == ["0", "0", ""]
    evaluations = [row for row in found.runs[0].rows if row["event"] == "evaluation"]
    losses, headlines = Figure().subplots(1, 2)
    compare_pictures.losses(losses, found)
    compare_pictures.headlines(headlines, found)
    for axes, values in (
        (losses, [row["train_loss"] for row in evaluations]),
        (headlines, [row["metrics"]["accuracy"] for row in evaluations]),
    ):
        line = axes.get_lines()[0]
        assert list(line.get_ydata()) == values and line.get_color() == compare_pictures.colour(0)
        assert list(line.get_xdata()) == [row["epoch"] for row in evaluations]
