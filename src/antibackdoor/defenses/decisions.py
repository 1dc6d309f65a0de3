"""A person's decisions about samples, and other verdicts that a training is given."""

from __future__ import annotations

import numpy as np

from antibackdoor.data.samples import BoolArray, Samples
from antibackdoor.errors import DataError
from antibackdoor.protocols import DECISION, Verdict


def decided(verdict: Verdict, samples: Samples, name: str) -> Verdict:
    """A given verdict, once it is known to be about as many samples.

    Raises:
        DataError: If it is not.
    """
    if len(verdict.status) != len(samples):
        raise DataError(
            f"the {name} is about {len(verdict.status)} samples, the data have {len(samples)}: give the one for these "
            "data"
        )
    return verdict


def trusted(decisions: Verdict | None, samples: Samples) -> BoolArray:
    """`(N,)` bool, samples that a person has found to be clean: they are never isolated."""
    if decisions is None:
        return np.zeros(len(samples), dtype=bool)
    known = decided(decisions, samples, "file of decisions")
    return np.asarray((known.criterion == DECISION) & ~known.isolated)


def rejected(decisions: Verdict | None, samples: Samples) -> BoolArray:
    """`(N,)` bool, samples that a person has rejected: they are never trained on under their given label."""
    if decisions is None:
        return np.zeros(len(samples), dtype=bool)
    known = decided(decisions, samples, "file of decisions")
    return np.asarray((known.criterion == DECISION) & known.isolated)
