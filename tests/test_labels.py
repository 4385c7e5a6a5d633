"""The label contract against what its file says, pixel by pixel."""

import dataclasses
import json

import numpy as np
import pytest

from hf_segtx.data.labels import Labels, flip_permutation


ROAD = {"id": 0, "name": "road", "color": [10, 20, 30]}
CAR = {"id": 7, "name": "car", "color": [255, 0, 0]}
VOID = {"id": 3, "name": "void", "color": [0, 0, 0], "ignore": True}


def written(folder, content, name="classes.json"):
    (folder / name).write_text(json.dumps(content))
    return folder


def labels_of(folder, content):
    return Labels.from_folder(written(folder, content))


def test_matches_classes_json(tmp_path):
    labels = labels_of(tmp_path, {"classes": [CAR, VOID, ROAD]})
    assert labels.names == ("road", "car")  # train ids follow the raw ids
    assert labels.palette == ((10, 20, 30), (255, 0, 0)) and labels.colors == list(labels.palette)
    assert labels.id2label == {0: "road", 1: "car"} and labels.label2id == {"road": 0, "car": 1}
    assert labels.map(np.array([[0, 7, 3, 255]], np.uint8)).tolist() == [[0, 1, 255, 255]]


@pytest.mark.parametrize("void", [{"ignore_index": 3}, {"void_label": {"id": 3, "name": "void"}}])
def test_void_can_be_named_outside_the_list(tmp_path, void):
    labels = labels_of(tmp_path, {"num_classes": 2, "classes": [ROAD, {"id": 3, "name": "void"}, CAR], **void})
    assert labels.map(np.array([[0, 3, 7]])).tolist() == [[0, 255, 1]]


def test_folder_uses_its_own_file_before_its_parents(tmp_path):
    inner = tmp_path / "train"
    inner.mkdir()
    written(tmp_path, {"0": "sky", "1": "sea"}, "id2label.json")
    assert Labels.from_folder(inner).names == ("sky", "sea")
    assert Labels.from_folder(written(inner, ["land", "ice"], "id2label.json")).names == ("land", "ice")


@pytest.mark.parametrize("background", [[], ["background"]])
def test_reduced_labels_match_formula(background):
    names = [f"class {number}" for number in range(1, 6)]
    labels = Labels.from_id2label([*background, *names], do_reduce_labels=True)
    mask = np.random.default_rng(0).choice([0, 1, 2, 3, 4, 5, 255], (9, 11)).astype(np.uint8)
    expected = np.where((mask == 0) | (mask == 255), 255, mask.astype(int) - 1)
    assert labels.num_labels == 5
    assert np.array_equal(labels.map(mask), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, bool])
def test_identity_in_every_integer_type(dtype):
    mask = np.array([[0, 1], [1, 0]]).astype(dtype)
    mapped = Labels(("a", "b")).map(mask)
    assert mapped.dtype == np.uint8 and np.array_equal(mapped, mask)


def test_16_bit_ids(tmp_path):
    labels = labels_of(tmp_path, {"classes": [ROAD, {"id": 65535, "name": "car"}]})
    assert labels.map(np.array([[0, 65535, 255]], np.uint16)).tolist() == [[0, 1, 255]]


def test_more_than_255_classes_make_255_a_class():
    labels = Labels.from_id2label([f"class {number}" for number in range(300)])
    mapped = labels.map(np.array([[255, 299]], np.uint16))
    assert labels.ignore_index == -100 and mapped.dtype == np.int16 and mapped.tolist() == [[255, 299]]
    few = [Labels.from_id2label([f"class {number}" for number in range(count)]) for count in (255, 256)]
    assert [labels.ignore_index for labels in few] == [255, -100]
    labels = Labels(("a", "b"), ignore_index=-1)
    mapped = labels.map(np.array([[1, 255]], np.uint8))
    assert mapped.tolist() == [[1, -1]] and labels.as_mask(mapped).tolist() == [[1, 65535]]
    for value in (256, 2**15 - 1, -(2**14), 1 - 2**15):  # what no byte holds, down to the smallest
        labels = Labels(("a", "b"), ignore_index=value, color_to_train={(1, 2, 3): value, (0, 0, 0): 1})
        assert labels.map(np.array([[1, 255]], np.uint8)).tolist() == [[1, value]]
        assert labels.map(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8)).tolist() == [[1, value]]


