"""Prediction, evaluation and their commands: against counting by hand and transformers' pipeline."""

import copy
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CASES
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)
from transformers.image_utils import SizeDict

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor, calibration, inference
from hf_segtx.cli import main
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.inference import as_json, evaluate, load_model, predict, protocol, segment
from hf_segtx.metrics import MeanIoU
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessorPil
from hf_segtx.prediction import find_sources


ROOT = Path(__file__).resolve().parent.parent
SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}


@pytest.fixture
def checkpoint(tmp_path):
    """A model with random weights and the classes of the scenes, saved with its processor."""
    labels = SceneDataset(1).labels
    config = SegFormerConfig(**SIZES, decoder_hidden_size=16, id2label=labels.id2label, label2id=labels.label2id)
    model = SegFormerForSemanticSegmentation(config).eval()
    model.decode_head.classifier.weight.data.mul_(50)  # so that several classes are predicted
    model.save_pretrained(tmp_path / "model")
    SegFormerImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class MixedScenes(torch.utils.data.Dataset):
    """Five scenes of two sizes."""

    labels = SceneDataset(1).labels

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return SceneDataset(5, size=(64, 64) if index % 2 else (64, 96))[index]


def test_predict_matches_one_image_at_a_time(checkpoint):
    model, processor = load_model(checkpoint)
    images = [item["image"] for item in MixedScenes()]
    together = predict(model, processor, images)
    for image, label_map in zip(images, together, strict=True):
        assert label_map.shape == (image.height, image.width)
        alone = predict(model, processor, [image])[0]
        # batching changes rounding, which changes the class where two are equally likely
        assert (alone == label_map).float().mean() > 0.999


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluate_matches_counting(checkpoint, batch_size, monkeypatch):
    model, processor = load_model(checkpoint)
    dataset = MixedScenes()
    counts = np.zeros((8, 8))
    for item in dataset:
        label_map = predict(model, processor, [item["image"]])[0].numpy()
        valid = item["label"] != 255
        np.add.at(counts, (item["label"][valid], label_map[valid]), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    expected = np.mean(counts.diagonal()[union > 0] / union[union > 0])
    model.train()
    before = torch.get_rng_state()
    monkeypatch.setattr(inference, "time", types.SimpleNamespace(perf_counter=iter([10.0, 14.0]).__next__))
    results = evaluate(model, processor, dataset, batch_size=batch_size, progress=False)
    assert (results["images"], results["seconds"], results["images_per_second"]) == (5, 4, 5 / 4)
    assert results["mean_iou"] == pytest.approx(expected, abs=1e-3)  # see test_predict_matches_one_image_at_a_time
    assert model.training and torch.equal(before, torch.get_rng_state())  # training goes on as if nothing had been


@pytest.fixture(params=[None, [48, 64]], ids=["whole", "windows"])
def protocols(request, checkpoint):
    """Model and processor, of whole images (padded) or windows."""
    model, processor = load_model(checkpoint)
    processor.window_size, processor.window_stride = request.param, 40
    processor.size_divisor = 16 if request.param else 21  # of no side here
    return model, processor


def slow_segment(model, processor, image, scales, flip):
    """Mean softmax (K, H, W) over scales and flips through the processor's own way, one whole image at a time."""
    total, size = 0, (image.height, image.width)
    for scale in scales:
        for flipped in (False, True)[: 1 + flip]:
            shown = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image
            scaled = copy.deepcopy(processor)
            scaled.size = {"shortest_edge": round(64 * scale)}
            outputs = model(**scaled(images=[shown], return_tensors="pt"))
            (result,) = scaled.post_process_semantic_segmentation(outputs, [size], return_segmentation_scores=True)
            probabilities = result.segmentation_scores.softmax(0)
            total = total + (probabilities.flip(2) if flipped else probabilities)
    return total / (len(scales) * (1 + flip))


@torch.no_grad()
def test_segment_matches_mean_softmax(protocols, monkeypatch):
    model, processor = protocols
    monkeypatch.setattr(inference, "BLOCK_NUMEL", 8 * 96 * 30)  # rows in three blocks
    images = [item["image"] for item in MixedScenes()][:2]
    options = {"scales": (0.5, 1.0, 1.5), "flip": True, "return_scores": True, "return_uncertainty": True}
    for image, result in zip(images, segment(model, processor, images, **options), strict=True):
        wanted = slow_segment(model, processor, image, (0.5, 1.0, 1.5), True)
        # the mirrored image is resized before or after it is mirrored, to one of 256 grey levels
        torch.testing.assert_close(result.probabilities, wanted, rtol=0, atol=0.02)
        assert (result.probabilities - wanted).abs().mean() < 1e-3
        assert torch.equal(result.label_map, result.probabilities.argmax(0))
        assert torch.equal(result.confidence, result.probabilities.amax(0))
        entropy = torch.distributions.Categorical(result.probabilities.permute(1, 2, 0)).entropy()
        torch.testing.assert_close(result.entropy, entropy, rtol=0, atol=1e-5)  # float32
        assert sum(segment["area"] for segment in result.segments) == image.height * image.width
        first = result.segments[0]
        assert first["label"] == MixedScenes.labels.names[first["label_id"]]
        of_segment = result.confidence[result.label_map == first["label_id"]]
        assert first["score"] == pytest.approx(of_segment.mean().item(), abs=1e-5)


def test_left_and_right_change_places_in_the_mirrored_image(protocols):
    """Oracle: the mirrored image predicted by itself, its result mirrored and its two classes exchanged."""
    model, processor = protocols
    processor.do_resize = False
    model.config.id2label = {**model.config.id2label, 2: "left arm", 5: "Right arm"}
    image = MixedScenes()[0]["image"]
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    first, second = (r.probabilities for r in segment(model, processor, [image, mirrored], return_scores=True))
    wanted = (first + second.flip(2)[[0, 1, 5, 3, 4, 2, 6, 7]]) / 2
    both = segment(model, processor, [image], flip=True, return_scores=True)[0].probabilities
    torch.testing.assert_close(both, wanted, rtol=0, atol=1e-5)  # float32


@pytest.mark.parametrize("small_images", ["pad", "resize"])
def test_segment_at_one_scale_matches_predict(protocols, small_images, monkeypatch):
    model, processor = protocols
    processor.small_images, processor.size = small_images, {"shortest_edge": 32}  # below the window
    images = [item["image"] for item in MixedScenes()]
    maps = predict(model, processor, images)
    for label_map, plain, scored in zip(
        maps,
        segment(model, processor, images),
        segment(model, processor, images, return_uncertainty=True),
        strict=True,
    ):
        assert torch.equal(label_map, plain.label_map)
        made = [{name for name, value in vars(each).items() if value is not None} for each in (plain, scored)]
        assert made == [{"label_map"}, {"label_map", "confidence", "entropy", "segments"}]
        assert (label_map == scored.label_map).float().mean() > 0.999  # ties at rounding
    of_two = [segment(model, processor, images[:1], scales=[2.0], return_scores=way)[0] for way in (False, True)]
    assert torch.equal(of_two[0].label_map, of_two[1].label_map)
    assert not torch.equal(of_two[0].label_map, maps[0])
    monkeypatch.setattr(inference, "BLOCK_NUMEL", 1)  # less than a row has
    by_row = segment(model, processor, images[:1], scales=[2.0])[0].label_map
    assert (by_row == of_two[0].label_map).float().mean() > 0.999  # ties at rounding


@pytest.mark.parametrize("window", [48, [80, 48]])
@torch.no_grad()
def test_predict_windows_matches_processor_and_pipeline(checkpoint, tmp_path, window):
    """Users' three lines for images of different sizes, the pipeline, and any number of windows at a time."""
    model, processor = load_model(checkpoint)
    processor.window_size, processor.window_stride, processor.do_resize = window, 40, False
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = [item["image"] for item in MixedScenes()]
    images.append(images[0].crop((0, 0, 20, 64)))  # less than half of a window
    sizes = [(image.height, image.width) for image in images]
    outputs = model(**processor(images, return_tensors="pt"))
    wanted = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    for window_batch_size in (1, 3, 100):
        seen = predict(model, processor, images, window_batch_size=window_batch_size)
        for ours, theirs in zip(seen, wanted, strict=True):
            assert (ours == theirs).float().mean() > 0.999  # rounding in another batch decides ties
    segment_image = pipeline("image-segmentation", model=str(tmp_path))
    for part in segment_image(images[0]):
        label = model.config.label2id[part["label"]]
        assert ((np.asarray(part["mask"]) > 0) == (wanted[0].numpy() == label)).mean() > 0.999


def test_evaluate_at_scales_matches_segment(protocols):
    model, processor = protocols
    results = evaluate(model, processor, MixedScenes(), progress=False, scales=(1.0, 1.5), flip=True)
    metric = MeanIoU(num_labels=8)
    for item in MixedScenes():
        label_map = segment(model, processor, [item["image"]], scales=(1.0, 1.5), flip=True)[0].label_map
        metric.add_batch(predictions=[label_map], references=[item["label"]])
    assert results["mean_iou"] == metric.compute()["mean_iou"]


def test_four_windows_go_through_the_model_together(checkpoint):
    """Unless it is said, whoever shows them; and nothing is kept for a backward pass."""
    model, processor = load_model(checkpoint)
    processor.window_size, processor.window_stride = 48, 40
    data = torch.utils.data.Subset(MixedScenes(), [0])  # 64x96 pixels: six windows
    seen, images = [], [data[0]["image"]]
    model.register_forward_pre_hook(lambda _, given: seen.append((len(given[0]), torch.is_grad_enabled())))
    predict(model, processor, images)
    segment(model, processor, images)
    segment(model, processor, images, return_scores=True)
    evaluate(model, processor, data, progress=False)
    evaluate(model, processor, data, progress=False, scales=(1.5,))  # 96x144 pixels: twelve windows
    calibration.calibrate(model, processor, data, progress=False)
    assert seen == [(number, False) for number in [4, 2] * 4 + [4, 4, 4] + [4, 2]]


def test_evaluate_serves_further_metrics_and_shows_how_far_it_is(checkpoint, monkeypatch, capsys):
    """One image at a time, unless it is said."""
    model, processor = load_model(checkpoint)
    sizes, steps = [], []

    class Bar(inference.tqdm):
        def update(self, n):
            steps.append(n)
            return super().update(n)

    monkeypatch.setattr(inference, "tqdm", Bar)
    counter = types.SimpleNamespace(add_batch=lambda predictions, references: sizes.append(len(predictions)))
    extra = MeanIoU(num_labels=8)
    results = evaluate(model, processor, MixedScenes(), extra_metrics=[extra, counter])
    assert extra.compute()["mean_iou"] == results["mean_iou"]
    shown = capsys.readouterr().err
    assert "evaluation" in shown and "0/5 [" in shown and shown.endswith("\r")  # it is gone
    evaluate(model, processor, MixedScenes(), progress=False, batch_size=2, extra_metrics=[counter])
    assert sizes == steps == [1] * 5 + [2, 2, 1] and not capsys.readouterr().err


@pytest.mark.parametrize("module, function", [(inference, evaluate), (calibration, calibration.calibrate)])
def test_second_process_shows_no_bar(checkpoint, module, function, monkeypatch, capsys):
    process = types.SimpleNamespace(get_rank=lambda: 1, get_world_size=lambda: 2)
    for name, value in (("distributed", process), ("is_distributed", lambda: True), ("gathered", lambda x: [x])):
        monkeypatch.setattr(module, name, value)
    function(*load_model(checkpoint), MixedScenes())
    assert "/5" not in capsys.readouterr().err


def test_json_shows_absent_classes(checkpoint):
    model, processor = load_model(checkpoint)
    results = evaluate(model, processor, MixedScenes(), progress=False)
    results["per_category_iou"][3] = results["per_category_accuracy"][3] = float("nan")
    names = list(MixedScenes.labels.names)
    assert json.loads(json.dumps(as_json(results, names), allow_nan=False))["classes"][names[3]]["iou"] is None


def test_protocol_tells_how_images_are_resized():
    assert "at their own size" in protocol(SegFormerImageProcessor(do_resize=False))
    assert "squashed to 64x32" in protocol(SegFormerImageProcessor(size={"height": 64, "width": 32}))
    assert "512 pixels, longest at most 2048" in protocol(SegFormerImageProcessor())
    assert "single scale, whole images, padded to multiples of 32, no flip" in protocol(SegFormerImageProcessor())
    assert "single scale, whole images, no flip" in protocol(SegFormerImageProcessor(do_pad=False))
    assert "pixels of value 255 left out" in protocol(SegFormerImageProcessor())


def test_protocol_tells_windows_scales_and_flips():
    sentence = protocol(
        SegFormerImageProcessor(window_size=768, window_stride=[512, 384]), scales=(0.5, 1.75), flip=True
    )
    assert "scales 0.5, 1.75 of that, windows of 768x768 pixels every 512x384" in sentence
    assert "with flip" in sentence and "; softmax probabilities averaged over scales and flips and" in sentence
    for averaging, words in (("logits", "; logits averaged over"), ("exp", "; exponentials of logits averaged over")):
        processor = SegFormerImageProcessor(averaging=averaging)
        assert words in protocol(processor, flip=True) and words in protocol(processor, scales=(0.5, 1))
        assert "averaged over" not in protocol(processor)


@pytest.mark.parametrize(
    "small_images, scales, words",
    [
        ("pad", (0.5, 1), ", no flip"),
        ("cut", (1,), ", no larger than the image, no flip"),
        ("enlarge", (1,), ", smaller images enlarged, no flip"),
        ("resize", (1,), ", no flip"),
        ("resize", (0.5,), ", shortest edge at least the window's and the longest free, no flip"),
        ("resize", (2,), ", shortest edge at least the window's and the longest free, no flip"),
    ],
)
def test_protocol_tells_what_becomes_of_small_images(small_images, scales, words):
    processor = SegFormerImageProcessor(window_size=64, small_images=small_images)
    where = "windows of 64x64 pixels every 64x64, the last aligned to the border, logits averaged where they overlap"
    assert where + words in protocol(processor, scales=scales)


def test_protocol_tells_of_stretching_channels_and_what_is_left_out():
    sentence = protocol(SegFormerImageProcessor(stretch_divisor=32, do_flip_channel_order=True), 7)
    assert "2048), stretched up to multiples of 32, in BGR; logits" in sentence and "pixels of value 7 left" in sentence
    assert "512 pixels); logits" in protocol(SegFormerImageProcessor(size={"shortest_edge": 512}))


def test_load_model_reads_transformers_segformer_as_ours(tmp_path):
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**SIZES, decoder_hidden_size=16)).eval()
    theirs.save_pretrained(tmp_path)
    SegFormerImageProcessor().save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    assert isinstance(ours, SegFormerForSemanticSegmentation)
    pixel_values = torch.randn(1, 3, 64, 64)
    # the same operations in another order
    torch.testing.assert_close(ours(pixel_values).logits, theirs(pixel_values).logits, atol=1e-5, rtol=1e-4)


