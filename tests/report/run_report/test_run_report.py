"""Reports of all tasks and of runs that lack something: whole pages that say what the run says."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import shutil
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vidi
from vidi import api, doctor
from vidi.report import pictures, run_report
from vidi.report.run_report import cost
from vidi.report.run_report.drawing import drawing

TASKS = ("classification", "multilabel", "segmentation", "detection", "boundaries", "flow")
ODD = ("probe", "ensemble", "interrupted", "begun", "gone", "hostile")
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
        self.kinds: set[str] = set()
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
        self.kinds |= {tag, *(f"{tag} {attribute}" for attribute in told)}
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


def test_the_split_that_is_asked_for(runs: dict[str, Path], there: None) -> None:
    """Measured by what the run predicts of each image alone, and counted here."""
    run = runs["hostile"]
    report = api.run_report(run, split="train", device="cpu")
    [subject] = report.subjects
    assert subject.opened is not None
    data = subject.opened.dataset
    samples = [data[i] for i in data.splits["train"].tolist()]
    found = vidi.load(run, device="cpu").predict([one.image for one in samples])
    labels = [int(np.asarray(one.label)) for one in samples]
    right = [int(one.probabilities.argmax()) == k for one, k in zip(found, labels, strict=True)]
    losses = [-math.log(one.probabilities[k]) for one, k in zip(found, labels, strict=True)]
    metrics = subject.metrics["train"]
    assert len(samples) == 18 and metrics["accuracy"] == pytest.approx(sum(right) / 18)
    assert metrics["cross_entropy"] == pytest.approx(sum(losses) / 18, rel=1e-4)
    assert "By class, on training" in report.html
    with pytest.raises(vidi.InputError, match="on a split 'trian'; its figures are of: val"):
        api.run_report(run, split="trian", data=False, device="cpu")


def test_names_are_never_markup(pages: dict[str, str], hostile: str) -> None:
    """Of classes and files that would be tags, attributes and formulas."""
    page, ours = Page(pages["hostile"]), Page(pages["classification"])
    assert page.kinds <= ours.kinds
    assert "What layers make of a sample" in page.words
    assert page.words.count(hostile) > 5, "and they are shown as they stand, in drawings, too"
    assert re.search(
        r"<text[^>]*>" + re.escape(escape(hostile[:17], quote=False)), pages["hostile"]
    )


@pytest.mark.parametrize("name", ["a&b", "font: 12px x", "#222222", ' id="x"', "url(#a)"])
def test_a_drawing_says_any_name(name: str) -> None:
    def draw(path: Path) -> None:
        pictures.confusion(np.eye(2, dtype=np.int64), [name, "b"], path)

    page = Page(drawing(draw, name))
    assert page.open == [] and page.without_words == 0
    assert page.words.count(name) == 2, "at both axes"


def test_names_that_are_no_unicode(runs: dict[str, Path], tmp_path: Path) -> None:
    report = api.run_report(runs["begun"], data=False, device="cpu")
    [one] = report.subjects
    strange = Path("runs/\udcff")
    run = dataclasses.replace(one.run, name=str(strange), path=strange)
    report = run_report.written([dataclasses.replace(one, run=run)])
    run_report.save(report, tmp_path / "it.html")
    assert "<h1>runs/?</h1>" in (tmp_path / "it.html").read_text(encoding="utf-8")
    assert report.as_json()["runs"][0]["run"] == "runs/?"


def test_of_several_runs_no_maps_are_drawn(
    there: None, runs: dict[str, Path], pages: dict[str, str], tmp_path: Path
) -> None:
    """They are most of a page's size."""
    again = shutil.copytree(runs["boundaries"], tmp_path / "again")
    text = api.run_report([runs["boundaries"], again], device="cpu").html
    maps = "What layers make of a sample"
    assert maps in pages["boundaries"] and maps not in text
    assert text.count("Filters of the first layer") == 2


def test_a_resumed_runs_clock_begins_anew(runs: dict[str, Path]) -> None:
    def seconds(*rows: object) -> float:
        some: list[dict[str, Any]] = [
            {"event": "resume"} if row == "resume" else {"event": "epoch", "seconds": row}
            for row in rows
        ]
        return cost.training_seconds(dataclasses.replace(records, rows=some))

    records = doctor.read_records(runs["begun"])
    assert seconds(10.0, 20.0) == 20.0
    assert seconds(10.0, 20.0, "resume", 25.0, 50.0) == 70.0
    assert seconds(10.0, 20.0, "resume", 5.0, "resume", 6.0) == 31.0
    assert seconds(9.0, 2.0) == 11.0, "the first steps, which are slow, are timed by themselves"


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


def test_a_place_that_cannot_be_written_to(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = api.run_report(runs["begun"], data=False, device="cpu")
    path = tmp_path / "there.html"
    run_report.save(report, path)
    with pytest.raises(vidi.InputError, match=r"there\.html is a file, and"):
        run_report.check_place(path / "it.html")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(vidi.InputError, match="may not be written to"):
            run_report.check_place(tmp_path / "new" / "it.html")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(vidi.InputError, match="cannot be written: No space left") as raised:
            run_report.save(run_report.RunReport(report.subjects, "new"), path)
    assert "--resume" not in str(raised.value)
    assert path.read_text(encoding="utf-8") == report.html
    assert [one.name for one in tmp_path.iterdir()] == ["there.html"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_pipe_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be waited for until somebody writes into it."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(run_report, "is_report", lambda _: pytest.fail("it was read"))
    with pytest.raises(vidi.InputError, match="is no report of vidi's"):
        run_report.check_place(tmp_path / "pipe")
