"""COCO, labelme and YOLO: read as their tools mean them, written so that our own readers give the label map again."""

import base64
import io
import json
import logging
import pickle
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.cli import main
from hf_segtx.data import load_data
from hf_segtx.data.annotations import encode_runs
from hf_segtx.data.coco import CocoWriter
from hf_segtx.data.diagnosis import diagnose, examine
from hf_segtx.data.labelme import LabelmeWriter
from hf_segtx.data.layouts import find_layout
from hf_segtx.data.yolo import YoloWriter


SIZE = (12, 20)
ROAD = [4, 2, 14, 2, 14, 10, 4, 10]  # x and y of a rectangle of 8 x 10 pixels
TREE = [10, 0, 16, 0, 16, 6, 10, 6]  # of 6 x 6, 4 x 4 of them on the road


def picture(file, size=SIZE):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(file.name)).integers(0, 256, (*size, 3)).astype(np.uint8)).save(file)


def drawn(*rectangles):
    mask = np.zeros(SIZE, np.uint8)
    for value, (left, top, right, _, _, bottom, *_) in rectangles:
        mask[top:bottom, left:right] = value
    return mask


def masks_of(root, split="all", labels=None):
    return [np.asarray(mask) for _, mask in find_layout(root).records(split, labels)]


# --- COCO -------------------------------------------------------------------------------------------------------------


def write_coco(file, annotations, count=4, categories=((7, "road"), (9, "tree")), folder=None):
    """`annotations`: (image number, category, segmentation) of images 0.jpg, 1.jpg, ..."""
    images = [{"id": i + 100, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(count)]
    for image in images:
        picture((folder or file.parent) / image["file_name"])
    content = {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": number, "image_id": image + 100, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
            for number, (image, category, segmentation) in enumerate(annotations)
        ],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def test_coco_polygons_and_both_run_lengths_in_the_order_of_the_file(tmp_path, caplog):
    mask = pytest.importorskip("pycocotools.mask")
    packed = mask.encode(np.asfortranarray(drawn((1, TREE))))
    runs = [
        [TREE],
        {"size": list(SIZE), "counts": [*map(float, encode_runs(drawn((1, TREE)) > 0))]},
        {"size": list(SIZE), "counts": packed["counts"].decode()},
        TREE,
    ]
    annotations = [(image, 7, [ROAD]) for image in range(4)] + [(image, 9, run) for image, run in enumerate(runs)]
    write_coco(tmp_path / "train/_annotations.coco.json", [*annotations[4:5], *annotations[:4], *annotations[5:]])
    with caplog.at_level(logging.INFO):
        train, validation, labels = load_data(train_dir=str(tmp_path), train_val_split=0.25)
    assert labels.names == ("background", "road", "tree")
    found = {item["name"][-5]: item["label"] for part in (train, validation) for item in part}
    assert np.array_equal(found["0"], drawn((2, TREE), (1, ROAD)))  # its tree comes first in the file
    for name in "123":
        assert np.array_equal(found[name], drawn((1, ROAD), (2, TREE)))
    assert "8 objects in 4 images of train" in caplog.text
    said = [
        record.getMessage() for record in caplog.records if "training masks 3 have 48 pixels" in record.getMessage()
    ]
    assert len(said) == 1 and "48 of them under annotations of different classes" in said[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_diagnosis_says_what_overlaps(tmp_path, num_workers):
    """Also when other processes draw the masks."""
    write_coco(tmp_path / "instances.json", [(0, 7, [ROAD]), (0, 9, [TREE]), (1, 7, [ROAD]), (1, 7, [TREE])], 3)
    train, validation, _ = load_data(train_dir=str(tmp_path), check=False, train_val_split=0.3)
    reports = [
        examine(part, split, num_workers, False) for part, split in ((train, "training"), (validation, "validation"))
    ]
    texts = [finding.text for finding in diagnose(reports) if "more than one annotation" in finding.text]
    pixels = [
        sum(counts) for counts in zip(*(map(int, re.findall(r"(\d+) (?:pixels|of them)", text)) for text in texts))
    ]
    assert pixels == [32, 16]


@pytest.mark.parametrize(
    ("train", "val", "images"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", ("train2017", "val2017")),
        ("annotations/instances_train.json", "annotations/instances_val.json", ("images/train", "images/val")),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", ("train", "valid")),
        ("train.json", "val.json", ("train", "val")),
    ],
)
def test_coco_splits_are_where_the_owners_put_them(tmp_path, train, val, images):
    """The images of both splits have the same names; categories with other ids in val are still the same classes."""
    write_coco(tmp_path / train, [(0, 7, [ROAD])], count=1, folder=tmp_path / images[0])
    write_coco(tmp_path / val, [(0, 3, [TREE])], 2, [(3, "tree"), (5, "road")], folder=tmp_path / images[1])
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations/captions_val2017.json").write_text("[]")
    training, validation, labels = load_data(train_dir=str(tmp_path))
    assert (len(training), len(validation), labels.names) == (1, 2, ("background", "road", "tree"))
    assert np.array_equal(training[0]["label"], drawn((1, ROAD)))
    assert np.array_equal(validation[0]["label"], drawn((2, TREE))) and not validation[1]["label"].any()
    for split, dataset in zip(images, (training, validation)):
        assert dataset.files(0)[0] == str(tmp_path / split / "0.jpg")


def test_coco_file_alone_and_classes_by_name(tmp_path):
    """classes.json beside it says other ids; what nothing covers is ignored where no class is the background."""
    file = write_coco(tmp_path / "labels.json", [(0, 7, [ROAD]), (1, 9, [TREE])], 2, folder=tmp_path / "data")
    assert [mask.max() for mask in masks_of(file)] == [1, 2]
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": [{"id": 4, "name": "Tree"}, {"id": 8, "name": "road"}]})
    )
    train, validation, labels = load_data(train_dir=str(file), train_val_split=0.5, check=False)
    assert labels.names == ("Tree", "road")
    found = {item["name"][-5]: item["label"] for part in (train, validation) for item in part}
    assert np.array_equal(found["0"], np.where(drawn((1, ROAD)), 1, 255))
    assert np.array_equal(found["1"], np.where(drawn((1, TREE)), 0, 255))
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "road"}]})
    )
    with pytest.raises(ValueError, match=r"labels\.json: 'tree' is none of the classes background, road"):
        load_data(train_dir=str(file))