def test_logits_of_one_scale_are_those_of_the_image(checkpoint):
    model, processor = load_model(checkpoint)
    processor.do_resize, processor.size_divisor = False, 66  # of no side
    image = MixedScenes()[0]["image"].transpose(Image.Transpose.ROTATE_90).crop((0, 0, 60, 96))  # higher than wide
    expected = segment(model, processor, [image], return_scores=True)[0].probabilities
    for averaging in ("logits", "exp"):
        processor.averaging = averaging
        seen = segment(model, processor, [image], return_scores=True)[0].probabilities
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)  # float32


def test_padded_input_is_scaled_to_whole_pixels_and_patches_as_by_openseg(checkpoint):
    model, processor = load_model(checkpoint)
    vision_transformer = CASES["segmenter"].make_model()  # patches of 8x8 pixels
    processor.averaging, shapes = "".join(["log", "its"]), []  # as of a file: equal, not the same
    for each in (model, vision_transformer):
        each.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape[2:])))
    image = MixedScenes()[0]["image"]  # of 64x96
    segment(model, processor, [image], scales=(0.61, 1, 2), flip=True)
    assert shapes == [(39, 58)] * 2 + [(64, 96)] * 2 + [(128, 192)] * 2
    shapes.clear()
    segment(vision_transformer, processor, [image], scales=(0.61, 0.1))
    assert shapes == [(32, 56), (8, 8)]


