"""Images in tiles: against predicting them at once."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor, large_images
from hf_segtx.inference import predict
from hf_segtx.large_images import TiffPixels, segment_large


@pytest.fixture
def setting():
    """A model with random weights, a processor of windows, and an image (100, 140, 3)."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
    config = SegFormerConfig(**sizes, decoder_hidden_size=16, num_labels=5)
    model = SegFormerForSemanticSegmentation(config).eval()
    processor = SegFormerImageProcessor(do_resize=False, window_size=32, window_stride=24)
    return model, processor, np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)


def assert_same(label_map, model, processor, image):
    wanted = predict(model, processor, [Image.fromarray(image)])[0].numpy()
    assert label_map.shape == wanted.shape and label_map.dtype == np.uint8
    assert (label_map == wanted).mean() > 0.999  # rounding in another batch decides ties


def test_memory_map_matches_predict(setting, tmp_path):
    model, processor, image = setting
    np.save(tmp_path / "image.npy", image)
    label_map = segment_large(model, processor, tmp_path / "image.npy", tmp_path / "labels.npy", progress=False)
    assert_same(label_map, model, processor, image)
    assert np.array_equal(np.load(tmp_path / "labels.npy"), label_map)
    assert not list(tmp_path.glob("*.progress*"))


@pytest.mark.parametrize("size", [(20, 25), (20, 60)])
def test_small_and_grey_images(setting, size, tmp_path):
    model, processor, image = setting
    grey = image[: size[0], : size[1], 0]
    label_map = segment_large(model, processor, grey, tmp_path / "labels.npy", progress=False)
    assert_same(label_map, model, processor, np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize("tile_size", [32, 75, 130])
@pytest.mark.parametrize("window", [{"window_size": 32, "window_stride": 9}, {"window_size": 32}])
def test_tiles_match_the_whole_image(setting, tile_size, window, tmp_path):
    """Also with windows that lie in several tiles, that the border pushes into others, and that do not overlap."""
    model, processor, image = setting
    processor = SegFormerImageProcessor(do_resize=False, **window)
    label_map = segment_large(model, processor, image, tmp_path / "labels.npy", tile_size=tile_size, progress=False)
    assert_same(label_map, model, processor, image)


@pytest.mark.parametrize("tile_size", [200, 60])
@pytest.mark.parametrize("interruption", [1, 13, 19])
def test_goes_on_after_an_interruption(setting, interruption, tile_size, tmp_path, monkeypatch):
    model, processor, image = setting
    run, count, stop = large_images.logits_of_windows, 0, interruption

    def interrupted(model, windows, batch_size):
        nonlocal count
        for logits in run(model, windows, batch_size):
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            yield logits

    def predicted(file: str) -> np.ndarray:
        nonlocal count
        count = 0
        return segment_large(model, processor, image, tmp_path / file, tile_size=tile_size, progress=False)

    monkeypatch.setattr(large_images, "logits_of_windows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predicted("labels.npy")
    stop = None
    assert_same(predicted("labels.npy"), model, processor, image)
    rest = count
    predicted("again.npy")
    assert rest < count or interruption == 1  # the first rows of windows are needed again


def test_another_image_starts_anew(setting, tmp_path):
    model, processor, image = setting
    np.save(tmp_path / "labels.npy", np.zeros((5, 5)))
    (tmp_path / "labels.npy.progress").write_text('{"run": {"size": [5, 5]}, "row": 3}')
    label_map = segment_large(model, processor, image, tmp_path / "labels.npy", progress=False)
    assert_same(label_map, model, processor, image)


def test_wrong_settings_are_refused_with_the_cure(setting, tmp_path):
    model, processor, image = setting
    with pytest.raises(ValueError, match="neither .npy nor .tif"):
        segment_large(model, processor, image, tmp_path / "labels.png")
    with pytest.raises(ValueError, match="tile_size is 31"):
        segment_large(model, processor, image, tmp_path / "labels.npy", tile_size=31)
    processor.window_size = None
    with pytest.raises(ValueError, match="processor.window_size = 512"):
        segment_large(model, processor, image, tmp_path / "labels.npy")


@pytest.mark.parametrize("layout", [{"tile": (32, 48)}, {"rowsperstrip": 7}, {"tile": (16, 16), "compression": "zlib"}])
def test_parts_of_tiff(setting, layout, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    _, _, image = setting
    for pixels in (image, image[..., 0]):
        tifffile.imwrite(tmp_path / "image.tif", pixels, **layout)
        tiff = TiffPixels(tmp_path / "image.tif")
        assert tiff.shape == pixels.shape
        for rows in (slice(0, 100), slice(31, 33), slice(90, 100), slice(15, 16)):
            for columns in (slice(0, 140), slice(47, 49), slice(130, 140)):
                assert np.array_equal(tiff[rows, columns], pixels[rows, columns])


def test_tiff_matches_predict(setting, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    model, processor, image = setting
    tifffile.imwrite(tmp_path / "image.tif", image, tile=(32, 32), compression="zlib")
    segment_large(model, processor, tmp_path / "image.tif", tmp_path / "labels.tif", progress=False)
    assert_same(tifffile.imread(tmp_path / "labels.tif"), model, processor, image)
