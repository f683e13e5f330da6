"""The one reader: every depth and every kind of transparency looks as its twin of 8 bits."""

import struct
import zlib

import numpy as np
import pytest
import torch

from zfkernels.data.pictures import read_picture, unreadable

Image = pytest.importorskip("PIL.Image")
SIZE = (40, 40)


@pytest.fixture(scope="module")
def twin():
    """Greys with black, white and everything between, uint8 (40, 40)."""
    values = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    values[0, 0], values[0, 1] = 0, 255
    return values


def tiff(path, values, kind, bits):
    """An uncompressed grey TIFF, as a scientific camera writes it; kind 1: without a sign, 2: with one, 3: float."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, len(data)), (339, 3, kind)]
    entries = b"".join(struct.pack("<HHII", tag, type_, 1, value) for tag, type_, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def png16(path, values, transparent=None):
    """A PNG of 16 bits a colour, uint16 (H, W) or (H, W, 3), with the colour that is transparent."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0))]
    if transparent is not None:
        parts.append(chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def seen(path):
    """What is read, one channel, of a grey picture."""
    pixels = read_picture(path, SIZE)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    return pixels[0].numpy().astype(int)


def of(depth):
    """The twin's values in so many bits."""
    return lambda twin: np.round(twin.astype(np.float64) * ((2**depth - 1) / 255))


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("container", ["png", "tiff"])
def test_whole_numbers_of_any_depth_in_16_bits(tmp_path, twin, depth, container):
    values = of(depth)(twin).astype(np.uint16)
    path = tmp_path / f"p.{container}"
    png16(path, values) if container == "png" else tiff(path, values, 1, 16)
    assert np.abs(seen(path) - twin).max() <= (1 if depth < 10 else 0)


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_colours_of_any_depth_in_16_bits(tmp_path, twin, depth):
    """Each channel another picture; all three have one range."""
    colours = np.stack([twin, twin.T, 255 - twin], 2)
    png16(tmp_path / "p.png", of(depth)(colours).astype(np.uint16))
    found = read_picture(tmp_path / "p.png", SIZE).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - colours).max() <= 1


@pytest.mark.parametrize(
    ("depth", "dtype", "kind"),
    [
        (32, np.uint32, 1),
        (16, np.uint32, 1),
        (12, np.uint32, 1),
        (31, np.int32, 2),
        (16, np.int32, 2),
        (24, np.int32, 2),
    ],
)
def test_whole_numbers_of_32_bits(tmp_path, twin, depth, dtype, kind):
    tiff(tmp_path / "p.tiff", of(depth)(twin).astype(dtype), kind, 32)
    assert np.array_equal(seen(tmp_path / "p.tiff"), twin)


@pytest.mark.parametrize(("dtype", "bits"), [(np.int16, 16), (np.int32, 32)])
def test_numbers_below_zero_are_brought_to_their_own_range(tmp_path, twin, dtype, bits):
    tiff(tmp_path / "p.tiff", (twin.astype(int) * 10 - 1024).astype(dtype), 2, bits)
    assert np.array_equal(seen(tmp_path / "p.tiff"), twin)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x / 255, lambda x: x * 257, lambda x: x / 255 * 7 - 3])
@pytest.mark.parametrize("dark", [1, 0.7])
def test_floating_point_in_its_usual_ranges(tmp_path, twin, change, dark):
    """A picture without white keeps its brightness in 0 to 1, 255 or 65535."""
    values = change(twin.astype(np.float64) * dark).astype(np.float32)
    tiff(tmp_path / "p.tiff", values, 3, 32)
    expected = twin * (dark if values.min() >= 0 else 1)
    assert np.abs(seen(tmp_path / "p.tiff") - expected).max() <= 1


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("scale", [1 / 255, 3.7])
def test_pixels_that_are_not_finite_change_no_other(tmp_path, twin, bad, scale):
    values = (twin * scale).astype(np.float32)
    values[20, 20] = bad
    tiff(tmp_path / "p.tiff", values, 3, 32)
    found = seen(tmp_path / "p.tiff")
    assert found[20, 20] == (255 if bad == np.inf else 0)
    found[20, 20] = twin[20, 20]
    assert np.abs(found - twin).max() <= 1


