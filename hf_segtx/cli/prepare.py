"""Turns a data set into sharded Parquet with embedded files, as the Hub and `--streaming` want it.

    python examples/prepare_dataset.py data/cityscapes prepared/cityscapes
    python examples/prepare_dataset.py data/pairs.csv prepared/cracks --push_to_hub USER/cracks
    python examples/prepare_dataset.py OWNER/NAME prepared/name --revision main --classes_file ade20k
    python examples/train.py --dataset_name prepared/cityscapes --streaming

The source is a public data set in its owners' folders or a file of pairs (see `hf_segtx.data.layouts`); a folder with
images/ and masks/, or one with such folders train/, validation/ (val/) and test/; or a data set of the Hub, a folder or
file (.parquet, .arrow, .tar of WebDataset) that `datasets` can load, or an address of such files. Column `image` holds
the image files as they are (PNG, JPEG, TIFF, .npy, ...), `label` PNG masks of train ids, 0 .. K - 1, and 255 where
nothing counts: the labels are mapped here, once.
Class names and colours are in classes.json, id2label.json and the metadata of every file; README.md is the card.

Every sample is read and checked on the way. A run that was stopped goes on after its last whole file. Uploads are
private unless --public is given: see first whether the terms of the data let you share them.
"""

import argparse
import io
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data import SegmentationDataset
from ..data.checks import check_data
from ..data.files import canonical_split, files_below
from ..data.labels import Labels
from ..data.layouts import find_layout
from ..data.loading import layout_labels
from ..data.tables import find_tables
from ..training.arguments import add_data_flags


SPLITS = ("train", "validation", "test")
ROWS_A_GROUP = 100  # that a reader has to fetch together: a few tens of MB
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="folder, file, name or address of a data set")
    parser.add_argument("output", help="folder for the Parquet files")
    parser.add_argument("--splits", nargs="+", help=f"of a data set; default: those of {', '.join(SPLITS)}")
    add_data_flags(parser)
    parser.add_argument("--shard_size", type=float, default=500, help="of a Parquet file, about, in MB")
    parser.add_argument("--on_error", choices=["raise", "skip"], default="raise", help="skip: leave bad samples out")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="upload to this data set of the Hub")
    parser.add_argument("--public", action="store_true", help="everybody may see the upload")
    return parser.parse_args(command_line)


def find_splits(arguments: argparse.Namespace) -> tuple[dict[str, SegmentationDataset], str]:
    """The data of each split, and a title.

    Raises:
        ValueError: if there are none, or what `find_layout` and `Labels` raise.
    """
    source = Path(arguments.source)
    if not source.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?|.+://.+", arguments.source):
        raise ValueError(f"{source}: there is no such folder or file; a data set of the Hub is called OWNER/NAME")
    explicit = Labels.from_file(arguments.classes_file, arguments.do_reduce_labels) if arguments.classes_file else None
    if is_table(source):
        names = "image_column_name label_column_name do_reduce_labels cache_dir token revision".split()
        found, labels = find_tables(
            arguments.source,
            arguments.dataset_config_name,
            labels=explicit,
            streaming="://" in arguments.source,
            **{name: getattr(arguments, name) for name in names},
        )
        splits = {split: canonical_split(split) for split in found}
        wanted = arguments.splits or [split for split, name in splits.items() if name in SPLITS] or list(found)
        if missing := [split for split in wanted if split not in found]:
            raise ValueError(f"{source}: there is no split {missing[0]!r}; the splits are {', '.join(found)}")
        records = {splits[split]: found[split]() for split in wanted}
        title = arguments.source.rstrip("/").rpartition("/")[2]
    else:
        layout = find_layout(source)
        labels = explicit or layout_labels({str(source): layout}, arguments.do_reduce_labels)
        wanted = arguments.splits or [split for split in ("all", *SPLITS) if split in layout.splits]
        records = {"train" if split == "all" else split: layout.records(split, labels) for split in wanted}
        records = {split: pairs for split, pairs in records.items() if pairs}
        title = source.resolve().name if layout.labels is None else layout.title
    options = labels, arguments.num_channels, arguments.on_error
    return {split: SegmentationDataset(pairs, *options) for split, pairs in records.items()}, title


def is_table(source: Path) -> bool:
    """Whether `datasets` has to read it: what is not on this disk, and files of rows, alone or in a folder."""
    suffixes = (".parquet", ".arrow", ".tar")
    if not source.is_dir():
        return not source.exists() or source.suffix.lower() in suffixes
    return any(name.lower().endswith(suffixes) or name.startswith("metadata.") for _, name, _ in files_below(source))


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
        content, name = content_of(self.dataset.files(index)[0])
        buffer = io.BytesIO()
        Image.fromarray(label).save(buffer, "PNG")
        name = name or f"{self.dataset.indices[index]:08}"
        return {
            "image": {"bytes": content, "path": name},
            "label": {"bytes": buffer.getvalue(), "path": Path(name).stem + ".png"},
        }


def content_of(file: str | dict) -> tuple[bytes, str | None]:
    """The bytes and the name of an undecoded file."""
    path = file["path"] if isinstance(file, dict) else file
    content = file.get("bytes") if isinstance(file, dict) else None
    return content if content is not None else Path(path).read_bytes(), Path(path).name if path else None