def test_edges_become_a_size():
    for edges, mode, wanted in (
        ([64, 96], "squash", {"height": 64, "width": 96}),
        ([64], "squash", {"height": 64, "width": 64}),
        ([64], "long", {"shortest_edge": 64, "longest_edge": 64}),
        ([64], "keep", {"shortest_edge": 64}),
        ([64, 96], "keep", {"shortest_edge": 64, "longest_edge": 96}),
    ):
        said = "".join([mode[:1], mode[1:]])  # as of a command line: equal, not the same
        assert inference.size_of_edges(edges, said) == SizeDict(**wanted)


def test_a_size_of_height_and_width_is_scaled_to_what_the_network_takes():
    processor = SegFormerImageProcessor(size={"height": 64, "width": 96}, size_divisor=24)
    image = Image.new("RGB", (9, 9))
    assert inference.resized_image(processor, image, 1.0).shape == (3, 64, 96)  # as it is said
    assert inference.resized_image(processor, image, 0.6).shape == (3, 48, 48)  # of 38.4 and 57.6
    assert inference.resized_image(processor, image, 0.2).shape == (3, 48, 48)  # at least 29
    any_size = SegFormerImageProcessor(size={"height": 1, "width": 35}, size_divisor=None, minimum_size=None)
    assert inference.resized_image(any_size, image, 1.0).shape == (3, 1, 35)
    assert inference.resized_image(any_size, image, 0.2).shape == (3, 1, 7)
    edge = SegFormerImageProcessorPil(size={"shortest_edge": 3}, minimum_size=None)  # torch cannot make 1x1 pixels
    for scale, side in ((0.2, 1), (0.5, 1), (0.7, 2)):  # rounded down, but never to 0
        assert inference.resized_image(edge, image, scale).shape == (3, side, side)


