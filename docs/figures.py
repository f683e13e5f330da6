"""Draws docs/figures/switches.svg: a pooling with switches and its adjoint, from what the ops give.

python docs/figures.py
"""

from pathlib import Path

import torch

import zfkernels as zf

MAP = [[1, 2, 0, 1, 0], [0, 3, 1, 0, 2], [2, 1, 6, 0, 1], [0, 1, 0, 2, 7], [4, 0, 1, 3, 0]]
CELL, GAP, TOP = 34, 56, 34


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


def main(path: Path) -> None:
    x = torch.tensor(MAP, dtype=torch.float64)[None, None]
    y, switches = zf.max_pool2d_with_switches(x, 3, stride=2)
    back = zf.max_unpool2d_with_switches(y, switches, 3, stride=2, output_size=(5, 5))
    places = {(int(i), int(j)) for i, j in back[0, 0].nonzero()}
    shown = [
        ("x, with the winners", x, places),
        ("y, windows 3 x 3, stride 2", y, set()),
        ("switches, kh*3 + kw", switches, set()),
        ("sent back: sums", back, places),
    ]
    left, parts = 10, []
    for title, values, marked in shown:
        parts.append(grid(values[0, 0].tolist(), left, title, marked))
        left += max(len(values[0, 0][0]) * CELL, 176) + GAP - 30
    style = (
        ".c{fill:none;stroke:#888}.m{fill:#f5a623;fill-opacity:.55;stroke:#888}"
        ".n{font:15px sans-serif;text-anchor:middle;fill:#777}.t{font:14px sans-serif;fill:#777}"
    )
    height = TOP + 5 * CELL + 8
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left} {height}" width="{left}" height="{height}">'
        f"<style>{style}</style>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    main(Path(__file__).parent / "figures" / "switches.svg")
