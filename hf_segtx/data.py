"""Data sets on disk and on the Hub -> images and train-id labels, checked; augmentation; loaders.

    files or rows -> SegmentationDataset (decodes, maps raw ids to train ids once) -> training_transform -> batches
                                                                                   -> the image processor (evaluation)

`load_data` does the first half and checks the data, `training_dataloader` and `evaluation_dataloader` the second.

Reproducible: the samples of training step s, and every random number used on them, follow from (seed, s) alone. A run
that is stopped and started again at step s continues with the same batches, with any number of worker processes.

Shapes: (H, W) image size, (h, w) crop size, C channels, B images a batch; labels are train ids of `Labels`.
"""

import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm

from .labels import CONTRACT_FILES, Labels, contract_file


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
IMAGE_FOLDERS = ("images", "JPEGImages")
MASK_FOLDERS = ("masks", "annotations", "labels", "SegmentationClass")
IMAGE_COLUMNS = ("image", "pixel_values", "img")
LABEL_WORDS = ("label", "annotation", "mask", "segment", "ground_truth")
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SPLIT_SEED = 0  # of the part held out for validation: the same images whatever the seed of the run


# --- Reading --------------------------------------------------------------------------------------------------------


class SegmentationDataset(Dataset):
    """Images and train-id labels, decoded when asked for.

    Args:
        records: for each sample a pair (image, mask) of files: a path, or {"bytes", "path"} as in HF data sets. A mask
            may also be an array-like of ids.
        labels: the contract that maps the masks.
        num_channels: 1, 3 or 4; images are converted to grey, RGB or RGBA.

    Item i: {"image": PIL image, "label": (H, W) train ids (uint8 or int16), "name": text}.

    Raises:
        ValueError: for an item that cannot be decoded or breaks the contract, naming the file, value and cure.
    """

    def __init__(self, records: Sequence, labels: Labels, num_channels: int = 3):
        if num_channels not in IMAGE_MODES:
            raise ValueError(f"num_channels {num_channels} cannot be read from image files; use {list(IMAGE_MODES)}")
        self.records = records
        self.labels = labels
        self.num_channels = num_channels
        self.indices = range(len(records))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        image, mask, name = self.read(index)
        return {"image": image, "label": self.labels.map(mask, name), "name": name}

    def select(self, indices: Sequence[int]) -> "SegmentationDataset":
        """The same data set with these samples only."""
        selected = SegmentationDataset(self.records, self.labels, self.num_channels)
        selected.indices = [self.indices[index] for index in indices]
        return selected

    def read(self, index: int) -> tuple[Image.Image, np.ndarray, str]:
        """Image, raw mask ((H, W) ids or (H, W, 3) colours) and the name of the mask."""
        row = self.indices[index]
        image_file, mask_file = self.records[row]
        image_name, mask_name = _name(image_file, f"row {row}, image"), _name(mask_file, f"row {row}, mask")
        image = read_image(image_file, image_name, self.num_channels)
        mask = read_mask(mask_file, mask_name)
        if mask.shape[:2] != (image.height, image.width):
            raise ValueError(
                f"{mask_name}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {image_name} "
                f"{image.width}x{image.height}; a mask has the size of its image: export it again or scale it (nearest)"
            )
        return image, mask, mask_name

    def read_mask(self, index: int) -> np.ndarray:
        """The raw mask alone."""
        row = self.indices[index]
        mask_file = self.records[row][1]
        return read_mask(mask_file, _name(mask_file, f"row {row}, mask"))


class TableRecords(Sequence):
    """The rows of a `datasets.Dataset` as (image, mask) pairs of undecoded files."""

    def __init__(self, table, image_column: str, label_column: str):
        import datasets

        for column in (image_column, label_column):
            if isinstance(table.features[column], datasets.Image):
                table = table.cast_column(column, datasets.Image(decode=False))
        self.table = table.select_columns([image_column, label_column])
        self.columns = image_column, label_column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple:
        values = self.table[row]
        return tuple(values[column] for column in self.columns)