def test_images_of_a_file_without_a_split_are_rather_not_in_a_folder_for_one(tmp_path):
    write_coco(tmp_path / "labels.json", [(0, 7, [ROAD])], 1, folder=tmp_path / "various")
    picture(tmp_path / "train/0.jpg")
    assert find_layout(tmp_path).records("train")[0][0] == str(tmp_path / "various/0.jpg")


def test_coco_leaves_roboflows_root_category_out(tmp_path):
    file = write_coco(tmp_path / "_annotations.coco.json", [(0, 1, [ROAD])], 1)
    content = json.loads(file.read_text())
    names = (("things", "none"), ("road", "things"), ("tree", "things"))
    content["categories"] = [{"id": i, "name": n, "supercategory": above} for i, (n, above) in enumerate(names)]
    file.write_text(json.dumps(content))
    assert find_layout(tmp_path).labels.names == ("background", "road", "tree")
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert find_layout(tmp_path).labels.names == ("background", "things", "road", "tree")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0].update(segmentation=[]),
            r"1 of 1 annotations have no segmentation, but boxes .*id 0",
        ),
        (lambda c: c["annotations"][0].pop("segmentation"), "have no segmentation"),
        (
            lambda c: c["annotations"][0].update(category_id=5),
            "annotation 1 .* has the category_id 5, but the ids are 7, 9",
        ),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 1 .* has the image_id 5, but the ids are 100"),
        (lambda c: c["images"].append(c["images"][0]), "images have the same id"),
        (lambda c: c["categories"].append(c["categories"][0]), "categories have the same id"),
        (lambda c: c["categories"][0].update(id="a"), "not COCO's JSON"),
        (lambda c: c["images"][0].pop("file_name"), "the key 'file_name' is missing"),
        (lambda c: c["images"][0].update(file_name="x.jpg"), r"its first image x\.jpg is neither in"),
        (lambda c: c["images"].append({"id": 1, "file_name": "x.jpg"}), r"1 of 2 images are not in .*: x\.jpg"),
        (lambda c: c["images"].clear(), r"annotation 1 \(id 0\) has the image_id 100, but the ids are none"),
        (
            lambda c: c["images"].append({"id": 1, "file_name": "./0.jpg"}),
            "images 100 and 1 have the same file_name, 0.jpg",
        ),
        (lambda c: c["categories"][1].update(name="Road "), "categories 7 and 9 have one name, 'road' and 'Road '"),
        (lambda c: c["categories"][1].update(name=""), "category 9 has the name ''"),
        (lambda c: c["categories"][1].update(name=None), "category 9 has the name None"),
        (lambda c: c["annotations"].append(3), "not COCO's JSON"),
    ],
)
def test_wrong_coco_is_refused(tmp_path, change, message):
    file = write_coco(tmp_path / "instances.json", [(0, 7, [ROAD])], 1)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"instances\.json: .*{message}"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], r"\[1, 2, 3, 4\] is no polygon"),
        ({"size": [3, 4], "counts": [12]}, r"a shape of \(3, 4\) pixels in an image of \(12, 20\)"),
        ({"size": list(SIZE), "counts": [7]}, "the runs cover 7 pixels, the mask has 12 x 20"),
        ({"counts": [7]}, "KeyError.'size'"),
        ({"size": list(SIZE), "counts": [-1, 241]}, "counts has -1, but runs are whole numbers from 0 on"),
        ({"size": list(SIZE), "counts": [0.5, 239.5]}, r"counts has 0\.5, but"),
        ({"size": list(SIZE), "counts": None}, "counts has None, but"),
        ("abc", "is no polygon"),
    ],
)
def test_wrong_objects_name_file_and_image(tmp_path, segmentation, message):
    write_coco(tmp_path / "instances.json", [(0, 7, segmentation)], 2)
    with pytest.raises(
        ValueError, match=rf"- .*instances\.json, mask of 0\.jpg: the mask cannot be drawn: .*{message}"
    ):
        load_data(train_dir=str(tmp_path), train_val_split=0.5)


