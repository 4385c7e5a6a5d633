"""Folders of images and masks as people name them -> pairs of files, split by split.

    images/  masks/                                 without splits
    images/train/  masks/train/  images/val/ ...    splits below, also deeper
    train/images/  train/masks/  val/images/ ...    splits above
    train_images/  train_masks/  val_images/ ...    splits in the names
    train/x.jpg    train/x_mask.png  ...            masks beside the images

Splits are called train, training, val, valid, validation, test, testing, maybe with a year; folders after what is in
them (images, imgs, img_dir, JPEGImages, ...; masks, labels, annotations, ann_dir, SegmentationClass, gt, ...). Where
that leaves a doubt the data are refused.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from .files import ALL, Layout, canonical_split, files_below, has_pictures, pictures_below, some, split_of, subfolders
from .pairing import Files, divide, pair


logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("images", "JPEGImages")
_SPLIT = r"(?P<split>training|train|validation|validate|valid|val|testing|test)?((19|20)\d\d)?"
_END = r"(dir|folder|files|png|jpg|raw|ids?)?"
_IMAGE = r"(jpeg|rgb|raw|input|source)?(images?|imgs?|photos?|pictures?|pics?|frames?|inputs?|rgb)" + _END
_MASK = (
    r"(seg|segmentation|semantic|gt|groundtruth|class|pixel|label)?(masks?|annotations?|annots?|anns?|annos?|labels?"
    r"|lbls?|segmentations?|segmentationclass|segmaps?|gts?|groundtruths?|targets?|labelmaps?)" + _END
)


def find_folders(folder: Path) -> Layout | None:
    """The pairs of folders of images and folders of masks; None if there are none.

    Raises:
        ValueError: if it is in doubt which files are meant, or which split they belong to.
    """
    return _layout(folder, _kinds_at(folder) or _in_splits(folder, _kinds_at))


def find_beside(folder: Path) -> Layout | None:
    """The pairs of images and masks in one folder, or in one for each split; None if names do not tell them apart."""
    return _layout(folder, _in_splits(folder, _beside) or _beside(folder))


def _in_splits(folder: Path, find: Callable[[Path], dict | None]) -> dict[str, tuple]:
    """What is found in the folders that are called after splits."""
    found: dict[str, tuple] = {}
    for place in subfolders(folder):
        split = split_of(place.name)
        kinds = find(place) if split else None
        if kinds and None in kinds:
            if split in found:
                raise ValueError(f"{place} and {found[split][0].parent} are both for {split}; join or rename them")
            found[split] = kinds[None]
    return found


def _layout(folder: Path, found: dict[str | None, tuple] | None) -> Layout | None:
    """The layout of {split or None: folders of images and masks, and maybe their files}."""
    if not found:
        return None
    (image_place, mask_place, *_) = next(iter(found.values()))
    if image_place == mask_place:
        title = f"images and masks in one folder ({', '.join(str(places[0]) for places in found.values())})"
    else:
        title = f"images in {image_place} and masks in {mask_place}" + (", ..." if len(found) > 1 else "")
    files = {}
    for split, (images, masks, *listed) in found.items():
        listed = listed or [pictures_below(images), pictures_below(masks)]
        parts = {split: listed} if split else _split_below(*listed, images, masks)
        files |= {name: (*lists, images, masks) for name, lists in parts.items()}
    unmasked = [split for split, (_, masks, *_) in files.items() if not masks and split != ALL]
    others = {split_of(place.name): place for place in subfolders(folder) if None not in found}
    unmasked += [split for split, place in others.items() if split and split not in files and has_pictures(place)]
    notes = [f"the images of {split} have no masks and are not read" for split in unmasked]
    files = {split: parts for split, parts in files.items() if split not in unmasked}
    counts = ", ".join(f"{len(images)} images in {split}" for split, (images, *_) in files.items())
    places = (*{places[0] if places[0] == places[1] else places[0].parent: None for places in found.values()},)
    splits = {split: _pairs(parts) for split, parts in files.items()}
    return Layout(title, labels=None, splits=splits, places=places, notes=(counts, *notes))


def folder_records(folder: str | Path, alone: list[str] | None = None) -> list[tuple[str, str]]:
    """Pairs (image, mask) of all files of a folder with images/ and masks/.

    Args:
        alone: files without a partner are noted in this list, instead of being an error.

    Raises:
        ValueError: if a folder is missing or empty, or files have no partner (the first five are named).
    """
    layout = find_folders(Path(folder))
    if layout is None:
        raise no_layout(Path(folder))
    return [pair for split in layout.splits for pair in layout.records(split, None, alone)]


def _pairs(parts: tuple[Files, Files, Path, Path]):
    def records(labels, alone: list[str] | None) -> list[tuple[str, str]]:
        pairs, said = pair(*parts, alone)
        if said:
            logger.info("%s: %s.", parts[3], said)
        return pairs

    return records


def _kinds_at(folder: Path) -> dict[str | None, tuple[Path, Path]] | None:
    """{split or None: (folder of images, folder of masks)} among the folders in a folder; None without masks."""
    kinds: dict[tuple[str | None, str], list[Path]] = {}
    others = []
    for place in subfolders(folder):
        word = re.sub(r"[\W_]+", "", place.name.lower())
        for kind, form in (("image", _IMAGE), ("mask", _MASK)):
            match = re.fullmatch(_SPLIT + form, word) or re.fullmatch(form + _SPLIT, word)
            if match:
                split = canonical_split(match["split"]) if match["split"] else None
                kinds.setdefault((split, kind), []).append(place)
                break
        else:
            others.append(place)
    for split in {split for split, kind in kinds if kind == "mask"}:  # CamVid's train/ and trainannot/
        kinds.setdefault((split, "image"), [place for place in others if split and split_of(place.name) == split])
    kinds = {
        key: places for key, found in kinds.items() if (places := [place for place in found if has_pictures(place)])
    }
    if (None, "mask") in kinds and (None, "image") not in kinds:
        kinds[None, "image"] = [place for place in others if not split_of(place.name) and has_pictures(place)]
    splits = [split for split, kind in kinds if kind == "mask" and kinds.get((split, "image"))]
    splits = [None] if None in splits else splits
    for key in [(split, kind) for split in splits for kind in ("image", "mask")]:
        if len(kinds[key]) > 1:
            raise ValueError(
                f"{folder}: which of {some([place.name for place in kinds[key]])} holds the {key[1]}s? Rename the "
                f"others, or list the pairs in a .csv file with the columns image and mask"
            )
    return {split: (kinds[split, "image"][0], kinds[split, "mask"][0]) for split in splits} or None


def _beside(folder: Path) -> dict[None, tuple[Path, Path, Files, Files]] | None:
    """Images and masks in one folder, if names tell one from the other for most of them."""
    divided = divide([found for found in pictures_below(folder) if not found[0]])
    if divided is None or 2 * len(pair(*divided, folder, folder, alone=[])[0]) < len(divided[0]):
        return None
    return {None: (folder, folder, *divided)}


def _split_below(images: Files, masks: Files, image_place: Path, mask_place: Path) -> dict[str, tuple[Files, Files]]:
    """{split: images and masks} by the first folder on the way that is called after a split; "all" if none is."""
    splits: dict[str, tuple[Files, Files]] = {}
    for kind, files in enumerate((images, masks)):
        for way, name, path in files:
            words = [split_of(word) for word in way]
            place = next((number for number, word in enumerate(words) if word), None)
            split = ALL if place is None else words[place]
            rest = way if place is None else way[:place] + way[place + 1 :]
            splits.setdefault(split, ([], []))[kind].append((rest, name, path))
    if ALL in splits and len(splits) > 1:
        stray = [path for files in splits[ALL] for _, _, path in files]
        raise ValueError(
            f"{image_place} and {mask_place}: {len(stray)} files lie in no folder of a split, such as train/ or val/, "
            f"but others do: {some(stray)}; move or remove them"
        )
    if alone := [split for split, (images, _) in splits.items() if not images]:
        raise ValueError(f"{mask_place}: there are masks for {alone[0]}, but no images in {image_place}; add them")
    return dict(sorted(splits.items(), key=lambda item: ("train", "validation", "test", ALL).index(item[0])))


def no_layout(folder: Path) -> ValueError:
    """What is wrong with a folder in which no layout was found."""
    places = subfolders(folder)
    near = next((f", as {place} does" for place in (folder.parent, *places) if _kinds_at(place)), "")
    for form, names in ((_IMAGE, " or ".join(IMAGE_FOLDERS)), (_MASK, "masks, labels or annotations")):
        kinds = [place for place in places if re.fullmatch(form, re.sub(r"[\W_]+", "", place.name.lower()))]
        if kinds and any(name.endswith(".txt") for _, name, _ in files_below(kinds[0])):
            return ValueError(
                f"{folder}: text files in {kinds[0]}, but no data.yaml with names, train and val; write one"
            )
        if kinds and not has_pictures(kinds[0]):
            return ValueError(f"{kinds[0]}: no image files in it")
        if not kinds:
            return ValueError(
                f"{folder}: there is no folder {names} in it; a data folder holds images/ and masks/{near}, or "
                "images with annotations of COCO, labelme or YOLO"
            )
    return ValueError(f"{folder}: which folder holds the images and which the masks? Call them images/ and masks/")
