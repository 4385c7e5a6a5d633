"""Finds, reads and checks training and validation data, whatever form they have."""

import logging
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from .checks import check_data, mask_values
from .dataset import SegmentationDataset, evenly, note_errors
from .folders import folder_records, subfolder
from .labels import Labels, contract_file
from .layouts import IMAGE_FOLDERS, find_layout
from .tables import find_tables


logger = logging.getLogger(__name__)

SPLIT_SEED = 0  # of the part held out for validation: the same images whatever the seed of the run


def load_data(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_split: str | None = "train",
    validation_split: str | None = None,
    train_val_split: float = 0.15,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    classes_file: str | None = None,
    do_reduce_labels: bool = False,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    num_channels: int = 3,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    seed: int = 0,
    check: bool = True,
    on_error: str = "raise",
    streaming: bool = False,
) -> tuple[Dataset | None, Dataset, Labels]:
    """Finds, reads and checks the training and validation data: of a data set, of folders, or the embedded scenes.

    Args:
        dataset_name: Hub data set, or a local folder or file of one (see `load_tables`); to stream also an
            address that `fsspec` knows (hf://datasets/..., memory://...).
        train_dir, validation_dir: folders with images/ and masks/ (see `folder_records`), and classes.json or
            id2label.json in them or their parent; or public data sets as their owners distribute them, and .csv or
            .jsonl files of pairs (see `hf_segtx.readers`), which know their splits and classes.
        train_split: name of the split to train on; None loads no training data (evaluation only).
        validation_split: None takes "validation", "val" or "valid" if there, else holds out of the training split.
        train_val_split: share of the training data that is held out when there is no validation data; the same images
            in every run, whatever the seed.
        classes_file: classes.json or id2label.json to use instead of the one beside the data.
        do_reduce_labels: raw id 0 is ignored, the others become themselves minus 1 (for id2label.json and data sets).
        max_train_samples, max_eval_samples: use that many, evenly spaced.
        seed: of the embedded training scenes.
        num_channels: of the images (see `read_image`).
        check: run `check_data` on both; in a run of several processes one of them is enough.
        on_error: "raise", or "skip": bad samples are left out, said and listed (`SegmentationDataset.skipped`).
        streaming: read the Parquet files or WebDataset archives of the data set where they are, without a copy, and
            only the parts that are used (see `ParquetRecords` and `TarRecords`); the order of training is as random as
            `ShuffledBatches` says.

    Returns:
        training data (None without any), validation data, labels. Both data sets give items
        {"image": PIL image, "label": (H, W) train ids, "name": text}.

    Raises:
        ValueError: for arguments, folders, files, columns or labels that are wrong, with the cure.
    """
    if dataset_name and (train_dir or validation_dir):
        raise ValueError("give either --dataset_name or --train_dir/--validation_dir, not both")
    for name, count in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if count is not None and count < 1:
            raise ValueError(f"{name} {count} is less than 1; leave it away to use all samples")
    if not 0 < train_val_split < 1:
        raise ValueError(f"train_val_split {train_val_split} is not a share between 0 and 1, e.g. 0.15")
    if not (dataset_name or train_dir or validation_dir):
        from .scenes import SceneDataset

        train = SceneDataset(max_train_samples or 512, seed=seed) if train_split else None
        validation = SceneDataset(max_eval_samples or 64, seed=2**31 - 1)
        return train, validation, validation.labels

    if streaming and not dataset_name:
        raise ValueError("--streaming is for --dataset_name; the files of folders are read one by one anyway")

    explicit = Labels.from_file(classes_file, do_reduce_labels) if classes_file else None
    if dataset_name:
        tables, labels = find_tables(
            dataset_name,
            dataset_config_name,
            split=train_split or validation_split,
            image_column_name=image_column_name,
            label_column_name=label_column_name,
            labels=explicit,
            do_reduce_labels=do_reduce_labels,
            cache_dir=cache_dir,
            token=token,
            revision=revision,
            streaming=streaming,
        )
        validation_split = validation_split or next((s for s in ("validation", "val", "valid") if s in tables), None)
        for split in (train_split, validation_split):
            if split and split not in tables:
                raise ValueError(f"{dataset_name}: there is no split {split!r}; the splits are {list(tables)}")
        train_records = tables[train_split]() if train_split else None
        validation_records = tables[validation_split]() if validation_split else None
    else:
        layouts = {folder: find_layout(folder) for folder in (train_dir, validation_dir) if folder}
        labels = explicit or _folder_labels(layouts, do_reduce_labels)
        alone = ([], []) if on_error == "skip" else (None, None)
        train_records = _records(train_dir, layouts, train_split, alone[0]) if train_dir and train_split else None
        validation_split = validation_split or "validation"
        if validation_dir is None and layouts[train_dir] and validation_split in layouts[train_dir].splits:
            validation_dir = train_dir
        validation_records = _records(validation_dir, layouts, validation_split, alone[1])

    options = labels, num_channels, on_error
    train = SegmentationDataset(train_records, *options) if train_records is not None else None
    if validation_records is not None:
        validation = SegmentationDataset(validation_records, *options)
    elif train is None:
        raise ValueError(f"{dataset_name}: no validation split among {list(tables)}; name one with --validation_split")
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
        held_out = max(1, round(train_val_split * len(train)))
        if held_out == len(train):
            raise ValueError(f"{len(train)} sample cannot be split into training and validation; give --validation_dir")
        train, validation = train.select(sorted(order[held_out:])), train.select(sorted(order[:held_out]))
    if train is not None:
        train = _at_most(train, max_train_samples)
    validation = _at_most(validation, max_eval_samples)
    if not dataset_name and on_error == "skip":
        for dataset, errors in zip((train, validation), alone):
            if dataset is not None:
                note_errors(dataset, errors)

    max_checks = 64 if streaming else 1000  # each may read a shard's whole row group
    if labels.num_ids == 2 and labels.raw_to_train in (None, {0: 0, 1: 1}):
        values = set().union(*(mask_values(dataset, max_checks) for dataset in (train, validation) if dataset))
        if values == {0, 255}:
            logger.info("The masks hold 0 and 255 only: 255 is taken as the class %r.", labels.names[-1])
            labels = labels.with_255_as_class()
            for dataset in filter(None, (train, validation)):
                dataset.labels = labels
    if check:
        if train is not None:
            check_data(train, split="training", max_samples=max_checks)
        check_data(validation, split="validation", max_samples=max_checks)
    return train, validation, labels


