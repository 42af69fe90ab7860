"""`vidi doctor RUN`: what it prints and writes, which use is meant, and the page's commands."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vidi
from vidi import doctor
from vidi.cli import doctor_run
from vidi.errors import RunError

Ask = Callable[..., tuple[int, str, str]]
PAGE = (Path(__file__).parents[2] / "docs" / "doctor-runs.md").read_text(encoding="utf-8")


def trained(run: Path, **told: Any) -> Path:
    with contextlib.suppress(RunError):
        vidi.train(
            "digits",
            run=run,
            model="mlp",
            device="cpu",
            logging={"pictures": False},
            length={"steps": 24, "evaluate_every": 1000.0},
            **told,
        )
    return run


@pytest.fixture(scope="module")
def high(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rate is so high that it stopped before it was evaluated."""
    return trained(tmp_path_factory.mktemp("runs") / "high", lr=3.0)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "slow", lr=1e-6)


def test_the_text_says_all_of_it(high: Path, ask: Ask) -> None:
    before = sorted(high.parent.rglob("*"))
    code, out, err = ask("doctor", high)
    assert code == 0, err
    assert out.startswith(f"{high}: classification, mlp, ")
    heads = re.findall(r"^(PROBLEM|WARNING|NOTE) +([a-z-]+)$", out, re.MULTILINE)
    assert heads == [("PROBLEM", "rate-too-high")], "that it stopped is a symptom"
    assert out.count("  do: ") == 1
    assert re.search(
        r"^    \$ vidi train digits --model mlp .*--lr (\S+) --run \S+high-lr-\1$", out, re.M
    )
    assert "problem: 1, warning: 0, note: 0." in out
    # It stopped before there were weights to look at.
    assert "note: Data and weights could not be looked at." in out
    assert sorted(high.parent.rglob("*")) == before, "nothing is written unless asked"


def test_the_command_that_it_gives_is_one(high: Path, ask: Ask, tmp_path: Path) -> None:
    """It trains, into a folder of its own, and is no longer told so."""
    _, out, _ = ask("doctor", high, "--json")
    command = json.loads(out)["findings"][0]["command"]
    words = shlex.split(command)
    assert words[0] == "vidi" and words[-2] == "--run"
    words[-1] = str(tmp_path / "again")
    code, _, err = ask(*words[1:], "--length.steps", "24", "--device", "cpu")
    assert code == 0, err
    _, out, _ = ask("doctor", words[-1], "--records-only", "--json")
    assert not [f for f in json.loads(out)["findings"] if f["severity"] == "problem"]


def test_json_is_one_object_and_out_holds_it_and_the_pictures(
    slow: Path, ask: Ask, tmp_path: Path
) -> None:
    out_dir = tmp_path / "checked" / "here"
    code, out, err = ask("doctor", slow / "best.safetensors", "--json", "--out", out_dir)
    assert (code, out.count("\n")) == (0, 1), err
    said = json.loads(out)
    assert said["run"] == str(slow) and said["steps"] == 24
    assert said["counts"] == {"problem": 1, "warning": 0, "note": 0}
    (found,) = said["findings"]
    assert found["code"] == "rate-too-low"
    assert {"severity", "what", "evidence", "remedy", "command", "layer", "series"} <= set(found)
    assert said["pictures"] == [str(out_dir / "problem-rate-too-low.png")]
    assert Path(said["pictures"][0]).is_file()
    assert json.loads((out_dir / "doctor.json").read_text()) == said


def test_what_is_measured_is_added(slow: Path, ask: Ask, tmp_path: Path) -> None:
    asked = ("--lr-range", "--hardest")
    code, out, err = ask("doctor", slow, *asked, "--json", "--out", tmp_path)
    assert code == 0, err
    said = json.loads(out)
    assert said["lr_range"]["lr"] == 1e-6
    assert said["hardest"]
    assert {"gradcheck", "slices", "overfit_one_batch"}.isdisjoint(said)
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "problem-rate-too-low.png",
        "lr-range.png",
        "hardest.png",
    }


