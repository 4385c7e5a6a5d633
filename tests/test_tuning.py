"""What trains and what stays: `freeze`, the values of `tune`, and training from cached feature maps."""

import copy
import json
import shutil
from importlib.util import find_spec
from itertools import islice

import pytest
import torch
from small_data import write_folder
from tiny import CASES
from transformers import DINOv3ViTConfig, ResNetConfig, Trainer, TrainingArguments

from hf_segtx.cli import main
from hf_segtx.cli.training_flags import parse_training
from hf_segtx.training import feature_cache, loop, setup
from hf_segtx.training.arguments import Arguments
from hf_segtx.training.feature_cache import FeatureCache


NEEDS_PEFT = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
# Backbones of transformers: random positions in training, batch norms.
FOREIGN = {
    "segmenter on DINOv3": DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_register_tokens=4
    ),
    "segformer on ResNet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, layer_type="basic", out_indices=[1, 2, 3, 4]
    ),
}
DROPOUT = {
    "setr": {"hidden_dropout_prob": 0.5},
    "segformer": {"hidden_dropout_prob": 0.5, "drop_path_rate": 0.5},
    "segmenter": {"hidden_dropout_prob": 0.5, "decode_head": "linear"},
    "ocrnet": {},
}


def make_model(name: str, **fields):
    """A tiny model whose backbone is random in training: dropout, or batch norms (OCRNet)."""
    if name in FOREIGN:
        fields, name = {"backbone_config": copy.deepcopy(FOREIGN[name]), **fields}, name.split()[0]
    return CASES[name].make_model(**DROPOUT[name], **fields)


def batch(name: str) -> dict:
    case = CASES[name.split()[0]]
    size = case.image_size
    labels = torch.randint(case.num_labels, (2, size, size))
    return {"pixel_values": torch.randn(2, 3, size, size), "labels": labels}


