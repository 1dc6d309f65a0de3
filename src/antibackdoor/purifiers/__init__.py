"""Purifiers: a backdoored model, made clean."""

from __future__ import annotations

from antibackdoor.protocols import Purifier
from antibackdoor.purifiers.fine_pruning import FinePruning
from antibackdoor.purifiers.fine_tuning import FineTuning
from antibackdoor.purifiers.lipschitz_pruning import ChannelLipschitzPruning
from antibackdoor.purifiers.mode_connectivity import ModeConnectivity
from antibackdoor.purifiers.nad import NAD
from antibackdoor.purifiers.scan_ft import SCAnFT
from antibackdoor.purifiers.self_clean import SelfPurification
from antibackdoor.purifiers.trigger_retraining import TriggerRetraining
from antibackdoor.purifiers.trigger_unlearning import NeuralCleanseUnlearning
from antibackdoor.purifiers.unlearning import Unlearning

PURIFIERS: dict[str, type[Purifier]] = {
    "clp": ChannelLipschitzPruning,
    "fine-prune": FinePruning,
    "fine-tune": FineTuning,
    "mcr": ModeConnectivity,
    "nad": NAD,
    "neural-cleanse-unlearn": NeuralCleanseUnlearning,
    "scan-ft": SCAnFT,
    "self-clean": SelfPurification,
    "trigger-retrain": TriggerRetraining,
    "unlearn": Unlearning,
}

__all__ = [
    "NAD",
    "PURIFIERS",
    "ChannelLipschitzPruning",
    "FinePruning",
    "FineTuning",
    "ModeConnectivity",
    "NeuralCleanseUnlearning",
    "SCAnFT",
    "SelfPurification",
    "TriggerRetraining",
    "Unlearning",
]
