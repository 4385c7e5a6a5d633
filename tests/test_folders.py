"""Folders of images and masks as people name them: pairs and splits, and what is refused."""

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image
from small_data import write_folder

from hf_segtx.data import load_data
from hf_segtx.data.files import files_below, split_of, upright_size
from hf_segtx.data.folders import folder_records
from hf_segtx.data.layouts import find_layout


NAMES = ("background", "road", "tree")
COLORS = np.array([(0, 0, 0), (128, 64, 128), (0, 128, 0)], np.uint8)
MASK = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3


def save(file, array=None):
    array = (
        np.random.default_rng(len(str(file))).integers(0, 256, (6, 8, 3)).astype(np.uint8) if array is None else array
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def write(root, images="images/{}.jpg", masks="masks/{}.png", stems="abcd", classes=True):
    for stem in stems:
        save(root / images.format(stem))
        save(root / masks.format(stem), MASK)
    if classes:
        (root / "classes.json").write_text(json.dumps({"classes": [{"id": i, "name": n} for i, n in enumerate(NAMES)]}))
    return root


def pairs(root, split="all"):
    """The paths below the root."""
    return [tuple(os.path.relpath(file, root) for file in pair) for pair in find_layout(root).records(split)]


# --- Pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "said"),
    [
        ("images/{}.jpg", "masks/{}.png", ""),
        ("images/{}.JPG", "masks/{}.PNG", ""),
        ("images/{}.jpg", "masks/{}_mask.png", "the mask of x is called x_mask"),
        ("images/{}.jpg", "masks/{}_label.png", "the mask of x is called x_label"),
        ("images/{}.jpg", "masks/{}-L.png", "the mask of x is called x-L"),
        ("images/{}.jpg", "masks/{}.jpg.png", "the mask of x.jpg is called x.jpg.png"),
        ("images/{}_sat.jpg", "masks/{}_mask.png", "the mask of x_sat is called x_mask"),
        ("images/img_{}.jpg", "masks/mask_{}.png", "the mask of img_x is called mask_x"),
        ("images/{}_leftImg8bit.png", "masks/{}_gtFine_labelIds.png", "x_leftImg8bit is called x_gtFine_labelIds"),
        ("images/Photo_{}.jpg", "masks/photo_{}.png", "without regard to upper and lower case"),
        ("images/DSC{}.JPG", "masks/dsc{}_Mask.png", "the mask of x is called x_mask; names are compared without"),
        ("images/Deep/{}.jpg", "masks/deep/{}.png", "without regard to upper and lower case"),
        ("images/cafe\u0301{}.jpg", "masks/caf\u00e9{}.png", ""),  # as macOS writes it, and all others
    ],
)
def test_one_rule_pairs_all_files(tmp_path, caplog, images, masks, said):
    write(tmp_path, images, masks, stems=("1", "10", "2_3"))
    with caplog.at_level(logging.INFO, "hf_segtx.data.folders"):
        found = pairs(tmp_path)
    assert sorted(found) == sorted((images.format(stem), masks.format(stem)) for stem in ("1", "10", "2_3"))
    assert said in caplog.text and bool(caplog.records) == bool(said)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}.jpg", "masks/{}_2.png"),  # a number says nothing
        ("images/{}.jpg", "masks/{}mask.png"),
        ("images/{}_day.jpg", "masks/{}_night.png"),
        ("images/x{}.jpg", "masks/y{}.png"),
        ("images/a/{}.jpg", "masks/b/{}.png"),
    ],
)
def test_names_that_only_look_alike_are_no_pairs(tmp_path, image, mask):
    write(tmp_path, image, mask)
    with pytest.raises(ValueError, match="4 of 4 files have no mask: .*; an image and its mask have the same name"):
        pairs(tmp_path)


def test_one_pair_says_nothing_about_an_ending_that_is_no_word_for_masks(tmp_path):
    write(tmp_path, masks="masks/{}_night.png", stems="a")
    with pytest.raises(ValueError, match="1 of 1 files have no mask"):
        pairs(tmp_path)
    write(tmp_path, images="more/images/{}.jpg", masks="more/masks/{}_mask.png", stems="a")
    assert len(pairs(tmp_path / "more")) == 1


@pytest.mark.parametrize("other", ["{}_mask.png", "{}_label.png", "{}.jpg.png", "M{}.png"])
def test_mixed_names_are_refused(tmp_path, other):
    write(tmp_path, stems="ab")
    write(tmp_path, masks="masks/" + other, stems="cd")
    with pytest.raises(ValueError, match=r"2 of 4 files have no mask: .*c\.jpg, .*d\.jpg; .*such as _mask"):
        pairs(tmp_path)
    alone = []
    assert len(find_layout(tmp_path).records("all", None, alone)) == 2 and len(alone) == 4


