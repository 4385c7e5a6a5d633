"""The label contract: raw mask ids or colours -> train ids, ignore index, class names, palette.

One `Labels` object describes a data set. The data reader applies it exactly once (`Labels.map`); everything after it
(augmentation, loss, metric, pictures) sees train ids 0 .. num_labels - 1 and the ignore index only. The image
processor's `do_reduce_labels` must therefore stay False for labels that come from `hf_segtx.data`.

Words: a *raw id* is the pixel value in a mask file; a *train id* is the index of a class in the model's output.
Raw value 255 means "ignored" in every contract that does not list it. With a single class the model has one output
(sigmoid) and the train ids are 0, background, and 1, the class.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np


BACKGROUND_COLOR = (70, 70, 70)
CONTRACT_FILES = ("classes.json", "id2label.json")
UNKNOWN = -(2**15)  # marks raw ids outside the contract in the int16 table; no train id
IGNORED_16_BIT = 2**16 - 1  # stands for a negative ignore index in files
VOID_NAMES = {"_background_", "background", "ignore", "ignored", "other", "unlabeled", "unlabelled", "void"}


@dataclass(frozen=True)
class Labels:
    """Class names and palette of a data set, and how the values in its masks become train ids.

    Args:
        names: class names in the order of the train ids.
        palette: one (red, green, blue) of 0-255 for each name; empty takes `hf_segtx.visualization.palette`.
        ignore_index: train id of pixels that count nowhere; outside 0 .. num_labels - 1, within -32767 .. 32767.
        raw_to_train: raw id -> train id or `ignore_index`; None: raw ids are train ids already.
        color_to_train: (red, green, blue) -> train id or `ignore_index`, for RGB masks.

    Raises:
        ValueError: if names are missing, empty or repeated, or numbers do not fit together.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore_index: int = 255
    raw_to_train: dict[int, int] | None = None
    color_to_train: dict[tuple[int, int, int], int] | None = None

    def __post_init__(self):
        names = tuple(self.names)
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"class names must be non-empty texts, at least one; got {names[:10]}")
        counts = Counter(name.strip().lower() for name in names)
        if word := next((word for word, count in counts.items() if count > 1), None):
            first, second, *_ = [name for name in names if name.strip().lower() == word]
            raise ValueError(
                f"class names must differ by more than letter case and outer spaces; {first!r} is there more than "
                f"once, also as {second!r}; rename one of them"
            )
        if self.palette:
            palette = tuple(tuple(int(value) for value in color) for color in self.palette)
        else:
            from ..visualization.label_maps import palette as default_palette

            palette = tuple(tuple(color) for color in default_palette(len(names)))
        if len(palette) != len(names):
            raise ValueError(f"the palette has {len(palette)} colours for {len(names)} classes; give one for each")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "palette", palette)
        if 0 <= self.ignore_index < self.num_ids:
            raise ValueError(
                f"ignore_index {self.ignore_index} is the class {self.id2label.get(self.ignore_index)!r}; "
                f"use 255 or another value outside 0 .. {self.num_ids - 1}"
            )
        if not UNKNOWN < self.ignore_index < 2**15:
            raise ValueError(f"ignore_index {self.ignore_index} is outside -32767 .. 32767, 16 bits; use 255 or -100")
        if wrong := [raw for raw in self.raw_to_train or () if not 0 <= raw < 2**16]:
            raise ValueError(f"the raw id {wrong[0]} is outside 0 .. 65535")
        train_ids = {*(self.raw_to_train or {}).values(), *(self.color_to_train or {}).values()} - {self.ignore_index}
        if wrong := sorted(train_id for train_id in train_ids if not 0 <= train_id < self.num_ids):
            raise ValueError(f"train id {wrong[0]} is outside 0 .. {self.num_ids - 1} ({len(names)} class names)")
        if len(names) == 1 and self.mapping.get(0) == self.ignore_index:
            raise ValueError(
                f"0 is ignored, but is the background that the single class {names[0]!r} is told from; "
                "do not ignore it (omit do_reduce_labels), or name further classes"
            )

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @property
    def num_ids(self) -> int:
        """Number of train ids: 2 (background and class) for a single class, else the number of classes."""
        return max(2, len(self.names))

    @property
    def id2label(self) -> dict[int, str]:
        """A name for each train id."""
        return dict(enumerate(self.names if self.num_labels > 1 else ("background", *self.names)))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: train_id for train_id, name in self.id2label.items()}

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """A colour for each train id."""
        return list(self.palette) if self.num_labels > 1 else [BACKGROUND_COLOR, *self.palette]

    @classmethod
    def named(cls, name: str) -> "Labels":
        """The contract of a public data set, e.g. "ade20k", "cityscapes", "voc"; see `hf_segtx.data.label_tables`."""
        from .label_tables import TABLES

        if name not in TABLES:
            raise ValueError(f"there is no class table (or file) {name!r}; the tables are {', '.join(TABLES)}")
        return cls(**TABLES[name])

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Labels":
        """Reads `classes.json` or `id2label.json` in the folder or its parent.

        Raises:
            ValueError: if neither is there, or the file is wrong; the message names the file.
        """
        file = contract_file(folder)
        if file is None:
            raise ValueError(
                f'no class names: neither {folder} nor its parent has a classes.json ({{"classes": [{{"id": 0, "name": '
                '"sky", "color": [128, 128, 128]}, ...]}) or an id2label.json ({"0": "sky", ...}); write one of them'
            )
        return cls.from_file(file)

    @classmethod
    def from_file(cls, file: str | Path, do_reduce_labels: bool = False) -> "Labels":
        """Reads a contract from JSON: `{"classes": [...]}`, `{"0": name, ...}` or `[name, ...]`; or `Labels.named`.

        An entry of "classes" has "id" (raw id), "name", and optionally "color" and "ignore": true. Raw ids in
        "ignore_index" or "void_label" are ignored, too. Train ids follow the order of the raw ids that remain.
        """
        if not Path(file).suffix and not Path(file).exists():
            return cls.named(str(file))
        try:
            content = json.loads(read_utf8(file), object_pairs_hook=_without_repeats)
            if isinstance(content, dict) and "classes" in content:
                if do_reduce_labels:
                    raise ValueError("it says itself which id is ignored; omit do_reduce_labels")
                return cls._from_classes(content)
            return cls.from_id2label(content, do_reduce_labels)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            message = f"the key {error} is missing" if isinstance(error, KeyError) else error
            if isinstance(error, json.JSONDecodeError):
                message = f"not JSON ({error}); correct or replace it"
            raise ValueError(f"{file}: {message}") from error

    @classmethod
    def _from_classes(cls, content: dict) -> "Labels":
        classes, void_label = content["classes"], content.get("void_label")
        entries = [*(classes if isinstance(classes, list) else [classes]), *([void_label] if void_label else [])]
        if wrong := [entry for entry in entries if not isinstance(entry, dict) or entry is classes]:
            raise ValueError(
                f'a class is {{"id": 0, "name": "sky"}}, not {wrong[0]!r:.60}; write "classes" as a list of such'
            )
        ids = [_whole_number("id", entry["id"]) for entry in entries][: len(classes)]
        if repeated := [raw for raw, count in Counter(ids).items() if count > 1]:
            raise ValueError(f"the id {repeated[0]} is there more than once; ids must differ")
        if wrong := [entry for entry in classes if not isinstance(entry.get("ignore", False), bool)]:
            raise ValueError(f'"ignore" of id {wrong[0]["id"]} is {wrong[0]["ignore"]!r}; write true or false')
        void = {entry["id"] for entry in classes if entry.get("ignore")}
        if (ignored := content.get("ignore_index")) is not None:
            void.add(_whole_number("ignore_index", ignored))
        void |= {void_label["id"]} if void_label else set()
        kept = sorted((entry for entry in classes if entry["id"] not in void), key=lambda entry: entry["id"])
        if content.get("num_classes", len(kept)) != len(kept):
            raise ValueError(
                f"num_classes is {content['num_classes']}, but {len(kept)} classes are listed and not ignored "
                f"(ignored ids: {sorted(void)}); make them agree"
            )
        ignore_index = default_ignore_index(len(kept))
        background = {0: 0} if len(kept) == 1 else {}  # of a single class
        train_ids = {entry["id"]: train_id for train_id, entry in enumerate(kept, len(background))}
        raw_to_train = {**background, **{raw: ignore_index for raw in void}, **train_ids}
        if wrong := [entry for entry in classes if "color" in entry and not _is_color(entry["color"])]:
            raise ValueError(
                f"id {wrong[0]['id']}: the color {wrong[0]['color']!r} is not three whole numbers of 0 .. 255; write "
                "it such as [128, 51, 255], or omit it"
            )
        colors = [(tuple(entry["color"]), raw_to_train[entry["id"]]) for entry in classes if "color" in entry]
        counts = Counter(color for color, _ in colors)  # a colour that two classes share says nothing about a pixel
        return cls(
            names=tuple(entry["name"] for entry in kept),
            palette=tuple(tuple(entry["color"]) for entry in kept) if all("color" in entry for entry in kept) else (),
            ignore_index=ignore_index,
            raw_to_train=raw_to_train,
            color_to_train={color: train_id for color, train_id in colors if counts[color] == 1} or None,
        )

    @classmethod
    def from_id2label(cls, id2label: dict | list | tuple, do_reduce_labels: bool = False) -> "Labels":
        """From `{0: name, ...}` (keys may be texts) or a list of names.

        Args:
            do_reduce_labels: raw id 0 is ignored and every other one becomes itself minus 1, as in ADE20K's files. The
                names then belong to the raw ids from 1 on; a leading "background", "other" or the like is dropped.
        """
        if not isinstance(id2label, dict | list | tuple):
            raise ValueError(f'{id2label!r:.60} names no classes; give {{"0": "sky", ...}} or a list of names')
        id2label = id2label if isinstance(id2label, dict) else dict(enumerate(id2label))
        if wrong := [raw for raw in id2label if not re.fullmatch("0|[1-9][0-9]*", str(raw))]:
            raise ValueError(f'the key {wrong[0]!r} is no id of a class; write {{"0": "sky", "1": "sea", ...}}')
        by_id = {int(raw): name for raw, name in id2label.items()}
        if sorted(by_id) != list(range(len(by_id))):
            missing = sorted(set(range(len(by_id))) - set(by_id))
            raise ValueError(f"ids must be 0 .. {len(by_id) - 1}, but {missing} are missing; else use classes.json")
        names = [by_id[raw] for raw in range(len(by_id))]
        if not do_reduce_labels:
            return cls(names=tuple(names), ignore_index=default_ignore_index(len(names)))
        if str(names[0]).lower() in VOID_NAMES:
            names = names[1:]
        ignore_index = default_ignore_index(len(names))
        raw_to_train = {0: ignore_index, **{raw: raw - 1 for raw in range(1, len(names) + 1)}}
        return cls(names=tuple(names), ignore_index=ignore_index, raw_to_train=raw_to_train)

    def write(self, folder: str | Path) -> None:
        """Writes classes.json and id2label.json for masks of `as_mask`; `from_folder` reads them."""
        first = self.num_ids - self.num_labels  # a single class is 1, its background 0
        classes = [
            {"id": train_id, "name": name, "color": list(color)}
            for train_id, (name, color) in enumerate(zip(self.names, self.palette), first)
        ]
        ignored = self.ignore_index if self.ignore_index >= 0 else IGNORED_16_BIT
        contents = {"classes": classes, "ignore_index": ignored}, dict(enumerate(self.names))
        for file, content in zip(CONTRACT_FILES, contents):
            (Path(folder) / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def as_mask(self, train: np.ndarray) -> np.ndarray:
        """(H, W) train ids as uint8 or uint16 for a PNG file: a negative ignore index becomes 65535."""
        return train if train.dtype == np.uint8 else np.where(train < 0, IGNORED_16_BIT, train).astype(np.uint16)

    def with_255_as_class(self) -> "Labels":
        """The same two classes (or one and its background) for masks whose values are 0 and 255."""
        return replace(self, raw_to_train={0: 0, 255: 1})

    def check_names(self, id2label: dict[int, str], where: str) -> None:
        """Raises ValueError if the class names of `where` (e.g. a checkpoint) are not these, naming the first.

        Case and outer spaces do not count: public checkpoints of ADE20K call a class "bed ".
        """
        theirs = {int(train_id): name for train_id, name in id2label.items()}
        for train_id in sorted({*theirs, *self.id2label}):
            if str(theirs.get(train_id)).strip().lower() != str(self.id2label.get(train_id)).strip().lower():
                raise ValueError(
                    f"class {train_id} is {self.id2label.get(train_id)!r} in the data ({self.num_labels} classes) but "
                    f"{theirs.get(train_id)!r} in {where} ({len(theirs)} classes); use the class names it was made with"
                )

    def ids_or_colors(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) ids of a mask; if it holds colours, as it is: if the classes have colours, or the channels differ."""
        if mask.ndim == 3 and self.color_to_train is None and (mask == mask[..., :1]).all():
            return mask[..., 0]  # ids, written three times
        return mask

    def map(self, mask: np.ndarray, name: str = "the mask") -> np.ndarray:
        """Raw ids or colours to train ids.

        Args:
            name: what an error calls the mask, e.g. its file.

        Shape:
            mask: (H, W) integers or booleans, or (H, W, 3) colours of 0-255
            returns: (H, W) train ids, uint8 if they and the ignore index fit, else int16

        Raises:
            ValueError: if a value or colour is outside the contract.
        """
        mask = self.ids_or_colors(np.asarray(mask))
        if mask.ndim == 3 and mask.shape[2] == 3 and mask.dtype.kind in "iu":
            train = self._map_colors(mask, name)
        elif mask.ndim == 2 and mask.dtype == np.uint8 and self._byte_table is not None:
            unknown, table = self._byte_table
            mapped = bytearray(mask).translate(table)  # twice as fast as numpy
            if unknown in mapped:
                self._map_ids(mask, name)  # raises
            return np.frombuffer(mapped, np.uint8).reshape(mask.shape)
        elif mask.ndim == 2 and mask.dtype.kind in "iub":
            train = self._map_ids(mask, name)
        else:
            raise ValueError(
                f"{name}: a mask is (H, W) integers or (H, W, 3) colours, not {mask.dtype} of shape {mask.shape}; "
                "save it as a PNG with one channel of class ids"
            )
        return train.astype(np.uint8) if self._fits_a_byte else train

    @property
    def _fits_a_byte(self) -> bool:
        return 0 <= self.ignore_index <= 255  # and it is no class, so there are no more of these

    @cached_property
    def mapping(self) -> dict[int, int]:
        """Raw id -> train id or `ignore_index`, of every raw id that masks may hold."""
        mapping = {raw: raw for raw in range(self.num_ids)} if self.raw_to_train is None else self.raw_to_train
        return {255: self.ignore_index, **mapping}

    @cached_property
    def _table(self) -> np.ndarray:
        """(largest raw id + 2,) int16: raw id -> train id or UNKNOWN; the last entry stands for all larger ids."""
        table = np.full(max(self.mapping) + 2, UNKNOWN, np.int16)
        table[list(self.mapping)] = list(self.mapping.values())
        return table

    @cached_property
    def _byte_table(self) -> tuple[int, bytes] | None:
        """What stands for unknown raw ids, and (256,) raw id -> train id; None if train ids need more than a byte."""
        unknown = next((value for value in range(self.num_ids, 256) if value != self.ignore_index), None)
        if unknown is None or not self._fits_a_byte:
            return None
        return unknown, bytes(self.mapping.get(raw, unknown) for raw in range(256))

    @cached_property
    def _color_table(self) -> np.ndarray:
        """(2^24,) uint16: colour -> train id minus UNKNOWN, 0 for unknown; zero pages take no memory until used."""
        table = np.zeros(2**24, np.uint16)
        for (red, green, blue), train_id in self.color_to_train.items():
            table[red << 16 | green << 8 | blue] = train_id - UNKNOWN
        return table

    def _map_ids(self, mask: np.ndarray, name: str) -> np.ndarray:
        if mask.dtype == bool:
            mask = mask.view(np.uint8) != 0  # a true byte may be any but 0
        mask = mask.astype(mask.dtype.newbyteorder("="), copy=False)
        ids = mask.view(f"u{mask.itemsize}")
        if ids.itemsize > 1:  # a table always covers the 256 ids of 8 bits
            ids = np.minimum(ids, min(len(self._table) - 1, np.iinfo(ids.dtype).max))
        train = np.take(self._table, ids)
        if mask.dtype.kind == "i" and mask.min(initial=0) < 0:
            train[mask < 0] = UNKNOWN
        if train.min(initial=0) == UNKNOWN:
            values, counts = np.unique(mask[train == UNKNOWN], return_counts=True)
            raise ValueError(self._unknown_ids(values.tolist(), int(counts.sum()), mask, name))
        return train

    def _unknown_ids(self, values: list[int], pixels: int, mask: np.ndarray, name: str) -> str:
        known = sorted(raw for raw, train in self.mapping.items() if train != self.ignore_index)
        ignored = sorted(raw for raw, train in self.mapping.items() if train == self.ignore_index)
        text = (
            f"{name}: {pixels} of {mask.size} pixels have {'value' if len(values) == 1 else 'values'} "
            f"{', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''}, but the {self.num_labels} classes "
            f"are {known[0]} .. {known[-1]} and ignored is {', '.join(map(str, ignored)) or 'nothing'}; "
        )
        if name.lower().endswith((".jpg", ".jpeg")):
            return text + "JPEG changes ids: save masks as PNG"
        if values[0] < 0:
            return text + "ids are not negative: write another value for what does not count, e.g. 255"
        if self.raw_to_train is None and values == [self.num_labels]:
            text += "if 0 means unlabelled here, use do_reduce_labels, else "
        return text + "correct the mask, add the class name, or list the id in classes.json with ignore: true"

    def _map_colors(self, mask: np.ndarray, name: str) -> np.ndarray:
        if mask.min(initial=0) < 0 or mask.max(initial=0) > 255:
            raise ValueError(f"{name}: colours of 0 .. {mask.max()}; save an RGB mask with 8 bits for each channel")
        codes = mask[..., 0].astype(np.int32) << 16 | mask[..., 1].astype(np.int32) << 8 | mask[..., 2]
        if self.color_to_train is None:
            raise ValueError(self._unknown_colors(codes, name))
        found = np.take(self._color_table, codes)
        if found.min(initial=1) == 0:
            unknown = np.unique(codes[found == 0])
            cure = (
                "if these are class ids, save them in one channel"
                if (mask == mask[..., :1]).all()
                else "correct the colours in classes.json, or the mask (smoothed edges or JPEG make new colours)"
            )
            raise ValueError(
                f"{name}: {int((found == 0).sum())} of {codes.size} pixels have {len(unknown)} colours that no class "
                f"(or more than one) has: {_colors(unknown)}; {cure}"
            )
        return (found.astype(np.int32) + UNKNOWN).astype(np.int16)

    def _unknown_colors(self, codes: np.ndarray, name: str) -> str:
        unique = np.unique(codes)
        text = f"{name}: an RGB mask with {len(unique)} colours ({_colors(unique)}), but the classes have no colours; "
        if not (unique & 0xFFFF).any():
            return text + "if these are class ids in the red channel, save that channel alone, as a PNG"
        if set(unique.tolist()) <= {1, 1 << 8, 1 << 16}:
            return text + "if each pixel has one 1, at its class (one-hot), save mask.argmax(2)"
        return text + (
            'give each class its "color" in classes.json, or save masks as PNG with one channel of class ids (COCO '
            "panoptic: red + 256 green + 65536 blue is the segment, whose class its JSON says)"
        )


def _colors(codes: np.ndarray) -> str:
    first = ", ".join(str((code >> 16, code >> 8 & 255, code & 255)) for code in codes[:4].tolist())
    return first + (", ..." if len(codes) > 4 else "")


def read_utf8(file: str | Path) -> str:
    """The text of a file.

    Raises:
        ValueError: if it is not in UTF-8, with or without a byte order mark.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _without_repeats(pairs: list[tuple]) -> dict:
    """An object in JSON."""
    if repeated := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {repeated[0]!r} is there more than once; remove or rename one")
    return dict(pairs)


def _whole_number(key: str, value) -> int:
    if type(value) is not int:  # true is an int, too
        raise ValueError(f'"{key}" is {value!r}; write a whole number of 0 .. 65535, without quotes')
    return value


def _is_color(value) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)


