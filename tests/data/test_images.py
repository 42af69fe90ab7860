"""Decoding, against Pillow's own and against plain arithmetic."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from vidi.data.images import _simple_jpeg, decode, opened, read, read_file_header, read_header
from vidi.errors import InputError


def smooth(height: int = 40, width: int = 56, channels: int = 3) -> np.ndarray:
    """A soft random picture, which JPEG keeps well; no symmetry that could hide a flip."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(samples: np.ndarray, colour: int, palette: bytes = b"", transparency: bytes = b"") -> bytes:
    """A PNG written here, by the specification, for what Pillow does not write (16-bit colour).

    ``samples``: uint8 or uint16 [H, W, C].
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = samples.shape[:2]
    big_endian = samples.astype(samples.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big_endian)
    header = struct.pack(">IIBBBBB", width, height, samples.dtype.itemsize * 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", palette) if palette else b"")
        + (chunk(b"tRNS", transparency) if transparency else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def over_white(rgba: np.ndarray) -> np.ndarray:
    """In floating point, of 8 bits."""
    alpha = rgba[..., 3:] / 255.0
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


# --- right RGB ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(smooth()), kind, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image, size = decode(data, "x")
    np.testing.assert_array_equal(image, np.asarray(upright.convert("RGB")))
    assert size == image.shape[:2] == ((56, 40) if orientation >= 5 else (40, 56))
    assert read_header(data, "x").size == size


def test_each_orientation_means_what_exif_says() -> None:
    """Independent of any library: where the stored top left corner is to be seen (Exif 2.32)."""
    stored = np.full((32, 48, 3), 200, np.uint8)
    stored[:8, :16] = 0  # the first row's beginning, as stored
    seen_at = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("top", "left"), 6: ("top", "right"), 7: ("bottom", "right"), 8: ("bottom", "left"),
    }  # fmt: skip
    for orientation, (vertical, horizontal) in seen_at.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image, _ = decode(encoded(Image.fromarray(stored), "PNG", exif=exif), "x")
        corner = image[0 if vertical == "top" else -1, 0 if horizontal == "left" else -1]
        assert corner.tolist() == [0, 0, 0], orientation
        # The dark patch is wider than high, as stored: it stands upright when the image turns.
        dark = image[..., 0] == 0
        shape = (int(dark.any(1).sum()), int(dark.any(0).sum()))
        assert shape == ((16, 8) if orientation >= 5 else (8, 16)), orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_becomes_rgb(kind: str) -> None:
    grey = smooth(channels=1)
    data = encoded(Image.fromarray(grey), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    image, _ = decode(data, "x")
    np.testing.assert_array_equal(image, expected)
    assert (image[..., 0] == image[..., 2]).all()
    if kind != "JPEG":
        np.testing.assert_array_equal(image[..., 0], grey)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    bits = smooth(channels=1) > 128
    image, _ = decode(encoded(Image.fromarray(bits), kind), "x")
    np.testing.assert_array_equal(image, np.where(bits, 255, 0)[..., None].repeat(3, 2))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette(kind: str) -> None:
    rng = np.random.default_rng(1)
    palette = rng.integers(0, 256, (16, 3), dtype=np.uint8)
    index = rng.integers(0, 16, (20, 30), dtype=np.uint8)
    picture = Image.frombytes("P", (30, 20), index.tobytes())
    picture.putpalette(palette.tobytes())
    image, _ = decode(encoded(picture, kind), "x")
    np.testing.assert_array_equal(image, palette[index])


def test_palette_with_transparency_is_laid_over_white() -> None:
    rng = np.random.default_rng(2)
    palette = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    alpha = np.array([0, 77, 180, 255], np.uint8)
    index = rng.integers(0, 4, (20, 30), dtype=np.uint8)
    data = png(index[..., None], 3, palette.tobytes(), alpha.tobytes())
    image, _ = decode(data, "x")
    expected = over_white(np.concatenate([palette, alpha[:, None]], 1))[index]
    assert np.abs(image - expected).max() <= 0.5


def test_transparent_colour_becomes_white() -> None:
    colours = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    index = np.random.default_rng(3).integers(0, 2, (8, 9))
    data = png(colours[index], 2, transparency=struct.pack(">HHH", 10, 20, 30))
    image, _ = decode(data, "x")
    np.testing.assert_array_equal(image, np.array([[255, 255, 255], [40, 50, 60]])[index])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(kind: str) -> None:
    rgba = smooth(channels=4)
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image, _ = decode(encoded(Image.fromarray(rgba, "RGBA"), kind, **options), "x")
    assert np.abs(image - over_white(rgba)).max() <= 0.5


def test_grey_with_alpha_is_laid_over_white() -> None:
    pair = smooth(channels=2)
    image, _ = decode(encoded(Image.fromarray(pair, "LA"), "PNG"), "x")
    rgba = np.concatenate([pair[..., :1]] * 3 + [pair[..., 1:]], 2)
    assert np.abs(image - over_white(rgba)).max() <= 0.5


def test_cmyk_is_as_pillow_and_arithmetic_have_it() -> None:
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    lossless = np.asarray(cmyk).astype(float) / 255
    tiff, _ = decode(encoded(cmyk, "TIFF"), "x")
    ink_on_white = 255 * (1 - lossless[..., :3]) * (1 - lossless[..., 3:])
    assert np.abs(tiff - ink_on_white).max() <= 1
    data = encoded(cmyk, "JPEG", quality=95)  # inverted, with Adobe's mark
    image, _ = decode(data, "x")
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(image - ink_on_white).mean() < 4


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 40 * 56).astype(np.uint16).reshape(40, 56)
    for data in (encoded(Image.fromarray(deep), "PNG"), encoded(Image.fromarray(deep), "TIFF")):
        image, _ = decode(data, "x")
        assert np.abs(image[..., 0] - deep / 257).max() <= 0.5
        assert (image[..., 0] == image[..., 1]).all()


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_sixteen_bit_png_of_each_colour_type(colour: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    deep = np.random.default_rng(colour).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    image, _ = decode(png(deep, colour), "x")
    value = deep / 257
    if colour in (0, 4):
        value = np.concatenate([value[..., :1]] * 3 + [value[..., 1:]], 2)
    expected = over_white(value) if value.shape[2] == 4 else value
    assert np.abs(image - expected).max() <= 0.51


def tiff(deep: np.ndarray, orientation: int) -> bytes:
    """Uncompressed 16-bit RGB, written here by the specification (TIFF 6.0, section 6)."""
    height, width = deep.shape[:2]
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, None), (259, 3, 1), (262, 3, 2),
        (273, 4, None), (274, 3, orientation), (277, 3, 3), (278, 4, height), (279, 4, deep.nbytes),
    ]  # fmt: skip
    bits_at = 8 + 2 + 12 * len(entries) + 4
    where = {258: bits_at, 273: bits_at + 6}
    directory = b"".join(
        struct.pack("<HHII", tag, kind, 3, where[tag])
        if tag == 258
        else struct.pack("<HHII", tag, kind, 1, where.get(tag, value))
        for tag, kind, value in entries
    )
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        + (directory + bytes(4))
        + struct.pack("<HHH", 16, 16, 16)
        + deep.astype("<u2").tobytes()
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_tiff_in_colour(orientation: int) -> None:
    deep = np.random.default_rng(4).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    data = tiff(deep, orientation)
    image, size = decode(data, "x")
    # The turning itself is compared with Pillow above, for eight bits.
    exif = Image.Exif()
    exif[0x0112] = orientation
    high = Image.fromarray((deep >> 8).astype(np.uint8))
    upright, _ = decode(encoded(high, "PNG", exif=exif), "x")
    assert size == upright.shape[:2] == read_header(data, "x").size
    assert np.abs(image.astype(int) - upright).max() <= 1
    assert np.abs(np.sort(image.ravel()) - np.sort((deep / 257).ravel())).max() <= 0.5


def test_eight_bits_written_as_sixteen_come_back() -> None:
    image = smooth()
    back, _ = decode(png(image.astype(np.uint16) * 257, 2), "x")
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_colour_is_as_pillow_has_it(kind: str) -> None:
    data = encoded(Image.fromarray(smooth()), kind)
    image, _ = decode(data, "x")
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


# --- shrinking ------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(401, 600), (600, 401), (512, 512), (97, 2000)])
@pytest.mark.parametrize("shorter", [24, 50, 96, 200])
def test_shorter_side_is_exact_and_aspect_kept(height: int, width: int, shorter: int) -> None:
    data = encoded(Image.fromarray(smooth(height, width)), "JPEG", quality=92)
    image, size = decode(data, "x", shorter)
    assert size == (height, width)
    side = min(height, width)
    scale = min(shorter / side, 1)
    assert min(image.shape[:2]) == min(side, shorter)
    assert abs(image.shape[0] - height * scale) <= 0.5
    assert abs(image.shape[1] - width * scale) <= 0.5


def test_reduced_decoding_looks_as_averaging_the_whole_image_does() -> None:
    data = encoded(Image.fromarray(smooth(600, 800)), "JPEG", quality=95)
    whole, _ = decode(data, "x")
    for shorter in (70, 75, 140, 150, 290):
        small, _ = decode(data, "x", shorter)
        plain = Image.fromarray(whole).resize(
            (small.shape[1], small.shape[0]), Image.Resampling.BOX
        )
        assert np.abs(small.astype(int) - np.asarray(plain)).mean() < 1.5, shorter


def test_small_images_are_not_enlarged_and_turned_ones_shrink_upright() -> None:
    data = encoded(Image.fromarray(smooth(40, 56)), "PNG")
    np.testing.assert_array_equal(decode(data, "x", 100)[0], smooth(40, 56))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(smooth(400, 560)), "JPEG", exif=exif)
    image, size = decode(data, "x", 100)
    assert size == (560, 400)
    assert image.shape == (140, 100, 3)


# --- what is refused, each with a sentence ----------------------------------------------------


def refused(data: bytes, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        decode(data, "some/file.jpg", **options)
    sentence = str(caught.value)
    assert sentence.startswith("some/file.jpg ")
    assert sentence.endswith(".")
    return sentence


def test_empty_file() -> None:
    assert "empty (0 bytes)" in refused(b"")


def test_text_named_jpg() -> None:
    assert "is text: it begins with 'hello, I am no i'" in refused(b"hello, I am no image")


def test_bytes_of_no_image() -> None:
    assert "no image known here" in refused(bytes(range(200, 256)))


def test_heic_is_named() -> None:
    assert "heic" in refused(b"\0\0\0\x18ftypheic" + bytes(40))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(smooth(120, 160)), kind)
    sentence = refused(data[: int(len(data) * share) - 1])
    assert "cut short" in sentence or "damaged" in sentence


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_truncated_jpeg_is_refused_when_shrunk_too(share: float) -> None:
    data = encoded(Image.fromarray(smooth(600, 800)), "JPEG")
    assert "cut short" in refused(data[: int(len(data) * share)], shorter=70)


def test_damaged_png() -> None:
    data = bytearray(encoded(Image.fromarray(smooth()), "PNG"))
    data[len(data) // 2] ^= 0x55
    assert "damaged" in refused(bytes(data))


def test_too_many_pixels_are_refused_by_the_header() -> None:
    data = encoded(Image.new("1", (14_000, 14_000)), "PNG")
    assert len(data) < 400_000
    sentence = refused(data)
    assert "14,000 × 14,000 = 196 million pixels" in sentence
    assert "--data.max-megapixels" in sentence
    assert read_header(data, "x").size == (14_000, 14_000)
    with pytest.raises(InputError, match=r"at most 0\.001 million"):
        decode(encoded(Image.fromarray(smooth()), "PNG"), "x", max_megapixels=0.001)


def test_pillows_own_limit_is_not_ours() -> None:
    data = encoded(Image.new("L", (9_500, 9_500), 255), "PNG")  # Pillow warns from 89 million on
    image, size = decode(data, "x", shorter=10)
    assert size == (9_500, 9_500)
    assert (image == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated(kind: str) -> None:
    frames = [Image.fromarray(smooth()[::step]) for step in (1, 1, 1)]
    frames[1] = Image.fromarray(255 - smooth())
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "3 frames" in refused(data)


def test_thirty_two_bits() -> None:
    data = encoded(Image.fromarray(smooth(channels=1).astype(np.float32)), "TIFF")
    assert "32 bits a channel" in refused(data)


def test_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    file = tmp_path / "secret.jpg"
    file.write_bytes(b"x")
    for name, what in (
        ("link.jpg", "is a link to gone.jpg, which does not exist"),
        ("nothing.jpg", "does not exist"),
        ("folder.jpg", "is a folder"),
    ):
        for how in (read, read_file_header):
            with pytest.raises(InputError, match=what) as caught:
                how(str(tmp_path / name))
            assert str(tmp_path / name) in str(caught.value)

    file.chmod(0)
    if os.access(file, os.R_OK):  # the superuser may read anything: let the system refuse

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match="may not be read by this user"):
        read(str(file))


def test_header_reads_only_the_beginning(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded(Image.fromarray(smooth(300, 400)), "JPEG")[:1000])
    assert read_file_header(str(file)).size == (300, 400)


def jpegs() -> dict[str, bytes]:
    """Whether in colour or grey, baseline or progressive, with and without what may stand ahead."""
    colour = Image.fromarray(smooth())
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "colour": encoded(colour, "JPEG"),
        "grey": encoded(colour.convert("L"), "JPEG"),
        "progressive": encoded(colour, "JPEG", progressive=True, optimize=True),
        "restarts": encoded(colour, "JPEG", restart_marker_rows=1),
        "profile": encoded(colour, "JPEG", icc_profile=b"x" * 70_000, comment=b"seen"),
        "turned": encoded(colour, "JPEG", exif=turned),
        "xmp": encoded(colour, "JPEG", xmp=b'<x tiff:Orientation="3"/>'),
        "cmyk": encoded(colour.convert("CMYK"), "JPEG"),
    }


@pytest.mark.parametrize("name", jpegs())
def test_a_simple_jpegs_header_is_as_pillow_has_it(name: str, tmp_path: Path) -> None:
    data = jpegs()[name]
    right = opened(data, name)[1]
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    assert read_header(data, name) == right
    assert read_file_header(str(file)) == right, "of which only the start is read"
    found = _simple_jpeg(data)
    if name in ("turned", "xmp", "cmyk"):
        assert found is None, "Pillow has to look at it"
    else:
        assert found == right


def test_a_damaged_jpeg_has_no_other_header_than_pillow_says() -> None:
    """A byte of the header changed: Pillow's header, or none, unless Pillow refuses the file."""
    rng = np.random.default_rng(0)
    agreed = 0
    for data in jpegs().values():
        scan = data.index(b"\xff\xda")
        for _ in range(300):
            damaged = bytearray(data)
            damaged[int(rng.integers(2, min(scan, 700)))] = int(rng.integers(256))
            found = _simple_jpeg(bytes(damaged))
            if found is None:
                continue
            try:
                said = opened(bytes(damaged), "a.jpg")[1]
            except InputError:
                continue
            assert found == said
            agreed += 1
    assert agreed > 500
