"""``vidi ensemble`` and ``--members``: the run that they write, its table, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vidi
from vidi.cli import main

Ask = Callable[..., tuple[int, str, str]]

PAGE = (Path(__file__).parents[2] / "docs" / "ensembles.md").read_text(encoding="utf-8")
QUICK = ["--device", "cpu", "--data.threads", "0", "--data.cache", "off"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs of different seeds and networks, two at once, and the ensemble of the first two."""
    folder = tmp_path_factory.mktemp("runs")
    found = {name: folder / name for name in ("a", "b", "two", "both")}
    words = ["train", "digits", *QUICK, "--epochs", "2"]
    assert main([*words, "--model", "mlp", "--run", str(found["a"])]) == 0
    other = ["--model", "perceptron", "--seed", "1"]
    assert main([*words, *other, "--run", str(found["b"])]) == 0
    assert main([*words, "--model", "mlp", "--members", "2", "--run", str(found["two"])]) == 0
    made = [str(found["a"]), str(found["b"]), "--run", str(found["both"])]
    assert main(["ensemble", *made, "--device", "cpu"]) == 0
    return found


def test_it_predicts_the_mean_of_its_runs(runs: dict[str, Path]) -> None:
    digits = vidi.open("digits")
    images = [digits[int(i)].image for i in digits.splits["test"][:40]]
    one, other, both = (
        np.stack([p.probabilities for p in vidi.load(runs[k], device="cpu").predict(images)])
        for k in ("a", "b", "both")
    )
    assert np.abs(one - other).max() > 0.1, "they differ, or nothing is shown"
    # Their normalisations differ, too: different seeds hold out different samples.
    assert vidi.load(runs["a"]).description.normalisation != (
        vidi.load(runs["b"]).description.normalisation
    )
    tolerance = 1e-5 if vidi.load(runs["a"]).recipe.precision == "fp32" else 0.02
    np.testing.assert_allclose(both, (one + other) / 2, atol=tolerance)


def test_the_table_repeats_what_the_runs_are_worth(runs: dict[str, Path], ask: Ask) -> None:
    code, out, _ = ask("eval", runs["both"], "--json")
    said = json.loads(out)
    assert code == 0
    rows = {row["member"]: row["metrics"] for row in said["members"]}
    assert list(rows) == ["1", "2", "average", "vote"]
    assert rows["average"] == said["metrics"]
    for member, run in (("1", "a"), ("2", "b")):
        held = json.loads((runs[run] / "evaluation.json").read_text())["test"]
        assert rows[member]["accuracy"] == pytest.approx(held["metrics"]["accuracy"], abs=0.01)
    held = json.loads((runs["both"] / "evaluation.json").read_text())
    assert held["test"]["members"] == said["members"]


def test_members_trained_at_once_have_a_table_too(runs: dict[str, Path], ask: Ask) -> None:
    held = json.loads((runs["two"] / "evaluation.json").read_text())
    assert set(held) == {"val", "test"}
    rows = {row["member"]: row["metrics"] for row in held["test"]["members"]}
    assert list(rows) == ["1", "2", "average", "vote"]
    assert rows["average"] == held["test"]["metrics"]
    assert rows["1"] != rows["2"], "they began at different random starts"
    code, out, _ = ask("eval", runs["two"])
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    (average,) = (line for line in lines if line and line[0] == "average")
    assert average[1] == f"{held['test']['metrics']['accuracy']:.4f}"
    (vote,) = (line for line in lines if line and line[0] == "vote")
    assert vote[-1] == "–", "a vote has no calibration error"


def test_the_printed_table_names_the_networks(runs: dict[str, Path], ask: Ask) -> None:
    code, out, _ = ask("eval", runs["both"])
    assert code == 0
    assert "1 mlp" in out and "2 perceptron" in out


def test_more_members_of_a_run_count_each(runs: dict[str, Path], ask: Ask, tmp_path: Path) -> None:
    code, out, _ = ask("ensemble", runs["two"], runs["a"], "--run", tmp_path / "x", "--json")
    said = json.loads(out)
    assert code == 0
    assert [m["run"] for m in said["runs"]] == [str(runs["two"])] * 2 + [str(runs["a"])]
    assert [row["member"] for row in said["members"]] == ["1", "2", "3", "average", "vote"]
    assert vidi.load(tmp_path / "x").recipe.members == 3


def test_what_a_member_has_seen_is_not_measured_on(runs: dict[str, Path], ask: Ask) -> None:
    digits = [vidi.open("digits", seed=seed) for seed in (0, 1)]
    held, learned = digits[0].splits["val"], digits[1].splits["train"]
    known = len(np.intersect1d(held, learned))
    code, _, err = ask("eval", runs["both"], "--split", "val")
    assert code == 2
    assert f"was trained on {known} of the {len(held)} samples of the split val" in err


def test_runs_on_the_same_split_are_measured_on_it(
    runs: dict[str, Path], ask: Ask, tmp_path: Path
) -> None:
    code, _, _ = ask("ensemble", runs["two"], runs["a"], "--run", tmp_path / "x")
    assert code == 0
    assert ask("eval", tmp_path / "x", "--split", "val")[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "--run", "{both}", "--resume"), "is an ensemble that was made of finished runs"),
        (("ensemble", "{a}", "--run", "new"), "two runs at least"),
        (("ensemble", "{a}", "{a}", "--run", "new"), "named twice"),
        (("ensemble", "{a}", "{both}", "--run", "new"), "is an ensemble of runs itself"),
        (("ensemble", "{a}", "{b}", "--run", "{two}"), "exists already"),
        (("ensemble", "{a}", "none", "--run", "new"), "There is no run at none"),
        (("predict", "{two}", "{a}/curves.png", "--heatmap"), "This run is an ensemble"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...],
    says: str,
    runs: dict[str, Path],
    ask: Ask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = ask(*(word.format(**runs) for word in words))
    assert code == 2 and says in err
    assert not Path("new").exists()


def test_the_pages_commands_work(ask: Ask, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("$ vidi ") for b in blocks for line in b.splitlines()]
    assert len(commands) == 7
    for command in commands:
        words = shlex.split(command) + (QUICK if command.startswith("train") else [])
        code, out, err = ask(*words)
        assert code == 0, f"{command}\n{err}"
    assert [row["member"] for row in json.loads(out)["members"]] == ["1", "2", "average", "vote"]
    (code_block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(code_block, "docs/ensembles.md", "exec"), {})