def test_masks_travel_to_other_processes_undrawn(tmp_path):
    """Where workers are started anew, and not forked, records are pickled."""
    write_coco(tmp_path / "coco/instances.json", [(0, 7, [ROAD])], 1)
    write_yolo(tmp_path / "yolo")
    picture(tmp_path / "labelme/a.jpg")
    write_labelme(tmp_path / "labelme/a.json", ("road", "polygon", points(ROAD)))
    picture(tmp_path / "kaggle/a.jpg")
    (tmp_path / "kaggle/train.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,road,1 5\n")
    for name in ("coco", "yolo", "labelme", "kaggle"):
        layout = find_layout(tmp_path / name)
        ((_, mask), *_) = layout.records("train")
        copy = pickle.loads(pickle.dumps(mask))
        assert np.asarray(copy).any() and np.array_equal(copy, mask) and copy.path == mask.path
        assert len(pickle.dumps(mask)) < 1500


def test_several_coco_files_are_in_doubt(tmp_path):
    for name in ("instances_a.json", "instances_b.json"):
        write_coco(tmp_path / name, [(0, 7, [ROAD])], 1)
    with pytest.raises(ValueError, match=r"which of .*instances_a\.json, .*instances_b\.json counts"):
        find_layout(tmp_path)
    (tmp_path / "instances_b.json").rename(tmp_path / "instances_train.json")
    with pytest.raises(ValueError, match=r"instances_a\.json says no split, other files do"):
        find_layout(tmp_path)


