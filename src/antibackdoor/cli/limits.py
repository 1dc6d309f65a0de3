"""The most that flags of whole numbers take: more is a slip of the finger, and would fill the memory or never end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antibackdoor.errors import ConfigError, shortened

# Passes, steps and samples: these take time, but no memory beyond that of the data.
MOST = 10_000_000

# What sizes an array, by name. Sides are those of the largest pictures that are read; the others lie a hundred times
# or more above the defaults.
MOST_OF = {
    **dict.fromkeys(("cell", "side", "margin", "hole", "jitter", "k", "blocks"), 1024),
    "width": 1024,  # channels of a small generator
    "head_width": 2**16,
    **dict.fromkeys(("n_components", "n_neurons"), 2**14),
    **dict.fromkeys(("n_reflections", "n_partners", "n_candidates", "population"), 10_000),
    **dict.fromkeys(("n_sources", "n_samples", "n_surrogate", "n_steps"), 1_000_000),
    "batch_size": 2**20,
    "unlearning_batch_size": 2**20,
    "devices": 4096,
}


def check_sizes(values: Mapping[str, Any]) -> None:
    """Check the values of flags, by the names of their fields; a seed sizes nothing, and is checked where it is used.

    Raises:
        ConfigError: If a whole number is larger than its flag takes.
    """
    for name, value in values.items():
        most = MOST_OF.get(name, MOST)
        if name != "seed" and isinstance(value, int) and not isinstance(value, bool) and value > most:
            given = shortened(str(value), 30) if value.bit_length() < 10_000 else "a number of thousands of digits"
            raise ConfigError(f"--{name.replace('_', '-')} is {given}; give at most {most}")
