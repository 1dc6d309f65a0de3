"""The site: `sphinx-build -W -b html docs site`. Packages: `pip install '.[docs]'`."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generated

generated.write()

project = "antibackdoor"
author = "The antibackdoor authors"
version = release = installed("antibackdoor")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
nitpicky = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False  # `numpy.str_` would be taken for a link

html_theme = "furo"
html_title = "antibackdoor"
html_show_sphinx = False
html_copy_source = False

# Files outside of docs/ that are pages of the site too; on a code host their own places are right.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changes.md",
    "benchmarks/NOTEBOOK.md": "project/notebook.md",
}
ROOT = Path(__file__).parent
LINK = re.compile(r"\]\(((?!https?:)[^)#\s]+)(#[^)\s]*)?\)")


def _links(_app: object, name: str, text: list[str]) -> None:
    """Links as they are right on a code host, turned into links of the site."""
    here = (ROOT / name).parent
    source = next((page for page, target in PAGES.items() if target.removesuffix(".md") == name != "index"), None)
    base = (ROOT.parent / source).parent if source else here
    if source:
        text[0] = (ROOT.parent / source).read_text(encoding="utf-8")

    def moved(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        target = (base / path).resolve()
        inside = target.relative_to(ROOT.parent).as_posix() if target.is_relative_to(ROOT.parent) else ""
        if inside in PAGES:
            target, anchor = ROOT / PAGES[inside], "" if inside == "README.md" else anchor
        elif target.is_dir() and (target / "index.md").exists():
            target = target / "index.md"
        if not target.is_relative_to(ROOT) or not target.is_file():
            return match[0]
        return f"]({os.path.relpath(target, here)}{anchor})"

    text[0] = LINK.sub(moved, text[0])


def setup(app: object) -> None:
    """Hook the links."""
    app.connect("source-read", _links)  # type: ignore[attr-defined]