def _name(file, position: str) -> str:
    path = file.get("path") if isinstance(file, dict) else file
    if isinstance(path, (str, Path)):
        return str(path) if not isinstance(file, dict) else f"{path} ({position})"
    return position


def _open(file, name: str) -> tuple[Image.Image, str | None]:
    """Decodes a path or {"bytes", "path"}; returns the image and the raw mode of its pixels in the file ("L;4")."""
    if file is None:
        raise ValueError(f"{name}: the value is missing (null); remove the row")
    source = file
    if isinstance(file, dict):
        source = io.BytesIO(file["bytes"]) if file.get("bytes") is not None else file["path"]
    try:
        image = Image.open(source)
        raw_mode = image.tile[0][3] if image.tile else None
        image.load()
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error and others on broken files
        raise ValueError(f"{name}: cannot be decoded ({error}); replace it, or remove it and its partner") from error
    return image, raw_mode


def read_image(file, name: str = "the image", num_channels: int = 3) -> Image.Image:
    """Decodes an image, upright (EXIF), as grey, RGB or RGBA; 16-bit grey is divided by 256."""
    image, _ = _open(file, name)
    if image.getexif().get(0x0112, 1) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = IMAGE_MODES[num_channels]
    return image if image.mode == mode else image.convert(mode)


