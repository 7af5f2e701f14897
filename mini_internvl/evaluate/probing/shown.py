"""What a page of a probe shows beside numbers: pictures, maps of their patches as colours, and nearest neighbours.

Maps follow one rule. The reference is the teacher, or the first encoder without one. Principal components are taken of
the patches of all shown pictures of a task together, centred; the first three are red, green and blue. Components of
another encoder have signs and an order of their own, so its three are turned (rotated or mirrored as a whole, nothing
else) to lie nearest to the reference's at the same places. Each colour runs from the 2nd to the 98th percentile.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mini_internvl.evaluate.probing.features import Encoder, Wanted, collect, pool
from mini_internvl.evaluate.probing.tasks import Picture, Task
from mini_internvl.files import new_file, write_json
from mini_internvl.metrics.neighbours import nearest

SHOWN, IMAGES = "shown.json", "pictures"
PICTURES, NEIGHBOURS = 6, 5  # of a task; of a picture
SIDE = 160  # longest side of a picture in pixels


def write_shown(
    encoders: Sequence[Encoder],
    tasks: Sequence[Task],
    *,
    reference: str,
    wanted: Mapping[str, Wanted],
    how: str,
    folder: Path,
) -> None:
    """Write ``shown.json`` and the images that it names.

    Args:
        encoders: those that were probed.
        tasks: what they were probed with.
        reference: name of the encoder whose components give the colours.
        wanted: by encoder, which features its pictures have.
        how: what of them is compared between pictures ("mean", "cls" or "both").
        folder: of the results.
    """
    content: dict[str, Any] = {"reference": reference, "tasks": []}
    shutil.rmtree(folder / IMAGES, ignore_errors=True)  # those of an earlier probe may be others
    for task in tasks:
        place = folder / IMAGES / task.name
        place.mkdir(parents=True)
        asked = _spread(task)
        maps = patch_maps(encoders, [task.test[number] for number in asked], reference=reference, wanted=wanted)
        rows: list[dict[str, Any]] = []
        for at_row, number in enumerate(asked):
            files = {name: _save(Image.fromarray(made[at_row]), place / f"map-{number}-{at}.png", folder)
                     for at, (name, made) in enumerate(maps.items())}  # fmt: skip
            rows.append({**_described(task, "test", number, place, folder), "maps": files, "neighbours": {}})
        for one in encoders:
            train, test = (pool(collect(one, side, wanted[one.name])[:, 0], how) for side in (task.train, task.test))
            places, cosines = nearest(test[asked], train, NEIGHBOURS)
            for row, near, alike in zip(rows, places, cosines, strict=True):
                row["neighbours"][one.name] = [
                    {**_described(task, "train", int(number), place, folder), "cosine": round(float(cosine), 4)}
                    for number, cosine in zip(near, alike, strict=True)
                ]
        content["tasks"].append({"name": task.name, "pictures": rows})
    write_json(folder / SHOWN, content)


def _spread(task: Task) -> list[int]:
    """Numbers of test pictures, of as many classes as can be."""
    order, seen = list[tuple[int, int]](), dict[int, int]()
    for number, one in enumerate(task.test):
        seen[one.label] = seen.get(one.label, 0) + 1
        order.append((seen[one.label], number))
    return sorted(number for _, number in sorted(order)[:PICTURES])


def _described(task: Task, side: str, number: int, place: Path, folder: Path) -> dict[str, Any]:
    """A picture with its class, saved small."""
    one = (task.test if side == "test" else task.train)[number]
    path = place / f"{side}-{number}.jpg"
    if not path.is_file():
        image = one.load().copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        _save(image, path, folder)
    return {"id": one.id, "label": task.classes[one.label], "image": path.relative_to(folder).as_posix()}


def _save(image: Image.Image, path: Path, folder: Path) -> str:
    with new_file(path, flush=False) as draft, draft.open("wb") as file:
        image.save(file, "JPEG" if path.suffix == ".jpg" else "PNG", quality=88)
    return path.relative_to(folder).as_posix()


def patch_maps(
    encoders: Sequence[Encoder], pictures: Sequence[Picture], *, reference: str, wanted: Mapping[str, Wanted]
) -> dict[str, np.ndarray]:
    """By encoder, uint8 (pictures, rows, columns, 3): three principal components of every patch as red, green, blue."""
    scores = {one.name: _components(one, pictures, wanted[one.name]) for one in encoders}
    target = scores[reference]
    return {name: _colours(values if name == reference else turned(values, target)) for name, values in scores.items()}


def _components(encoder: Encoder, pictures: Sequence[Picture], wanted: Wanted) -> np.ndarray:
    """(pictures, side, side, 3)."""
    side = wanted.size // encoder.model.config.patch_size
    whole = Wanted(layers=wanted.layers, size=wanted.size, grid=side)
    patches = collect(encoder, pictures, whole)[:, 0, 1:].reshape(len(pictures) * side * side, -1)
    x = patches.astype(np.float64) - patches.mean(0, dtype=np.float64)
    _, directions = np.linalg.eigh(x.T @ x)
    return np.asarray((x @ directions[:, :-4:-1]).reshape(len(pictures), side, side, 3))


def turned(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n, side, side, 3) turned as a whole to lie nearest to a target (n, other side, other side, 3).

    Orthogonal Procrustes on the target resized to this grid.
    """
    grid = torch.from_numpy(target).permute(0, 3, 1, 2)
    near = F.interpolate(grid, size=values.shape[1:3], mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
    left, _, right = np.linalg.svd(values.reshape(-1, 3).T @ near.reshape(-1, 3))
    return np.asarray(values @ (left @ right))


def _colours(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values.reshape(-1, 3), (2, 98), axis=0)
    shares = (values - low) / np.maximum(high - low, 1e-12)
    return np.asarray((255 * shares.clip(0, 1)).round().astype(np.uint8))
