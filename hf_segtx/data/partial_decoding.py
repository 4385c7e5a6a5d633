"""Decoding the first rows of a JPEG or PNG only: the file is told to end sooner.

A training crop needs the rows down to its last one; what lies below is neither decoded nor unfiltered.

Why the rows are exactly those of the whole picture: both formats are decoded from top to bottom, and what a row depends
on lies above it. In PNG that is the row before (its filters), in each scan of a JPEG the blocks before. The one look
ahead is the interpolation of colours between rows, for which two rows more are decoded. Files of other kinds, or whose
header is damaged or elsewhere than expected, are left as they are. The tests compare every number of rows.
"""

import zlib


JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers SOF0 to SOF15


def first_rows(content: bytes, num_rows: int) -> tuple[bytes, int]:
    """A JPEG or PNG file that says in its header to end sooner, so that the rest is not decoded, and its missing rows.

    JPEG: the frame header is in ITU-T T.81, B.2.2. Two rows more, because colours are interpolated between rows.
    PNG: W3C PNG, 11.2.1, with a checksum. Not if it is interlaced: then each row needs all of the file; nor if it is
    animated (acTL): then frames state their sizes, too.
    """
    is_animated = content.find(b"acTL", 0, content.find(b"IDAT")) > 0
    is_png = content[12:16] == b"IHDR" and content[28:29] == b"\0" and not is_animated
    if is_png and zlib.crc32(content[12:29]) != int.from_bytes(content[29:33], "big"):
        return content, 0  # damaged, which the new checksum must not hide
    if is_png:
        begin, end = 20, 24
    elif content.startswith(b"\xff\xd8") and (frame := _jpeg_frame(content)):
        begin, end = frame + 5, frame + 7
        num_rows += 2
    else:
        return content, 0
    num_left_out = int.from_bytes(content[begin:end], "big") - num_rows
    if num_left_out <= 0:
        return content, 0
    head, tail = content[:begin] + num_rows.to_bytes(end - begin, "big"), memoryview(content)[end:]
    if is_png:
        head += content[24:29]
        head, tail = head + zlib.crc32(head[12:]).to_bytes(4, "big"), tail[9:]
    return b"".join((head, tail)), num_left_out


def _jpeg_frame(content: bytes) -> int | None:
    """Where the frame header of a JPEG begins; None if it is not where the standard says."""
    position = 2
    while content[position : position + 1] == b"\xff" and position + 9 < len(content):
        marker = content[position + 1]
        if marker in JPEG_FRAMES:
            return position
        position += 1 if marker == 0xFF else 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return None
