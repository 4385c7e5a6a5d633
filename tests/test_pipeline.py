"""`pipeline("image-segmentation")` sees of every kind of image what training sees, and what it cannot see it says."""

import base64
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tiny import CASES
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor, pipeline

import hf_segtx
from hf_segtx.data import read_image
from hf_segtx.pipeline import SegmentationPipeline


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return pipeline(
        "image-segmentation",
        model=CASES["segformer"].make_model(),
        image_processor=hf_segtx.SegFormerImageProcessor(do_resize=False, size_divisor=None),
        device="cpu",
    )


def values(height=40, width=56):
    return np.random.default_rng(0).integers(0, 65536, (height, width)).astype(np.uint16)


def seen(segmenter, image) -> torch.Tensor:
    """What the model is given."""
    return segmenter.preprocess(image)["pixel_values"]


def expected(segmenter, numbers) -> torch.Tensor:
    """By hand: the largest number is 255; then mean and standard deviation."""
    mean, std = (
        torch.tensor(getattr(segmenter.image_processor, name))[:, None, None] for name in ("image_mean", "image_std")
    )
    return ((torch.from_numpy(numbers.astype(np.float32)) / 65535 - mean) / std)[None]


def test_grey_of_16_bits_is_scaled_not_clipped(segmenter, tmp_path):
    numbers = values()
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    Image.fromarray(numbers).save(tmp_path / "grey.tif")
    text = base64.b64encode((tmp_path / "grey.png").read_bytes()).decode()
    ways = {
        "file": str(tmp_path / "grey.png"),
        "TIFF": str(tmp_path / "grey.tif"),
        "base64": text,
        "data address": f"data:image/png;base64,{text}",
        "picture": Image.open(tmp_path / "grey.png"),
        "picture of an array": Image.fromarray(numbers),
    }
    for way, image in ways.items():
        # 1e-5: float32 rounds 65535 steps at 1e-7 of values up to 3.
        torch.testing.assert_close(seen(segmenter, image), expected(segmenter, numbers), atol=1e-5, rtol=0, msg=way)


def test_colours_of_16_bits_are_those_of_training(segmenter, tmp_path):
    numbers = np.stack([values(), values()[::-1], values()[:, ::-1]], -1)
    tifffile.imwrite(tmp_path / "colours.tif", numbers, photometric="rgb")
    of_training = read_image(tmp_path / "colours.tif")
    torch.testing.assert_close(
        of_training / 255, torch.from_numpy(numbers.transpose(2, 0, 1).astype(np.float32)) / 65535
    )
    own = segmenter.image_processor([of_training], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen(segmenter, str(tmp_path / "colours.tif")), own, atol=0, rtol=0)


def test_orientation_of_a_deep_picture(segmenter, tmp_path):
    numbers = values()
    picture = Image.fromarray(numbers)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    wanted = expected(segmenter, np.rot90(numbers, -1).copy())
    for image in (str(tmp_path / "turned.png"), Image.open(tmp_path / "turned.png")):
        assert segmenter.preprocess(image)["target_size"] == [(56, 40)]
        torch.testing.assert_close(seen(segmenter, image), wanted, atol=1e-5, rtol=0)


def test_an_address(segmenter, tmp_path):
    Image.fromarray(values()).save(tmp_path / "grey.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = handler.func.log_message = lambda *_: None
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/grey.png"
        torch.testing.assert_close(seen(segmenter, address), expected(segmenter, values()), atol=1e-5, rtol=0)
        server.shutdown()


def test_masks_have_the_size_of_the_image(segmenter, tmp_path):
    Image.fromarray(values()).save(tmp_path / "grey.png")
    segments = segmenter([str(tmp_path / "grey.png")] * 2, batch_size=2)
    assert [segment["mask"].size for segment in segments[0]] == [(56, 40)] * len(segments[0])
    assert sum(np.asarray(segment["mask"]) // 255 for segment in segments[0]).min() == 1  # each pixel is of one class


def test_five_channels(tmp_path):
    model = CASES["segformer"].make_model(num_channels=5)
    mean = [0.5] * 5
    processor = hf_segtx.SegFormerImageProcessor(do_resize=False, do_pad=False, image_mean=mean, image_std=mean)
    bands = np.random.default_rng(0).integers(0, 256, (5, 40, 56)).astype(np.uint8)
    np.save(tmp_path / "bands.npy", bands)
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
    torch.testing.assert_close(
        seen(segmenter, str(tmp_path / "bands.npy")),
        torch.from_numpy(bands / 127.5 - 1).float()[None],
        atol=1e-6,
        rtol=0,
    )
    Image.fromarray(bands[:3].transpose(1, 2, 0)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match="rgb.png.* 5"):
        segmenter(str(tmp_path / "rgb.png"))


@pytest.mark.parametrize("image", ["no such file.png", "http://"])
def test_what_is_no_image_is_named(segmenter, image):
    with pytest.raises((ValueError, OSError), match=image):
        segmenter(image)


def test_other_models_are_served_as_before():
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
    segmenter = pipeline(
        "image-segmentation",
        model=SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=3)),
        image_processor=SegformerImageProcessor(do_resize=False),
        device="cpu",
    )
    assert type(segmenter) is SegmentationPipeline
    picture = Image.fromarray(values())
    given = segmenter.image_processor([picture.convert("RGB")], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen(segmenter, picture), given, atol=0, rtol=0)