def test_single_class_has_a_background(tmp_path):
    assert labels_of(tmp_path, {"classes": [CAR]}).map(np.array([[0, 7, 255]])).tolist() == [[0, 1, 255]]
    labels = labels_of(tmp_path, {"classes": [ROAD, VOID]})  # 0 is the class here, and there is no background
    assert labels.map(np.array([[0, 3]])).tolist() == labels.map(np.array([[[10, 20, 30], [0, 0, 0]]])).tolist()
    assert labels.map(np.array([[0, 3]])).tolist() == [[1, 255]]
    with pytest.raises(ValueError, match="0 is ignored, but is the background that the single class 'car'"):
        labels_of(tmp_path, {"classes": [CAR, {"id": 0, "name": "void", "ignore": True}]})
    with pytest.raises(ValueError, match="omit do_reduce_labels"):
        Labels.from_id2label(["void", "car"], do_reduce_labels=True)
    with pytest.raises(ValueError, match="have value 0, but the 2 classes are 1 .. 7"):  # these have none
        labels_of(tmp_path, {"classes": [{**ROAD, "id": 1}, CAR]}).map(np.array([[0]]))
    assert Labels(("crack",)).map(np.array([[0, 1]])).tolist() == [[0, 1]]
    assert Labels(("crack",)).id2label == {0: "background", 1: "crack"}
    colors = Labels(("crack",), palette=[(1, 2, 3)]).colors
    assert colors == [(70, 70, 70), (1, 2, 3)]  # a dark grey for the background
    assert Labels(("crack",)).with_255_as_class().map(np.array([[0, 255]])).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("mask", "value"),
    [(np.array([[0, 9, 9]], np.uint8), "9"), (np.array([[0, -1]]), "-1"), (np.array([[70000]]), "70000")],
)
def test_unknown_id_is_named_with_file_and_bound(tmp_path, mask, value):
    labels = labels_of(tmp_path, {"classes": [ROAD, CAR, VOID]})
    message = rf"masks/a\.png: .* {value}, but the 2 classes are 0 \.\. 7 and ignored is 3, 255"
    with pytest.raises(ValueError, match=message):
        labels.map(mask, "masks/a.png")


@pytest.mark.parametrize("kind", ["i1", "<i2", ">i2", ">i4", "i8"])
def test_negative_ids_are_never_taken_for_others(kind):
    """-1 of 8 bits has the bits of 255, which is ignored, -256 of 16 bits, read the other way round, too."""
    for value in (-1, -128) if kind == "i1" else (-1, -256, -255):
        with pytest.raises(ValueError, match=f"2 of 3 pixels have value {value}, .*ids are not negative"):
            Labels(("a", "b")).map(np.array([[value, 0, value]], kind))


def test_ids_in_the_other_byte_order():
    labels = Labels(tuple(map(str, range(300))), ignore_index=-100)
    assert labels.map(np.array([[1, 256, 299]], ">u2")).tolist() == [[1, 256, 299]]
    with pytest.raises(ValueError, match="value 512"):
        Labels(("a", "b", "c")).map(np.array([[512]], ">u2"))  # 2, read the other way round


def test_colors_of_16_bits_are_refused(tmp_path):
    labels = labels_of(tmp_path, {"classes": [ROAD, CAR]})
    assert labels.map(np.array([[[10, 20, 30]]], np.uint16)).tolist() == [[0]]
    for color in ([10 + 256, 20, 30], [10, 20 + 256, 30], [10, 20, 30 - 256]):
        with pytest.raises(ValueError, match="8 bits for each channel"):
            labels.map(np.array([[color]], np.int32))


@pytest.mark.parametrize(
    ("colors", "cure"),
    [
        ([[0, 0, 0], [2, 0, 0]], "red channel"),
        ([[1, 0, 0], [0, 0, 1], [0, 1, 0]], "one-hot"),
        ([[9, 1, 0], [0, 0, 1]], "panoptic"),
    ],
)
def test_ids_hidden_in_colours_are_guessed_at(colors, cure):
    with pytest.raises(ValueError, match=cure) as raised:
        Labels(("a", "b", "c")).map(np.array([colors], np.uint8), "masks/a.png")
    assert len(str(raised.value)) < 400


