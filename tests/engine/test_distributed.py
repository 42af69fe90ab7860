"""Two processes see the samples of one, in the same order, and end with its loss."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import pair, python
from vidi.engine.run import read_header, read_metrics

HERE = Path(__file__).parent
FLAGS = [
    "train",
    "digits",
    "--model",
    "perceptron",
    "--epochs",
    "2",
    "--batch-size",
    "64",
    "--precision",
    "fp32",
    "--data.threads",
    "1",
    "--logging.every",
    "1",
    "--logging.no-pictures",
    "--json",
]


DETECTION = [
    "train",
    "scenes:detection,size=48,n=12,val=4,test=0",
    "--model",
    "test_golden:proposer",
    "--image-size",
    "48",
    "--detection.regions",
    "16",
    "--detection.anchors",
    "64",
    "--lr",
    "0.01",
    "--epochs",
    "3",
    "--batch-size",
    "4",
    *FLAGS[FLAGS.index("--precision") :],
]
"""On a network without batch statistics, which is found beside this file."""


def vidi(run: Path, *more: str, flags: list[str] | None = None) -> dict[str, Any]:
    done = python("-m", "vidi", *(flags or FLAGS), "--run-dir", run, *more, cwd=HERE)
    assert done.returncode == 0, done.stderr[-3000:]
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def launched(run: Path) -> dict[str, Any]:
    """By torchrun itself."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vidi"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *FLAGS, "--run-dir", str(run)],
        capture_output=True,
        cwd=HERE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def both(run: Path, *more: str, flags: list[str] | None = None) -> dict[str, Any]:
    """By two processes that know of each other what torchrun tells."""
    words = ("-m", "vidi", *(flags or FLAGS), "--run-dir", run, *more)
    done = pair(*words, cwd=HERE)
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-3000:] for one in done]
    assert done[1].stdout == "", "one process speaks"
    out: dict[str, Any] = json.loads(done[0].stdout)
    return out


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in read_metrics(run) if r["event"] == "train"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = tmp_path_factory.mktemp("one") / "run"
    return run, vidi(run)


def test_two_processes_train_as_one(tmp_path: Path, one: tuple[Path, dict[str, Any]]) -> None:
    run, result = one
    two = launched(tmp_path / "two")
    assert two["steps"] == result["steps"]
    # A perceptron has neither dropout nor batch statistics: the same samples in the same order
    # give the same loss at every step, up to the order of sums.
    assert np.allclose(losses(run), losses(tmp_path / "two"), atol=1e-3)
    for split in ("metrics", "test_metrics"):
        assert two[split] == pytest.approx(result[split], abs=1e-3)


def test_begun_with_one_process_resumed_with_two(
    tmp_path: Path, one: tuple[Path, dict[str, Any]]
) -> None:
    run = tmp_path / "run"
    schedule = ["--schedule.name", "constant", "--schedule.warmup", "0"]
    vidi(run, *schedule, "--epochs", "1")
    two = both(run, "--resume", "--epochs", "2")
    whole = vidi(tmp_path / "whole", *schedule)
    assert two["steps"] == whole["steps"]
    assert np.allclose(losses(run), losses(tmp_path / "whole"), atol=1e-3)


def test_two_processes_propose_and_sample_as_one(tmp_path: Path) -> None:
    """Of each image the same regions and anchors, and means over those of all processes."""
    alone = vidi(tmp_path / "one", flags=DETECTION)
    two = both(tmp_path / "two", flags=DETECTION)
    assert alone["steps"] == two["steps"] == 9
    assert np.allclose(losses(tmp_path / "one"), losses(tmp_path / "two"), atol=1e-3)
    notes = [read_header(tmp_path / name / "best.safetensors").notes for name in ("one", "two")]
    fitted = [[note for note in some if note.startswith("anchors: ")] for some in notes]
    assert fitted[0] == fitted[1] and len(fitted[0]) == 1
