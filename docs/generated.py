"""The pages of the site that are made from the code: commands, Python, columns of tables. `conf.py` calls `write`."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

import antibackdoor
from antibackdoor.app.methods import TABLES
from antibackdoor.cli.app import build_app
from antibackdoor.protocols import CRITERIA, STATUSES

FOLDER = Path(__file__).parent / "reference"
WIDTH = 96
CHOICES = {"train": "--defense", "scan": "--detector", "purify": "--method", "poison": "--attack"}


def help_text(*arguments: str) -> str:
    """What `antibackdoor ... --help` prints."""
    words = [*arguments, "--help"]
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False, color_system=None)
    build_app(words).help_print(words[:-1], console=console)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined,no-any-return]


def commands() -> str:
    """Every command with its flags, and the flags of every method."""
    parts = ["# Commands\n", "Each page of `--help`, as it is.\n"]
    app = build_app([])
    names = [name for name in app if not name.startswith("-")]
    for name in sorted(names):
        parts.append(f"## antibackdoor {name}\n\n```text\n{help_text(name)}\n```\n")
    parts.append("## Flags of single methods\n")
    for table, command in zip(TABLES, ("train", "scan", "purify"), strict=True):
        for method in sorted(table):
            words = (command, CHOICES[command], method)
            shown = _method_panel(help_text(*words))
            parts.append(f"### antibackdoor {' '.join(words)}\n\n```text\n{shown}\n```\n")
    return "\n".join(parts)


def _method_panel(text: str) -> str:
    """The part of a help page that is about the method."""
    start = text.find("╭─ Method")
    return text[start:] if start >= 0 else text


def python() -> str:
    """Every public name with its docstring."""
    homes = {name: home for home, names in antibackdoor._HOMES.items() for name in names}
    parts = ["# Python\n", "Everything on this page can be imported from `antibackdoor`.\n"]
    for name in sorted(antibackdoor.__all__, key=str.lower):
        value = getattr(antibackdoor, name)
        if isinstance(value, dict):
            parts.append(f"## {name}\n\n{', '.join(f'`{key}`' for key in value)}\n")
            continue
        kind, members = ("class", "\n   :members:") if isinstance(value, type) else ("function", "")
        directive = f".. auto{kind}:: antibackdoor.{homes[name]}.{name}{members}"
        parts.append(f"## {name}\n\n```{{eval-rst}}\n{directive}\n```\n")
    return "\n".join(parts)


COLUMNS = {
    "id": "Name of the sample: its path inside the data set, or its row.",
    "given_label": "Label that came with the data, as a number; class names are in the file's metadata.",
    "suspicion": "Higher is more suspicious. A probability where the method gives one.",
    "status": f"One of {', '.join(STATUSES)}. Isolated samples are kept out of training, relabeled ones return under "
    "the suggested label, cleaned ones return under their own label without the suspected trigger.",
    "criterion": f"Why: one of {', '.join(CRITERIA)}.",
    "suggested_label": "Label that the method believes in.",
    "margin": "Log-odds behind the suspicion, where the method has them.",
    "prediction": "What the delivered model says. Not in scans.",
    "confidence": "Probability of that prediction, in [0, 1]. Not in scans.",
}


def table() -> str:
    """The columns of samples.parquet."""
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in COLUMNS.items())
    head = "# Columns of samples.parquet\n\nOne row per sample, in the order of the data.\n\n"
    return f"{head}| column | meaning |\n| --- | --- |\n{rows}\n"


def write() -> None:
    """Write the pages that are not up to date."""
    for name, text in (("commands.md", commands()), ("api.md", python()), ("samples-table.md", table())):
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