def test_json_has_no_nan(slow: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        def as_json(self) -> dict[str, Any]:
            return {"values": [float("nan"), float("inf"), 1.5]}

        def lines(self) -> list[str]:
            return []

    monkeypatch.setitem(doctor_run.ACTIONS, "hardest", lambda made: (Result(), None))
    _, out, _ = ask("doctor", slow, "--hardest", "--json")
    assert json.loads(out)["hardest"] == {"values": [None, None, 1.5]}


def test_a_file_for_out_is_refused_before_anything_is_measured(
    slow: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looking(*_: Any) -> Any:
        raise AssertionError("it has begun to look")

    monkeypatch.setattr(doctor_run, "_look", looking)
    code, _, err = ask("doctor", slow, "--hardest", "--out", slow / "recipe.json")
    assert code == 2 and "is a file" in err


def test_a_probe_has_no_rate_and_is_told_as_one(ask: Ask, tmp_path: Path) -> None:
    run = vidi.train(
        "digits", run=tmp_path / "probe", model="mlp", probe=True, logging={"pictures": False}
    ).path
    code, out, _ = ask("doctor", run, "--records-only")
    assert code == 0 and "closed form" in out and "vitals" not in out
    code, _, err = ask("doctor", run, "--lr-range")
    assert code == 2 and "--lr-range" in err and "closed form" in err


def test_records_need_no_data(slow: Path, ask: Ask, tmp_path: Path) -> None:
    """Neither weights nor data, whose root is nowhere here."""
    copy = tmp_path / "copy"
    shutil.copytree(slow, copy)
    (copy / "best.safetensors").unlink()
    said = json.loads((copy / "recipe.json").read_text())
    said["data"]["root"] = str(tmp_path / "gone")
    (copy / "recipe.json").write_text(json.dumps(said))
    code, out, _ = ask("doctor", copy, "--records-only")
    assert code == 0 and "rate-too-low" in out and "\nnote: " not in out
    code, out, _ = ask("doctor", copy)
    assert code == 0 and "rate-too-low" in out
    assert "note: Data and weights could not be looked at." in out and "gone" in out
    code, _, err = ask("doctor", copy, "--lr-range")
    assert code == 2 and "gone" in err


def test_a_run_without_vitals_says_so(slow: Path, ask: Ask, tmp_path: Path) -> None:
    shutil.copytree(slow, tmp_path / "copy")
    (tmp_path / "copy" / "vitals.jsonl").unlink()
    code, out, _ = ask("doctor", tmp_path / "copy", "--records-only")
    assert code == 0 and "wrote down nothing of its layers" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("digits", "--lr-range"), "digits is no run"),
        (("RUN", "--task", "classification"), "for a data set"),
        (("RUN", "--records-only", "--slices"), "--slices"),
        (("LONE",), "recipe.json"),
        (("RUN", "--out", "LONE"), "is a file"),
        (("no-such-network", "--gradcheck"), "no-such-network"),
    ],
)
def test_what_cannot_be_done_is_said(
    slow: Path, ask: Ask, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    lone = tmp_path / "lone.safetensors"
    shutil.copy(slow / "best.safetensors", lone)
    code, _, err = ask("doctor", *({"RUN": slow, "LONE": lone}.get(w, w) for w in words))
    assert code == 2 and err.startswith("vidi: ") and said in err


def test_a_network_by_its_name_is_checked_by_differences(ask: Ask) -> None:
    code, out, err = ask("doctor", "perceptron", "--gradcheck", "--json")
    assert code == 0, err
    assert json.loads(out)["gradcheck"]["passed"] is True


def test_the_page_names_every_code_and_its_commands_work(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^\$ vidi (.*)$", PAGE, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        code, _, err = ask(*shlex.split(command))
        assert code == 0, f"{command}\n{err}"
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(block, {})
    folder = Path(doctor.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    codes = {
        code
        for told in re.findall(r"code=([^,]+),", text)
        for code in re.findall(r'"([a-z-]+)"', told)
    }
    assert len(codes) > 35
    named = set(re.findall(r"^\| `([a-z-]+)`", PAGE, re.MULTILINE))
    assert named ^ (codes | {"input-not-normalised", "input-normalised-twice"}) == set()
