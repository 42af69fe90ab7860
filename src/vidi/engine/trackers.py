"""Trackers: programs that lay trainings side by side are told what ``metrics.jsonl`` says.

A tracker is four functions (:class:`Tracker`). What it is told is read from ``metrics.jsonl``
itself, so that the two cannot differ, and a run that is resumed goes on in the same run of the
tracker's. Nothing leaves the machine unless the user's environment says so, and what a tracker
would report about itself is off. One that fails is left alone from then on: training goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vidi.engine import distributed
from vidi.engine.checkpoint import write_atomically
from vidi.engine.run import METRICS, Description, RunDirectory, read_metrics
from vidi.errors import InputError, RunError
from vidi.recipe import flat

FILE = "trackers.json"
"""In the run: for each tracker ``id``, the name of its own run, and ``told``, up to which byte of
metrics.jsonl it was told; null while a training tells it."""
UNKNOWN = re.compile(r"[^-.\w/]")
"""What a name of a tracker's cannot have, such as the + of s40+."""


@dataclass(frozen=True)
class Started:
    """A tracker's own run. ``where`` it is, in words. ``kept``: up to which step it still has what
    it was told in earlier trainings; below 0 if it has nothing."""

    id: str
    where: str
    kept: float = -1


class Tracker(Protocol):
    """Where a run is tracked. Each function may raise whatever it likes."""

    def start(self, description: Description, known: str | None, step: int) -> Started:
        """Begin a run, or go on with the ``known`` one, which is resumed at ``step``."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def files(self, step: int, paths: Sequence[Path]) -> None:
        """What a training leaves at its end: pictures (.png) and figures (.json)."""

    def close(self, code: int) -> None:
        """End the run. ``code``: 0 done, 1 failed, 130 and 143 interrupted."""


class TensorBoard:
    """Event files in the run's folder, for ``tensorboard --logdir runs``."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def start(self, description: Description, known: str | None, step: int) -> Started:
        from torch.utils.tensorboard import SummaryWriter

        # It hides the events from this step on: those of steps that are taken again, or all of a
        # folder of which nothing is known.
        hidden = 0 if known is None else step + 1
        self.events: Any = SummaryWriter(str(self.run), purge_step=hidden)
        if known is None:
            told = "\n".join(f"    {name}: {v}" for name, v in settings(description).items())
            self.events.add_text("recipe", told, 0)
        return Started("events", str(self.run), kept=hidden - 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
        self.events.flush()

    def files(self, step: int, paths: Sequence[Path]) -> None:
        import cv2

        for path in paths:
            image = cv2.imread(str(path)) if path.suffix == ".png" else None
            if image is not None:
                self.events.add_image(path.stem, image[:, :, ::-1], step, dataformats="HWC")

    def close(self, code: int) -> None:
        self.events.close()


class WandB:
    """Weights & Biases, offline in the run's folder unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def start(self, description: Description, known: str | None, step: int) -> Started:
        # Where the network is gone, the end would else be waited for without an end.
        self.variables = _set(WANDB_ERROR_REPORTING="false", WANDB_FINISH_TIMEOUT="120")
        import wandb

        told = os.environ.get
        mode: Any = told("WANDB_MODE", "offline")
        folder = told("WANDB_DIR", str(self.run))
        self.image = wandb.Image
        own: Any = wandb.init(
            project=told("WANDB_PROJECT", "vidi"),
            name=told("WANDB_NAME", self.run.name),
            dir=Path(folder).absolute(),  # its own process may stand in another folder
            id=known,
            resume="allow" if mode == "online" else None,
            mode=mode,
            reinit="create_new",  # a run that the user has open in this process stays as it is
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.own = own
        own.config.update(settings(description), allow_val_change=True)
        own.define_metric("*", step_metric="step")
        if mode == "online":
            return Started(own.id, own.url, math.inf if known else -1)
        # Offline, each training has a folder of its own, of the same id. The last holds the whole.
        return Started(own.id, f"{Path(folder) / 'wandb'}, {mode}")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        # Its own counter of steps only rises, and drops what comes late: ours is a value.
        self.own.log({"step": step, **values})

    def files(self, step: int, paths: Sequence[Path]) -> None:
        pictures = [path for path in paths if path.suffix == ".png"]
        if pictures:
            self.own.log({"step": step} | {p.stem: self.image(str(p)) for p in pictures})
        for path in paths:
            if path not in pictures:
                self.own.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, code: int) -> None:
        try:
            self.own.finish(exit_code=code)
        finally:
            _unset(self.variables)


class MLflow:
    """MLflow, in files in the run's folder unless ``MLFLOW_TRACKING_URI`` says otherwise."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def start(self, description: Description, known: str | None, step: int) -> Started:
        # A training is not to stand still for as long as it would wait for a server.
        self.variables = _set(
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="2",
            MLFLOW_HTTP_REQUEST_TIMEOUT="20",
        )
        import mlflow
        from mlflow.entities import Metric, Param

        self.metric = Metric
        folder = self.run / "mlruns"
        chosen = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
        uri = mlflow.get_tracking_uri() if chosen else None
        if uri is None:
            # Files need nothing else installed. It prefers databases, and asks for this word.
            self.variables += _set(MLFLOW_ALLOW_FILE_STORE="true")
        self.client = mlflow.MlflowClient(tracking_uri=uri or folder.absolute().as_uri())
        where = uri or str(folder)
        if known is not None:
            self.client.update_run(known, status="RUNNING")
            self.id = known
            return Started(known, where, kept=math.inf)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vidi")
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.id = self.client.create_run(experiment, run_name=self.run.name).info.run_id
        told = [Param(name, str(value)) for name, value in settings(description).items()]
        for i in range(0, len(told), 100):  # as many as it takes at once
            self.client.log_batch(self.id, params=told[i : i + 100])
        return Started(self.id, where)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self.metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def files(self, step: int, paths: Sequence[Path]) -> None:
        for path in paths:
            self.client.log_artifact(self.id, str(path))

    def close(self, code: int) -> None:
        status = {0: "FINISHED", 1: "FAILED"}.get(code, "KILLED")
        try:
            self.client.set_terminated(self.id, status)
        finally:
            _unset(self.variables)


KINDS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}
"""By their names in the recipe, which are those of the packages and of vidi's extras, too."""


