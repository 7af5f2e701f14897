"""MIMIC-CXR: chest radiographs with their reports.

The raw folder holds ``mimic-cxr-2.0.0-split.csv`` (dicom_id, study_id, subject_id, split) of MIMIC-CXR-JPG, its images
``files/p10/p10000032/s50414267/ID.jpg``, or those of MIMIC-CXR, ``ID.dcm`` (extra ``dicom``), and the reports
``files/p10/p10000032/s50414267.txt`` of MIMIC-CXR (https://physionet.org), and the files of GMAI-MMBench. A sample is
a study: its images, and findings and impression of its report (``_reports.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from mini_internvl import files
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, fault, lacking, said
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.domains import AdaptRecipe, DomainExample, ExampleImage, _captions, _reports
from mini_internvl.records import Sample

SOURCE = "mimic-cxr"
TITLE = "Chest radiographs (MIMIC-CXR)"
NAMES = {"train": "train", "validation": "validate"}
SPLITS = tuple(NAMES)
RECIPE = AdaptRecipe()
BENCHMARKS = _captions.BENCHMARKS
FILE = "mimic-cxr-2.0.0-split.csv"
LARGEST = 1 << 20  # bytes of a report


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a study of consecutive rows; a fault for each without report or with an image missing."""
    wanted = NAMES[chosen("split", split, SPLITS)]
    path = next((place for name in (FILE, f"{FILE}.gz") if (place := Path(raw) / name).is_file()), None)
    if path is None:
        raise DataError(f"{Path(raw) / FILE} is missing; give the folder that holds it and files/ (MIMIC-CXR-JPG)")
    images = Images(Path(raw))
    for study, found in itertools.groupby(scan(path), key=_study):
        rows = list(found)
        if isinstance(rows[0], Fault):
            yield from (row for row in rows if isinstance(row, Fault) and split == SPLITS[0])  # they say no split
        elif said(rows[0].raw, "split") == wanted:
            yield _read([row for row in rows if isinstance(row, Row)], study, images)


def _study(row: Row | Fault) -> str:
    """Where a row's report lies, without its ending; "" for a fault."""
    if isinstance(row, Fault):
        return ""
    subject, study = said(row.raw, "subject_id"), said(row.raw, "study_id")
    return f"files/p{subject[:2]}/p{subject}/s{study}"


def _read(rows: Sequence[Row], study: str, images: Images) -> Sample | Fault:
    if wrong := lacking(rows[0].raw, "dicom_id", "study_id", "subject_id"):
        return fault(rows[0], wrong)
    shown = []
    for row in rows:
        names = [f"{study}/{said(row.raw, 'dicom_id')}.{ending}" for ending in ("jpg", "dcm")]
        place = next(filter(None, map(images.find, names)), None)
        if place is None:
            return fault(row, images.missing(names[0]))
        shown.append(place)
    if (report := images.find(f"{study}.txt")) is None:
        return fault(rows[0], f"the report {study}.txt is missing")
    try:
        text = _reports.described(files.read_text(Path(report), limit=LARGEST))
    except files.FileError as error:
        return fault(rows[0], str(error))
    return _captions.described(rows[0], f"s{said(rows[0].raw, 'study_id')}", shown, text, kind="report", source=SOURCE)


_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough

 FINDINGS:

 There is no focal consolidation,
 pleural effusion or pneumothorax.

 IMPRESSION:

 No acute cardiopulmonary process.
"""
_STUDY = "files/p10/p10000032/s50414267"
EXAMPLE = DomainExample(
    files={
        FILE: "\n".join(
            [
                "dicom_id,study_id,subject_id,split",
                "02aa804e,50414267,10000032,train",
                "174413ec,50414267,10000032,train",
                "2a2277a9,53189527,10000032,train",
                "68b5c4b1,53911762,10000032,train",
                "e084de3b,53911763,10000032,train",
                "96b5c4b1,56699142,10000764,validate",
                "",
            ]
        ),
        f"{_STUDY}.txt": _REPORT,
        "files/p10/p10000032/s53911762.txt": "\n",
        "files/p10/p10000032/s53911763.txt": _REPORT,
        "files/p10/p10000764/s56699142.txt": " WET READ: 9:00\n No pneumonia.\n",
        **_captions.BENCHMARK_FILES,
    },
    images={
        f"{_STUDY}/02aa804e.jpg": ExampleImage(),
        f"{_STUDY}/174413ec.jpg": ExampleImage(seed=1),
        "files/p10/p10000032/s53189527/2a2277a9.jpg": ExampleImage(),
        "files/p10/p10000032/s53911762/68b5c4b1.jpg": ExampleImage(),
        "files/p10/p10000764/s56699142/96b5c4b1.jpg": ExampleImage(),
    },
    samples={
        "train": [
            _captions.pair(
                SOURCE,
                "s50414267",
                [f"{_STUDY}/02aa804e.jpg", f"{_STUDY}/174413ec.jpg"],
                "Write the findings and the impression of a radiology report for this study.",
                "Findings: There is no focal consolidation, pleural effusion or pneumothorax.\n"
                "Impression: No acute cardiopulmonary process.",
            )
        ],
        "validation": [
            _captions.pair(
                SOURCE,
                "s56699142",
                ["files/p10/p10000764/s56699142/96b5c4b1.jpg"],
                "What does this radiograph show? Answer as a radiology report.",
                "9:00 No pneumonia.",
            )
        ],
    },
    faults={"train": 3, "validation": 0},
)
