"""From a template of this folder to a page that shows whatever names a data set has as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from antibackdoor.runs.atomic import write_bytes


def write_page(out: Path, template: str, **values: Any) -> None:
    """Write a page: everything is escaped, and a value that the template wants and does not get is an error."""
    environment = Environment(
        loader=PackageLoader("antibackdoor.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(**values)
    write_bytes(out, html.encode("utf-8", "backslashreplace"))
