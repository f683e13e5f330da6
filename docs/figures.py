"""Draws docs/figures: switches.svg, a pooling and its adjoint from what the ops give, and layer.svg, a layer both ways.

python docs/figures.py
"""

from pathlib import Path

import torch

import zfkernels as zf

MAP = [[1, 2, 0, 1, 0], [0, 3, 1, 0, 2], [2, 1, 6, 0, 1], [0, 1, 0, 2, 7], [4, 0, 1, 3, 0]]
CELL, GAP, TOP = 34, 56, 34
STYLE = (
    ".c{fill:none;stroke:#888}.m{fill:#f5a623;fill-opacity:.55;stroke:#888}.a{stroke:#888;fill:none}"
    ".n{font:15px sans-serif;text-anchor:middle;fill:#777}.t{font:14px sans-serif;fill:#777}"
)


def grid(values: list[list[float]], left: int, title: str, marked: set[tuple[int, int]]) -> str:
    """A map of numbers with its title; `marked` cells are filled."""
    parts = [f'<text x="{left}" y="{TOP - 12}" class="t">{title}</text>']
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            x, y = left + column * CELL, TOP + row * CELL
            kind = "m" if (row, column) in marked else "c"
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" class="{kind}"/>')
            parts.append(f'<text x="{x + CELL // 2}" y="{y + 22}" class="n">{value:g}</text>')
    return "".join(parts)


def write(path: Path, width: int, height: int, parts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def switches(path: Path) -> None:
    """A map, its maxima, their switches, and what unpooling makes of them."""
    x = torch.tensor(MAP, dtype=torch.float64)[None, None]
    y, places = zf.max_pool2d_with_switches(x, 3, stride=2)
    back = zf.max_unpool2d_with_switches(y, places, 3, stride=2, output_size=(5, 5))
    winners = {(int(i), int(j)) for i, j in back[0, 0].nonzero()}
    shown = [
        ("x, with the winners", x, winners),
        ("y, windows 3 x 3, stride 2", y, set()),
        ("switches, kh*3 + kw", places, set()),
        ("sent back: sums", back, winners),
    ]
    left, parts = 10, []
    for title, values, marked in shown:
        parts.append(grid(values[0, 0].tolist(), left, title, marked))
        left += max(len(values[0, 0][0]) * CELL, 176) + GAP - 30
    write(path, left, TOP + 5 * CELL + 8, parts)


def layer(path: Path) -> None:
    """A layer on the way up, and below it the same layer on the way down."""
    up = ("maps below", "filter, bias", "rectify", "pool", "maps above")
    down = ("signal below", "filter, flipped", "rectify", "unpool", "one unit")
    wide, high, gap, parts = 124, 40, 34, []
    for row, names in enumerate((up, down)):
        top = 10 + row * 104
        for column, name in enumerate(names):
            left = 10 + column * (wide + gap)
            kind = "m" if column in (0, 4) else "c"
            parts.append(f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" rx="5" class="{kind}"/>')
            parts.append(f'<text x="{left + wide // 2}" y="{top + 25}" class="n">{name}</text>')
            if column:
                parts.append(arrow(left - gap + 4, left - 4, top + high // 2, row == 1))
    middle = 10 + 3 * (wide + gap) + wide // 2
    parts.append(f'<path d="M{middle} 52V110m-5 -8l5 8l5 -8" class="a" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{middle + 10}" y="86" class="t">switches</text>')
    write(path, 20 + 5 * wide + 4 * gap, 164, parts)


def arrow(start: int, end: int, y: int, back: bool) -> str:
    """A level arrow, to the left if `back`."""
    tip, side = (start, 6) if back else (end, -6)
    return f'<path d="M{start} {y}H{end}M{tip + side} {y - 5}L{tip} {y}L{tip + side} {y + 5}" class="a"/>'


if __name__ == "__main__":
    folder = Path(__file__).parent / "figures"
    switches(folder / "switches.svg")
    layer(folder / "layer.svg")
