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
    2.37623,
    2.30721,
    2.1902,
    2.10276,
    2.06733,
    2.03365,
    1.93381,
    1.86325,
    1.70297,
    1.52544,
    1.45537,
    1.35937,
    1.28737,
    1.19352,
    1.02499,
    0.98892,
    1.03157,
    0.72943,
    0.85034,
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
            lr=0.02,
            optimiser={"name": "sgd"},
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
