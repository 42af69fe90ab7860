"""Trackers hold what metrics.jsonl says, after a kill and a resume too, and nothing leaves the
machine. What they hold is read from their own files."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch import nn

import vidi
from vidi import recipe
from vidi.engine import distributed, trackers
from vidi.engine.run import read_metrics
from vidi.engine.trackers import Started
from vidi.errors import InputError

Held = dict[str, list[tuple[int, float]]]
"""By name, the steps and values."""
ALL = ("tensorboard", "wandb", "mlflow")
TIMES = ("seconds", "images_per_second", "epoch/images")
SET: dict[str, str] = {}
"""What trackers set in the environment."""


class Blobs:
    """60 images of 8 px in three classes, told apart by their colour."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        image = np.random.default_rng(i).integers(0, 90, (8, 8, 3), dtype=np.uint8)
        image[:, :, i % 3] += 100
        return image, i % 3


def tiny(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))


class Display:
    """Keeps the notes, and kills the process after a step."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.notes: list[str] = []
        self._kill_at = kill_at

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def step(self, step: int, *_: Any) -> None:
        if step == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: None


def train(run: Path | str, names: Sequence[str], **changes: Any) -> tuple[Any, list[str]]:
    """The run, and what was said. An epoch has 5 steps."""
    display = Display(changes.pop("kill_at", None))
    logging = {"pictures": False, "every": 1, "trackers": tuple(names)}
    fields: dict[str, Any] = {
        "model": tiny,
        "epochs": 2,
        "batch_size": 10,
        "lr": 0.05,
        "precision": "fp32",
        "image_size": 8,
        "data": {"threads": 0},
        "logging": logging | changes.pop("logging", {}),
    }
    return vidi.train(Blobs(), run=run, progress=display, **{**fields, **changes}), display.notes


def killed(run: str, environment: dict[str, str]) -> None:
    """A training that dies after step 13, of which step 10 was the last that was saved."""
    os.environ.update(environment)
    train(run, ALL, epochs=4, kill_at=13)


def truth(run: Path) -> Held:
    """What metrics.jsonl says, by event and name."""
    held: Held = {}
    for row in read_metrics(run):
        values = {**row, **row.get("metrics", {})}
        values |= {f"test/{k}": v for k, v in (row.get("test_metrics") or {}).items()}
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                held.setdefault(f"{row['event']}/{name}", []).append((row["step"], value))
    return held


def in_tensorboard(run: Path) -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def in_wandb(run: Path) -> Held:
    """The newest of its files: blocks of 32 KiB, in them records in parts (LevelDB's log)."""
    from wandb.proto import wandb_internal_pb2

    (path,) = max((run / "wandb").glob("offline-run-*")).glob("*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    held: Held = {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a head: zeros up to the next block
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record.FromString(whole)
            whole = b""
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            for name, value in items.items():
                if "/" in name:
                    place = (int(json.loads(items["step"])), float(json.loads(value)))
                    held.setdefault(name, []).append(place)
    return held


def in_mlflow(folder: Path) -> Held:
    """A file for each name, with a line of time, value and step for each of its values."""
    held: Held = {}
    for path in folder.glob("*/*/metrics/**/*"):
        if path.is_file():
            rows = [line.split() for line in path.read_text().splitlines()]
            name = path.as_posix().partition("/metrics/")[2]
            held[name] = [(int(step), float(value)) for _, value, step in rows]
    return held


READ: dict[str, Callable[[Path], Held]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": lambda run: in_mlflow(run / "mlruns"),
}


def assert_same(found: Held, expected: Held, besides: Sequence[str] = ()) -> None:
    def kept(held: Held) -> Held:
        return {name: rows for name, rows in held.items() if not name.endswith(tuple(besides))}

    found, expected = kept(found) if besides else found, kept(expected) if besides else expected
    assert found.keys() == expected.keys() and len(expected) > 8
    for name, rows in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in rows], name
        values = [value for _, value in rows]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6), name


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[dict[str, str], socket.socket]]:
    """The environment of a user who set nothing, but whose every word to the network would go
    through here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        yield {n: proxy for name in names for n in (name, name.lower())}, server


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, listening: tuple[dict[str, str], socket.socket]
) -> Iterator[tuple[Path, Path]]:
    """A run that all three track, killed and resumed, and the same one whole, of which none knows;
    pictures are drawn."""
    folder = tmp_path_factory.mktemp("tracked")
    environment = {**listening[0], "HOME": str(folder), "VIDI_CACHE": str(folder / "cache")}
    run = folder / "run"
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=killed, args=(str(run), environment))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("CI", raising=False)
        own = trackers._set

        def noted(**variables: str) -> list[str]:
            SET.update(variables)
            return own(**variables)

        patch.setattr(trackers, "_set", noted)
        train(run, ALL, epochs=4, resume=True, logging={"pictures": True})
        train(folder / "whole", (), epochs=4)
        yield run, folder / "whole"
        import wandb

        wandb.teardown()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("name", ALL)
def test_it_holds_what_metrics_jsonl_says(name: str, resumed: tuple[Path, Path]) -> None:
    run, _ = resumed
    raw = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    again = [row["step"] for row in raw if row["event"] == "train"]
    assert sorted(again) != sorted(set(again)), "some steps were taken twice"
    # MLflow forgets nothing: of steps that were taken twice it has the first time.
    assert_same(READ[name](run), truth(run), TIMES if name == "mlflow" else ())
    assert {"train/loss", "evaluation/accuracy", "end/accuracy"} <= truth(run).keys()


def test_what_is_tracked_is_trained_the_same(resumed: tuple[Path, Path]) -> None:
    run, whole = resumed
    same = {name: rows for name, rows in truth(whole).items() if not name.endswith(TIMES)}
    assert {name: rows for name, rows in truth(run).items() if not name.endswith(TIMES)} == same


def test_settings_and_pictures_are_there(resumed: tuple[Path, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = resumed
    curves = cv2.imread(str(run / "curves.png"))
    assert curves is not None
    events = EventAccumulator(str(run)).Reload()
    sent = events.Images("curves")[0].encoded_image_string
    shown = cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None and np.array_equal(shown, curves), "in the right colours"
    (texts,) = (events.Tensors(name) for name in events.Tags()["tensors"])
    assert len(texts) == 1 and b"lr: 0.05" in texts[0].tensor_proto.string_val[0]

    (mlflow,) = (path.parent for path in run.glob("mlruns/*/*/params"))
    assert (mlflow / "params" / "lr").read_text() == "0.05"
    assert (mlflow / "params" / "optimiser.name").read_text() == "sgd"
    assert {p.name for p in (mlflow / "artifacts").iterdir()} >= {"curves.png", "evaluation.json"}
    assert re.search(r"^status: 3$", (mlflow / "meta.yaml").read_text(), re.MULTILINE), "finished"

    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1, "one run"
    assert list(folders[-1].glob("files/media/images/curves_*.png"))
    assert (folders[-1] / "files" / "evaluation.json").exists()


def test_nothing_leaves_the_machine(
    resumed: tuple[Path, Path], listening: tuple[dict[str, str], socket.socket]
) -> None:
    with pytest.raises(BlockingIOError):
        listening[1].accept()
    # MLflow's own reports are off under pytest anyway; these turn both off for users, as long as
    # the training lasts.
    assert SET["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert SET["WANDB_ERROR_REPORTING"] == "false"
    assert not SET.keys() & os.environ.keys()


def test_another_place_is_the_users_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "blobs")
    run, _ = train(tmp_path / "run", ["mlflow"], epochs=1)
    assert not (run.path / "mlruns").exists()
    assert_same(in_mlflow(tmp_path / "elsewhere"), truth(run.path))
    assert any("name: blobs" in p.read_text() for p in tmp_path.glob("elsewhere/*/meta.yaml"))


class Kept:
    """A tracker that keeps what it is told, and fails where it is told to."""

    told: Held
    fails = ""
    codes: list[int]

    def __init__(self, run: Path) -> None:
        pass

    def start(self, description: Any, known: str | None, step: int) -> Started:
        self._perhaps("start")
        if known is None:
            type(self).told, type(self).codes = {}, []
        return Started("its name", "there", kept=1e9 if known else -1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if step >= 7:
            self._perhaps("scalars")
        for name, value in values.items():
            self.told.setdefault(name, []).append((step, value))

    def files(self, step: int, paths: Sequence[Path]) -> None:
        self._perhaps("files")

    def close(self, code: int) -> None:
        self._perhaps("close")
        self.codes.append(code)

    def _perhaps(self, what: str) -> None:
        if self.fails == what:
            raise OSError(28, "No space left on device")


class Other(Kept):
    """One that never fails."""

    told: Held
    fails = ""
    codes: list[int]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``wandb`` is what keeps and perhaps fails, and ``mlflow`` another."""
    monkeypatch.setattr(trackers, "KINDS", {"wandb": Kept, "mlflow": Other})
    yield
    Kept.fails = ""