def test_load_model_reads_other_models_of_transformers(tmp_path):
    stages = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[1, 2, 3, 4])
    config = UperNetConfig(backbone_config=stages, hidden_size=16, auxiliary_in_channels=24, num_labels=2)
    theirs = UperNetForSemanticSegmentation(config).eval()
    theirs.save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    loaded, processor = load_model(tmp_path)
    assert type(loaded) is UperNetForSemanticSegmentation and "Segformer" in type(processor).__name__
    pixel_values = torch.randn(1, 3, 64, 64)
    # where tensors lie in memory changes rounding
    torch.testing.assert_close(loaded(pixel_values).logits, theirs(pixel_values).logits, rtol=0, atol=1e-6)
    assert "whole images, no flip; images squashed to 64x64 pixels; logits" in protocol(processor)
    label = np.full((64, 64), 255, np.uint8)
    label[0, :5] = 1
    results = evaluate(loaded, processor, [{"image": Image.new("RGB", (64, 64)), "label": label, "name": "0"}])
    assert results["confusion_matrix"].sum(1).tolist() == [0, 5]


def test_load_model_refuses_missing_weights(tmp_path, checkpoint):
    model, processor = load_model(checkpoint)
    model.backbone.save_pretrained(tmp_path / "backbone")
    processor.save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match="lacks .* weights, such as decode_head"):
        load_model(tmp_path / "backbone")
    with pytest.raises(ValueError, match="no config.json"):
        load_model(tmp_path)
    with pytest.raises(OSError, match="nothing: no such folder, and the Hub gives none"):
        load_model(tmp_path / "nothing")
    for option in ({"provider": "CPU"}, {"threads": 2}):
        with pytest.raises(ValueError, match="is no exported folder or file; provider and threads"):
            load_model(checkpoint, **option)
    for more, cure in (({}, "install its package"), ({"auto_map": {}}, "pass trust_remote_code if you trust its code")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "other", **more}))
        with pytest.raises(ValueError, match=f"config.json: model_type 'other' is unknown to transformers; {cure}"):
            load_model(tmp_path)


