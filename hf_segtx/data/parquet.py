"""Any data set -> sharded Parquet with embedded files, as the Hub and streaming want it.

    prepared = write_parquet(DataSettings(train_dir="data/cityscapes"), "prepared/cityscapes")
    load_data(dataset_name="prepared/cityscapes", streaming=True)

Column `image` holds the image files as they are (PNG, JPEG, TIFF, .npy, ...), `label` PNG masks of train ids, 0 to
K - 1, and 255 where nothing counts: the labels are mapped here, once. Class names and colours are in classes.json,
id2label.json and the metadata of every file; README.md is the card.

Every sample is read and checked on the way. A run that was stopped goes on after its last whole file.
"""

import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..markdown import plain
from .checks import check_data
from .dataset import SegmentationDataset, note_errors
from .files import ALL, canonical_split
from .labels import Labels
from .layouts import find_layout
from .loading import layout_labels, with_255_as_class
from .settings import DataSettings
from .tables import find_tables


SPLITS = ("train", "validation", "test")
ROWS_PER_GROUP = 100  # that a reader has to fetch together: a few tens of MB
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
# What the files depend on: a run goes on in a folder only if all of them are the same.
PLANNED = """
    dataset_name dataset_config_name revision train_dir validation_dir image_column_name label_column_name classes_file
    do_reduce_labels num_channels allow_lossy_masks
""".split()

PLACES = ("dataset_name", "train_dir", "validation_dir", "classes_file")


class Prepared(NamedTuple):
    """title: of the data set; rows: {split: number of samples}; left_out: {split: what was wrong with each}."""

    title: str
    rows: dict[str, int]
    left_out: dict[str, list[str]]


def write_parquet(
    settings: DataSettings,
    output_dir: str | Path,
    *,
    splits: Sequence[str] = (),
    shard_size: float = 500,
    num_workers: int = 2,
    repository: str | None = None,
) -> Prepared:
    """Writes the data set, or what is missing of it.

    Args:
        settings: what to read; nothing is held out of the training data.
        output_dir: an empty or new folder, or one where an earlier run was stopped.
        splits: those to write; by default train, validation and test, as far as they are there.
        shard_size: of a Parquet file, about, in MB.
        num_workers: processes that read.
        repository: name on the Hub that the card tells users.

    Raises:
        ValueError, OSError: for data that are missing or wrong, or a folder that holds something else.
    """
    found, title = find_splits(settings, splits)
    labels = with_255_as_class(list(found.values()), next(iter(found.values())).labels, max_checks=1000)
    left_out = {split: list(dataset.skipped) for split, dataset in found.items()}  # files without a partner
    output = Path(output_dir)
    plan = {name: getattr(settings, name) for name in PLANNED}
    places = [name for name in PLACES if plan[name] and Path(plan[name]).exists()]
    plan |= {name: str(Path(plan[name]).resolve()) for name in places}
    samples = {split: len(dataset) for split, dataset in found.items()}
    _claim(output, {**plan, "samples": samples, "shard_size": shard_size})
    for split, dataset in found.items():
        check_data(dataset, split=split, max_samples=100)
    labels.write(output)
    for split, dataset in found.items():
        stop = settings.on_error == "raise"
        left_out[split] += _write_split(split, dataset, output, shard_size, num_workers, stop)
    rows = {
        split: sum(pq.read_metadata(file).num_rows for file in output.glob(f"data/{split}-*.parquet"))
        for split in found
    }
    _write_card(output, title, labels, rows, repository)
    return Prepared(title, rows, left_out)


def upload(folder: str | Path, repository: str, *, public: bool = False, token: str | None = None) -> str:
    """Uploads what `write_parquet` wrote to a data set of the Hub, in one commit; returns its address.

    Args:
        public: everybody may see it: see first whether the terms of the data let you share them.
    """
    api = HfApi(token=token)
    address = api.create_repo(repository, repo_type="dataset", private=not public, exist_ok=True)
    api.upload_folder(
        repo_id=address.repo_id,
        repo_type="dataset",
        folder_path=folder,
        ignore_patterns=["prepare.json", "*.unfinished"],
        commit_message="Data as Parquet",
    )
    return str(address)


# --------------------------------------------------------------------------------------------------------------- data


