"""Folders with images/ and masks/ -> pairs of files."""

from pathlib import Path

from .layouts import IMAGE_FOLDERS, IMAGE_SUFFIXES


MASK_FOLDERS = ("masks", "annotations", "labels", "SegmentationClass")


def folder_records(folder: str | Path, alone: list[str] | None = None) -> list[tuple[str, str]]:
    """Pairs (image, mask) of `folder/images/**` and `folder/masks/**` with equal paths up to the suffix.

    Args:
        alone: files without a partner are noted in this list, instead of being an error.

    Raises:
        ValueError: if a folder is missing or empty, or files have no partner (the first five are named).
    """
    folder = Path(folder)
    images = _files_by_stem(subfolder(folder, IMAGE_FOLDERS))
    masks = _files_by_stem(subfolder(folder, MASK_FOLDERS))
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


def subfolder(folder: Path, names: tuple[str, ...]) -> Path:
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
