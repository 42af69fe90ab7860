"""The site of these pages: `make docs` builds it into `_build/html`, without a network.

The pages are Markdown, which a repository host shows as it is; MyST reads it for Sphinx.
"""

import re
from typing import Any

import vidi

project = "vidi"
author = "The vidi authors"
copyright = "the vidi authors, Apache 2.0"
version = release = vidi.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
highlight_language = "text"  # of blocks that name no language: mostly what a command prints

myst_heading_anchors = 3  # so that links such as formats.md#boundaries have a target

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they stand in the docstrings, with shapes and units
autodoc_class_signature = "separated"  # a dataclass is said by its fields
autodoc_default_options = {"exclude-members": "__init__"}

html_theme = "furo"
html_title = "vidi"
html_static_path = ["_static"]
html_css_files = ["vidi.css"]
html_copy_source = False
html_show_sphinx = False


def beside_the_pages(app: Any, page: str, source: list[str]) -> None:
    """A link to a Markdown file outside of docs/, such as ../benchmarks/RESULTS.md, gives the file
    as it is: it is no page of the site."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)(#[^)]*)?\)", r"](path:\1)", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", beside_the_pages)
