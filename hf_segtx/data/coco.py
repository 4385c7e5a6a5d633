"""COCO's JSON (polygons and both forms of run lengths, also of crowds) -> masks, and label maps -> COCO's JSON.

    _annotations.coco.json      beside the images, as Roboflow writes it, maybe in train/, valid/ and test/
    annotations/instances_*.json    with the images in images/, train2017/, ..., as COCO and CVAT write it

Objects are drawn in the order of the file, the last on top; what none covers is background. Polygons of one object are
joined, as COCO's tools do it: a hole can only be written as run lengths.
"""

import json
import os
import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from .annotations import BACKGROUND_NAMES, AnnotatedMask, decode_runs, encode_runs, fill, labels_of_names, raw_ids
from .class_files import CLASS_FILES
from .files import ALL, IMAGE_SUFFIXES, Layout, some, split_of, subfolders, upright_size
from .labels import Labels
from .outlines import Region, find_regions


KEYS = ("images", "annotations", "categories")


def find_coco(folder: Path) -> Layout | None:
    """The annotations in the files of a folder, of annotations/ in it, or of folders for splits; None without any.

    Raises:
        ValueError: if several files may be meant, or `read_coco` raises.
    """
    found: dict[str, list[Path]] = {}
    inside = [place for place in subfolders(folder) if split_of(place.name) or "annot" in place.name.lower()]
    for place in [folder, *inside]:
        for file in _coco_files(place):
            split = _split_in(file.stem) if place == folder else split_of(place.name) or _split_in(file.stem)
            found.setdefault(split or ALL, []).append(file)
    if not found:
        return None
    if doubtful := next((files for files in found.values() if len(files) > 1), None):
        raise ValueError(f"{folder}: which of {some(doubtful)} counts? Give that file itself, or remove the others")
    if ALL in found and len(found) > 1:
        raise ValueError(f"{folder}: {found[ALL][0]} says no split, other files do; rename or remove it")
    return _layout({split: files[0] for split, files in found.items()}, folder)


def read_coco(file: Path) -> Layout:
    """The annotations of one file.

    Raises:
        ValueError: if it is not COCO's JSON, has boxes without outlines, or images are missing.
    """
    return _layout({ALL: file}, file.parent)


def _coco_files(place: Path) -> list[Path]:
    """Those called instances..., if there are any, else those with the keys of COCO's JSON."""
    files = [file for file in sorted(place.glob("*.json")) if file.is_file() and file.name not in CLASS_FILES]
    if named := [file for file in files if file.name.startswith("instances") or file.name.endswith(".coco.json")]:
        return named
    pictures = {path.stem for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    files = [file for file in files if file.stem not in pictures]  # those beside a picture are labelme's
    if len(files) > 20 and not _is_coco(files[0]):
        return []
    return [file for file in files if _is_coco(file)]


def _is_coco(file: Path) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)


class _File:
    """The images of a file, and the objects of each as compressed JSON: a tenth of the memory.

    Args:
        file: with COCO's JSON.
        root: folder in which the images are searched for, too.
    """

    def __init__(self, file: Path, root: Path):
        self.file = file
        try:
            content = json.loads(file.read_bytes())
            self.names = _names(content)
            self.images = {
                image["id"]: (str(image["file_name"]).replace("\\", "/"), (image.get("height"), image.get("width")))
                for image in content["images"]
            }
            objects, without = _objects(content)
        except KeyError as error:
            raise ValueError(f"{file}: the key {error} is missing; export it again") from error
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not COCO's JSON ({error}); export it again") from error
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if without:
            raise ValueError(
                f"{file}: {len(without)} of {len(content['annotations'])} annotations have no segmentation, but boxes "
                f"at most (id {some(without)}); masks need outlines: add them, or remove these annotations"
            )
        self.empty = sum(not found for found in objects.values())
        self.count = len(content["annotations"])
        self.objects = {image: zlib.compress(json.dumps(found).encode(), 1) for image, found in objects.items()}
        self.place = self._place_of_images(root)

    def _place_of_images(self, root: Path) -> Path:
        """The folder from which the names of the images start; one that is called after another split only at last."""
        names = [name for name, _ in self.images.values()]
        if not names:
            raise ValueError(f"{self.file}: it lists no images")
        parent = self.file.parent
        above = [parent, *([parent.parent] if "annot" in parent.name.lower() or split_of(parent.name) else []), root]
        below = [place for start in above for place in subfolders(start)]
        below += [place for start in below if start.name in ("images", "imgs") for place in subfolders(start)]
        split = _split_in(self.file.stem)
        places = sorted(dict.fromkeys(above + below), key=lambda place: split_of(place.name) not in (split, None))
        found = [place for place in places if (place / names[0]).is_file()]
        found = [place for place in found if split and split_of(place.name) == split] or found
        if not found:
            raise ValueError(
                f"{self.file}: its first image {names[0]} is neither in {parent} nor in a folder beside it; put the "
                "images there"
            )
        if missing := [name for name in names if not (found[0] / name).is_file()]:
            raise ValueError(
                f"{self.file}: {len(missing)} of {len(names)} images are not in {found[0]}: {some(missing)}; add them"
            )
        return found[0]

    def records(self, ids: dict[str, int], background: int) -> list[tuple[str, AnnotatedMask]]:
        pairs = []
        for number, (name, size) in self.images.items():
            path = str(self.place / name)
            read = partial(_read_objects, self.objects[number], None if None in size else size, path, ids)
            pairs.append((path, AnnotatedMask(f"{self.file}, mask of {name}", read, background)))
        return pairs