def _records(folder: str | None, layouts: dict, split: str, alone: list[str] | None) -> list | None:
    if folder is None:
        return None
    return layouts[folder].records(split) if layouts[folder] else folder_records(folder, alone)


def _folder_labels(layouts: dict, do_reduce_labels: bool) -> Labels:
    """The contract of the folders (the keys); different ones are an error."""
    for folder in (folder for folder, layout in layouts.items() if layout is None):
        if not Path(folder).exists():
            raise ValueError(f"{folder}: there is no such folder")
        subfolder(Path(folder), IMAGE_FOLDERS)
    contracts = {}
    for folder, layout in layouts.items():
        if layout is not None:
            if do_reduce_labels:
                raise ValueError(f"{folder}: the ids of {layout.title} are known; leave --do_reduce_labels away")
            contracts[folder] = layout.labels
        elif file := contract_file(folder):
            if do_reduce_labels and file.name == "classes.json":
                raise ValueError(f"{file} says itself which id is ignored; leave --do_reduce_labels away")
            contracts[file] = Labels.from_file(file, do_reduce_labels)
    if not contracts:
        return Labels.from_folder(next(iter(layouts)))  # raises, naming what is missing
    (first, labels), (last, other) = list(contracts.items())[0], list(contracts.items())[-1]
    labels.check_names(other.id2label, str(last))
    if labels != other:
        raise ValueError(f"{first} and {last} differ in ids, colours or what is ignored; make them equal")
    return labels


def _at_most(dataset: SegmentationDataset, count: int | None) -> SegmentationDataset:
    return dataset if count is None or count >= len(dataset) else dataset.select(evenly(len(dataset), count))
