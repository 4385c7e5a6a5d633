"""Public data sets in the folders of their owners -> pairs of image and mask, split by split.

    ADE20K            images/training, annotations/training, ... of ADEChallengeData2016; the full ADE20K's *_seg.png
    Cityscapes        leftImg8bit with gtFine or gtCoarse: *_labelIds.png, else *_labelTrainIds.png
    Pascal Context    VOC2010 with 59_context_labels, trainval/*.mat or trainval_merged.json, else the
                      SegmentationClassContext that mmsegmentation's converter writes
    Pascal VOC        JPEGImages, SegmentationClass, ImageSets/Segmentation; SegmentationClassAug for lists with "aug"
    COCO-Stuff        train2017, val2017 with stuffthingmaps; the 10k version's images, annotations, imageLists
    LIP               train_images, train_segmentations, ...
    LoveDA            Train/Urban/images_png, masks_png, ...
    CamVid            SegNet's train, trainannot, ...; the 701 stills with masks in 32 colours, split as SegNet does

The values in the masks are mapped by `Labels.named`; where masks are not pictures of ids, `MaskFile` makes them so.
People put data of their own into the same folders: what counts is the owners' names of the files.
"""

import json
import os
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from .annotations import decode_runs
from .class_files import class_file
from .files import Layout, MaskFile, canonical_split, files_below, fixed, some
from .label_tables import ADE20K_FULL, PASCAL_CONTEXT_459
from .labels import Labels


VOC_NAME = re.compile(r"20(07|08|09|10|11|12)_\d{6}")


def find_public(folder: Path) -> Layout | None:
    """The public data set in a folder; None if it is none of those above.

    Raises:
        ValueError: if it is one, but a part of it is missing.
    """
    for find in (
        *(_ade20k_challenge, _ade20k_full, _cityscapes, _pascal_context, _pascal_voc),
        *(_coco_stuff_10k, _coco_stuff_164k, _lip, _loveda, _camvid_by_folder, _camvid_by_color),
    ):
        if layout := find(folder):
            return layout
    return None


# --- Files ----------------------------------------------------------------------------------------------------------


def _inside(folder: Path, *markers: str, places: tuple[str, ...] = ()) -> Path | None:
    """`folder` or the first of the `places` in it that holds one of the markers."""
    for place in (folder, *(folder / place for place in places)):
        if any((place / marker).exists() for marker in markers):
            return place
    return None


def _files(folder: Path, end: str) -> dict[str, str]:
    """{path below `folder` without `end`: file} of the files that end so, sorted."""
    found = ((("/".join((*way, name))), path) for way, name, path in files_below(folder) if name.endswith(end))
    return dict(sorted((name[: -len(end)], path) for name, path in found))


def _pairs(images: dict[str, str], masks: dict[str, str], image_place, mask_place) -> list[tuple[str, str]]:
    """Pairs of equal keys; none may be alone."""
    for found, place in ((images, image_place), (masks, mask_place)):
        if not found:
            raise ValueError(f"{place}: none of the files that belong there; unpack the data set's archives again")
    for found, others, place in ((images, masks, mask_place), (masks, images, image_place)):
        if alone := [file for key, file in found.items() if key not in others]:
            raise ValueError(
                f"{len(alone)} of {len(found)} files have no partner in {place}: {some(alone)}; "
                "unpack both archives whole, or remove these"
            )
    return [(images[key], masks[key]) for key in images]


def _tree_pairs(image_folder: Path, image_end: str, mask_folder: Path, mask_end: str) -> list[tuple[str, str]]:
    images, masks = _files(image_folder, image_end), _files(mask_folder, mask_end)
    return _pairs(images, masks, f"{image_folder}/**{image_end}", f"{mask_folder}/**{mask_end}")


def _listed_pairs(list_file: Path, image: str, mask: str) -> list[tuple[str, str]]:
    """Pairs of the names in a list; `image` and `mask` are paths with {} for the name."""
    names = [line.split()[0] for line in list_file.read_text().splitlines() if line.strip()]
    pairs = [(image.format(name), mask.format(name)) for name in names]
    if not pairs:
        raise ValueError(f"{list_file}: the list is empty; unpack the data set again")
    if missing := [file for pair in pairs for file in pair if not os.path.isfile(file)]:
        raise ValueError(
            f"{list_file}: {len(missing)} files of its {len(pairs)} pairs are missing: {some(missing)}; "
            "unpack the data set again, or remove these names from the list"
        )
    return pairs


