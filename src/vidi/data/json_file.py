"""A JSON file, read whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from vidi.data.images import unreadable
from vidi.errors import InputError


def read(path: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What the file holds. ``hook`` is called for each object as it is complete, the inner ones
    first, and gives what stands for it.

    Raises :class:`InputError` for what cannot be read or is damaged, with the line.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.loads(file.read(), object_hook=hook)
    except InputError:  # the hook's
        raise
    except OSError as error:
        raise InputError(unreadable(path, error)) from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: the JSON is damaged or cut short "
            f"({error.msg})."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}). Save it as such.") from error
    except RecursionError as error:
        raise InputError(f"{path} holds lists in lists beyond all measure.") from error
    except ValueError as error:
        raise InputError(f"{path} holds a number that cannot be read ({error}).") from error
