"""The contract that every architecture keeps, on tiny random networks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import hf_segtx
from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.losses import parse_loss
from hf_segtx.models import cpu
from hf_segtx.models.cpu import Linear
from hf_segtx.models.segmentation_base import segmentation_loss


# One row an architecture: configuration class and a tiny configuration; K classes, images of SIDE pixels.
K, SIDE = 5, 64
TINY = {
    "SETR": dict(image_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, decoder_hidden_size=16),
    "SegFormer": dict(
        depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16
    ),
    "Segmenter": dict(image_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "OCRNet": dict(
        stem_hidden_sizes=[8, 8],
        hidden_sizes=[4, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_modules=[1, 1, 1, 1],
        layer1_hidden_size=8,
        decoder_hidden_size=16,
        decoder_key_size=8,
    ),
}


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def configuration(name, **overrides):
    return getattr(hf_segtx, f"{name}Config")(**{**TINY[name], "num_labels": K, **overrides})


def build(name, training=False, **overrides):
    torch.manual_seed(0)
    model = getattr(hf_segtx, f"{name}ForSemanticSegmentation")(configuration(name, **overrides))
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


def test_every_architecture_has_a_row():
    assert [f"{name}Config" for name in TINY] == [row.config.__name__ for row in ARCHITECTURES.values()]


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
    x, y = images(SIDE, SIDE), labels(SIDE, SIDE)
    with torch.no_grad():
        output = model(x, labels=y)
        full = torch.nn.functional.interpolate(output.logits, size=y.shape[1:], mode="bilinear", align_corners=False)
        expected = torch.nn.functional.cross_entropy(full, y, ignore_index=255)
    torch.testing.assert_close(output.loss, expected)


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
    config = configuration(name, id2label={0: "road", 1: "sky"}, num_labels=2)
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())
    assert again.id2label == {0: "road", 1: "sky"} and again.num_labels == 2


@pytest.mark.parametrize("given", [{"id2label": {0: "road"}}, {"id2label": {0: "background", 1: "road"}}])
def test_one_class_has_one_logit_and_a_background_in_the_label_map(name, given, tmp_path):
    """`pipeline` looks up each value of a label map in id2label."""
    names = {0: "background", 1: "road"}
    build(name, **given, num_labels=1).save_pretrained(tmp_path)
    processor = getattr(hf_segtx, f"{name}ImageProcessor")(do_resize=False)
    processor.save_pretrained(tmp_path)
    model = getattr(hf_segtx, f"{name}ForSemanticSegmentation").from_pretrained(tmp_path).eval()
    assert (model.config.num_labels, model.config.is_binary, model.config.id2label) == (1, True, names)
    picture = Image.fromarray(torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8).numpy())
    with torch.no_grad():
        logits = model(**processor(picture, return_tensors="pt")).logits
    assert logits.shape[1] == 1
    mask = torch.nn.functional.interpolate(logits, (SIDE, SIDE), mode="bilinear")[0, 0] > 0
    answers = pipeline("image-segmentation", model=str(tmp_path))(picture)
    assert {answer["label"] for answer in answers} == {names[int(value)] for value in mask.unique()}
    for answer in answers:
        assert np.array_equal(np.asarray(answer["mask"]) > 0, mask == (answer["label"] == "road"))


def test_number_of_labels_can_be_changed(name, tmp_path):
    names = {0: "background", 1: "road"}
    config = type(configuration(name))(**TINY[name], id2label=names, is_binary=True)
    assert (config.num_labels, config.id2label) == (1, names)
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert (again.num_labels, again.is_binary, again.id2label) == (1, True, names)
    assert type(config).from_pretrained(tmp_path, num_labels=4).num_labels == 4
    assert type(config)(**TINY[name], is_binary=True).num_labels == 1
    config.num_labels = 3
    assert (config.num_labels, config.is_binary, len(config.id2label), len(config.label2id)) == (3, False, 3, 3)
    config.num_labels = 1
    assert (config.num_labels, config.is_binary, config.id2label) == (1, False, {0: "LABEL_0"})
    with pytest.raises(ValueError, match="but id2label has 3 names; give two"):
        type(config)(**TINY[name], id2label=dict(enumerate("abc")), is_binary=True)


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


@pytest.mark.parametrize("as_convolution", [False, True])
def test_linear_matches_torch(as_convolution, monkeypatch):
    """Forward and backward, with any leading dimensions, contiguous or not."""
    monkeypatch.setattr(cpu, "is_faster_as_convolution", lambda x, weight: as_convolution)
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
