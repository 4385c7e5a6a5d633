"""Data sets on disk and on the Hub -> images and train-id labels, checked; augmentation; loaders.

    files or rows -> SegmentationDataset (decodes, maps raw ids to train ids once) -> TrainingTransform -> batches
                                                                                   -> the image processor (evaluation)

`load_data` does the first half and checks the data, `training_dataloader` and `evaluation_dataloader` the second.

Reproducible: the samples of training step s, and every random number used on them, follow from (seed, s) alone. A run
that is stopped and started again at step s continues with the same batches, with any number of worker processes.

Shapes: (H, W) image size, (h, w) crop size, C channels, B images a batch; labels are train ids of `Labels`.
"""

import cmath
import functools
import io
import logging
import math
import mmap
import multiprocessing
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .labels import Labels, contract_file
from .readers import IMAGE_FOLDERS, IMAGE_SUFFIXES, find_layout
from .tables import POOL_SIZE, ParquetRecords, find_tables


logger = logging.getLogger(__name__)

MASK_FOLDERS = ("masks", "annotations", "labels", "SegmentationClass")
IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers SOF0 to SOF15
SPLIT_SEED = 0  # of the part held out for validation: the same images whatever the seed of the run


# --- Reading --------------------------------------------------------------------------------------------------------


class SegmentationDataset(Dataset):
    """Images and train-id labels, decoded when asked for.

    Args:
        records: for each sample a pair (image, mask) of files: a path, or {"bytes", "path"} as in HF data sets. A mask
            may also be anything that `numpy.asarray` makes an array of ids.
        labels: the contract that maps the masks.
        num_channels: of the images (see `read_image`).
        on_error: "raise", or "skip": the loaders go on without a bad sample and list it in `skipped`.

    Item i: {"image": PIL image, or tensor (C, H, W) if deep or of many channels, "label": (H, W) train ids (uint8 or
    int16), "name": text}.

    Raises:
        ValueError: for an item that cannot be decoded or breaks the contract, naming the file, value and cure.
    """

    def __init__(self, records: Sequence, labels: Labels, num_channels: int = 3, on_error: str = "raise"):
        if num_channels < 1:
            raise ValueError(f"num_channels {num_channels} is less than 1; give the number of channels of an image")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} is neither 'raise' nor 'skip'")
        self.records = records
        self.labels = labels
        self.num_channels = num_channels
        self.on_error = on_error
        self.indices = range(len(records))
        self.skipped: list[str] = []  # what was wrong with each bad sample that was met, in this process

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        read_image, raw, name = self._open(index)
        return {"image": read_image(), "label": self.labels.map(raw, name), "name": name}

    def __getitems__(self, indices: list[int]) -> list[dict | str]:
        """Items for a loader's batch; with "skip", a text in place of one that cannot be read."""
        items = []
        for index in indices:
            try:
                items.append(self[index])
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                items.append(str(error))
        return items

    def select(self, indices: Sequence[int]) -> "SegmentationDataset":
        """The same data set with these samples only."""
        selected = SegmentationDataset(self.records, self.labels, self.num_channels, self.on_error)
        selected.indices = [self.indices[index] for index in indices]
        return selected

    def files(self, index: int) -> tuple:
        """The undecoded image and mask of an item."""
        return self.records[self.indices[index]]

    def open(
        self, index: int, files: tuple | None = None, largest_scale: Callable[[int, int], float] | None = None
    ) -> tuple[Callable, np.ndarray]:
        """A function that decodes the image of item `index`, and its labels.

        The function takes the number of rows that are needed, counted from the top, and gives at least these.

        Args:
            files: its undecoded files, if they are at hand.
            largest_scale: see `_read_image`; the image may come out smaller than its labels.
        """
        read_image, raw, name = self._open(index, files, largest_scale)
        return read_image, self.labels.map(raw, name)

    def read_mask(self, index: int) -> np.ndarray:
        """The raw mask alone, (H, W) ids or (H, W, 3) colours."""
        return read_mask(self.files(index)[1], self._names(index, self.files(index))[1])

    def _names(self, index: int, files: tuple) -> tuple[str, str]:
        row = self.indices[index]
        return _name(files[0], f"row {row}, image"), _name(files[1], f"row {row}, mask")

    def _open(self, index: int, files: tuple | None = None, largest_scale=None) -> tuple:
        """A function that decodes the image (see `open`), the raw mask and the name of the mask."""
        files = files or self.files(index)
        image_name, mask_name = self._names(index, files)
        mask = read_mask(files[1], mask_name)

        scale = largest_scale(*mask.shape[:2]) if largest_scale is not None else 1.0

        def read_image(num_rows: int | None = None):
            image, (height, width) = _read_image(files[0], image_name, self.num_channels, scale, num_rows)
            if mask.shape[:2] != (height, width):
                raise ValueError(
                    f"{mask_name}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {image_name} "
                    f"{width}x{height}; a mask has the size of its image: export it again or scale it (nearest)"
                )
            return image

        return read_image, mask, mask_name


