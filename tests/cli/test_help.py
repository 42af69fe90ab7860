"""What --help says, and that it says it at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vidi import cli
from vidi.recipe import Recipe, flat

HEAVY = ("torch", "torchvision", "cv2", "sklearn", "skimage", "scipy", "matplotlib", "timm")


def ask(*words: str) -> tuple[str, set[str]]:
    """(stdout of the command, heavy modules that it imported)."""
    code = f"""
import sys
from vidi.cli import main
try:
    code = main({list(words)!r})
except SystemExit as stop:
    code = stop.code
print("@", code, *(m for m in {HEAVY!r} if m in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"COLUMNS": "80", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    text, _, tail = done.stdout.rpartition("@")
    exit_code, *heavy = tail.split()
    assert exit_code in ("0", "None"), done.stdout + done.stderr
    return text, set(heavy)


@pytest.mark.parametrize("words", [("--help",), *((verb, "--help") for verb in cli.VERBS)])
def test_help_imports_nothing_heavy_and_fits_80_columns(words: tuple[str, ...]) -> None:
    text, heavy = ask(*words)
    assert heavy == set()
    assert text.startswith("usage: vidi")
    assert max(map(len, text.splitlines())) <= 80


def test_the_overview_names_every_verb() -> None:
    text, _ = ask("--help")
    for verb in cli.VERBS:
        assert f"\n  {verb} " in text


def test_every_field_of_the_recipe_is_a_flag() -> None:
    text, _ = ask("train", "--help")
    for name, _, _ in flat(Recipe()):
        assert f"--{name.replace('_', '-')}" in text
    order = [text.index(flag) for flag in ("--model", "--data.val-fraction", "--logging.every")]
    assert order == sorted(order), "the most used flags come first"
    assert "{None}" not in text
    assert "FLOAT|auto" in text


def test_a_named_recipe_gives_the_defaults() -> None:
    text, heavy = ask("train", "--recipe", "cifar_he2016", "--help")
    assert "(default: 182.0)" in text
    assert heavy == set()


def test_version() -> None:
    import vidi

    assert ask("--version")[0] == f"vidi {vidi.__version__}\n"


def test_one_process_may_run_several_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """The verbs' modules, `list` and `eval`, must not get in the way of Python's own."""
    for _ in range(2):
        assert cli.main(["--help"]) == 0
        assert cli.main(["list", "recipes"]) == 0
    assert "cifar_he2016" in capsys.readouterr().out