def read_mask(file, name: str = "the mask") -> np.ndarray:
    """Decodes a mask to raw values, never through a palette: (H, W) ids, or (H, W, 3) colours of an RGB file.

    Raises:
        ValueError: if the file cannot be decoded or holds fractions.
    """
    if not isinstance(file, (str, Path, dict, type(None))):
        return np.asarray(file)
    image, raw_mode = _open(file, name)
    if image.mode in ("RGBA", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    elif image.mode in ("LA", "PA"):
        image = image.getchannel(0)
    mask = np.asarray(image)
    if raw_mode in ("L;2", "L;4"):  # PIL spreads grey values of 2 and 4 bits over 0-255; an id is the value in the file
        mask = mask // (85 if raw_mode == "L;2" else 17)
    if mask.dtype.kind == "f":
        if (fractions := mask[mask != np.round(mask)]).size:
            raise ValueError(f"{name}: the mask holds fractions (first {fractions[0]}); save it with integer ids")
        mask = mask.astype(np.int32)
    return mask


# --- Finding --------------------------------------------------------------------------------------------------------


def folder_records(folder: str | Path) -> list[tuple[str, str]]:
    """Pairs (image, mask) of `folder/images/**` and `folder/masks/**` with equal paths up to the suffix.

    Raises:
        ValueError: if a folder is missing or empty, or files have no partner (the first five are named).
    """
    folder = Path(folder)
    images = _files_by_stem(_subfolder(folder, IMAGE_FOLDERS))
    masks = _files_by_stem(_subfolder(folder, MASK_FOLDERS))
    for found, others, missing in ((images, masks, "mask"), (masks, images, "image")):
        if alone := [str(file) for stem, file in found.items() if stem not in others]:
            raise ValueError(
                f"{len(alone)} of {len(found)} files have no {missing}: {', '.join(alone[:5])}"
                f"{', ...' if len(alone) > 5 else ''}; an image and its mask have the same name up to the suffix "
                f"(a {missing} file here: {next(iter(others.values()))})"
            )
    return [(str(images[stem]), str(masks[stem])) for stem in images]


def _subfolder(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise ValueError(f"{folder}: there is no folder {' or '.join(names)} in it; a data folder holds images/ and masks/")


def _files_by_stem(folder: Path) -> dict[str, Path]:
    """{path below `folder` without its suffix: file}, sorted."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
            stem = file.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise ValueError(f"{files[stem]} and {file} differ in the suffix only; remove one of them")
            files[stem] = file
    if not files:
        raise ValueError(f"{folder}: no image files in it ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def find_columns(table, image_column: str | None = None, label_column: str | None = None) -> tuple[str, str]:
    """Names of the image and label columns of a `datasets.Dataset`: by name among those of type Image, else by mode.

    Raises:
        ValueError: if they are not there or not certain; the message lists the columns.
    """
    import datasets

    columns = "; ".join(f"{name}: {type(feature).__name__}" for name, feature in table.features.items())
    for column in (image_column, label_column):
        if column is not None and column not in table.features:
            raise ValueError(f"there is no column {column!r}; the columns are {columns}")
    pictures = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    arrays = [name for name, feature in table.features.items() if _is_array(feature)]
    if label_column is None:
        candidates = [name for name in pictures + arrays if name != image_column]
        named = [name for name in candidates if any(word in name.lower() for word in LABEL_WORDS)]
        if not named:
            modes = {name: table[0][name].mode for name in candidates if name in pictures and name not in IMAGE_COLUMNS}
            named = [name for name, mode in modes.items() if mode[0] in "1LPI"]
        label_column = named[0] if len(named) == 1 else next((name for name in named if name == "label"), None)
    if image_column is None:
        candidates = [name for name in pictures if name != label_column]
        named = [name for name in IMAGE_COLUMNS if name in candidates]
        image_column = (named or candidates)[0] if named or len(candidates) == 1 else None
    if image_column is None or label_column is None:
        missing = "mask" if label_column is None else "image"
        raise ValueError(
            f"no certain {missing} column among {columns}; give --image_column_name and --label_column_name "
            "(both of type Image; masks hold class ids)"
        )
    return image_column, label_column


def _is_array(feature) -> bool:
    """Whether a feature holds (H, W) numbers: Array2D, or lists of lists."""
    import datasets

    if isinstance(feature, datasets.Array2D):
        return True
    return hasattr(feature, "feature") and hasattr(feature.feature, "feature")


def load_tables(
    name: str,
    config_name: str | None = None,
    *,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
):
    """The splits of a data set as a `datasets.DatasetDict`.

    Args:
        name: of a Hub data set; or a local folder (parquet, imagefolder with masks, arrow of `save_to_disk`) or file.
    """
    import datasets

    path = Path(name).resolve()
    kind = {".arrow": "arrow", ".parquet": "parquet"}.get(path.suffix.lower())
    if path.is_file() and kind is None:
        raise ValueError(f"{name}: a data set file ends in .parquet or .arrow; images come in a folder")
    if any((path / folder).is_dir() for folder in IMAGE_FOLDERS) and not list(path.glob("metadata.*")):
        raise ValueError(f"{name}: a folder with images/ and masks/ is given with --train_dir, not --dataset_name")
    try:
        if any((path / file).exists() for file in ("dataset_dict.json", "state.json")):
            tables = datasets.load_from_disk(str(path))
        elif path.is_file():
            tables = datasets.load_dataset(kind, data_files=str(path), cache_dir=cache_dir)
        else:
            source = str(path) if path.exists() else name
            tables = datasets.load_dataset(source, config_name, cache_dir=cache_dir, token=token, revision=revision)
    except Exception as error:  # of datasets, huggingface_hub, pyarrow and the network
        raise ValueError(f"the data set {name} cannot be loaded ({type(error).__name__}: {error})") from error
    return tables if isinstance(tables, dict) else datasets.DatasetDict({"train": tables})


def _table_labels(
    name: str, table, label_column: str, do_reduce_labels: bool, token: str | bool | None, revision: str | None
) -> Labels:
    """The contract of a data set: a file beside it (folder or repository), else class names in the column's type."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if Path(name).exists():
        if file := contract_file(name if Path(name).is_dir() else Path(name).parent):
            return Labels.from_file(file, do_reduce_labels)
    else:
        for file in CONTRACT_FILES:
            try:
                path = huggingface_hub.hf_hub_download(name, file, repo_type="dataset", token=token, revision=revision)
                return Labels.from_file(path, do_reduce_labels)
            except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled):
                continue
    feature = table.features[label_column]
    while hasattr(feature, "feature"):
        feature = feature.feature
    if isinstance(feature, datasets.ClassLabel):
        return Labels.from_id2label(feature.names, do_reduce_labels)
    raise ValueError(
        f"{name}: no class names; put a classes.json or id2label.json "
        '({"0": "sky", ...}) beside the data, or give such a file with --classes_file'
    )


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
) -> tuple[Dataset | None, Dataset, Labels]:
    """Finds, reads and checks the training and validation data: of a data set, of folders, or the embedded scenes.

    Args:
        dataset_name: Hub data set, or a local folder or file of one (see `load_tables`).
        train_dir, validation_dir: folders with images/ and masks/ (see `folder_records`), and classes.json or
            id2label.json in them or their parent.
        train_split: name of the split to train on; None loads no training data (evaluation only).
        validation_split: None takes "validation", "val" or "valid" if there, else holds out of the training split.
        train_val_split: share of the training data that is held out when there is no validation data; the same images
            in every run, whatever the seed.
        classes_file: classes.json or id2label.json to use instead of the one beside the data.
        do_reduce_labels: raw id 0 is ignored, the others become themselves minus 1 (for id2label.json and data sets).
        max_train_samples, max_eval_samples: use that many, evenly spaced.
        seed: of the embedded training scenes.
        check: run `check_data` on both; in a run of several processes one of them is enough.

    Returns:
        training data (None without any), validation data, labels. Both data sets give items
        {"image": PIL image, "label": (H, W) train ids, "name": text}.

    Raises:
        ValueError: for arguments, folders, files, columns or labels that are wrong, with the cure.
    """
    if dataset_name and (train_dir or validation_dir):
        raise ValueError("give either --dataset_name or --train_dir/--validation_dir, not both")
    if not 0 < train_val_split < 1:
        raise ValueError(f"train_val_split {train_val_split} is not a share between 0 and 1, e.g. 0.15")
    if not (dataset_name or train_dir or validation_dir):
        from .scenes import SceneDataset

        train = SceneDataset(max_train_samples or 512, seed=seed) if train_split else None
        validation = SceneDataset(max_eval_samples or 64, seed=2**31 - 1)
        return train, validation, validation.labels

    explicit = Labels.from_file(classes_file, do_reduce_labels) if classes_file else None
    if dataset_name:
        tables = load_tables(dataset_name, dataset_config_name, cache_dir=cache_dir, token=token, revision=revision)
        validation_split = validation_split or next((s for s in ("validation", "val", "valid") if s in tables), None)
        for split in (train_split, validation_split):
            if split and split not in tables:
                raise ValueError(f"{dataset_name}: there is no split {split!r}; the splits are {list(tables)}")
        table = tables[train_split or validation_split or next(iter(tables))]
        columns = find_columns(table, image_column_name, label_column_name)
        labels = explicit or _table_labels(dataset_name, table, columns[1], do_reduce_labels, token, revision)
        train_records = TableRecords(tables[train_split], *columns) if train_split else None
        validation_records = TableRecords(tables[validation_split], *columns) if validation_split else None
    else:
        labels = explicit or _folder_labels(train_dir, validation_dir, do_reduce_labels)
        train_records = folder_records(train_dir) if train_dir else None
        validation_records = folder_records(validation_dir) if validation_dir else None

    train = SegmentationDataset(train_records, labels, num_channels) if train_records is not None else None
    if validation_records is not None:
        validation = SegmentationDataset(validation_records, labels, num_channels)
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

    if labels.num_ids == 2 and labels.raw_to_train in (None, {0: 0, 1: 1}):
        values = set().union(*(_mask_values(dataset) for dataset in (train, validation) if dataset is not None))
        if values == {0, 255}:
            logger.info("The masks hold 0 and 255 only: 255 is taken as the class %r.", labels.names[-1])
            labels = labels.with_255_as_class()
            for dataset in filter(None, (train, validation)):
                dataset.labels = labels
    if check:
        if train is not None:
            check_data(train, split="training")
        check_data(validation, split="validation")
    return train, validation, labels