def test_grey_ids_for_classes_with_colours_say_so(tmp_path):
    with pytest.raises(ValueError, match="if these are class ids, save them in one channel"):
        labels_of(tmp_path, {"classes": [ROAD, CAR]}).map(np.array([[[0, 0, 0], [7, 7, 7]]], np.uint8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"raw_to_train": {-1: 255, 0: 0, 1: 1}}, "raw id -1 is outside 0 .. 65535"),
        ({"raw_to_train": {0: 0, 65536: 1}}, "raw id 65536 is outside 0 .. 65535"),
        ({"raw_to_train": {0: 0, 1: 2}}, r"train id 2 is outside 0 .. 1 \(2 class names\)"),
        ({"color_to_train": {(0, 0, 0): -1}}, "train id -1 is outside"),
        ({"ignore_index": 0}, "ignore_index 0 is the class 'a'; use 255 or another value outside 0 .. 1"),
        ({"ignore_index": 1}, "ignore_index 1 is the class 'b'"),
        ({"ignore_index": 2**15}, r"ignore_index 32768 is outside -32767 \.\. 32767"),
        ({"ignore_index": -(2**15)}, "ignore_index -32768 is outside"),
        ({"palette": [(0, 0, 0)]}, "the palette has 1 colours for 2 classes"),
        ({"palette": [(0, 0, 0)] * 3}, "the palette has 3 colours for 2 classes"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Labels(("a", "b"), **settings)
    labels = Labels(("a", "b"), ignore_index=2, raw_to_train={0: 2, 65535: 0})
    assert labels.map(np.array([[0, 65535]])).dtype == np.uint8
    with pytest.raises(dataclasses.FrozenInstanceError):
        labels.ignore_index = 1


def test_what_is_unknown_is_listed_up_to_a_bound():
    labels = Labels(("a", "b"))
    for count, shown in ((8, "2, 3, 4, 5, 6, 7, 8, 9, but"), (9, "2, 3, 4, 5, 6, 7, 8, 9, ..., but")):
        with pytest.raises(ValueError, match=f": {count} of {count + 1} pixels have values {shown} the 2 classes are"):
            labels.map(np.array([[0, *range(2, 2 + count)]]))
    for count, end in ((4, r"\)\), but"), (5, r"\), ...\), but")):
        with pytest.raises(
            ValueError, match=rf"mask with {count} colours \(\(0, 0, 1\), \(1, 1, 1\), .*\(3, 3, 1{end}"
        ):
            labels.map(np.array([[(i, i, 1) for i in range(count)]]))


def test_a_color_that_two_classes_share_says_nothing(tmp_path):
    labels = labels_of(tmp_path, {"classes": [ROAD, CAR, {**VOID, "color": CAR["color"]}]})
    assert labels.map(np.array([[ROAD["color"]]])).tolist() == [[0]]
    with pytest.raises(ValueError, match="1 of 1 pixels have 1 colours that no class .or more than one. has"):
        labels.map(np.array([[CAR["color"]]]))


def test_unknown_id_hints():
    with pytest.raises(ValueError, match="do_reduce_labels"):
        Labels(("a", "b")).map(np.array([[0, 1, 2]]))
    with pytest.raises(ValueError, match="PNG"):
        Labels(("a", "b")).map(np.array([[0, 1, 3]]), "a.jpg")
    for labels, value in ((Labels(("a", "b")), 3), (Labels(("a", "b"), raw_to_train={1: 0, 2: 1}), 0)):
        with pytest.raises(ValueError, match=f"have value {value}, .*; correct the mask, add the class name, or"):
            labels.map(np.array([[1, value, value]]))
    with pytest.raises(ValueError, match=r"not uint8 of shape \(1, 1, 4\)"):
        Labels(("a", "b"), color_to_train={(1, 2, 3): 0}).map(np.array([[[1, 2, 3, 4]]], np.uint8))
    with pytest.raises(ValueError, match="float32"):
        Labels(("a", "b")).map(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"not uint8 of shape \(3,\)"):
        Labels(("a", "b")).map(np.zeros(3, np.uint8))


def test_colors_match_lookup_of_each_pixel(tmp_path):
    labels = labels_of(tmp_path, {"classes": [ROAD, CAR, VOID]})
    expected = np.random.default_rng(0).choice([0, 1, 255], (5, 6))
    colors = {0: (10, 20, 30), 1: (255, 0, 0), 255: (0, 0, 0)}
    mask = np.array([[colors[value] for value in row] for row in expected.tolist()], np.uint8)
    assert np.array_equal(labels.map(mask), expected)
    mask[2, 3] = 1, 2, 3
    with pytest.raises(ValueError, match=r"b\.png: 1 of 30 pixels have 1 colours .*\(1, 2, 3\); correct the colours"):
        labels.map(mask, "b.png")


def test_rgb_without_colors():
    labels = Labels(("a", "b"))
    ids = np.array([[0, 1], [255, 1]], np.uint8)
    assert np.array_equal(labels.map(np.stack([ids] * 3, axis=-1)), ids)  # ids written three times
    with pytest.raises(ValueError, match=r'c\.png: an RGB mask with 2 colours .*"color" in classes\.json'):
        labels.map(np.array([[[9, 0, 1], [0, 0, 0]]], np.uint8), "c.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": [ROAD, {"id": 0, "name": "car"}]}, "id 0 is there more than once"),
        ({"classes": [ROAD, {"id": 1, "name": "road"}]}, "'road' is there more than once"),
        ({"classes": [ROAD, {"id": -1, "name": "car"}]}, "-1 is outside"),
        ({"classes": [ROAD, {"id": 65536, "name": "car"}]}, "65536 is outside"),
        ({"classes": [ROAD, {"name": "car"}]}, "'id' is missing"),
        ({"classes": [ROAD, {"id": 1, "name": "car", "color": [1, 2, 256]}]}, "color .1, 2, 256. is not three whole"),
        ({"classes": [ROAD, {"id": 1, "name": "car", "color": [-1, 2, 0]}]}, "color .-1, 2, 0. is not"),
        ({"classes": [ROAD, {"id": 1, "name": "car", "color": [0, 0]}]}, "color .0, 0. is not"),
        ({"classes": [ROAD, {"id": 1, "name": "car", "color": [0, 0, 9, 255]}]}, "color .0, 0, 9, 255. is not"),
        ({"num_classes": 3, "classes": [ROAD, CAR]}, "num_classes is 3, but 2"),
        ({"classes": []}, "at least one"),
        ({"0": "road", "2": "car"}, r"\[1\] are missing"),
        (["road", " "], "non-empty"),
        (5, "5 names no classes"),
        ("abc", "'abc' names no classes"),
        ({"a": 0}, "the key 'a' is no id"),
        ({"1.0": "a"}, r"the key '1\.0' is no id"),
        ({"classes": [{"id": 1.7, "name": "car"}]}, r'"id" is 1\.7; write a whole number'),
        ({"classes": [{"id": True, "name": "car"}]}, '"id" is True'),
        ({"classes": [ROAD], "ignore_index": "x"}, "\"ignore_index\" is 'x'"),
        ({"classes": [ROAD], "void_label": {"id": "3"}}, "\"id\" is '3'"),
        ({"classes": [ROAD], "void_label": 255}, "not 255"),
        ({"classes": {"0": "a"}}, "a class is .*, not {'0': 'a'}"),
        ({"classes": ["a", "b"]}, "a class is .*, not 'a'"),
        ({"classes": [ROAD, {**CAR, "ignore": "false"}]}, "\"ignore\" of id 7 is 'false'; write true or false"),
        (
            {"classes": [ROAD, {**CAR, "color": [128.0, 51.0, 255.0]}]},
            r"id 7: the color .128\.0, 51\.0, 255\.0. is not",
        ),
        ({"classes": [ROAD, {**CAR, "color": [True, 0, 0]}]}, "color .True, 0, 0. is not"),
        ({"classes": [ROAD, {**CAR, "color": None}]}, "color None is not"),
        (["car", "road", "Road "], "'road' is there more than once, also as 'Road '"),
    ],
)
def test_wrong_contract_is_refused_with_its_file(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"classes\.json: .*{message}"):
        labels_of(tmp_path, content)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"classes\.json .* id2label\.json"):
        Labels.from_folder(tmp_path)
    with pytest.raises(ValueError, match="classes.json: it says itself which id is ignored; omit do_reduce_labels"):
        Labels.from_file(written(tmp_path, {"classes": [ROAD]}) / "classes.json", do_reduce_labels=True)
    with pytest.raises(ValueError, match="nowhere.json: .*No such file"):
        Labels.from_file(tmp_path / "nowhere.json")
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "classes.json").write_text('["Straße"]', encoding=encoding)
        with pytest.raises(ValueError, match=r"classes\.json: it is not in UTF-8 .*; save it as UTF-8"):
            Labels.from_folder(tmp_path)
    (tmp_path / "classes.json").write_text('["Straße", "b"]', encoding="utf-8-sig")
    assert Labels.from_folder(tmp_path).names == ("Straße", "b")
    (tmp_path / "classes.json").write_text('{"0": "a", "1": "b", "1": "c"}')
    with pytest.raises(ValueError, match=r"classes\.json: the key '1' is there more than once"):
        Labels.from_folder(tmp_path)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ValueError, match=r"classes\.json: not JSON \(Expecting.*correct or replace it"):
        Labels.from_folder(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 150, 300])
