"""Draw `docs/architecture.svg`: the rooms of the package on their floors, and who imports whom.

    python docs/draw_architecture.py             write the picture
    python docs/draw_architecture.py --check     exit with 1 if its rooms or arrows are not those of the code

Rooms, arrows and captions come from the syntax trees of `src/antibackdoor`, floors from `tests/test_layers.py`; nothing
is imported. An arrow that follows from others is left out: only the transitive reduction is drawn.
"""

from __future__ import annotations

import argparse
import ast
import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import combinations, permutations
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "antibackdoor"
LAYERS = REPOSITORY / "tests" / "test_layers.py"
PICTURE = Path(__file__).with_name("architecture.svg")

Imports = dict[str, set[str]]
Floors = tuple[tuple[str, ...], ...]
Places = dict[str, float]  # room → middle of its box, from the left

# Sizes in pixels.
WIDTH, HEIGHT = 1000, 900
LEFT, RIGHT, TOP, BOTTOM = 56, 28, 58, 12
BOX_WIDTH, BOX_HEIGHT, GUTTER = 240, 36, 28
PORT = 20  # between neighboring arrows on one side of a box
LETTER = 5.4  # mean width in a caption, in a wide font
SLOTS = 13  # places for a box
STARTS, STEPS = 3, 8_000  # of the search for places
HOT, COLD = 60.0, 0.3  # what a step may cost more, at its beginning and end


# --------------------------------------------------------------------------- what is drawn