def test_evaluate_refuses_other_class_names_and_empty_data(checkpoint):
    model, processor = load_model(checkpoint)
    with pytest.raises(ValueError, match="has 0 images; give at least one"):
        evaluate(model, processor, torch.utils.data.Subset(MixedScenes(), []))
    names = list(model.config.id2label.values())
    for others, message in (
        (names[1::-1] + names[2:], f"class 0 is '{names[0]}'.* but '{names[1]}' in the model"),
        ([*names, "more"], "class 8 is None in the data .8 classes. but 'more' in the model"),
    ):
        model.config.id2label = dict(enumerate(others))
        with pytest.raises(ValueError, match=message):
            evaluate(model, processor, MixedScenes())


def test_evaluate_command_refuses_other_class_names(tmp_path, checkpoint, capsys):
    for kind, picture in (("images", Image.new("RGB", (64, 64))), ("masks", Image.new("L", (64, 64)))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        picture.save(tmp_path / "data" / kind / "0.png")
    (tmp_path / "data" / "id2label.json").write_text('{"0": "wall", "1": "door"}')
    words = ["evaluate", str(checkpoint), "--validation_dir", str(tmp_path / "data")]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) != 0
    assert "class 0 is 'wall' in the data" in capsys.readouterr().err


def test_predict_command_matches_pipeline(tmp_path, checkpoint, capsys):
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for number, file in enumerate(("a.png", "more/b.png")):
        MixedScenes()[number]["image"].save(pictures / file)
    (pictures / "broken.jpg").write_text("not a picture")
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), str(pictures), "--output_dir", str(out)]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert str(pictures / "broken.jpg") in error and "cannot be decoded" in error
    segment = pipeline("image-segmentation", model=str(checkpoint))
    for name in ("a", "more/b"):
        label_map = Image.open(out / f"{name}_labels.png")
        assert label_map.mode == "P"
        expected = np.full((label_map.height, label_map.width), -1)
        for part in segment(str(pictures / f"{name}.png")):
            expected[np.asarray(part["mask"]) > 0] = segment.model.config.label2id[part["label"]]
        assert (np.asarray(label_map) == expected).all()
        assert Image.open(out / f"{name}_overlay.png").height > label_map.height  # the legend is below