def test_a_picture_of_nothing_finite_is_black(tmp_path):
    tiff(tmp_path / "p.tiff", np.full(SIZE, np.nan, np.float32), 3, 32)
    assert not seen(tmp_path / "p.tiff").any()


def test_the_transparent_grey_of_16_bits_is_laid_over_grey(tmp_path, twin):
    png16(tmp_path / "p.png", twin.astype(np.uint16) * 257, (65535,))
    expected = np.where(twin == 255, 128, twin)
    assert np.array_equal(seen(tmp_path / "p.png"), expected)


@pytest.mark.parametrize("top", [65535, 4095])
def test_the_transparent_colour_of_16_bits_is_laid_over_grey(tmp_path, top):
    values = np.zeros((*SIZE, 3), np.uint16)
    values[:20] = (top, 0, 300)
    values[20:] = (0, top, 0)
    png16(tmp_path / "p.png", values, (top, 0, 300))
    pixels = read_picture(tmp_path / "p.png", SIZE)
    assert pixels[:, 10, 10].tolist() == [128] * 3
    assert pixels[:, 30, 10].tolist() == [0, 255, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_channel_is_laid_over_grey(tmp_path, mode):
    image = Image.new(mode, SIZE, (255, 255, 255, 0) if mode == "RGBA" else (255, 0))
    image.paste((255, 255, 255, 255) if mode == "RGBA" else (255, 255), (0, 0, 40, 20))
    image.save(tmp_path / "p.png")
    found = seen(tmp_path / "p.png")
    assert (found[:18] == 255).all()
    assert (found[22:] == 128).all()


def test_lab_is_the_colour_that_it_names(tmp_path):
    from PIL import ImageCms

    red = Image.new("RGB", SIZE, (200, 40, 40))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(red, *profiles, outputMode="LAB").save(tmp_path / "p.tiff")
    pixels = read_picture(tmp_path / "p.tiff", SIZE)[:, 20, 20].int()
    assert (pixels - torch.tensor([200, 40, 40])).abs().max() <= 4


def test_a_cameras_rotation_of_16_bits_is_undone(tmp_path):
    values = np.zeros(SIZE, np.uint16)
    values[:20] = 65535
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(values).save(tmp_path / "p.tiff", exif=exif)
    found = seen(tmp_path / "p.tiff")
    assert not found[:18].any()
    assert (found[22:] == 255).all()


# What cannot be read


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "(a pointer of Git LFS, not the file itself: "),
        (b"<html><body>404", "(a web page or XML: "),
        (b'<?xml version="1.0"?><svg>', "(a web page or XML: "),
        (b"\x1f\x8b\x08 and more", "(compressed: `gunzip` it first)"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, data, words):
    (tmp_path / "p.png").write_bytes(data)
    ((_, why),) = unreadable([tmp_path / "p.png"])
    assert words in why


def test_every_unreadable_picture_is_found_and_named(tmp_path, twin):
    for name in ("a.png", "b.jpg", "c.tif"):
        Image.fromarray(twin).save(tmp_path / name)
    for name in ("a.png", "b.jpg", "c.tif"):
        (tmp_path / f"cut_{name}").write_bytes((tmp_path / name).read_bytes()[:-200])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    paths = sorted(tmp_path.iterdir())
    bad = unreadable(paths)
    assert [path.name for path, _ in bad] == ["cut_a.png", "cut_b.jpg", "cut_c.tif", "empty.png", "text.png"]
    for path, why in bad:
        assert why.startswith(f"{path} is not a picture that Pillow can read (")
        assert "\n" not in why
        with pytest.raises(ValueError, match="is not a picture that Pillow can read"):
            read_picture(path, SIZE)
