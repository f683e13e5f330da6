"""Writes pictures of an IDX file (MNIST, Fashion-MNIST) as PNG files in a folder for each class, as every command takes
them.

python examples/idx_to_folders.py /usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz OUT --each 100
"""

import argparse
from pathlib import Path

from PIL import Image

from zfkernels.data.idx import class_names, pairs, read_pair
from zfkernels.models.load import read_classes


def write(images: Path, out: Path, each: int, classes: Path | None = None) -> int:
    """The first `each` pictures of each class; how many were written."""
    found = read_pair(pairs(images)[0])
    names = list(class_names([found]))
    names = names if classes is None else read_classes(classes, len(names))
    written = 0
    for label, name in enumerate(names):
        folder = out / name.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for number in (found.labels == label).nonzero().flatten()[:each].tolist():
            Image.fromarray(found.images[number].numpy()).save(folder / f"{number:05d}.png")
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="FILE", help="NAME-images-idx3-ubyte, with or without .gz")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the folders")
    parser.add_argument("--each", type=int, default=100, help="pictures a class (%(default)s)")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="the classes' names, one a line (default: numbers)"
    )
    args = parser.parse_args()
    print(f"{write(args.images, args.out, args.each, args.classes)} pictures in {args.out}")


if __name__ == "__main__":
    main()