def test_predict_finds_files_folders_and_patterns(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    for file in ("a/1.png", "a/b/2.jpg", "a/b/note.txt"):
        (tmp_path / file).write_text("")
    one, two = tmp_path / "a/1.png", tmp_path / "a/b/2.jpg"
    assert find_sources([str(tmp_path / "a")]).names == {one: Path("1"), two: Path("b/2")}
    assert find_sources([str(two)]).names == {two: Path("2")}
    assert find_sources([str(tmp_path / "a/**/*.jpg")]).names == {two: Path("b/2")}
    with pytest.raises(ValueError, match="no pictures"):
        find_sources([str(tmp_path / "*.webp")])


@pytest.mark.parametrize("name", ["setr", "segmenter"])
def test_windows_need_not_be_whole_patches(name):
    """Oracle: the image as one whole, padded to patches by the processor instead of the model."""
    model = CASES[name].make_model().eval()
    patch = model.config.patch_size
    image = SceneDataset(1, seed=2, size=(4 * patch + 1, 5 * patch - 1))[0]["image"]
    scores = []
    for window in (None, [4 * patch + 1, 5 * patch - 1]):
        processor = CASES[name].row.processor(do_resize=False, size_divisor=patch, window_size=window)
        scores.append(segment(model, processor, [image], return_scores=True)[0].probabilities)
    torch.testing.assert_close(*scores, rtol=0, atol=1e-6)  # upsampled in one step or in two