@pytest.mark.parametrize("fails", ["scalars", "files", "close"])
def test_one_that_fails_is_left_alone_and_training_goes_on(
    fails: str, kept: None, tmp_path: Path
) -> None:
    Kept.fails = fails
    Kept.codes = []
    run, said = train(tmp_path / "run", ["wandb", "mlflow"])
    assert Kept.codes == ([] if fails == "close" else [1]), "what it had open is closed"
    (note,) = [sentence for sentence in said if "failed" in sentence]
    assert "wandb failed" in note and "No space left on device" in note
    assert run.steps == 10 and Other.codes == [0]
    assert_same(Other.told, truth(run.path))
    lost = truth(run.path) if fails != "scalars" else {}
    if lost:
        assert_same(Kept.told, lost)
    else:
        assert [step for step, _ in Kept.told["train/loss"]] == [1, 2, 3, 4, 5, 6]

    Kept.fails = ""  # and what it missed is told by the next training
    train(tmp_path / "run", ["wandb", "mlflow"], resume=True, epochs=3)
    for who in (Kept, Other):
        first_end = {name: rows for name, rows in who.told.items() if not name.startswith("end/")}
        expected = {n: rows for n, rows in truth(run.path).items() if not n.startswith("end/")}
        assert_same(first_end, expected)


