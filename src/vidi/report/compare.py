"""Runs side by side: what differs between them, and whether their metrics differ by more than their
seeds do. Reads the runs' folders only.

Runs that differ in nothing but the seed are one group; a group's metrics are a mean and a standard
deviation over its seeds. Two groups are compared by Welch's t test, which asks for no equal spread.
Where validation was held out by the seed, the same seed holds out the same samples in both groups,
and much of the spread is that of the split: then the differences at equal seeds are tested (the
paired t test). Which of the two it is follows from the data, never from what comes out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shlex
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vidi import tasks
from vidi.engine.run import Description, RunDirectory, read_metrics
from vidi.errors import InputError
from vidi.recipe import flat

LEVEL = 0.95
"""Of the intervals."""
NO_EFFECT = (
    "data.threads",
    "data.prefetch",
    "data.cache",
    "length.save_every",
    "logging.",
    "device",
)
"""Fields, by the start of their names, that do not part runs into groups: they change no result, or
only where it is computed."""
BUFFERS = {
    *("running_mean", "running_var", "num_batches_tracked"),
    *("delta_mean", "delta_std", "sides", "finished"),  # the detectors'
}
"""Tensors beside the parameters, by the last word of their names."""
LENGTHS = ("length.minutes", "length.steps", "epochs")
"""Fields that say how long a run is; the first that is set counts."""
UNKNOWN = "not known yet"


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run, as its folder tells it. ``metrics``: by split, of its best weights; of a run that is
    not finished, of its best validation so far."""

    path: Path
    name: str
    description: Description = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    metrics: dict[str, dict[str, float]]
    unfinished: str | None
    """Why the run is not finished; None if it is."""
    epochs: float
    steps: int
    images_per_second: float | None
    parameters: int | None

    @property
    def seed(self) -> int:
        return self.description.recipe.seed


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in the seed alone. ``repeats``: those whose seed another has already, which
    count for no spread."""

    letter: str
    runs: tuple[ComparedRun, ...]
    repeats: tuple[ComparedRun, ...] = ()

    @property
    def counted(self) -> tuple[ComparedRun, ...]:
        """One finished run for each seed."""
        return tuple(r for r in self.runs if r.unfinished is None and r not in self.repeats)

    def values(self, split: str, metric: str) -> dict[int, float]:
        """By seed, where the metric has a value."""
        found = {r.seed: r.metrics.get(split, {}).get(metric, math.nan) for r in self.counted}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}


class Spread(NamedTuple):
    """``deviation``: over seeds, of n - 1 degrees of freedom; None for a single one."""

    mean: float
    deviation: float | None
    seeds: int


class Difference(NamedTuple):
    """Something that is not the same in all groups. ``values``: by letter, in words."""

    kind: Literal["recipe", "data", "network", "versions"]
    name: str
    values: dict[str, str]


@dataclass(frozen=True)
class Verdict:
    """Group ``b`` less group ``a`` in one metric. ``beyond``: whether the difference is beyond the
    seeds' spread (0 is not in the interval); None where the seeds cannot tell. ``better``: the
    better group's letter, where the metric is the task's own and the difference is beyond."""

    a: str
    b: str
    split: str
    metric: str
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    method: Literal["Welch", "paired"] | None
    seeds: tuple[int, int]
    beyond: bool | None
    better: str | None
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` gives. ``headline``: the task's own metric."""

    task: str
    headline: str
    lower_is_better: bool
    runs: tuple[ComparedRun, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    spreads: dict[tuple[str, str], dict[str, Spread]]
    """By (split, metric), then by letter."""
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    """What trains another seed, of each group that was trained and has one only."""

    @property
    def sentences(self) -> list[str]:
        """What is to be said of the headline, for each pair of groups and split. Of several pairs,
        those with a single seed have one sentence together."""
        said = [one for one in self.verdicts if one.metric == self.headline]
        if len(self.groups) < 3:
            return [one.sentence for one in said]
        single = [group.letter for group in self.groups if len(group.counted) == 1]
        told = [one.sentence for one in said if one.method is not None]
        if single:
            told.append(
                f"With one seed of {listed(single)} nothing can be said of their differences."
            )
        return told

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        letters = {id(run): group.letter for group in self.groups for run in group.runs}
        return {
            "task": self.task,
            "headline": self.headline,
            "lower_is_better": self.lower_is_better,
            "runs": [
                {
                    "run": str(run.path),
                    "group": letters[id(run)],
                    "seed": run.seed,
                    "unfinished": run.unfinished,
                    "epochs": run.epochs,
                    "steps": run.steps,
                    "images_per_second": run.images_per_second,
                    "parameters": run.parameters,
                    "command": run.description.command,
                    "metrics": {
                        split: {name: _number(value) for name, value in metrics.items()}
                        for split, metrics in run.metrics.items()
                    },
                }
                for run in self.runs
            ],
            "differences": [one._asdict() for one in self.differences],
            "metrics": [
                {
                    "split": split,
                    "metric": metric,
                    "groups": {letter: spread._asdict() for letter, spread in spreads.items()},
                }
                for (split, metric), spreads in self.spreads.items()
            ],
            "verdicts": [
                {**vars(one), "interval": one.interval and [*one.interval]} for one in self.verdicts
            ],
            "notes": list(self.notes),
            "commands": list(self.commands),
        }


def compare(runs: Sequence[str | Path]) -> Comparison:
    """What differs between runs, and whether their metrics differ beyond their seeds' spread.

    ``runs``: two folders or more that ``vidi train`` wrote, all of one task. Groups are named A, B
    … in the order of their first runs. Raises :class:`InputError` for fewer, for a folder that is
    no run, and for runs of different tasks.
    """
    if len(runs) < 2:
        raise InputError(
            f"To compare takes two runs or more; {'one is' if runs else 'none is'} named. Name "
            "their folders: vidi compare runs/a runs/b."
        )
    paths = [Path(run).expanduser() for run in runs]
    for k, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:k]]:
            raise InputError(f"{path} is named twice. Name each run once.")
    found = read_all(paths)
    task = found[0].description.recipe.task
    for run in found:
        if run.description.recipe.task != task:
            raise InputError(
                f"{found[0].name} is a run for {task}, and {run.name} one for "
                f"{run.description.recipe.task}; their metrics cannot be compared. Name runs of "
                "one task."
            )
    kind = tasks.find(task).Task
    lower = bool(getattr(kind, "lower_is_better", False))
    headline = str(kind.headline)
    groups = _groups(found)
    notes = [_not_finished(run, headline) for run in found if run.unfinished]
    for group in groups:
        for repeat in group.repeats:
            first = next(run for run in group.runs if run.seed == repeat.seed)
            same = (
                "and the same metrics" if first.metrics == repeat.metrics else "but other metrics"
            )
            notes.append(
                f"{repeat.name} has all of {first.name}, the seed too, {same}; it is left out of "
                "the spread."
            )
    notes += _precision_notes(groups)
    names = list(dict.fromkeys((s, m) for r in found for s in r.metrics for m in r.metrics[s]))
    spreads: dict[tuple[str, str], dict[str, Spread]] = {}
    for split, metric in names:
        values = {group.letter: group.values(split, metric) for group in groups}
        spreads[split, metric] = {k: _spread(v.values()) for k, v in values.items() if v}
    pairs = list(itertools.combinations(groups, 2))
    verdicts = [
        _verdict(a, b, split, metric, lower if metric == headline else None)
        for a, b in pairs
        for split, metric in names
        if a.values(split, metric) and b.values(split, metric)
    ]
    if len(pairs) > 1 and any(one.beyond is not None for one in verdicts):
        notes.append(
            f"{len(pairs)} pairs are compared, each by itself: where nothing differs, about one "
            "comparison in twenty is beyond the spread all the same."
        )
    return Comparison(
        task=task,
        headline=headline,
        lower_is_better=lower,
        runs=tuple(found),
        groups=tuple(groups),
        differences=tuple(_differences(groups)),
        spreads=spreads,
        verdicts=tuple(verdicts),
        notes=tuple(notes),
        commands=tuple(
            _another_seed(group)
            for group in groups
            if pairs and len(group.counted) == 1 and _is_trained(group.runs[0])
        ),
    )


