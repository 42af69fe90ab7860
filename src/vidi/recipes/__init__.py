"""Named recipes: ``vidi train DATA --recipe NAME``.

A recipe is a public function without arguments in a module of this package; it returns a
:class:`vidi.Recipe` whose values become the defaults of the flags. Its docstring states what it
reaches, on what hardware, in what time, and the command.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable

from vidi.errors import InputError
from vidi.recipe import Recipe


def names() -> list[str]:
    """All named recipes, file by file in the order of definition."""
    return list(_recipes())


def find(name: str) -> Callable[[], Recipe]:
    """The function of that name. Raises :class:`InputError`, with the nearest, if there is none."""
    known = _recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"There is no recipe {name!r}.{hint} `vidi list recipes` shows all of them."
        )
    return known[name]


def _recipes() -> dict[str, Callable[[], Recipe]]:
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    return {
        name: function
        for module in modules
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    }
