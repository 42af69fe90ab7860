"""Runs that only look ill: none of them has a problem."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi import doctor

QUIET = {"pictures": False}


def problems(found: tuple[doctor.Finding, ...]) -> list[str]:
    return [finding.code for finding in found if finding.severity == "problem"]


def train(folder: Path, data: Any = "digits", **changes: Any) -> vidi.Run:
    settings: dict[str, Any] = {"model": "mlp", "device": "cpu", "logging": QUIET}
    return vidi.train(data, run=folder, **settings | changes)


def test_a_warm_up_is_not_a_low_rate(tmp_path: Path) -> None:
    run = train(tmp_path / "run", length={"steps": 50}, schedule={"warmup": 100.0}, batch_size=8)
    assert problems(doctor.examine(doctor.read_records(run.path))) == []


def test_a_good_start_need_not_go_far(tmp_path: Path) -> None:
    first = train(tmp_path / "first", epochs=8)
    assert first.metrics["accuracy"] > 0.9
    run = train(tmp_path / "tuned", epochs=2, lr=1e-4, weights=str(first.path))
    assert problems(vidi.examine(run.path)) == []


def test_an_easy_first_sample_is_no_divergence(tmp_path: Path) -> None:
    for seed in range(3):
        run = train(
            tmp_path / f"run{seed}",
            "scenes:flow,size=48,n=16,val=4,test=0",
            model="flownet_small",
            batch_size=1,
            length={"steps": 12},
            seed=seed,
        )
        assert problems(doctor.examine(doctor.read_records(run.path))) == []


def test_validation_that_is_the_test_set_is_no_leak(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for split in ("train", "val"):
        for label in (0, 1):
            folder = data / split / str(label)
            folder.mkdir(parents=True)
            for i in range(20):
                pixels = rng.integers(0, 100, (16, 16, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    shutil.copytree(data / "val", data / "test")
    run = train(tmp_path / "run", str(data), epochs=3, batch_size=10)
    codes = [finding.code for finding in vidi.examine(run.path)]
    assert "leakage" not in codes and "near-leakage" not in codes
    shutil.copytree(data / "val", data / "train", dirs_exist_ok=True)  # and the other way round
    leaked = train(tmp_path / "leaked", str(data), epochs=3, batch_size=10)
    assert "leakage" in [finding.code for finding in vidi.examine(leaked.path)]


@pytest.mark.parametrize("settings", [{"augmentation": {"preset": "strong"}}, {"batch_size": 1}])
def test_a_loss_that_stays_high_may_teach(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Mixed labels and single samples keep it up; validation says what was learned."""
    run = train(tmp_path / "run", **{"batch_size": 8, "length": {"steps": 120}} | settings)
    found = vidi.examine(run.path)
    assert problems(found) == []
    if run.metrics["accuracy"] > 0.4:
        assert "plateau" not in [finding.code for finding in found]
