"""The class tables against the owners' lists: by SHA-256 of the list where it is long, else typed here from it."""

import hashlib

import numpy as np
import pytest

from hf_segtx.data.label_tables import ADE20K_FULL, PASCAL_CONTEXT_459, TABLES
from hf_segtx.data.labels import Labels


def sha256(lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def mapped(name, raw_ids, dtype=np.uint8):
    return Labels.named(name).map(np.array([raw_ids], dtype))[0].tolist()


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("ade20k", 150),
        ("camvid", 11),
        ("cityscapes", 19),
        ("cityscapes_train_ids", 19),
        ("coco_stuff_10k", 171),
        ("coco_stuff_164k", 171),
        ("lip", 20),
        ("loveda", 7),
        ("pascal_context_59", 59),
        ("pascal_context_59_mmsegmentation", 59),
        ("pascal_context_60", 60),
        ("pascal_context_60_mmsegmentation", 60),
        ("voc", 21),
    ],
)
def test_every_table_has_its_classes_and_ignores_255(name, classes):
    labels = Labels.named(name)
    assert labels.num_labels == classes and labels.ignore_index == 255
    assert mapped(name, [255]) == [255]
    assert set(labels.mapping.values()) == {*range(classes), 255}  # every class has a value in the masks
    assert max(labels.mapping) == 255  # which have 8 bits


def test_all_tables_are_listed_above_and_unknown_ones_refused():
    assert len(TABLES) == 13
    with pytest.raises(ValueError, match="'city'.* cityscapes,"):
        Labels.named("city")
    assert Labels.from_file("voc") == Labels.named("voc")  # as --classes_file


def test_ade20k_matches_object_info_and_colors():
    """First synonyms of objectInfo150.txt, and the bytes of color150.mat, column by column."""
    labels = Labels.named("ade20k")
    names = ["television" if name == "television receiver" else name for name in labels.names]
    assert sha256(names) == "ffd47f2fcbad6c484a3e320702ff1278dae14e78d443d81987142210b70c5032"
    colors = np.array(labels.palette, np.uint8).tobytes("F")
    assert hashlib.sha256(colors).hexdigest() == "18d10c0044e76ce4eb008da8d2a137722aad929a6d26758db1c2d441a2708b53"
    assert mapped("ade20k", [0, 1, 150]) == [255, 0, 149]


def test_full_ade20k_numbers_match_spots():
    """name_ndx of objects in a file of the full data set (ADE_train_00016869.json)."""
    numbers = dict(zip(Labels.named("ade20k").names, ADE20K_FULL.split()))
    spots = {"traffic light": 2836, "car": 401, "building": 312, "tree": 2855, "sidewalk": 2377, "person": 1831}
    assert {name: int(numbers[name]) for name in spots} == spots
    assert numbers["door"] == "774+783"  # "door" and "double door" are one class


def test_cityscapes_matches_labels_py():
    """Rows "id trainId red green blue name" of the evaluated classes; every other id is ignored."""
    labels = Labels.named("cityscapes")
    ids = {train_id: raw for raw, train_id in labels.raw_to_train.items() if train_id != 255}
    rows = [
        f"{ids[train_id]} {train_id} {' '.join(map(str, labels.palette[train_id]))} {name}"
        for train_id, name in enumerate(labels.names)
    ]
    assert sha256(rows) == "45032c00e87b5599bdd283c65432289f9772e16ed109e37a4f1ab9f2b24a39db"
    assert mapped("cityscapes", [0, 9, 29, 34 - 1]) == [255, 255, 255, 18]
    with pytest.raises(ValueError, match="value 34"):
        mapped("cityscapes", [34])
    assert mapped("cityscapes_train_ids", [0, 18]) == [0, 18]


def test_coco_stuff_matches_labels_txt():
    """Together with the eleven things that no mask has, the names are the owners' file, byte by byte."""
    absent = {12: "street sign", 26: "hat", 29: "shoe", 30: "eye glasses", 45: "plate", 66: "mirror", 68: "window"}
    absent |= {69: "desk", 71: "door", 83: "blender", 91: "hair brush"}
    labels = Labels.named("coco_stuff_10k")
    numbers = {raw: labels.names[train_id] for raw, train_id in labels.raw_to_train.items() if raw}
    lines = [f"{number}: {name}" for number, name in sorted({0: "unlabeled", **numbers, **absent}.items())]
    assert sha256([*lines, ""]) == "53c59b920927b215690b4ba5aef4ed4794e5e4b278f9e67d7e633ddbfad9b830"
    values = np.arange(183)
    both = [number for number in values if number and number not in absent]
    assert mapped("coco_stuff_10k", both) == mapped("coco_stuff_164k", [number - 1 for number in both]) == [*range(171)]
    assert mapped("coco_stuff_10k", [0]) == [255]
    with pytest.raises(ValueError, match="value 254"):
        mapped("coco_stuff_164k", [254])


def test_pascal_context_matches_the_order_of_459_names():
    """The 459 names of the original masks are in the alphabet's order, so their numbers sort the 59 names, too."""
    labels = Labels.named("pascal_context_59")
    numbers = [int(number) for number in PASCAL_CONTEXT_459.split()]
    assert [name for _, name in sorted(zip(numbers, labels.names))] == sorted(labels.names)
    # the numbers of PASCAL in Detail's 59 classes, as public code for it lists them
    detail = """
        2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98
        104 105 113 115 144 158 159 162 187 189 207 220 232 258 259 260 284 295 296 308
        324 326 347 349 354 355 360 366 368 397 415 416 420 424 427 440 445 454 458
    """
    assert sorted(numbers) == [int(number) for number in detail.split()]
    voc = [name.replace("diningtable", "table") for name in Labels.named("voc").names]
    with_background = Labels.named("pascal_context_60")
    assert with_background.names[:21] == tuple(voc) and with_background.palette[:21] == Labels.named("voc").palette
    assert mapped("pascal_context_59", [0, 1, 59]) == [255, 0, 58] and mapped("pascal_context_60", [0, 59]) == [0, 59]