def test_written_contract_gives_back_the_train_ids(tmp_path, count):
    Labels(("a", "b"), ignore_index=-1).write(tmp_path)
    assert json.loads((tmp_path / "classes.json").read_text())["ignore_index"] == 65535  # as `as_mask` has it
    labels = Labels(tuple(f"class {number}" for number in range(count)), ignore_index=255 if count < 255 else -100)
    train = labels.map(np.array([[0, *range(labels.num_ids)]]))
    train[0, 0] = labels.ignore_index
    labels.write(tmp_path)
    back = Labels.from_folder(tmp_path)
    assert back.names == labels.names and back.palette == labels.palette and back.ignore_index == labels.ignore_index
    assert np.array_equal(back.map(labels.as_mask(train)), train)
    assert labels.as_mask(train)[0, 0] == (255 if count < 255 else 65535)
    assert json.loads((tmp_path / "classes.json").read_text())["ignore_index"] == (255 if count < 255 else 65535)
    names = json.loads((tmp_path / "id2label.json").read_text())
    assert names == {str(number): name for number, name in enumerate(labels.names)}


def test_names_of_a_checkpoint_must_agree():
    Labels(("bed", "Sea")).check_names({0: "bed ", 1: "sea"}, "a public checkpoint")
    Labels(("a", "b")).check_names({"0": "a", "1": "b"}, "the checkpoint")
    with pytest.raises(ValueError, match="class 1 is 'b' in the data .* 'c' in the checkpoint"):
        Labels(("a", "b")).check_names({0: "a", 1: "c"}, "the checkpoint")
    with pytest.raises(ValueError, match=r"class 2 is None .* \(3 classes\)"):
        Labels(("a", "b")).check_names({0: "a", 1: "b", 2: "c"}, "the checkpoint")