def find_splits(settings: DataSettings, splits: Sequence[str] = ()) -> tuple[dict[str, SegmentationDataset], str]:
    """The data of each split, and a title.

    Raises:
        ValueError: if there are none, or they are wrong.
    """
    labels = None
    if settings.classes_file:
        labels = Labels.from_file(settings.classes_file, settings.do_reduce_labels)
    if settings.dataset_name:
        records, labels, title = _tables(settings, splits, labels)
        alone = {}
    elif settings.train_dir or settings.validation_dir:
        alone = {split: [] if settings.on_error == "skip" else None for split in SPLITS}
        records, labels, title = _folders(settings, splits, labels, alone)
    else:
        raise ValueError("there is nothing to prepare; give train_dir, validation_dir or dataset_name")
    options = labels, settings.num_channels, settings.on_error, settings.allow_lossy_masks
    found = {split: SegmentationDataset(pairs, *options) for split, pairs in records.items()}
    for split, dataset in found.items():
        note_errors(dataset, alone.get(split) or [])
    return found, title


def _tables(settings: DataSettings, splits: Sequence[str], labels: Labels | None) -> tuple[dict, Labels, str]:
    names = "image_column_name label_column_name do_reduce_labels cache_dir token revision".split()
    found, labels = find_tables(
        settings.dataset_name,
        settings.dataset_config_name,
        labels=labels,
        streaming=settings.streaming or "://" in settings.dataset_name,
        **{name: getattr(settings, name) for name in names},
    )
    called = {split: canonical_split(split) for split in found}
    wanted = splits or [split for split, name in called.items() if name in SPLITS] or list(found)
    _check_splits(settings.dataset_name, wanted, found)
    title = settings.dataset_name.rstrip("/").rpartition("/")[2]
    return {called[split]: found[split]() for split in wanted}, labels, title


def _folders(
    settings: DataSettings, splits: Sequence[str], labels: Labels | None, alone: dict[str, list[str] | None]
) -> tuple[dict, Labels, str]:
    places = {"train": settings.train_dir, "validation": settings.validation_dir}
    places = {split: str(place) for split, place in places.items() if place}
    layouts = {place: find_layout(place) for place in places.values()}
    labels = labels or layout_labels(layouts, settings.do_reduce_labels)
    title = next((layout.title for layout in layouts.values() if layout.is_public), "")
    title = title or Path(next(iter(layouts))).resolve().name
    if settings.train_dir and not settings.validation_dir:  # all that is there
        layout = layouts[places["train"]]
        places |= {split: places["train"] for split in layout.splits if split != ALL}
        if ALL not in layout.splits:
            places = {split: place for split, place in places.items() if split in layout.splits}
    _check_splits(" and ".join(layouts), splits, places)
    wanted = splits or [split for split in SPLITS if split in places] or list(places)
    records = {split: layouts[places[split]].records(split, labels, alone.get(split)) for split in wanted}
    if not any(records.values()):
        raise ValueError(f"{' and '.join(layouts)}: there are no samples; name splits: {', '.join(places)}")
    return {split: pairs for split, pairs in records.items() if pairs}, labels, title


def _check_splits(place: str, wanted: Sequence[str], there: dict) -> None:
    if missing := [split for split in wanted if split not in there]:
        raise ValueError(f"{place}: there is no split {missing[0]!r}; the splits are {', '.join(there)}")


# ------------------------------------------------------------------------------------------------------------- writing


class Rows(Dataset):
    """Rows of the Parquet file, or the text of what is wrong with the sample."""

    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict | str:
        try:
            label = self.dataset.labels.as_mask(self.dataset[index]["label"])  # decodes the image, too
        except ValueError as error:
            return str(error)
        content, name = _content_of(self.dataset.files(index)[0])
        buffer = io.BytesIO()
        Image.fromarray(label).save(buffer, "PNG")
        name = name or f"{self.dataset.indices[index]:08}"
        return {
            "image": {"bytes": content, "path": name},
            "label": {"bytes": buffer.getvalue(), "path": Path(name).stem + ".png"},
        }


def _content_of(file: str | dict) -> tuple[bytes, str | None]:
    """The bytes and the name of an undecoded file."""
    path = file["path"] if isinstance(file, dict) else file
    content = file.get("bytes") if isinstance(file, dict) else None
    return content if content is not None else Path(path).read_bytes(), Path(path).name if path else None


