"""What a process of a test would do first: the server that it is forked from has it done already.

Starting Python and importing torch takes seconds, and the tests start dozens of such processes.
"""

import importlib
import pkgutil
import sys

import pytest  # noqa: F401

import vidi
from vidi.data.scenes.shapes import CLASSES, VARIANTS, table

for _module in pkgutil.walk_packages(vidi.__path__, "vidi."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)

ON_USE = "torchvision" not in sys.modules
"""Whether no module imports torchvision at once: that takes a second, for which a command that uses
none of its operators need not wait."""
importlib.import_module("torchvision")

for _kind in range(len(CLASSES)):  # which scenes are drawn with
    for _variant in range(VARIANTS):
        table(_kind, _variant)
