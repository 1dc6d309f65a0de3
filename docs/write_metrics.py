"""Write `docs/metrics.md`: every key of `metrics.json`, and what it means.

    python docs/write_metrics.py             write the page
    python docs/write_metrics.py --check     exit with 1 if the page is not up to date

The common keys are those of `antibackdoor.runs.metric_keys`; the facts of a method are the fields of its dataclass of
facts, with the words of its docstring.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from antibackdoor.app.methods import TABLES, facts_of
from antibackdoor.cli.flags import descriptions
from antibackdoor.runs.metric_keys import METRIC_GROUPS

PAGE = Path(__file__).with_name("metrics.md")
INTRODUCTION = """\
# Keys of metrics.json

`metrics.json` holds the results of a run: one flat JSON object of numbers, strings, booleans, null, and lists of these.
Rates are fractions in [0, 1], counts start with `n_`, times are in seconds. Values that are not finite are null. A key
is present only if it was measured. `evaluate` adds keys and leaves the others unchanged.

This page is written by `python docs/write_metrics.py`.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, keys in METRIC_GROUPS.items():
        parts.append(f"## {title}\n\n{table(keys)}")
    parts.append("## Facts of single methods\n\nBesides the common keys, a method reports facts of its own.\n")
    for facts, methods in told_by().items():
        about = descriptions(facts)
        named = ", ".join(f"`{name}`" for name in methods)
        parts.append(f"### {named}\n\n{table({part.name: about.get(part.name, '') for part in fields(facts)})}")
    return "\n".join(parts)


def told_by() -> dict[type[Any], list[str]]:
    """Each dataclass of facts, and the methods that return it."""
    found: dict[type[Any], list[str]] = {}
    for methods in TABLES:
        for name, kind in methods.items():
            for facts in facts_of(kind):
                found.setdefault(facts, []).append(name)
    return found


def table(keys: Mapping[str, str]) -> str:
    """Keys and meanings in Markdown."""
    lines = [f"| `{key}` | {text.replace('|', chr(92) + '|')} |" for key, text in keys.items()]
    return "\n".join(["| Key | Meaning |", "|---|---|", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is not up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.name} is not up to date; run `python docs/write_metrics.py`")


if __name__ == "__main__":
    main()
