"""Label maps of any number of images, in shards, by any number of processes, resumable.

    records = open_archive("USER/photos")            # or files_as_records(find_sources(["photos/"]).names)
    segment_archive(predictor, records, "labels", kind="parquet", rank=0, num_processes=4)

A shard holds the results of consecutive images. Which images that are does not depend on the number of processes, and a
shard is written under another name and appears when it is whole. So whatever is killed, each image is in exactly one
shard in the end; what was killed is started again, by as many processes as there are now. They share the folder only.

A row: `index` of the image among all, `name`, `height` and `width` in pixels, `label` (PNG of class ids), `confidence`
and `entropy` (means over the pixels, see `hf_segtx.inference.segment`); or the `error` of an image that cannot be read.
In Parquet these are columns, in WebDataset `INDEX.label.png` and `INDEX.json`. The metadata say which model and which
data.
"""

import hashlib
import io
import json
import os
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..data.decoding import read_image
from ..data.shards import ParquetRecords, TarRecords, first_row, load_shards
from ..data.tables import find_image_column
from ..models.segmentation_base import SegmentationPreTrainedModel
from ..weights.files import weights_hash
from .batches import segment_rows
from .pictures import Predictor, read_ahead


FEATURES = datasets.Features(
    {
        "index": datasets.Value("int64"),
        "name": datasets.Value("string"),
        "height": datasets.Value("int32"),
        "width": datasets.Value("int32"),
        "label": datasets.Image(),
        "confidence": datasets.Value("float32"),
        "entropy": datasets.Value("float32"),
        "error": datasets.Value("string"),
    }
)
SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}


class Records(NamedTuple):
    """Undecoded images.

    files: sequence of what `read_image` takes; name: index -> name of an image; identity: what tells these images from
    others, such as names and sizes of files.
    """

    files: Sequence
    name: Callable[[int], str]
    identity: str


def files_as_records(names: dict[Path, Path]) -> Records:
    """Picture files, as `find_sources` names them; known by path and size."""
    files = sorted(names)
    known = "\n".join(f"{file}\t{file.stat().st_size}" for file in files)
    return Records(files, lambda index: str(files[index]), known)


def open_archive(
    name: str,
    config_name: str | None = None,
    *,
    split: str | None = None,
    image_column_name: str | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> Records:
    """The images of Parquet files or WebDataset archives, left where they are: on the Hub, in a folder, at an address.

    Args:
        split: None is the only one.

    Raises:
        ValueError: if it cannot be read, has other files, or several splits or image columns to choose from.
    """
    kind, tables = load_shards(name, config_name, token=token, revision=revision)
    if split is None and len(tables) > 1 or split is not None and split not in tables:
        raise ValueError(f"{name} has the splits {', '.join(tables)}; `split` is {split!r}, give one of them")
    files = tables[split or next(iter(tables))]
    column = find_image_column(first_row(kind, files[0], token), image_column_name)
    if kind == "parquet":
        records = ParquetRecords(files, column, token=token)
        sizes = [metadata.num_rows for metadata in records.metadata]
    else:
        records = TarRecords(files, column, token=token)
        sizes = records.places[:, 0].tolist()

    images = Column(records, kind == "parquet")

    def name_of(index: int) -> str:
        return records.names[index] if kind == "webdataset" else (images[index] or {}).get("path") or str(index)

    return Records(images, name_of, json.dumps([name, split, column, files, sizes]))


class Column(Sequence):
    """The only column of records; of those in groups, one thread at a time reads, so that no group is read twice."""

    def __init__(self, records: Sequence[tuple], in_groups: bool):
        self.records = records
        self.lock = threading.Lock() if in_groups else nullcontext()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int):
        with self.lock:
            return self.records[index][0]