def test_left_and_right_change_places_in_a_mirrored_image():
    """By hand: names pair up whatever their case and joints; a side without its other stays; LIP has three pairs."""
    names = ["sky", "Left-arm", "right_leg", "right-arm", "left_leg", "left hand", "bright", "left-right arrow"]
    assert flip_permutation(dict(enumerate(names))) == [0, 3, 4, 1, 2, 5, 6, 7]
    assert flip_permutation({0: "sky", 1: "copyright", 2: "left hand"}) is None
    lip = Labels.named("lip")
    pairs = {lip.names[a]: lip.names[b] for a, b in enumerate(flip_permutation(lip.id2label)) if a < b}
    assert pairs == {"Left-arm": "Right-arm", "Left-leg": "Right-leg", "Left-shoe": "Right-shoe"}


def test_bytes_are_mapped_as_wider_integers_are():
    """The table of bytes against the one of integers, for contracts with shifted, dropped and 254 classes."""
    random = np.random.default_rng(0)
    for labels in (
        Labels(names=("a", "b")),
        Labels.named("ade20k"),
        Labels.named("cityscapes"),
        Labels(names=tuple(map(str, range(254)))),
        Labels(names=tuple(map(str, range(255)))),  # no byte is left that could mean unknown
    ):
        mask = random.choice([raw for raw in labels.mapping if raw < 256], (9, 11)).astype(np.uint8)
        assert np.array_equal(labels.map(mask), labels.map(mask.astype(np.int32)))
        assert labels.map(mask).dtype == np.uint8 and labels.map(mask).flags.writeable
        if unknown := sorted(set(range(256)) - set(labels.mapping)):
            mask[3, 4] = unknown[0]
            with pytest.raises(ValueError, match=f"1 of 99 pixels have value {unknown[0]},"):
                labels.map(mask)