def default_ignore_index(num_labels: int) -> int:
    """255 wherever it is not a class, else -100 (torch's own)."""
    return 255 if num_labels <= 255 else -100


def flip_permutation(id2label: dict[int, str]) -> list[int] | None:
    """Which class each class is in a mirrored image, by the names: "Left-arm" becomes "Right-arm" and the other way.

    Args:
        id2label: train id -> name, of a contract or a model's configuration.

    Returns:
        train id -> train id in the mirrored image, which also undoes itself; None if no class changes.
    """
    other = {"left": "right", "right": "left"}
    names = {str(name).strip().lower(): int(train_id) for train_id, name in id2label.items()}
    mirrored = {
        train_id: names.get(re.sub(r"(?<![a-z])(left|right)(?![a-z])", lambda side: other[side[0]], name), train_id)
        for name, train_id in names.items()
    }
    permutation = [mirrored.get(train_id, train_id) for train_id in range(len(id2label))]
    return permutation if permutation != sorted(permutation) else None


def contract_file(folder: str | Path) -> Path | None:
    """The first of classes.json and id2label.json in the folder, then in its parent; None if there is none."""
    folder = Path(folder).resolve()
    files = (place / file for place in (folder, folder.parent) for file in CONTRACT_FILES)
    return next((file for file in files if file.is_file()), None)
