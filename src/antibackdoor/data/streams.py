"""Every source of randomness has a name here, and each use has a name of its own.

A random stream is a function of the seed, its name and a position (an epoch, a step), never of what was drawn before:
that is what makes a resumed run end as an unbroken one does. Two uses that shared a stream would draw the same numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from antibackdoor.errors import ConfigError


class Stream(IntEnum):
    """Names of the random streams. The numbers of attacks stay as they are: they decide the poisoned bytes."""

    # attacks: the first keys of `default_rng([seed, number])`; their plans and surrogates use the seed alone
    GRAY_PATTERN = 1
    DRAWN_PICTURE = 2
    POWERLINE = 3
    SCENE = 4
    WARP = 5
    ADAPTIVE_PATTERN = 6
    REFLECTION = 7
    COMPOSITION = 8
    SURROGATE_ORDER = 9
    OPTIMIZED_SOURCES = 10
    MASK_PARTNERS = 11
    COLLISION_SOURCES = 12
    # data
    HOLD_OUT = 20
    CARD = 21
    # training
    WEIGHTS = 30
    ORDER = 31
    STEP = 32
    TIMING = 33
    # search
    WARM_UP_ORDER = 40
    WARM_UP_HARD = 41
    WARM_UP_STEP = 42
    CONFUSION_STEP = 43
    CONFUSION_ROWS = 44
    CONFUSION_ROWS_ACROSS = 45
    SEARCHED_ROWS = 46
    NEIGHBORS = 47
    PLACES = 48
    MIXING = 49
    AGREEMENT = 50
    HOME = 51
    MOMENTS = 52
    POPULATIONS = 53
    CARRIERS = 54
    CLOUD_NULL = 55
    PLANTING = 56
    DIFFERENCE = 57
    # defenses
    MAIN_ORDER = 60
    PROBE = 62
    RELABELED = 63
    TIES = 64
    RESIDUAL = 65
    INITIAL_HEAD = 66
    # patches, transformed features, and retraining
    PATCH = 80
    SCORED_ROWS = 81
    LEARNED_ORDER = 82
    FORGOTTEN_ORDER = 83
    TRANSFORMED = 84
    REMOVAL_ORDER = 85
    DROPPED = 86
    # clusters of features, and unlearning
    ACTIVATION_CLUSTERS = 100
    SCAN_GROUPS = 101
    UNLEARNING_ORDER = 102
    UNLEARNING_REST = 103
    HELD_DOWN_ORDER = 104
    HELD_DOWN = 105
    SELF_CLEAN_TIES = 106
    SELF_CLEAN_ROWS = 107
    # anti-backdoor learning and the detectors that train
    ISOLATION_TIES = 70
    ASCENT_ROWS = 71
    SHUFFLED_LABELS = 72
    UNIFORM_LABELS = 73
    # purifiers
    HELD_BACK = 90
    HOLE = 91
    CURVE_POINT = 92
    REVERSED_TRIGGER = 93
    STAMPED_ROWS = 94
    ONNX_CHECK = 95
    STATISTICS = 96


def stream(seed: int, name: Stream, *position: int) -> np.random.Generator:
    """The generator of a stream at a position.

    >>> bool(stream(0, Stream.ORDER, 3).integers(100) == stream(0, Stream.ORDER, 3).integers(100))
    True

    Raises:
        ConfigError: If the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}; give 0 or more")
    return np.random.default_rng((seed, int(name), *position))


def number(seed: int, name: Stream, *position: int) -> int:
    """A seed in `0..2^62-1` for a generator that is not numpy's, such as torch's."""
    return int(stream(seed, name, *position).integers(2**62))