def _name(file, position: str) -> str:
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", file)
    if isinstance(path, (str, Path)):
        return str(path) if not isinstance(file, dict) else f"{path} ({position})"
    return position


def _source(file):
    """A path, or an open file of the bytes."""
    if file is None:
        raise ValueError("the value is missing, null")
    if isinstance(file, dict):
        return io.BytesIO(file["bytes"]) if file.get("bytes") is not None else file["path"]
    return file


def _first_bytes(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _undecodable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: cannot be decoded ({error}); replace it, or remove it and its partner")


def read_image(file, name: str = "the image", num_channels: int = 3) -> Image.Image | torch.Tensor:
    """Decodes an image, upright (EXIF).

    - 8 bits and 1, 3 or 4 channels: a PIL image, grey, RGB or RGBA; the file may have another number of channels.
    - More bits: a float32 tensor (C, H, W). Integers without a sign are divided so that their largest is 255, with
      nothing rounded, so that mean and std mean the same as for 8 bits; others are as they are in the file.
    - Other numbers of channels, from TIFF (bands or pages) or .npy: a tensor (C, H, W), uint8 or float32 as above. The
      axis with `num_channels` entries is that of the channels.

    Raises:
        ValueError: if the file cannot be decoded or has another number of channels.
    """
    return _read_image(file, name, num_channels)[0]


def _read_image(file, name: str, num_channels: int, scale: float = 1.0, num_rows: int | None = None) -> tuple:
    """The image, and its (height, width) in the file.

    Args:
        scale: the largest factor that the image will be resized by. A JPEG that is twice as large as needed, or more,
            is decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster.
        num_rows: how many are needed, counted from the top. Of a JPEG or PNG, little more is decoded.
    """
    source, num_left_out = file, 0
    if num_rows is not None and scale > 0.5:
        try:
            content, num_left_out = _first_rows(_content(file), num_rows)
        except (OSError, ValueError) as error:
            raise _undecodable(name, error) from error
        source = {"bytes": content}
    image = _open_image(source, name, num_channels)
    if isinstance(image, np.ndarray):
        array = _channels_first(image, name, num_channels)
        size = array.shape[1] + num_left_out, array.shape[2]
        if array.dtype == np.uint8 and num_channels in IMAGE_MODES:
            array = array.transpose(1, 2, 0)
            return Image.fromarray(array[..., 0] if num_channels == 1 else np.ascontiguousarray(array)), size
        if array.dtype.kind == "u" and array.itemsize > 1:
            array = array / np.float32(np.iinfo(array.dtype).max // 255)
        dtype = np.uint8 if array.dtype == np.uint8 else np.float32
        return torch.from_numpy(np.ascontiguousarray(array, dtype)), size
    size, mode = (image.height + num_left_out, image.width), IMAGE_MODES[num_channels]
    try:
        if scale <= 0.5:
            image.draft(image.mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        orientation = image.getexif().get(0x0112, 1)
        if orientation != 1 and num_left_out:  # the first rows of the image are not those of the file
            return _read_image(file, name, num_channels)
        image.load()
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error and others on broken files
        raise _undecodable(name, error) from error
    if orientation != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == mode else image.convert(mode), size[::-1] if orientation > 4 else size


def _open_image(file, name: str, num_channels: int) -> np.ndarray | Image.Image:
    """The numbers of a file that PIL would not read without a loss; for the others an image that is not loaded yet."""
    try:
        source = _source(file)
        if _is_numpy(source):
            return np.load(source, allow_pickle=False)
        try:
            image = Image.open(source)
        except UnidentifiedImageError:  # PIL knows no TIFF of five bands
            begin = source.getvalue()[:8] if isinstance(source, io.BytesIO) else _first_bytes(source)
            if begin[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                what = f"no known picture format: it begins with {begin!r}" if begin else "the file is empty"
                raise ValueError(what) from None
            image = None
        if image is None or image.format == "TIFF":
            is_deep = image is None or image.mode[0] in "IF" or ";16" in str(image.tile[0][3:])
            if is_deep or num_channels not in IMAGE_MODES or image.n_frames > 1:
                import tifffile

                return tifffile.imread(_source(file))
        elif image.mode[0] in "IF":
            return np.asarray(image)
        elif ";16B" in str(image.tile and image.tile[0][3]):  # PNG; PIL keeps the first byte of each value only
            high = np.asarray(image).astype(np.uint16)
            image = Image.open(_source(file))
            image.tile = [image.tile[0]._replace(args=image.tile[0].args.replace(";16B", ";16L"))]
            return high << 8 | np.asarray(image)  # taken for little-endian, the second byte is the one it keeps
    except ImportError as error:
        raise ValueError(f"{name}: to read TIFF files of more than 8 bits or 4 bands, pip install tifffile") from error
    except Exception as error:
        raise _undecodable(name, error) from error
    if num_channels not in IMAGE_MODES:
        raise ValueError(
            f"{name}: {image.format} holds 1, 3 or 4 channels, the model expects {num_channels}; use TIFF or .npy"
        )
    return image


def _content(file) -> bytes:
    source = _source(file)
    return source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()


def _first_rows(content: bytes, num_rows: int) -> tuple[bytes, int]:
    """A JPEG or PNG file that says in its header to end sooner, so that the rest is not decoded, and its missing rows.

    JPEG: the frame header is in ITU-T T.81, B.2.2. Two rows more, because colours are interpolated between rows.
    PNG: W3C PNG, 11.2.1, with a checksum. Not if it is interlaced: then each row needs all of the file; nor if it is
    animated (acTL): then frames state their sizes, too.
    """
    is_animated = content.find(b"acTL", 0, content.find(b"IDAT")) > 0
    is_png = content[12:16] == b"IHDR" and content[28:29] == b"\0" and not is_animated
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


def _is_numpy(source) -> bool:
    if isinstance(source, io.BytesIO):
        return source.getbuffer()[:6] == b"\x93NUMPY"
    return str(source).lower().endswith(".npy")


def _channels_first(array: np.ndarray, name: str, num_channels: int) -> np.ndarray:
    """(C, H, W) of (H, W), (C, H, W) or (H, W, C)."""
    planes = array[None] if array.ndim == 2 else array
    if planes.ndim == 3 and planes.dtype.kind in "uif":
        if planes.shape[0] not in (1, num_channels):
            planes = planes.transpose(2, 0, 1)
        if len(planes) == num_channels:
            return planes
        if len(planes) == 1 and num_channels in IMAGE_MODES:
            return np.broadcast_to(planes, (num_channels, *planes.shape[1:]))
        if len(planes) == 4 and num_channels == 3:  # without transparency
            return planes[:3]
    raise ValueError(
        f"{name}: {array.dtype} of shape {array.shape} has no axis of {num_channels} channels; set the model's "
        "num_channels, and one value for each in the processor's image_mean and image_std"
    )


def read_mask(file, name: str = "the mask") -> np.ndarray:
    """Decodes a mask to raw values, never through a palette: (H, W) ids, or (H, W, 3) colours of an RGB file.

    Raises:
        ValueError: if the file cannot be decoded or holds fractions.
    """
    if not isinstance(file, (str, Path, dict, type(None))):
        return np.asarray(file)
    if isinstance(file, (str, Path, dict)) and _is_numpy(_source(file)):
        try:
            return np.load(_source(file), allow_pickle=False)
        except Exception as error:
            raise _undecodable(name, error) from error
    try:
        image = Image.open(_source(file))
        raw_mode = image.tile[0][3] if image.tile else None  # of the pixels in the file, e.g. "L;4"
        image.load()
    except Exception as error:
        raise _undecodable(name, error) from error
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


def folder_records(folder: str | Path, alone: list[str] | None = None) -> list[tuple[str, str]]:
    """Pairs (image, mask) of `folder/images/**` and `folder/masks/**` with equal paths up to the suffix.

    Args:
        alone: files without a partner are noted in this list, instead of being an error.

    Raises:
        ValueError: if a folder is missing or empty, or files have no partner (the first five are named).
    """
    folder = Path(folder)
    images = _files_by_stem(_subfolder(folder, IMAGE_FOLDERS))
    masks = _files_by_stem(_subfolder(folder, MASK_FOLDERS))
    for found, others, missing in ((images, masks, "mask"), (masks, images, "image")):
        lonely = [str(file) for stem, file in found.items() if stem not in others]
        if alone is not None:
            alone += [f"{file}: there is no {missing}; add it, or remove the file" for file in lonely]
        elif lonely:
            raise ValueError(
                f"{len(lonely)} of {len(found)} files have no {missing}: {', '.join(lonely[:5])}"
                f"{', ...' if len(lonely) > 5 else ''}; an image and its mask have the same name up to the suffix "
                f"(a {missing} file here: {next(iter(others.values()))})"
            )
    return [(str(images[stem]), str(masks[stem])) for stem in images if stem in masks]


def _subfolder(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give a folder that holds images/ and masks/, or pairs as .csv or .jsonl")
    near = [place for place in (folder.parent, *sorted(folder.iterdir())) if any((place / n).is_dir() for n in names)]
    raise ValueError(
        f"{folder}: there is no folder {' or '.join(names)} in it; a data folder holds images/ and masks/"
        + (f", as {near[0]} does" if near else "")
    )


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
                _note_errors(dataset, errors)

    max_checks = 64 if streaming else 1000  # each may read a shard's whole row group
    if labels.num_ids == 2 and labels.raw_to_train in (None, {0: 0, 1: 1}):
        values = set().union(*(_mask_values(dataset, max_checks) for dataset in (train, validation) if dataset))
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
        _subfolder(Path(folder), IMAGE_FOLDERS)
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


def _evenly(length: int, count: int | None) -> list[int]:
    """`count` indices spread evenly over 0 .. length - 1; all if there are no more."""
    return np.linspace(0, length - 1, min(length, count or length)).round().astype(int).tolist()


def _at_most(dataset: SegmentationDataset, count: int | None) -> SegmentationDataset:
    return dataset if count is None or count >= len(dataset) else dataset.select(_evenly(len(dataset), count))


# --- Checking -------------------------------------------------------------------------------------------------------


def _mask_values(dataset: SegmentationDataset, max_samples: int) -> set[int]:
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
            read_image, mask, name = dataset._open(index)
            read_image()
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
    errors = [error for error, _, _ in results if error]
    if dataset.on_error == "skip" and len(errors) < len(indices):
        _note_errors(dataset, errors)
    elif errors:
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


class TrainingTransform:
    """Random scale, crop, flip and colours: `crop` and `collate` in the loader's workers, `finish` on the device.

    The scale and the crop are drawn first; then only the pixels that the crop shows are converted and resized. They
    stay 8 bits deep until `finish` changes the colours and normalizes, so that a batch travels between processes, and
    to an accelerator, with 4 bytes a pixel instead of 20. `finish` pads with 0, the mean, as the processor does.

    Random scale and crop as mmsegmentation's RandomResize and RandomCrop with `cat_max_ratio`: a crop with one class on
    more than `max_share` of its valid pixels is drawn again, ten times at most. Differs: the resize is antialiased, as
    in the processor, and does not look beyond the crop.

    Colours as mmsegmentation's PhotoMetricDistortion: brightness +-32, contrast x0.5-1.5, saturation x0.5-1.5 and hue
    +-36 degrees, each with probability 0.5. Differs: saturation and hue scale and turn the chroma plane of YIQ instead
    of going through HSV, so that all four are one 3x3 matrix, and values are clipped once, at the end. Images without
    three channels get brightness and contrast only.

    Args:
        processor: image processor; its `rescale_factor`, `image_mean` and `image_std` are used.
        crop_size: (h, w) pixels of the result; smaller images are padded at the bottom and right.
        scale_range: bounds of the uniform random factor.
        base_size: what factor 1 means: None, the image's own size; (short, long), the largest keep-ratio size whose
            sides fit into these pixels.
        photometric_distortion: change colours. Not done if the processor does not rescale: then the range is unknown.
        flip_permutation: class that each class is in a mirrored image ("left arm", "right arm"), of
            `hf_segtx.labels.flip_permutation`; None if all stay.
    """

    # rows: luma and two chroma axes of NTSC's YIQ
    YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    RGB = np.linalg.inv(YIQ)
    # what of a colour is luma, what is chroma, and that turned by 90 degrees
    LUMA = np.outer(RGB[:, 0], YIQ[0])
    CHROMA = RGB[:, 1:] @ YIQ[1:]
    TURNED_CHROMA = RGB[:, 1:] @ [[0, -1], [1, 0]] @ YIQ[1:]

    def __init__(
        self,
        processor,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        *,
        base_size: tuple[int, int] | None = None,
        max_share: float = 0.75,
        flip_probability: float = 0.5,
        photometric_distortion: bool = True,
        ignore_index: int = 255,
        flip_permutation: Sequence[int] | None = None,
    ):
        # mean and std in units of pixels, computed as the processor does, so that the result is equal to the last bit
        self.white = 1.0 / processor.rescale_factor if getattr(processor, "do_rescale", True) else None
        unit = self.white or 1.0
        self.mean, self.std = (torch.tensor(x) * unit for x in (processor.image_mean, processor.image_std))
        self.crop_size = tuple(crop_size)
        self.scale_range = scale_range
        self.base_size = base_size
        self.max_share = max_share
        self.flip_probability = flip_probability
        self.photometric_distortion = photometric_distortion and self.white is not None
        self.ignore_index = ignore_index
        self.flip_permutation = None if flip_permutation is None else np.asarray(flip_permutation)

    def collate(self, crops: list[tuple], empty: Callable = torch.empty) -> dict:
        """A batch of `crop`'s results.

        Args:
            empty: makes the tensors.

        Shape:
            returns: "pixel_values" (B, h, w, C), 8 bits (float32 for deeper images), "labels" (B, h, w), "sizes" the
                height and width of each without its padding, and, with `photometric_distortion`, "colors" (B, C, C + 1)
        """
        shape, channels = (len(crops), *self.crop_size), crops[0][0].shape[-1]
        depth = functools.reduce(torch.promote_types, (pixels.dtype for pixels, _, _ in crops))
        batch = {
            "pixel_values": empty((*shape, channels), dtype=depth),
            "labels": empty(shape, dtype=crops[0][1].dtype),
            "sizes": [tuple(labels.shape) for _, labels, _ in crops],
        }
        for number, (pixels, labels, _) in enumerate(crops):
            height, width = labels.shape
            batch["pixel_values"][number, :height, :width] = pixels
            batch["labels"][number, :height, :width] = labels
            batch["labels"][number, height:] = self.ignore_index
            batch["labels"][number, :, width:] = self.ignore_index
        if self.photometric_distortion:
            batch["colors"] = empty((len(crops), channels, channels + 1), dtype=torch.float32)
            batch["colors"].numpy()[:] = [colors for _, _, colors in crops]
        return batch

    def finish(self, batch: dict) -> dict[str, torch.Tensor]:
        """Colours and normalization, which is the processor's.

        Shape:
            batch: of `collate`
            returns: "pixel_values" (B, C, h, w) float32 and "labels" (B, h, w) int64, on the device of the batch
        """
        images, labels = batch["pixel_values"], batch["labels"]
        pixels = _large((len(images), images.shape[-1], *self.crop_size), torch.float32, images.device)
        mean, std = (values.to(images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        for number, (height, width) in enumerate(batch["sizes"]):  # one by one: what is in between stays in the cache
            image, result = images[number], pixels[number]
            if "colors" in batch:
                offset, matrix = batch["colors"][number][:, -1:], batch["colors"][number][:, :-1]
                torch.addmm(offset, matrix, image.flatten(0, 1).float().T, out=result.flatten(1))
                result.clamp_(0, self.white)
            else:
                result.copy_(image.permute(2, 0, 1))
            result.sub_(mean).div_(std)
            result[:, height:] = 0
            result[:, :, width:] = 0
        return {"pixel_values": pixels, "labels": _large(labels.shape, torch.int64, labels.device).copy_(labels)}

    def _base_scale(self, height: int, width: int) -> float:
        """What factor 1 means for an image of this size."""
        if self.base_size is None:
            return 1.0
        sides = height, width
        return min(min(self.base_size) / min(sides), max(self.base_size) / max(sides))

    def largest_scale(self, height: int, width: int) -> float:
        """The largest factor that an image of this size can be resized by; a JPEG need not be decoded larger."""
        return self.scale_range[1] * self._base_scale(height, width)

    def draw(self, labels: np.ndarray, random: np.random.Generator) -> tuple[tuple[int, int, int, int], list[int]]:
        """A part of the labels, (top, left, bottom, right), and the size that it gets, at most the crop size."""
        sides = labels.shape
        scale = random.uniform(*self.scale_range) * self._base_scale(*sides)
        size = [min(crop, max(1, round(side * scale))) for crop, side in zip(self.crop_size, sides, strict=True)]
        height, width = (min(side, max(1, round(out / scale))) for out, side in zip(size, sides, strict=True))
        step = max(1, round(math.sqrt(height * width) / 100))  # some 10,000 pixels tell the share well enough
        for _ in range(10):
            top, left = (int(random.integers(side - part + 1)) for side, part in zip(sides, (height, width)))
            crop = labels[top : top + height : step, left : left + width : step]
            counts = np.bincount(crop[crop != self.ignore_index])
            if counts.size and counts.max() <= self.max_share * counts.sum():
                break
        return (top, left, top + height, left + width), size

    def crop(self, image, labels: np.ndarray, random: np.random.Generator) -> tuple:
        """A random crop.

        Shape:
            image: PIL image, array (H', W', C) or tensor (C, H', W'), of the labels' size or smaller (see
                `largest_scale`); or a function of the number of rows that are needed that gives these of it, or more
            labels: (H, W)
            returns: pixels (h', w', C), 8 bits (float32 for deeper images), labels (h', w'), at most of the crop size;
                with `photometric_distortion` (C, C + 1), a matrix and an offset for the colours, else None
        """
        box, size = self.draw(labels, random)
        flip = random.random() < self.flip_probability
        if callable(image):
            image = image(box[2])
        is_pil = isinstance(image, Image.Image)
        image = image if is_pil else _to_array(image)
        factor = round(labels.shape[1] / (image.width if is_pil else image.shape[1]))  # 2, 4, 8 if decoded smaller
        top, left, bottom, right = (round(edge / factor) for edge in box)
        # PIL's crop is a fast copy, its conversion to an array is not
        part = image.crop((left, top, right, bottom)) if is_pil else image[top:bottom, left:right]
        pixels = torch.from_numpy(np.ascontiguousarray(_to_array(part)))
        if list(pixels.shape[:2]) != size:
            planes = pixels[None].permute(0, 3, 1, 2)  # channels last, for which torch has the fastest code
            pixels = interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        rows, columns = (  # the nearest to the centre of each target pixel, which agrees with the image
            start + (2 * np.arange(out) + 1) * (stop - start) // (2 * out)
            for start, stop, out in zip(box[:2], box[2:], size, strict=True)
        )
        labels = np.take(labels[rows], columns[::-1] if flip else columns, axis=1)
        if flip and self.flip_permutation is not None:
            is_class = labels != self.ignore_index
            labels[is_class] = self.flip_permutation[labels[is_class]]
        colors = self.colors(random, pixels.shape[-1]) if self.photometric_distortion else None
        return pixels.flip(1) if flip else pixels, torch.from_numpy(labels), colors

    def colors(self, random: np.random.Generator, channels: int) -> np.ndarray:
        """(C, C + 1) float32: a matrix, and an offset, for the colours of an image."""
        chances, values = random.random((2, 4)).tolist()
        drawn = (2 * value - 1 if chance < 0.5 else 0.0 for chance, value in zip(chances, values))
        brightness, contrast, saturation, hue = drawn  # each in [-1, 1]
        colors = np.eye(channels, channels + 1)
        if channels == 3:
            chroma = (1 + 0.5 * saturation) * cmath.exp(1j * math.radians(36) * hue)
            colors[:, :3] = self.LUMA + chroma.real * self.CHROMA + chroma.imag * self.TURNED_CHROMA
        colors[:, -1] = 32 / 255 * self.white * brightness
        return ((1 + 0.5 * contrast) * colors).astype(np.float32)


def _large(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialized tensor; in main memory in pages of 2 MB, as numpy asks for, because small ones cost time."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, str(dtype).removeprefix("torch.")))


# --- Loading --------------------------------------------------------------------------------------------------------


def _to_array(image: Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """(H, W, C)"""
    if isinstance(image, torch.Tensor):
        return image.permute(1, 2, 0).numpy()
    array = np.array(image) if isinstance(image, Image.Image) else image
    return array[..., None] if array.ndim == 2 else array


class DecodedSamples:
    """Decoded samples, as far as memory is granted, so that each is decoded once and not once an epoch.

    The memory is shared with worker processes that are forked; it is taken as it fills.
    """

    def __init__(self, length: int, num_bytes: int):
        self.memory = np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
        # for each sample: start of the image, its height, width, channels, type; start of the labels, ...; 1 if there
        self.table = np.frombuffer(mmap.mmap(-1, length * 88), np.int64).reshape(length, 11)
        self.used = np.frombuffer(mmap.mmap(-1, 8), np.int64)
        self.lock = multiprocessing.Lock()

    @property
    def is_full(self) -> bool:
        return self.used[0] == len(self.memory)

    def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Image (H', W', C) and labels (H, W)."""
        *entry, is_there = self.table[index].tolist()
        if not is_there:
            return None
        image, labels = (
            np.ndarray((height, width, channels), chr(kind), self.memory, start)
            for start, height, width, channels, kind in (entry[:5], entry[5:])
        )
        return image, labels[..., 0]

    def put(self, index: int, image: np.ndarray, labels: np.ndarray) -> None:
        with self.lock:
            start = int(self.used[0])
            size = -(-(image.nbytes + labels.nbytes) // 8) * 8  # aligned for any type
            if start + size > len(self.memory):
                self.used[0] = len(self.memory)
                return
            self.used[0] += size
        entry = []
        for array in (image, labels[..., None]):
            np.ndarray(array.shape, array.dtype, self.memory, start)[:] = array
            entry += [start, *array.shape, ord(array.dtype.char)]
            start += array.nbytes
        self.table[index, :-1] = entry
        self.table[index, -1] = 1


class BatchMemory:
    """Memory in which worker processes, if they are forked, leave batches for the main process.

    torch's own way is new memory for each tensor, which costs more time than to fill it, from /dev/shm, which is small
    in containers. It remains for what does not fit.

    Args:
        num_batches: batch number n lies where number n - num_batches was.
        num_bytes: for each batch.
    """

    def __init__(self, num_batches: int, num_bytes: int):
        self.num_batches = num_batches
        self.num_bytes = num_bytes
        self.memory = torch.frombuffer(mmap.mmap(-1, num_batches * num_bytes), dtype=torch.uint8)

    def empty(self, number: int) -> Callable:
        """`torch.empty` in the memory of a batch."""
        free = self.memory[number % self.num_batches * self.num_bytes :][: self.num_bytes]

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            nonlocal free
            size = math.prod(shape) * dtype.itemsize
            if size > len(free):
                return torch.empty(shape, dtype=dtype)
            memory, free = free[:size], free[-(-size // 64) * 64 :]  # aligned for any type
            return memory.view(dtype).view(shape)

        return empty

    def places(self, batch: dict) -> dict:
        """What another process needs to know of the tensors that are here: type, offset and shape."""
        here = self.memory.untyped_storage().data_ptr()
        return {
            key: (value.dtype, value.storage_offset(), value.shape)
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == here
            else value
            for key, value in batch.items()
        }

    def tensors(self, batch: dict) -> dict:
        """A batch of `places`."""
        storage = self.memory.untyped_storage()
        return {
            key: torch.empty(0, dtype=value[0]).set_(storage, *value[1:]) if isinstance(value, tuple) else value
            for key, value in batch.items()
        }


class TrainingDataset(Dataset):
    """Augmented batches of a data set; the random numbers of a sample follow from (seed, epoch, index) only.

    A sample that cannot be read is an error, or, if the data set says "skip", replaced by one that follows from the
    same numbers.

    Args:
        dataset: items {"image", "label", ...}, always the same.
        cache_bytes: memory for decoded samples (see `DecodedSamples`).

    The number of a batch and its keys (epoch, index), or (epoch, index, undecoded image and mask), give
    `TrainingTransform.collate`'s dictionary, plus "errors", a list of texts; or the places of its tensors in `memory`.
    """

    def __init__(self, dataset: Dataset, transform: TrainingTransform, seed: int = 0, cache_bytes: int = 0):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        if cache_bytes < 0:
            raise ValueError(f"a cache of {cache_bytes} bytes cannot be; 0 is none")
        self.cache = DecodedSamples(len(dataset), cache_bytes) if cache_bytes else None
        self.memory: BatchMemory | None = None

    def __getstate__(self) -> dict:  # a process that is not forked cannot share memory this way
        return {**self.__dict__, "cache": None, "memory": None}

    def __getitems__(self, batch: tuple[int, list[tuple]]) -> dict:
        number, keys = batch
        errors = []
        crops = [self._crop(errors, *key) for key in keys]
        if self.memory is None:
            return {**self.transform.collate(crops), "errors": errors}
        tensors = self.transform.collate(crops, self.memory.empty(number))
        return {**self.memory.places(tensors), "errors": errors}

    def _crop(self, errors: list[str], epoch: int, index: int, files: tuple | None = None) -> tuple:
        key = [self.seed, epoch, index]
        random = np.random.default_rng(key)
        for attempt in range(10):
            try:
                return self.transform.crop(*self._sample(index, files), random)
            except ValueError as error:
                if getattr(self.dataset, "on_error", "raise") == "raise":
                    raise
                errors.append(str(error))
            random = np.random.default_rng([*key, attempt])  # the same, however far the bad one was read
            index, files = int(random.integers(len(self.dataset))), None
        raise ValueError(f"ten training samples in a row are bad; the last one: {errors[-1]}")

    def _sample(self, index: int, files: tuple | None) -> tuple:
        """Image, or a function that decodes it, and labels; from memory if they are there."""
        if self.cache is not None and (sample := self.cache.get(index)) is not None:
            return sample
        if isinstance(self.dataset, SegmentationDataset):
            image, labels = self.dataset.open(index, files, self.transform.largest_scale)
        else:
            item = self.dataset[index]
            image, labels = item["image"], np.asarray(item["label"])
        if self.cache is not None and not self.cache.is_full:
            image = _to_array(image() if callable(image) else image)
            self.cache.put(index, image, labels)
        return image, labels


class ShuffledBatches:
    """Endless batches of (epoch, index): every epoch a new permutation that follows from (seed, epoch).

    With `groups`, samples of a group lie near each other: the groups come in a random order, and so do the samples of
    each few groups that follow each other, 512 samples or more (and less than a group more). So shards are read once.

    The epochs follow each other without a gap: all batches are full, and each sample comes once an epoch. At step s
    process p of n takes the batch number s * n + p, so n processes with batches of B see what one with n * B sees.

    Args:
        length: of the data set.
        start_step: the first step to give; a resumed run passes the number of batches it has taken before.
        groups: (length,) the number of the group of each sample; None for a permutation without any order.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        groups: np.ndarray | None = None,
    ):
        if length < 1:
            raise ValueError("there are no training samples")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.process_index = process_index
        self.num_processes = num_processes
        self.groups = groups

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, epoch_of_order, order = self.start_step, -1, None
        while True:
            first = (step * self.num_processes + self.process_index) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                epoch = position // self.length
                if epoch != epoch_of_order:
                    order = self.order(epoch)
                    epoch_of_order = epoch
                batch.append((epoch, int(order[position % self.length])))
            yield batch
            step += 1

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch."""
        random = np.random.default_rng([self.seed, epoch])
        if self.groups is None:
            return random.permutation(self.length)
        _, groups = np.unique(self.groups, return_inverse=True)
        ranks = random.permutation(groups.max() + 1)[groups]  # the groups in a random order, ...
        order = np.argsort(ranks, kind="stable")
        pools = np.bincount(ranks).cumsum() // POOL_SIZE  # ... some of them together in a random order
        for pool in np.split(order, np.searchsorted(pools[ranks[order]], np.unique(pools)[1:])):
            random.shuffle(pool)
        return order


class ReadAhead:
    """Batches of `ShuffledBatches`, each key with its undecoded files, read in a thread.

    For shards, which the workers would else read once each.
    """

    def __init__(self, batches: ShuffledBatches, dataset: "SegmentationDataset", depth: int = 8):
        self.batches = batches
        self.dataset = dataset
        self.depth = depth

    def __iter__(self) -> Iterator[list[tuple]]:
        def read(batch):
            return [(epoch, index, self.dataset.files(index)) for epoch, index in batch]

        with ThreadPoolExecutor(1) as pool:  # one: in order, and each shard is read once
            pending = deque()
            for batch in self.batches:
                pending.append(pool.submit(read, batch))
                if len(pending) == self.depth:
                    yield pending.popleft().result()


class TrainingLoader:
    """Endless training batches, finished on the device where they are used."""

    def __init__(self, dataset: TrainingDataset, batches: Iterable, batch_bytes: int, num_workers: int, device):
        self.dataset = dataset
        self.batches = batches
        self.batch_bytes = batch_bytes
        self.num_workers = num_workers
        self.device = torch.device(device)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        prefetch_factor = 4 if self.num_workers else None
        loader = DataLoader(
            self.dataset,
            batch_sampler=enumerate(self.batches),
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=prefetch_factor,
            worker_init_fn=_keep_memory,
            generator=torch.Generator(),  # the loader draws a number; not from the global one, which dropout uses
        )
        memory = BatchMemory(prefetch_factor * self.num_workers + 1, self.batch_bytes) if self.num_workers else None
        self.dataset.memory = memory
        for batch in loader:
            _note_errors(self.dataset.dataset, batch.pop("errors"))
            batch = batch if memory is None else memory.tensors(batch)
            if self.device.type != "cpu":
                batch = {key: self._on_device(value) for key, value in batch.items()}
            yield self.dataset.transform.finish(batch)

    def _on_device(self, value):
        if not isinstance(value, torch.Tensor):
            return value
        value = value.pin_memory() if self.device.type == "cuda" else value
        return value.to(self.device, non_blocking=True)


def _note_errors(dataset: Dataset, errors: list[str]) -> None:
    """Adds to the data set's list of what was skipped, and says it, once each."""
    for error in errors:
        if error not in dataset.skipped:
            dataset.skipped.append(error)
            logger.warning("Skipped a sample: %s", error)


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
    cache_bytes: int = 2**30,
) -> TrainingLoader:
    """Endless batches {"pixel_values": (B, C, h, w) float32, "labels": (B, h, w) int64} on `device`.

    Order and resuming: see `ShuffledBatches`; `start_step` counts batches of this process, so with gradient
    accumulation over n batches it is n times the number of optimizer steps. It splits over processes itself and does
    not go through `accelerator.prepare`. An epoch is len(dataset) / (batch_size * num_processes) batches.

    Args:
        cache_bytes: memory, in each process, for decoded samples, which come from there from the second epoch on.
    """
    streams = isinstance(dataset, SegmentationDataset) and isinstance(dataset.records, ParquetRecords)
    groups = dataset.records.groups[dataset.indices] if streams else None
    batches = ShuffledBatches(len(dataset), batch_size, seed, start_step, process_index, num_processes, groups)
    (height, width), channels = transform.crop_size, len(transform.mean)
    return TrainingLoader(
        TrainingDataset(dataset, transform, seed, 0 if streams else cache_bytes),
        ReadAhead(batches, dataset) if streams else batches,
        # 8 bits a channel, labels of up to 16
        batch_bytes=batch_size * (height * width * (channels + 2) + 4 * channels * (channels + 1)) // 64 * 64 + 256,
        num_workers=num_workers,
        device=device,
    )


def _as_it_is(batch):
    return batch


def _keep_memory(worker: int) -> None:
    """Lets PIL decode into memory that it has; to give it back and get it again takes a fifth of the time."""
    Image.core.set_blocks_max(4)


def collate_evaluation(items: list[dict | str]) -> dict[str, list]:
    """Lists, because sizes differ: "images" (C, H, W) uint8 (float32 if deep), "labels" (H, W) train ids, "names".

    Texts among the items say which ones could not be read; they make up "errors", their places "missing".
    """
    good = [item for item in items if not isinstance(item, str)]
    return {
        "images": [torch.from_numpy(_to_array(item["image"])).permute(2, 0, 1).contiguous() for item in good],
        "labels": [torch.as_tensor(item["label"]) for item in good],
        "names": [item["name"] for item in good],
        "errors": [item for item in items if isinstance(item, str)],
        "missing": [position for position, item in enumerate(items) if isinstance(item, str)],
    }


class EvaluationLoader:
    """Batches of `collate_evaluation`, without those that could not be read."""

    def __init__(self, batches: DataLoader, dataset: Dataset):
        self.batches = batches
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, list]]:
        for batch in self.batches:
            _note_errors(self.dataset, batch.pop("errors"))
            yield batch


def evaluation_dataloader(
    dataset: Dataset,
    batch_size: int = 1,
    *,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> EvaluationLoader:
    """Batches of `collate_evaluation`, in order; process p of n gets samples p, p + n, ...: each exactly once."""
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(process_index, len(dataset), num_processes),
        generator=torch.Generator(),  # the loader draws a number; not from the global generator, which training uses
        num_workers=num_workers,
        collate_fn=collate_evaluation,
    )
    return EvaluationLoader(loader, dataset)
