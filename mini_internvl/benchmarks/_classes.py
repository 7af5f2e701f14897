"""Images in a folder for each class, as EuroSAT, RESISC45 and UC Merced are published.

The class folders lie in the raw folder, or in a folder of each split (``train``, ``validation``, ``test``, or another
name in ``SPLITS``). Without folders of splits an image belongs to the split that a hash of ``CLASS/NAME`` gives, about
70, 10 and 20 % of them, so that nothing but renaming moves it. A split that has no folder takes its share of ``train``
by the same hash. The question names all classes, in the wording of the paper (section 3.3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from mini_internvl.benchmarks._questions import SHARES, Question, split_of
from mini_internvl.data import DataError, Fault
from mini_internvl.data.containers import IMAGE_ENDINGS

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Split -> names of its folder, in any case; of several the first."""
PROMPT = "Classify the image within one of the given classes: {}. Answer with one word or short phrase."


class SameClassError(DataError):
    """Two folders mean one class."""


_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def read_classes(folder: Path, split: str) -> Iterator[Question | Fault]:
    """One question an image of the split, by class and name, and a fault for each file that is no image.

    Raises DataError where the folder holds no two class folders, SameClassError where two of them mean one class.
    """
    place, taken = _place(folder, split)
    names = _folders(place)
    if len(names) < 2:
        raise DataError(f"{place} holds no class folders; give the folder that holds one folder of images a class")
    labels = {name: label(name) for name in names}
    first = {shown: name for name, shown in reversed(labels.items())}
    for name, shown in labels.items():
        if first[shown] != name:
            raise SameClassError(
                f'the folders {first[shown]} and {name} in {place} both mean the class "{shown}"; put their images '
                "into one folder, or rename one"
            )
    prompt = PROMPT.format(", ".join(labels.values()))
    for name, shown in labels.items():
        for file in sorted(os.listdir(place / name)):
            if file.startswith(".") or split_of(f"{name}/{file}") not in taken:
                continue
            path = place / name / file
            if path.suffix.lower().lstrip(".") not in IMAGE_ENDINGS or not path.is_file():
                yield Fault(file=path, place="file", reason="its ending is not one of an image; take it out")
                continue
            reference = {"answer": shown, "question": prompt}
            yield Question(id=f"{name}/{file}", image=os.fspath(path), prompt=prompt, answer=shown, reference=reference)


def _place(folder: Path, split: str) -> tuple[Path, Collection[str]]:
    """Where the class folders of a split lie, and the splits by hash that belong to it there."""
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; give the folder that holds one folder of images a class")
    below = {name.lower(): name for name in _folders(folder)}
    named = {one: [below[name] for name in names if name in below] for one, names in SPLITS.items()}
    places = {one: folder / found[0] for one, found in named.items() if found}
    if "train" not in places or not _folders(places["train"]):  # a class may be called so
        return folder, {split}
    if split == "train":
        return places["train"], places.keys()
    return (places[split], SHARES) if split in places else (places["train"], {split})


def _folders(place: Path) -> Sequence[str]:
    return sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))


def label(name: str) -> str:
    """The class that a folder's name means: ``AnnualCrop`` and ``annual_crop`` are ``annual crop``."""
    return " ".join(_CAPITAL.sub(" ", name).replace("_", " ").replace("-", " ").lower().split())
