"""segtx predict, beside the function `predict`: videos, georeferenced and many-channel images; whose file is whose."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.cli import main
from hf_segtx.data.labels import Labels
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.inference import load_model, predict
from hf_segtx.prediction import Predictor, Results, find_sources, segment_images, videos
from hf_segtx.prediction.pictures import read_ahead
from hf_segtx.visualization import color_map, palette


ROOT = Path(__file__).resolve().parent.parent
SIZES = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


def save_model(folder, labels=None, **settings) -> str:
    labels = labels or SceneDataset(1).labels
    config = SegFormerConfig(**SIZES, id2label=labels.id2label, label2id=labels.label2id, **settings)
    model = SegFormerForSemanticSegmentation(config)
    model.decode_head.classifier.weight.data.mul_(50)  # so that several classes are predicted
    model.save_pretrained(folder)
    channels = config.num_channels
    SegFormerImageProcessor(do_resize=False, image_mean=[0.5] * channels, image_std=[0.5] * channels).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, capsys):
    """The command in this process, into the folder `out`; returns its errors and that folder."""

    def run(model, *words):
        output = tmp_path / "out"
        status = main(["predict", model, *map(str, words), "--output_dir", str(output)])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert status == bool(errors)
        return errors, output

    return run


def write_photo(file: Path, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    SceneDataset(seed + 1, size=(40, 48))[seed]["image"].save(file)
    return file


@pytest.fixture
def video(tmp_path):
    """Five frames of scenes of an odd size, losslessly."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "drive.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 95, 64, "bgr0"
        for item in SceneDataset(5, size=(64, 95)):
            container.mux(stream.encode(av.VideoFrame.from_image(item["image"])))
        container.mux(stream.encode())
    return tmp_path / "drive.mkv"


def test_frames_of_a_video_match_predict(run, video, model):
    errors, output = run(model, video, "--frames", "--batch_size", "2")
    assert not errors
    images = [item["image"] for item in SceneDataset(5, size=(64, 95))]
    written = sorted(output.glob("drive/*_labels.png"))
    for image, file in zip(images, written, strict=True):
        (label_map,) = predict(*load_model(model), [image])
        # batches of two change rounding, which changes the class where two are equally likely
        assert (np.asarray(Image.open(file)) == label_map.numpy()).mean() > 0.999
    assert len(list(output.glob("drive/*_overlay.png"))) == 5


