"""DICOM files: grey through window and level, colour, many frames, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from mini_internvl.data.rows import read_samples, write_rows
from mini_internvl.inputs.images import ImageError, image_dimensions, load_image

pydicom = pytest.importorskip("pydicom")
from pydicom import pixels  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid  # noqa: E402

from mini_internvl.inputs.dicom import frames  # noqa: E402


def dicom(
    values: np.ndarray, kind: str = "MONOCHROME2", syntax: str = ExplicitVRLittleEndian, **fields: object
) -> bytes:
    """A DICOM file of (H, W), (frames, H, W) or (H, W, 3) values."""
    found = Dataset()
    found.SOPClassUID, found.SOPInstanceUID = CTImageStorage, generate_uid()
    colour = values.ndim == 3 and values.shape[-1] == 3
    found.Rows, found.Columns = values.shape[:2] if colour or values.ndim == 2 else values.shape[1:]
    if values.ndim == 3 and not colour:
        found.NumberOfFrames = len(values)
    found.SamplesPerPixel, found.PhotometricInterpretation = (3, kind) if colour else (1, kind)
    if colour:
        found.PlanarConfiguration = 0
    bits = 8 * values.dtype.itemsize
    found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
    found.PixelRepresentation = int(values.dtype.kind == "i")
    found.PixelData = values.tobytes()
    for name, value in fields.items():
        setattr(found, name, value)
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == RLELossless:
        found.compress(RLELossless)
    found.file_meta.MediaStorageSOPClassUID, found.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    if syntax == JPEGLSLossless:
        found.file_meta.TransferSyntaxUID = JPEGLSLossless
        found.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 not read"])
        found["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


CT = np.arange(-1024, -1024 + 12 * 20 * 8, 8, dtype=np.int16).reshape(12, 20)


def grey(data: bytes) -> np.ndarray:
    image = np.asarray(load_image(data))
    assert image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    return image[..., 0]


def test_a_window_maps_hounsfield_units_to_black_and_white() -> None:
    data = dicom(CT + 1024, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 600], WindowWidth=[400, 1600])
    shown = grey(data)
    assert image_dimensions(data) == (20, 12)
    assert (shown[CT <= 40 - 200] == 0).all()
    assert (shown[CT >= 40 + 200] == 255).all()
    middle = (CT > -100) & (CT < 100)
    assert np.abs(shown[middle] - ((CT[middle] - 39.5) / 399 + 0.5) * 255).max() <= 0.5
    inverted = grey(dicom(CT, "MONOCHROME1", WindowCenter=40, WindowWidth=400))
    assert np.array_equal(inverted, 255 - shown)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_the_standard(function: str) -> None:
    data = dicom(CT, WindowCenter=100, WindowWidth=700, VOILUTFunction=function)
    header = pydicom.dcmread(io.BytesIO(data))
    wanted = pixels.apply_windowing(CT, header)
    low, high = -(2**15), 2**15 - 1
    assert np.abs(grey(data) - (wanted - low) / (high - low) * 255).max() <= 0.51


def test_grey_without_a_window_follows_the_rule_for_many_bits(caplog: pytest.LogCaptureFixture) -> None:
    plain = np.arange(240, dtype=np.uint8).reshape(12, 20)
    assert np.array_equal(grey(dicom(plain)), plain)
    assert not caplog.records
    twelve = (np.arange(240, dtype=np.uint16) * 17).reshape(12, 20)
    assert np.abs(grey(dicom(twelve, BitsStored=12, HighBit=11)) - twelve / 4095 * 255).max() <= 0.5
    stretched = grey(dicom(CT))
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert "shown from -1024 (black) to 888 (white)" in caplog.text


def test_a_table_of_grey_values_is_used() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], list(range(255, -1, -1))
    plain = np.arange(240, dtype=np.uint8).reshape(12, 20)
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    assert np.array_equal(grey(dicom(plain, VOILUTSequence=[table])), 255 - plain)


def test_colour_and_compression() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    assert np.array_equal(load_image(dicom(colours, "RGB")), colours)
    assert np.array_equal(load_image(dicom(colours, "RGB", RLELossless)), colours)
    with pytest.raises(ImageError, match=r"is compressed as JPEG-LS Lossless.*; to read it: pip install"):
        load_image(dicom(CT, syntax=JPEGLSLossless))


def test_many_frames_are_one_picture_each_and_the_first_stands_for_the_file(tmp_path) -> None:
    values = np.stack([np.full((12, 20), 10 * n, np.uint8) for n in range(1, 5)])
    path = tmp_path / "cine.dcm"
    path.write_bytes(dicom(values))
    assert [np.unique(frame).tolist() for frame in frames(path)] == [[10], [20], [30], [40]]
    assert np.unique(load_image(path)).tolist() == [10]
    with pytest.raises(ImageError, match="is no DICOM file"):
        list(frames(b"\x89PNG" + bytes(200)))


def test_scale_and_window_may_stand_with_each_frame() -> None:
    def group(sequence: str, **values: float) -> Dataset:
        held, inner = Dataset(), Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(held, sequence, [inner])
        return held

    shared = group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024)
    each = [group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=400) for center in (40, -600)]
    values = np.stack([CT + 1024, CT + 1024])
    data = dicom(values, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=each)
    found = [np.asarray(frame)[..., 0] for frame in frames(data)]
    for frame, center in zip(found, (40, -600), strict=True):
        assert np.array_equal(frame, grey(dicom(CT, WindowCenter=center, WindowWidth=400)))
    assert not np.array_equal(*found)


def test_what_is_refused_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    good = dicom(CT, WindowCenter=40, WindowWidth=400)
    for damaged in (
        good[: len(good) // 2],
        good[:200],
        good[:132],
        dicom(CT, Rows=13),
        dicom(CT, WindowCenter=1, WindowWidth=0),
    ):
        with pytest.raises(ImageError, match="given data is") as caught:
            load_image(damaged)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="60000x60000, that is 3,600,000,000 pixels, more than the limit"):
        image_dimensions(dicom(CT, Rows=60000, Columns=60000))
    deflated = good.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    with pytest.raises(ImageError, match="is a deflated DICOM file, which is not read"):
        load_image(deflated)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"a DICOM file needs pydicom: pip install 'mini-internvl\[dicom\]'"):
        load_image(good)


def test_rows_with_dicom_are_checked_and_written_as_other_images_are(tmp_path, minivl) -> None:
    (tmp_path / "a.dcm").write_bytes(dicom(CT.repeat(8, 0).repeat(8, 1), WindowCenter=40, WindowWidth=400))
    (tmp_path / "b.dcm").write_bytes(dicom(np.stack([CT.repeat(8, 0).repeat(8, 1)] * 2)))
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A scan."}]
    rows = [{"image": name, "conversations": turns} for name in ("a.dcm", "b.dcm")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = minivl("data", "check", tmp_path / "rows.jsonl", "--json")
    assert "has several frames" in out
    assert "cannot" not in out
    code, _, err = minivl("data", "convert", tmp_path / "rows.jsonl", tmp_path / "rows.tar")
    assert code == 0, err
    [first, second] = read_samples(tmp_path / "rows.tar")
    assert first.messages[0]["content"][0]["image"] == (tmp_path / "a.dcm").read_bytes()
    write_rows([second], tmp_path / "again.jsonl")
    [again] = read_samples(tmp_path / "again.jsonl")
    assert again.messages[0]["content"][0]["image"].endswith(".dcm")


def test_damage_anywhere_is_an_image_error_and_nothing_else() -> None:
    good = bytearray(dicom(CT, WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=0))
    rng = np.random.default_rng(1)
    for place in rng.integers(128, len(good), 150):
        broken = bytearray(good)
        broken[place] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(ImageError):
            load_image(bytes(broken))


def test_other_images_need_no_pydicom() -> None:
    code = (
        "import sys; from mini_internvl.inputs.images import load_image; from PIL import Image; import io;"
        "b = io.BytesIO(); Image.new('L', (4, 4)).save(b, 'PNG'); load_image(b.getvalue());"
        "assert 'pydicom' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dicom_inside_files_of_rows_is_shown_as_from_a_file(tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    content = dicom(CT.repeat(8, 0).repeat(8, 1), WindowCenter=40, WindowWidth=400)
    (tmp_path / "a.dcm").write_bytes(content)
    wanted = np.asarray(load_image(str(tmp_path / "a.dcm")))
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A scan."}]
    for ending in ("dcm", "DCM", "dicom"):
        with tarfile.open(tmp_path / f"{ending}.tar", "w") as tar:
            for name, data in ((f"1.{ending}", content), ("1.json", json.dumps({"conversations": turns}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    encoded = base64.b64encode(content).decode()
    for name, row in (
        ("struct", {"image": {"bytes": content, "path": "a.dcm"}, "conversations": turns}),
        ("plain", {"image": content, "question": "What is this?", "answer": "A scan."}),
        ("base64", {"image": encoded, "question": "What is this?", "answer": "A scan."}),
    ):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
    (tmp_path / "rows.csv").write_text(f"image,question,answer\n{encoded},What is this?,A scan.\n")
    files = [*sorted(tmp_path.glob("*.parquet")), *sorted(tmp_path.glob("*.tar")), tmp_path / "rows.csv"]
    assert len(files) == 7
    for path in files:
        [sample] = read_samples(path)
        image = sample.messages[0]["content"][0]["image"]
        assert isinstance(image, bytes), path
        assert np.array_equal(np.asarray(load_image(image)), wanted), path
