"""A small data set of photographs that needs no network: the ones scikit-image carries inside its wheel.

One photograph is one class. They are photographs whose parts resemble one another, so that a network can recognise a
part that it never saw; in a scene whose every part shows another thing (an astronaut before a flag and a rocket) it
could not. Crops are square, drawn at random positions and scales, and resized to the side that a network wants. A
photograph is divided into square cells, a quarter of its shorter side each, and every fifth cell is held out:

    H . . . .      training crops touch no pixel of a held-out cell;
    . . . H .      held-out crops lie wholly inside one.
    . H . . .
    . . . . H

A crop is cut from the original pixels before it is resized, so no filter carries a pixel across a cell's border.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

Box = tuple[int, int, int, int]  # top, left, bottom, right; half-open
Size = tuple[int, int]  # height, width

CLASSES = {
    "brick": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "galaxies": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "retina": "retina.jpg",
    "tissue": "ihc.png",
}
CELLS_ACROSS = 4  # the shorter side of a photograph, in cells
SMALLEST_CROP = 0.75  # the smallest crop's side, in cells; the largest is one cell


def data_file(name: str) -> Path:
    """A file that scikit-image carries.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        FileNotFoundError: the installed one carries no such file.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the photographs come with scikit-image; pip install 'zfkernels[demo]'", name="skimage"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    if not path.exists():
        raise FileNotFoundError(f"this scikit-image does not carry {path.name}; pip install -U 'zfkernels[demo]'")
    return path


def held_out_cells(height: int, width: int) -> list[Box]:
    """The cells that training never sees."""
    side = min(height, width) // CELLS_ACROSS
    rows, columns = height // side, width // side
    return [
        (row * side, column * side, (row + 1) * side, (column + 1) * side)
        for row in range(rows)
        for column in range(columns)
        if (column + 2 * row) % 5 == 0
    ]


def overlap(a: Box, b: Box) -> bool:
    """Whether two half-open boxes share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass
class Crops:
    """Crops, and the boxes that they were cut from."""

    images: torch.Tensor  # uint8 (N, 3, side, side)
    labels: torch.Tensor  # int64 (N,)
    boxes: torch.Tensor  # int64 (N, 4): top, left, bottom, right in pixels of photograph labels[i]; half-open


class Photographs:
    """The photographs of `classes`, and random crops of `side` pixels from their training or held-out cells."""

    def __init__(self, side: int, classes: tuple[str, ...] = tuple(CLASSES)) -> None:
        self.side = side
        self.classes = tuple(classes)
        self.pixels = []  # uint8 (height, width, 3) each
        for name in self.classes:
            with Image.open(data_file(CLASSES[name])) as image:
                self.pixels.append(np.asarray(image.convert("RGB")))
        self.cells = [held_out_cells(*pixels.shape[:2]) for pixels in self.pixels]

    def training_crops(self, per_class: int, generator: np.random.Generator) -> Crops:
        """`per_class` crops of each class that touch no held-out cell, in the order of the classes."""
        return self._crops(per_class, generator, held_out=False)

    def held_out_crops(self, per_class: int, generator: np.random.Generator) -> Crops:
        """`per_class` crops of each class, each wholly inside a held-out cell, in the same order."""
        return self._crops(per_class, generator, held_out=True)

    def centre_square(self, label: int) -> torch.Tensor:
        """The largest square in the photograph's middle, as `view` gives it."""
        height, width = self.pixels[label].shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return self.view(label, (top, left, top + side, left + side))

    def tiles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All photographs cut into squares that do not overlap, of the smallest crops' size: uint8 images, labels."""
        images, labels = [], []
        for label, pixels in enumerate(self.pixels):
            side = _sides(pixels.shape[:2])[0]
            for top in range(0, pixels.shape[0] - side + 1, side):
                for left in range(0, pixels.shape[1] - side + 1, side):
                    images.append(self.view(label, (top, left, top + side, left + side)))
                    labels.append(label)
        return torch.stack(images), torch.tensor(labels)

    def view(self, label: int, box: Box) -> torch.Tensor:
        """A square part of a photograph, resized with antialiasing to a uint8 (3, side, side) tensor."""
        top, left, bottom, right = box
        part = Image.fromarray(self.pixels[label][top:bottom, left:right])
        resized = part.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def _crops(self, per_class: int, generator: np.random.Generator, held_out: bool) -> Crops:
        images, labels, boxes = [], [], []
        for label, (pixels, cells) in enumerate(zip(self.pixels, self.cells, strict=True)):
            shape = pixels.shape[:2]
            for _ in range(per_class):
                box = None
                while box is None or (not held_out and any(overlap(box, cell) for cell in cells)):
                    area = cells[generator.integers(len(cells))] if held_out else (0, 0, *shape)
                    box = _random_box(shape, area, generator)
                images.append(self.view(label, box))
                labels.append(label)
                boxes.append(box)
        return Crops(torch.stack(images), torch.tensor(labels), torch.tensor(boxes))


def _sides(shape: Size) -> tuple[int, int]:
    """The smallest and the largest crop of a photograph of `shape`."""
    cell = min(shape) // CELLS_ACROSS
    return round(SMALLEST_CROP * cell), cell


def _random_box(shape: Size, area: Box, generator: np.random.Generator) -> Box:
    """A random crop, inside `area`, of a photograph of `shape`."""
    side = int(generator.integers(*_sides(shape), endpoint=True))
    top, left = (int(generator.integers(area[axis], area[2 + axis] - side + 1)) for axis in (0, 1))
    return top, left, top + side, left + side