def check(names: Sequence[str]) -> None:
    """Raises :class:`InputError` for a tracker whose package is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        # A mere folder of that name, such as wandb leaves behind, has a spec without origin.
        if spec is None or spec.origin is None:
            raise InputError(
                f"--logging.trackers {name} needs the package {name}, which is not installed: pip "
                f"install 'vidi[{name}]'."
            )


@contextlib.contextmanager
def tracked(
    run: RunDirectory, description: Description, step: int, say: Callable[[str], None]
) -> Iterator[Trackers]:
    """The recipe's trackers, started; what is not finished in the end has failed. ``step``: where
    the run is resumed, 0 for a new one. Only the process that writes the run has any.

    Raises :class:`InputError` where one of a new run cannot be started.
    """
    trackers = Trackers(run, say)
    try:
        if distributed.is_writer():
            trackers.start(description, step)
        yield trackers
    finally:
        trackers.close(1)


class Trackers:
    """The trackers of one training. :meth:`tell` brings them up to metrics.jsonl."""

    def __init__(self, run: RunDirectory, say: Callable[[str], None]) -> None:
        self.run = run
        self.say = say
        self.open: dict[str, Tracker] = {}
        self.held: dict[str, set[tuple[str, int]]] = {}
        """The rows, by event and step, that a tracker has from earlier trainings."""
        self.saved: dict[str, dict[str, Any]] = {}
        """What FILE says."""
        self.at = 0
        """The byte of metrics.jsonl up to which the trackers were told."""
        self.step = 0

    def start(self, description: Description, step: int) -> None:
        names = dict.fromkeys(description.recipe.logging.trackers)
        if not names:
            return
        written = _rows(self.run.path / METRICS, 0)
        try:
            self.saved = _read(self.run.path / FILE)
        except InputError as error:
            if not written:
                raise
            self.say(f"{error} Training goes on without trackers.")
            return
        self.at = written[-1].end if written else 0
        self.step = step
        for name in names:
            try:
                where = self._start(name, description, step, written)
            except Exception as error:
                if written:  # such as a job that its scheduler starts again, at night
                    self._leave(name, error)
                    continue
                raise InputError(
                    f"The tracker {name} cannot be started ({_said(error)}). Mend that and go on "
                    f"with --resume; --logging.trackers without {name} leaves it out."
                ) from error
            self.say(f"{name}: {where}")
        self._save()

    def _start(self, name: str, description: Description, step: int, written: list[_Row]) -> str:
        known = self.saved.get(name)
        told = 0 if known is None else known["told"]
        tracker = KINDS[name](self.run.path)
        try:
            began = tracker.start(description, None if known is None else known["id"], step)
        except Exception:
            _closed(tracker)
            raise
        self.open[name] = tracker
        self.held[name] = {
            row.key
            for row in written
            if (told is None or row.end <= told) and row.key[1] <= began.kept
        }
        self.saved[name] = {"id": began.id, "told": told}
        # What counts of earlier trainings, and it was not told or has no more.
        for row in read_metrics(self.run.path):
            if row.get("step", 0) <= step and row["event"] != "end":
                self._row(name, row)
        self.saved[name]["told"] = None
        return began.where

    def tell(self) -> None:
        """Tell the trackers the rows of metrics.jsonl that are new."""
        if not self.open:
            return
        try:
            rows = _rows(self.run.path / METRICS, self.at)
        except OSError as error:
            for name in [*self.open]:
                self._leave(name, error)
            return
        for row in rows:
            for name in [*self.open]:
                try:
                    self._row(name, row.body)
                except Exception as error:
                    self._leave(name, error)
            self.at = row.end
            self.step = row.body.get("step", self.step)

    def finish(self, code: int) -> None:
        """The last rows, and the pictures and figures of a training that is done; then the
        trackers' runs end. ``code``: 0, or 128 and the signal that interrupted the training."""
        self.tell()
        folder = self.run.path
        paths = [*sorted(folder.glob("*.png")), *folder.glob("evaluation.json")]
        for name, tracker in [*self.open.items()] if code == 0 else []:
            try:
                tracker.files(self.step, paths)
            except Exception as error:
                self._leave(name, error)
        self.close(code)

    def close(self, code: int) -> None:
        """End the trackers' runs, as far as they have not ended."""
        for name, tracker in [*self.open.items()]:
            try:
                tracker.close(code)
            except Exception as error:
                del self.open[name]  # it is not closed twice
                self._leave(name, error)
                continue
            del self.open[name]
            self.saved[name]["told"] = self.at
            self._save()

    def _row(self, name: str, row: dict[str, Any]) -> None:
        values = scalars(row)
        if values and (row["event"], row["step"]) not in self.held[name]:
            self.open[name].scalars(row["step"], values)

    def _leave(self, name: str, error: Exception) -> None:
        """The tracker is off from here on; what it has open is closed, as far as it can be."""
        if (tracker := self.open.pop(name, None)) is not None:
            _closed(tracker)
        if name in self.saved and self.saved[name]["told"] is None:
            self.saved[name]["told"] = self.at
        self._save()
        self.say(
            f"The tracker {name} failed and is told nothing more ({_said(error)}). Training goes "
            f"on, {METRICS} has every row, and --resume tries it again."
        )

    def _save(self) -> None:
        text = json.dumps(self.saved, indent=1) + "\n"
        with contextlib.suppress(RunError):  # a full disk, say: no tracker is worth a training
            write_atomically(self.run.path / FILE, text.encode())


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """What a row of metrics.jsonl measured, under its names in a tracker: the event, and what it
    is, as in ``train/loss`` and ``evaluation/accuracy``. Without the step, and without what has no
    value (null)."""
    tests = {f"test/{name}": value for name, value in (row.get("test_metrics") or {}).items()}
    values = {**row, **(row.get("metrics") or {}), **tests}
    return {
        UNKNOWN.sub("_", f"{row['event']}/{name}"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }


def settings(description: Description) -> dict[str, Any]:
    """What a tracker shows of a run beside its figures."""
    recipe = {name: value for name, value, _ in flat(description.recipe)}
    return recipe | {
        "command": description.command,
        "dataset": description.data["root"],
        "fingerprint": description.data["fingerprint"],
    }


@dataclass(frozen=True)
class _Row:
    body: dict[str, Any]
    end: int
    """The byte of metrics.jsonl behind it."""

    @property
    def key(self) -> tuple[str, int]:
        return self.body["event"], self.body.get("step", 0)


def _rows(path: Path, start: int) -> list[_Row]:
    """The rows of metrics.jsonl from a byte on."""
    rows: list[_Row] = []
    if not path.is_file():
        return rows
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            with contextlib.suppress(ValueError):  # the half line of a killed process
                rows.append(_Row(json.loads(line), start))
    return rows


def _set(**variables: str) -> list[str]:
    """Set those variables of the environment that are not set, and give their names."""
    own = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in own})
    return own


def _unset(names: Sequence[str]) -> None:
    for name in names:
        os.environ.pop(name, None)


def _closed(tracker: Tracker) -> None:
    """Close one that failed, with whatever it has open."""
    with contextlib.suppress(Exception):
        tracker.close(1)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        if not all(isinstance(one, dict) and {"id", "told"} <= {*one} for one in found.values()):
            raise ValueError("id or told is missing")
        return found
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}. Delete it, and the trackers' runs begin anew."
        ) from error


def _said(error: Exception) -> str:
    """The first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
