"""A state on disk is the old one or the new one, whole, whatever happens."""

import os
import resource
import signal
import textwrap
from pathlib import Path

import pytest
import torch

from tests.processes import Python
from vidi.engine import checkpoint
from vidi.errors import InputError, RunError


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model/w": torch.full((3, 2), value), "model/n": torch.tensor(7)}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    values = {"loss": 0.1 + 0.2, "best": None, "name": "µ"}
    checkpoint.save(tmp_path, 5, tensors(1.5), values)
    state = checkpoint.load(tmp_path)
    assert state is not None and state.step == 5 and state.values == values
    assert torch.equal(state.tensors["model/w"], tensors(1.5)["model/w"])
    assert state.tensors["model/n"].dtype == torch.int64


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "last") is None


def test_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, tensors(step), {})
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "state-000000002.json",
        "state-000000002.safetensors",
        "state-000000010.json",
        "state-000000010.safetensors",
    ]


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_newest_state_is_passed_over_and_said(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {"a": 1})
    checkpoint.save(tmp_path, 2, tensors(2), {"a": 2})
    file = tmp_path / f"state-000000002.{suffix}"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    file.write_bytes({"flip": data, "cut": data[:-4], "empty": b""}[damage])
    state = checkpoint.load(tmp_path)
    assert state is not None and state.step == 1 and state.values == {"a": 1}
    assert "step 2" in state.notes[0] and "damaged" in state.notes[0]


def test_only_damaged_states_are_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    (tmp_path / "state-000000001.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="No whole state is left"):
        checkpoint.load(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no file size limit to play a full disk with")
def test_a_full_disk_is_a_sentence_and_the_earlier_state_stays(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RunError, match="could not be written") as caught:
            checkpoint.save(tmp_path, 2, {"model/w": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert "--resume" in str(caught.value)
    state = checkpoint.load(tmp_path)
    assert state is not None and state.step == 1
    assert not list(tmp_path.glob("*.part"))


def test_killed_while_writing_leaves_old_or_new_whole(tmp_path: Path) -> None:
    """A process writes states as fast as it can and is killed at a random moment, five times."""
    program = textwrap.dedent("""
        import sys, torch
        from pathlib import Path
        from vidi.engine import checkpoint
        folder = Path(sys.argv[1])
        found = checkpoint.load(folder)
        step = found.step if found else 0
        print(step, flush=True)
        while True:
            step += 1
            t = {"w": torch.full((200_000,), float(step))}
            checkpoint.save(folder, step, t, {"step": step})
    """)
    last = 0
    for i in range(5):
        with Python("-c", program, tmp_path) as process:
            process.stdout.readline()
            assert process.wait(0.05 + 0.031 * i) is None
            process.kill()
            process.wait()
        state = checkpoint.load(tmp_path)
        if state is None:
            continue
        assert not state.notes, "a kill is not damage"
        assert state.step >= last and state.values["step"] == state.step
        assert (state.tensors["w"] == state.step).all()
        last = state.step
    assert last > 0
