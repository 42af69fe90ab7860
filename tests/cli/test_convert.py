"""`vidi convert` and `vidi list formats`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidi.data import formats
from vidi.data.formats import masks, table
from vidi.data.open import open_data

Ask = Callable[..., tuple[int, str, str]]


def left(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != "vidi-cache")


def test_convert_says_where_to_find_it(ask: Ask, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "there"
    code, said, err = ask("convert", photos, "--to", "table", "--out", out)
    assert code == 0, err
    assert said.splitlines() == [
        f"{out}/labels.csv: classification (table), train 24",
        "  table holds all that was read.",
    ]
    assert "a folder per class" in err
    assert left(out) == ["labels.csv", "pictures"]
    assert left(out.parent) == ["there"], "nothing else is left"
    data = open_data(out / "labels.csv", carve_val=False)
    first = next(i for i in range(24) if data.images.key(i).endswith("stripes_00.jpg"))
    stored = Path(data.images.root) / data.images.key(first)  # type: ignore[attr-defined]
    assert stored.read_bytes() == (photos / "stripes/00.jpg").read_bytes()
    (tmp_path / "empty").mkdir()
    code, _, err = ask(
        "convert", out / "labels.csv", "--to", "folders", "--out", tmp_path / "empty"
    )
    assert code == 0, err
    assert left(tmp_path / "empty/train") == ["circles", "stripes"]


def test_json_and_what_is_lost(ask: Ask, photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.jpg"):
        Image.open(path).resize((32, 32)).save(path)
    words = ["convert", photos, "--to", "idx", "--out", tmp_path / "out", "--json"]
    code, said, err = ask(*words)
    assert code == 0, err
    found = json.loads(said)
    assert found == {
        "data": str(photos),
        "task": "classification",
        "from": "folders",
        "to": "idx",
        "out": str(tmp_path / "out"),
        "samples": {"train": 24},
        "classes": ["circles", "stripes"],
        "lost": [
            "24 images lost their colours.",
            "2 names of classes were lost: a class is its number, from 0.",
        ],
    }
    code, said, _ = ask("convert", photos, "--to", "idx", "--out", tmp_path / "again")
    assert "  24 images lost their colours." in said.splitlines()


def test_embedded_data_can_be_written_out(ask: Ask, tmp_path: Path) -> None:
    code, said, err = ask("convert", "digits", "--to", "idx", "--out", tmp_path / "out")
    assert code == 0, err
    assert "train 1,442, test 355" in said
    a, b = open_data("digits", carve_val=False), open_data(tmp_path / "out", carve_val=False)
    assert a.classes == b.classes
    np.testing.assert_array_equal(a[int(a.splits["test"][7])].image, b[1442 + 7].image)


def test_one_set_of_files_is_read_for_the_task_of_the_format(ask: Ask, tmp_path: Path) -> None:
    """COCO's objects have boxes and masks; boxes are what is read unless masks are asked for."""
    words = ["scenes:detection,n=2,val=1,test=0,size=48", "--to", "coco", "--out"]
    code, _, err = ask("convert", *words, tmp_path / "both")
    assert code == 0, err
    assert open_data(tmp_path / "both", carve_val=False).task == "detection"
    words = ["--to", "masks", "--out", tmp_path / "out"]
    code, said, err = ask("convert", tmp_path / "both", *words)
    assert code == 0, err
    assert "segmentation (masks)" in said
    assert masks.sniff(str(tmp_path / "out")) is not None
    words = ["--to", "masks", "--out", tmp_path / "other", "--task", "detection"]
    code, _, err = ask("convert", tmp_path / "both", *words)
    assert code == 2
    assert "holds data for detection, and masks is a format for segmentation" in err


def test_data_that_no_training_takes_converts_too(ask: Ask, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (photos / "circles").rename(tmp_path / "test/circles")
    (tmp_path / "test").rename(photos / "test")
    (photos / "stripes").rename(tmp_path / "stripes")
    code, said, err = ask("convert", photos, "--to", "table", "--out", tmp_path / "out")
    assert code == 0, err
    assert "labels.csv: classification (table), test 12" in said


def test_several_labels_go_into_a_table(ask: Ask, tmp_path: Path) -> None:
    table.fake(tmp_path / "in")
    rows = (tmp_path / "in/labels.csv").read_text().splitlines()
    text = "\n".join(["path,labels", *(row.split(",")[0] + ",x;y" for row in rows[1:])])
    (tmp_path / "in/labels.csv").write_text(text)
    source = tmp_path / "in/labels.csv"
    code, said, err = ask("convert", source, "--to", "table", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(said)["task"] == "multilabel"
    code, _, err = ask("convert", source, "--to", "folders", "--out", tmp_path / "no")
    assert code == 2
    assert "several labels an image" in err
    assert left(tmp_path) == ["in", "out"], "nothing is left of what failed"


def wrong(words: list[object], sentence: str, ask: Ask) -> None:
    code, said, err = ask("convert", *words)
    assert (code, said) == (2, "")
    assert sentence in err


def test_wrong_words(ask: Ask, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrong([photos, "--to", "tabel", "--out", out], "no format 'tabel'; there are boxes_table", ask)
    wrong([photos, "--to", "tabel", "--out", out], "Did you mean table?", ask)
    wrong([photos, "--to", "digits", "--out", out], "digits is embedded data", ask)
    wrong(
        [photos, "--to", "coco", "--out", out], "holds data for classification, and coco is a", ask
    )
    wrong([photos, "--to", "coco", "--out", out], "cifar, folders, idx, table", ask)
    wrong([tmp_path / "gone", "--to", "table", "--out", out], "There is no", ask)
    words = [photos, "--to", "table", "--out", out, "--task", "detection"]
    wrong(words, "holds data for classification (folders), not for detection", ask)
    wrong([photos, "--to", "cifar", "--out", out], "are not 32 × 32", ask)
    assert left(tmp_path) == ["photos"]


def test_a_folder_that_is_not_free(ask: Ask, photos: Path, tmp_path: Path) -> None:
    wrong([photos, "--to", "table", "--out", photos], "exists and is not empty", ask)
    (tmp_path / "file").write_text("mine")
    wrong([photos, "--to", "table", "--out", tmp_path / "file"], "exists and is no folder", ask)
    wrong([photos, "--to", "table", "--out", tmp_path / "file/below"], "cannot be written", ask)
    wrong([photos, "--to", "table", "--out", photos / "new"], "would become a part of it", ask)
    assert (tmp_path / "file").read_text() == "mine"
    assert left(tmp_path) == ["file", "photos"]


def test_what_breaks_leaves_nothing(
    ask: Ask, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table.write

    def broken(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "write", broken)
    code, _, _ = ask("convert", photos, "--to", "table", "--out", tmp_path / "out")
    assert code == 130
    assert left(tmp_path) == ["photos"]


def test_list_formats_gives_name_task_and_summary(ask: Ask) -> None:
    code, said, _ = ask("list", "formats")
    assert code == 0
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert list(lines) == formats.names()
    assert lines["masks"].split()[1:3] == ["segmentation", "Folders"]
    assert lines["coco"].split()[1] == "detection"
    assert lines["scenes"].split()[1:3] == ["any", "task"]
    for name, line in lines.items():
        assert getattr(formats.find(name), "TASK", "any") == line.split()[1]


def test_the_documentation_names_every_format() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/formats.md").read_text(encoding="utf-8")
    for name in formats.names():
        assert f"`{name}`" in text, name
