"""examples/predict.py: videos, cameras' absence, georeferenced and many-channel images, beside `predict`."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.inference import load_model, predict
from hf_segtx.visualization import color_map, palette


ROOT = Path(__file__).resolve().parent.parent
SIZES = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("hf_segtx.cli.predict")


def save_model(folder, **settings) -> str:
    labels = SceneDataset(1).labels
    config = SegFormerConfig(**SIZES, id2label=labels.id2label, label2id=labels.label2id, **settings)
    model = SegFormerForSemanticSegmentation(config)
    model.decode_head.classifier.weight.data.mul_(50)  # so that several classes are predicted
    model.save_pretrained(folder)
    channels = config.num_channels
    SegFormerImageProcessor(do_resize=False, image_mean=[0.5] * channels, image_std=[0.5] * channels).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def run(script, tmp_path):
    def run(model, *arguments):
        output = tmp_path / "out"
        return script.main(script.parse_arguments([model, *map(str, arguments), "--output_dir", str(output)])), output

    return run


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


def test_frames_of_a_video_match_predict(run, video, tmp_path):
    model = save_model(tmp_path / "model")
    failures, output = run(model, video, "--frames", "--batch_size", "2")
    assert not failures
    images = [item["image"] for item in SceneDataset(5, size=(64, 95))]
    written = sorted(output.glob("drive/*_labels.png"))
    for image, file in zip(images, written, strict=True):
        (label_map,) = predict(*load_model(model), [image])
        # batches of two change rounding, which changes the class where two are equally likely
        assert (np.asarray(Image.open(file)) == label_map.numpy()).mean() > 0.999
    assert len(list(output.glob("drive/*_overlay.png"))) == 5


def test_film_shows_each_frame_under_its_classes(run, video, tmp_path):
    av = pytest.importorskip("av")
    model, processor = load_model(save_model(tmp_path / "model"))
    failures, output = run(str(tmp_path / "model"), video, "--alpha", "1", "--max_frames", "3")
    assert not failures
    with av.open(str(output / "drive_overlay.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(frames) == 3
    (label_map,) = predict(model, processor, [SceneDataset(5, size=(64, 95))[0]["image"]])
    colors = palette(model.config.num_labels)
    shown = frames[0][:64, :95].astype(int)
    assert np.abs(shown - color_map(label_map, colors)).mean() < 20  # H.264 keeps colours at half the resolution


def test_camera_is_read_frame_by_frame(script, run, monkeypatch, tmp_path):
    """A generator of FFmpeg in the camera's place; like a camera it has no length."""
    av = pytest.importorskip("av")
    generator = ("lavfi", "testsrc=rate=5:size=")
    try:
        av.open(generator[1] + "96x64", format=generator[0]).close()
    except (ValueError, av.FFmpegError):
        pytest.skip("this build of PyAV has no lavfi")
    monkeypatch.setitem(script.CAMERAS, sys.platform, generator)
    model = save_model(tmp_path / "model")
    failures, output = run(model, "camera:96x64", "--frames", "--batch_size", "2", "--max_frames", "7")
    assert not failures
    written = sorted(output.glob("camera_96x64/*_labels.png"))
    assert len(written) == 7
    with script.closing(script.Video("camera:96x64")) as camera:
        assert camera.length is None
        for image, file in zip(camera, written):
            (label_map,) = predict(*load_model(model), [image])
            assert (np.asarray(Image.open(file)) == label_map.numpy()).mean() > 0.999  # rounding in batches of two


def test_torn_video_is_reported_and_the_rest_done(run, video, tmp_path):
    model = save_model(tmp_path / "model")
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    SceneDataset(1)[0]["image"].save(tmp_path / "photo.png")
    failures, output = run(model, tmp_path / "torn.mp4", tmp_path / "photo.png", "camera:99")
    assert set(failures) == {tmp_path / "torn.mp4", "camera:99"}
    assert "torn.mp4 cannot be opened as a video" in failures[tmp_path / "torn.mp4"]
    assert (output / "photo_labels.png").is_file()


def test_video_without_pyav_says_what_to_install(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "drive.mp4").touch()
    failures, _ = run(save_model(tmp_path / "model"), tmp_path / "drive.mp4")
    assert "pip install av" in failures[tmp_path / "drive.mp4"]


def write_geotiff(file, image):
    rasterio = pytest.importorskip("rasterio")
    profile = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    transform = rasterio.transform.from_origin(500000, 4600000, 0.5, 0.5)
    with rasterio.open(file, "w", "GTiff", crs="EPSG:32633", transform=transform, **profile) as target:
        target.write(image)


def test_geotiff_keeps_its_place(run, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    image = np.asarray(SceneDataset(1)[0]["image"]).transpose(2, 0, 1)
    write_geotiff(tmp_path / "field.tif", image)
    failures, output = run(save_model(tmp_path / "model"), tmp_path / "field.tif")
    assert not failures
    with rasterio.open(tmp_path / "field.tif") as source, rasterio.open(output / "field_labels.tif") as labels:
        assert (labels.crs, labels.transform, labels.bounds) == (source.crs, source.transform, source.bounds)
        assert np.array_equal(labels.read(1), np.asarray(Image.open(output / "field_labels.png")))
        assert labels.nodata == 255


def test_geotiff_without_rasterio_says_what_to_install(run, monkeypatch, tmp_path):
    write_geotiff(tmp_path / "field.tif", np.zeros((3, 32, 32), np.uint8))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    failures, output = run(save_model(tmp_path / "model"), tmp_path / "field.tif")
    assert "pip install rasterio" in failures[tmp_path / "field.tif"] and (output / "field_labels.png").is_file()


def test_images_of_five_channels(run, tmp_path):
    np.save(tmp_path / "bands.npy", np.random.randint(0, 256, (5, 40, 48), np.uint8))
    failures, output = run(save_model(tmp_path / "model", num_channels=5), tmp_path / "bands.npy")
    assert not failures and Image.open(output / "bands_labels.png").size == (48, 40)


def test_what_goes_wrong_while_reading_does_not_stop_the_rest(script):
    def read(number):
        if number == 3:
            raise ValueError("three")
        return number

    with ThreadPoolExecutor(2) as pool:
        results = list(script.read_ahead(pool, read, range(6), 2))
    assert [item for item, _ in results] == list(range(6)) and str(results[3][1]) == "three"
    assert [result for item, result in results if item != 3] == [0, 1, 2, 4, 5]
