"""Trees in aerial photographs, as data for ``minivl adapt``: three photographs with 914 boxes become strips.

The photographs and their boxes ship with the package deepforest (MIT; they come from the National Ecological
Observatory Network). Each strip is one column of a photograph, 112 pixels wide; every fifth is for testing, so that no
tested place is trained on. It is written in YOLO's layout::

    pip download --no-deps deepforest==2.1.0
    python examples/aerial_trees.py deepforest-2.1.0-py3-none-any.whl data/trees
    minivl adapt data/trees --crop 112 --epochs 6 --loss-reduction square
"""

from __future__ import annotations

import argparse
import io
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

from PIL import Image

WIDTH = 112  # of a strip in pixels: nano's tile
VISIBLE = 0.4  # share of a tree that a strip must show
PHOTOGRAPHS = {  # boxes -> image; those of another package file with other classes are left out
    "2019_YELL_2_528000_4978000_image_crop2": "png",
    "2019_YELL_2_541000_4977000_image_crop": "png",
    "OSBS_029": "png",
}
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def split_of(column: int) -> str:
    """Two of ten columns are tested, one is held out while training."""
    return "test" if column % 5 == 4 else "valid" if column % 10 == 2 else "train"


def write_strips(package: zipfile.ZipFile, name: str, ending: str, out: Path) -> None:
    """The columns of one photograph with their boxes."""
    image = Image.open(io.BytesIO(package.read(f"deepforest/data/{name}.{ending}"))).convert("RGB")
    found = ElementTree.fromstring(package.read(f"deepforest/data/{name}.xml")).iter("bndbox")
    boxes = [[float(box.findtext(corner, "")) for corner in CORNERS] for box in found]
    for column in range(image.width // WIDTH):
        left, folder = column * WIDTH, out / split_of(column)
        lines = []
        for x1, y1, x2, y2 in boxes:
            begin, end = max(x1, left) - left, min(x2, left + WIDTH) - left
            if end - begin >= VISIBLE * (x2 - x1):
                middle = (begin + end) / 2 / WIDTH, (y1 + y2) / 2 / image.height
                lines.append(f"0 {middle[0]} {middle[1]} {(end - begin) / WIDTH} {(y2 - y1) / image.height}\n")
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        image.crop((left, 0, left + WIDTH, image.height)).save(folder / "images" / f"{name}_{column}.png")
        (folder / "labels" / f"{name}_{column}.txt").write_text("".join(lines))


def main() -> None:
    """Read the package, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="deepforest-2.1.0-py3-none-any.whl")
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    with zipfile.ZipFile(given.package) as package:
        for name, ending in PHOTOGRAPHS.items():
            write_strips(package, name, ending, given.output)
    (given.output / "data.yaml").write_text(
        "names: [tree]\ntrain: train/images\nval: valid/images\ntest: test/images\n"
    )
    print(f"{given.output}: {len(list(given.output.glob('*/images/*.png')))} strips")


if __name__ == "__main__":
    main()
