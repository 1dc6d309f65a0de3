"""What the terminal is told: the verdict, what to do next, the numbers, and how data were read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from antibackdoor.cli.signals import is_helper_process
from antibackdoor.errors import spelled_out

ISOLATES = {0x2068: None, 0x2069: None}  # invisible characters around names; the terminal shows names as they are
MOST_NAMES = 20  # of a list on the terminal; metrics.json has all


def told(message: str) -> None:
    print(spelled_out(message), file=sys.stderr, flush=True)


def tell_reading(loaded: Any) -> None:
    """Say what was assumed of the data, done to them, or left out, before hours of work rest on it."""
    if not is_helper_process():
        for sentence in loaded.told():
            told(sentence)


def print_verdict(metrics: dict[str, Any], run: Path, data: Path) -> None:
    """The answer in a sentence, as in the report, and what can be done next."""
    from antibackdoor.report.next_steps import next_steps
    from antibackdoor.report.words import verdict

    answer = verdict(metrics)
    print(spelled_out(" ".join((answer.title, *answer.sentences[:1])).translate(ISOLATES)))
    for step in next_steps(metrics, str(run), str(data)):
        print(spelled_out(f"  - {step.text}" + (f" {step.command}" if step.command else "")))


def print_facts(facts: dict[str, Any]) -> None:
    """One `key value` line a fact that has a value, and then what must be known to read them rightly."""
    from antibackdoor.report.words import remarks

    for key, value in facts.items():
        is_empty = value is None or value == "" or value == [] or value != value  # the last is nan
        if is_empty or key in ("reading_notes", "method_summary"):
            continue
        if isinstance(value, list) and len(value) > MOST_NAMES:
            value = [*value[:MOST_NAMES], f"and {len(value) - MOST_NAMES} more"]
        print(f"{key:28} {value:.4f}" if isinstance(value, float) else spelled_out(f"{key:28} {value}"))
    for sentence in remarks(facts):
        print(spelled_out(sentence.translate(ISOLATES)))
