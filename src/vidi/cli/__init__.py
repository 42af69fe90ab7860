"""The command line. One file per verb, each with ``main(arguments) -> exit code``.

Exit codes: 0 done; 1 failed; 2 bad input or usage; 130 and 143 interrupted, with the state saved.
torch is imported by what a verb does, never by what it can be told, so that ``--help`` is instant.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from vidi.errors import InputError, RunError

VERBS = (
    "train",
    "eval",
    "predict",
    "export",
    "serve",
    "report",
    "doctor",
    "compare",
    "ensemble",
    "profile",
    "study",
    "convert",
    "proposals",
    "list",
    "demo",
)
"""In the order in which one meets them. A verb is the module of that name beside this one."""

ALIASES = {"val": "eval"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    # Not list(…): once the verb of that name is imported, it is this package's attribute.
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except InputError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return _say("Interrupted.", 130)
    except BrokenPipeError:
        # Whoever read the output (`vidi list models | head`) has seen enough. Python would
        # complain once more when it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from vidi import __version__

        print(f"vidi {__version__}")
        return 0
    verb = ALIASES.get(words[0], words[0])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, [*VERBS, *ALIASES], n=1)
        hint = f" Did you mean `vidi {near[0]}`?" if near else ""
        raise InputError(
            f"There is no verb {words[0]!r}; there are {', '.join(VERBS)}.{hint} `vidi --help` "
            "says what each does."
        )
    run: Callable[[list[str]], int] = importlib.import_module(f"{__name__}.{verb}").main
    return run(words[1:])


def _help() -> str:
    lines = [
        "usage: vidi VERB ...",
        "",
        "From a folder of images to a trained, understood and shipped vision network.",
        "",
    ]
    for verb in VERBS:
        text = importlib.import_module(f"{__name__}.{verb}").__doc__ or ""
        lines.append(f"  {verb:<11}{text.splitlines()[0]}")
    lines += [
        "",
        "`vidi VERB --help` shows the verb's options. `vidi --version` shows the version.",
    ]
    return "\n".join(lines)


def _say(text: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    who = "vidi" if rank == "0" else f"vidi (process {rank})"
    print(f"{who}: {text}", file=sys.stderr)
    return code
