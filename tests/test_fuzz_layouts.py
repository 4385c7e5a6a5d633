"""Random folders, names, splits and stray files; random and damaged annotations: what is loaded is what was written.

Every image and mask holds its own number, so that a pair of strangers, a validation image that trains and a sample that
is lost without a word are seen whatever they are called. All else must be a ValueError or an OSError.
"""

import json
import random
import shutil
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_segtx.data import load_data


pytestmark = pytest.mark.slow
SIZE = (8, 12)
NAMES = ["background", "road", "tree"]
RUN = settings(
    derandomize=True, deadline=None, max_examples=400, database=None, suppress_health_check=list(HealthCheck)
)


@contextmanager
def counted(counts):
    """A folder; counts what becomes of one input. Anything but a ValueError or an OSError gets through."""
    folder = Path(tempfile.mkdtemp())
    counts["tried"] += 1
    try:
        yield folder
        counts["equal"] += 1
    except (ValueError, OSError) as error:
        assert str(error).strip()
        counts["clear"] += 1
    finally:
        shutil.rmtree(folder)


def mask_of(number):
    """(H, W) ids 0 .. 2 that no other number has: its digits by base 3, a column each."""
    digits = [number // 3**place % 3 for place in range(SIZE[1])]
    return np.tile(np.array(digits, np.uint8), (SIZE[0], 1))


def save(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def save_image(file, number):
    save(file, np.full((*SIZE, 3), number, np.uint8))


def numbers_of(dataset):
    """The numbers in the images; the masks must be theirs."""
    found = []
    for item in dataset if dataset is not None else ():
        number = round(float(np.asarray(item["image"], float).mean()))
        assert np.array_equal(item["label"], mask_of(number)), (item["name"], number)
        found.append(number)
    return sorted(found)


def check_loaded(root, written):
    """`written`: split ("train", "validation", "test" or "all") -> numbers."""
    train, validation, labels = load_data(train_dir=str(root), train_val_split=0.3, check=False)
    assert labels.names == tuple(NAMES)
    loaded = numbers_of(train), numbers_of(validation)
    if "validation" in written:
        assert loaded == (sorted(written.get("train", [])), sorted(written["validation"])), (loaded, written)
    else:  # a part is held out
        assert sorted(loaded[0] + loaded[1]) == sorted(written.get("train", written.get("all"))), (loaded, written)
        assert loaded[0] and loaded[1]


# --- Pictures ---------------------------------------------------------------------------------------------------------

STEM = (
    st.text(st.sampled_from("abAB019_-. éü_mask"), min_size=1, max_size=6)
    .map(str.strip)
    .filter(lambda stem: stem.strip(". ") == stem and stem)
)
PICTURES = st.fixed_dictionaries(
    {
        "form": st.sampled_from(
            [
                "{kind}/{stem}",
                "{kind}/{split}/{stem}",
                "{kind}/{split}/deep/{stem}",
                "{kind}/site/{split}/{stem}",
                "{split}/{kind}/{stem}",
                "{split}_{kind}/{stem}",
                "{split}/{stem}",
                "{stem}",
            ]
        ),
        "kinds": st.sampled_from(
            [("images", "masks"), ("img_dir", "ann_dir"), ("JPEGImages", "SegmentationClass"), ("imgs", "labels")]
            + [("Image", "Label"), ("photos", "gt"), ("x", "annotations")]
        ),
        "splits": st.sampled_from(
            [("train", "val"), ("Training", "Validation", "test"), ("train", "test"), ("train2017", "val2017")]
        ),
        "stems": st.lists(STEM, min_size=2, max_size=7, unique=True),
        "suffixes": st.sampled_from(
            [(".jpg", ".png"), (".JPG", ".PNG"), (".png", ".png"), (".bmp", ".tif"), (".jpeg", ".npy")]
        ),
        "mask_name": st.sampled_from(["{}", "{}_mask", "{}_label", "{}{suffix}", "mask_{}", "{}-GT", "{}_L", "{}2"]),
        "fold": st.sampled_from([str, str.lower, str.upper]),
        "harm": st.sampled_from(
            [""] * 4 + ["text", "hidden", "picture", "no mask", "no image", "other name", "link", "twice"]
        ),
        "seed": st.integers(0, 1000),
    }
)  # fmt: skip


def write_pictures(root, case):
    """Writes the files; returns split -> numbers, and whether the data are whole."""
    chance = random.Random(case["seed"])
    written, pairs = {}, []
    has_splits = "{split}" in case["form"]
    for number, stem in enumerate(case["stems"], 1):
        split = case["splits"][number % len(case["splits"])] if has_splits else "all"
        name = {
            "train": "train",
            "tra": "train",
            "val": "validation",
            "Tra": "train",
            "Val": "validation",
            "tes": "test",
        }
        written.setdefault(name.get(split[:3], split), []).append(number)
        mask_stem = case["fold"](case["mask_name"].format(stem, suffix=case["suffixes"][0]))
        forms = [case["form"].format(kind=k, split=split, stem="{}") for k in case["kinds"]]
        image, mask = (
            root / (form.format(name) + suffix)
            for form, name, suffix in zip(forms, (stem, mask_stem), case["suffixes"])
        )
        if image.exists() or mask.exists() or image == mask:
            raise ValueError("two files of one name cannot be written")
        save_image(image, number)
        if mask.suffix == ".npy":
            mask.parent.mkdir(parents=True, exist_ok=True)
            np.save(mask, mask_of(number))
        else:
            save(mask, mask_of(number))
        if not split.startswith("test"):  # which is not read
            pairs.append((image, mask))
    image, mask = chance.choice(pairs)
    if case["harm"] == "text":
        (image.parent / "read me.txt").write_text("hello")
    elif case["harm"] == "hidden":
        (mask.parent / f".{mask.name}").write_bytes(b"")
    elif case["harm"] == "picture":
        save_image(image.with_name("stray.png"), 99)
    elif case["harm"] == "no mask":
        mask.unlink()
    elif case["harm"] == "no image":
        image.unlink()
    elif case["harm"] == "other name":
        mask.rename(mask.with_name("other" + mask.suffix))
    elif case["harm"] == "link":
        if image.parent != root:
            shutil.move(image.parent, root.parent / "elsewhere")
            image.parent.symlink_to(root.parent / "elsewhere")
    elif case["harm"] == "twice":
        save_image(image.with_suffix(".tiff"), 98)
    (root / "id2label.json").write_text(json.dumps(NAMES))
    return written, case["harm"] in ("", "text", "hidden", "link")


def test_pictures():
    counts = Counter()

    @RUN
    @given(PICTURES)
    def run(case):
        with counted(counts) as folder:
            root = folder / "data"
            root.mkdir()
            written, is_whole = write_pictures(root, case)
            counts["whole"] += is_whole
            try:
                check_loaded(root, written)
            except AssertionError:
                counts["wrong"] += 1
                raise
            assert is_whole, "what is missing was not said"

    run()
    print(dict(counts))
    assert counts["wrong"] == 0 and counts["tried"] == counts["equal"] + counts["clear"] >= 300
    assert counts["equal"] > 0.4 * counts["whole"], "too much is refused for the test to say anything"


# --- Annotations ------------------------------------------------------------------------------------------------------

BOX = st.tuples(*(st.integers(0, SIZE[axis]) for axis in (1, 0, 1, 0))).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
OBJECTS = st.lists(st.lists(st.tuples(st.integers(1, 2), BOX), max_size=4), min_size=2, max_size=5)


def polygon(box):
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def drawn(objects, by_size=False):
    mask = np.zeros(SIZE, np.uint8)
    area = {number: (b[2] - b[0]) * (b[3] - b[1]) for number, (_, b) in enumerate(objects)}
    order = sorted(area, key=lambda number: -area[number]) if by_size else list(area)
    for value, (left, top, right, bottom) in (objects[number] for number in order):
        mask[top:bottom, left:right] = value
    return mask


def coco(root, images):
    annotations = []
    for number, objects in enumerate(images):
        for value, box in objects:
            segmentation = [polygon(box)]
            if (value + number) % 2:
                flat = np.concatenate([[0], (drawn([(1, box)]) > 0).T.ravel(), [0]])
                bounds = [0, *np.flatnonzero(np.diff(flat)), SIZE[0] * SIZE[1]]
                segmentation = {"size": list(SIZE), "counts": np.diff(bounds).tolist()}
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": value, "segmentation": segmentation}
            )
    return {
        root / "_annotations.coco.json": {
            "images": [
                {"id": n, "file_name": f"{n}.png", "width": SIZE[1], "height": SIZE[0]} for n in range(len(images))
            ],
            "annotations": annotations,
            "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES)][1:],
        }
    }


def labelme(root, images):
    return {
        root / f"{number}.json": {
            "shapes": [
                {"label": NAMES[value], "points": np.reshape(polygon(box), (-1, 2)).tolist(), "shape_type": "polygon"}
                for value, box in objects
            ],
            "imagePath": f"{number}.png",
            "imageHeight": SIZE[0],
            "imageWidth": SIZE[1],
        }
        for number, objects in enumerate(images)
    }


def yolo(root, images):
    files = {root / "data.yaml": {"train": ".", "names": NAMES[1:]}}
    for number, objects in enumerate(images):
        lines = [
            " ".join(map(str, [value - 1, *(np.reshape(polygon(box), (-1, 2)) / SIZE[::-1]).ravel()]))
            for value, box in objects
        ]
        files[root / f"{number}.txt"] = "\n".join(lines)
    return files


def kaggle(root, images):
    rows = ["ImageId,ClassId,EncodedPixels"]
    for number, objects in enumerate(images):
        rows += [f"{number}.png,,"] if not objects else []
        for value, box in objects:
            flat = np.concatenate([[0], (drawn([(1, box)]) > 0).T.ravel(), [0]])
            begins, ends = (np.flatnonzero(np.diff(flat.astype(int)) == sign) for sign in (1, -1))
            runs = " ".join(f"{begin + 1} {end - begin}" for begin, end in zip(begins, ends))
            rows.append(f"{number}.png,{NAMES[value]},{runs}")
    return {root / "train.csv": "\n".join(rows)}


def write(files):
    for file, content in files.items():
        if isinstance(content, dict):
            content = json.dumps(content) if file.suffix == ".json" else yaml.safe_dump(content)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def load_drawn(root, count, harmed=False):
    train, validation, labels = load_data(train_dir=str(root), train_val_split=0.3, check=False)
    found = {}
    for dataset in (train, validation):
        for index in range(len(dataset)):
            found[int(Path(dataset.files(index)[0]).stem)] = labels.map(dataset.read_mask(index))
    names = np.array([NAMES.index(name) if name in NAMES or not harmed else 0 for name in labels.names])
    assert harmed or sorted(found) == list(range(count))
    return {number: names[mask] if not harmed else mask for number, mask in found.items()}


@pytest.mark.parametrize("form", [coco, labelme, yolo, kaggle])
def test_annotations(form):
    """Random rectangles, some of them empty, over each other: by the slices of numpy."""
    counts = Counter()

    @RUN
    @given(OBJECTS)
    def run(images):
        with counted(counts) as root:
            for number in range(len(images)):
                save_image(root / f"{number}.png", number)
            write(form(root, images))
            counts["classes"] += any(images)
            found = load_drawn(root, len(images))
            for number, objects in enumerate(images):
                assert np.array_equal(found[number], drawn(objects, by_size=form is yolo)), (objects, found[number])

    run()
    print(form.__name__, dict(counts))
    # what has no class at all may be refused
    assert counts["tried"] == counts["equal"] + counts["clear"] and counts["equal"] > 0.9 * counts["classes"] > 100


def harmed(content, chance):
    """The same JSON with one value taken away or replaced, somewhere in it."""
    content = json.loads(json.dumps(content))
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return content
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
            place = place[key]
            continue
        rubbish = [None, -1, 0, 10**30, 1.5, float("nan"), "", "a\0b", "../..", [], {}, [[]], True]
        if chance.random() < 0.2:
            place.pop(key)
        else:
            place[key] = chance.choice(rubbish)
        return content


@pytest.mark.parametrize("form", [coco, labelme, yolo, kaggle])
def test_damaged_annotations(form):
    """A value that is missing or rubbish, cut files, other bytes: loaded or a clear error, never anything else."""
    counts = Counter()

    @RUN
    @given(OBJECTS.filter(any), st.integers(0, 2**32))
    def run(images, seed):
        chance = random.Random(seed)
        with counted(counts) as root:
            for number in range(len(images)):
                save_image(root / f"{number}.png", number)
            files = form(root, images)
            file = chance.choice(list(files))
            if isinstance(files[file], dict) and chance.random() < 0.8:
                files[file] = harmed(files[file], chance)
            else:
                write(files)
                content = bytearray(file.read_bytes())
                for _ in range(chance.randint(1, 3)):
                    content[chance.randrange(len(content))] = chance.choice(b'0123456789.,:;-\n\t "[]{}\0\xff')
                files[file] = bytes(content[: chance.randint(1, len(content))] if chance.random() < 0.5 else content)
            write(files)
            load_drawn(root, len(images), harmed=True)

    run()
    print(form.__name__, dict(counts))
    assert counts["tried"] == counts["equal"] + counts["clear"] >= 300 and counts["clear"] > 30