def _folder_labels(train_dir: str | None, validation_dir: str | None, do_reduce_labels: bool) -> Labels:
    """The contract of the training folder (or the only one); a different one of the other folder is an error."""
    folders = [folder for folder in (train_dir, validation_dir) if folder]
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        raise ValueError(f"{missing[0]}: there is no such folder")
    files = [file for file in map(contract_file, folders) if file]
    if not files:
        return Labels.from_folder(folders[0])  # raises, naming what is missing
    contracts = [Labels.from_file(file, do_reduce_labels and file.name == "id2label.json") for file in files]
    if do_reduce_labels and files[0].name == "classes.json":
        raise ValueError(f"{files[0]} says itself which id is ignored; leave --do_reduce_labels away")
    contracts[0].check_names(contracts[-1].id2label, str(files[-1]))
    if contracts[0] != contracts[-1]:
        raise ValueError(f"{files[0]} and {files[-1]} differ in ids, colours or what is ignored; make them equal")
    return contracts[0]


def _evenly(length: int, count: int | None) -> list[int]:
    """`count` indices spread evenly over 0 .. length - 1; all if there are no more."""
    return np.linspace(0, length - 1, min(length, count or length)).round().astype(int).tolist()


def _at_most(dataset: SegmentationDataset, count: int | None) -> SegmentationDataset:
    return dataset if count is None or count >= len(dataset) else dataset.select(_evenly(len(dataset), count))