def test_one_that_cannot_start_stops_a_new_run_and_no_resumed_one(
    kept: None, tmp_path: Path
) -> None:
    Kept.fails = "start"
    with pytest.raises(InputError, match=r"wandb cannot be started .*No space left.*--resume"):
        train(tmp_path / "run", ["mlflow", "wandb"])
    assert Other.codes == [1], "what had begun has ended"
    train(tmp_path / "run", ["mlflow"], resume=True)
    _, said = train(tmp_path / "run", ["wandb", "mlflow"], resume=True, epochs=3)
    assert sum("wandb failed" in sentence for sentence in said) == 1
    assert read_metrics(tmp_path / "run")[-1]["step"] == 15


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": {}}'])
def test_what_is_known_of_them_may_be_damaged(text: str, kept: None, tmp_path: Path) -> None:
    """A resumed training goes on without trackers, and says so."""
    train(tmp_path / "run", ["wandb"], epochs=1)
    (tmp_path / "run" / trackers.FILE).write_text(text)
    Kept.told.clear()
    run, said = train(tmp_path / "run", ["wandb"], resume=True)
    (note,) = (sentence for sentence in said if trackers.FILE in sentence)
    assert "cannot be read" in note and "goes on without trackers" in note
    assert run.steps == 10 and not Kept.told
    assert (tmp_path / "run" / trackers.FILE).read_text() == text


