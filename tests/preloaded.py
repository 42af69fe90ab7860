"""What a process of a test would import first: the server that it is forked from has it already.

Starting Python and importing torch takes seconds, and the tests start dozens of such processes.
"""

import importlib
import pkgutil

import pytest  # noqa: F401
import torchvision  # noqa: F401

import vidi
from vidi.data.scenes.shapes import CLASSES, VARIANTS, table

for _module in pkgutil.walk_packages(vidi.__path__, "vidi."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)

for _kind in range(len(CLASSES)):  # which scenes are drawn with
    for _variant in range(VARIANTS):
        table(_kind, _variant)
