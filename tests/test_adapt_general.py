"""General data of an adaptation: original files, meta JSONs and rows, mixed in beside each other."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mini_internvl import plugins
from mini_internvl.adapt import AdaptConfig, adapt
from mini_internvl.adapt.general import settle
from mini_internvl.data import DataError
from mini_internvl.data.rows import read_samples
from mini_internvl.data.sources import open_source


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw folders of some domains by their names, with a file of rows and a meta JSON in ``rows``."""
    folder = tmp_path_factory.mktemp("raw")
    for name in ("chartqa", "ai2d", "dvqa"):
        plugins.find("domains", name).EXAMPLE.write(folder / name)
    rows = folder / "rows"
    (rows / "pictures").mkdir(parents=True)
    image = folder / "dvqa/images/bar_train_00000001.png"
    (rows / "pictures/1.png").write_bytes(image.read_bytes())
    for name, count in (("mine", 3), ("meta", 2)):
        spoken = [{"from": "human", "value": "Is it a chart?"}, {"from": "gpt", "value": "Yes."}]
        lines = [{"id": f"{name}-{n}", "image": "pictures/1.png", "conversations": spoken} for n in range(count)]
        (rows / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"root": ".", "annotation": "meta.jsonl", "repeat_time": 2, "max_dynamic_patch": 3}
    (rows / "meta.json").write_text(json.dumps({"chartqa": entry}))
    return folder


def prepared(raw: Path, output: Path, *parts: str, max_faults: float = 1.0) -> tuple[Path, list[str]]:
    """The meta JSON of the parts, and what was noted."""
    noted = list[str]()
    general = settle(",".join(parts), 0.5, 0, output)
    general.prepare(output, max_faults=max_faults, on_note=noted.append, should_stop=lambda: False)
    [source] = general.sources
    assert source.weight == 0.5
    return Path(source.path), noted


def test_original_files_metas_and_rows_become_one_meta(raw: Path, tmp_path: Path) -> None:
    """Every part weighs by its rows, and keeps its images, tile limit and repeats."""
    parts = (f"chartqa={raw}/chartqa", f"{raw}/rows/meta.json", f"ai2d={raw}/ai2d", f"{raw}/rows/mine.jsonl")
    path, noted = prepared(raw, tmp_path / "general", *parts)
    assert noted == ["general data chartqa: 2 rows, 5 unusable", "general data ai2d: 3 rows, 5 unusable"]
    assert path == tmp_path / "general/meta.json"
    assert list(json.loads(path.read_text())) == ["chartqa", "ai2d", "chartqa-2", "mine"]
    settled = settle(",".join(parts), 0.5, 0, tmp_path / "general")
    assert settled.line == f"general data: {', '.join(parts)}, 0.5 to 1 (chartqa: each row 2 times, at most 3 tiles)"
    source = open_source(*settled.sources)
    assert len(source) == 2 + 3 + 2 * 2 + 3
    samples = [source.read(place) for place in range(len(source))]
    assert [sample.id for sample in samples] == [
        *("human/0", "augmented/0", "1.png-1", "1.png-0", "1.png-1"),
        *("meta-0", "meta-1", "meta-0", "meta-1", "mine-0", "mine-1", "mine-2"),
    ]
    assert [sample.max_tiles for sample in samples] == [None] * 5 + [3] * 4 + [None] * 3
    assert samples[0].independent
    faults = (tmp_path / "general/chartqa/faults.jsonl").read_text().splitlines()
    assert len(faults) == 5


def test_what_is_converted_stays_until_the_records_change(raw: Path, tmp_path: Path) -> None:
    parts = (f"dvqa={raw}/dvqa", f"{raw}/rows/mine.jsonl")
    path, _ = prepared(raw, tmp_path, *parts)
    rows = tmp_path / "dvqa/train.jsonl"
    before = (rows.stat().st_mtime_ns, path.read_bytes())
    prepared(raw, tmp_path, *parts)
    assert (rows.stat().st_mtime_ns, path.read_bytes()) == before
    assert [sample.id for sample in read_samples(rows)] == ["1", "7"]


