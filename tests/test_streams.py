"""No two uses of randomness draw the same numbers, and nothing is random but for a named stream."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import antibackdoor
from antibackdoor.data.streams import Stream, number, stream

SOURCE = Path(antibackdoor.__file__).parent
STREAMS = "data/streams.py"

# Streams that are named in more than one place, in how many, and why no two of these draw the same numbers in a run.
SEVERAL_PLACES = {
    "ASCENT_ROWS": (2, "two positions: the order of the rest, and the isolated rows that fill up each batch"),
    "ISOLATION_TIES": (3, "one role: which of equal scores comes first, in methods that do not meet in a run"),
    "MAIN_ORDER": (2, "two methods, one role: the order in which DualHead's and E2ABL's main head visits its samples"),
    "PATCH": (2, "one role: where patches lie in the detector's one round, and in each round of AdvrBD"),
    "TIMING": (2, "how long a step takes: nothing that it computes is kept"),
}

# Generators whose seed is no named stream, in which file, and why.
ARGUMENT = "the seed is an argument, which callers take from a stream"
BARE = {
    STREAMS: "where streams are made",
    "data/augmentation.py": f"{ARGUMENT}: the loop gives each step one of its own",
    "training/loop.py": "the seed of each step, which is drawn from the stream that the training names",
    "training/session.py": f"{ARGUMENT}; the one call with a constant makes a network whose weights are replaced",
    "models/own_network.py": "a fixed probe of whether a network runs at all",
    "models/splitting.py": "a fixed probe of where a network can be cut",
    "purifiers/channels.py": "a fixed probe of which layers a channel reaches",
    "attacks/plans.py": "plans use the seed alone: it decides the poisoned rows of data sets that are published",
    "attacks/surrogate.py": "surrogates use the seed alone: it decides poisoned bytes",
    "attacks/dynamic.py": "a surrogate's",
    "attacks/optimized.py": "a surrogate's",
    "attacks/tsba.py": "a surrogate's",
}
MAKERS = ("default_rng", "manual_seed", "RandomState", "seed_all", "manual_seed_all", "SeedSequence")
# What a generator may be made of: a number of a stream, or the seed of a step.
GOOD = ("number", "stream")


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def uses() -> Counter[str]:
    """How often each stream is named outside its file."""
    return Counter(
        node.attr
        for name, tree in sources()
        if name != STREAMS
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream"
    )


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_of_a_stream(seed: ast.expr) -> bool:
    """`number(...)`, `batch.seed`, or a computation with one of these."""
    return any(
        (isinstance(node, ast.Call) and called(node) in GOOD)
        or (isinstance(node, ast.Attribute) and node.attr == "seed" and getattr(node.value, "id", "") == "batch")
        for node in ast.walk(seed)
    )


def bare_seeds() -> dict[str, list[int]]:
    """Lines of each file that make a generator of something else than a stream."""
    found: dict[str, list[int]] = {}
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called(node) in MAKERS:
                seeds = [*node.args, *(keyword.value for keyword in node.keywords)]
                if not seeds or not all(is_of_a_stream(seed) for seed in seeds):
                    found.setdefault(name, []).append(node.lineno)
    return found


def test_each_stream_has_a_number_of_its_own() -> None:
    assert len(Stream.__members__) == len(set(Stream)), "a second name of the same number is an alias of the first"


def test_each_stream_is_named_where_it_is_used_and_nowhere_else() -> None:
    several = {name: count for name, count in uses().items() if count != 1}
    assert several == {name: count for name, (count, _why) in SEVERAL_PLACES.items()}
    assert set(uses()) == set(Stream.__members__), "a name that nothing uses, or one that is misspelled"


def test_nothing_is_random_but_for_a_stream() -> None:
    bare = bare_seeds()
    assert not {name: lines for name, lines in bare.items() if name not in BARE}, "draw from a stream of its own"
    assert set(bare) == set(BARE), "an exception that is no longer needed"


def test_the_check_sees_bare_seeds() -> None:
    """It would pass as well if it saw nothing."""
    for text, is_good in {
        "default_rng(0)": False,
        "default_rng()": False,
        "default_rng((seed, 3))": False,
        "Generator().manual_seed(seed)": False,
        "manual_seed(number(seed, Stream.PATCH, 3))": True,
        "manual_seed(int(stream(seed, Stream.PATCH).integers(9)))": True,
        "default_rng(batch.seed)": True,
    }.items():
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and called(call) in MAKERS
        assert (bool(call.args) and all(map(is_of_a_stream, call.args))) == is_good, text


def test_no_two_streams_draw_the_same_numbers() -> None:
    first = [number(seed, name, *position) for name in Stream for seed in (0, 1) for position in ((), (1,), (2, 5))]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("position", [(), (3,), (3, 0, 7)])
def test_a_stream_is_a_function_of_seed_name_and_position(position: tuple[int, ...]) -> None:
    np.random.default_rng().random()
    once, again = (stream(7, Stream.ORDER, *position).random(5) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert number(7, Stream.ORDER, *position) == number(7, Stream.ORDER, *position) < 2**62
