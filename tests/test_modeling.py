"""The contract that every architecture keeps, on tiny random networks."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CASES
from transformers import Trainer, TrainingArguments, pipeline

import hf_segtx
from hf_segtx.inference import predict, segment
from hf_segtx.losses import parse_loss
from hf_segtx.models import cpu
from hf_segtx.models.configuration_base import SegmentationConfig
from hf_segtx.models.cpu import Linear
from hf_segtx.models.layers import ConvNormAct
from hf_segtx.models.segmentation_base import segmentation_loss


K, SIDE = 5, 64  # classes, and pixels of a side of the images
TINY = {case.name: case for case in CASES.values()}


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def configuration(name, **overrides):
    return TINY[name].make_config(**{"num_labels": K, **overrides})


def build(name, training=False, **overrides):
    torch.manual_seed(0)
    model = TINY[name].make_model(**{"num_labels": K, **overrides})
    with torch.no_grad():  # values away from those of initialisation: zeros and ones hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model.train(training)


def images(*size, channels=3, count=2):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def labels(*size, count=2):
    drawn = torch.randint(0, K + 1, (count, *size), generator=torch.Generator().manual_seed(2))
    return drawn.masked_fill(drawn == K, 255)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (75, 101)], ids=["square", "oblong", "odd"])
def test_any_image_size(name, size):
    model = build(name)
    with torch.no_grad():
        output = model(images(*size), labels=labels(*size))
    assert output.logits.shape[:2] == (2, K)
    assert output.loss.isfinite()
    for have, asked in zip(output.logits.shape[2:], size):
        assert 0 < have <= asked


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(name, channels):
    assert build(name, num_channels=channels)(images(SIDE, SIDE, channels=channels)).logits.isfinite().all()


def test_loss_matches_plain_pytorch(name):
    model = build(name)
    x, y, windows = images(SIDE, SIDE), labels(SIDE, SIDE), torch.zeros(2, 7, dtype=torch.long)
    with torch.no_grad():
        output = model(x, labels=y, windows=windows)
        full = torch.nn.functional.interpolate(output.logits, size=y.shape[1:], mode="bilinear", align_corners=False)
        expected = torch.nn.functional.cross_entropy(full, y, ignore_index=255)
    torch.testing.assert_close(output.loss, expected)
    assert output.windows is windows


def test_all_ignored_batch_gives_zero_loss_and_gradient(name):
    model = build(name, training=True)
    loss = model(images(SIDE, SIDE), labels=torch.full((2, SIDE, SIDE), 255)).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_one_class_is_a_sigmoid(name):
    model = build(name, num_labels=1)
    x, y = images(SIDE, SIDE), labels(SIDE, SIDE)
    y = torch.where(y == 255, y, y % 2)
    with torch.no_grad():
        output = model(x, labels=y)
        full = torch.nn.functional.interpolate(output.logits, size=y.shape[1:], mode="bilinear")[:, 0]
        expected = torch.nn.functional.binary_cross_entropy_with_logits(full[y != 255], y[y != 255].float())
    torch.testing.assert_close(output.loss, expected)


def test_every_parameter_gets_a_gradient(name):
    model = build(name, training=True, drop_path_rate=0.0)
    model(images(SIDE, SIDE), labels=labels(SIDE, SIDE)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name, training=True)
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)  # the same dropout
        model(images(SIDE, SIDE), labels=labels(SIDE, SIDE)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


def test_batch_of_two_equals_two_of_one(name):
    model, x = build(name), images(75, 64)
    with torch.no_grad():
        together = model(x).logits
        apart = torch.cat([model(image[None]).logits for image in x])
    # Rounding only: matrix products of another height add in another order.
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=5e-5)


def test_bfloat16(name):
    model, x = build(name), images(SIDE, SIDE)
    with torch.no_grad():
        exact = model(x).logits
        model.to(torch.bfloat16)
        rounded = model(x.bfloat16(), labels=labels(SIDE, SIDE))
    assert rounded.logits.dtype == torch.bfloat16 and rounded.loss.isfinite()
    # bfloat16 has 8 bits: 0.4 % a number, some dozens of layers
    assert (rounded.logits.float() - exact).std() < 0.1 * exact.std()


def test_saved_and_loaded_gives_the_same_logits(name, tmp_path):
    model, x = build(name), images(SIDE, SIDE)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for auto_class in ("AutoModelForSemanticSegmentation", "AutoModel"):
        import transformers

        loaded = getattr(transformers, auto_class).from_pretrained(tmp_path).eval()
        assert type(loaded) is getattr(hf_segtx, name + auto_class.removeprefix("Auto").replace("ModelFor", "For"))
        with torch.no_grad():
            if auto_class == "AutoModel":
                torch.testing.assert_close(loaded(x).last_hidden_state, model.backbone(x).last_hidden_state)
            else:
                torch.testing.assert_close(loaded(x).logits, model(x).logits)


def test_configuration_survives_json(name, tmp_path):
    config = configuration(name, id2label={0: "road", 1: "sky"}, num_labels=2, dtype="bfloat16")
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())
    assert again.id2label == {0: "road", 1: "sky"} and again.num_labels == 2 and again.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 16; give a type of torch by its name"):
        configuration(name, dtype=16)


@pytest.mark.parametrize("given", [{"id2label": {0: "road"}}, {"id2label": {0: "background", 1: "road"}}])
def test_one_class_has_one_logit_and_a_background_in_the_label_map(name, given, tmp_path):
    """`pipeline` looks up each value of a label map in id2label."""
    names = {0: "background", 1: "road"}
    build(name, **given, num_labels=1).save_pretrained(tmp_path)
    processor = TINY[name].row.processor(do_resize=False)
    processor.save_pretrained(tmp_path)
    model = TINY[name].row.model.from_pretrained(tmp_path).eval()
    assert (model.config.num_labels, model.config.is_binary, model.config.id2label) == (1, True, names)
    assert model.config.label2id in (None, {"background": 0, "road": 1})  # None where id2label was given whole
    picture = Image.fromarray(torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8).numpy())
    with torch.no_grad():
        logits = model(**processor(picture, return_tensors="pt")).logits
    assert logits.shape[1] == 1
    mask = torch.nn.functional.interpolate(logits, (SIDE, SIDE), mode="bilinear")[0, 0] > 0
    answers = pipeline("image-segmentation", model=str(tmp_path))(picture)
    assert {answer["label"] for answer in answers} == {names[int(value)] for value in mask.unique()}
    for answer in answers:
        assert np.array_equal(np.asarray(answer["mask"]) > 0, mask == (answer["label"] == "road"))


@pytest.mark.parametrize(
    ("field", "least", "most", "beyond"),
    [
        ("num_channels", 1, 2**16, 2**16 + 1),
        ("num_hidden_layers", 1, 1000, 1001),
        ("patch_size", 1, 256, 257),
        ("image_size", 1, 2**14, 2**14 + 1),
        ("initializer_range", 1e-12, 1, 1.001),
        ("auxiliary_loss_weight", 0, 1000, 1000.1),
        ("semantic_loss_ignore_index", -(2**31), 2**31 - 1, 2**31),
        ("num_labels", 1, 2**16, 2**16 + 1),
    ],
)
def test_ends_of_ranges_are_taken_and_nothing_beyond(field, least, most, beyond):
    one_map = {"feature_indices": [0], "auxiliary_levels": []}
    for number in (least, most):
        assert getattr(configuration("SETR", **one_map, **{field: number}), field) == number
    for number in (least - 1, beyond):
        with pytest.raises(ValueError, match=rf"{field}: {number} is out of range; give .*{least} to {most}"):
            configuration("SETR", **one_map, **{field: number})
    with pytest.raises(ValueError, match="SegmentationConfig: is_binary: .* expected bool"):
        SegmentationConfig(is_binary=2)
    assert configuration("SETR", mlp_ratio=1 / configuration("SETR").hidden_size)  # a hidden width of one


def test_number_of_labels_is_a_whole_one(name):
    for number in (0, 2.5, True):
        message = f"^num_labels: {number} is out of range; give a whole number"  # and names no file, as there is none
        with pytest.raises(ValueError, match=message):
            type(configuration(name)).from_dict({"num_labels": number})


@pytest.mark.parametrize("name", [name for name, case in TINY.items() if case.attentions])
def test_attention_of_other_packages_is_taken(name):
    model = build(name)
    model.set_attn_implementation("flex_attention")
    assert model.config._attn_implementation == "flex_attention" and model.is_backend_compatible()
    if not any(importlib.util.find_spec(package) for package in ("flash_attn", "kernels")):
        with pytest.raises(ImportError, match="(?i)flash"):  # that it is not installed, not that it is not supported
            model.set_attn_implementation("flash_attention_2")


def test_number_of_labels_can_be_changed(name, tmp_path):
    names = {0: "background", 1: "road"}
    config = type(configuration(name))(**TINY[name].config, id2label=names, is_binary=True)
    assert (config.num_labels, config.id2label) == (1, names)
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert (again.num_labels, again.is_binary, again.id2label) == (1, True, names)
    assert type(config).from_pretrained(tmp_path, num_labels=4).num_labels == 4
    assert type(config)(**TINY[name].config, is_binary=True).num_labels == 1
    assert type(config)(**TINY[name].config, id2label=names).num_labels == 2
    config.num_labels = 3
    assert (config.num_labels, config.is_binary, len(config.id2label), len(config.label2id)) == (3, False, 3, 3)
    config.num_labels = 1
    assert (config.num_labels, config.is_binary, config.id2label) == (1, False, {0: "LABEL_0"})
    with pytest.raises(ValueError, match="but id2label has 3 names; give two"):
        type(config)(**TINY[name].config, id2label=dict(enumerate("abc")), is_binary=True)


def test_tuples_instead_of_outputs(name):
    """As the configuration or the call says, of the model and not of the parts inside it."""
    model, x = build(name), images(SIDE, SIDE)
    with torch.no_grad():
        expected = model(x).logits
        assert torch.equal(model(x, return_dict=False)[0], expected)
        model.config.return_dict = False
        assert torch.equal(model(x)[0], expected) and torch.equal(model(x, return_dict=True).logits, expected)


def test_unknown_size_is_refused(name):
    with pytest.raises(ValueError, match="unknown .* size 'b9'; choose one of"):
        type(configuration(name)).from_size("b9")


def test_labels_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match="one map of class ids per image"):
        build(name)(images(SIDE, SIDE), labels=labels(SIDE, SIDE)[0])


def test_labels_that_are_fractions_are_refused(name):
    """Label maps that went through ToTensor: k / 255, all of which would be class 0."""
    with pytest.raises(ValueError, match="labels are torch.float32; give class ids as integers"):
        build(name)(images(SIDE, SIDE), labels=labels(SIDE, SIDE) / 255)


def test_loss_function_can_be_replaced(name):
    """As the training script does for class weights; transformers' property must give our function back unbound."""
    model = build(name)
    assert model.loss_function is segmentation_loss
    weights = torch.arange(1.0, K + 1)
    model.loss_function = parse_loss(class_weights=weights)
    x, y = images(SIDE, SIDE), labels(SIDE, SIDE)
    with torch.no_grad():
        output = model(x, labels=y)
        full = torch.nn.functional.interpolate(output.logits, size=y.shape[1:], mode="bilinear", align_corners=False)
        expected = torch.nn.functional.cross_entropy(full, y, weight=weights, ignore_index=255)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_compiles_without_graph_breaks(name, training):
    """Traces forward and backward as torch.compile does, without the minutes of its C++ compiler."""
    torch._dynamo.reset()
    randomness = [key for key in configuration(name).to_dict() if key.endswith(("dropout_prob", "drop_path_rate"))]
    model = build(name, training=training, **dict.fromkeys(randomness, 0.0))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, y = images(SIDE, SIDE), labels(SIDE, SIDE)
    with torch.set_grad_enabled(training):
        expected, output = model(x, labels=y), compiled(x, labels=y)
    # the traced graph decomposes some layers: float32 rounding
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-4, atol=1e-5)
    if training:
        output.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_trainer_that_would_smooth_labels_itself_is_refused(name, tmp_path):
    """Trainer would smooth along the width of the small logits; with tall maps and few columns without any error."""
    options = dict(output_dir=tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    data = [{"pixel_values": images(SIDE, SIDE)[0], "labels": labels(SIDE, SIDE)[0]}] * 2
    trainer = Trainer(build(name), TrainingArguments(label_smoothing_factor=0.1, **options), train_dataset=data)
    with pytest.raises(ValueError, match="label_smoothing_factor 0.1 .*parse_loss.label_smoothing"):
        trainer.train()
    assert (lambda self: repr(self.model))(trainer).startswith(type(trainer.model).__name__)  # as a Trainer may log it
    model = build(name)
    model.loss_function = parse_loss(label_smoothing=0.1)  # what the message advises
    trainer = Trainer(model, TrainingArguments(**options), train_dataset=data)
    assert trainer.train().global_step == 1
    assert not trainer.model_accepts_loss_kwargs  # with them, it would not divide by gradient_accumulation_steps
    assert repr(model).startswith(type(model).__name__)


@pytest.mark.slow
def test_quantized_layers_compute_nearly_the_same(name):
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    model, x = build(name).eval(), images(SIDE, SIDE)
    with torch.no_grad():
        expected = model(x).logits
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        logits = model(x).logits
    count = sum(type(parameter) is not torch.nn.Parameter for parameter in model.parameters())
    assert (count == 0) == (name == "OCRNet")  # which has no linear layers, and those are what torchao quantises
    # a rounding of 1/256 of the largest weight of each row, in a handful of layers of random weights
    assert (logits - expected).abs().max() < 0.25 * expected.std()
    assert count == 0 or not torch.equal(logits, expected)


def pictures(*sizes):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]


