"""Own data in the folders of Pascal VOC, as CVAT, Datumaro and many scripts write them -> pairs of files.

JPEGImages/  SegmentationClass/  ImageSets/Segmentation/{train,val,default}.txt  labelmap.txt
"""

from pathlib import Path

from .class_files import by_palette, class_file
from .files import ALL, Layout, canonical_split, pictures_below, some
from .pairing import pair
from .pascal_layouts import voc_root


def find_own_voc(folder: Path) -> Layout | None:
    """The pairs of the lists, for data that are not VOC's own; None if there are no such folders.

    The classes are those of classes.json, id2label.json or labelmap.txt beside the folders, never VOC's.

    Raises:
        ValueError: if there are no masks or no lists.
    """
    root = voc_root(folder)
    if root is None:
        return None
    lists = sorted((root / "ImageSets/Segmentation").glob("*.txt"))
    masks = root / "SegmentationClass"
    if not lists or not masks.is_dir():
        what = f"no {masks.name}/" if lists else "no lists, such as train.txt, in ImageSets/Segmentation"
        raise ValueError(f"{root}: folders as of Pascal VOC, but {what}; add it")
    splits = {canonical_split(file.stem): file for file in lists}
    if len(splits) == 1 and next(iter(splits)) not in ("train", "validation", "test"):  # default.txt
        splits = {ALL: lists[0]}
    return Layout(
        f"{root}, own data in folders as of Pascal VOC",
        labels=None,
        splits={split: _split(root, file) for split, file in splits.items()},
        places=(root,),
        notes=(f"the images are listed in {', '.join(file.name for file in lists)}",),
    )


def _split(root: Path, list_file: Path):
    def records(labels, alone: list[str] | None) -> list[tuple]:
        places = root / "JPEGImages", root / "SegmentationClass"
        files = [pictures_below(place) for place in places]
        names = _listed(list_file, {_stem(file) for file in files[0]}, alone)
        images, masks = ([file for file in found if _stem(file) in names] for found in files)
        if not images or not masks:
            raise ValueError(f"{list_file}: none of its names is in {places[1 if images else 0]}; correct them")
        pairs, _ = pair(images, masks, *places, alone)
        file = class_file(root)
        if labels is not None and labels.color_to_train and file is not None and file.name == "labelmap.txt":
            pairs = list(zip([image for image, _ in pairs], by_palette([mask for _, mask in pairs], labels)))
        return pairs

    return records


def _stem(file: tuple[tuple[str, ...], str, str]) -> str:
    return "/".join((*file[0], Path(file[1]).stem))


def _listed(list_file: Path, stems: set[str], alone: list[str] | None) -> set[str]:
    """The names in a list, without suffixes, quotes and the marks that VOC's lists have after a space."""
    lines = [line.strip() for line in list_file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    found, missing = set(), []
    for line in lines:
        forms = [line, line.strip("\"'"), str(Path(line).with_suffix("")), line.split()[0]]
        name = next((form for form in forms if form in stems), None)
        if name is None:
            missing.append(line)
        found.add(name)
    if missing and alone is None:
        raise ValueError(
            f"{list_file}: {len(missing)} of its {len(lines)} names have no image in JPEGImages: {some(missing)}; add "
            "the images, or remove the names"
        )
    if missing:
        alone += [f"{list_file}: {name} has no image in JPEGImages; add it, or remove the name" for name in missing]
    return found
