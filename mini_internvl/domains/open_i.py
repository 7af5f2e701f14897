"""Open-i: the chest radiographs of Indiana University with their reports.

The raw folder holds ``ecgen-radiology/*.xml`` (NLMCXR_reports), the images ``NLMCXR_png/*.png`` (both of
https://openi.nlm.nih.gov), and the files of GMAI-MMBench. A sample is a report: its images, named by ``parentImage``,
and the sections FINDINGS and IMPRESSION of its abstract. There is one split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mini_internvl import files
from mini_internvl.benchmarks._files import chosen
from mini_internvl.benchmarks._questions import Images, fault
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.domains import AdaptRecipe, DomainExample, ExampleImage, _captions, _reports
from mini_internvl.records import Sample

SOURCE = "open-i"
TITLE = "Chest radiographs (Open-i)"
SPLITS = ("train",)
RECIPE = AdaptRecipe()
BENCHMARKS = _captions.BENCHMARKS
REPORTS = "ecgen-radiology"
LARGEST = 1 << 20  # bytes of a report


def convert(raw: Path, split: str) -> Iterator[Sample | Fault]:
    """One sample a report; a fault for each without images, without findings and impression, or that is no XML."""
    chosen("split", split, SPLITS)
    folder = Path(raw) / REPORTS
    paths = sorted(folder.glob("*.xml"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise DataError(f"{folder} holds no reports; give the folder that holds {REPORTS} and NLMCXR_png")
    images = Images(Path(raw) / "NLMCXR_png", Path(raw) / "images", Path(raw))
    for path in paths:
        yield _read(Row(file=path, place="report", raw={}, id=path.stem), images)


def _read(row: Row, images: Images) -> Sample | Fault:
    try:
        root = ElementTree.fromstring(files.read_bytes(row.file, limit=LARGEST))
    except (ElementTree.ParseError, files.FileError) as error:
        return fault(row, f"it is no XML report ({error})")
    sections = {part.get("Label", ""): "".join(part.itertext()) for part in root.iter("AbstractText")}
    names = [f"{part.get('id', '')}.png" for part in root.iter("parentImage")]
    if not names:
        return fault(row, "it names no image")
    shown = [place for name in names if (place := images.find(name))]
    if len(shown) < len(names):
        return fault(row, images.missing(next(name for name in names if not images.find(name))))
    text = _reports.joined(sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""))
    return _captions.described(row, row.id, shown, text, kind="report", source=SOURCE)


def _report(findings: str, impression: str, *images: str) -> str:
    """A report file, for the example."""
    parts = {"INDICATION": "Cough", "FINDINGS": findings, "IMPRESSION": impression}
    abstract = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in parts.items())
    shown = "".join(f'<parentImage id="{name}"><caption>Chest</caption></parentImage>' for name in images)
    return f"<eCitation><Abstract>{abstract}</Abstract>{shown}</eCitation>"


EXAMPLE = DomainExample(
    files={
        f"{REPORTS}/1.xml": _report(
            "The lungs are clear.", "Normal chest.", "CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"
        ),
        f"{REPORTS}/2.xml": _report("", "No acute disease.", "CXR1_1_IM-0001-3001"),
        f"{REPORTS}/3.xml": _report("", "", "CXR1_1_IM-0001-3001"),
        f"{REPORTS}/4.xml": _report("No images.", ""),
        f"{REPORTS}/5.xml": _report("Missing image.", "", "CXR5_IM-2117-1001"),
        f"{REPORTS}/10.xml": "<eCitation>",
        **_captions.BENCHMARK_FILES,
    },
    images={f"NLMCXR_png/CXR1_1_IM-0001-{view}.png": ExampleImage() for view in (3001, 4001)},
    samples={
        "train": [
            _captions.pair(
                SOURCE,
                "1",
                ["NLMCXR_png/CXR1_1_IM-0001-3001.png", "NLMCXR_png/CXR1_1_IM-0001-4001.png"],
                "Write a radiology report for this examination.",
                "Findings: The lungs are clear.\nImpression: Normal chest.",
            ),
            _captions.pair(
                SOURCE,
                "2",
                ["NLMCXR_png/CXR1_1_IM-0001-3001.png"],
                "What does this radiograph show? Answer as a radiology report.",
                "Impression: No acute disease.",
            ),
        ]
    },
    faults={"train": 4},
)
