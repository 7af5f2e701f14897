"""Images of every mode and origin become upright RGB; what is no image is refused in one plain line."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from mini_internvl.inputs.images import ImageError, image_dimensions, load_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(size=(12, 8)):
    """An image in which every pixel differs from its neighbours."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([columns * 20, rows * 30, columns + rows], axis=-1).astype(np.uint8))


def png_header(width, height):
    """A PNG of this size that holds no pixels, a few dozen bytes."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]
)
def test_every_mode_becomes_rgb(mode):
    source = gradient()
    image = Image.new(mode, source.size) if mode in ("LAB", "RGBa", "La", "PA") else source.convert(mode)
    loaded = load_image(image)
    assert (loaded.mode, loaded.size) == ("RGB", source.size)
    if mode in ("RGB", "RGBA", "RGBX"):
        assert np.array_equal(loaded, source)
    if mode in ("L", "I", "F", "LA"):
        assert np.abs(np.asarray(loaded).astype(int) - np.asarray(source.convert("L"))[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_sixteen_bits_are_scaled_and_not_clipped(mode):
    values = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    kind = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (12, 8), values.astype(kind).tobytes())
    grey = np.asarray(load_image(image))[..., 0]
    assert np.abs(grey - values / 257).max() <= 1.0
    assert len(np.unique(grey)) > 80


def test_a_sixteen_bit_png_file():
    values = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    grey = np.asarray(load_image(encoded(Image.fromarray(values))))[..., 0]
    assert np.abs(grey - values / 257).max() <= 1.0


def test_floats_of_either_range_are_scaled():
    unit = Image.fromarray(np.linspace(0, 1, 96).astype(np.float32).reshape(8, 12))
    bytes_ = Image.fromarray(np.linspace(0, 255, 96).astype(np.float32).reshape(8, 12))
    for image in (unit, bytes_):
        grey = np.asarray(load_image(image))[..., 0]
        assert np.abs(grey.ravel() - np.linspace(0, 255, 96)).max() <= 1.0
    strange = Image.fromarray(np.array([[np.nan, -5.0, 300.0]], dtype=np.float32))
    assert load_image(strange).size == (3, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = gradient()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(load_image(encoded(stored, exif=exif)), upright)


def test_an_animation_gives_its_first_frame():
    first, second = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    data = encoded(first, "GIF", save_all=True, append_images=[second, first])
    assert np.asarray(load_image(data))[0, 0].tolist() == [255, 0, 0]
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    assert np.asarray(load_image(image))[0, 0].tolist() == [0, 0, 255]  # an opened image: the frame that was chosen


def test_palette_transparency_is_read_without_a_warning():
    image = gradient().quantize(8)
    loaded = load_image(encoded(image, transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255])))
    assert np.array_equal(loaded, image.convert("RGB"))


def test_alpha_is_dropped_as_in_the_original():
    image = gradient().convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(load_image(encoded(image)), gradient())


def test_paths_bytes_and_data_urls_give_the_same_image(tmp_path):
    data = encoded(gradient())
    path = tmp_path / "an image.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), url, gradient()):
        assert np.array_equal(load_image(source), gradient())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png,abc", "is not base64; write data:image/png;base64"),
        ("data:image/png;base64", "is not base64"),
        ("data:image/png;base64,@@@", "is not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "the data URL is not an image"),
        ("https://example.com/a.png", "https://example.com/a.png is a web address; download it"),
        ("http://example.com/a.png", "is a web address"),
    ],
)
def test_urls_that_hold_no_image_are_refused(url, message):
    with pytest.raises(ImageError, match=message):
        load_image(url)


def test_missing_folders_and_texts_are_refused(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("this is a text file\n" * 50)
    (tmp_path / "empty.png").touch()
    for source, message in (
        (tmp_path / "none.png", r"none\.png is missing"),
        (text, r"notes\.png is not an image: its content is text"),
        (tmp_path / "empty.png", r"empty\.png is empty"),
        (tmp_path, "is a folder, not a regular file"),
        (b"", "the given data is empty"),
        (None, "not NoneType"),
        (7, "not int"),
    ):
        with pytest.raises(ImageError, match=message):
            load_image(source)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.png"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(ImageError):
        load_image(name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_cut_off_file_is_refused(tmp_path, kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.\w+ (is damaged or cut off|is not an image)") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_a_broken_exif_block_is_no_traceback():
    good = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01")
    assert load_image(good).size == (12, 8)


@pytest.mark.parametrize("size", [(30000, 30000), (20000, 6000), (100_000, 100_000)])
def test_a_decompression_bomb_is_refused_by_its_header(size):
    data = png_header(*size)
    assert len(data) < 200
    with pytest.raises(ImageError, match=rf"is {size[0]}x{size[1]}.* the limit of 100,000,000") as caught:
        load_image(data)
    assert "\n" not in str(caught.value)


def test_the_pixel_limit_can_be_set(monkeypatch):
    monkeypatch.setenv("MINIVL_MAX_PIXELS", "96")
    assert load_image(gradient()).size == (12, 8)
    monkeypatch.setenv("MINIVL_MAX_PIXELS", "95")
    with pytest.raises(ImageError, match="12x8"):
        load_image(gradient())
    monkeypatch.setenv("MINIVL_MAX_PIXELS", "9e9")  # allowed by its header, then found empty
    with pytest.raises(ImageError, match="damaged or cut off"):
        load_image(png_header(12_000, 9_000))
    monkeypatch.setenv("MINIVL_MAX_PIXELS", "many")
    with pytest.raises(ImageError, match='MINIVL_MAX_PIXELS is "many"'):
        load_image(gradient())


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (20, 4020)])
def test_a_thin_strip_is_refused(size):
    with pytest.raises(
        ImageError, match=rf"is {size[0]}x{size[1]}: one side is more than 200 times the other"
    ) as caught:
        load_image(encoded(Image.new("RGB", size)))
    assert "\n" not in str(caught.value)


def test_a_image_without_pixels_is_refused():
    with pytest.raises(ImageError, match="0x5: it has no pixels"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("opened", [load_image, image_dimensions])
def test_a_named_pipe_or_device_is_refused_and_never_waited_for(tmp_path, opened):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(ImageError, match=rf"{name} is a pipe or device, not a regular file"):
            opened(tmp_path / name)


def test_a_file_larger_than_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(1_000_000_001)
    with pytest.raises(ImageError, match=r"huge\.png has 1,000,000,001 bytes, more than"):
        load_image(path)


@pytest.mark.parametrize(
    ("mode", "kind", "fits"),
    [
        ("F", "TIFF", 8),
        ("I", "TIFF", 8),
        ("RGB", "JPEG2000", 5),
        ("RGB", "WEBP", 6),
        ("RGB", "PNG", 10),
        ("L", "PNG", 10),
    ],
)
def test_the_memory_of_decoding_is_bounded_by_mode_and_format(mode, kind, fits, monkeypatch):
    """A limit of 1,000 pixels is 10,000 bytes: so many hundred pixels of each kind pass, a hundred more do not."""
    monkeypatch.setenv("MINIVL_MAX_PIXELS", "1000")
    for hundreds in (fits, fits + 1):
        data = encoded(Image.new(mode, (10, 10 * hundreds)), kind)
        if hundreds == fits:
            assert load_image(data).size == (10, 10 * fits)
        else:
            with pytest.raises(ImageError, match=r"pixels, more than the limit of [\d,]+"):
                load_image(data)


def test_a_jpeg_of_many_passes_is_refused(monkeypatch):
    data = encoded(gradient((64, 48)), "JPEG", progressive=True)
    monkeypatch.setenv("MINIVL_MAX_PIXELS", "10_000")
    assert load_image(data).size == (64, 48)
    last = data.rindex(b"\xff\xda")
    many = data[:-2] + data[last:-2] * 200 + data[-2:]
    with pytest.raises(ImageError, match=r"a progressive JPEG of 2\d\d passes over 64x48 pixels"):
        load_image(many)
    with pytest.raises(ImageError, match="passes"):
        image_dimensions(many)


def test_an_icon_whose_size_stands_only_inside_is_bounded():
    icon = io.BytesIO()
    gradient((16, 16)).save(icon, "ICO", sizes=[(16, 16)])
    assert load_image(icon.getvalue()).size == (16, 16)
    inner = png_header(9000, 9000)
    directory = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    with pytest.raises(ImageError, match="is an icon of more than 4,194,304 pixels; convert it to PNG"):
        load_image(directory + inner)


@pytest.mark.parametrize(
    ("values", "dtype", "black", "white"),
    [
        ((250, 260, 300), np.float32, 250, 300),
        ((-1000, 0, 3000), np.int32, -1000, 3000),
        ((-1000, 0, 3000), np.float32, -1000, 3000),
        ((0, 100_000, 250_000), np.int32, 0, 250_000),
        ((0, 2000, 4000), np.uint16, 0, 4095),
        ((0, 600, 1000), np.uint16, 0, 1023),
    ],
)
def test_values_of_no_common_range_are_stretched_and_warned_of(values, dtype, black, white, caplog):
    image = Image.fromarray(np.array([values], dtype))
    wanted = [255 * (value - black) / (white - black) for value in values]
    assert np.asarray(load_image(image))[0, :, 0] == pytest.approx(wanted, abs=1)
    assert f"shown from {black:g} (black) to {white:g} (white)" in caplog.text


def test_values_of_a_common_range_are_kept_without_a_warning(caplog):
    for values, dtype in (((0.2, 0.4, 0.6), np.float32), ((5, 40, 90), np.float32), ((0, 9, 40_000), np.uint16)):
        load_image(Image.fromarray(np.array([values], dtype)))
    assert not caplog.records


def test_no_warning_of_pillow_is_let_through(tmp_path, recwarn):
    tiff = encoded(gradient(), "TIFF", tiffinfo={34675: b"x", 305: "a"})
    broken = tiff.replace(struct.pack("<HH", 305, 2), struct.pack("<HH", 305, 12))
    for data in (tiff, broken, encoded(Image.new("1", (9500, 9500)))):
        with contextlib.suppress(ImageError):
            load_image(data)
    icon = io.BytesIO()
    gradient((16, 16)).save(icon, "ICO", sizes=[(16, 16)])
    raw = bytearray(icon.getvalue())
    raw[6] = 32  # a size that is not the image's
    load_image(bytes(raw))
    assert not recwarn.list


def test_an_enlarged_image_is_bounded_too():
    assert load_image(gradient(), scale=3).size == (36, 24)
    with pytest.raises(ImageError, match="12x8; enlarged 10000 times it is too large"):
        load_image(gradient(), scale=10_000)
    with pytest.raises(ImageError, match="too large"):
        image_dimensions(gradient(), scale=10_000)


def test_pillows_log_does_not_reach_the_terminal(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.index((277).to_bytes(2, "little") + b"\x03\x00")  # SamplesPerPixel, a short
    content[at + 8 : at + 10] = (9).to_bytes(2, "little")
    (tmp_path / "a.tif").write_bytes(content)
    program = (
        "import sys; from mini_internvl.inputs.images import load_image\n"
        "try: load_image(sys.argv[1])\nexcept ValueError: print('refused')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, tmp_path / "a.tif"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_loaded_image_is_not_turned_again(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    once = load_image(encoded(gradient(), kind, exif=exif))
    assert once.size == ((12, 8) if orientation < 5 else (8, 12))
    assert np.array_equal(load_image(once), once)
    assert image_dimensions(once) == once.size


@pytest.mark.parametrize("path", ["./a\nb.png", "./a\x1b[31mb.png"])
def test_a_path_of_control_characters_is_named_in_one_plain_line(path):
    with pytest.raises(ImageError, match="is missing; check the path") as caught:
        load_image(path)
    assert str(caught.value).isprintable()


def test_paths_of_bytes_and_empty_ones(tmp_path):
    gradient().save(tmp_path / "a.png")
    [entry] = os.scandir(os.fsencode(tmp_path))
    assert np.array_equal(load_image(entry), gradient())
    with pytest.raises(ImageError, match=r"^the empty path is a folder"):
        load_image("")
