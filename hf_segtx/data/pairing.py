"""Files of images and files of masks -> pairs, by one rule for all files of a folder.

The rules, in the order in which they are tried; the first under which every file has one partner counts:

    equal names         a/x.jpg    a/x.png
    the whole name      a/x.jpg    a/x.jpg.png
    one ending          a/x.jpg    a/x_mask.png;   a/x_sat.jpg  a/x_mask.png;   a/img_x.jpg  a/mask_x.png

each also without regard to upper and lower case.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from .files import some


MASK_WORD = re.compile(
    r"(?<![a-z])(masks?|labels?|labelids|lbls?|gt|groundtruth|segm?|segmentations?|annotations?|annots?|anno?s?)(?![a-z])",
    re.IGNORECASE,
)
Files = list[tuple[tuple[str, ...], str, str]]  # folders on the way, name, path: see `files_below`


class Rule(NamedTuple):
    """How the names of an image and its mask are brought to the same.

    Args:
        text: for messages; empty for equal names.
        fold: of what is compared: as it is written, or without regard to upper and lower case.
        image_key, mask_key: name of a file -> what both must have in common, or None if the name has not this form.
    """

    text: str
    fold: Callable[[str], str]
    image_key: Callable[[str], str | None]
    mask_key: Callable[[str], str | None]


def pair(images: Files, masks: Files, image_place, mask_place, alone: list[str] | None) -> tuple[list, str]:
    """Pairs of paths, and what is to be said about the rule; both lists must hold a file.

    Args:
        image_place, mask_place: folders, for messages.
        alone: files without a partner are noted in this list, instead of being an error.

    Raises:
        ValueError: if files have no partner (the first five are named), or more than one.
    """
    best, most, first_error = None, -1, None
    for rule in _rules(images, masks):
        try:
            image_files, mask_files = (
                _by_key(images, rule.image_key, rule.fold),
                _by_key(masks, rule.mask_key, rule.fold),
            )
        except ValueError as error:  # two files are the same under this rule
            first_error = first_error or (error if rule.fold is _as_written else None)
            continue
        count = len(image_files.keys() & mask_files.keys())
        if count == len(images) == len(masks):
            return [(image_files[key], mask_files[key]) for key in image_files], rule.text
        if count > most:
            best, most = (image_files, mask_files, rule.text), count
    if first_error is not None:
        raise first_error
    image_files, mask_files, text = best
    for files, found, others, missing, place in (
        (images, image_files, mask_files, "mask", mask_place),
        (masks, mask_files, image_files, "image", image_place),
    ):
        partners = {found[key] for key in found.keys() & others.keys()}
        lonely = [path for _, _, path in files if path not in partners]
        if alone is not None:
            alone += [f"{path}: there is no {missing}; add it, or remove the file" for path in lonely]
        elif lonely:
            example = next(iter(others.values()), place)
            raise ValueError(
                f"{len(lonely)} of {len(files)} files have no {missing}: {some(lonely)}; an image and its mask have "
                "the same name up to the suffix, or all masks have one ending more, such as _mask "
                f"(a {missing} file here: {example})"
            )
    return [(image_files[key], mask_files[key]) for key in image_files if key in mask_files], text


def _by_key(files: Files, key: Callable[[str], str | None], fold: Callable[[str], str]) -> dict[tuple, str]:
    """{(folders on the way, key of the name): path}."""
    found = {}
    for way, name, path in files:
        if (stem := key(name)) is None:
            continue
        if (place := (tuple(map(fold, way)), stem)) in found:
            raise ValueError(f"{found[place]} and {path} differ in the suffix only; remove one of them")
        found[place] = path
    return found


def _rules(images: Files, masks: Files) -> Iterator[Rule]:
    for fold, said in ((_as_written, ""), (_folded, "names are compared without regard to upper and lower case")):

        def stem(name: str, fold=fold) -> str:
            return fold(os.path.splitext(name)[0])

        yield Rule(said, fold, stem, stem)
        yield Rule("; ".join(filter(None, ("the mask of x.jpg is called x.jpg.png", said))), fold, fold, stem)
        for image_affix, mask_affix, ends in _affixes(images, masks, stem):
            forms = [f"x{affix}" if ends else f"{affix}x" for affix in (image_affix, mask_affix)]
            text = "; ".join(filter(None, (f"the mask of {forms[0]} is called {forms[1]}", said)))
            yield Rule(text, fold, _without(image_affix, ends, stem), _without(mask_affix, ends, stem))


def _without(affix: str, ends: bool, stem: Callable[[str], str]) -> Callable[[str], str | None]:
    def key(name: str) -> str | None:
        name = stem(name)
        if ends:
            return name.removesuffix(affix) if name.endswith(affix) and name != affix else None
        return name.removeprefix(affix) if name.startswith(affix) and name != affix else None

    return key


def _affixes(images: Files, masks: Files, stem: Callable[[str], str]) -> list[tuple[str, str, bool]]:
    """(ending of images, ending of masks, whether endings or beginnings) that two files have, likely ones first.

    An ending begins with a separator and has a letter in it. That of masks is a word for masks, unless images have none
    and there are several pairs: "1.jpg" and "1_2.png" say nothing.
    """
    found = {}
    for way, name, _ in {masks[0], masks[len(masks) // 2], masks[-1]}:
        mask, place = stem(name), [*map(_folded, way)]
        for image, ends in product(
            [stem(name) for way, name, _ in images if [*map(_folded, way)] == place], (True, False)
        ):
            shared = len(os.path.commonprefix([image, mask] if ends else [image[::-1], mask[::-1]]))
            for length in range(shared, 0, -1):
                affixes = [text[length:] if ends else text[: len(text) - length] for text in (image, mask)]
                if all(affix == "" or re.fullmatch(r"[\W_].*" if ends else r".*[\W_]", affix) for affix in affixes):
                    is_word = MASK_WORD.search(affixes[1].replace("_", " "))
                    if is_word or (affixes[0] == "" and len(masks) > 1 and re.search(r"[^\W\d_]", affixes[1])):
                        found[(*affixes, ends)] = length
                    break
    return sorted(found, key=found.get, reverse=True)[:20]


def _as_written(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS takes letters with accents apart


def _folded(name: str) -> str:
    return _as_written(name).casefold()


def divide(files: Files) -> tuple[Files, Files] | None:
    """Images and masks of files that lie in one folder: all masks end, or all begin, with a word for masks."""
    for place in (-1, 0):
        masks, images = [], []
        for file in files:
            words = re.split(r"[\W_]+", os.path.splitext(file[1])[0])
            (masks if len(words) > 1 and MASK_WORD.fullmatch(words[place]) else images).append(file)
        if images and masks:
            return images, masks
    return None