def assert_equal_segments(result, expected):
    assert [each["label"] for each in result] == [each["label"] for each in expected]
    for each, other in zip(result, expected):
        assert np.array_equal(np.asarray(each["mask"]), np.asarray(other["mask"]))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (16, 16), (28, 28), (31, 33), (300, 5)])
def test_small_images_and_strips_are_predicted(name, size):
    """Oracle: the network on what the processor made, upsampled as a whole, without what was padded."""
    model, processor = build(name), TINY[name].row.processor(do_resize=False)
    (picture,) = pictures(size)
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    logits = torch.nn.functional.interpolate(model(pixel_values).logits, pixel_values.shape[2:], mode="bilinear")
    (label_map,) = predict(model, processor, [picture])
    agree = label_map == logits[0, :, : size[0], : size[1]].argmax(0)
    assert label_map.shape == size and agree.float().mean() > 0.99  # equal but where two classes are, up to rounding
    (result,) = segment(model, processor, [picture], scales=(0.25, 1.0), flip=True)
    assert result.label_map.shape == size


@pytest.mark.parametrize("batch_size", [2, 3, 8])  # so that the last batch has several images, or one
def test_pipeline_of_batches_with_windows_is_that_of_images(name, batch_size):
    processor = TINY[name].row.processor(do_resize=False, window_size=64, window_stride=48)
    segmenter = pipeline("image-segmentation", model=build(name), image_processor=processor)
    given = pictures((60, 100), (100, 120), (100, 60), (40, 40))  # 2, 6, 2 windows, and 1
    results = segmenter(given, batch_size=batch_size)
    assert len(results) == len(given)
    for result, picture in zip(results, given):
        assert_equal_segments(result, segmenter(picture))


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_pipeline_of_batches_with_other_sizes_says_what_to_set(name, backend):
    kind = TINY[name].row.processor_pil if backend == "pil" else TINY[name].row.processor
    processor = kind(size={"shortest_edge": 64})
    *alike, other = pictures((60, 100), (60, 100), (100, 60))
    assert type(processor(other, return_tensors="pt")["pixel_values"]) is torch.Tensor
    segmenter = pipeline("image-segmentation", model=build(name), image_processor=processor)
    for result, picture in zip(segmenter(alike, batch_size=2), alike, strict=True):
        assert_equal_segments(result, segmenter(picture))
    with pytest.raises(ValueError, match="pixels in one batch; leave pipeline's batch_size at 1, set"):
        segmenter([*alike, other], batch_size=3)
    assert not any("batch" in key for key in processor.to_dict())