def test_records_of_a_training_that_has_begun_are_not_converted_anew(raw: Path, tmp_path: Path) -> None:
    """Others are refused before the rows are touched; the same ones, newly dated, are not."""
    own, run = tmp_path / "dvqa", tmp_path / "run"
    run.mkdir()
    shutil.copytree(raw / "dvqa", own)
    general = settle(f"dvqa={own},{raw}/rows/mine.jsonl", 0.5, 0, run / "general")
    how: dict[str, Any] = {"max_faults": 1.0, "on_note": lambda line: None, "should_stop": lambda: False}
    general.prepare(run / "general", **how)
    rows, file = run / "general/dvqa/train.jsonl", own / "train_qa.json"
    before = rows.read_bytes()
    os.utime(file, (1, 1))
    general.prepare(run / "general", fixed=run, **how)
    asked = json.loads(file.read_text())
    asked[0]["answer"] = "five"
    file.write_text(json.dumps(asked))
    with pytest.raises(DataError, match=rf"dvqa \(train\) is not the data that the run in {run} began with; put it"):
        general.prepare(run / "general", fixed=run, **how)
    assert rows.read_bytes() == before
    general.prepare(run / "general", **how)
    assert b"five" in rows.read_bytes()


def test_one_file_is_read_where_it_is(raw: Path, tmp_path: Path) -> None:
    path, noted = prepared(raw, tmp_path / "general", f"{raw}/rows/meta.json")
    assert path == raw / "rows/meta.json"
    assert not noted
    assert not (tmp_path / "general").exists()


def test_too_many_faults_of_general_data_stop_the_run(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5 of 7 records cannot be used, more than --max-faults 0\.1 allows"):
        prepared(raw, tmp_path, f"chartqa={raw}/chartqa", max_faults=0.1)


@pytest.mark.parametrize(
    ("general", "message"),
    [
        ("chartqa", "the general data chartqa is no file; say where its raw records lie: --general chartqa=FOLDER"),
        ("as-v2,x", "say where its raw records lie: --general as-v2=FOLDER"),
        ("gone.json", "gone.json is no file; --general takes a meta file, a file of rows or DOMAIN=FOLDER"),
        ("chartqa=gone", "gone is no folder; --general chartqa=FOLDER takes the folder of the raw records"),
        ("chartqx={raw}/chartqa", "did you mean chartqa"),
        ("chartqa={raw}/chartqa,chartqa={raw}/chartqa", "the general data chartqa is named twice"),
        ("{raw}/rows/mine.jsonl,{raw}/rows/../rows/mine.jsonl", r"mine\.jsonl is named twice; name it once"),
        ("{raw}/rows/mine.jsonl,", "the general data end with a comma or have two in a row; take one out"),
        ("chartqa={raw}/chartqa,synth", "--general synth goes with nothing else"),
        ("{raw}/rows/mine.jsonl,none", "--general none goes with nothing else"),
        ("{raw}/rows/mine.jsonl={raw}/rows", "is data already; name it without ="),
    ],
)
def test_general_data_that_cannot_be_are_refused_with_the_remedy(
    general: str, message: str, raw: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        settle(general.format(raw=raw), 1.0, 0, tmp_path)


def test_an_adaptation_trains_on_original_files_beside_its_domain(raw: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The general rows make up their share of the samples, and the run says what they were."""
    general = f"dvqa={raw}/dvqa,{raw}/rows/meta.json"
    config = AdaptConfig(
        domain="chartqa", output=tmp_path / "run", model=str(checkpoint), data=raw / "chartqa", max_faults=1.0,
        epochs=4, batch_size=2, max_tiles=1, ratio=1.0, general=general, probe=["none"], validation_items=1,
        device="cpu", precision="fp32", workers=0,
    )  # fmt: skip
    facts = adapt(config)
    assert facts["settings"]["general"] == general.split(",")
    assert facts["settings"]["steps"] == 8  # 2 rows of the domain in 4 passes, as many general ones, 2 a batch
    assert list(json.loads((tmp_path / "run/general/meta.json").read_text())) == ["dvqa", "chartqa"]
    assert adapt(config)["settings"] == facts["settings"]  # the same call goes on with what is there