def test_film_shows_each_frame_under_its_classes(run, video, model):
    av = pytest.importorskip("av")
    errors, output = run(model, video, "--alpha", "1", "--max_frames", "3")
    assert not errors
    with av.open(str(output / "drive_overlay.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(frames) == 3
    (label_map,) = predict(*load_model(model), [SceneDataset(5, size=(64, 95))[0]["image"]])
    colors = palette(len(SceneDataset(1).labels.names))
    shown = frames[0][:64, :95].astype(int)
    assert np.abs(shown - color_map(label_map, colors)).mean() < 20  # H.264 keeps colours at half the resolution


def test_camera_is_read_frame_by_frame(run, monkeypatch, model):
    """A generator of FFmpeg in the camera's place; like a camera it has no length."""
    av = pytest.importorskip("av")
    generator = ("lavfi", "testsrc=rate=5:size=")
    try:
        av.open(generator[1] + "96x64", format=generator[0]).close()
    except (ValueError, av.FFmpegError):
        pytest.skip("this build of PyAV has no lavfi")
    monkeypatch.setitem(videos.CAMERAS, sys.platform, generator)
    errors, output = run(model, "camera:96x64", "--frames", "--batch_size", "2", "--max_frames", "7")
    assert not errors
    written = sorted(output.glob("camera_96x64/*_labels.png"))
    assert len(written) == 7
    with closing(videos.Video("camera:96x64")) as camera:
        assert camera.length is None
        for image, file in zip(camera, written):
            (label_map,) = predict(*load_model(model), [image])
            assert (np.asarray(Image.open(file)) == label_map.numpy()).mean() > 0.999  # rounding in batches of two


def test_torn_video_is_reported_and_the_rest_done(run, model, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    SceneDataset(1)[0]["image"].save(tmp_path / "photo.png")
    errors, output = run(model, tmp_path / "torn.mp4", tmp_path / "photo.png", "camera:99")
    assert len(errors) == 2 and f"{tmp_path / 'torn.mp4'} cannot be opened as a video" in errors[0]
    assert "camera:99 cannot be opened" in errors[1]
    assert (output / "photo_labels.png").is_file()


def test_video_without_pyav_says_what_to_install(run, model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "drive.mp4").touch()
    ((error,), _) = run(model, tmp_path / "drive.mp4")
    assert "pip install av" in error


def write_geotiff(file, image):
    rasterio = pytest.importorskip("rasterio")
    profile = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    transform = rasterio.transform.from_origin(500000, 4600000, 0.5, 0.5)
    with rasterio.open(file, "w", "GTiff", crs="EPSG:32633", transform=transform, **profile) as target:
        target.write(image)


def test_geotiff_keeps_its_place(run, model, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    image = np.asarray(SceneDataset(1)[0]["image"]).transpose(2, 0, 1)
    write_geotiff(tmp_path / "field.tif", image)
    errors, output = run(model, tmp_path / "field.tif")
    assert not errors
    with rasterio.open(tmp_path / "field.tif") as source, rasterio.open(output / "field_labels.tif") as labels:
        assert (labels.crs, labels.transform, labels.bounds) == (source.crs, source.transform, source.bounds)
        assert np.array_equal(labels.read(1), np.asarray(Image.open(output / "field_labels.png")))
        assert labels.nodata == 255


def test_geotiff_without_rasterio_says_what_to_install(run, model, monkeypatch, tmp_path):
    write_geotiff(tmp_path / "field.tif", np.zeros((3, 32, 32), np.uint8))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    errors, output = run(model, tmp_path / "field.tif")
    assert "pip install rasterio" in errors[0] and (output / "field_labels.png").is_file()


def test_images_of_five_channels(run, tmp_path):
    np.save(tmp_path / "bands.npy", np.random.randint(0, 256, (5, 40, 48), np.uint8))
    errors, output = run(save_model(tmp_path / "model", num_channels=5), tmp_path / "bands.npy")
    assert not errors and Image.open(output / "bands_labels.png").size == (48, 40)


def test_what_goes_wrong_while_reading_does_not_stop_the_rest():
    def read(number):
        if number == 3:
            raise ValueError("three")
        return number

    with ThreadPoolExecutor(2) as pool:
        results = list(read_ahead(pool, read, range(6), 2))
    assert [item for item, _ in results] == list(range(6)) and str(results[3][1]) == "three"
    assert [result for item, result in results if item != 3] == [0, 1, 2, 4, 5]


# ------------------------------------------------------------------------------------------------- whose file is whose


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".segtx_results")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["x_labels.png", "x_overlay.png", "X_LABELS.png"])
def test_file_of_the_user_is_never_replaced(run, model, tmp_path, name):
    """Neither one that was there before, nor a result that the user corrected, nor on systems that ignore case."""
    photo, output = write_photo(tmp_path / "in/x.jpg"), tmp_path / "out"
    write_photo(tmp_path / "in/y.jpg", 1)
    write_photo(output / name, 2)
    before = contents(output)
    ignores_case = (output / name.lower()).exists()
    errors, _ = run(model, photo, tmp_path / "in/y.jpg")
    if ignores_case:
        assert len(errors) == 1 and name in errors[0] and "choose another --output_dir" in errors[0]
        assert {"y_labels.png", "y_overlay.png", name} == set(contents(output))
    assert before.items() <= contents(output).items()

    Image.new("L", (48, 40)).save(output / "y_labels.png")
    corrected = contents(output)
    errors, _ = run(model, tmp_path / "in/y.jpg")
    assert "y_labels.png, which exists and was not written by hf_segtx, or was changed" in errors[0]
    assert contents(output) == corrected


def test_own_results_are_replaced(run, model, tmp_path):
    write_photo(tmp_path / "in/x.jpg")
    assert not run(model, tmp_path / "in")[0]
    first = contents(tmp_path / "out")
    write_photo(tmp_path / "in/x.jpg", 1)
    for _ in range(2):  # the second time the content is that of the first
        assert not run(model, tmp_path / "in")[0]
        second = contents(tmp_path / "out")
        assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)
    written = [json.loads(line) for line in (tmp_path / "out/.segtx_results").read_text().splitlines()]
    assert len(written) == 4 and {entry["file"] for entry in written} == set(first)


def test_list_that_was_torn_or_is_of_somebody_else_makes_no_file_ours(run, model, tmp_path):
    photo = write_photo(tmp_path / "x.jpg")
    assert not run(model, photo)[0]
    listed = tmp_path / "out/.segtx_results"
    lines = listed.read_text()
    for text in (lines[: len(lines) // 2], "[]\n1\n\n{}\n", "\0\xff"):
        listed.write_text(text, encoding="latin-1")
        assert "x_overlay.png, which exists" in run(model, photo)[0][0] or "x_labels.png" in run(model, photo)[0][0]
    listed.write_text(lines)
    assert not run(model, photo)[0]


def test_results_are_no_inputs(run, model, tmp_path):
    """Of this and of other folders below the pictures, also after they were moved, changed or named by a pattern."""
    write_photo(tmp_path / "x.jpg")
    write_photo(tmp_path / "sub/z.png", 1)
    assert not run(model, tmp_path)[0]  # the results lie among the pictures
    assert set(contents(tmp_path / "out")) == {
        "x_labels.png", "x_overlay.png", "sub/z_labels.png", "sub/z_overlay.png"
    }  # fmt: skip
    for words in ([tmp_path], [f"{tmp_path}/**/*.png", tmp_path / "x.jpg"]):
        assert set(find_sources(list(map(str, words))).names) == {tmp_path / "x.jpg", tmp_path / "sub/z.png"}
    (tmp_path / "out").rename(tmp_path / "moved")
    Image.new("L", (48, 40)).save(tmp_path / "moved/x_labels.png")  # a correction is no picture either
    found = find_sources([str(tmp_path)])
    assert set(found.names) == {tmp_path / "x.jpg", tmp_path / "sub/z.png"} and len(found.passed_over) == 4
    for words in (tmp_path / "moved", f"{tmp_path}/moved/*.png", tmp_path / "moved/x_overlay.png"):
        with pytest.raises(ValueError, match="nothing but results of earlier runs, such as"):
            find_sources([str(words)])


def test_files_that_are_called_like_results_are_pictures_only_if_named(tmp_path):
    for name in ("x.jpg", "x_overlay.png", "x_labels_overlay.png", "a_labels.png", "x_labels.png"):
        write_photo(tmp_path / name)
    found = find_sources([str(tmp_path)])
    assert {file.name for file in found.names} == {"x.jpg", "a_labels.png"}
    assert {file.name for file in found.passed_over} == {"x_overlay.png", "x_labels.png", "x_labels_overlay.png"}
    assert set(find_sources([str(tmp_path / "x.jpg"), str(tmp_path / "x_overlay.png")]).names) == {
        tmp_path / "x.jpg", tmp_path / "x_overlay.png"
    }  # fmt: skip


def test_nothing_is_written_outside_of_the_folder(run, model, tmp_path, monkeypatch):
    for name in ("a/x.jpg", "a/b/y.jpg", "z.jpg"):
        write_photo(tmp_path / "in" / name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    patterns = ["../in/*/../*.jpg", "../in/a/b/../../*/x.jpg", "../in/a/../a/b/y.jpg", "../in/a/**/../../z.jpg"]
    for pattern in patterns:
        assert not run(model, pattern)[0]
    assert {file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("*_labels.png")} == {"out"}
    with pytest.raises(ValueError, match="which is not in"):
        Results(tmp_path / "out").claim("../x", "x")


def test_pictures_of_one_name_get_results_each(run, model, tmp_path):
    expected = {}
    for seed, (name, result) in enumerate(
        {"a/x.jpg": "a/x.jpg", "a/x.png": "a/x.png", "b/x.jpg": "b/x", "b/y.jpg": "y"}.items()
    ):
        image = Image.open(write_photo(tmp_path / name, seed))
        expected[result] = predict(*load_model(model), [image])[0].numpy()
    errors, output = run(model, f"{tmp_path}/a", f"{tmp_path}/b/*.jpg")
    assert not errors
    assert len(contents(output)) == 8
    for result, label_map in expected.items():
        assert np.array_equal(np.asarray(Image.open(output / f"{result}_labels.png")), label_map)


def test_empty_name_is_not_the_working_folder(tmp_path, monkeypatch):
    write_photo(tmp_path / "x.jpg")
    monkeypatch.chdir(tmp_path)
    for name in ("", " "):
        with pytest.raises(ValueError, match="one of the names of pictures is empty"):
            find_sources([name])
    assert set(find_sources(["."]).names) == {Path("x.jpg")}


def test_names_that_differ_in_case_are_told_apart(run, model, tmp_path):
    write_photo(tmp_path / "in/X.jpg"), write_photo(tmp_path / "in/x.jpg", 1)
    if len(list((tmp_path / "in").iterdir())) < 2:
        pytest.skip("this file system ignores case")
    (error,), output = run(model, tmp_path / "in")
    assert "which is that of" in error and "rename one" in error
    assert set(contents(output)) == {"X_labels.png", "X_overlay.png"}


def test_frames_of_a_video_do_not_replace_results_of_pictures(run, model, video, tmp_path):
    write_photo(tmp_path / "in/drive/000002.png")
    video = video.rename(tmp_path / "in/drive.mkv")
    (error,), output = run(model, tmp_path / "in", "--frames")
    assert "drive/000002" in error and len(list(output.glob("drive/*_labels.png"))) == 3
    expected = predict(*load_model(model), [Image.open(tmp_path / "in/drive/000002.png")])[0]
    assert np.array_equal(np.asarray(Image.open(output / "drive/000002_labels.png")), expected)


def test_film_of_the_user_is_not_replaced(run, model, video, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/drive_overlay.mp4").write_bytes(b"mine")
    (error,), output = run(model, video)
    assert "drive_overlay.mp4, which exists" in error and contents(output) == {"drive_overlay.mp4": b"mine"}
    (tmp_path / "out/drive_overlay.mp4").unlink()
    for _ in range(2):
        assert not run(model, video)[0] and list(contents(output)) == ["drive_overlay.mp4"]


def test_file_in_the_place_of_a_folder_is_left(run, model, tmp_path, capsys):
    write_photo(tmp_path / "in/sub/x.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").write_text("mine")
    (error,), output = run(model, tmp_path / "in")
    assert "out/sub is not a folder" in error and contents(output) == {"sub": b"mine"}
    assert main(["predict", model, str(tmp_path / "in"), "--output_dir", str(tmp_path / "out/sub")]) == 2
    assert "error: --output_dir " in capsys.readouterr().err and contents(output) == {"sub": b"mine"}


def test_link_of_the_user_is_not_written_through(run, model, tmp_path):
    (tmp_path / "out").mkdir()
    photo, precious = write_photo(tmp_path / "x.jpg"), tmp_path / "precious.png"
    for target in (precious, tmp_path / "nowhere"):
        precious.write_bytes(b"mine")
        os.symlink(target, tmp_path / "out/x_labels.png")
        assert "x_labels.png, which exists" in run(model, photo)[0][0]
        assert precious.read_bytes() == b"mine" and not (tmp_path / "nowhere").exists()
        (tmp_path / "out/x_labels.png").unlink()


def test_picture_that_the_model_refuses_does_not_stop_its_batch(model, tmp_path):
    class Picky(Predictor):
        def predict(self, images):
            if any(image.width == 60 for image in images):
                raise ValueError("60 is too wide")
            return super().predict(images)

    names = {write_photo(tmp_path / f"{i}.png", i): Path(str(i)) for i in range(3)}
    Image.new("RGB", (60, 40)).save(tmp_path / "1.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    names[tmp_path / "3.png"] = Path("3")
    failures = segment_images(Picky(*load_model(model)), names, Results(tmp_path / "out"), batch_size=4)
    assert failures.pop(tmp_path / "1.png") == "60 is too wide" and list(failures) == [tmp_path / "3.png"]
    assert sorted(contents(tmp_path / "out")) == [f"{i}_{kind}.png" for i in (0, 2) for kind in ("labels", "overlay")]


def test_more_than_255_classes_fit_into_the_mask(model):
    predictor = Predictor(*load_model(model))
    predictor.names, label_map = [str(i) for i in range(300)], np.arange(300).reshape(15, 20)
    image = predictor.mask(label_map)
    assert image.mode == "I;16" and np.array_equal(np.asarray(image), label_map)


CITYSCAPES = {  # train id -> id of cityscapesScripts' labels.py
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip


@pytest.mark.parametrize(
    "dataset, stem, ids",
    [
        ("cityscapes", "berlin_000000_000019_leftImg8bit", list(CITYSCAPES.values())),
        ("ade20k", "ADE_test_00000001", list(range(1, 151))),
    ],
)
def test_label_maps_for_test_servers(run, tmp_path, dataset, stem, ids):
    """Names, sizes and values: the label map, each class replaced by its id, one by one."""
    folder = save_model(tmp_path / "model", Labels.named(dataset))
    photo = write_photo(tmp_path / "photos/deep" / f"{stem}.png")
    write_photo(tmp_path / "photos/holiday.png")
    errors, output = run(folder, tmp_path / "photos", "--format", dataset)
    assert len(errors) == 1 and f"holiday is no name of an image of {dataset}" in errors[0]
    files = [file.relative_to(output).as_posix() for file in output.rglob("*.png")]
    assert sorted(files) == sorted([f"{dataset}/{stem}.png", f"deep/{stem}_labels.png", f"deep/{stem}_overlay.png"])
    with Image.open(output / dataset / f"{stem}.png") as written, Image.open(photo) as image:
        assert written.mode == "L" and written.size == image.size
        found = np.asarray(written)
        (label_map,) = predict(*load_model(folder), [image])
    assert len(np.unique(found)) > 1
    for number, raw in enumerate(ids):
        assert np.array_equal(found == raw, label_map.numpy() == number)


def test_only_a_model_of_the_servers_classes_writes_for_it(model, tmp_path, capsys):
    photo = write_photo(tmp_path / "ADE_test_00000001.png")
    assert main(["predict", model, str(photo), "--format", "ade20k", "--output_dir", str(tmp_path / "out")]) == 2
    assert "class 0 is 'wall' in the data (150 classes) but" in capsys.readouterr().err