def _names(content: dict) -> list[str]:
    """The classes in the order of their ids.

    Roboflow puts a category before the others that stands for all of them, and that nothing belongs to.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    used = {annotation.get("category_id") for annotation in content["annotations"]}
    names: dict[str, dict] = {}
    if len({category["id"] for category in categories}) < len(categories):
        raise ValueError("categories have the same id; number them anew")
    for category in categories:
        number, name = category["id"], category["name"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"category {number!r} has the name {name!r}; give it a text")
        others = [other for other in categories if other is not category]
        is_root = (
            number not in used
            and str(category.get("supercategory")).lower() in ("none", "")
            and others
            and all(other.get("supercategory") == name for other in others)
        )
        if is_root:
            continue
        if (other := names.setdefault(name.strip().lower(), category)) is not category:
            raise ValueError(
                f"categories {other['id']!r} and {number!r} have one name, {other['name']!r} and {name!r}; rename one, "
                "or give all their annotations the same category_id"
            )
    return [category["name"] for category in names.values()]


def _objects(content: dict) -> tuple[dict, list]:
    """Image id -> (class name, segmentation) of its objects, and the ids of annotations without a segmentation."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict = {image["id"]: [] for image in content["images"]}
    if len(objects) < len(content["images"]):
        raise ValueError("images have the same id; number them anew")
    files: dict[str, object] = {}
    for image in content["images"]:
        name = os.path.normpath(str(image["file_name"]).replace("\\", "/"))
        if (other := files.setdefault(name, image["id"])) != image["id"]:
            raise ValueError(
                f"images {other!r} and {image['id']!r} have the same file_name, {name}; remove one, and give all their "
                "annotations the other's image_id"
            )
    without = []
    for number, annotation in enumerate(content["annotations"], 1):
        for key, known in (("image_id", objects), ("category_id", names)):
            if annotation.get(key) not in known:
                raise ValueError(
                    f"annotation {number} (id {annotation.get('id')!r}) has the {key} {annotation.get(key)!r}, but the "
                    f"ids are {some([*map(repr, known)]) or 'none'}; correct or remove it"
                )
        if not annotation.get("segmentation"):
            without.append(annotation.get("id"))
        objects[annotation["image_id"]].append((names[annotation["category_id"]], annotation.get("segmentation")))
    return objects, without


def _split_in(name: str) -> str | None:
    """The split that a word of a file's name says."""
    return next(filter(None, map(split_of, re.split(r"[\W_]+", name))), None)


def _read_objects(packed: bytes, size: tuple[int, int] | None, image: str, ids: dict[str, int]) -> tuple:
    size = upright_size(image) if size is None else tuple(map(int, size))
    shapes = []
    for name, segmentation in json.loads(zlib.decompress(packed)):
        if isinstance(segmentation, dict):
            parts = [decode_runs(_whole(segmentation["counts"]), tuple(segmentation["size"]))]
        else:
            parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
        shapes.append((ids[name], parts))
    return size, shapes