# Reading


def read_all(paths: Sequence[Path]) -> list[ComparedRun]:
    """The runs in these folders, named by the folders' own names where these tell them apart, else
    by their paths. Raises :class:`InputError` for a folder that is no run."""
    short = [path.resolve().name for path in paths]
    names = short if len(set(short)) == len(short) else map(str, paths)
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> ComparedRun:
    directory = RunDirectory(path)
    description = directory.read_description()
    rows = read_metrics(path)
    end = next((row for row in reversed(rows) if row["event"] == "end"), None)
    evaluation = directory.read_evaluation()
    # A run that was made of others has nothing but its weights and, perhaps, their evaluation.
    finished = end is not None or (bool(evaluation) and not rows)
    if finished:
        metrics = {split: _values(body["metrics"]) for split, body in evaluation.items()}
    else:
        metrics = _best_so_far(rows, description.recipe.task)
    last: Mapping[str, Any] = next((row for row in reversed(rows) if "epoch" in row), {})
    return ComparedRun(
        path=path,
        name=name,
        description=description,
        rows=rows,
        metrics=metrics,
        unfinished=None if finished else _unfinished(rows),
        epochs=float(last.get("epoch", 0)),
        steps=max((int(row.get("step", 0)) for row in rows), default=0),
        images_per_second=None if end is None else end["images_per_second"],
        parameters=_parameters(directory.best),
    )


