"""Imports run strictly downward, and what must start at once does not know torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vidi

SOURCE = Path(vidi.__file__).parent

LAYERS = [
    {"errors"},
    {"types"},
    {"recipe"},
    {"recipes", "ops"},
    {"data", "models"},
    {"tasks"},
    {"engine"},
    {"doctor"},
    {"report"},
    {"deploy"},
    {"api"},
    {"studies"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that are imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            # `from vidi import data` imports vidi.data; `from vidi.x import name` vidi.x at least.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def upward(text: str, part: str) -> list[str]:
    """The imports in a file of ``vidi.<part>`` that do not run downward."""
    tree = ast.parse(text)
    bad = []
    for name in imports(tree, f"vidi.{part}"):
        words = name.split(".")
        if words[0] != "vidi" or words[1:] == ["__version__"] or len(words) == 1:
            continue
        target = words[1]
        assert target in HEIGHT, f"vidi.{target} stands in no layer: add it to LAYERS"
        if target != part and HEIGHT[target] >= HEIGHT[part]:
            bad.append(name)
    for node in ast.walk(tree):  # `import vidi` gives every name of the package
        match node:
            case ast.Attribute(value=ast.Name(id="vidi"), attr=name) if name != "__version__":
                bad.append(f"vidi.{name}")
    return bad


FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_downward(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert part in HEIGHT, f"vidi.{part} stands in no layer: add it to LAYERS"
    assert upward(path.read_text(), part) == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("from vidi.models import resnet18", "data"),
        ("from vidi import data", "models"),
        ("def f():\n    import vidi.engine.train", "tasks"),
        ("from ..cli import main", "report"),
        ("import vidi\nvidi.load('x')", "engine"),
    ],
)
def test_an_import_upward_or_sideways_is_found(text: str, part: str) -> None:
    assert upward(text, part)


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.relative_to(SOURCE).parts[0] in {"types.py", "recipe.py", "errors.py"}]
    + [p for p in FILES if p.relative_to(SOURCE).parts[0] in {"data", "recipes"}],
    ids=lambda p: str(p.relative_to(SOURCE)),
)
def test_nouns_and_data_know_no_torch(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), "vidi")}
    assert not used & {"torch", "torchvision"}


def test_importing_vidi_is_instant() -> None:
    """The names are there, and what they need is imported when they are used."""
    code = (
        "import sys, vidi; vidi.Recipe(epochs=3.0); vidi.InputError; vidi.models; "
        "assert {'train', 'load', 'open', 'models'} <= set(dir(vidi)); "
        "print(*(m for m in ('torch', 'cv2', 'matplotlib', 'sklearn') if m in sys.modules)); "
        "vidi.models.resnet20"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", vidi.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(vidi, name) is not None
    assert name in dir(vidi)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vidi.trian  # noqa: B018
