"""Training-time defenses: a model that is clean although the data was not."""

from __future__ import annotations

from antibackdoor.defenses.abl import ABL
from antibackdoor.defenses.advrbd import AdvrBD
from antibackdoor.defenses.cutmix import CutMix
from antibackdoor.defenses.dbr import DBR
from antibackdoor.defenses.dual_head import DualHead
from antibackdoor.defenses.e2abl import E2ABL
from antibackdoor.defenses.retrain import Retrain
from antibackdoor.defenses.undefended import Undefended
from antibackdoor.protocols import TrainingDefense

DEFENSES: dict[str, type[TrainingDefense]] = {
    "abl": ABL,
    "advrbd": AdvrBD,
    "cutmix": CutMix,
    "dbr": DBR,
    "dual-head": DualHead,
    "e2abl": E2ABL,
    "none": Undefended,
    "retrain": Retrain,
}

__all__ = ["ABL", "DBR", "DEFENSES", "E2ABL", "AdvrBD", "CutMix", "DualHead", "Retrain", "Undefended"]