def test_names_that_differ_in_case_only_keep_their_masks(tmp_path):
    write(tmp_path, stems=("a", "A"))
    assert pairs(tmp_path) == [("images/A.jpg", "masks/A.png"), ("images/a.jpg", "masks/a.png")]
    (tmp_path / "masks/A.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 files have no mask: .*A\.jpg"):
        pairs(tmp_path)


def test_whole_names_tell_files_apart_that_differ_in_the_suffix_only(tmp_path):
    for suffix in (".jpg", ".png"):
        write(tmp_path, "images/{}" + suffix, "masks/{}" + suffix + ".png", stems="a")
    assert pairs(tmp_path) == [("images/a.jpg", "masks/a.jpg.png"), ("images/a.png", "masks/a.png.png")]


# --- Splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("train", "val"), ("training", "validation"), ("Train", "valid"), ("train2017", "val2017")]
)
@pytest.mark.parametrize(
    "form",
    [
        "{kind}/{split}/{stem}",
        "{kind}/city/{split}/{stem}",
        "{kind}/{split}/city/{stem}",
        "{split}/{kind}/{stem}",
        "{split}/{kind}/city/{stem}",
        "{split}_{kind}/{stem}",
        "{kind}-{split}/{stem}",
    ],
)
@pytest.mark.parametrize("kinds", [("images", "masks"), ("img_dir", "ann_dir"), ("imgs", "labels"), ("image", "label")])
def test_splits_are_never_mixed(tmp_path, names, form, kinds):
    for split, stems in zip(names, ("abc", "de")):
        image, mask = (form.format(kind=kind, split=split, stem="{}") for kind in kinds)
        write(tmp_path, image + ".jpg", mask + ".png", stems=stems)
    train, validation, labels = load_data(train_dir=str(tmp_path), check=False)
    assert labels.names == NAMES
    for dataset, stems in ((train, "abc"), (validation, "de")):
        assert [dataset.files(index)[0][-5] for index in range(len(dataset))] == list(stems)


def test_other_words_for_a_split_are_the_same_split(tmp_path):
    write(tmp_path, "images/train/{}.jpg", "masks/Training/{}.png", stems="abc")
    write(tmp_path, "images/val/city/{}.jpg", "masks/validation/city/{}.png", stems="de")
    train, validation, _ = load_data(train_dir=str(tmp_path))
    assert (len(train), len(validation)) == (3, 2)


def test_folders_of_any_name_beside_one_of_masks(tmp_path):
    write(tmp_path, "flights/{}.tif", "groundtruth/{}.png")
    (tmp_path / "notes").mkdir()
    assert len(pairs(tmp_path)) == 4
    save(tmp_path / "more/a.png")
    with pytest.raises(ValueError, match="which of flights, more holds the images. Rename the others"):
        find_layout(tmp_path)


def test_validation_alone_and_test_without_masks(tmp_path, caplog):
    write(tmp_path, "images/val/{}.jpg", "masks/val/{}.png")
    save(tmp_path / "images/test/x.jpg")
    _, validation, _ = load_data(validation_dir=str(tmp_path))
    assert len(validation) == 4
    assert find_layout(tmp_path).notes[1] == "the images of test have no masks and are not read"
    with pytest.raises(ValueError, match="there is no split 'train' here; there are validation"):
        load_data(train_dir=str(tmp_path))
    write(tmp_path, "images/train/{}.jpg", "masks/train/{}.png", stems="efghi")
    write(tmp_path, "images/test/{}.jpg", "masks/test/{}.png", stems="x")
    train, validation, _ = load_data(train_dir=str(tmp_path), validation_split="test")
    assert (len(train), len(validation)) == (5, 1)
    with pytest.raises(ValueError, match="there is no split 'tset' here; there are train, validation, test"):
        load_data(train_dir=str(tmp_path), validation_split="tset")


def test_without_validation_a_part_of_training_is_held_out_and_test_is_left(tmp_path):
    for split, stems in (("train", "abcdefghij"), ("test", "xyz")):
        write(tmp_path, f"images/{split}/{{}}.jpg", f"masks/{split}/{{}}.png", stems)
    train, validation, _ = load_data(train_dir=str(tmp_path), train_val_split=0.3)
    assert (len(train), len(validation)) == (7, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["images/z.jpg", "masks/z.png"],
            r"2 files lie in no folder of a split, such as train/ or val/, .*z\.jpg, .*z\.png",
        ),
        (["images/bus/z.jpg", "masks/bus/z.png"], "2 files lie in no folder of a split"),
        (["masks/val/z.png"], "there are masks for validation, but no images"),
        (["annotations/z.png"], r"which of annotations, masks holds the masks. Rename the others, or list the pairs"),
        (["imgs/z.png"], "which of images, imgs holds the images"),
    ],
)
def test_doubts_are_refused(tmp_path, files, message):
    write(tmp_path, "images/train/{}.jpg", "masks/train/{}.png")
    for file in files:
        save(tmp_path / file, MASK)
    with pytest.raises(ValueError, match=message):
        find_layout(tmp_path)