def test_metrics_that_cannot_be_read_end_no_training(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = trackers._rows

    def rows(path: Path, start: int) -> Any:
        if start:
            raise OSError(5, "Input/output error")
        return own(path, start)

    monkeypatch.setattr(trackers, "_rows", rows)
    run, said = train(tmp_path / "run", ["wandb", "mlflow"])
    assert run.steps == 10
    assert sum("Input/output error" in sentence for sentence in said) == 2


def test_one_that_joins_later_is_told_all(kept: None, tmp_path: Path) -> None:
    train(tmp_path / "run", ["mlflow"])
    train(tmp_path / "run", [], resume=True, epochs=3)  # a time without any
    run, _ = train(tmp_path / "run", ["mlflow", "wandb"], resume=True, epochs=4)
    assert_same(Kept.told, truth(run.path))
    told = {name: rows for name, rows in Other.told.items() if not name.startswith("end/")}
    expected = {n: rows for n, rows in truth(run.path).items() if not n.startswith("end/")}
    assert_same({n: sorted(rows) for n, rows in told.items()}, expected)


def test_a_training_that_fails_says_so(kept: None, tmp_path: Path) -> None:
    def bad(*_: Any) -> Any:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        train(tmp_path / "run", ["wandb"], loss=bad)
    assert Kept.codes == [1]


def test_only_the_process_that_writes_tracks(
    kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = train(tmp_path / "run", ["wandb"], epochs=1)
    Kept.told.clear()
    monkeypatch.setattr(distributed, "is_writer", lambda: False)
    described = trackers.RunDirectory(run.path).read_description()
    with trackers.tracked(trackers.RunDirectory(run.path), described, 0, print) as tracked:
        tracked.tell()
        assert not tracked.open
    assert not Kept.told


def test_a_missing_package_is_a_sentence_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = trackers.importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "mlflow" else find(name, *more),
    )
    with pytest.raises(InputError, match=r"pip install 'vidi\[mlflow\]'"):
        train(tmp_path / "run", ["mlflow"])
    assert not (tmp_path / "run").exists()


def test_a_mere_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackerless").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="not installed"):
        trackers.check(["trackerless"])


def test_an_unknown_tracker_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a list of 'tensorboard' or 'wandb' or 'mlflow'"):
        train(tmp_path / "run", ["tensorbord"])


def test_names_and_values() -> None:
    row = {
        "event": "end",
        "step": 3,
        "metrics": {"epe": 1.5, "s40+": 2, "map_large": None},
        "test_metrics": {"epe": 2.5},
        "why": "text",
        "sure": True,
    }
    assert trackers.scalars(row) == {"end/epe": 1.5, "end/s40_": 2.0, "end/test/epe": 2.5}


@pytest.mark.parametrize("on", [True, False])
def test_recipes_of_before_are_read(on: bool) -> None:
    old = recipe.to_dict(vidi.Recipe())
    del old["logging"]["trackers"]
    old["logging"] |= {"tensorboard": on, "every": 5}
    got = recipe.from_dict(old)
    assert got.logging == vidi.Logging(every=5, trackers=("tensorboard",) if on else ())
    assert recipe.replace(vidi.Recipe(), {"logging": {"tensorboard": on, "every": 5}}) == got


@pytest.mark.parametrize("logging", [None, "tensorboard"])
def test_logging_that_is_none_of_ours_is_a_sentence(logging: Any) -> None:
    with pytest.raises(InputError, match=r"logging is .* it should be"):
        recipe.from_dict({**recipe.to_dict(vidi.Recipe()), "logging": logging})


def test_the_flag_of_before_is_answered_with_what_to_type(
    ask: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, err = ask("train", "digits", "--logging.tensorboard")
    assert code == 2 and "--logging.trackers tensorboard" in err
    with pytest.raises(InputError, match=r"--logging\.trackers tensorboard"):
        recipe.replace(vidi.Recipe(), {"logging.tensorboard": True})


def test_the_pages_commands_work(
    run_page: Callable[[str], list[tuple[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(run_page("trackers")) == 2
    assert_same(in_wandb(Path("runs/tracked")), truth(Path("runs/tracked")))
    import wandb

    wandb.teardown()
