"""Tables of pairs as spreadsheets save them, and run lengths as in Kaggle's competitions."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_segtx.data import load_data
from hf_segtx.data.layouts import find_layout
from hf_segtx.data.pair_files import decode_starts


SIZE = (6, 8)
MASK = np.arange(48, dtype=np.uint8).reshape(SIZE) % 3
FISH = np.zeros(SIZE, bool)
FISH[2:5, 1:4] = True
FLOWER = np.zeros(SIZE, bool)
FLOWER[4:6, 3:8] = True


def picture(file, array=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8) if array is None else array).save(file)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_tables_as_spreadsheets_save_them(tmp_path, mark, encoding, slash):
    rows = [("Image", " Mask", "Split", "remark")]
    for number, split in enumerate(("Train", "training", "VAL")):
        picture(tmp_path / f"photos/ä {number}.jpg")
        picture(tmp_path / f"masks/{number}.png", (MASK + number) % 3)
        rows.append((f"photos{slash}ä {number}.jpg", f" masks{slash}{number}.png ", split, "a.b"))
    file = tmp_path / ("pairs.tsv" if mark == "\t" else "pairs.csv")
    file.write_text("\r\n".join(mark.join(row) for row in rows) + "\r\n\r\n", encoding=encoding, newline="")
    (tmp_path / "id2label.json").write_text('["a", "b", "c"]')
    train, validation, labels = load_data(train_dir=str(file))
    assert labels.names == ("a", "b", "c")
    for item, number in zip((*train, *validation), range(3), strict=True):
        assert np.array_equal(item["label"], (MASK + number) % 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,mask\na.jpg,a.png,more\n", "row 1 has more cells than the header"),
        ("image,mask,split\na.jpg,a.png,train\na.jpg,a.png,\n", "1 rows have no split, others have one"),
        ("image,mask\na.jpg,b.png\n", r"row 1: there is no file .*b\.png"),
        ("image;mask\na.jpg;\n", "row 1 has no 'mask'"),
        ("image,mask\n", "no rows"),
        (b"image,mask\n\xe4.jpg,a.png\n", "cannot be read .*; save it as UTF-8"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, content, message):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "a.png", MASK)
    file = tmp_path / "pairs.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"pairs\.csv: {message}"):
        find_layout(file)


def starts(inside):
    """ "start length ..." of an (H, W) bool, pixel by pixel: counted from 1, column by column."""
    text, previous = [], False
    flat = [inside[y, x] for x in range(inside.shape[1]) for y in range(inside.shape[0])]
    for number, value in enumerate(flat, 1):
        if value and not previous:
            text.append([number, 0])
        if value:
            text[-1][1] += 1
        previous = value
    return " ".join(f"{start} {length}" for start, length in text)


def test_starts_and_lengths_match_a_loop_over_the_pixels():
    random = np.random.default_rng(0)
    for share in (0.02, 0.5, 1.0):
        inside = random.random((7, 9)) < share
        assert np.array_equal(decode_starts(starts(inside), inside.shape), inside)
    assert np.array_equal(decode_starts("1 3 10 2", (4, 3)).T.ravel(), [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0])
    assert not decode_starts("-1", (4, 3)).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 3", "a run from 0 to 2 leaves the image of 4 x 3"),
        ("11 3", "a run from 11 to 13 leaves the image"),
        ("5 2 3 1", "not pairs of start and length in ascending order"),
        ("5 3 7 1", "not pairs of start and length in ascending order"),
        ("5 3 7", "not pairs of start and length"),
        ("5 0", "not pairs of start and length"),
        ("a b", "invalid literal"),
    ],
)
def test_runs_that_are_counted_otherwise_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        decode_starts(text, (4, 3))


def competition(root, header, rows, name="train.csv", suffix=".jpg"):
    for number in range(4):
        picture(root / f"train_images/{number}{suffix}")
    (root / name).write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    (root / "sample_submission.csv").write_text(header + "\n")
    return root


EXPECTED = [
    np.where(FLOWER, 2, np.where(FISH, 1, 0)),
    np.where(FISH, 1, 0),
    np.where(FLOWER, 2, 0),
    np.zeros(SIZE, int),
]


def labels_of(root, **settings):
    train, validation, labels = load_data(train_dir=str(root), train_val_split=0.25, check=False, **settings)
    found = {
        item["name"].rpartition(" ")[2].split(".")[0]: item["label"] for part in (train, validation) for item in part
    }
    return [found[name] for name in sorted(found)], labels


@pytest.mark.parametrize(
    ("header", "name", "kinds"),
    [
        ("Image_Label,EncodedPixels", "{n}.jpg_{kind}", ("Fish", "Zebra")),  # as in the clouds
        ("ImageId_ClassId,EncodedPixels", "{n}.jpg_{kind}", ("1", "2")),  # as of the steel at first
        ("ImageId,ClassId,EncodedPixels", "{n}.jpg,{kind}", ("1", "2")),  # as of the steel
        ("id,class,rle", "{n},{kind}", ("Fish", "Zebra")),  # without suffixes
    ],
)
def test_run_lengths_of_several_classes(tmp_path, header, name, kinds):
    objects = [(0, 0), (0, 1), (1, 0), (2, 1), (3, 0)]
    texts = [(starts((FISH, FLOWER)[kind]) if image < 3 else "") for image, kind in objects]
    rows = [(name.format(n=image, kind=kinds[kind]), text) for (image, kind), text in zip(objects, texts)]
    competition(tmp_path, header, rows)
    if kinds[0].isdigit():
        with pytest.raises(ValueError, match="no class names"):
            labels_of(tmp_path)
        (tmp_path / "id2label.json").write_text('["nothing", "pit", "scratch"]')
    found, labels = labels_of(tmp_path)
    assert labels.names == (("nothing", "pit", "scratch") if kinds[0].isdigit() else ("background", "Fish", "Zebra"))
    for label, expected in zip(found, EXPECTED, strict=True):
        assert np.array_equal(label, expected)


def test_run_lengths_of_one_class_have_a_row_for_each_object(tmp_path):
    rows = [("0.jpg", starts(FISH)), ("0.jpg", starts(FLOWER)), ("1.jpg", ""), ("2.jpg", "-1"), ("3.jpg", starts(FISH))]
    competition(tmp_path, "ImageId,EncodedPixels", rows, name="train_ships_v2.csv")
    (tmp_path / "id2label.json").write_text('["sea", "ship"]')
    found, _ = labels_of(tmp_path)
    expected = [FISH | FLOWER, np.zeros(SIZE), np.zeros(SIZE), FISH]
    assert all(np.array_equal(label, wanted) for label, wanted in zip(found, expected, strict=True))


def test_wrong_tables_of_runs_are_refused(tmp_path):
    competition(tmp_path, "ImageId,EncodedPixels", [("9.jpg", "1 1")])
    with pytest.raises(ValueError, match=r"1 of its 1 images are not below .*: 9\.jpg"):
        find_layout(tmp_path)
    competition(tmp_path, "ImageId,EncodedPixels", [("1", "1 1")])
    picture(tmp_path / "test_images/1.jpg")
    with pytest.raises(ValueError, match="which file is 1: .*test_images/1.jpg, .*train_images/1.jpg"):
        find_layout(tmp_path)
    competition(tmp_path, "ImageId,EncodedPixels", [("1.jpg", "1 1")], name="more.csv")
    with pytest.raises(ValueError, match="several tables of run lengths, .*more.csv, .*train.csv"):
        find_layout(tmp_path)
    (tmp_path / "more.csv").write_text("picture,EncodedPixels\n1,1 1\n")
    with pytest.raises(ValueError, match="no column of the images among picture, EncodedPixels; call it ImageId"):
        find_layout(tmp_path / "more.csv")
    (tmp_path / "more.csv").write_text("ImageId,Class,EncodedPixels\n0.jpg,1,1 1\n2.jpg,a,1 1\n")
    with pytest.raises(ValueError, match="some classes are numbers, some are names: 1, a"):
        find_layout(tmp_path / "more.csv")
    (tmp_path / "more.csv").write_text("ImageId,Class,EncodedPixels\n0.jpg,Fish,1 1\n2.jpg,fish,1 1\n")
    with pytest.raises(ValueError, match=r"more\.csv: class names must differ .*; 'Fish' is there more than once"):
        find_layout(tmp_path / "more.csv")
    (tmp_path / "more.csv").write_text("ImageId,Class,EncodedPixels\n0.jpg,,\n2.jpg,nan,1 1\n")
    with pytest.raises(ValueError, match=r"more\.csv: row 2 has runs, but no class in Class; complete or remove it"):
        find_layout(tmp_path / "more.csv")


@pytest.mark.parametrize("names", [["shirt", "pants"], ["shirt"], ["background", "shirt"]])
def test_class_0_is_what_no_run_covers(tmp_path, names):
    """A table with classes from 0 on, without a background; as pandas writes empty cells and whole numbers."""
    rows = [("0.jpg", "0.0", "1 2"), ("0.jpg", "1.0", "5 2"), ("1.jpg", "nan", "nan"), ("2.jpg", "", "")]
    competition(tmp_path, "ImageId,ClassId,EncodedPixels", rows)
    (tmp_path / "id2label.json").write_text(json.dumps(names))
    if names[0] == "background":
        assert [int(label.sum()) for label in labels_of(tmp_path)[0]] == [2, 0, 0]
        return
    with pytest.raises(
        ValueError, match=r"train\.csv: ClassId 0 is also what no run covers, but the classes are shirt"
    ):
        labels_of(tmp_path)


def test_objects_of_run_lengths_name_file_and_image(tmp_path):
    competition(tmp_path, "ImageId,EncodedPixels", [("1.jpg", "40 20"), ("2.jpg", "1 1")])
    (tmp_path / "id2label.json").write_text(json.dumps(["sea", "ship"]))
    with pytest.raises(ValueError, match=r"train\.csv, mask of 1\.jpg.*a run from 40 to 59 leaves the image of 6 x 8"):
        load_data(train_dir=str(tmp_path), train_val_split=0.5)