def test_masks_without_splits_beside_images_with_splits_are_refused(tmp_path):
    write(tmp_path, "images/train/{}.jpg", "masks/{}.png")
    with pytest.raises(ValueError, match="4 files lie in no folder of a split"):
        find_layout(tmp_path)


def test_words_for_splits():
    words = {"train": "train", "Training": "train", "val": "validation", "VALID": "validation", "val2017": "validation"}
    words |= {"test_2012": "test", "testing": "test", "trains": None, "evaluation": None, "val2": None, "": None}
    assert {word: split_of(word) for word in words} == words


# --- Masks beside images, class files ---------------------------------------------------------------------------------


def test_roboflows_masks(tmp_path):
    """Ids need not be without gaps; the files of all splits must agree."""
    for split in ("train", "valid", "test"):
        write(tmp_path, f"{split}/{{}}_jpg.rf.0a.jpg", f"{split}/{{}}_jpg.rf.0a_mask.png", classes=False)
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, road\n2, tree\n")
    train, validation, labels = load_data(train_dir=str(tmp_path))
    assert (len(train), len(validation), labels.names) == (4, 4, NAMES)
    assert np.array_equal(validation[0]["label"], MASK)
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, tree\n2, road\n")
    with pytest.raises(ValueError, match="class 1 is 'road' in the data .* 'tree' in .*valid/_classes.csv"):
        load_data(train_dir=str(tmp_path))
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\n1 road\n")
    with pytest.raises(
        ValueError, match=r"_classes\.csv: '1 road' is no class; after the header a line is VALUE, NAME"
    ):
        load_data(train_dir=str(tmp_path))


def test_a_few_words_for_masks_in_names_of_images_do_not_hide_other_annotations(tmp_path):
    for stem in ("a", "b", "c", "blue_mask"):
        save(tmp_path / f"{stem}.jpg")
    with pytest.raises(ValueError, match="there is no folder images or JPEGImages"):
        find_layout(tmp_path)


def own_voc(root, lists=(("train", "abc"), ("val", "d")), stems="abcd", suffix=".jpg"):
    write(root, "JPEGImages/{}" + suffix, "SegmentationClass/{}.png", stems=stems, classes=False)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, listed in lists:
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{stem}\n" for stem in listed))
    return root


def labelmap(root):
    lines = [f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(NAMES, COLORS)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(lines))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_own_data_in_vocs_folders_never_have_vocs_classes(tmp_path, suffix):
    own_voc(tmp_path, suffix=suffix)
    with pytest.raises(ValueError, match="no class names: neither .* write one of them"):
        load_data(train_dir=str(tmp_path))
    labelmap(tmp_path)
    for mask in (MASK, COLORS[MASK]):  # ids in the order of labelmap.txt, or its colours
        for stem in "abcd":
            save(tmp_path / f"SegmentationClass/{stem}.png", mask)
        train, validation, labels = load_data(train_dir=str(tmp_path))
        assert (len(train), len(validation), labels.names) == (3, 1, NAMES)
        assert np.array_equal(train[2]["label"], MASK) and labels.palette == tuple(map(tuple, COLORS.tolist()))


def test_a_palette_of_the_labelmaps_colours_counts_as_colours(tmp_path):
    """The indices have another order than the classes."""
    labelmap(own_voc(tmp_path))
    picture = Image.fromarray(np.array([2, 0, 1], np.uint8)[MASK], "P")
    picture.putpalette(COLORS[[1, 2, 0]].ravel().tolist())
    for stem in "abcd":
        picture.save(tmp_path / f"SegmentationClass/{stem}.png")
    assert np.array_equal(load_data(train_dir=str(tmp_path))[0][0]["label"], MASK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("road:1,2::", "it must list background and at least one class"),
        ("a:0,0,0::\nb:1,2::", "'b:1,2::' is no class with a colour"),
        ("a:0,0,0::\nb:::", "'b:::' is no class with a colour"),
        ("a:0,0,0::\nb:0,0,0::", r"the colour \(0, 0, 0\) is there twice"),
        ("a:0,0,0::\nb:0,0,300::", r"the colour \(0, 0, 300\)"),
        ("a:0,0,0::\na:0,0,1::", "class names must differ"),
    ],
)
def test_wrong_labelmaps_are_refused(tmp_path, content, message):
    own_voc(tmp_path)
    (tmp_path / "labelmap.txt").write_text(content)
    with pytest.raises(ValueError, match=rf"labelmap\.txt: {message}"):
        load_data(train_dir=str(tmp_path))


