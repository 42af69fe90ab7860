"""The page about the learning rate: its commands, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Ask = Callable[..., tuple[int, str, str]]
Page = Callable[[str], list[tuple[str, str]]]


def test_the_pages_commands_work(
    run_page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = [out + err for out, err in run_page("learning-rate")]
    assert len(said) == 3
    lr = json.loads(Path("runs/found/recipe.json").read_text())["recipe"]["lr"]
    assert f"learning rate: {lr:g} " in said[0]
    assert f"suggestion    {lr:g}" in said[1], "the doctor's sweep is that of the run"
    assert "The network can learn a batch by heart" in said[2]
    names = {path.name for path in Path("looked-at").iterdir()}
    assert {name for name in names if "lr" in name} and {name for name in names if "over" in name}


def test_find_again_on_resuming_asks_for_what_the_run_holds(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "digits", "--model", "perceptron", "--lr", "find", "--run", "r"]
    words += ["--logging.no-pictures", "--device", "cpu"]
    assert ask(*words, "--epochs", "0.5")[0] == 0
    before = json.loads(Path("r/recipe.json").read_text())["recipe"]["lr"]
    code, out, err = ask(*words, "--epochs", "1", "--resume")
    assert code == 0, out + err
    assert json.loads(Path("r/recipe.json").read_text())["recipe"]["lr"] == before