def _shards(dataset: SegmentationDataset, shard_size: float) -> list[range]:
    """Consecutive indices whose images have about `shard_size` MB together, by the sizes of a hundred of them."""
    sample = range(0, len(dataset), math.ceil(len(dataset) / 100))
    total = sum(len(_content_of(dataset.files(index)[0])[0]) for index in sample) * len(dataset) / len(sample)
    count = min(len(dataset), max(1, round(total / (shard_size * 1e6))))
    bounds = [len(dataset) * number // count for number in range(count + 1)]
    return [range(*pair) for pair in zip(bounds, bounds[1:])]


def _write_shard(file: Path, rows: Iterator, schema: pa.Schema) -> list[str]:
    """Writes rows to a file that appears when it is whole; returns what was wrong with those left out."""
    unfinished, errors, group = file.with_suffix(".unfinished"), [], []
    with pq.ParquetWriter(unfinished, schema, compression="none", write_page_index=True) as writer:
        for row in rows:
            if isinstance(row, str):
                errors.append(row)
            else:
                group.append(row)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))
    os.replace(unfinished, file)
    return errors


def _write_split(
    split: str, dataset: SegmentationDataset, output: Path, shard_size: float, num_workers: int, stop: bool
) -> list[str]:
    """Writes the files of a split that are not there yet; returns what was wrong with samples left out, if not the
    first of them stops it."""
    parts = _shards(dataset, shard_size)
    files = [output / f"data/{split}-{number:05}-of-{len(parts):05}.parquet" for number in range(len(parts))]
    todo = [(file, part) for file, part in zip(files, parts) if not file.exists()]
    errors: list[str] = []
    schema = FEATURES.arrow_schema
    classes = (output / "classes.json").read_bytes()
    schema = schema.with_metadata({**schema.metadata, b"classes.json": classes})
    done = len(dataset) - sum(len(part) for _, part in todo)
    with tqdm(total=len(dataset), initial=done, desc=f"Writing {split}") as progress:

        def counted(loader) -> Iterator:
            for row in loader:
                if isinstance(row, str) and stop:
                    raise ValueError(f"{row} (on_error skip omits such samples)")
                progress.update()
                yield row

        for file, part in todo:
            subset = Subset(Rows(dataset), part)
            loader = DataLoader(subset, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)
            errors += _write_shard(file, counted(loader), schema)
    return errors


def _as_it_is(row):
    return row


def _claim(output: Path, plan: dict) -> None:
    """Makes the folder, or makes sure that what is in it comes from the same data and settings."""
    file = output / "prepare.json"
    if file.exists():
        if json.loads(file.read_text()) != plan:
            raise ValueError(f"{output} holds other data or was made with other settings; remove it or name another")
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; name another folder")
    (output / "data").mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan, indent=1) + "\n")


def _write_card(output: Path, title: str, labels: Labels, rows: dict[str, int], repository: str | None) -> None:
    where = repository or "this folder"
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in rows]
    data = DatasetCardData(
        pretty_name=title,
        task_categories=["image-segmentation"],
        tags=["semantic-segmentation"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    ignored = json.loads((output / "classes.json").read_text())["ignore_index"]
    first = labels.num_ids - labels.num_labels  # a single class is 1
    rows_of_classes = enumerate(zip(labels.names, labels.palette), first)
    table = "\n".join(f"| {i} | {plain(name)} | #{bytes(color).hex()} |" for i, (name, color) in rows_of_classes)
    counts = ", ".join(f"{count} images in `{split}`" for split, count in rows.items())
    text = f"""---
{data.to_yaml()}
---

# {plain(title)}

Semantic segmentation in {labels.num_labels} classes; {counts}.

Column `image` holds the image files as their owners made them, `label` masks whose values are the ids below
{"(0 is background) " if first else ""}and {ignored} where nothing counts. The licence of the data is their owners'.

```python
import datasets

dataset = datasets.load_dataset("{where}", split="{next(iter(rows))}", streaming=True)
```

```bash
segtx train --dataset_name "{where}" --streaming   # of hf_segtx
```

| id | class | colour |
|---:|---|---|
{table}
"""
    DatasetCard(text).save(output / "README.md")
