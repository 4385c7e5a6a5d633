"""Finds, reads and checks training and validation data, whatever form they have."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

from torch.utils.data import Dataset

from .annotations import describe_overlap, labels_of_names, overlap_of
from .checks import check_data, mask_values
from .class_files import class_file, read_class_file
from .dataset import SegmentationDataset, evenly, note_errors
from .files import Layout, canonical_split
from .held_out import split_rows
from .labels import Labels
from .layouts import find_layout
from .settings import DataSettings
from .tables import find_tables


logger = logging.getLogger(__name__)


def load_data(
    settings: DataSettings | None = None, *, check: bool = True, **keywords
) -> tuple[Dataset | None, Dataset, Labels]:
    """Finds, reads and checks the training and validation data: of a data set, of folders, or the embedded scenes.

        train, validation, labels = load_data(train_dir="data/cityscapes", max_eval_samples=100)

    Args:
        settings: what to read and how; see `DataSettings`.
        check: run `check_data` on both; in a run of several processes one of them is enough.
        keywords: fields of `DataSettings`, instead of or on top of `settings`.

    Returns:
        training data (None without any), validation data, labels. Both data sets give items
        {"image": PIL image, "label": (H, W) train ids, "name": text}.

    Raises:
        TypeError: for a keyword that is no field of `DataSettings`.
        ValueError: for settings, folders, files, columns or labels that are wrong, with the cure.
    """
    names = [option.name for option in fields(DataSettings)]
    if unknown := [name for name in keywords if name not in names]:
        close = get_close_matches(unknown[0], names, n=1)
        cure = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise TypeError(f"load_data() knows no {unknown[0]!r}; {cure}")
    settings = DataSettings(**keywords) if settings is None else replace(settings, **keywords)
    if not (settings.dataset_name or settings.train_dir or settings.validation_dir):
        return _scenes(settings)
    found = _find_in_tables(settings) if settings.dataset_name else _find_in_folders(settings)
    train, validation = _datasets(found, settings)
    max_checks = 64 if settings.streaming else 1000  # each may read a shard's whole row group
    labels = with_255_as_class([dataset for dataset in (train, validation) if dataset], found.labels, max_checks)
    if check:
        if train is not None and (shared := same_files(train, validation)):
            logger.warning(
                "%d of %d validation images are files of the training data, too (such as %s): the score will be too "
                "good; take them out of one of the two.",
                len(shared),
                len(validation),
                shared[0],
            )
        for split, dataset in (("training", train), ("validation", validation)):
            if dataset is not None:
                check_data(dataset, split=split, max_samples=max_checks)
                if (text := overlap_text(dataset)) is not None:
                    logger.warning("Of the checked %s masks %s.", split, text)
    return train, validation, labels


@dataclass
class _Found:
    """Undecoded data.

    Args:
        labels: their contract.
        train, validation: pairs of files of each; None if there are none.
        train_alone, validation_alone: what is said about files without a partner that are left out.
        missing: what is said if there is neither training nor validation data.
    """

    labels: Labels
    train: Sequence | None
    validation: Sequence | None
    train_alone: list[str] = field(default_factory=list)
    validation_alone: list[str] = field(default_factory=list)
    missing: str = ""


def _scenes(settings: DataSettings) -> tuple[Dataset | None, Dataset, Labels]:
    from .scenes import SceneDataset

    train = SceneDataset(settings.max_train_samples or 512, seed=settings.seed) if settings.train_split else None
    validation = SceneDataset(settings.max_eval_samples or 64, seed=2**31 - 1)
    return train, validation, validation.labels


def _explicit_labels(settings: DataSettings) -> Labels | None:
    if settings.classes_file is None:
        return None
    return Labels.from_file(settings.classes_file, settings.do_reduce_labels)


def _find_in_tables(settings: DataSettings) -> _Found:
    train_split, validation_split = settings.train_split, settings.validation_split
    names = "image_column_name label_column_name do_reduce_labels cache_dir token revision streaming".split()
    tables, labels = find_tables(
        settings.dataset_name,
        settings.dataset_config_name,
        split=train_split or validation_split,
        labels=_explicit_labels(settings),
        **{name: getattr(settings, name) for name in names},
    )
    validation_split = validation_split or next((s for s in ("validation", "val", "valid") if s in tables), None)
    for split in (train_split, validation_split):
        if split and split not in tables:
            raise ValueError(f"{settings.dataset_name}: there is no split {split!r}; the splits are {list(tables)}")
    train, validation = (tables[split]() if split else None for split in (train_split, validation_split))
    missing = f"{settings.dataset_name}: no validation split among {list(tables)}; name one with validation_split"
    return _Found(labels, train, validation, missing=missing)


def _find_in_folders(settings: DataSettings) -> _Found:
    train_dir, validation_dir, train_split = settings.train_dir, settings.validation_dir, settings.train_split
    layouts = {str(folder): find_layout(folder) for folder in (train_dir, validation_dir) if folder}
    labels = _explicit_labels(settings) or layout_labels(layouts, settings.do_reduce_labels)
    for folder, layout in layouts.items():
        logger.info("%s: %s.", folder, "; ".join([layout.title, *layout.notes]))
    validation_split = canonical_split(settings.validation_split or "validation")
    if train_dir and validation_dir is None:
        splits = layouts[str(train_dir)].splits
        if validation_split in splits:
            validation_dir = train_dir
        elif settings.validation_split is not None:
            raise ValueError(f"{train_dir}: there is no split {validation_split!r} here; there are {', '.join(splits)}")
    alone = ([], []) if settings.on_error == "skip" else (None, None)
    train = validation = None
    if train_dir and train_split:
        train = layouts[str(train_dir)].records(train_split, labels, alone[0])
    if validation_dir:
        validation = layouts[str(validation_dir)].records(validation_split, labels, alone[1])
    missing = f"{train_dir}: train_split is empty and there are no validation data; set one of them"
    return _Found(labels, train, validation, alone[0] or [], alone[1] or [], missing)


def layout_labels(layouts: dict[str, Layout], do_reduce_labels: bool) -> Labels:
    """The contract of the folders (the keys): that of the files beside the data, else the layouts' own.

    A folder without class names has those of the other one.
    Masks that are drawn by name follow the contract of the others; without any, the classes are all names there are.

    Raises:
        ValueError: if there is none, or folders have different ones.
    """
    contracts, without = {}, []
    for folder, layout in layouts.items():
        files = list(dict.fromkeys(file for place in layout.places if (file := class_file(place))))
        for file in files:
            contracts[str(file)] = read_class_file(file, do_reduce_labels)
            logger.info("%s: the classes are those of %s.", folder, file)
        if not files and layout.labels is None:
            without.append((*layout.places, folder)[0])
            continue
        if not files and do_reduce_labels:
            raise ValueError(f"{folder}: the ids of {layout.title} are known; omit do_reduce_labels")
        if not files and not layout.names:
            contracts[folder] = layout.labels
    if without and not contracts:
        Labels.from_folder(without[0])  # raises, naming what is missing
    if not contracts:
        return labels_of_names(dict.fromkeys(name for layout in layouts.values() for name in layout.names))
    (first, labels), *others = contracts.items()
    for other, theirs in others:
        try:
            labels.check_names(theirs.id2label, other)
        except ValueError as error:
            raise ValueError(f"{first}: {error}") from error
        if labels != theirs:
            raise ValueError(f"{first} and {other} differ in ids, colours or what is ignored; make them equal")
    return labels


def _datasets(found: _Found, settings: DataSettings) -> tuple[SegmentationDataset | None, SegmentationDataset]:
    """Training and validation data, which are held out of the training data if there are none, of limited size."""
    options = found.labels, settings.num_channels, settings.on_error, settings.allow_lossy_masks
    train = SegmentationDataset(found.train, *options) if found.train is not None else None
    if found.validation is not None:
        validation = SegmentationDataset(found.validation, *options)
    elif train is None:
        raise ValueError(found.missing)
    else:
        rows = split_rows(train, settings.train_val_split, settings.keep_near_duplicates_together)
        train, validation = (train.select(part) for part in rows)
    train = _at_most(train, settings.max_train_samples) if train is not None else None
    validation = _at_most(validation, settings.max_eval_samples)
    for dataset, errors in ((train, found.train_alone), (validation, found.validation_alone)):
        if dataset is not None:
            note_errors(dataset, errors)
    return train, validation


def with_255_as_class(datasets: list[SegmentationDataset], labels: Labels, max_checks: int) -> Labels:
    """The contract that fits masks of 0 and 255 only, if these are two classes; also set in the data sets."""
    if labels.num_ids == 2 and labels.raw_to_train in (None, {0: 0, 1: 1}):
        if set().union(*(mask_values(dataset, max_checks) for dataset in datasets)) == {0, 255}:
            logger.info("The masks hold 0 and 255 only: 255 is taken as the class %r.", labels.names[-1])
            labels = labels.with_255_as_class()
            for dataset in datasets:
                dataset.labels = labels
    return labels


def overlap_text(dataset: SegmentationDataset) -> str | None:
    """What annotations cover more than once, in the masks that were drawn in this process; None if nothing."""
    if not isinstance(dataset.records, list):
        return None
    overlap, count = overlap_of(dataset.files(index)[1] for index in range(len(dataset)))
    return describe_overlap(overlap, count) if count else None


def same_files(first: SegmentationDataset, second: SegmentationDataset) -> list[str]:
    """Images of the second that are the very files of the first, as far as they are files."""
    both = []
    for dataset in (first, second):
        files = [dataset.files(i)[0] for i in range(len(dataset))] if isinstance(dataset.records, list) else []
        both.append({os.path.realpath(file) for file in files if isinstance(file, (str, Path))})
    return sorted(set.intersection(*both))


def _at_most(dataset: SegmentationDataset, count: int | None) -> SegmentationDataset:
    return dataset if count is None or count >= len(dataset) else dataset.select(evenly(len(dataset), count))