# --- labelme ----------------------------------------------------------------------------------------------------------


def points(rectangle):
    return np.array(rectangle).reshape(-1, 2).tolist()


def write_labelme(file, *shapes, **more):
    """`shapes`: (label, kind, points) or (label, kind, points, more of it)."""
    shapes = [{"label": s[0], "shape_type": s[1], "points": s[2], **(s[3] if s[3:] else {})} for s in shapes]
    content = {"shapes": shapes, "imagePath": file.stem + ".jpg", "imageData": None}
    content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1]} | more
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_labelme_shapes_of_all_kinds(tmp_path):
    """Classes in the order of the alphabet; a circle has the pixels within the radius, to half a pixel."""
    for stem in "abcde":
        picture(tmp_path / f"{stem}.jpg")
    write_labelme(tmp_path / "a.json", ("tree", "polygon", points(TREE)), ("road", "rectangle", [[4, 2], [14, 10]]))
    write_labelme(tmp_path / "b.json", ("road", "circle", [[10, 6], [14, 6]]), imageHeight=None)
    pixels = np.array([[1, 0, 1], [0, 1, 1]], bool)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    shape = ("tree", "mask", [[5, 4], [7, 5]], {"mask": base64.b64encode(file.getvalue()).decode()})
    write_labelme(tmp_path / "c.json", shape, imagePath="..\\photos\\c.jpg")
    write_labelme(tmp_path / "d.json", ("road", "polygon", points(ROAD)), ("__ignore__", "polygon", points(TREE)))
    train, validation, labels = load_data(train_dir=str(tmp_path), train_val_split=0.25)
    assert labels.names == ("background", "road", "tree") and len(train) + len(validation) == 4  # e has no annotations
    found = {item["name"][-6]: item["label"] for part in (train, validation) for item in part}
    assert np.array_equal(found["a"], drawn((2, TREE), (1, ROAD)))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    distance = np.hypot(y - 6, x - 10)
    assert (found["b"][distance < 3.5] == 1).all() and not found["b"][distance > 4.5].any()
    expected = np.zeros(SIZE, int)
    expected[4:6, 5:8] = 2 * pixels
    assert np.array_equal(found["c"], expected)
    assert np.array_equal(found["d"], drawn((1, ROAD), (255, TREE)))