# --- Checking -------------------------------------------------------------------------------------------------------


def _mask_values(dataset: SegmentationDataset, max_samples: int = 1000) -> set[int]:
    """Raw values of masks with one channel; unreadable ones are left to `check_data`."""

    def values(index: int) -> list[int]:
        try:
            mask = dataset.read_mask(index)
        except ValueError:
            return []
        return np.unique(mask).tolist() if mask.ndim == 2 else []

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return set().union(*pool.map(values, _evenly(len(dataset), max_samples)))


def check_data(dataset: SegmentationDataset, *, split: str = "training", max_samples: int = 1000) -> None:
    """Reads the data once, in threads, and refuses what would spoil a run.

    Checks all samples if there are at most `max_samples`, else that many, evenly spaced. Warns about classes that no
    mask shows.

    Raises:
        ValueError: naming the first ten bad files with their values and cures: images or masks that cannot be decoded,
            sizes that differ, ids or colours outside the contract; or if the data as a whole make no sense.
    """
    labels = dataset.labels
    if len(dataset) == 0:
        raise ValueError(f"the {split} data are empty; check the folder or split")
    indices = _evenly(len(dataset), max_samples)

    def read(index: int) -> tuple[str | None, np.ndarray, set[int]]:
        """Error or None, pixels of each train id, and 0 and 255 if the raw mask holds nothing else."""
        try:
            _, mask, name = dataset.read(index)
            train = labels.map(mask, name)
        except ValueError as error:
            return str(error), np.zeros(labels.num_ids, np.int64), set()
        counts = np.bincount(train[train != labels.ignore_index].ravel(), minlength=labels.num_ids)
        if mask.ndim == 2 and labels.ignore_index == 255 and counts[1:].sum() == 0 and mask.size:
            return None, counts, {int(mask.min()), int(mask.max())}
        return None, counts, {-1}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        progress = tqdm(pool.map(read, indices), f"Checking the {split} data", len(indices), leave=False, delay=2)
        results = list(progress)
    if errors := [error for error, _, _ in results if error]:
        more = f"\n... and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise ValueError(
            f"{len(errors)} of {len(indices)} checked {split} samples are bad:\n- " + "\n- ".join(errors[:10]) + more
        )
    counts = np.sum([counts for _, counts, _ in results], axis=0)
    checked = f"{'all' if len(indices) == len(dataset) else 'the checked'} {len(indices)} {split} masks"
    if set().union(*(values for _, _, values in results)) == {0, 255}:
        raise ValueError(
            f"{checked} hold 0 and 255 only, but there are {labels.num_labels} classes and 255 means ignored, so that "
            f"only {labels.names[0]!r} could be learned; for two classes name two in classes.json (255 is then "
            'the second), else list it as a class ({"id": 255, "name": ...}) or save class ids'
        )
    if counts.sum() == 0:
        raise ValueError(f"every pixel of {checked} is ignored; check ignore_index and ids in the class names file")
    if absent := [name for name, count in zip(labels.names, counts[-labels.num_labels :], strict=True) if count == 0]:
        names = "; ".join(absent[:20]) + ("; ..." if len(absent) > 20 else "")
        logger.warning("%d of %d classes are in none of %s: %s", len(absent), labels.num_labels, checked, names)


