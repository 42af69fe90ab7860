"""Say what is wrong with data or a training run, and what to do."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from vidi.cli import doctor_run
from vidi.cli.arguments import parse
from vidi.errors import InputError

if TYPE_CHECKING:
    from vidi.data.audit import Audit, Finding
    from vidi.data.dataset import Dataset

SHOWN = 24
"""Samples on a contact sheet of a split, and half as many on that of a finding."""
NAMED = 5
"""Samples that the text names of a finding; the JSON names more."""


@dataclass(frozen=True)
class OfData:
    """To audit a data set (DATA)."""

    task: Annotated[str, arg(metavar="T")] = "auto"
    """The task to read it for, where one set of files serves several."""
    threads: Annotated[int | None, arg(metavar="N")] = None
    """Threads that read. none = as many as there are processors."""


@dataclass(frozen=True)
class OfRun:
    """To look into a training run (RUN)."""

    records_only: FlagCreatePairsOff[bool] = False
    """Go by what the run wrote down, and open neither its data nor its weights."""
    overfit_one_batch: FlagCreatePairsOff[bool] = False
    """Can the network learn one batch by heart? If not, it or its labels are at fault."""
    lr_range: FlagCreatePairsOff[bool] = False
    """Which learning rates does it bear? Measures the loss at rising ones, and suggests one."""
    gradcheck: FlagCreatePairsOff[bool] = False
    """Is its gradient right? Compares backpropagation with finite differences in float64. Takes the name of a network, or package.module:function, in the place of a run, too."""  # noqa: E501
    hardest: FlagCreatePairsOff[bool] = False
    """Which samples have the highest loss? Wrong labels are among the first."""
    slices: FlagCreatePairsOff[bool] = False
    """Where is it worse than elsewhere? The metric by class, size, brightness."""


@dataclass(frozen=True)
class Doctor:
    """Audit a data set before training, or find out why a training run went as it did.

    vidi doctor photos/ --out checked/

    vidi doctor runs/photos-resnet18 --out checked/
    """

    subject: Annotated[Positional[str], arg(metavar="DATA|RUN")]
    """What `vidi train` takes (a folder, a CSV, the name of embedded data); or a run's folder."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """Write pictures and a JSON file here: contact sheets and audit.json of data; of a run the curves that its findings go by, and doctor.json."""  # noqa: E501
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout; all else goes to stderr."""
    data: OmitArgPrefixes[OfData] = field(default_factory=OfData)
    run: OmitArgPrefixes[OfRun] = field(default_factory=OfRun)


def main(arguments: Sequence[str]) -> int:
    """0 once it was looked at, whatever was found; 2 for what cannot be opened at all."""
    told = parse(Doctor, arguments, prog="vidi doctor")
    run = doctor_run.run_of(told.subject)
    given = [name for name, on in vars(told.run).items() if on]
    if run is not None or given == ["gradcheck"]:
        if told.data != OfData():
            raise InputError("--task and --threads are for a data set, not for a run.")
        return doctor_run.main(told, run)
    if given:
        raise InputError(
            f"{told.subject} is no run, and --{given[0].replace('_', '-')} is for one: the folder "
            "that `vidi train` wrote, for example runs/digits-resnet20."
        )
    threads = told.data.threads
    if threads is not None and threads < 1:
        raise InputError(f"--threads is {threads}; at least 1 is needed.")

    from vidi.data.audit import Audit, audit, opened

    dataset, refused = opened(told.subject, told.data.task)
    if dataset is None:
        found = Audit(tuple(refused))
    else:
        result = audit(dataset, threads=threads, progress=_progress())
        found = Audit((*refused, *result.findings), result.statistics)
    pictures = _write(dataset, found, told) if told.out is not None else []
    if told.json:
        print(json.dumps(_object(dataset, found, told, pictures)))
    else:
        _print(dataset, found, pictures)
    return 2 if dataset is None else 0


def _progress() -> Callable[[int, int], None] | None:
    """A line on a terminal that counts the samples."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, n: int) -> None:
        print(f"\r{done:,} of {n:,} samples", end="\n" if done == n else "", file=sys.stderr)

    return show


def _object(
    dataset: Dataset | None, found: Audit, told: Doctor, pictures: list[Path]
) -> dict[str, Any]:
    return {
        "data": told.subject,
        "task": None if dataset is None else dataset.task,
        "format": None if dataset is None else dataset.format,
        "notes": [] if dataset is None else dataset.notes,
        "counts": found.counts(),
        "findings": [finding.as_json() for finding in found.findings],
        "statistics": found.statistics,
        "pictures": [str(path) for path in pictures],
    }


def _print(dataset: Dataset | None, found: Audit, pictures: list[Path]) -> None:
    if dataset is not None:
        print(dataset)
        for line in _numbers(found.statistics):
            print(line)
    for finding in found.findings:
        print()
        print(f"{finding.severity.upper()}  {finding.code}  ({finding.count:,})")
        for label, text in (
            ("", finding.what),
            ("effect: ", finding.effect),
            ("do: ", finding.advice),
        ):
            print(textwrap.indent(textwrap.fill(label + text, 94, break_long_words=False), "  "))
        for key, detail in finding.samples[:NAMED]:
            print(f"    {key}" + (f": {detail}" if detail and detail != key else ""))
        if finding.of > min(NAMED, len(finding.samples)):
            print(f"    and {finding.of - min(NAMED, len(finding.samples)):,} more")
    print()
    counts = found.counts()
    if found.findings:
        print(", ".join(f"{name}: {n}" for name, n in counts.items()) + " (kinds of findings).")
    else:
        print("Nothing was found.")
    for path in pictures:
        print(f"wrote {path}")