def shards(dataset: SegmentationDataset, shard_size: float) -> list[range]:
    """Consecutive indices whose images have about `shard_size` MB together, by the sizes of a hundred of them."""
    sample = range(0, len(dataset), math.ceil(len(dataset) / 100))
    total = sum(len(content_of(dataset.files(index)[0])[0]) for index in sample) * len(dataset) / len(sample)
    count = min(len(dataset), max(1, round(total / (shard_size * 1e6))))
    bounds = [len(dataset) * number // count for number in range(count + 1)]
    return [range(*pair) for pair in zip(bounds, bounds[1:])]


def write_shard(file: Path, rows: Iterator, schema: pa.Schema) -> list[str]:
    """Writes rows to a file that appears when it is whole; returns what was wrong with those left out."""
    unfinished, errors, group = file.with_suffix(".unfinished"), [], []
    with pq.ParquetWriter(unfinished, schema, compression="none", write_page_index=True) as writer:
        for row in rows:
            if isinstance(row, str):
                errors.append(row)
            else:
                group.append(row)
            if len(group) == ROWS_A_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))
    os.replace(unfinished, file)
    return errors


def write_split(split: str, dataset: SegmentationDataset, output: Path, arguments: argparse.Namespace) -> list[str]:
    """Writes the files of a split that are not there yet; returns what was wrong with samples left out."""
    parts = shards(dataset, arguments.shard_size)
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
                if isinstance(row, str) and arguments.on_error == "raise":
                    raise ValueError(f"{row} (--on_error skip leaves such samples out)")
                progress.update()
                yield row

        for file, part in todo:
            loader = DataLoader(
                Subset(Rows(dataset), part), batch_size=None, num_workers=arguments.num_workers, collate_fn=as_it_is
            )
            errors += write_shard(file, counted(loader), schema)
    return errors


def as_it_is(row):
    return row


def claim(output: Path, plan: dict) -> None:
    """Makes the folder, or makes sure that what is in it comes from the same data and settings."""
    file = output / "prepare.json"
    if file.exists():
        if json.loads(file.read_text()) != plan:
            raise ValueError(f"{output} holds other data or was made with other settings; remove it or name another")
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; name another folder")
    (output / "data").mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan, indent=1) + "\n")


def write_card(output: Path, title: str, labels: Labels, rows: dict[str, int], repository: str | None) -> None:
    where = repository or "this folder"
    data = DatasetCardData(
        pretty_name=title,
        task_categories=["image-segmentation"],
        tags=["semantic-segmentation"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in rows],
            }
        ],
    )
    ignored = json.loads((output / "classes.json").read_text())["ignore_index"]
    first = labels.num_ids - labels.num_labels  # a single class is 1
    rows_of_classes = enumerate(zip(labels.names, labels.palette), first)
    table = "\n".join(f"| {i} | {name} | #{bytes(color).hex()} |" for i, (name, color) in rows_of_classes)
    counts = ", ".join(f"{count} images in `{split}`" for split, count in rows.items())
    text = f"""---
{data.to_yaml()}
---

# {title}

Semantic segmentation in {labels.num_labels} classes; {counts}.

Column `image` holds the image files as their owners made them, `label` masks whose values are the ids below
{"(0 is background) " if first else ""}and {ignored} where nothing counts. The licence of the data is their owners'.

```python
import datasets

dataset = datasets.load_dataset("{where}", split="{next(iter(rows))}", streaming=True)
```

```bash
accelerate launch examples/train.py --dataset_name "{where}" --streaming   # of hf_segtx
```

| id | class | colour |
|---:|---|---|
{table}
"""
    DatasetCard(text).save(output / "README.md")


def main(arguments: argparse.Namespace) -> None:
    """Writes the data set, and uploads it if asked for.

    Raises:
        ValueError, OSError: for data that are missing or wrong, or a folder that holds something else.
    """
    splits, title = find_splits(arguments)
    labels = next(iter(splits.values())).labels
    output = Path(arguments.output)
    plan = {
        "source": str(Path(arguments.source).resolve()) if Path(arguments.source).exists() else arguments.source,
        "dataset_config_name": arguments.dataset_config_name,
        "revision": arguments.revision,
        "samples": {split: len(dataset) for split, dataset in splits.items()},
        "shard_size": arguments.shard_size,
        "classes_file": arguments.classes_file,
        "do_reduce_labels": arguments.do_reduce_labels,
        "columns": [arguments.image_column_name, arguments.label_column_name],
    }
    claim(output, plan)
    for split, dataset in splits.items():
        check_data(dataset, split=split, max_samples=100)
    labels.write(output)
    errors = {split: write_split(split, dataset, output, arguments) for split, dataset in splits.items()}
    rows = {
        split: sum(pq.read_metadata(file).num_rows for file in output.glob(f"data/{split}-*.parquet"))
        for split in splits
    }
    write_card(output, title, labels, rows, arguments.push_to_hub)
    for split, texts in errors.items():
        print("".join(f"left out of {split}: {text}\n" for text in texts), end="")
    print(f"{output}: {title}, " + ", ".join(f"{count} samples in {split}" for split, count in rows.items()))
    if arguments.push_to_hub:
        api = HfApi(token=arguments.token)
        repository = api.create_repo(
            arguments.push_to_hub, repo_type="dataset", private=not arguments.public, exist_ok=True
        )
        api.upload_folder(
            repo_id=repository.repo_id,
            repo_type="dataset",
            folder_path=output,
            ignore_patterns=["prepare.json", "*.unfinished"],
            commit_message=f"{title} as Parquet",
        )
        print(f"uploaded to {repository}")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    main(parse_arguments(command_line))
    return 0
