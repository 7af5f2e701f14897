"""The page of a probe: numbers, charts, maps and neighbours in one file, from what the folder holds alone."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jinja2")

from mini_internvl import report
from mini_internvl.report.svg import heat_map


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A probe of two encoders on drawn shapes."""
    from mini_internvl.evaluate.probing import ProbeSettings, open_encoder, probe, read_task

    folder = tmp_path_factory.mktemp("probe")
    task = read_task("shapes", train=40, test=20)
    nano, twin = open_encoder("nano"), open_encoder("nano", name="twin <b>")
    for layer in twin.model.encoder.layers[1:]:
        layer.ls1.data.mul_(0.5)
    encoders = [nano, open_encoder(twin.model, name="twin <b>")]
    probe(encoders[1:], [task], teacher=nano, settings=ProbeSettings(views=5), folder=folder)
    return folder


def test_the_page_holds_everything_and_loads_nothing(run):
    text = report.build(run).read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "twin &lt;b&gt;" in text
    assert "twin <b>" not in text
    facts = json.loads((run / "probe.json").read_text())
    for one in facts["results"]:
        for measure in one["measures"].values():
            assert f"{measure['value']:.1f} ± {measure['error']:.1f}" in text
    assert text.count('class="map" src="data:image/png') == 6 * 2
    assert text.count("<figure class=") >= 6 * 2 * 5
    assert "Cosine with the teacher" in text
    assert 'class="heat"' in text


def test_maps_and_neighbours_are_those_of_the_folder(run):
    shown = json.loads((run / "shown.json").read_text())
    assert shown["reference"] == "nano"
    (task,) = shown["tasks"]
    for row in task["pictures"]:
        assert np.asarray(Image.open(run / row["maps"]["nano"])).shape == (8, 8, 3)
        cosines = [one["cosine"] for one in row["neighbours"]["nano"]]
        assert cosines == sorted(cosines, reverse=True)
        assert all((run / one["image"]).is_file() for one in row["neighbours"]["nano"])


def test_what_is_gone_is_said_and_what_lies_elsewhere_is_not_shown(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shown = json.loads((copy / "shown.json").read_text())
    rows = shown["tasks"][0]["pictures"]
    (copy / rows[0]["image"]).unlink()
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (8, 8)).save(secret)
    rows[1]["image"] = "../secret.jpg"
    (copy / "shown.json").write_text(json.dumps(shown))
    text = report.build(copy).read_text()
    assert text.count('<div class="gone">gone</div><figcaption>') >= 2
    (copy / "shown.json").unlink()
    assert "Patches as colours" not in report.build(copy).read_text()
    facts = json.loads((copy / "probe.json").read_text())
    del facts["results"]
    (copy / "probe.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r'probe.json: "results" is missing'):
        report.build(copy)


def test_a_probe_is_not_compared_with_another_folder(run):
    with pytest.raises(ValueError, match="name them all in one minivl probe"):
        report.build(run, run)


def test_a_heat_map_says_its_values():
    text = heat_map(
        title="CKA", x_title="teacher", y_title="student", values=[[0.0, 1.0], [float("nan"), 0.25], [-0.1, 0.5]]
    )
    assert re.findall(r'fill-opacity="([\d.]+)"', text) == ["1.00", "0.25", "0.50"]
    assert 'aria-label="CKA. student 2 and teacher 1: 0.50; it is most like 1, 0.50"' in text