def test_lists_of_own_voc(tmp_path):
    """default.txt is all there is; quotes, suffixes and marks behind names are left out; missing ones are named."""
    root = own_voc(tmp_path, lists=[("default", ['"my a"', "b.jpg", "c  1"])], stems=("my a", "b", "c", "d"))
    labelmap(root)
    assert [len(part) for part in load_data(train_dir=str(root), train_val_split=0.4)[:2]] == [2, 1]
    (root / "ImageSets/Segmentation/default.txt").write_text("my a\nzz\nb\n")
    with pytest.raises(ValueError, match=r"default\.txt: 1 of its 3 names have no image in JPEGImages: zz"):
        load_data(train_dir=str(root))
    assert len(load_data(train_dir=str(root), train_val_split=0.4, on_error="skip")[0]) == 1
    (root / "ImageSets/Segmentation/default.txt").write_text("")
    with pytest.raises(ValueError, match=r"default\.txt: none of its names is in"):
        load_data(train_dir=str(root))
    (root / "ImageSets/Segmentation/default.txt").unlink()
    with pytest.raises(ValueError, match="folders as of Pascal VOC, but no lists"):
        load_data(train_dir=str(root))


def test_vocs_own_numbers_need_vocs_own_descriptions(tmp_path):
    """VOC2007's names are six digits, as many people's are."""
    names = ("000032", "000039")
    root = own_voc(tmp_path / "VOCdevkit/VOC2007", lists=[("train", names), ("val", names)], stems=names)
    with pytest.raises(ValueError, match="no class names"):
        load_data(train_dir=str(tmp_path))
    (root / "Annotations").mkdir()
    (root / "Annotations/000032.xml").write_text("<source><database>Unknown</database></source>")
    with pytest.raises(ValueError, match="no class names"):
        load_data(train_dir=str(tmp_path))
    (root / "Annotations/000032.xml").write_text("<source><database>The VOC2007 Database</database></source>")
    assert load_data(train_dir=str(tmp_path))[2].num_labels == 21
    labelmap(root)
    assert load_data(train_dir=str(tmp_path))[2].names == NAMES


# --- Links ------------------------------------------------------------------------------------------------------------


def test_links_are_followed_and_loops_are_not(tmp_path):
    store, root = write(tmp_path / "store"), tmp_path / "root"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        (root / kind / "disk").symlink_to(store / kind)
        (root / kind / "again").symlink_to(root / kind)
    (root / "classes.json").symlink_to(store / "classes.json")
    assert sorted(pairs(root)) == [(f"images/disk/{stem}.jpg", f"masks/disk/{stem}.png") for stem in "abcd"]
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert len(load_data(train_dir=str(linked))[0]) == 3
    (root / "masks/disk").unlink()
    (root / "masks/disk").symlink_to(tmp_path / "unplugged")
    with pytest.raises(ValueError, match=r"masks/disk is a link to .*unplugged, which is not there"):
        find_layout(root)


def test_hidden_files_are_not_seen(tmp_path):
    write(tmp_path)
    (tmp_path / "images/.DS_Store.png").write_bytes(b"")
    (tmp_path / "images/.thumbnails").mkdir()
    (tmp_path / "images/.thumbnails/a.png").write_bytes(b"")
    assert len(folder_records(tmp_path)) == 4
    assert [name for _, name, _ in files_below(tmp_path / "images")] == [f"{stem}.jpg" for stem in "abcd"]


def test_sizes_are_those_of_upright_images(tmp_path):
    image = Image.new("RGB", (8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.jpg")
    np.save(tmp_path / "bands.npy", np.zeros((5, 6, 8)))
    sizes = [upright_size(tmp_path / name) for name in ("turned.jpg", "plain.jpg", "bands.npy")]
    assert sizes == [(8, 6), (6, 8), (6, 8)]
    (tmp_path / "broken.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"broken\.jpg: its width and height cannot be read"):
        upright_size(tmp_path / "broken.jpg")


def test_validation_data_without_class_names_have_those_of_training(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val")
    (tmp_path / "val/classes.json").unlink()
    folders = {"train_dir": str(tmp_path / "train"), "validation_dir": str(tmp_path / "val")}
    train, validation, labels = load_data(**folders)
    assert train.labels == validation.labels == labels and len(labels.names) == 3
    (tmp_path / "train/classes.json").unlink()
    with pytest.raises(ValueError, match="no class names: neither"):
        load_data(**folders)
    (tmp_path / "train/classes.json").write_text('["a", "b", "c"]')
    (tmp_path / "val/classes.json").write_text('["a", "b", "c", "d"]')
    with pytest.raises(ValueError, match="train/classes.json: class 3 is None in the data .*'d' in .*val/classes.json"):
        load_data(**folders)