# --- Augmentation ---------------------------------------------------------------------------------------------------


class RandomScaledCrop(v2.Transform):
    """Random resize by a common factor, then a random crop, done as one: the crop is cut out first, only it is resized.

    As mmsegmentation's RandomResize and RandomCrop with `cat_max_ratio`: a crop with one class on more than `max_share`
    of its valid pixels is drawn again, ten times at most. Differs: the resize is antialiased, as in the processor.
    The result is smaller than the crop where the resized image is.

    Args:
        crop_size: (h, w) pixels.
        scale_range: bounds of the uniform random factor.
        base_size: what factor 1 means: None, the image's own size; (short, long), the largest keep-ratio size whose
            sides fit into these pixels.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        base_size: tuple[int, int] | None = None,
        max_share: float = 0.75,
        ignore_index: int = 255,
    ):
        super().__init__()
        self.crop_size = crop_size
        self.scale_range = scale_range
        self.base_size = base_size
        self.max_share = max_share
        self.ignore_index = ignore_index

    def make_params(self, flat_inputs: list) -> dict:
        image, mask = flat_inputs
        sides = image.shape[-2:]
        scale = float(torch.empty(1).uniform_(*self.scale_range))
        if self.base_size is not None:
            scale *= min(min(self.base_size) / min(sides), max(self.base_size) / max(sides))
        size = [min(crop, max(1, round(side * scale))) for crop, side in zip(self.crop_size, sides, strict=True)]
        height, width = (min(side, max(1, round(out / scale))) for out, side in zip(size, sides, strict=True))
        array = mask.numpy()
        for _ in range(10):
            top = int(torch.randint(sides[0] - height + 1, ()))
            left = int(torch.randint(sides[1] - width + 1, ()))
            crop = array[top : top + height, left : left + width]
            crop = crop[::2, ::2]  # a quarter of the pixels tells the share well enough
            counts = np.bincount(crop[crop != self.ignore_index])
            if counts.size and counts.max() <= self.max_share * counts.sum():
                break
        return {"top": top, "left": left, "height": height, "width": width, "size": size}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        top, left = params["top"], params["left"]
        crop = inpt[..., top : top + params["height"], left : left + params["width"]]
        if isinstance(inpt, tv_tensors.Mask):
            # torchvision resizes masks with NEAREST, half a pixel beside the image; NEAREST_EXACT agrees with it
            crop = F.resize(crop[None], params["size"], interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]
            return tv_tensors.Mask(crop)
        return tv_tensors.Image(F.resize(crop, params["size"], antialias=True))


class PhotometricDistortion(v2.Transform):
    """Random brightness, contrast, saturation and hue of a uint8 image, each with probability 0.5.

    Ranges of mmsegmentation's PhotoMetricDistortion: +-32, x0.5-1.5, x0.5-1.5, +-36 degrees. Differs: saturation and
    hue scale and turn the chroma plane of YIQ instead of going through HSV, so that all four are one 3x3 matrix, and
    values are rounded and clipped once, at the end. Images without three channels get brightness and contrast only.
    """

    # rows: luma and two chroma axes of NTSC's YIQ
    YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    RGB = torch.linalg.inv(YIQ)

    def make_params(self, flat_inputs: list) -> dict:
        chances, values = torch.rand(2, 4).tolist()
        shares = [2 * value - 1 if chance < 0.5 else 0.0 for chance, value in zip(chances, values, strict=True)]
        brightness, contrast, saturation, hue = shares  # each in [-1, 1]
        angle = math.radians(36 * hue)
        chroma = 1 + 0.5 * saturation
        turn = torch.tensor(
            [
                [1.0, 0.0, 0.0],
                [0.0, chroma * math.cos(angle), -chroma * math.sin(angle)],
                [0.0, chroma * math.sin(angle), chroma * math.cos(angle)],
            ]
        )
        contrast = 1 + 0.5 * contrast
        return {"matrix": contrast * self.RGB @ turn @ self.YIQ, "gain": contrast, "offset": contrast * 32 * brightness}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        colors = inpt.as_subclass(torch.Tensor).float().reshape(inpt.shape[0], -1)  # (C, H*W)
        colors = params["matrix"] @ colors if len(colors) == 3 else params["gain"] * colors
        colors = colors.add_(params["offset"] + 0.5).clamp_(0, 255).byte()  # rounds: the conversion cuts off
        return tv_tensors.Image(colors.view(inpt.shape))


class PadToSize(v2.Transform):
    """Pads at the bottom and right to `size` (h, w): the image with `color` (C values of 0-255), labels with the ignore
    index."""

    def __init__(self, size: tuple[int, int], color: Sequence[float], ignore_index: int = 255):
        super().__init__()
        self.size = size
        self.fill = {tv_tensors.Image: [round(value) for value in color], tv_tensors.Mask: ignore_index}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        height, width = inpt.shape[-2:]
        if (height, width) == tuple(self.size):
            return inpt
        return F.pad(inpt, [0, 0, self.size[1] - width, self.size[0] - height], fill=self.fill[type(inpt)])


class TrainingTransform:
    """Augmentation, which stays uint8 and belongs into the loader's workers, and normalization, which belongs after it.

    So a batch travels between processes, and to an accelerator, with 4 bytes a pixel instead of 20.
    """

    def __init__(self, augment: v2.Transform, mean: torch.Tensor, std: torch.Tensor):
        self.augment = augment
        self.mean = mean.tolist()
        self.std = std.tolist()

    def __call__(self, sample: dict) -> dict:
        return self.normalize(self.augment(sample))

    def normalize(self, batch: dict) -> dict[str, torch.Tensor]:
        """`pixel_values` to float32 as the processor normalizes, `labels` to int64; batched or not."""
        pixel_values = batch["pixel_values"].as_subclass(torch.Tensor).float()
        return {
            "pixel_values": F.normalize(pixel_values, self.mean, self.std, inplace=True),
            "labels": batch["labels"].as_subclass(torch.Tensor).long(),
        }


def training_transform(
    processor,
    crop_size: tuple[int, int],
    scale_range: tuple[float, float] = (0.5, 2.0),
    *,
    base_size: tuple[int, int] | None = None,
    max_share: float = 0.75,
    flip_probability: float = 0.5,
    photometric_distortion: bool = True,
    ignore_index: int = 255,
) -> TrainingTransform:
    """The usual augmentation of the papers: random scale, crop, flip, colours; normalized as the processor does.

    Args:
        processor: image processor; its `rescale_factor`, `image_mean` and `image_std` are used.
        crop_size, scale_range, base_size, max_share: see `RandomScaledCrop`.

    Returns:
        a transform of {"pixel_values": Image (C, H, W) uint8, "labels": Mask (H, W)} (tv_tensors) to
        {"pixel_values": (C, h, w) float32, "labels": (h, w) int64}; `training_dataloader` applies it.
    """
    # mean and std in units of 0-255, computed as the processor does, so that the pixels are equal to the last bit
    scale = 1.0 / processor.rescale_factor
    mean, std = torch.tensor(processor.image_mean) * scale, torch.tensor(processor.image_std) * scale
    augment = v2.Compose(
        [
            RandomScaledCrop(crop_size, scale_range, base_size, max_share, ignore_index),
            v2.RandomHorizontalFlip(flip_probability),
            PhotometricDistortion() if photometric_distortion else v2.Identity(),
            PadToSize(crop_size, mean.tolist(), ignore_index),
        ]
    )
    return TrainingTransform(augment, mean, std)


# --- Loading --------------------------------------------------------------------------------------------------------


def _to_tensor(image: Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """(C, H, W) uint8, channels last in memory for PIL and numpy images."""
    if isinstance(image, torch.Tensor):
        return image
    array = np.array(image)
    return torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)


class TrainingDataset(Dataset):
    """A data set under augmentation; the random numbers of a sample follow from (seed, epoch, index) only.

    Args:
        dataset: items {"image", "label", ...}.
        augment: a torchvision v2 transform, e.g. `TrainingTransform.augment`.

    Item (epoch, index): {"pixel_values": (C, h, w) uint8, "labels": (h, w) train ids}.
    """

    def __init__(self, dataset: Dataset, augment: v2.Transform, seed: int = 0):
        self.dataset = dataset
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        item = self.dataset[index]
        sample = {
            "pixel_values": tv_tensors.Image(_to_tensor(item["image"])),
            "labels": tv_tensors.Mask(torch.as_tensor(item["label"])),
        }
        seed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(int(seed[0]))  # of the CPU only, unlike torch.manual_seed
        try:
            sample = self.augment(sample)
        finally:
            torch.set_rng_state(state)
        return {key: value.as_subclass(torch.Tensor) for key, value in sample.items()}


class ShuffledBatches:
    """Endless batches of (epoch, index): every epoch a new permutation that follows from (seed, epoch).

    The epochs follow each other without a gap: all batches are full, and each sample comes once an epoch. At step s
    process p of n takes the batch number s * n + p, so n processes with batches of B see what one with n * B sees.

    Args:
        length: of the data set.
        start_step: the first step to give; a resumed run passes the number of batches it has taken before.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if length < 1:
            raise ValueError("there are no training samples")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.process_index = process_index
        self.num_processes = num_processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, epoch_of_order, order = self.start_step, -1, None
        while True:
            first = (step * self.num_processes + self.process_index) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                epoch = position // self.length
                if epoch != epoch_of_order:
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                    epoch_of_order = epoch
                batch.append((epoch, int(order[position % self.length])))
            yield batch
            step += 1