def _decoded(pairs: Callable, decode: Callable[[str], np.ndarray]) -> Callable:
    """The split `pairs`, with masks that are decoded so."""
    return lambda labels, alone: [(image, MaskFile(mask, decode)) for image, mask in pairs(labels, alone)]


# --- ADE20K ---------------------------------------------------------------------------------------------------------


def _ade20k_challenge(folder: Path) -> Layout | None:
    root = _inside(folder, "annotations/training", "annotations/validation", places=("ADEChallengeData2016",))
    if root is None or not any(root.glob("annotations/*/ADE_*.png")):
        return None
    splits = {}
    for split, place in (("train", "training"), ("validation", "validation")):
        images, masks = root / "images" / place, root / "annotations" / place
        if masks.is_dir():
            splits[split] = fixed(_tree_pairs, images, ".jpg", masks, ".png")
    return Layout("ADE20K (150 classes)", Labels.named("ade20k"), splits)


def _ade20k_full(folder: Path) -> Layout | None:
    places = ("ADE20K_2021_17_01", "ADE20K_2016_07_26", "dataset/ADE20K_2021_17_01")
    root = _inside(folder, "images/ADE/training", "images/ADE/validation", "images/training", places=places)
    if root is None:
        return None
    images = root / "images/ADE" if (root / "images/ADE").is_dir() else root / "images"
    if next(images.rglob("*_seg.png"), None) is None:
        return None
    splits = {}
    for split, place in (("train", "training"), ("validation", "validation")):
        if (place := images / place).is_dir():
            splits[split] = _decoded(fixed(_tree_pairs, place, ".jpg", place, "_seg.png"), decode_ade20k)
    return Layout("full ADE20K (its 150 classes)", Labels.named("ade20k"), splits)


@lru_cache(None)
def _ade20k_table() -> np.ndarray:
    """(25 * 256 + 256,) uint8: number of an object's name -> 1 .. 150, or 0 if it is none of the 150 classes."""
    table = np.zeros(26 * 256, np.uint8)
    for class_id, numbers in enumerate(ADE20K_FULL.split(), 1):
        table[[int(number) for number in numbers.split("+")]] = class_id
    return table


