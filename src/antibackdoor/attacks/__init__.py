"""Published backdoor attacks: a trigger (how a sample changes) and a plan (which samples, which labels)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from antibackdoor.attacks.badnets import BadNets
from antibackdoor.attacks.blend import Blend
from antibackdoor.attacks.plans import (
    PLANS,
    AllToAll,
    AllToOne,
    CleanLabel,
    MultiTarget,
    SourceSpecific,
)
from antibackdoor.attacks.poisoning import (
    Poisoned,
    Truth,
    poison,
    read_truth,
    sample_numbers,
    stamp,
    trigger_test_set,
    write_truth,
)
from antibackdoor.attacks.powerline import Powerline
from antibackdoor.attacks.sig import SIG
from antibackdoor.attacks.static import StaticPattern
from antibackdoor.attacks.storage import SavedTrigger, load_trigger, save_trigger

if TYPE_CHECKING:
    from antibackdoor.protocols import Attack

ATTACKS: dict[str, type[Attack]] = {
    "badnets": BadNets,
    "blend": Blend,
    "sig": SIG,
    "static": StaticPattern,
    "powerline": Powerline,
}

__all__ = [
    "ATTACKS",
    "PLANS",
    "SIG",
    "AllToAll",
    "AllToOne",
    "BadNets",
    "Blend",
    "CleanLabel",
    "MultiTarget",
    "Poisoned",
    "Powerline",
    "SavedTrigger",
    "SourceSpecific",
    "StaticPattern",
    "Truth",
    "load_trigger",
    "poison",
    "read_truth",
    "sample_numbers",
    "save_trigger",
    "stamp",
    "trigger_test_set",
    "write_truth",
]
