"""The chain of artifacts of a run as a picture: what was made from what, and whether each says so of the other.

tokenizer -> data -> model -> run -> checkpoints -> evaluations, each with its fingerprint and the fingerprints of its
parents as it recorded them. Only manifests are read; `jaxlm check` reads every byte of what they vouch for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.checkpoint import CheckpointStore
from jaxlm.config.schema import RunConfig
from jaxlm.contract import PARENTS, ContractError, InputError, Manifest
from jaxlm.report.page import escape
from jaxlm.run import Layout

WIDTH, HEIGHT, GAP, ROOM = 168, 58, 14, 34  # of a box, between boxes of a row, between rows; pixels
COLUMNS = 2  # boxes in a row: what a phone can show
NEWEST = 6  # checkpoints and evaluations that are drawn, of each the newest

# The parents to which each kind is joined by a line; of the others the box says whether they agree. A run holds its model.
LINES = {
    "data": ("tokenizer",),
    "model": ("tokenizer",),
    "run": ("data", "model"),
    "checkpoint": ("run",),
    "evaluation": ("checkpoint",),
}
RANKS = {"tokenizer": 0, "data": 1, "model": 1, "run": 2, "checkpoint": 3, "evaluation": 4}  # rows, top to bottom


@dataclass(frozen=True)
class Link:
    """A parent that an artifact recorded: its kind, the fingerprint that was recorded, and that of the artifact there.

    found: None where there is no such artifact any more, as with a checkpoint that was not kept.
    """

    kind: str
    recorded: str
    found: str | None

    @property
    def kept(self) -> bool:
        """Whether what is there is what was recorded."""
        return self.recorded == self.found


@dataclass(frozen=True)
class Node:
    """An artifact. error: why its manifest cannot be read, else empty."""

    kind: str
    name: str
    fingerprint: str = ""
    links: tuple[Link, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    error: str = ""

    @property
    def kept(self) -> bool:
        """Whether it can be read and every parent that is there is the recorded one."""
        return not self.error and all(link.kept or link.found is None for link in self.links)


def chain(path: Path, config: RunConfig) -> list[Node]:
    """Every artifact of the run at `path`, in the order in which they were made; damaged ones say why."""
    layout, store = Layout(path), CheckpointStore(Layout(path).checkpoints)
    found: dict[str, dict[str, Manifest]] = {}
    nodes: list[Node] = []

    def take(kind: str, name: str, read: Manifest | str) -> None:
        if isinstance(read, str):
            nodes.append(Node(kind, name, error=read))
            return
        links = tuple(
            Link(parent, read.parents.get(parent, "nothing"), _there(found.get(parent, {}), read.parents.get(parent, "")))
            for parent in PARENTS.get(kind, ())
        )
        found.setdefault(kind, {})[name] = read
        nodes.append(Node(kind, name, read.fingerprint, links, read.facts))

    take("tokenizer", "tokenizer", _manifest(layout.tokenizer, "tokenizer"))
    take("data", config.data.path or "data", _manifest(layout.data(config), "data"))
    run = _manifest(path, "run")
    if isinstance(run, Manifest):
        take("model", "in the run", _model(run, layout))
    take("run", path.name, run)
    for step in store.committed()[-NEWEST:]:
        take("checkpoint", f"step {step}", _manifest(store.path(step), "checkpoint"))
    folder = layout.evaluations
    roots = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    for root in roots[-NEWEST:]:
        take("evaluation", root.name, _manifest(root, "evaluation"))
    return nodes


def _there(those: Mapping[str, Manifest], recorded: str) -> str | None:
    """The fingerprint of the artifact that a link should lead to: that one, else the only one of its kind."""
    fingerprints = [manifest.fingerprint for manifest in those.values()]
    if recorded in fingerprints:
        return recorded
    return fingerprints[0] if len(fingerprints) == 1 and next(iter(those.values())).kind != "checkpoint" else None


def _manifest(path: Path, kind: str) -> Manifest | str:
    try:
        return Manifest.load(path, kind)
    except (ContractError, InputError) as error:
        return str(error)


def _model(run: Manifest, layout: Layout) -> Manifest | str:
    try:
        return Manifest.from_json(run.facts["model"], artifact=layout.manifest)
    except ContractError as error:
        return str(error)


# ---- the picture -------------------------------------------------------------------------------------------------

STYLE = """
.chain { display: block; width: 100%; max-width: 364px; height: auto; }
.chain rect { fill: var(--paper); stroke: var(--line); stroke-width: 1.5; }
.chain text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.chain .soft { fill: var(--soft); font-size: 11px; }
.chain .mono { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; font-size: 11px; }
.chain path { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.chain .broken rect, .chain path.broken { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 5 3; }
.chain .broken .verdict { fill: var(--bad); font-weight: 600; }
"""


def picture(nodes: Sequence[Node], *, name: str) -> str:
    """The chain as SVG, top to bottom. name: of the run, for readers who hear the page."""
    rows = _rows(nodes)
    places: dict[int, tuple[float, float]] = {}
    across = COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    for line, row in enumerate(rows):
        left = (across - len(row) * WIDTH - (len(row) - 1) * GAP) / 2
        for column, at in enumerate(row):
            places[at] = (1 + left + column * (WIDTH + GAP), 1 + line * (HEIGHT + ROOM))
    tall = len(rows) * (HEIGHT + ROOM) - ROOM + 2
    lines = "".join(_line(places[parent], places[at], kept) for at, parent, kept in _joined(nodes))
    boxes = "".join(_box(nodes[at], *place) for at, place in places.items())
    broken = sum(not node.kept for node in nodes)
    words = f"The artifacts of {name}: {len(nodes)}, " + (f"{broken} of them broken" if broken else "all of which agree")
    return f'<svg class="chain" viewBox="0 0 {across + 2} {tall}" role="img" aria-label="{escape(words)}">{lines}{boxes}</svg>'


def _rows(nodes: Sequence[Node]) -> list[list[int]]:
    """The places of the nodes: a rank begins a row of its own."""
    rows: list[list[int]] = []
    for at, node in enumerate(nodes):
        if rows and RANKS[nodes[rows[-1][-1]].kind] == RANKS[node.kind] and len(rows[-1]) < COLUMNS:
            rows[-1].append(at)
        else:
            rows.append([at])
    return rows


def _joined(nodes: Sequence[Node]) -> list[tuple[int, int, bool]]:
    """(node, parent, kept) of every line that is drawn."""
    found = []
    for at, node in enumerate(nodes):
        for kind in LINES.get(node.kind, ()):
            link = next((link for link in node.links if link.kind == kind), None)
            above = [i for i, other in enumerate(nodes[:at]) if other.kind == kind]
            same = [i for i in above if link is None or nodes[i].fingerprint == link.recorded]
            if same:
                found.append((at, same[-1], node.kept))
            elif above and (link is None or link.found is not None):
                found.append((at, above[-1], False))
    return found


def _line(start: tuple[float, float], end: tuple[float, float], kept: bool) -> str:
    x0, y0, x1, y1 = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    bend = (y0 + y1) / 2 if y1 - y0 <= ROOM else y1 - ROOM / 2
    mark = "" if kept else ' class="broken"'
    return f'<path{mark} d="M{x0:g} {y0:g}C{x0:g} {bend:g} {x1:g} {bend:g} {x1:g} {y1:g}"/>'


def _box(node: Node, x: float, y: float) -> str:
    if node.error:
        verdict = "cannot be read"
    elif differing := [link.kind for link in node.links if not link.kept and link.found is not None]:
        verdict = f"another {', '.join(differing)}"
    elif gone := [link.kind for link in node.links if link.found is None]:
        verdict = f"its {', '.join(gone)} is not kept"
    else:
        verdict = "" if not node.links else "1 parent agrees" if len(node.links) == 1 else f"{len(node.links)} parents agree"
    about = [node.error or f"{node.kind} {node.fingerprint}", *(_said(link) for link in node.links)]
    room = int((WIDTH - 26 - 7.2 * len(node.kind)) / 6.2)  # letters that stand beside the kind
    title = node.name if len(node.name) <= room else node.name[: room - 1] + "…"
    return (
        f'<g class="{"kept" if node.kept else "broken"}"><title>{escape("; ".join(about))}</title>'
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<text x="{x + 10:g}" y="{y + 18:g}">{escape(node.kind)}<tspan class="soft" dx="6">{escape(title)}</tspan></text>'
        f'<text class="mono" x="{x + 10:g}" y="{y + 34:g}">{escape(node.fingerprint[:16])}</text>'
        f'<text class="soft verdict" x="{x + 10:g}" y="{y + 50:g}">{escape(verdict)}</text></g>'
    )


def _said(link: Link) -> str:
    if link.kept:
        return f"{link.kind} {link.recorded[:16]}, as recorded"
    return f"{link.kind}: recorded {link.recorded[:16]}, found {(link.found or 'none')[:16]}"
