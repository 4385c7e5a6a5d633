"""Public data sets in the folders of their owners -> pairs of image and mask, split by split.

    ADE20K            images/training, annotations/training, ... of ADEChallengeData2016; the full ADE20K's *_seg.png
    Cityscapes        leftImg8bit with gtFine or gtCoarse: *_labelIds.png, else *_labelTrainIds.png
    COCO-Stuff        train2017, val2017 with stuffthingmaps; the 10k version's images, annotations, imageLists
    LIP               train_images, train_segmentations, ...
    LoveDA            Train/Urban/images_png, masks_png, ...
    CamVid            SegNet's train, trainannot, ...; the 701 stills with masks in 32 colours, split as SegNet does
    Pascal            see pascal_layouts

The values in the masks are mapped by `Labels.named`; where masks are not pictures of ids, `MaskFile` makes them so.
People put data of their own into the same folders: what counts is the owners' names of the files.
"""

import os
import re
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from .files import Layout, canonical_split, fixed
from .label_tables import ADE20K_FULL
from .labels import Labels
from .pascal_layouts import find_pascal_context, find_pascal_voc
from .public_files import decoded, files_ending, inside, listed_pairs, paired, read_mat, tree_pairs


def find_public(folder: Path) -> Layout | None:
    """The public data set in a folder; None if it is none of those above.

    Raises:
        ValueError: if it is one, but a part of it is missing.
    """
    for find in (
        *(_ade20k_challenge, _ade20k_full, _cityscapes, find_pascal_context, find_pascal_voc),
        *(_coco_stuff_10k, _coco_stuff_164k, _lip, _loveda, _camvid_by_folder, _camvid_by_color),
    ):
        if layout := find(folder):
            return layout
    return None


# --- ADE20K ---------------------------------------------------------------------------------------------------------


def _ade20k_challenge(folder: Path) -> Layout | None:
    root = inside(folder, "annotations/training", "annotations/validation", places=("ADEChallengeData2016",))
    if root is None or not any(root.glob("annotations/*/ADE_*.png")):
        return None
    splits = {}
    for split, place in (("train", "training"), ("validation", "validation")):
        images, masks = root / "images" / place, root / "annotations" / place
        if masks.is_dir():
            splits[split] = fixed(tree_pairs, images, ".jpg", masks, ".png")
    return Layout("ADE20K (150 classes)", Labels.named("ade20k"), splits)


def _ade20k_full(folder: Path) -> Layout | None:
    places = ("ADE20K_2021_17_01", "ADE20K_2016_07_26", "dataset/ADE20K_2021_17_01")
    root = inside(folder, "images/ADE/training", "images/ADE/validation", "images/training", places=places)
    if root is None:
        return None
    images = root / "images/ADE" if (root / "images/ADE").is_dir() else root / "images"
    if next(images.rglob("*_seg.png"), None) is None:
        return None
    splits = {}
    for split, place in (("train", "training"), ("validation", "validation")):
        if (place := images / place).is_dir():
            splits[split] = decoded(fixed(tree_pairs, place, ".jpg", place, "_seg.png"), decode_ade20k)
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
    root = inside(folder, "leftImg8bit", places=("cityscapes",))
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
                pairs = fixed(tree_pairs, images, "_leftImg8bit.png", place, f"_{annotation}_{kind}.png")
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


# --- COCO-Stuff -----------------------------------------------------------------------------------------------------


def _coco_stuff_10k(folder: Path) -> Layout | None:
    root = inside(folder, "imageLists", places=("cocostuff-10k-v1.1", "dataset"))
    if root is None or not (root / "annotations").is_dir():
        return None
    mat = next((root / "annotations").glob("*.mat"), None) is not None
    splits = {}
    for split, name in (("train", "train"), ("validation", "test")):
        if (list_file := root / f"imageLists/{name}.txt").is_file():
            mask = f"{root}/annotations/{{}}{'.mat' if mat else '.png'}"
            pairs = fixed(listed_pairs, list_file, f"{root}/images/{{}}.jpg", mask)
            splits[split] = decoded(pairs, partial(read_mat, key="S")) if mat else pairs
    return Layout("COCO-Stuff 10k", Labels.named("coco_stuff_10k"), splits)


def _coco_stuff_164k(folder: Path) -> Layout | None:
    splits = {}
    for split, place in (("train", "train2017"), ("validation", "val2017")):
        image_root = inside(folder, place, places=("images",))
        mask_places = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
        mask_root = next((folder / name for name in mask_places if (folder / name / place).is_dir()), None)
        if image_root and mask_root:
            splits[split] = fixed(_coco_pairs, image_root / place, mask_root / place)
    return Layout("COCO-Stuff 164k", Labels.named("coco_stuff_164k"), splits) if splits else None


def _coco_pairs(image_folder: Path, mask_folder: Path) -> list[tuple[str, str]]:
    """Leaves the `*_labelTrainIds.png` away that converters put between the masks."""
    masks = {key: file for key, file in files_ending(mask_folder, ".png").items() if key.isdigit()}
    return paired(files_ending(image_folder, ".jpg"), masks, image_folder, mask_folder)


# --- LIP, LoveDA, CamVid --------------------------------------------------------------------------------------------


def _lip(folder: Path) -> Layout | None:
    splits = {}
    for split, name in (("train", "train"), ("validation", "val")):
        image_places, mask_places = (
            tuple(str(Path(*[place] * times)) for place in (f"{kind}", f"LIP/{kind}") for times in (1, 2))
            for kind in ("TrainVal_images", "TrainVal_parsing_annotations")
        )
        images = inside(folder, f"{name}_images", places=image_places)
        masks = inside(folder, f"{name}_segmentations", places=mask_places)
        if images and masks:
            images, masks = images / f"{name}_images", masks / f"{name}_segmentations"
            splits[split] = fixed(tree_pairs, images, ".jpg", masks, ".png")
    return Layout("LIP", Labels.named("lip"), splits) if splits else None


def _loveda(folder: Path) -> Layout | None:
    splits = {}
    for split, name in (("train", "Train"), ("validation", "Val")):
        root = inside(folder / name, "Urban/masks_png", "Rural/masks_png", places=(name,))
        if root is not None:
            splits[split] = fixed(_loveda_pairs, root)
    return Layout("LoveDA", Labels.named("loveda"), splits) if splits else None


def _loveda_pairs(root: Path) -> list[tuple[str, str]]:
    areas = [root / area for area in ("Rural", "Urban") if (root / area / "masks_png").is_dir()]
    return [pair for area in areas for pair in tree_pairs(area / "images_png", ".png", area / "masks_png", ".png")]


CAMVID_NAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)(_L)?\.png")


def _camvid_by_folder(folder: Path) -> Layout | None:
    splits = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        for mask_name, end in ((f"{name}annot", ".png"), (f"{name}_labels", "_L.png")):
            masks = folder / mask_name
            first = next(masks.glob("*.png"), None)
            if first is not None and CAMVID_NAME.fullmatch(first.name):
                splits[split] = fixed(tree_pairs, folder / name, ".png", masks, end)
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
    pairs = tree_pairs(images, ".png", masks, "_L.png")
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
