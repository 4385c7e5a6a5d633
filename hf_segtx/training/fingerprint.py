"""A fingerprint of the data of a run, by which resuming notices that they are others: renamed, replaced, reordered.

Of files it covers the order, the names below their common folder and the sizes of all, and of `CONTENTS` files, evenly
spread, three pieces of the content: a picture of the same size in bytes that differs between the pieces, or among more
files than that, goes unnoticed. Of rows of tables, and of masks that are drawn, it covers the number and the content of
`ROWS`, evenly spread. So it takes seconds, whatever there is of data.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from ..data.dataset import evenly
from ..data.shards import ParquetRecords, TarRecords


BLOCKS = 64  # of neighbouring samples, each with a fingerprint of its own: they tell where the data differ
CONTENTS = 10_000
ROWS = 256
STREAMED_ROWS = 8  # each may be a download
PIECE = 16 * 1024  # bytes, at the beginning, in the middle and at the end of a file


def data_fingerprint(dataset: Dataset) -> list[str]:
    """A short text for each of up to `BLOCKS` blocks of samples; equal for equal data, wherever they are."""
    records = getattr(dataset, "records", None)
    if records is None:  # drawn from a seed, which the arguments have
        return [f"{type(dataset).__name__} of {len(dataset)}"]
    of_files = isinstance(records[dataset.indices[0]][0], str)
    streams = isinstance(records, (ParquetRecords, TarRecords))
    contents = set(evenly(len(dataset), CONTENTS // 2 if of_files else STREAMED_ROWS if streams else ROWS))
    drawn = set(evenly(len(dataset), ROWS))
    if of_files:
        paths = [part for row in dataset.indices for part in records[row] if isinstance(part, str)]
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])

    def of_sample(index: int) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        if of_files or index in contents:
            for part in records[dataset.indices[index]]:
                if isinstance(part, str):
                    digest.update(os.path.relpath(os.path.abspath(part), root).encode(errors="surrogateescape"))
                    digest.update(_of_file(part, index in contents))
                elif isinstance(part, dict) and part.get("bytes"):
                    digest.update(part["bytes"])
                elif isinstance(part, dict):
                    digest.update(_of_file(part["path"], index in contents))
                elif index in drawn:
                    digest.update(_of_array(part))
        return digest.digest()

    with ThreadPoolExecutor(16) as pool:
        samples = list(pool.map(of_sample, range(len(dataset)), chunksize=64))
    return [
        hashlib.blake2b(b"".join(samples[block.start : block.stop]), digest_size=6).hexdigest()
        for block in blocks(len(dataset))
    ]


def blocks(length: int) -> list[range]:
    """The samples of each block."""
    bounds = np.linspace(0, length, min(length, BLOCKS) + 1).astype(int).tolist()
    return [range(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


def changed_samples(there: list[str], here: list[str], dataset: Dataset) -> str:
    """Which of the samples differ, in words."""
    if len(there) != len(here):
        return "other samples"
    different = [block for block, old, new in zip(blocks(len(dataset)), there, here, strict=True) if old != new]
    names = []
    for block in different[:5]:
        first, last = (_name(dataset, index) for index in (block[0], block[-1]))
        names.append(first if len(block) == 1 else f"{first} to {last}")
    more = f" and {len(different) - 5} more such parts" if len(different) > 5 else ""
    return f"{', '.join(names)}{more}: renamed, replaced or in another order"


def _name(dataset: Dataset, index: int) -> str:
    image = dataset.records[dataset.indices[index]][0] if hasattr(dataset, "records") else None
    return Path(image).name if isinstance(image, str) else f"sample {index}"


def _of_array(part) -> bytes:
    """Values of a mask that is drawn or of a table; of one that cannot be drawn that it is so."""
    try:
        return np.ascontiguousarray(np.asarray(part)).tobytes()
    except ValueError:
        return b"unreadable"


def _of_file(path: str, with_content: bool) -> bytes:
    """Size and, if asked for, pieces of the content; of a file that cannot be read that it is so."""
    try:
        size = os.stat(path).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        if with_content:
            with open(path, "rb", buffering=0) as file:
                for start in (0, (size - PIECE) // 2, size - PIECE) if size > 3 * PIECE else (0,):
                    file.seek(start)
                    digest.update(file.read(PIECE if size > 3 * PIECE else 3 * PIECE))
    except OSError:
        return b"unreadable"
    return digest.digest()
