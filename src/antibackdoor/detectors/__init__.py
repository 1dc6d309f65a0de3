"""Detectors: which samples are suspicious."""

from __future__ import annotations

from antibackdoor.detectors.activation_clustering import ActivationClustering
from antibackdoor.detectors.confusion import ConfusionTraining, SearchFacts
from antibackdoor.detectors.flooding import Flooding
from antibackdoor.detectors.label_smoothing import LabelSmoothingConfidence
from antibackdoor.detectors.loss_drop import LossDrop
from antibackdoor.detectors.low_loss import LowLoss
from antibackdoor.detectors.perturbation import PatchPerturbation
from antibackdoor.detectors.scan import SCAn
from antibackdoor.detectors.spectral import SpectralSignatures
from antibackdoor.protocols import Detector

DETECTORS: dict[str, type[Detector]] = {
    "activation-clustering": ActivationClustering,
    "confusion": ConfusionTraining,
    "flooding": Flooding,
    "label-smoothing-confidence": LabelSmoothingConfidence,
    "loss-drop": LossDrop,
    "low-loss": LowLoss,
    "perturbation": PatchPerturbation,
    "scan": SCAn,
    "spectral": SpectralSignatures,
}

__all__ = [
    "DETECTORS",
    "ActivationClustering",
    "ConfusionTraining",
    "Flooding",
    "LabelSmoothingConfidence",
    "LossDrop",
    "LowLoss",
    "PatchPerturbation",
    "SCAn",
    "SearchFacts",
    "SpectralSignatures",
]