def segment_archive(
    predictor: Predictor,
    records: Records,
    output_dir: str | Path,
    *,
    kind: Literal["parquet", "webdataset"] = "parquet",
    images_per_shard: int = 1000,
    uncertainty: bool = True,
    batch_size: int = 1,
    rank: int = 0,
    num_processes: int = 1,
) -> list[str]:
    """Writes the shards of this process that are not there; returns what was wrong with images in them.

    Reading, the model and writing overlap; in memory are the results of one or two shards, as PNG, and a few images.

    Args:
        output_dir: an empty or new folder, or that of a run with the same model, images and settings.
        images_per_shard: images in a shard.
        uncertainty: also `confidence` and `entropy`, which takes longer; else they are null.
        batch_size: images that go through the model together, without `uncertainty`.
        rank, num_processes: this process takes every `num_processes`-th shard, from number `rank` on.

    Raises:
        ValueError: if the folder holds something else.
        OSError: if a shard cannot be written.
    """
    output, total = Path(output_dir), len(records.files)
    metadata = claim(output, predictor, records, kind=kind, images_per_shard=images_per_shard, uncertainty=uncertainty)
    if isinstance(predictor.model, SegmentationPreTrainedModel):
        predictor = Predictor(predictor.model.optimize_for_inference(), predictor.processor)
    count = -(-total // images_per_shard)
    shards = {
        output / f"labels-{number:06}-of-{count:06}{SUFFIXES[kind]}": range(
            number * images_per_shard, min(total, (number + 1) * images_per_shard)
        )
        for number in range(rank, count, num_processes)
    }
    todo = {file: part for file, part in shards.items() if not file.exists()}
    num_channels = getattr(predictor.model.config, "num_channels", 3)

    def read(index: int):
        return read_image(records.files[index], records.name(index), num_channels)

    errors: list[str] = []
    done = sum(len(part) for part in shards.values()) - sum(len(part) for part in todo.values())
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=done + sum(map(len, todo.values())), initial=done, unit="image", disable=rank > 0) as bar,
    ):
        images = read_ahead(pool, read, (index for part in todo.values() for index in part), 2 * batch_size + 2)
        writing: deque = deque()
        for file, part in todo.items():
            rows = []
            of_part = islice(images, len(part))
            for index, row in segment_rows(pool, predictor, of_part, uncertainty=uncertainty, batch_size=batch_size):
                rows.append(_with_name(row, index, records.name(index)))
                bar.update()
            errors += [f"{row['name']}: {row['error']}" for row in rows if row["error"]]
            writing.append(pool.submit(WRITERS[kind], file, rows, metadata))
            while len(writing) > 1:
                writing.popleft().result()
        for shard in writing:
            shard.result()
    return errors


def claim(output: Path, predictor: Predictor, records: Records, **settings) -> dict[str, str]:
    """Makes the folder, or makes sure that it is of the same run; returns what the shards say of their origin.

    Raises:
        ValueError: if there are other files, or results of another model, other images or settings.
    """
    plan = {
        "model": str(getattr(predictor.model.config, "name_or_path", "")),
        "weights_sha256": getattr(predictor.model, "weights_sha256", None) or weights_hash(predictor.model),
        "processor": json.loads(predictor.processor.to_json_string()),
        "images": len(records.files),
        "images_sha256": hashlib.sha256(records.identity.encode()).hexdigest(),
        "classes": predictor.names,
        **settings,
    }
    file = output / "plan.json"
    if not file.exists():
        if output.is_file() or (output.exists() and any(output.iterdir())):
            raise ValueError(f"`output_dir` {output} is not an empty folder; name another one")
        output.mkdir(parents=True, exist_ok=True)
        unfinished = output / f".plan-{os.getpid()}"
        unfinished.write_text(json.dumps(plan, indent=1) + "\n")
        os.replace(unfinished, file)  # several processes write the same
    known = json.loads(file.read_text())
    other = [name for name in plan if name != "model" and known.get(name) != plan[name]]
    if other:
        raise ValueError(
            f"`output_dir` {output} holds results with another `{other[0]}`: {str(known.get(other[0]))[:80]}, now "
            f"{str(plan[other[0]])[:80]}; name another folder"
        )
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in plan.items()}


def _with_name(row: dict, index: int, name: str) -> dict:
    """A row, as at the head of this file."""
    label = row["label"] and {"bytes": row["label"], "path": f"{index:09}.png"}
    return {"index": index, "name": name, **row, "label": label}


def _finish(unfinished: Path, file: Path) -> None:
    """Puts a whole file in its place, and removes what killed processes left of it, which others would read."""
    os.replace(unfinished, file)
    for left in file.parent.glob(f".unfinished-*-{file.name}"):
        left.unlink(missing_ok=True)


def _write_parquet(file: Path, rows: list[dict], metadata: dict[str, str]) -> None:
    schema = FEATURES.arrow_schema
    schema = schema.with_metadata({**schema.metadata, **metadata})
    unfinished = file.with_name(f".unfinished-{os.getpid()}-{file.name}")
    pq.write_table(pa.Table.from_pylist(rows, schema), unfinished, compression="none", row_group_size=100)
    _finish(unfinished, file)


def _write_tar(file: Path, rows: list[dict], metadata: dict[str, str]) -> None:
    unfinished = file.with_name(f".unfinished-{os.getpid()}-{file.name}")
    with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT, pax_headers=metadata) as archive:
        for row in rows:
            label = row.pop("label")
            members = {"label.png": label["bytes"]} if label else {}
            members["json"] = json.dumps(row).encode()
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{row['index']:09}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    _finish(unfinished, file)


WRITERS = {"parquet": _write_parquet, "webdataset": _write_tar}
