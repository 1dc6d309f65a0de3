"""What a method reports of itself: the facts of its own, beside the numbers that every run has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antibackdoor.report.purified import is_purified, purified_facts, shown
from antibackdoor.report.words import printable
from antibackdoor.runs.metric_keys import METRIC_KEYS

# What the page tells among the key numbers.
TOLD = (
    *("estimated_poisoning_rate", "estimated_poisoning_rate_low", "estimated_poisoning_rate_high"),
    *("false_alarm_probability", "smallest_visible_rate"),
)


def method_facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`(name, value)` of each fact of a defense, a detector or a purifier that has a value.

    >>> method_facts({"method": "advrbd", "n_isolated": 5, "n_rounds": 10, "fell_back": False})
    [('n_rounds', '10'), ('fell_back', 'no')]
    """
    if is_purified(metrics):
        return purified_facts(metrics)
    own = {key: value for key, value in metrics.items() if key not in METRIC_KEYS and key not in TOLD}
    return [(printable(key, 80), shown(value)) for key, value in own.items() if value is not None and value != ""]