class TrainingLoader:
    """Endless training batches, normalized on the device where they are used."""

    def __init__(self, batches: DataLoader, transform: TrainingTransform, device: torch.device | str):
        self.batches = batches
        self.transform = transform
        self.device = device

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.batches:
            batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
            yield self.transform.normalize(batch)


def training_dataloader(
    dataset: Dataset,
    transform: TrainingTransform,
    batch_size: int,
    *,
    seed: int = 0,
    start_step: int = 0,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    device: torch.device | str = "cpu",
) -> TrainingLoader:
    """Endless batches {"pixel_values": (B, C, h, w) float32, "labels": (B, h, w) int64} on `device`.

    Order and resuming: see `ShuffledBatches`; `start_step` counts batches of this process, so with gradient
    accumulation over n batches it is n times the number of optimizer steps. It splits over processes itself and does
    not go through `accelerator.prepare`. An epoch is len(dataset) / (batch_size * num_processes) batches.
    """
    batches = DataLoader(
        TrainingDataset(dataset, transform.augment, seed),
        batch_sampler=ShuffledBatches(len(dataset), batch_size, seed, start_step, process_index, num_processes),
        num_workers=num_workers,
        pin_memory=torch.device(device).type == "cuda",
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),  # the loader draws a number; not from the global generator, which dropout uses
    )
    return TrainingLoader(batches, transform, device)


def collate_evaluation(items: list[dict]) -> dict[str, list]:
    """Lists, because sizes differ: "images" (C, H, W) uint8, "labels" (H, W) train ids, "names"."""
    return {
        "images": [_to_tensor(item["image"]).contiguous() for item in items],
        "labels": [torch.as_tensor(item["label"]) for item in items],
        "names": [item["name"] for item in items],
    }


def evaluation_dataloader(
    dataset: Dataset,
    batch_size: int = 1,
    *,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> DataLoader:
    """Batches of `collate_evaluation`, in order; process p of n gets samples p, p + n, ...: each exactly once."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(process_index, len(dataset), num_processes),
        generator=torch.Generator(),  # the loader draws a number; not from the global generator, which training uses
        num_workers=num_workers,
        collate_fn=collate_evaluation,
    )
