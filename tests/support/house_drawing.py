"""docs/house.svg, drawn from the code: rooms as boxes with their files, imports as arrows, the way of a `dumps` in orange.

Arrows have the colour of the room that they lead to. One to the next row is a curve. A longer one goes round the rows between, in the
lane of the room that it leads to, so that all arrows to one room are a tree.
"""

from __future__ import annotations

import itertools
import math
import re
from html import escape
from typing import NamedTuple

from . import house

PICTURE = house.ROOT / "docs" / "house.svg"

_WIDTH = 1040
_MARGIN = 16
_LANE = 11  # from one lane to the next
_CELL = 146, 19  # of a file in a box
_PAD = 10
_HEAD = 26  # of a box, with its name
_BETWEEN = 14  # boxes of a row
_TRACK = 8  # from one horizontal line between rows to the next
_TURN = 6  # radius of a corner
_TIP = 8
_LETTER = 6.7  # width of one, in the small font
_COLOURS = {
    "face": "#495057",
    "leases": "#862e9c",
    "slots": "#c2255c",
    "assembly": "#5f3dc4",
    "batching": "#1971c2",
    "replication": "#1971c2",
    "durability": "#1971c2",
    "anchoring": "#1971c2",
    "registry": "#2b8a3e",
    "_ray": "#0b7285",
    "ground": "#868e96",
}
_STYLE = """
text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:11px;fill:#212529}
.name{font-size:14px;font-weight:bold}.title,.small{fill:#495057}.count{fill:#868e96}.way{font-weight:bold}
.room{fill:#f8f9fa;stroke-width:1.5}.badge{fill:#d9480f}.actor{fill:#364fc7}.number{fill:#fff;font-size:9px;font-weight:bold;text-anchor:middle}
.import,.dumps{fill:none;stroke-linejoin:round}.dumps{stroke:#d9480f;stroke-width:2;stroke-opacity:.75}
.title,.file,.small{paint-order:stroke;stroke:#f8f9fa;stroke-width:3px;stroke-linejoin:round}
"""

Point = tuple[float, float]


class Box(NamedTuple):
    """A room in the picture: its left upper corner, its size, its row, and where its files begin."""

    x: float
    y: float
    width: float
    height: float
    row: int
    files_y: float

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height