@pytest.mark.parametrize(
    "form", ["{split}/{stem}{suffix}", "{split}/{kind}/{stem}{suffix}", "{kind}/{split}/{stem}{suffix}"]
)
def test_labelme_in_splits_and_in_folders_of_its_own(tmp_path, form):
    for split in ("train", "val"):
        for stem in ("one", "two"):
            picture(tmp_path / form.format(split=split, kind="images", stem=stem, suffix=".jpg"))
            file = tmp_path / form.format(split=split, kind="json", stem=stem, suffix=".json")
            write_labelme(file, ("road", "polygon", points(ROAD if split == "train" else TREE)))
    train, validation, labels = load_data(train_dir=str(tmp_path))
    assert (len(train), len(validation), labels.names) == (2, 2, ("background", "road"))
    assert np.array_equal(train[1]["label"], drawn((1, ROAD)))
    assert np.array_equal(validation[1]["label"], drawn((1, TREE)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"shapes": [{"label": "a", "shape_type": "line", "points": []}]}',
            "shape 1, a, is a line, which has no inside",
        ),
        ('{"shapes": [{"shape_type": "polygon", "points": []}]}', "shape 1 has no label"),
        ('{"shapes": [{"label": "Road ", "points": []}]}', "the label 'Road ' is 'road' in .*a.json; write them alike"),
        (b'{"shapes": [], "x": "\xdf"}', r"not labelme's JSON \('utf-8' codec can't decode byte 0xdf"),
        ('{"shapes": [3]}', "its shapes are no list of objects"),
        ('{"shapes": []', "not labelme's JSON"),
        ("[]", "not labelme's JSON"),
    ],
)
def test_wrong_labelme_is_refused(tmp_path, content, message):
    for stem in "ab":
        picture(tmp_path / f"{stem}.jpg")
        write_labelme(tmp_path / f"{stem}.json", ("road", "polygon", points(ROAD)))
    (tmp_path / "b.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"b\.json: .*{message}"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    ("kind", "points", "more", "message"),
    [
        ("circle", [[1, 1], [2, 2], [3, 3]], {}, r"shape 1, road, circle: .* are not its two points"),
        ("rectangle", [[5, 0], [9, 4], [5, 8], [1, 4]], {}, "shape 1, road, rectangle: .* are not its two points"),
        ("polygon", None, {}, 'shape 1, road, polygon: its "points" are missing'),
        ("polygon", [[1, 1], [2, 2]], {}, "shape 1, road, polygon: .* is no polygon"),
        ("mask", [[1, 1], [2, 2]], {"mask": "xx"}, "shape 1, road, mask: its mask is no picture in base64"),
        ("mask", [[1, 1], [2, 2]], {"mask": "abcd"}, "shape 1, road, mask: its mask is no picture in base64"),
    ],
)
def test_wrong_shapes_of_labelme_name_file_and_shape(tmp_path, kind, points, more, message):
    picture(tmp_path / "a.jpg")
    write_labelme(tmp_path / "a.json", ("road", kind, points, more))
    with pytest.raises(ValueError, match=rf"a\.json: the mask cannot be drawn: {message}"):
        masks_of(tmp_path)
    write_labelme(tmp_path / "a.json", ("road", kind, points, more), imageHeight="x")
    with pytest.raises(ValueError, match=r"a\.json: .*imageHeight or imageWidth is 'x'; write a whole number"):
        masks_of(tmp_path)


def test_labelme_rectangles_may_have_four_corners(tmp_path):
    picture(tmp_path / "a.jpg")
    write_labelme(tmp_path / "a.json", ("road", "rectangle", points(ROAD)))
    assert np.array_equal(masks_of(tmp_path)[0], drawn((1, ROAD)))


def test_labelme_without_its_image_is_refused(tmp_path):
    picture(tmp_path / "a.jpg")
    write_labelme(tmp_path / "a.json", ("road", "polygon", points(ROAD)))
    write_labelme(tmp_path / "b.json", ("road", "polygon", points(ROAD)))
    with pytest.raises(ValueError, match=r"b\.json: its image is neither beside it nor where imagePath says"):
        find_layout(tmp_path)
    (tmp_path / "b.json").unlink()
    write_labelme(tmp_path / "a.json", ("_background_", "polygon", points(ROAD)))
    with pytest.raises(ValueError, match="hold no shapes of any class"):
        find_layout(tmp_path)


def test_folders_that_are_drawn_by_name_need_not_show_the_same_classes(tmp_path):
    """Ids are those of all names, or of the class file that one of them has; a name that it lacks is an error."""
    for folder, name in (("train", "tree"), ("val", "road")):
        picture(tmp_path / folder / "a.jpg")
        write_labelme(tmp_path / folder / "a.json", (name, "polygon", points(ROAD)))
    folders = {"train_dir": str(tmp_path / "train"), "validation_dir": str(tmp_path / "val")}
    train, validation, labels = load_data(**folders)
    assert labels.names == ("background", "tree", "road")
    assert [part[0]["label"].max() for part in (train, validation)] == [1, 2]
    (tmp_path / "train/id2label.json").write_text('["background", "road", "car", "tree"]')
    train, validation, labels = load_data(**folders)
    assert [part[0]["label"].max() for part in (train, validation)] == [3, 1] and labels.num_labels == 4
    (tmp_path / "train/id2label.json").write_text('["background", "tree"]')
    with pytest.raises(ValueError, match="val: 'road' is none of the classes background, tree"):
        load_data(**folders)
    (tmp_path / "train/id2label.json").write_text('["background", "tree", "car"]')
    with pytest.raises(ValueError, match="the ids of labelme's annotations in .*val are known; omit do_reduce_labels"):
        load_data(**folders, do_reduce_labels=True)


