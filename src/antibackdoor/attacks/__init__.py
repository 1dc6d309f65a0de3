"""Published backdoor attacks: a trigger (how a sample changes) and a plan (which samples, which labels)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from antibackdoor.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from antibackdoor.attacks.badnets import BadNets
from antibackdoor.attacks.blend import Blend
from antibackdoor.attacks.cba import CBA
from antibackdoor.attacks.dfst import DFST
from antibackdoor.attacks.dynamic import Dynamic
from antibackdoor.attacks.feature_collision import FeatureCollision
from antibackdoor.attacks.label_consistent import LabelConsistent
from antibackdoor.attacks.optimized import LBA, Trojan
from antibackdoor.attacks.physical import PhysicalBA
from antibackdoor.attacks.plans import PLANS, AllToAll, AllToOne, CleanLabel, Composite, MultiTarget, SourceSpecific
from antibackdoor.attacks.poisoning import (
    Poisoned,
    Truth,
    make_trigger,
    poison,
    read_truth,
    sample_numbers,
    stamp,
    trigger_test_set,
    write_truth,
)
from antibackdoor.attacks.powerline import Powerline
from antibackdoor.attacks.refool import Refool
from antibackdoor.attacks.sig import SIG
from antibackdoor.attacks.static import StaticPattern
from antibackdoor.attacks.storage import SavedTrigger, load_fitting_trigger, load_trigger, save_trigger
from antibackdoor.attacks.tact import TaCT
from antibackdoor.attacks.timetrojan import TimeTrojanFGSM
from antibackdoor.attacks.timetrojan_de import TimeTrojanDE
from antibackdoor.attacks.tsba import TSBAB
from antibackdoor.attacks.wanet import WaNet
from antibackdoor.data.augmentation import physical_transforms

if TYPE_CHECKING:
    from antibackdoor.protocols import Attack

ATTACKS: dict[str, type[Attack]] = {
    "badnets": BadNets,
    "blend": Blend,
    "dynamic": Dynamic,
    "sig": SIG,
    "label_consistent": LabelConsistent,
    "feature_collision": FeatureCollision,
    "trojan": Trojan,
    "lba": LBA,
    "refool": Refool,
    "cba": CBA,
    "dfst": DFST,
    "wanet": WaNet,
    "physical": PhysicalBA,
    "tact": TaCT,
    "adaptive_blend": AdaptiveBlend,
    "adaptive_patch": AdaptivePatch,
    "static": StaticPattern,
    "powerline": Powerline,
    "timetrojan_fgsm": TimeTrojanFGSM,
    "timetrojan_de": TimeTrojanDE,
    "tsba_b": TSBAB,
}

__all__ = [
    "ATTACKS",
    "CBA",
    "DFST",
    "LBA",
    "PLANS",
    "SIG",
    "TSBAB",
    "AdaptiveBlend",
    "AdaptivePatch",
    "AllToAll",
    "AllToOne",
    "BadNets",
    "Blend",
    "CleanLabel",
    "Composite",
    "Dynamic",
    "FeatureCollision",
    "LabelConsistent",
    "MultiTarget",
    "PhysicalBA",
    "Poisoned",
    "Powerline",
    "Refool",
    "SavedTrigger",
    "SourceSpecific",
    "StaticPattern",
    "TaCT",
    "TimeTrojanDE",
    "TimeTrojanFGSM",
    "Trojan",
    "Truth",
    "WaNet",
    "load_fitting_trigger",
    "load_trigger",
    "make_trigger",
    "physical_transforms",
    "poison",
    "read_truth",
    "sample_numbers",
    "save_trigger",
    "stamp",
    "trigger_test_set",
    "write_truth",
]