class Drawing:
    """The picture, in the making."""

    def __init__(self) -> None:
        self._rows = house.levels()
        self._row = {name: number for number, names in enumerate(self._rows) for name in names}
        self._files = {each.name: _files(each) for each in house.ROOMS}
        self._arrows = house.arrows()
        self._lanes = self._choose_lanes()
        self._inset = _MARGIN + _LANE * (1 + max(map(abs, self._lanes.values()), default=0))
        self._boxes: dict[str, Box] = {}
        self._height = self._place_boxes()
        self._leaves = self._ports(out=True)
        self._enters = self._ports(out=False)
        self._badges: dict[str, Point] = {}

    def svg(self) -> str:
        """The whole."""
        rooms = [self._room(each) for each in house.ROOMS]
        size = f'width="{_WIDTH}" height="{self._height:.0f}" viewBox="0 0 {_WIDTH} {self._height:.0f}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
                "<title>The rooms of safe_refs, drawn from its imports by `make house`</title>",
                f"<style>{_STYLE}</style>",
                '<rect width="100%" height="100%" fill="#fff"/>',
                *(self._import(above, below, count) for (above, below), count in sorted(self._arrows.items())),
                *(box for box, _ in rooms),
                *self._way(),
                *(text for _, text in rooms),
                *self._legend(),
                "</svg>\n",
            ]
        )

    def _far(self, row: int, *, below: bool) -> list[str]:
        """The rooms that arrows of a row lead to past the next one; or, with `below`, those of a row that such arrows lead to."""
        far = {
            target
            for source, target in self._arrows
            if self._row[target] > self._row[source] + 1 and row == self._row[target if below else source]
        }
        return sorted(far, key=lambda name: -abs(self._lanes[name]))

    def _track(self, name: str, row: int, *, below: bool) -> int:
        """Which horizontal line between two rows leads to a room's lane, or from it: the outer lane's is next to the box."""
        return [each for each in self._far(row, below=below) if self._lanes[each] * self._lanes[name] > 0].index(name)

    def _choose_lanes(self) -> dict[str, int]:
        """The lane of each room that longer arrows lead to: below 0 left of the boxes, above 0 right of them; higher rooms inside."""
        far = {target for source, target in self._arrows if self._row[target] > self._row[source] + 1}
        lanes: dict[str, int] = {}
        for name in sorted(far, key=lambda name: (self._row[name], self._rows[self._row[name]].index(name))):
            left, right = (sum(1 for lane in lanes.values() if lane * side > 0) for side in (-1, 1))
            lanes[name] = -left - 1 if left <= right else right + 1
        return lanes

    def _place_boxes(self) -> float:
        space = _WIDTH - 2 * self._inset
        y = float(_MARGIN)
        for number, names in enumerate(self._rows):
            share = (space - _BETWEEN * (len(names) - 1)) / len(names)
            most = int((share - 2 * _PAD) // _CELL[0])
            columns = {name: min(most, max(2, len(self._files[name]))) for name in names}
            widths = {name: columns[name] * _CELL[0] + 2 * _PAD for name in names}
            tallest = max(math.ceil(len(self._files[name]) / columns[name]) for name in names)
            head = (
                _HEAD
                if all(_fits(room, widths[room.name]) for room in house.ROOMS if room.name in names)
                else _HEAD + 15
            )
            x = (_WIDTH - sum(widths.values()) - _BETWEEN * (len(names) - 1)) / 2
            for name in names:
                self._boxes[name] = Box(x, y, widths[name], head + tallest * _CELL[1] + 4, number, y + head)
                x += widths[name] + _BETWEEN
            tracks = max(
                sum(
                    self._lanes[far] * side > 0
                    for row, below in ((number, False), (number + 1, True))
                    for far in self._far(row, below=below)
                )
                for side in (-1, 1)
            )
            y = self._boxes[names[0]].bottom + 32 + _TRACK * tracks
        return y + 20

    def _ports(self, *, out: bool) -> dict[tuple[str, str], Point]:
        """Where each arrow leaves its box, or enters one; longer arrows to one room enter as one."""
        ports: dict[tuple[str, str], Point] = {}
        for name, box in self._boxes.items():
            wished: dict[tuple[str, str], float] = {}
            for above, below in self._arrows:
                if name != (above if out else below):
                    continue
                other = self._boxes[below if out else above]
                if other.row == box.row + (1 if out else -1):
                    wished[above, below] = other.x + other.width / 2
                else:
                    wished["" if not out else above, below] = (
                        math.copysign(10_000, self._lanes[below]) + self._lanes[below]
                    )
            order = sorted(wished, key=lambda key: wished[key])
            step = min(40.0, (box.width - 2 * _PAD) / max(1, len(order)))
            for place, key in enumerate(order):
                # As near as possible to the other end, with room for those on both sides.
                low, high = box.x + _PAD + step * place, box.x + box.width - _PAD - step * (len(order) - 1 - place)
                ports[key] = min(max(wished[key], low), high), box.bottom if out else box.y
        return ports

    def _import(self, above: str, below: str, count: int) -> str:
        width, colour = 1 + 0.9 * math.sqrt(count), _COLOURS.get(below, "#000")
        start = self._leaves[above, below]
        if self._row[below] == self._row[above] + 1:
            x, y = self._enters[above, below]
            path = _curve(start, (x, y - _TIP))
        else:
            x, y = self._enters["", below]
            path = self._around(above, below, start, (x, y - _TIP))
        return (
            f'<path class="import" data-from="{above}" data-to="{below}" stroke="{colour}" stroke-width="{width:.1f}" d="{path}"/>'
            f'<path fill="{colour}" d="M{x:.0f} {y:.0f}l-5 -{_TIP + 1}h10z"/>'
        )

    def _around(self, above: str, below: str, start: Point, end: Point) -> str:
        """From a box down, to the target's lane, down in that, and to the target."""
        lane, row = self._lanes[below], self._row[above]
        x = self._inset + _LANE * lane if lane < 0 else _WIDTH - self._inset + _LANE * lane
        out = max(box.bottom for box in self._boxes.values() if box.row == row)
        out += 8 + _TRACK * self._track(below, row, below=False)
        back = end[1] - 8 - _TRACK * self._track(below, self._row[below], below=True)
        return _rounded([start, (start[0], out), (x, out), (x, back), (end[0], back), end])

    def _room(self, each: house.Room) -> tuple[str, str]:
        """A box, and the text in it."""
        box, files = self._boxes[each.name], self._files[each.name]
        count = sum(house.lines(house.modules()[module]) for module in files)
        colour = _COLOURS.get(each.name, "#343a40")
        shape = (
            f'<rect class="room" x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}" rx="6" '
            f'stroke="{colour}"/>'
        )
        name = f'{each.name} <tspan class="count" font-size="11" font-weight="normal">{count:,}</tspan>'
        texts = [f'<text class="name" x="{box.x + _PAD:.0f}" y="{box.y + 18:.0f}">{name}</text>']
        x, y, anchor = box.x + box.width - _PAD, box.y + 17, "end"
        if not _fits(each, box.width):
            x, y, anchor = box.x + _PAD, box.y + 33, "start"
        texts.append(f'<text class="title" text-anchor="{anchor}" x="{x:.0f}" y="{y:.0f}">{escape(each.title)}</text>')
        numbers = _numbers()
        columns = int((box.width - 2 * _PAD) // _CELL[0])
        for place, module in enumerate(files):
            x = box.x + _PAD + 16 + place % columns * _CELL[0]
            y = box.files_y + (place // columns + 0.7) * _CELL[1]
            if module in numbers:
                texts.append(f'<circle class="{_badge(module)}" cx="{x - 9:.0f}" cy="{y - 4:.0f}" r="7"/>')
                texts.append(f'<text class="number" x="{x - 9:.0f}" y="{y - 1:.0f}">{numbers[module]}</text>')
            lines = house.lines(house.modules()[module])
            way = " way" if module in numbers else ""
            texts.append(
                f'<text class="file{way}" data-module="{module}" data-room="{each.name}" x="{x:.0f}" y="{y:.0f}">{_short(module)} '
                f'<tspan class="count" font-weight="normal">{lines}</tspan></text>'
            )
            self._badges[module] = (x - 9, y - 4)
        return shape, "\n".join(texts)

    def _way(self) -> list[str]:
        """The way of a `dumps`, from badge to badge."""
        places = [self._badges[module] for module in _numbers()]
        return [
            f'<path class="dumps" d="M{a[0]:.0f} {a[1]:.0f}L{b[0]:.0f} {b[1]:.0f}"/>'
            for a, b in itertools.pairwise(places)
        ]

    def _legend(self) -> list[str]:
        x, y = self._inset, self._height - 30
        rows = [
            f'<text class="small" x="{x}" y="{y:.0f}">An arrow leads to what is imported, and has the colour of that room; more \
imports, thicker arrow. Grey numbers: lines.</text>'
        ]
        for place, (badge, text) in enumerate(
            (
                ("badge", "the way of dumps(), in the caller's process"),
                (
                    "badge actor",
                    "in the \
registry's actor",
                ),
            )
        ):
            at = x + 7 + 330 * place
            rows.append(f'<circle class="{badge}" cx="{at}" cy="{y + 14:.0f}" r="7"/>')
            rows.append(f'<text class="small" x="{at + 13}" y="{y + 18:.0f}">{text}</text>')
        return rows


def _files(each: house.Room) -> list[str]:
    """The files of a room: first those on the way, then as `ROOMS` names them, then by name; not those with a docstring only."""
    found = [module for module in house.modules() if house.room(module) == each.name and not _is_bare(module)]
    way = [*_numbers(), *each.files]
    return sorted(found, key=lambda name: (way.index(name) if name in way else len(way), name))


def _is_bare(module: str) -> bool:
    """Whether it is the `__init__` of a folder, which holds a docstring."""
    return module != "__init__" and house.modules()[module].name == "__init__.py"


def _short(module: str) -> str:
    return module.rpartition(".")[2]


def _fits(each: house.Room, width: float) -> bool:
    """Whether a room's name and title have room in one line."""
    return len(each.title) * _LETTER + len(each.name) * 9 + 8 * _LETTER < width - 2 * _PAD


def _badge(module: str) -> str:
    """The look of a step's badge: whether it is in the caller's process or in the actor."""
    modules = list(_numbers())
    return "badge" if modules.index(module) < modules.index("registry.shard") else "badge actor"


def _numbers() -> dict[str, int]:
    """Which step of a `dumps` each module is, from 1."""
    return {module: number for number, (module, _) in enumerate(house.DUMPS, 1)}


def _curve(start: Point, end: Point) -> str:
    middle = (start[1] + end[1]) / 2
    return f"M{start[0]:.0f} {start[1]:.0f}C{start[0]:.0f} {middle:.0f} {end[0]:.0f} {middle:.0f} {end[0]:.0f} {end[1]:.0f}"


def _rounded(points: list[Point]) -> str:
    """A line through points, with rounded corners."""
    path = [f"M{points[0][0]:.0f} {points[0][1]:.0f}"]
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        path.append(
            "L{:.1f} {:.1f}Q{:.1f} {:.1f} {:.1f} {:.1f}".format(*_towards(at, before), *at, *_towards(at, after))
        )
    return "".join([*path, f"L{points[-1][0]:.0f} {points[-1][1]:.0f}"])


def _towards(at: Point, other: Point) -> Point:
    distance = math.dist(at, other)
    share = min(0.5, _TURN / distance) if distance else 0.0
    return at[0] + (other[0] - at[0]) * share, at[1] + (other[1] - at[1]) * share


def write() -> None:
    """Draw docs/house.svg anew."""
    PICTURE.write_text(Drawing().svg())


def drawn_arrows(svg: str) -> set[tuple[str, str]]:
    """From which room to which a picture shows imports."""
    return set(re.findall(r'data-from="(\w+)" data-to="(\w+)"', svg))


def drawn_files(svg: str) -> set[tuple[str, str]]:
    """The modules that a picture shows, each with its room."""
    return set(re.findall(r'data-module="([\w.]+)" data-room="(\w+)"', svg))


def files() -> set[tuple[str, str]]:
    """The modules that the picture is to show, each with its room."""
    return {(module, each.name) for each in house.ROOMS for module in _files(each)}
