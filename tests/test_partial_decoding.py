"""The first rows of a JPEG or PNG against those of the whole picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from small_data import chunk

from hf_segtx.data import read_image
from hf_segtx.data.augmentation import to_array
from hf_segtx.data.decoding import read_image_part


EXIF_WITH_A_FRAME = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0\xff\xd8\xff\xc0\0\x11\x08\0\x10\0\x10"


ENCODINGS = {
    "jpeg": {"format": "JPEG", "quality": 90},
    "4:4:4": {"format": "JPEG", "quality": 60, "subsampling": 0},
    "4:2:2": {"format": "JPEG", "subsampling": 1},
    "4:2:0": {"format": "JPEG", "subsampling": 2},
    "progressive": {"format": "JPEG", "progressive": True},
    "restarts": {"format": "JPEG", "restart_marker_rows": 1},
    "thumbnail": {"format": "JPEG", "exif": EXIF_WITH_A_FRAME},
    "png": {"format": "PNG"},
    "palette": {"format": "PNG", "mode": "P"},
    "16 bits": {"format": "PNG", "mode": "I;16"},
    "animation": {"format": "PNG", "save_all": True, "append_images": [Image.new("RGB", (53, 67))]},
    "tiff": {"format": "TIFF"},
}


def encoded(encoding):
    """67 rows of 53 colours, and the bytes of their file."""
    options = dict(ENCODINGS[encoding])
    colors = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    image = Image.fromarray(colors).resize((53, 67), Image.Resampling.BICUBIC)
    if (mode := options.pop("mode", "RGB")) != "RGB":
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_decoding_some_rows_gives_exactly_those_of_the_image(encoding, num_channels):
    file = {"bytes": encoded(encoding)}
    whole, size = read_image_part(file, "", num_channels)
    assert size == (67, 53)
    for num_rows in range(1, 68):
        rows, size = read_image_part(file, "", num_channels, num_rows=num_rows)
        assert size == (67, 53)
        assert np.array_equal(to_array(rows)[:num_rows], to_array(whole)[:num_rows])
        if encoding not in ("tiff", "animation"):
            assert len(to_array(rows)) <= num_rows + 2


def test_a_damaged_header_is_still_seen():
    """The width of a PNG changed, but not its checksum; black, so that nothing else tells."""
    file = io.BytesIO()
    Image.new("RGB", (53, 67)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[19] ^= 1
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_image_part({"bytes": bytes(content)}, "", 3, num_rows=5)


def test_images_that_are_upside_down_or_interlaced_are_decoded_as_a_whole():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 23, 3)).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 3
    for suffix in ("JPEG", "PNG"):
        file = io.BytesIO()
        image.save(file, suffix, exif=exif)
        rows, size = read_image_part({"bytes": file.getvalue()}, "", 3, num_rows=5)
        assert size == (31, 23) and np.array_equal(rows, read_image({"bytes": file.getvalue()}))
    # PIL writes no interlaced files: each pixel of this one is alone in its row of a pass (PNG specification, 8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1))
    data = chunk(b"IDAT", zlib.compress(bytes([0, 10, 0, 20, 0, 30, 40])))
    content = b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")
    rows, size = read_image_part({"bytes": content}, "", 1, num_rows=1)
    assert size == (2, 2) and np.asarray(rows).tolist() == [[10, 20], [30, 40]]