# --- YOLO -------------------------------------------------------------------------------------------------------------


def yolo_line(number, rectangle):
    return " ".join([str(number), *map(str, (np.array(rectangle).reshape(-1, 2) / SIZE[::-1]).ravel())])


def write_yolo(root, train="images/train", val="images/val", config=()):
    for place, stems in ((train, ("a", "b")), (val, ("c",))):
        for stem in stems:
            picture(root / place / f"{stem}.jpg")
            file = root / place.replace("images", "labels") / f"{stem}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yolo_line(1, TREE) + "\n\n" + yolo_line(0, ROAD) + "\n")
    content = {"train": train, "val": val, "names": ["road", "tree"]} | dict(config)
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root


@pytest.mark.parametrize(
    ("places", "config"),
    [
        (("images/train", "images/val"), {"path": "/content/somewhere/else", "names": {0: "road", 1: "tree"}}),
        (
            ("train/images", "valid/images"),
            {"train": "../train/images", "val": "../valid/images", "test": "../test/images"},
        ),
        (("images/train", "images/val"), {"train": ["images/train"], "path": "."}),
        (("train", "val"), {}),  # labels beside the images
    ],
)
def test_yolo_draws_smaller_objects_on_larger_ones(tmp_path, places, config):
    train, validation, labels = load_data(train_dir=str(write_yolo(tmp_path, *places, config)))
    assert (len(train), len(validation), labels.names) == (2, 1, ("background", "road", "tree"))
    for item in (*train, *validation):
        assert np.array_equal(item["label"], drawn((1, ROAD), (2, TREE)))
    assert load_data(train_dir=str(tmp_path / "data.yaml"))[2] == labels


def test_yolo_lists_of_images_and_images_without_annotations(tmp_path, caplog):
    write_yolo(tmp_path, train="train.txt")
    picture(tmp_path / "images/train/d.jpg")
    for stem in "ab":
        (tmp_path / f"train.txt/{stem}.jpg").rename(tmp_path / f"images/train/{stem}.jpg")
        (tmp_path / f"train.txt/{stem}.txt").rename(tmp_path / f"images/train/{stem}.txt")
    shutil.rmtree(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n./images/train/b.jpg\n./images/train/d.jpg\n")
    with caplog.at_level(logging.INFO):
        train, _, _ = load_data(train_dir=str(tmp_path))
    assert [bool(item["label"].any()) for item in train] == [True, True, False]
    assert "1 of them have no file of annotations and are background" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1 is a box, which is no outline"),
        ("0 0.5 0.5 0.2 0.2 0.1", "line 1 has 5 coordinates"),
        ("2 0.1 0.1 0.2 0.2 0.3 0.1", r"line 1 has class 2, but there are 0 \.\. 1"),
        ("0 10 10 20 20 30 10", r"line 1 has coordinates outside 0 \.\. 1"),
        ("0 nan 0.1 0.2 0.2 0.3 0.1", r"line 1 has coordinates outside 0 \.\. 1"),
        ("road 0.1 0.1 0.2 0.2 0.3 0.1", "line 1, 'road 0.1 .*', holds more than numbers"),
    ],
)
def test_wrong_lines_of_yolo_are_refused(tmp_path, line, message):
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(line)
    with pytest.raises(ValueError, match=rf"labels/train/a\.txt.*{message}"):
        load_data(train_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"names": {"a": "road"}}, "names must be a list, or have numbers as keys, not 'a'"),
        ({"names": [None, "b"]}, "the name None is no text"),
        ({"names": ["road", "road"]}, "'road' is there more than once"),
        ({"nc": 3}, "nc is 3, but there are 2 names"),
        ({"train": "nowhere", "val": "nowhere"}, "there are no images where train, val and test say"),
        ({"train": "bare"}, "none of the 1 images of train has a file of annotations, such as .*bare/x.txt"),
        ({"train": "list.txt"}, r"1 of 1 images of train are not there: .*y\.jpg"),
    ],
)
def test_wrong_yolo_is_refused(tmp_path, config, message):
    write_yolo(tmp_path)
    content = yaml.safe_load((tmp_path / "data.yaml").read_text()) | config
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    picture(tmp_path / "bare/x.jpg")
    (tmp_path / "list.txt").write_text("y.jpg")
    with pytest.raises(ValueError, match=rf"data\.yaml: .*{message}"):
        find_layout(tmp_path)


