"""Twenty steps whose losses a refactoring must reproduce (fp32, one thread, CPU).

The figures were written down from this code; a change that means to alter training alters them too,
and says so.
"""

from pathlib import Path

import pytest
import torch

import vidi

GOLDEN: list[float] = [
    2.70557,
    3.0274,
    3.02612,
    3.39209,
    2.38698,
    1.81546,
    2.3229,
    2.98283,
    1.68015,
    1.48133,
    1.31477,
    1.62192,
    0.83394,
    0.89601,
    0.93956,
    0.59596,
    0.64591,
    0.8198,
    0.38907,
    0.71075,
]


def test_twenty_steps_on_digits(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = vidi.train(
            "digits",
            run=tmp_path / "run",
            model="resnet20",
            batch_size=64,
            lr=0.1,
            precision="fp32",
            device="cpu",
            channels_last=True,
            data={"threads": 0},
            schedule={"name": "constant", "warmup": 0},
            length={"steps": 20},
            logging={"pictures": False, "every": 1},
        )
    finally:
        torch.set_num_threads(before)
    losses = [r["loss"] for r in run.history() if r["event"] == "train"]
    assert losses == pytest.approx(GOLDEN, abs=2e-2)
    assert losses[:5] == pytest.approx(GOLDEN[:5], abs=1e-4), "before rounding can add up"