def train(model, inputs: dict, steps: int = 2) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def changed(before: dict, model) -> set[str]:
    """Names of parameters and of statistics."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# ---- freeze


@pytest.mark.parametrize("name", [*CASES, *FOREIGN])
def test_frozen_backbone_is_deterministic_and_keeps_nothing_for_gradients(name):
    model, inputs = make_model(name), batch(name)
    expected = model.backbone(inputs["pixel_values"]).feature_maps
    model.train()
    assert not torch.equal(model.backbone(inputs["pixel_values"]).feature_maps[0], expected[0])  # it is random else
    model = make_model(name)
    expected = model.backbone(inputs["pixel_values"]).feature_maps
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model.freeze("backbone")
    model.train()
    seen = []
    model.backbone.register_forward_hook(lambda module, args, output: seen.extend(output.feature_maps))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        features = model.features(inputs["pixel_values"])
    assert not kept and not any(value.requires_grad for value in features.feature_maps)
    train(model, inputs)
    for maps in (seen[: len(expected)], seen[-len(expected) :]):  # also after the head's steps
        # without autograd wide maps are computed in blocks of rows, which rounds otherwise
        for value, other in zip(maps, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)
    assert changed(before, model.backbone) == set()
    assert model.decode_head.training and not any(module.training for module in model.backbone.modules())


def test_freeze_says_what_is_frozen_from_then_on():
    model = make_model("segformer")
    model.freeze("backbone.stages.0", "decode_head.norm")
    model.train()
    assert not model.decode_head.norm.training and model.backbone.stages[1].training
    model.freeze("backbone")
    assert not model.backbone.stages[1].training and model.decode_head.norm.training
    assert all(value.requires_grad == (not key.startswith("backbone.")) for key, value in model.named_parameters())
    model.freeze()
    assert all(module.training for module in model.modules())
    assert all(value.requires_grad for value in model.parameters())
    with pytest.raises(ValueError, match="`freeze` stem: there is no such module; the backbone has stages"):
        model.freeze("backbone", "stem")
    assert model.backbone.training


def test_is_no_property_of_the_checkpoint(tmp_path):
    model = make_model("ocrnet")
    model.freeze("backbone")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).train()
    assert again.backbone.training and all(value.requires_grad for value in again.parameters())


def test_trainer_keeps_it(tmp_path):
    model, inputs = make_model("ocrnet"), batch("ocrnet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.freeze("backbone")
    rows = [{key: value[row] for key, value in inputs.items()} for row in range(2)]
    settings = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, report_to=[], learning_rate=1e-2, save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=rows)
    trainer.train()
    names = changed(before, model)
    assert "decode_head.classifier.weight" in names and not any(name.startswith("backbone.") for name in names)
    trained = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    assert not trained & {id(value) for value in model.backbone.parameters()}


# ---- tune


PROMISED = {
    "full": lambda name, model: True,
    "frozen": lambda name, model: not name.startswith("backbone.") or name.startswith("backbone.neck."),
    "linear": lambda name, model: ".classifier." in name,
    "lora": lambda name, model: (
        "lora_" in name
        or PROMISED["frozen"](name, model)
        or isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.BatchNorm2d)
    ),
}


@pytest.mark.parametrize("tune", ["full", "frozen", "linear", pytest.param("lora", marks=NEEDS_PEFT)])
@pytest.mark.parametrize("name", [*CASES, *FOREIGN, "setr mla"])
def test_what_changes_is_what_was_promised(name, tune):
    mla = {"decode_head": "mla", "auxiliary_levels": []}
    name, fields = ("setr", mla) if name == "setr mla" else (name, {})
    model, inputs = make_model(name, **fields), batch(name)
    setup.choose_parameters(Arguments(tune=tune), model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = train(model, inputs, steps=3)  # the first step of an adapter moves one of its factors only
    names = changed(before, model)
    parameters = {key: value for key, value in model.named_parameters()}
    promised = {key for key in parameters if PROMISED[tune](key, model)}
    # of what the tokens of a class are in a head without one, or what follows the last block that is read, no gradient
    unread = {key for key in promised if parameters[key].grad is None and parameters[key] not in optimizer.state}
    assert names & parameters.keys() == promised - unread, (names & parameters.keys()) ^ promised
    assert not unread or tune in ("full", "lora")
    assert {id(value) for value in optimizer.state} == {id(parameters[key]) for key in promised - unread}
    statistics = {key for key in names - parameters.keys() if "running" in key}
    if tune in ("frozen", "linear"):
        assert not any(key.startswith("backbone.") and "neck" not in key for key in statistics)
    assert bool(statistics) == (tune != "linear" and any("running" in key for key in before))


def test_classes_that_are_compared_have_no_classifier():
    with pytest.raises(ValueError, match="SegmenterMaskHead, has no classifier"):
        setup.choose_parameters(Arguments(tune="linear"), CASES["segmenter"].make_model())


# ---- cached features


class Kill(BaseException):
    """Stands in for SIGKILL: no handler knows it."""


# Six steps of two micro-batches of two of ten scenes: 24 crops, of epochs 0 to 2.
STEPS = (
    "--crop_size 64 --max_train_samples 10 --max_eval_samples 2 --per_device_train_batch_size 2 --max_train_steps 6 "
)
STEPS += "--gradient_accumulation_steps 2 --evaluation_steps 6 --checkpointing_steps 2 --logging_steps 1 "
STEPS += "--learning_rate 1e-3 --tune frozen"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """The flags of ten images for training and two for validation."""
    folder = tmp_path_factory.mktemp("data")
    train, validation = write_folder(folder / "train", 10, (48, 80)), write_folder(folder / "val", 2, (48, 80))
    return ["--train_dir", str(train), "--validation_dir", str(validation)]


def arguments_of(images, folder, *flags, name: str = "segformer", **fields) -> Arguments:
    if name in FOREIGN:
        fields, name = {"backbone_config": FOREIGN[name].to_dict(), **fields}, name.split()[0]
    config = {**CASES[name].config, **DROPOUT[name], **fields}
    words = [*STEPS.split(), *images, "--output_dir", folder / "out", "--architecture", name, "--config_overrides"]
    return parse_training([*map(str, words), json.dumps(config), *map(str, flags)])


def cached(images, folder, *flags, views: int = 3, **settings) -> Arguments:
    return arguments_of(
        images, folder, "--cache_features", folder / "maps", "--feature_views", views, *flags, **settings
    )


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def written(monkeypatch) -> list[int]:
    """Numbers of the views that are written from now on."""
    rows, original = [], FeatureCache.write

    def write(cache, numbers, values):
        rows.extend(numbers.tolist())
        original(cache, numbers, values)

    monkeypatch.setattr(FeatureCache, "write", write)
    return rows


@pytest.mark.parametrize("name", [*CASES, *FOREIGN])
def test_cache_holds_what_the_backbone_gives(name, images, tmp_path):
    run = loop.TrainingRun(cached(images, tmp_path, name=name))
    inputs = run.arguments, run.accelerator, run.train_dataset, run.processor, run.labels, 0
    direct_batches = setup.build_loader(*inputs)
    for direct, stored in islice(zip(direct_batches, run.loader), 12):  # 24 crops, of three epochs
        run.bare_model.eval()
        with torch.no_grad():
            maps = run.bare_model.backbone(direct["pixel_values"]).feature_maps
        assert torch.equal(direct["labels"], stored["labels"]) and len(maps) == len(stored["feature_maps"])
        assert stored["pixel_values"].shape == direct["pixel_values"].shape
        for value, other in zip(maps, stored["feature_maps"], strict=True):
            # half precision has 11 bits, the smallest step is 2^-24; a batch of others may round to the neighbour
            torch.testing.assert_close(other, value, rtol=2**-10, atol=2**-23)


def test_views_come_again(images, tmp_path):
    run = loop.TrainingRun(cached(images, tmp_path, views=2))
    batches = list(islice(zip(run.loader.batches, run.loader), 15))
    views = {}
    for keys, batch in batches:
        for (epoch, index), labels in zip(keys, batch["labels"], strict=True):
            views.setdefault((epoch % 2, index), []).append(labels)
    assert len(views) == 20
    assert all(torch.equal(labels, same[0]) for same in views.values() for labels in same)
    assert sum(len(same) for same in views.values()) == 30


@pytest.mark.slow
def test_trains_as_without(images, tmp_path):
    """Over as many epochs as there are views: up to float16, in which the loss differs by some 1e-4."""
    with_cache, without = (
        loop.train(make(images, tmp_path / make.__name__)) for make in (cached, arguments_of)
    )  # fmt: skip
    losses, others = ([entry["loss"] for entry in results["losses"]] for results in (with_cache, without))
    assert losses == pytest.approx(others, rel=2e-3) and losses != others
    assert with_cache["overall_accuracy"] == pytest.approx(without["overall_accuracy"], abs=0.01)


def test_killed_while_writing_goes_on_without_double_work(images, tmp_path, written, monkeypatch):
    loop.TrainingRun(cached(images, tmp_path / "whole")).lock.release()
    assert sorted(written) == list(range(30))
    expected, original = content(tmp_path / "whole" / "maps"), FeatureCache._write
    written.clear()

    def killed(cache, name, rows, values):
        if name == "labels" and 10 in rows:
            original(cache, name, rows[:1], values[:1])
            raise Kill
        original(cache, name, rows, values)

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(FeatureCache, "_write", killed)
        loop.TrainingRun(cached(images, tmp_path))
    assert content(tmp_path / "maps") != expected
    written.clear()
    loop.TrainingRun(cached(images, tmp_path)).lock.release()
    assert written == list(range(10, 30))
    assert content(tmp_path / "maps") == expected
    written.clear()
    loop.TrainingRun(cached(images, tmp_path, "--overwrite_output_dir")).lock.release()
    assert written == [] and content(tmp_path / "maps") == expected


def test_resumed_run_is_the_same(images, tmp_path, written, monkeypatch):
    """Also one that finds the cache, and the same cache at another place."""
    loop.train(cached(images, tmp_path))
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    shutil.move(tmp_path / "out", tmp_path / "first")
    written.clear()
    original, calls = loop.loss_shares, []

    def killed(*inputs):
        calls.append(inputs)
        if len(calls) == 4:
            raise Kill
        return original(*inputs)

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(loop, "loss_shares", killed)
        loop.train(cached(images, tmp_path))
    shutil.move(tmp_path / "maps", tmp_path / "moved")
    recipe = ["--recipe", tmp_path / "out" / "train.args", "--resume_from_checkpoint", "latest"]
    loop.train(parse_training([*map(str, recipe), "--cache_features", str(tmp_path / "moved")]))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights and written == []
    recipe = (tmp_path / "out" / "train.args").read_text()
    assert "--tune frozen" in recipe and "--feature_views 3" in recipe
    with pytest.raises(ValueError, match="feature_views: 3 there, None here"):
        loop.train(arguments_of(images, tmp_path, "--resume_from_checkpoint", "latest"))


def test_features_of_something_else_are_refused(images, tmp_path):
    def refusal(*flags, **settings) -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            loop.TrainingRun(cached(images, tmp_path, "--overwrite_output_dir", *flags, **settings))
        return str(caught.value)

    loop.TrainingRun(cached(images, tmp_path)).lock.release()
    before = content(tmp_path / "maps")
    assert "weights: " in refusal("--seed", 1) and "seed: 0 there, 1 here" in refusal("--seed", 1)
    assert "views: 3 there, 2 here" in refusal(views=2)
    assert "crop_size: [64, 64] there, [96, 96] here" in refusal("--crop_size", 96)
    assert "flip_probability: 0.5 there, 0.0 here" in refusal("--flip_probability", 0)
    assert "train_images: 10 there, 9 here" in refusal("--max_train_samples", 9)
    assert "std: " in refusal("--image_std", 0.3, 0.2, 0.1)
    heads = CASES["segformer"].config["num_attention_heads"]  # another function of the same weights
    assert f"config.num_attention_heads: {heads} there, [1, 1, 1, 1] here" in refusal(num_attention_heads=[1] * 4)
    # another head and loss on the same maps
    loop.TrainingRun(
        cached(images, tmp_path, "--overwrite_output_dir", "--loss", "dice", "--tune", "linear", decoder_hidden_size=8)
    ).lock.release()
    assert content(tmp_path / "maps") == before
    damaged = bytearray(before["map_2"])
    damaged[: len(damaged) // 30] = bytes(len(damaged) // 30)
    (tmp_path / "maps" / "map_2").write_bytes(damaged)
    assert "map_2 of the first image is not what this backbone makes" in refusal()


def test_what_cannot_be_cached(images, tmp_path, capsys, monkeypatch):
    def said(*flags) -> str:
        out = ["--output_dir", str(tmp_path / "out")]
        assert main(["train", *STEPS.split(), *images, *out, *map(str, flags)]) == 2
        return capsys.readouterr().err

    maps = ["--cache_features", tmp_path / "maps"]
    assert "--tune is full, use frozen or linear" in said("--tune", "full", *maps)
    assert "--feature_views 2 is for --cache_features" in said("--feature_views", 2)
    assert "--freeze backbone is what --tune frozen says" in said("--freeze", "backbone")
    tiny = {**CASES["setr"].config, "decode_head": "mla", "auxiliary_levels": []}
    tiny = ["--architecture", "setr", "--config_overrides", json.dumps(tiny)]
    assert "its neck.norms.0.weight trains; use --tune linear" in said(*tiny, *maps)
    tiny = ["--config_overrides", json.dumps(CASES["segformer"].config)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert "is not empty: it has thesis.tex" in said(*tiny, "--cache_features", tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1e5}))
        assert "GB for 40 views, and 0.00 GB are free there; lower --feature_views" in said(*tiny, *maps)
    assert not list((tmp_path / "maps").iterdir())


def test_values_beyond_float16_are_refused(images, tmp_path, monkeypatch):
    original = feature_cache.FeatureWriter.__init__

    def scale(module, inputs, output):
        output.feature_maps = tuple(1e6 * value for value in output.feature_maps)

    def scaled(writer, model, *inputs):
        original(writer, model, *inputs)
        model.backbone.register_forward_hook(scale)

    monkeypatch.setattr(feature_cache.FeatureWriter, "__init__", scaled)
    with pytest.raises(ValueError, match="beyond float16"):
        loop.TrainingRun(cached(images, tmp_path))
    monkeypatch.setattr(feature_cache, "is_sharded", lambda accelerator: True)
    with pytest.raises(ValueError, match="needs the whole backbone in each process"):
        loop.TrainingRun(cached(images, tmp_path))
