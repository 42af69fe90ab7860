"""Reports of all tasks and of runs that lack something: whole pages that say what the run says."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import vidi
from vidi import api
from vidi.report import run_report

TASKS = ("classification", "multilabel", "segmentation", "detection", "boundaries", "flow")
ODD = ("probe", "ensemble", "interrupted", "begun", "gone")
VOID = {"meta", "link", "img", "br", "path", "use", "rect", "image", "line", "circle"}


class Page(HTMLParser):
    """Balanced, with names that are unique and links that lead somewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.targets: list[str] = []
        self.sources: list[str] = []
        self.without_words = 0
        self.sections: list[str] = []
        self.words = ""
        self._drawing = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self._look(tag, told)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, dict(attrs))

    def _look(self, tag: str, told: dict[str, str | None]) -> None:
        if name := told.get("id"):
            self.names.append(name)
        if tag == "section":
            self.sections.append(str(told.get("id")))
        if tag == "img":
            self.sources.append(str(told["src"]))
            self.without_words += not told.get("alt")
        if tag == "svg":
            self.without_words += not told.get("aria-label")
        link = told.get("href")
        if link and link.startswith("#"):
            self.targets.append(link[1:])
        elif link:
            self.sources.append(link)
        for value in told.values():
            self.targets += re.findall(r"url\(#(.*?)\)", value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="session")
def pages(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The reports of all runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs["classification"].parent)
        patch.setenv("VIDI_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {name: api.run_report(runs[name], device="cpu").html for name in (*TASKS, *ODD)}


@pytest.mark.parametrize("name", [*TASKS, *ODD])
def test_it_is_one_whole_page_that_needs_nothing(name: str, pages: dict[str, str]) -> None:
    text = pages[name]
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) < 10e6
    twice = {one for one in page.names if page.names.count(one) > 1}
    # The same drawing twice has the same names for the same things.
    assert not {one for one in twice if not re.match(r"g[0-9a-f]{10}-", one)}
    assert set(page.targets) <= set(page.names)
    assert all(source.startswith(("data:image/", "data:,")) for source in page.sources)
    assert page.without_words == 0
    assert "://" not in text and "<script" not in text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.words)


@pytest.mark.parametrize("name", [*TASKS, "probe"])
def test_it_holds_the_metrics_of_the_evaluation(
    name: str, runs: dict[str, Path], pages: dict[str, str]
) -> None:
    words = Page(pages[name]).words
    found = json.loads((runs[name] / "evaluation.json").read_text())
    assert found
    for body in found.values():
        for metric, value in body["metrics"].items():
            assert metric in words
            assert value is None or f"{value:.4f}" in words
    last = found["test" if "test" in found else "val"]
    for row in last.get("per_class", []):
        for value in row.values():
            shown = f"{value:.3f}" if isinstance(value, float) else str(value or "–")
            assert shown in words


SECTIONS = ["asked", "data", "curves", "figures", "errors", "calibration", "samples", "inside"]
SECTIONS += ["doctor", "cost", "environment", "recipe"]


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("classification", set()),
        ("multilabel", {"errors"}),
        ("segmentation", {"calibration"}),
        ("detection", {"calibration"}),
        ("boundaries", {"calibration"}),
        ("flow", {"calibration", "errors"}),
        ("probe", set()),
        ("ensemble", set()),
        ("interrupted", set()),
        ("begun", {"errors", "calibration", "inside"}),
        ("gone", {"errors", "calibration"}),
    ],
)
def test_the_sections(name: str, without: set[str], pages: dict[str, str]) -> None:
    assert Page(pages[name]).sections == [one for one in SECTIONS if one not in without]


def test_it_says_what_a_colleague_asks(runs: dict[str, Path], pages: dict[str, str]) -> None:
    words = Page(pages["classification"]).words
    found = json.loads((runs["classification"] / "evaluation.json").read_text())["test"]
    described = json.loads((runs["classification"] / "recipe.json").read_text())
    accuracy = found["metrics"]["accuracy"]
    assert f"{accuracy:.1%} of the {found['samples']} test images are put into the right" in words
    assert described["data"]["fingerprint"] in words
    assert described["versions"]["torch"] in words
    assert "vidi train digits --model mlp --run digits" in words
    assert "vidi train digits --model mlp --seed 0 --precision fp32 --run " in words
    # The reliability diagram is of the very answers that the evaluation measured.
    assert f"{found['metrics']['ece']:.4f} apart" in words


def test_best_and_worst_are_the_extremes(runs: dict[str, Path], pages: dict[str, str]) -> None:
    """By what the run itself predicts of the images alone."""
    model = vidi.load(runs["classification"], device="cpu")
    data = vidi.open("digits")
    samples = [data[i] for i in data.splits["test"].tolist()]
    losses = []
    for sample, found in zip(samples, model.predict([s.image for s in samples]), strict=True):
        assert isinstance(sample.label, int)
        losses.append((-math.log(found.probabilities[sample.label]), sample.key))
    losses.sort()
    shown = re.findall(r'<span title="(.*?)">loss ([\d.e-]+)</span>', pages["classification"])
    assert [key for key, _ in shown] == [key for _, key in [*losses[:-9:-1], *losses[:8]]]
    assert [float(loss) for _, loss in shown] == pytest.approx(
        [loss for loss, _ in [*losses[:-9:-1], *losses[:8]]], rel=1e-2
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("interrupted", "The run is not finished: it was interrupted at step 29"),
        ("interrupted", "These are the figures of its best weights so far."),
        ("begun", "There is no figure of this run yet"),
        ("ensemble", "An ensemble was not trained as it is"),
        ("ensemble", "Each by itself, the average of all"),
        ("probe", "fitted in closed form"),
        ("gone", "No samples are drawn here. Data and weights could not be opened."),
        ("gone", "looked at its records alone"),
    ],
)
def test_what_is_missing_is_said(name: str, says: str, pages: dict[str, str]) -> None:
    assert says in Page(pages[name]).words


def test_an_ensemble_is_not_unfinished(pages: dict[str, str]) -> None:
    assert "not finished" not in Page(pages["ensemble"]).words


def test_without_data(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the data was opened")

    monkeypatch.setattr(api, "reopen", refuse)
    monkeypatch.setattr(api, "_opened", refuse)
    page = Page(api.run_report(runs["classification"], data=False, device="cpu").html)
    assert "calibration" not in page.sections and "inside" in page.sections
    assert "The data was not opened" in page.words


def test_the_split_that_is_asked_for(runs: dict[str, Path]) -> None:
    report = api.run_report(runs["classification"], split="train", device="cpu")
    [subject] = report.subjects
    measured = vidi.load(runs["classification"], device="cpu").evaluate(split="train")
    assert subject.metrics["train"] == measured.metrics
    assert "By class, on training" in report.html
    with pytest.raises(vidi.InputError, match="on a split 'trian'; its figures are of: val, test"):
        api.run_report(runs["classification"], split="trian", data=False, device="cpu")


def test_nothing_but_a_report_is_written_over(runs: dict[str, Path], tmp_path: Path) -> None:
    report = api.run_report(runs["begun"], device="cpu")
    path = tmp_path / "there.html"
    run_report.save(report, path)
    run_report.save(report, path)
    assert path.read_text(encoding="utf-8") == report.html
    path.write_text("<html>my own page</html>")
    with pytest.raises(vidi.InputError, match="is no report of vidi's"):
        run_report.save(report, path)
    assert path.read_text() == "<html>my own page</html>"
    with pytest.raises(vidi.InputError, match="is a folder"):
        run_report.save(report, tmp_path)
