"""``vidi compare``: what docs/compare.md promises, run as it stands; the JSON; what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vidi.cli import main

Ask = Callable[..., tuple[int, str, str]]

PAGE = (Path(__file__).parent.parent.parent / "docs/compare.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line.removeprefix("$ ")) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's trainings were run."""
    where = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setenv("VIDI_CACHE", str(where / "cache"))
        found = commands()
        assert len(found) == 10
        for verb, *words in found:
            assert verb == "vidi"
            if words[0] == "train":  # one arithmetic, whatever the machine measures just then
                patch.setattr("sys.argv", ["vidi", *words])
                assert main([*words, "--precision", "fp32", "--logging.no-pictures"]) == 0
        yield where


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def test_the_pages_other_commands(here: Path, ask: Ask) -> None:
    others = [words for _, *words in commands() if words[0] != "train"]
    assert len(others) == 4
    for words in others:
        code, _, errors = ask(*words)
        assert code == 0, f"{words}\n{errors}"
    assert (here / "rates.png").stat().st_size > 10_000


def test_what_it_prints(here: Path, ask: Ask) -> None:
    code, said, _ = ask("compare", *(f"runs/{n}" for n in ("fast", "fast-seed1", "slow")))
    assert code == 0
    assert re.search(r"^A +fast-seed1 +1 +3 +60", said, re.MULTILINE)
    assert re.search(r"^lr +0.01 +0.002 *$", said, re.MULTILINE)
    assert "Seeds: 2 of A, 1 of B" in said
    assert "with one seed of B nothing can be said" in said
    command = said.splitlines()[-1]
    assert shlex.split(command)[-4:] == ["--seed", "1", "--run", "runs/slow-seed1"]
    assert "--lr 0.002" in command, "the very one that the page has"


def test_json_is_one_object(here: Path, ask: Ask) -> None:
    names = ("fast", "fast-seed1", "slow", "slow-seed1")
    code, said, _ = ask("compare", *(f"runs/{n}" for n in names), "--json", "--out", "all.svg")
    found = json.loads(said)
    assert code == 0 and found["picture"] == "all.svg" and Path("all.svg").is_file()
    assert [run["group"] for run in found["runs"]] == ["A", "A", "B", "B"]
    assert found["differences"] == [
        {"kind": "recipe", "name": "lr", "values": {"A": "0.01", "B": "0.002"}}
    ]
    one = next(v for v in found["verdicts"] if (v["split"], v["metric"]) == ("test", "accuracy"))
    assert one["method"] == "paired", "each seed holds out its own digits"
    means = [
        sum(run["metrics"]["test"]["accuracy"] for run in found["runs"] if run["group"] == g) / 2
        for g in "AB"
    ]
    assert one["difference"] == pytest.approx(means[1] - means[0])
    assert one["interval"][0] < one["difference"] < one["interval"][1]


def test_the_probe_beside_sgd(here: Path, ask: Ask) -> None:
    """Both heads on the same features; in closed form it is no worse than after three epochs."""
    code, said, _ = ask("compare", "runs/slow", "runs/probe", "runs/head", "--json")
    found = json.loads(said)
    assert code == 0
    slow, probe, head = (run["metrics"]["test"]["accuracy"] for run in found["runs"])
    assert probe > slow and probe > head - 0.02
    values = {d["name"]: d["values"] for d in found["differences"]}
    assert values["probe"] == {"A": "false", "B": "true", "C": "false"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "two runs or more"),
        (("runs/fast",), "two runs or more"),
        (("runs/fast", "runs/none"), "is no run"),
        (("runs/fast", "runs/slow", "--out", "picture.docx"), "cannot be written to"),
    ],
)
def test_what_it_refuses(words: tuple[str, ...], says: str, here: Path, ask: Ask) -> None:
    code, _, errors = ask("compare", *words)
    assert code == 2 and says in errors and "Traceback" not in errors