def _whole(counts: str | list) -> str | list[int]:
    """Run lengths of which some may be written as 5.0."""
    if isinstance(counts, str):
        return counts
    if wrong := [
        c for c in (counts if isinstance(counts, list) else [counts]) if type(c) not in (int, float) or c < 0 or c % 1
    ]:
        raise ValueError(f"counts has {wrong[0]!r}, but runs are whole numbers from 0 on; export it again")
    return [int(count) for count in counts]


def _layout(files: dict[str, Path], root: Path) -> Layout:
    read = {split: _File(file, root) for split, file in sorted(files.items(), key=lambda item: item[0] != "train")}
    names = tuple(dict.fromkeys(name for file in read.values() for name in file.names))

    def split(file: _File):
        def records(labels: Labels | None, alone) -> list[tuple[str, AnnotatedMask]]:
            return file.records(*raw_ids(labels, names, str(file.file)))

        return records

    notes = []
    for name, file in read.items():
        notes.append(f"{file.count} objects in {len(file.images)} images of {name}, from {file.place}")
        if file.empty:
            notes.append(f"{file.empty} images of {name} have no objects and are background")
    title = f"COCO's annotations in {some([file.file for file in read.values()])}"
    functions = {name: split(file) for name, file in read.items()}
    try:
        labels = labels_of_names(names)
    except ValueError as error:
        raise ValueError(f"{title}: {error}") from error
    return Layout(title, labels, functions, places=(root,), notes=tuple(notes), names=names)


class CocoWriter:
    """Label maps of pictures -> one file of COCO's JSON for all of them, `annotations.coco.json`.

    Regions without holes become polygons, those with holes run lengths; both exact to the pixel.

    Args:
        folder: of the files, whatever it is.
        names: class id -> name. A class called background is not written.
        ignored: ids that are not written either.
    """

    def __init__(self, folder: str | Path, names: dict[int, str], ignored: set[int] = frozenset()):
        self.classes = {class_id: name for class_id, name in names.items() if name not in BACKGROUND_NAMES}
        self.skipped = {*ignored, *(set(names) - set(self.classes))}
        self.found: dict[str, tuple] = {}

    def file(self, name: str) -> str | None:
        """The file of one picture, below the folder; None if there is none."""
        return None

    def add(self, image: str | Path, name: str, label_map: np.ndarray) -> bytes | None:
        """What belongs into the file of one picture; several threads may call it.

        Args:
            image: its file.
            name: that of its results, with the folders below the folder that all pictures are in.
            label_map: (H, W) class ids.
        """
        objects = []
        for region in find_regions(label_map, self.skipped):
            (left, top), (right, bottom) = region.outline.min(0).tolist(), region.outline.max(0).tolist()
            segmentation, area = _segmentation(region, label_map.shape)
            box = [left, top, right - left, bottom - top]
            objects.append({"category_id": region.label + 1, "segmentation": segmentation, "area": area, "bbox": box})
        self.found[name] = Path(name).with_name(Path(image).name).as_posix(), label_map.shape, objects

    def finish(self) -> dict[str, bytes]:
        """The files of all pictures together: path below the folder -> content."""
        images, annotations = [], []
        for number, (_, (file, (height, width), objects)) in enumerate(sorted(self.found.items()), 1):
            images.append({"id": number, "file_name": file, "height": height, "width": width})
            annotations += [{"image_id": number, **found, "iscrowd": 0} for found in objects]
        content = {
            "images": images,
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
            "categories": [{"id": class_id + 1, "name": name} for class_id, name in self.classes.items()],
        }
        return {"annotations.coco.json": json.dumps(content).encode()}


def _segmentation(region: Region, size: tuple[int, int]) -> tuple[list | dict, int]:
    """The polygon of a region, or its run lengths if it has holes, and its pixels."""
    outline = region.outline.ravel()
    place, pixels, _ = fill([outline], size)
    if not region.holes:
        return [outline.tolist()], int(np.count_nonzero(pixels))
    inside = np.zeros(size, bool)
    inside[place] = pixels
    for hole in region.holes:
        place, pixels, _ = fill([hole.ravel()], size)
        inside[place] &= ~pixels
    return {"size": list(size), "counts": encode_runs(inside)}, int(np.count_nonzero(inside))