def test_mmsegmentations_pascal_context_matches_its_list():
    """First and last names of mmseg/datasets/pascal_context.py; the same masks mean the same names in both orders."""
    for count in (59, 60):
        own, theirs = (Labels.named(f"pascal_context_{count}{end}") for end in ("", "_mmsegmentation"))
        shown = theirs.names[count - 59 :]
        assert shown[:4] == ("aeroplane", "bag", "bed", "bedclothes") and shown[-3:] == ("water", "window", "wood")
        assert list(shown) == sorted(own.names[count - 59 :])
        raws = np.arange(60)[None]
        for a, b in zip(own.map(raws)[0].tolist(), theirs.map(raws)[0].tolist(), strict=True):
            assert (a, b) == (255, 255) or own.names[a] == theirs.names[b] and own.palette[a] == theirs.palette[b]


def test_voc_matches_its_color_map():
    """Colours of the devkit's VOClabelcolormap, as in the palette of its PNG files."""
    labels = Labels.named("voc")
    spots = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "car": (128, 128, 128), "person": (192, 128, 128)}
    spots |= {"cat": (64, 0, 0), "diningtable": (192, 128, 0), "sheep": (128, 64, 0), "tvmonitor": (0, 64, 128)}
    assert {name: labels.palette[labels.label2id[name]] for name in spots} == spots
    assert labels.map(np.array([[(192, 128, 128), (224, 224, 192)]], np.uint8)).tolist() == [[15, 255]]


def test_lip_matches_the_authors_colors():
    labels = Labels.named("lip")
    colors = {"Background": (0, 0, 0), "UpperClothes": (255, 85, 0), "Scarf": (52, 86, 128), "RightShoe": (255, 170, 0)}
    ids = {"Background": 0, "UpperClothes": 5, "Scarf": 11, "RightShoe": 19}  # LIP_JPPNet, utils/utils.py
    plain = [name.replace("-", "").lower() for name in labels.names]
    for name, number in ids.items():
        assert plain[number] == name.lower() and labels.palette[number] == colors[name]
    assert mapped("lip", [*range(20)]) == [*range(20)]


def test_loveda_matches_its_color_map():
    """LoveDA's data/loveda.py; the masks count from 1."""
    labels = Labels.named("loveda")
    names = "background building road water barren forest agricultural".split()
    assert labels.names == tuple(names) and labels.palette[4] == (159, 129, 183)
    assert mapped("loveda", [0, 1, 7]) == [255, 0, 6]


def test_camvid_matches_its_label_colors():
    """label_colors.txt of CamVid, and which of the 32 SegNet makes one class."""
    colors = """
        64 128 64 Animal; 192 0 128 Archway; 0 128 192 Bicyclist; 0 128 64 Bridge; 128 0 0 Building; 64 0 128 Car;
        64 0 192 CartLuggagePram; 192 128 64 Child; 192 192 128 Column_Pole; 64 64 128 Fence; 128 0 192 LaneMkgsDriv;
        192 0 64 LaneMkgsNonDriv; 128 128 64 Misc_Text; 192 0 192 MotorcycleScooter; 128 64 64 OtherMoving;
        64 192 128 ParkingBlock; 64 64 0 Pedestrian; 128 64 128 Road; 128 128 192 RoadShoulder; 0 0 192 Sidewalk;
        192 128 128 SignSymbol; 128 128 128 Sky; 64 128 192 SUVPickupTruck; 0 0 64 TrafficCone; 0 64 64 TrafficLight;
        192 64 128 Train; 128 128 0 Tree; 192 128 192 Truck_Bus; 64 0 64 Tunnel; 192 192 0 VegetationMisc;
        0 0 0 Void; 64 192 0 Wall
    """
    merged = {
        "Sky": "Sky",
        "Building": "Archway Bridge Building Tunnel Wall",
        "Pole": "Column_Pole TrafficCone",
        "Road": "LaneMkgsDriv LaneMkgsNonDriv Road",
        "Pavement": "ParkingBlock RoadShoulder Sidewalk",
        "Tree": "Tree VegetationMisc",
        "SignSymbol": "Misc_Text SignSymbol TrafficLight",
        "Fence": "Fence",
        "Car": "Car OtherMoving SUVPickupTruck Train Truck_Bus",
        "Pedestrian": "Animal CartLuggagePram Child Pedestrian",
        "Bicyclist": "Bicyclist MotorcycleScooter",
    }
    labels = Labels.named("camvid")
    assert labels.names == tuple(merged)
    train_ids = {name: train_id for train_id, names in enumerate(merged.values()) for name in names.split()}
    rows = [row.split() for row in colors.split(";")]
    assert len(rows) == 32
    pixels = np.array([[[int(value) for value in row[:3]] for row in rows]], np.uint8)
    assert labels.map(pixels)[0].tolist() == [train_ids.get(row[3], 255) for row in rows]
    assert mapped("camvid", [*range(12)]) == [*range(11), 255]
