"""Training-time defenses: a model that is clean although the data was not."""

from __future__ import annotations

from typing import Any

from antibackdoor.defenses.dual_head import DualHead
from antibackdoor.defenses.e2abl import E2ABL
from antibackdoor.defenses.undefended import Undefended

DEFENSES: dict[str, type[Any]] = {
    "dual-head": DualHead,
    "e2abl": E2ABL,
    "none": Undefended,
}

__all__ = ["DEFENSES", "E2ABL", "DualHead", "Undefended"]