def floors() -> Floors:
    """The floors of the package, lowest first, with the rooms that exist."""
    for node in ast.parse(LAYERS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            there = {room_of(path) for path in PACKAGE.rglob("*.py")}
            told = ast.literal_eval(node.value)
            if lost := there - {room for floor in told for room in floor}:
                sys.exit(f"{', '.join(sorted(lost))}: no floor in {LAYERS.name}; add it to FLOORS")
            found = (tuple(room for room in floor if room in there) for floor in told)
            return tuple(floor for floor in found if floor)
    sys.exit(f"no FLOORS in {LAYERS.name}")


def room_of(path: Path) -> str:
    """The module or folder right below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports() -> Imports:
    """Each room and the rooms that its files import, wherever in the file they do."""
    found: Imports = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        own = found.setdefault(room_of(path), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            own.update(name.split(".")[1] for name in imported(node) if name.startswith("antibackdoor."))
    return {room: (others & found.keys()) - {room} for room, others in found.items()}


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reduced(graph: Imports) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""

    def below(room: str) -> set[str]:
        return graph[room].union(*(below(other) for other in graph[room]))

    return sorted(
        (room, other)
        for room, others in graph.items()
        for other in others
        if not any(other in below(between) for between in others)
    )


def caption(room: str, n_letters: int) -> str:
    """The first line of a room's docstring, as many of its parts as fit."""
    path = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = text.partition("\n")[0].replace("`", "")
    ends = [match.start() for match in re.finditer(r"[,;:.](?= |$)", line) if match.start() <= n_letters]
    return line[: ends[-1]] if ends else line[: line.rfind(" ", 0, n_letters)] + "…"


# --------------------------------------------------------------------------- where it is drawn


@dataclass(frozen=True)
class Plan:
    """Floors, lowest first, and arrows, from the importing room to the imported one."""

    floors: Floors
    arrows: list[tuple[str, str]]

    @cached_property
    def floor_of(self) -> dict[str, int]:
        return {room: number for number, rooms in enumerate(self.floors) for room in rooms}

    @cached_property
    def box_width(self) -> float:
        most = max(len(floor) for floor in self.floors)
        return min(BOX_WIDTH, (WIDTH - LEFT - RIGHT + GUTTER) / most - GUTTER)

    @cached_property
    def centers(self) -> list[float]:
        """Where the middle of a box may be, from the left."""
        first, last = LEFT + self.box_width / 2, WIDTH - RIGHT - self.box_width / 2
        return [first + (last - first) * slot / (SLOTS - 1) for slot in range(SLOTS)]

    @cached_property
    def tops(self) -> list[float]:
        """Upper edges of the boxes of each floor, from above; the lowest floor is at the bottom."""
        step = (HEIGHT - TOP - BOTTOM) / len(self.floors)
        return [TOP + place * step + (step - BOX_HEIGHT) / 2 for place in reversed(range(len(self.floors)))]


class Arrow(NamedTuple):
    """Straight down, aside by a cubic Bezier whose ends are upright, and straight down."""

    x0: float
    y0: float
    x1: float
    y1: float
    high: float  # where it begins to go aside
    low: float  # and where it has

    def path(self) -> str:
        x0, y0, x1, y1, high, low, y = (f"{value:.1f}" for value in (*self, (self.high + self.low) / 2))
        before, after = (f"V{high}" if high != y0 else ""), (f"V{y1}" if y1 != low else "")
        return f"M{x0} {y0}{before}C{x0} {y}, {x1} {y}, {x1} {low}{after}"

    def at(self, y: float) -> float:
        """Where it is at a height."""
        if y <= self.high:
            return self.x0
        if y >= self.low:
            return self.x1
        done = (y - self.high) / (self.low - self.high)
        return self.x0 + (self.x1 - self.x0) * BEND[int(100 * done)]


def bend(down: float) -> float:
    """How far aside an arrow is when it is `down` of its way down, both in [0, 1]."""
    low, high = 0.0, 1.0
    for _ in range(30):  # halvings, for the position t on the curve
        t = (low + high) / 2
        low, high = (t, high) if 1.5 * t * (1 - t) + t**3 < down else (low, t)
    return 3 * t * t - 2 * t**3


BEND = [bend(step / 100) for step in range(101)]


def arrows(plan: Plan, places: Places) -> list[Arrow]:
    """The arrows between rooms, those on one side of a box apart from each other."""
    floor = plan.floor_of
    xs: dict[tuple[int, int], float] = {}
    for room, center in places.items():
        for end in (0, 1):
            mine = {number: arrow[1 - end] for number, arrow in enumerate(plan.arrows) if arrow[end] == room}
            wanted = []
            for number, other in mine.items():
                far = abs(floor[room] - floor[other])  # to near floors from the outside, so that they do not cross
                wanted.append((aim(plan, center, places[other]), far if places[other] < center else -far, number))
            wanted.sort()
            ports = apart([x for x, _, _ in wanted])
            xs |= {(number, end): x for (_, _, number), x in zip(wanted, ports, strict=True)}
    return [
        routed(plan, places, (floor[room], floor[other]), (xs[number, 0], xs[number, 1]))
        for number, (room, other) in enumerate(plan.arrows)
    ]


def routed(plan: Plan, places: Places, ends: tuple[int, int], xs: tuple[float, float]) -> Arrow:
    """The arrow through the fewest boxes: it goes aside on its whole way, or past one floor, or between two."""
    first, last = ends
    (x0, x1), y0, y1 = xs, plan.tops[first] + BOX_HEIGHT, plan.tops[last]
    short = [(floor, floor - step) for step in (2, 1) for floor in range(first, last + step - 1, -1)]
    bends = [(y0, y1)] + [(plan.tops[high] + BOX_HEIGHT, plan.tops[low]) for high, low in short]
    found: list[tuple[int, int, Arrow]] = []
    for order, (high, low) in enumerate(bends):
        arrow = Arrow(x0, y0, x1, y1, high, low)
        found.append((hits(plan, places, ends, arrow), order, arrow))
        if found[-1][0] == 0:
            break
    return min(found)[-1]


def hits(plan: Plan, places: Places, ends: tuple[int, int], arrow: Arrow) -> int:
    """Boxes that an arrow runs through, or too near by."""
    count, reach = 0, plan.box_width / 2 + PORT / 2
    for between in range(ends[1] + 1, ends[0]):
        top = plan.tops[between]
        one, two = arrow.at(top), arrow.at(top + BOX_HEIGHT)
        left, right = min(one, two) - reach, max(one, two) + reach
        count += sum(left < places[box] < right for box in plan.floors[between])
    return count


def aim(plan: Plan, center: float, other: float) -> float:
    """Where an arrow leaves a box: straight up or down if the boxes overlap, else near the corner."""
    if abs(center - other) < plan.box_width - 2 * PORT:
        return (center + other) / 2
    return center + (1 if other > center else -1) * (plan.box_width / 2 - PORT)


def apart(wanted: list[float]) -> list[float]:
    """Sorted places on a side of a box, moved until no two are too near."""
    groups = [[x] for x in wanted]
    spread: list[list[float]] = []
    for group in groups:
        while spread and spread[-1][-1] + PORT > group[0]:
            group = spread.pop() + group
            middle = sum(group) / len(group)
            group = [middle + (place - (len(group) - 1) / 2) * PORT for place in range(len(group))]
        spread.append(group)
    return [x for group in spread for x in group]


def cost(plan: Plan, places: Places) -> float:
    """Arrows through boxes count most, then arrows that meet, then flat ones and boxes out of the middle."""
    floor, drawn = plan.floor_of, arrows(plan, places)
    total = sum(0.01 * abs(x - WIDTH / 2) for x in places.values())
    for (room, other), arrow in zip(plan.arrows, drawn, strict=True):
        aside = abs(arrow.x0 - arrow.x1)
        total += 0.005 * aside + 2 * aside / (arrow.low - arrow.high)
        total += 100 * hits(plan, places, (floor[room], floor[other]), arrow)
    return total + sum(20 * meetings(one, two) for one, two in combinations(drawn, 2))


def meetings(one: Arrow, two: Arrow) -> int:
    """How often two arrows change sides or run too close to each other, at a few heights where both are."""
    high, low = max(one.y0, two.y0), min(one.y1, two.y1)
    left, right = max(min(one.x0, one.x1), min(two.x0, two.x1)), min(max(one.x0, one.x1), max(two.x0, two.x1))
    if high >= low or left > right + PORT / 2:
        return 0
    sides = [one.at(y) - two.at(y) for y in (high, (3 * high + low) / 4, (high + low) / 2, (high + 3 * low) / 4, low)]
    return (sides[0] * sides[-1] < 0) + sum(abs(side) < PORT / 2 for side in sides[1:-1])


def placed(plan: Plan) -> Places:
    """Places of the rooms that cost little, the same ones for the same rooms and arrows."""
    rng = random.Random(0)
    return min((annealed(plan, rng) for _ in range(STARTS)), key=lambda places: cost(plan, places))


def annealed(plan: Plan, rng: random.Random) -> Places:
    """Places found by simulated annealing: one floor is moved at a time."""
    least = plan.box_width + GUTTER - 1
    options = [
        [xs for xs in permutations(plan.centers, len(floor)) if all(abs(a - b) > least for a, b in combinations(xs, 2))]
        for floor in plan.floors
    ]
    places: Places = {}
    for floor, choices in zip(plan.floors, options, strict=True):
        places |= zip(floor, choices[0], strict=True)
    now = cost(plan, places)
    for step in range(STEPS):
        heat = HOT * (COLD / HOT) ** (step / STEPS)
        number = int(rng.random() * len(options))
        xs = options[number][int(rng.random() * len(options[number]))]
        moved = places | dict(zip(plan.floors[number], xs, strict=True))
        then = cost(plan, moved)
        if then < now or rng.random() < math.exp((now - then) / heat):
            places, now = moved, then
    return places


# --------------------------------------------------------------------------- how it is drawn

# On a light ground of its own, so that it is readable on a dark page as well.
STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: #1f2937; }
.paper { fill: #fbfbf9; stroke: #d6d6d1; }
.title { font-size: 17px; font-weight: 600; }
.note, .caption { font-size: 10.5px; fill: #5b6472; }
.note { font-size: 12px; }
.floor { font-size: 11px; fill: #9097a1; text-anchor: middle; }
.rule { stroke: #ebebe6; }
.folder { fill: #e6eef8; stroke: #7d9cc0; }
.module { fill: #fff; stroke: #b3b8c0; }
.name { font-size: 13.5px; font-weight: 600; }
.arrow { fill: none; stroke: #64748b; stroke-width: 1.4; }
marker { fill: #64748b; }
"""


def draw(plan: Plan, places: Places) -> str:
    """The picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        "<title>Rooms of antibackdoor, floor by floor, and what they import</title>",
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 .8 8 4 0 7.2z"/></marker>',
        f'<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
        '<text class="title" x="24" y="30">Rooms of antibackdoor</text>',
        '<text class="note" x="24" y="48">An arrow points to what a room imports, always on a lower floor. Arrows that '
        "follow from others are left out.</text>",
    ]
    for number in range(len(plan.floors)):
        middle = plan.tops[number] + BOX_HEIGHT / 2
        parts.append(f'<path class="rule" d="M{LEFT - 14} {middle:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="floor" x="{LEFT / 2}" y="{middle + 4:.1f}">{number + 1}</text>')
    for (room, other), arrow in zip(plan.arrows, arrows(plan, places), strict=True):
        parts.append(f'<path class="arrow" data-arrow="{room} {other}" marker-end="url(#head)" d="{arrow.path()}"/>')
    parts += [box(plan, room, number, places[room]) for room, number in plan.floor_of.items()]
    return "\n".join([*parts, "</svg>\n"])


def box(plan: Plan, room: str, floor: int, center: float) -> str:
    """A room: its name, and what its docstring says."""
    width, x, y = plan.box_width, center - plan.box_width / 2, plan.tops[floor]
    kind, name = ("folder", f"{room}/") if (PACKAGE / room).is_dir() else ("module", room)
    words = escape(caption(room, int((width - 18) / LETTER)))
    return (
        f'<g data-room="{floor + 1} {room}">'
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 10:.1f}" y="{y + 14.5:.1f}">{name}</text>'
        f'<text class="caption" x="{x + 10:.1f}" y="{y + 29.5:.1f}">{words}</text></g>'
    )


def shown(picture: str) -> set[str]:
    """The rooms and arrows of a picture."""
    return set(re.findall(r'data-(?:room|arrow)="[^"]*"', picture))


def planned() -> Plan:
    """What the code looks like now; ends the program if an import does not point down."""
    graph, levels = imports(), floors()
    below: set[str] = set()
    for floor in levels:
        for room in floor:
            if wrong := sorted(graph[room] - below):
                sys.exit(f"{room} imports {', '.join(wrong)}, which is not on a lower floor")
        below.update(floor)
    return Plan(levels, reduced(graph))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if the picture is not up to date")
    check = parser.parse_args().check
    plan = planned()
    if not check:
        PICTURE.write_text(draw(plan, placed(plan)), encoding="utf-8")
        return
    wanted = {f'data-arrow="{room} {other}"' for room, other in plan.arrows}
    wanted |= {f'data-room="{floor + 1} {room}"' for room, floor in plan.floor_of.items()}
    there = shown(PICTURE.read_text(encoding="utf-8")) if PICTURE.exists() else set()
    if there != wanted:
        differ = ", ".join(sorted(there ^ wanted))
        sys.exit(f"{PICTURE.name} is not up to date ({differ}); run `python docs/draw_architecture.py`")


if __name__ == "__main__":
    main()