@pytest.mark.parametrize("as_convolution", [False, True])
def test_linear_matches_torch(as_convolution, monkeypatch):
    """Forward and backward, with any leading dimensions, contiguous or not."""
    monkeypatch.setattr(cpu, "is_faster_as_convolution", lambda x, weight: as_convolution)
    convolutions, conv2d = [], torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a, **k: convolutions.append(1) or conv2d(*a, **k))
    torch.manual_seed(0)
    for shape in [(5,), (2, 7, 5), (2, 3, 4, 5)]:
        ours, theirs = Linear(5, 6), torch.nn.Linear(5, 6)
        ours.load_state_dict(theirs.state_dict())
        for x in (torch.randn(shape), torch.randn(shape[::-1]).permute(*range(len(shape))[::-1])):
            inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
            outputs = [ours(inputs[0]), theirs(inputs[1])]
            torch.testing.assert_close(*outputs)
            for output in outputs:
                output.square().sum().backward()
            torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    assert bool(convolutions) == as_convolution
    convolutions.clear()  # other types, and exported graphs, get the product that it is
    Linear(5, 6).bfloat16()(torch.randn(2, 5, dtype=torch.bfloat16))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    Linear(5, 6)(torch.randn(2, 5))
    assert not convolutions


@pytest.mark.parametrize(
    "instruction_set, tokens, width_in, width_out, training, expected",
    [  # from a measurement of these shapes; small ones would not reach oneDNN
        ("AVX512", 16384, 64, 256, False, True),
        ("AVX512", 256, 64, 64, False, False),
        ("AVX2", 16384, 32, 128, False, True),
        ("AVX2", 16384, 64, 256, False, False),
        ("AVX2", 16384, 256, 64, True, True),
        ("AVX2", 1024, 160, 640, False, False),
        ("AVX2", 1024, 768, 3072, False, True),
        ("AVX2", 1024, 768, 3072, True, False),
        ("AVX2", 256, 1024, 256, False, False),
    ],
)
def test_linear_is_computed_the_faster_way(
    instruction_set, tokens, width_in, width_out, training, expected, monkeypatch
):
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", instruction_set)
    layer = Linear(width_in, width_out)
    x = torch.zeros(1, 1, 1).expand(1, tokens, width_in)
    with torch.set_grad_enabled(training):
        assert cpu.is_faster_as_convolution(x, layer.weight) == expected
    monkeypatch.setattr(cpu, "HAS_ONEDNN", False)
    assert not cpu.is_faster_as_convolution(x, layer.weight)


@pytest.mark.parametrize(("instruction_set", "wanted"), [("AVX2", True), ("AVX512", False)])
def test_kernels_train_on_maps_with_the_channels_first(monkeypatch, instruction_set, wanted):
    """Where their gradient takes less time so; the function stays the same."""
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", instruction_set)
    tokens, seen, results = torch.randn(1, 6, 5, 8).permute(0, 3, 1, 2), [], []
    for kernel_size in (3, 1):
        layer = ConvNormAct(8, 8, kernel_size)
        results.append((layer(tokens), layer.act(layer.norm(layer.conv(tokens)))))
        layer.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
        layer(tokens)
        layer.eval()(tokens)
    assert seen == [wanted, False, False, False]
    for result, expected in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)  # sums in another order