def test_yolo_files_that_belong_to_no_image_are_refused(tmp_path):
    write_yolo(tmp_path, config={"nc": 2})
    labels, images = tmp_path / "labels/train", tmp_path / "images/train"
    (labels / "classes.txt").write_text("road\ntree\n")
    (labels / "a.txt").rename(labels / "a.TXT")
    expected = [drawn((1, ROAD), (2, TREE))] * 2
    assert np.array_equal(masks_of(tmp_path, "train"), expected)
    (tmp_path / "train.txt").write_text("images/train/a.jpg")  # the others have an image, which is not used
    write_yolo(tmp_path / "listed", config={"train": "../train.txt"})
    assert len(masks_of(tmp_path / "listed", "train")) == 1
    picture(images / "a.png")
    with pytest.raises(ValueError, match=r"data\.yaml: .*a\.TXT belongs to .*a\.jpg and to .*a\.png"):
        find_layout(tmp_path)
    (images / "a.png").unlink()
    (labels / "a.TXT").rename(labels / "0a.txt")
    with pytest.raises(
        ValueError, match=r"1 files of annotations .* no image: .*0a\.txt; 1 images have none: .*a\.jpg"
    ):
        find_layout(tmp_path)
    (images / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"data\.yaml: 1 files of annotations .* no image: .*0a\.txt; an image and"):
        find_layout(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [Straße]\ntrain: images/train", encoding="latin-1")
    with pytest.raises(ValueError, match=r"data\.yaml: .*save it as UTF-8"):
        find_layout(tmp_path)


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_result(folder, writer, image, name, label_map):
    content = writer.add(image, name, label_map)
    assert (content is None) == (writer.file(name) is None)
    if content is not None:
        (folder / writer.file(name)).parent.mkdir(parents=True, exist_ok=True)
        (folder / writer.file(name)).write_bytes(content)


def write_results(folder, writer):
    for name, content in writer.finish().items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("writer", [CocoWriter, LabelmeWriter, YoloWriter])
@pytest.mark.parametrize("background", ["background", "earth"])
def test_what_is_written_is_read_as_the_same_label_map(tmp_path, writer, background):
    """Holes, islands in holes and pixels that touch at corners; without a class "background" all are written."""
    random = np.random.default_rng(0)
    names = {0: background, 1: "road", 2: "tree", 3: "sky"}
    maps = {}
    writing = writer(tmp_path, names)
    for number, scale in enumerate((1, 3, 7, 40)):
        label_map = np.kron(random.integers(0, 4, (23, 31)), np.ones((scale, scale), int))[: 20 + number, : 30 - number]
        maps[f"{number}"] = label_map
        file = tmp_path / f"{'images/' if writer is YoloWriter else ''}{number}.png"
        picture(file, label_map.shape)
        write_result(tmp_path, writing, file, f"{number}", label_map)
    write_results(tmp_path, writing)
    (tmp_path / "id2label.json").write_text(json.dumps(names))
    train, validation, labels = load_data(train_dir=str(tmp_path), train_val_split=0.25)
    assert labels.names == (background, "road", "tree", "sky")
    found = set()
    for dataset in (train, validation):
        for index in range(len(dataset)):
            stem = dataset.files(index)[0].rpartition("/")[2][0]
            assert np.array_equal(dataset[index]["label"], maps[stem])
            found.add(stem)
    assert sorted(found) == sorted(maps)


def test_coco_can_be_read_by_cocos_tools(tmp_path):
    """Each annotation's pixels, area and box as pycocotools computes them; their union is the label map."""
    coco = pytest.importorskip("pycocotools.coco")
    label_map = np.kron(np.random.default_rng(0).integers(0, 3, (9, 11)), np.ones((3, 2), int))
    writer = CocoWriter(tmp_path, {0: "background", 1: "road", 2: "tree"})
    write_result(tmp_path, writer, "photos/a.jpg", "a", label_map)
    write_results(tmp_path, writer)
    read = coco.COCO(str(tmp_path / "annotations.coco.json"))
    assert [image["file_name"] for image in read.loadImgs(read.getImgIds())] == ["a.jpg"]
    found = np.zeros_like(label_map)
    for annotation in read.loadAnns(read.getAnnIds()):
        mask = read.annToMask(annotation)
        y, x = np.nonzero(mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        assert not found[mask > 0].any()
        found += mask * (annotation["category_id"] - 1)
    assert np.array_equal(found, label_map)


def test_ignored_pixels_are_written_where_the_format_can_say_so(tmp_path):
    label_map = np.array([[0, 255, 1, 1]] * 4)
    picture(tmp_path / "a.png", label_map.shape)
    writer = LabelmeWriter(tmp_path, {0: "background", 1: "road"}, ignored={255})
    write_result(tmp_path, writer, tmp_path / "a.png", "a", label_map)
    assert np.array_equal(masks_of(tmp_path)[0], label_map)
    for kind in (CocoWriter, YoloWriter):
        writer = kind(tmp_path, {0: "background", 1: "road"}, ignored={255})
        content = writer.add(tmp_path / "a.png", "deep/a", label_map) or writer.finish()["annotations.coco.json"]
        assert content.count(b"\n") == 1 or len(json.loads(content)["annotations"]) == 1


@pytest.mark.parametrize("form", ["coco", "labelme", "yolo"])
def test_the_command_predicts_what_is_then_read(tmp_path, form, capsys):
    """Outlines hold the class ids that are in the PNG; a file that was corrected since is not replaced."""
    names = dict(enumerate(["background", "road", "tree", "sky"]))
    config = SegFormerConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16, id2label=names
    )
    model = SegFormerForSemanticSegmentation(config)
    model.decode_head.classifier.weight.data.mul_(50)  # so that several classes are predicted
    model.save_pretrained(tmp_path / "model")
    SegFormerImageProcessor(do_resize=False).save_pretrained(tmp_path / "model")
    photos, output = tmp_path / "photos", tmp_path / "out"
    for name in ("a.png", "deep/b.png", "deep/c.jpg"):
        picture(photos / name, (40, 56))
    command = ["predict", str(tmp_path / "model"), str(photos), "--output_dir", str(output), "--format", form]
    assert main(command) == 0
    root = photos if form == "coco" else output
    if form == "coco":
        shutil.copy(output / "annotations.coco.json", root)
    elif form == "yolo":
        shutil.copytree(photos, output / "images")
    (root / "id2label.json").write_text(json.dumps(names))
    dataset = load_data(train_dir=str(root), train_val_split=0.4, check=False)[0]
    assert len(dataset) == 2
    for index in range(2):
        file = dataset.files(index)[0]
        (written,) = output.rglob(f"{file.rpartition('/')[2].rpartition('.')[0]}_labels.png")
        assert np.array_equal(dataset[index]["label"], np.asarray(Image.open(written)))
    corrected = next(output.rglob({"coco": "*.coco.json", "labelme": "b.json", "yolo": "b.txt"}[form]))
    corrected.write_text("corrected")
    capsys.readouterr()
    assert (
        main(command) != 0 and "which exists and was not written by hf_segtx, or was changed" in capsys.readouterr().err
    )
    assert corrected.read_text() == "corrected"