def _best_so_far(rows: Iterable[Mapping[str, Any]], task: str) -> dict[str, dict[str, float]]:
    kind = tasks.find(task).Task
    sign = -1 if getattr(kind, "lower_is_better", False) else 1
    seen = [_values(row["metrics"]) for row in rows if row["event"] == "evaluation"]
    seen = [metrics for metrics in seen if not math.isnan(metrics.get(kind.headline, math.nan))]
    return {"val": max(seen, key=lambda m: sign * m[kind.headline])} if seen else {}


def _unfinished(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "nothing is recorded in it"
    for row in reversed(rows):
        if row["event"] == "resume":
            break  # what was before that is past
        if row["event"] == "stopped":
            return str(row["why"]).rstrip(".")
        if row["event"] == "interrupted":
            return f"it was interrupted at step {row['step']:,} (go on with --resume)"
    step = max(int(row.get("step", 0)) for row in rows)
    return f"it is at step {step:,}, still training or killed"


def _not_finished(run: ComparedRun, headline: str) -> str:
    said = f"{run.name} is not finished: {run.unfinished}. It is in no mean"
    so_far = run.metrics.get("val", {}).get(headline)
    return f"{said}." if so_far is None else f"{said}; its best val {headline} is {so_far:.4f}."


def _values(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}


def _parameters(best: Path) -> int | None:
    """Counted in the header of the weights' file, without reading them."""
    import safetensors

    try:
        with safetensors.safe_open(str(best), framework="numpy") as opened:
            return sum(
                int(math.prod(opened.get_slice(name).get_shape()))
                for name in opened.keys()  # noqa: SIM118
                if name.rpartition(".")[2] not in BUFFERS
            )
    except (OSError, safetensors.SafetensorError):
        return None


# Groups and what differs


def _groups(runs: Sequence[ComparedRun]) -> list[Group]:
    parted: list[list[ComparedRun]] = []
    for alike in _by(runs, map(_same_but_seed, runs)):
        # A run without weights yet goes with the first that has some.
        known = next((run.parameters for run in alike if run.parameters is not None), None)
        for some in _by(alike, (run.parameters or known for run in alike)):
            # With one seed there is one split, so other samples are other data.
            parted += _by(some, map(_print_of, some)) if _is_ambiguous(some) else [some]
    parted.sort(key=lambda some: runs.index(some[0]))
    return [Group(_letter(k), tuple(some), _repeats(some)) for k, some in enumerate(parted)]


def _by(runs: Sequence[ComparedRun], keys: Iterable[object]) -> list[list[ComparedRun]]:
    parted: dict[object, list[ComparedRun]] = {}
    for run, key in zip(runs, keys, strict=True):
        parted.setdefault(key, []).append(run)
    return [*parted.values()]


def _same_but_seed(run: ComparedRun, but: Sequence[str] = ("seed",)) -> str:
    """What runs of one group have in common, as their folders have it from the start. A rate that
    was found hangs on the seed; that it was to be found does not."""
    told = run.description
    fields = {
        name: value
        for name, value, _ in flat(told.recipe)
        if name not in but and not name.startswith(NO_EFFECT)
    }
    if _is_rate_found(run):
        fields["lr"] = "find"
    data = {
        k: told.data.get(k)
        for k in ("root", "format", "samples", "left_out", "loss", "svd", "members")
    }
    return json.dumps([fields, told.classes, data], sort_keys=True)


def _is_rate_found(run: ComparedRun) -> bool:
    return bool(run.description.data.get("asked", {}).get("lr") == "find")


def _print_of(run: ComparedRun) -> str:
    return f"{run.description.data['fingerprint']} {run.description.data.get('proposals') or ''}"


def _is_ambiguous(runs: Iterable[ComparedRun]) -> bool:
    """Whether two runs of one seed saw different data."""
    prints: dict[int, set[str]] = {}
    for run in runs:
        prints.setdefault(run.seed, set()).add(_print_of(run))
    return any(len(seen) > 1 for seen in prints.values())


def _repeats(runs: Sequence[ComparedRun]) -> tuple[ComparedRun, ...]:
    seen, out = set(), []
    for run in runs:
        if run.unfinished is None and run.seed in seen:
            out.append(run)
        elif run.unfinished is None:
            seen.add(run.seed)
    return tuple(out)


def _letter(k: int) -> str:
    """A … Z, AA, AB …"""
    return ("" if k < 26 else _letter(k // 26 - 1)) + chr(ord("A") + k % 26)


def _differences(groups: Sequence[Group]) -> list[Difference]:
    """Row by row, what is not one and the same in all runs; the seed's part is left out."""
    each = [(group, run) for group in groups for run in group.runs]
    runs = [run for _, run in each]
    table: list[tuple[Any, str, dict[int, str]]] = []

    def row(kind: str, name: str, values: Iterable[Any]) -> None:
        table.append((kind, name, {id(r): _word(v) for r, v in zip(runs, values, strict=True)}))

    recipes = [{name: value for name, value, _ in flat(run.description.recipe)} for run in runs]
    detects = runs[0].description.recipe.task == "detection"
    for name in recipes[0]:
        if name == "lr":
            row("recipe", name, (_rate(group) or run.description.recipe.lr for group, run in each))
        elif name != "seed" and (detects or not name.startswith("detection.")):
            row("recipe", name, (recipe[name] for recipe in recipes))
    data = [run.description.data for run in runs]
    for name in ("root", "format"):
        row("data", name, (one[name] for one in data))
    # Where each seed holds out its own samples, that is the seed's part.
    if _is_ambiguous(runs) or not any(_is_split_by_seed(group) for group in groups):
        row("data", "fingerprint", (one["fingerprint"][:8] for one in data))
    for split in dict.fromkeys(s for one in data for s in one["samples"]):
        row("data", f"samples of {split}", (one["samples"].get(split, 0) for one in data))
    row("data", "left out", (len(one["left_out"]) for one in data))
    row("data", "classes", (_classes(run.description.classes) for run in runs))
    row("network", "parameters", (run.parameters or UNKNOWN for run in runs))
    row("network", "loss", (one.get("loss") or "the task's" for one in data))
    versions = [run.description.versions or {} for run in runs]
    for name in dict.fromkeys(v for one in versions for v in one):
        row("versions", name, (one.get(name) for one in versions))
    return [
        Difference(
            kind,
            name,
            {g.letter: _together(values[id(run)] for run in g.runs) for g in groups},
        )
        for kind, name, values in table
        if len({*values.values()} - {UNKNOWN}) > 1
    ]


def _together(words: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(word for word in words if word != UNKNOWN)) or UNKNOWN


def _rate(group: Group) -> str | None:
    """The rates that were found for a group's runs; None where one was given."""
    if not _is_rate_found(group.runs[0]):
        return None
    rates = [float(run.description.recipe.lr) for run in group.runs]
    ends = dict.fromkeys(map(_word, (min(rates), max(rates))))
    return f"{' to '.join(ends)} (found)"


def _precision_notes(groups: Sequence[Group]) -> list[str]:
    """auto times the precisions, and may choose otherwise for the next seed."""
    letters = {id(group.runs[0]): group.letter for group in groups}
    notes = []
    firsts = [group.runs[0] for group in groups]
    for alike in _by(firsts, [_same_but_seed(run, ("seed", "precision")) for run in firsts]):
        chosen = {letters[id(run)]: run.description.recipe.precision for run in alike}
        if len(set(chosen.values())) > 1:
            notes.append(
                f"{listed(chosen)} differ in precision alone ({', '.join(chosen.values())}), "
                "which auto chooses by timing: trained with one named (--precision fp32), their "
                "seeds would be one group."
            )
    return notes


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def _classes(classes: Sequence[str]) -> str:
    some = ", ".join(classes[:4]) + (" …" if len(classes) > 4 else "")
    return f"{len(classes)}: {some}"


def _word(value: Any) -> str:
    """A value as the command line has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        return " ".join(map(_word, value)) or "none"
    return str(value)


# Statistics


def _spread(values: Iterable[float]) -> Spread:
    found = np.array([*values], np.float64)
    return Spread(
        mean=float(found.mean()),
        deviation=float(found.std(ddof=1)) if len(found) > 1 else None,
        seeds=len(found),
    )


def _is_split_by_seed(group: Group) -> bool:
    """Whether each seed has samples of its own held out."""
    prints = [run.description.data["fingerprint"] for run in group.runs]
    return len(prints) > 1 and len(set(prints)) == len({run.seed for run in group.runs})


def _paired(a: Group, b: Group, seeds: tuple[set[int], set[int]]) -> bool:
    """Whether equal seeds have the same samples held out, and other seeds others."""
    if seeds[0] != seeds[1] or not (_is_split_by_seed(a) and _is_split_by_seed(b)):
        return False
    return not _is_ambiguous([*a.runs, *b.runs])


def _verdict(a: Group, b: Group, split: str, metric: str, lower: bool | None) -> Verdict:
    """``lower``: whether lower is better; None where nothing is said of that."""
    import scipy.stats

    of_a, of_b = a.values(split, metric), b.values(split, metric)
    x, y = np.array([*of_a.values()]), np.array([*of_b.values()])
    difference = float(y.mean() - x.mean())
    method: Literal["Welch", "paired"] | None = None
    interval, p = None, None
    if min(len(x), len(y)) > 1:
        paired = _paired(a, b, (set(of_a), set(of_b)))
        by_seed = [of_b[seed] - of_a[seed] for seed in of_a] if paired else []
        method = "paired" if paired else "Welch"
        constant = np.ptp(by_seed) == 0 if paired else np.ptp(x) == 0 and np.ptp(y) == 0
        if not constant:
            with warnings.catch_warnings():
                # One of the two may have no spread, which is no trouble to Welch's test.
                warnings.simplefilter("ignore", RuntimeWarning)
                if paired:
                    result = scipy.stats.ttest_1samp(by_seed, 0.0)
                else:
                    result = scipy.stats.ttest_ind(y, x, equal_var=False)
            bounds = result.confidence_interval(LEVEL)
            interval, p = (float(bounds.low), float(bounds.high)), float(result.pvalue)
    beyond = None if interval is None else not interval[0] <= 0 <= interval[1]
    better = None
    if beyond and lower is not None:
        better = b.letter if (difference < 0) == lower else a.letter
    verdict = Verdict(
        a=a.letter,
        b=b.letter,
        split=split,
        metric=metric,
        difference=difference,
        interval=interval,
        p=p,
        method=method,
        seeds=(len(x), len(y)),
        beyond=beyond,
        better=better,
        sentence="",
    )
    return dataclasses.replace(verdict, sentence=_sentence(verdict))


def _sentence(it: Verdict) -> str:
    what = f"{it.split} {it.metric}"
    size = abs(it.difference)
    more, less = (it.b, it.a) if it.difference > 0 else (it.a, it.b)
    apart = f"{more} is {size:.4f} above {less}" if size else f"{it.a} and {it.b} are equal"
    if it.method is None:
        if it.seeds == (1, 1):
            why = "with one seed each nothing can be said of that"
        else:
            alone = it.a if it.seeds[0] == 1 else it.b
            why = f"with one seed of {alone} nothing can be said of that"
        return f"{what}: {apart}, but {why}."
    if it.interval is None:
        return (
            f"{what}: {apart}, with every seed alike, so there is no spread to measure that by. "
            "More seeds, or more samples in the split, would tell."
        )
    low, high = it.interval
    how = f"Welch's t, {it.seeds[0]} and {it.seeds[1]} seeds"
    if it.method == "paired":
        how = f"paired by seed, since each holds out its own samples; {it.seeds[0]} seeds"
    if not it.beyond:
        return (
            f"{what}: no difference beyond the seeds' spread: {it.b} less {it.a} is "
            f"{it.difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}; {how})."
        )
    # The interval of the better less the worse, so that it reads as a gain.
    if it.better is not None:
        first, second = (it.b, it.a) if it.better == it.b else (it.a, it.b)
        said = f"{first} is better than {second} by"
    else:
        said = f"{more} is above {less} by"
    if it.difference < 0:
        low, high = -high, -low
    return f"{what}: {said} {size:.4f} (95 % interval {low:.4f} to {high:.4f}; {how})."


def _is_trained(run: ComparedRun) -> bool:
    """Not made of finished runs (an ensemble, compressed weights), which no training gives."""
    return not any(run.description.data.get(made) for made in ("members", "svd"))


def _another_seed(group: Group) -> str:
    """What trains one more run of the group, with the least seed that it has not."""
    run = group.runs[0]
    seed = next(s for s in itertools.count() if s not in {r.seed for r in group.runs})
    words = shlex.split(run.description.command)
    run_path = f"{run.path}-seed{seed}"
    if words[:2] not in (["vidi", "train"], ["__main__.py", "train"]):
        return f"vidi.train(…, seed={seed}, run={run_path!r})"  # it was trained from Python
    changed = {"--seed", "--run", "--run-dir"}
    length: list[str] = []
    if any(row["event"] == "resume" for row in run.rows):
        # Who resumes may have changed the length, and the command is the first one.
        changed.update(f"--{name}" for name in LENGTHS)
        fields = {name: value for name, value, _ in flat(run.description.recipe)}
        field = next(name for name in LENGTHS if fields[name] is not None)
        length = [f"--{field}", f"{fields[field]:.12g}"]
    kept, rest = ["vidi", "train"], iter(words[2:])
    for word in rest:
        name, equals, _ = word.partition("=")
        if name in changed:
            if not equals:
                next(rest, None)
        elif word != "--resume":
            kept.append(word)
    return shlex.join([*kept, *length, "--seed", str(seed), "--run", run_path])


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
