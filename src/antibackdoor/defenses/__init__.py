"""Training-time defenses: a model that is clean although the data was not."""

from __future__ import annotations

from typing import Any

from antibackdoor.defenses.e2abl import E2ABL
from antibackdoor.defenses.e2abl_published import PublishedE2ABL
from antibackdoor.defenses.undefended import Undefended

DEFENSES: dict[str, type[Any]] = {
    "e2abl": E2ABL,
    "e2abl-published": PublishedE2ABL,
    "none": Undefended,
}

__all__ = ["DEFENSES", "E2ABL", "PublishedE2ABL", "Undefended"]