def decode_ade20k(file: str) -> np.ndarray:
    """(H, W) ids 0 .. 150 of the challenge from a `*_seg.png`: red // 10 * 256 + green is the number of the name."""
    with Image.open(file) as image:
        red, green, _ = image.convert("RGB").split()
    return _ade20k_table()[np.asarray(red).astype(np.int32) // 10 * 256 + np.asarray(green)]


# --- Cityscapes -----------------------------------------------------------------------------------------------------


def _cityscapes(folder: Path) -> Layout | None:
    root = _inside(folder, "leftImg8bit", places=("cityscapes",))
    first = next(root.glob("leftImg8bit/*/*/*_leftImg8bit.png"), None) if root else None
    if first is None or not re.fullmatch(r"[a-z-]+_\d{6}_\d{6}_leftImg8bit\.png", first.name):
        return None
    splits, encodings = {}, set()
    for annotation in ("gtCoarse", "gtFine"):  # where a split has both, it is the fine one
        for place in sorted(path for path in root.glob(f"{annotation}/*") if path.is_dir()):
            kinds = ("labelIds", "labelTrainIds")
            kind = next((kind for kind in kinds if next(place.glob(f"*/*_{annotation}_{kind}.png"), None)), None)
            images = root / "leftImg8bit" / place.name
            if kind and images.is_dir():
                pairs = fixed(_tree_pairs, images, "_leftImg8bit.png", place, f"_{annotation}_{kind}.png")
                splits[canonical_split(place.name)] = pairs
                encodings.add(kind)
    if not splits:
        raise ValueError(
            f"{root}: Cityscapes' images without masks: no gtFine/*/*/*_gtFine_labelIds.png (nor gtCoarse, nor "
            "labelTrainIds) of these splits; unpack gtFine_trainvaltest.zip beside leftImg8bit"
        )
    if len(encodings) > 1:
        raise ValueError(f"{root}: some splits have only *_labelTrainIds.png, others *_labelIds.png; make them alike")
    table = "cityscapes" if "labelIds" in encodings else "cityscapes_train_ids"
    return Layout("Cityscapes", Labels.named(table), splits)


# --- Pascal VOC and Pascal Context ----------------------------------------------------------------------------------


def _pascal_context(folder: Path) -> Layout | None:
    forms = ("59_context_labels", "trainval", "trainval_merged.json", "SegmentationClassContext")
    root = _inside(folder, *forms, places=("VOC2010", "VOCdevkit/VOC2010"))
    if root is None or not (root / "JPEGImages").is_dir():
        return None
    masks = next(root / form for form in forms if (root / form).exists())
    image = f"{root}/JPEGImages/{{}}.jpg"
    lists = _inside(root / "ImageSets", "train.txt", "val.txt", places=("SegmentationContext", "Main"))
    if lists is None and masks.suffix != ".json":
        raise ValueError(
            f"{root}: Pascal Context without lists: neither ImageSets/SegmentationContext nor ImageSets/Main holds a "
            "train.txt and val.txt; unpack VOC2010's VOCtrainval archive here"
        )
    splits = {}
    for split, name in (("train", "train"), ("validation", "val")):
        if masks.suffix == ".json":
            splits[split] = fixed(_detail_pairs, masks, name, image)
        elif (lists / f"{name}.txt").is_file():
            end, decode = {
                "59_context_labels": (".png", None),
                "trainval": (".mat", decode_pascal_context),
                "SegmentationClassContext": (".png", decode_alphabetical_context),
            }[masks.name]
            pairs = fixed(_listed_pairs, lists / f"{name}.txt", image, f"{masks}/{{}}{end}")
            splits[split] = _decoded(pairs, decode) if decode else pairs
    return Layout("Pascal Context", Labels.named("pascal_context_60"), splits)


@lru_cache(None)
def _context_tables() -> tuple[np.ndarray, np.ndarray]:
    """(65536,) number among the 459 names -> 0 .. 59, and (256,) place of that number in their order -> 0 .. 59."""
    numbers = [int(number) for number in PASCAL_CONTEXT_459.split()]
    by_number, by_order = np.zeros(2**16, np.uint8), np.full(256, 255, np.uint8)
    by_number[numbers] = np.arange(1, 60)
    by_order[:60] = [0, *(by_number[number] for number in sorted(numbers))]
    return by_number, by_order


def decode_pascal_context(file: str) -> np.ndarray:
    """(H, W) ids 0 .. 59 from an original .mat file of 459 classes."""
    return _context_tables()[0][_mat(file, "LabelMap").astype(np.uint16)]


def decode_alphabetical_context(file: str) -> np.ndarray:
    """(H, W) ids 0 .. 59 from a mask of mmsegmentation's converter.

    It numbers the classes in the order of the 459 names, which is the alphabet's, not that of the 59 names.
    """
    with Image.open(file) as image:
        return _context_tables()[1][np.asarray(image)]


def _mat(file: str, key: str) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("reading .mat files needs scipy: pip install scipy") from error
    return loadmat(file, variable_names=[key])[key]


@lru_cache(1)
def _detail(file: Path) -> tuple[list[dict], dict]:
    """Images, and per image id its segments (number of the class, run lengths), of "PASCAL in Detail"."""
    content = json.loads(file.read_text())
    segments = {image["image_id"]: [] for image in content["images"]}
    for annotation in content["annos_segmentation"]:
        segments[annotation["image_id"]].append((annotation["category_id"], annotation["segmentation"]))
    return content["images"], segments


def _detail_pairs(file: Path, phase: str, image: str) -> list[tuple[str, MaskFile]]:
    try:
        images, segments = _detail(file)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{file}: not the JSON of Pascal Context ({error!r}); download it again") from error
    pairs = []
    for entry in images:
        if entry["phase"] == phase:
            size = entry["height"], entry["width"]
            decode = partial(decode_segments, segments=segments[entry["image_id"]], size=size)
            path = image.format(Path(entry["file_name"]).stem)
            pairs.append((path, MaskFile(f"{file}, mask of {entry['file_name']}", decode)))
    if missing := [path for path, _ in pairs if not os.path.isfile(path)]:
        raise ValueError(
            f"{file}: {len(missing)} of its {len(pairs)} images of {phase} are missing: {some(missing)}; "
            "unpack VOC2010's VOCtrainval archive there"
        )
    return pairs


def decode_segments(file: str, segments: list[tuple[int, dict]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) ids 0 .. 59 from run-length encoded segments of the 459 classes; later ones lie on top."""
    numbers = np.zeros(size, np.uint16)
    for number, segment in segments:
        numbers[decode_runs(segment["counts"], tuple(segment["size"]))] = number
    return _context_tables()[0][numbers]


def _pascal_voc(folder: Path) -> Layout | None:
    root = voc_root(folder)
    if root is None or class_file(root) or not _is_the_owners(root):
        return None
    splits = {}
    for list_file in sorted((root / "ImageSets/Segmentation").glob("*.txt")):
        masks = root / ("SegmentationClassAug" if "aug" in list_file.stem else "SegmentationClass")
        if masks.is_dir() and list_file.stem != "test":  # whose masks are not public
            pairs = fixed(_listed_pairs, list_file, f"{root}/JPEGImages/{{}}.jpg", f"{masks}/{{}}.png")
            splits[canonical_split(list_file.stem)] = pairs
    if not splits:
        raise ValueError(f"{root}: Pascal VOC without masks: no SegmentationClass there; unpack the archive again")
    return Layout("Pascal VOC", Labels.named("voc"), splits)


def voc_root(folder: Path) -> Path | None:
    """The folder with JPEGImages and ImageSets/Segmentation: the given one, or one of a year in it."""
    years = tuple(f"{place}VOC{year}" for place in ("", "VOCdevkit/") for year in range(2012, 2006, -1))
    root = _inside(folder, "ImageSets/Segmentation", places=years)
    return root if root is not None and (root / "JPEGImages").is_dir() else None


def _is_the_owners(root: Path) -> bool:
    """Whether these are VOC's own images: names such as 2008_000002, or numbers with VOC2007's own descriptions."""
    lists = sorted((root / "ImageSets/Segmentation").glob("*.txt"))
    names = [line.split()[0] for file in lists for line in file.read_text().splitlines() if line.strip()]
    if not names or all(VOC_NAME.fullmatch(name) for name in names):
        return bool(names)
    description = root / f"Annotations/{names[0]}.xml"
    return (
        all(re.fullmatch(r"\d{6}", name) for name in names)
        and description.is_file()
        and "The VOC2007 Database" in description.read_text()
    )


# --- COCO-Stuff -----------------------------------------------------------------------------------------------------


def _coco_stuff_10k(folder: Path) -> Layout | None:
    root = _inside(folder, "imageLists", places=("cocostuff-10k-v1.1", "dataset"))
    if root is None or not (root / "annotations").is_dir():
        return None
    mat = next((root / "annotations").glob("*.mat"), None) is not None
    splits = {}
    for split, name in (("train", "train"), ("validation", "test")):
        if (list_file := root / f"imageLists/{name}.txt").is_file():
            mask = f"{root}/annotations/{{}}{'.mat' if mat else '.png'}"
            pairs = fixed(_listed_pairs, list_file, f"{root}/images/{{}}.jpg", mask)
            splits[split] = _decoded(pairs, partial(_mat, key="S")) if mat else pairs
    return Layout("COCO-Stuff 10k", Labels.named("coco_stuff_10k"), splits)


def _coco_stuff_164k(folder: Path) -> Layout | None:
    splits = {}
    for split, place in (("train", "train2017"), ("validation", "val2017")):
        image_root = _inside(folder, place, places=("images",))
        mask_places = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
        mask_root = next((folder / name for name in mask_places if (folder / name / place).is_dir()), None)
        if image_root and mask_root:
            splits[split] = fixed(_coco_pairs, image_root / place, mask_root / place)
    return Layout("COCO-Stuff 164k", Labels.named("coco_stuff_164k"), splits) if splits else None


def _coco_pairs(image_folder: Path, mask_folder: Path) -> list[tuple[str, str]]:
    """Leaves the `*_labelTrainIds.png` away that converters put between the masks."""
    masks = {key: file for key, file in _files(mask_folder, ".png").items() if key.isdigit()}
    return _pairs(_files(image_folder, ".jpg"), masks, image_folder, mask_folder)


# --- LIP, LoveDA, CamVid --------------------------------------------------------------------------------------------


def _lip(folder: Path) -> Layout | None:
    splits = {}
    for split, name in (("train", "train"), ("validation", "val")):
        image_places, mask_places = (
            tuple(str(Path(*[place] * times)) for place in (f"{kind}", f"LIP/{kind}") for times in (1, 2))
            for kind in ("TrainVal_images", "TrainVal_parsing_annotations")
        )
        images = _inside(folder, f"{name}_images", places=image_places)
        masks = _inside(folder, f"{name}_segmentations", places=mask_places)
        if images and masks:
            images, masks = images / f"{name}_images", masks / f"{name}_segmentations"
            splits[split] = fixed(_tree_pairs, images, ".jpg", masks, ".png")
    return Layout("LIP", Labels.named("lip"), splits) if splits else None


def _loveda(folder: Path) -> Layout | None:
    splits = {}
    for split, name in (("train", "Train"), ("validation", "Val")):
        root = _inside(folder / name, "Urban/masks_png", "Rural/masks_png", places=(name,))
        if root is not None:
            splits[split] = fixed(_loveda_pairs, root)
    return Layout("LoveDA", Labels.named("loveda"), splits) if splits else None


def _loveda_pairs(root: Path) -> list[tuple[str, str]]:
    areas = [root / area for area in ("Rural", "Urban") if (root / area / "masks_png").is_dir()]
    return [pair for area in areas for pair in _tree_pairs(area / "images_png", ".png", area / "masks_png", ".png")]


CAMVID_NAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)(_L)?\.png")


def _camvid_by_folder(folder: Path) -> Layout | None:
    splits = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        for mask_name, end in ((f"{name}annot", ".png"), (f"{name}_labels", "_L.png")):
            masks = folder / mask_name
            first = next(masks.glob("*.png"), None)
            if first is not None and CAMVID_NAME.fullmatch(first.name):
                splits[split] = fixed(_tree_pairs, folder / name, ".png", masks, end)
    return Layout("CamVid", Labels.named("camvid"), splits) if splits else None


def _camvid_by_color(folder: Path) -> Layout | None:
    images = next((folder / name for name in ("701_StillsRaw_full", "images") if (folder / name).is_dir()), None)
    mask_places = ("LabeledApproved_full", "labels")
    masks = next((folder / name for name in mask_places if next((folder / name).glob("*_L.png"), None)), None)
    if images is None or masks is None or not CAMVID_NAME.fullmatch(next(masks.glob("*_L.png")).name):
        return None
    splits = {name: fixed(_camvid_pairs, images, masks, name) for name in ("train", "validation", "test")}
    return Layout("CamVid", Labels.named("camvid"), splits)


def _camvid_pairs(images: Path, masks: Path, split: str) -> list[tuple[str, str]]:
    pairs = _tree_pairs(images, ".png", masks, "_L.png")
    return [(image, mask) for image, mask in pairs if camvid_split(os.path.basename(image)) == split]


def camvid_split(name: str) -> str | None:
    """SegNet's split, which every paper uses: 367 frames train, 101 validate, 233 test; None for other names."""
    match = CAMVID_NAME.fullmatch(name)
    if match is None:
        return None
    drive, frame = match.group(1), int(match.group(2))
    if drive == "Seq05VD" or drive == "0001TP" and frame > 8520:
        return "test"
    return "validation" if drive == "0016E5" and 7959 <= frame <= 8159 else "train"