def _numbers(statistics: dict[str, Any]) -> list[str]:
    lines = []
    if "height" in statistics:
        width, height = statistics["width"], statistics["height"]
        sizes = statistics["sizes"]
        spread = (
            f"{width['min']:g} × {height['min']:g} pixels"
            if sizes == 1
            else f"{width['min']:g} to {width['max']:g} wide, {height['min']:g} to "
            f"{height['max']:g} high, {sizes:,} sizes"
        )
        lines.append(f"images: {spread}; {statistics['grey']:,} are grey")
        mean, std = (", ".join(f"{v:.3f}" for v in statistics[name]) for name in ("mean", "std"))
        lines.append(f"red, green, blue: mean {mean}; deviation {std}")
    if "boxes" in statistics:
        boxes = statistics["boxes"]
        lines.append(
            f"boxes: {boxes['count']:,}, {boxes['per_image']['min']:g} to "
            f"{boxes['per_image']['max']:g} an image; the median is {boxes['width']['median']:.0f} "
            f"× {boxes['height']['median']:.0f} pixels"
        )
    if "mask" in statistics:
        lines.append(f"masks: {statistics['mask']['ignored']:.1%} of the pixels are ignored")
    if "flow" in statistics:
        flow = statistics["flow"]
        fits = "" if flow["ratio"] is None else (
            f"; along it the frames differ by {flow['ratio']:.0%} of what they do without"
        )  # fmt: skip
        lines.append(
            f"flow: up to {flow['largest']['max']:.0f} pixels, {flow['valid']:.0%} valid{fits}"
        )
    if "edges" in statistics:
        edges = statistics["edges"]
        lines.append(
            f"edges: {edges['share']:.1%} of the pixels, {edges['annotators']['min']:g} to "
            f"{edges['annotators']['max']:g} annotators"
        )
    return lines


def _write(dataset: Dataset | None, found: Audit, told: Doctor) -> list[Path]:
    """audit.json, a sheet of each split, and one of each finding that names samples."""
    assert told.out is not None
    folder = Path(told.out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --out names a folder for the pictures.")
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    if dataset is not None:
        for split, ids in dataset.splits.items():
            step = max(1, len(ids) // SHOWN)
            some = [int(i) for i in ids[::step][:SHOWN]]
            pictures += _sheet(
                dataset, some, {}, folder / f"samples-{split}.png", f"{split} ({len(ids):,})"
            )
        # Found by key, since a finding is text; only what is shown is looked for.
        wanted = {key for f in found.findings for key in _keys(f)}
        every = (int(i) for ids in dataset.splits.values() for i in ids)
        at = {k: i for i in every if (k := dataset.images.key(i)) in wanted} if wanted else {}
        for finding in found.findings:
            rows = [at[key] for key in _keys(finding) if key in at]
            if rows:
                details = dict(finding.samples)
                title = f"{finding.code}: {finding.what}"
                path = folder / f"{finding.severity}-{finding.code}.png"
                # Whether two are alike is seen without what is drawn over them.
                bare = bool(finding.twins) and "conflict" not in finding.code
                pictures += _sheet(dataset, rows, details, path, title, bare=bare)
    path = folder / "audit.json"
    path.write_text(json.dumps(_object(dataset, found, told, pictures), indent=1), "utf-8")
    return pictures


def _keys(finding: Finding) -> list[str]:
    """The samples on a finding's sheet; of two that are alike both, beside each other."""
    keys = [key for key, _ in finding.samples[: SHOWN // 2]]
    return [k for both in zip(keys, finding.twins, strict=False) for k in both] or keys


def _sheet(
    dataset: Dataset,
    rows: list[int],
    details: dict[str, str],
    path: Path,
    title: str,
    *,
    bare: bool = False,
) -> list[Path]:
    from vidi.report import contact
    from vidi.types import Sample

    samples, captions = [], []
    for i in rows:
        try:
            sample = dataset.sample(i)
        except InputError:
            continue  # told as a finding: there is nothing to draw
        samples.append(Sample(key=sample.key, image=sample.image) if bare else sample)
        said = details.get(sample.key) or _labelled(dataset, sample.label)
        captions.append(f"{sample.key}\n{said}" if said else sample.key)
    if not samples:
        return []
    contact.sheet(samples, captions, dataset.classes, path, title=title, palette=dataset.palette)
    return [path]


def _labelled(dataset: Dataset, label: Any) -> str:
    if label is None:
        return ""
    if isinstance(label, int):
        return dataset.classes[label] if 0 <= label < len(dataset.classes) else str(label)
    return " + ".join(name for name, on in zip(dataset.classes, label, strict=True) if on) or "none"
