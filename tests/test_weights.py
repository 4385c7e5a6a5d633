"""Reading checkpoints, refusing what is not understood, and pre-trained backbones against their own libraries."""

import functools
import re
import tarfile
import zipfile

import numpy as np
import pytest
import test_segformer
import timm.models.deit
import timm.models.resnetv2
import timm.models.vision_transformer
import timm.models.vision_transformer_hybrid
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from timm.layers.patch_embed import resample_patch_embed
from tiny import CASES

from hf_segtx import SegFormerModel
from hf_segtx.models.configuration_setr import SETRConfig
from hf_segtx.models.modeling_setr import SETRForSemanticSegmentation, SETRModel
from hf_segtx.weights import load_backbone, load_original
from hf_segtx.weights.files import check_tensors, read_state_dict


TINY = dict(image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
TIMM = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=7)


def randomized(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def backbone(**overrides):
    return SETRModel(SETRConfig(**{**TINY, **overrides})).eval()


def timm_vit(**overrides):
    return randomized(timm.models.vision_transformer.VisionTransformer(**{**TIMM, **overrides}))


def assert_same_features(model, expected, images):
    with torch.no_grad():
        own = model(images).last_hidden_state
    # 1e-4: float32 rounding through two blocks, in another order of operations
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def timm_features(reference, images):
    """Tokens after the last block, before the final norm, which SETR does not have."""
    with torch.no_grad():
        tokens = reference.patch_embed(images)
        tokens = torch.cat((reference.cls_token.expand(len(images), -1, -1), tokens), dim=1)
        return reference.blocks(tokens + reference.pos_embed)


# ------------------------------------------------------------------------------------------------------ originals


def authors_state():
    """A SETR-Naive in the authors' format; what it computes is tested in test_setr.py."""
    model = randomized(SETRForSemanticSegmentation(SETRConfig(**{**TINY, "num_attention_heads": 1}, num_labels=7)))
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("backbone.vit.", "backbone.").replace("auxiliary_heads.", "auxiliary_head.")
        name = name.replace("convs.0.conv.", "conv_0.").replace("convs.0.norm.", "syncbn_fc_0.")
        state[name.replace("classifier.", "conv_1.")] = tensor
    state["decode_head.conv_seg.weight"] = torch.randn(7, 512, 1, 1)
    return model, state


def test_every_kind_of_file(tmp_path):
    model, state = authors_state()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).logits
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "c.pth")
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "d.pth")
    for source in (state, *sorted(tmp_path.iterdir())):
        loaded = load_original(source)
        assert loaded.config.num_labels == 7 and not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(images).logits, expected)


def test_class_names_come_along(tmp_path):
    """From where mmsegmentation 0 and 1 write them."""
    _, state = authors_state()
    names = list("gfedcba")
    for meta in ({"CLASSES": tuple(names), "PALETTE": [[1, 2, 3]] * 7}, {"dataset_meta": {"classes": names}}):
        torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
        config = load_original(tmp_path / "a.pth").config
        assert [config.id2label[number] for number in range(7)] == names and config.label2id["a"] == 6
    own = {number: f"own {number}" for number in range(7)}
    assert load_original(tmp_path / "a.pth", id2label=own).config.id2label == own


def test_overrides_reach_the_configuration():
    config = load_original(authors_state()[1], drop_path_rate=0.1, auxiliary_loss_weight=0.2).config
    assert (config.drop_path_rate, config.auxiliary_loss_weight) == (0.1, 0.2)


def test_pickles_do_not_run_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"state_dict": {"weight": torch.zeros(1)}, "meta": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        load_original(tmp_path / "harmful.pth")
    assert not (tmp_path / "made").exists()


def test_what_is_not_understood_is_refused(tmp_path):
    _, state = authors_state()
    with pytest.raises(ValueError, match="no known source.*first unexpected keys: features.0.weight"):
        load_original({"features.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="1 tensors are unexpected.*extra.weight"):
        load_original({**state, "extra.weight": torch.zeros(1)})
    missing = {name: tensor for name, tensor in state.items() if name != "backbone.blocks.1.norm1.bias"}
    with pytest.raises(ValueError, match=r"1 are missing \(backbone.vit.blocks.1.norm1.bias\)"):
        load_original(missing)
    with pytest.raises(ValueError, match="does not fit"):
        load_original({**state, "backbone.cls_token": torch.zeros(1, 1, 3)})
    with pytest.raises(ValueError, match="does not fit"):
        load_original({name: tensor for name, tensor in state.items() if name != "backbone.pos_embed"})
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="holds no state dict but a Tensor"):
        read_state_dict(tmp_path / "tensor.pth")


# ------------------------------------------------------------------------------------------------------ backbones


def test_timm_backbone_matches_timm(tmp_path, caplog):
    reference = timm_vit()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    model = SETRForSemanticSegmentation(SETRConfig(**TINY, num_labels=3)).eval()
    head = {name: tensor.clone() for name, tensor in model.decode_head.state_dict().items()}
    load_backbone(model, tmp_path)
    assert all(name in caplog.text for name in ("left out", "head.weight", "head.bias", "norm.weight", "norm.bias"))
    images = torch.randn(2, 3, 32, 32)
    assert_same_features(model.backbone, timm_features(reference, images), images)
    assert all(torch.equal(head[name], tensor) for name, tensor in model.decode_head.state_dict().items())


def test_distilled_backbone_matches_timm(tmp_path):
    reference = randomized(timm.models.deit.VisionTransformerDistilled(**TIMM))
    torch.save({"model": reference.state_dict()}, tmp_path / "deit.pth")  # as DeiT's authors publish it
    images = torch.randn(2, 3, 32, 32)
    model = backbone(use_distillation_token=True)
    load_backbone(model, tmp_path / "deit.pth")
    with torch.no_grad():
        tokens = reference.patch_embed(images)
        tokens = torch.cat((reference.cls_token.expand(2, 1, -1), reference.dist_token.expand(2, 1, -1), tokens), 1)
        expected = reference.blocks(tokens + reference.pos_embed)
    assert_same_features(model, expected, images)

    model = backbone()  # without the token: what is left is the same network without it
    load_backbone(model, tmp_path / "deit.pth")
    with torch.no_grad():
        expected = reference.blocks(tokens[:, [0, *range(2, 18)]] + reference.pos_embed[:, [0, *range(2, 18)]])
    assert_same_features(model, expected, images)


@pytest.mark.parametrize("original_format", [True, False], ids=["as on the Hub", "module names"])
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_transformers_backbone_matches_transformers(kind, original_format, tmp_path):
    config = getattr(transformers, f"{kind}Config")(
        **{**TINY, "layer_norm_eps": 1e-6}, intermediate_size=256, num_labels=7
    )
    reference = randomized(getattr(transformers, f"{kind}ForImageClassification")(config))
    reference.save_pretrained(tmp_path, save_original_format=original_format)
    model = backbone(use_distillation_token=kind == "DeiT")
    load_backbone(model, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference(images, output_hidden_states=True).hidden_states[-1]
    assert_same_features(model, expected, images)


def jax_arrays(reference):
    """timm's weights as the JAX code saves them."""
    arrays, width, heads = {}, 64, 2
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    arrays["cls"], arrays["Transformer/posembed_input/pos_embedding"] = state["cls_token"], state["pos_embed"]
    arrays["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    arrays["embedding/bias"] = state["patch_embed.proj.bias"]
    arrays["head/kernel"], arrays["head/bias"] = state["head.weight"].T, state["head.bias"]
    for part, name in (("scale", "weight"), ("bias", "bias")):
        arrays[f"Transformer/encoder_norm/{part}"] = state[f"norm.{name}"]
    for i in range(2):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for number, name in ((0, "norm1"), (2, "norm2")):
            arrays[f"{theirs}/LayerNorm_{number}/scale"] = state[f"{ours}.{name}.weight"]
            arrays[f"{theirs}/LayerNorm_{number}/bias"] = state[f"{ours}.{name}.bias"]
        for number, name in ((0, "fc1"), (1, "fc2")):
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}.mlp.{name}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}.mlp.{name}.bias"]
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weights, biases = (np.split(state[f"{ours}.attn.qkv.{name}"], 3) for name in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), weights, biases):
            arrays[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
    return arrays


def test_jax_backbone_matches_timm(tmp_path):
    np.savez(tmp_path / "vit.npz", **jax_arrays(timm_vit()))
    reference = timm_vit()
    reference.load_pretrained(str(tmp_path / "vit.npz"))  # timm's own reader
    model = backbone()
    load_backbone(model, tmp_path / "vit.npz")
    images = torch.randn(2, 3, 32, 32)
    assert_same_features(model, timm_features(reference, images), images)


def hybrid_vit():
    stem = timm.models.resnetv2.ResNetV2(
        layers=(1, 2, 1), channels=(128, 256, 512), stem_chs=32, num_classes=0, global_pool="", preact=False,
        stem_type="same", conv_layer=timm.layers.StdConv2dSame,
    )  # fmt: skip
    return timm_vit(
        img_size=64,
        patch_size=1,
        embed_layer=lambda **kwargs: timm.models.vision_transformer_hybrid.HybridEmbed(stem, **kwargs),
    )


def jax_stem_arrays(reference):
    arrays = {}
    for name, tensor in reference.patch_embed.backbone.state_dict().items():
        name = name.replace("stem.conv.", "conv_root/").replace("stem.norm.", "gn_root/")
        name = re.sub(r"stages\.(\d)\.blocks\.(\d)\.", lambda m: f"block{int(m[1]) + 1}/unit{int(m[2]) + 1}/", name)
        name = name.replace("downsample.conv.", "conv_proj/").replace("downsample.norm.", "gn_proj/")
        name = re.sub(r"norm(\d)\.", r"gn\1/", re.sub(r"conv(\d)\.", r"conv\1/", name))
        array = tensor.numpy()
        if array.ndim == 4:
            arrays[name.replace("weight", "kernel")] = array.transpose(2, 3, 1, 0)
        else:
            arrays[name.replace("weight", "scale")] = array.reshape(1, 1, 1, -1)
    return arrays


@pytest.mark.parametrize("format", ["timm", "jax"])
def test_hybrid_backbone_matches_timm(format, tmp_path):
    reference = hybrid_vit()
    if format == "timm":
        file = tmp_path / "hybrid.pth"
        torch.save(reference.state_dict(), file)
    else:
        file = tmp_path / "hybrid.npz"
        np.savez(file, **jax_arrays(reference), **jax_stem_arrays(reference))
        reference = hybrid_vit()
        reference.load_pretrained(str(file))  # timm's own reader
    model = backbone(image_size=64, patch_size=16, stem_depths=[1, 2, 1], stem_hidden_sizes=[128, 256, 512])
    load_backbone(model, file)
    images = torch.randn(2, 3, 64, 64)
    assert_same_features(model, timm_features(reference, images), images)


def test_position_table_is_resized(tmp_path):
    reference = timm_vit()
    torch.save(reference.state_dict(), tmp_path / "vit.pth")
    model = backbone(image_size=[48, 80])
    load_backbone(model, tmp_path / "vit.pth")
    grid = reference.pos_embed[:, 1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 10), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.vit.pos_embed[:, 1:], expected)
    assert torch.equal(model.vit.pos_embed[:, :1], reference.pos_embed[:, :1])


@pytest.mark.parametrize("patch_size", [4, 16])
def test_patch_kernel_is_resized_as_in_timm(patch_size, tmp_path):
    reference = timm_vit()
    torch.save(reference.state_dict(), tmp_path / "vit.pth")
    model = backbone(patch_size=patch_size, image_size=4 * patch_size)
    load_backbone(model, tmp_path / "vit.pth")
    expected = resample_patch_embed(reference.patch_embed.proj.weight.detach(), [patch_size, patch_size])
    # 1e-4: both take a pseudo-inverse in float32
    torch.testing.assert_close(model.vit.patch_embed.proj.weight, expected, rtol=1e-4, atol=1e-4)


def test_wrong_backbones_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file or folder, and timm/no_such_model on the Hub has neither"):
        load_backbone(backbone(), "no_such_model")
    with pytest.raises(ValueError, match="has neither model.safetensors nor pytorch_model.bin"):
        load_backbone(backbone(), tmp_path)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="is no ViT with class token and position table; its first keys: conv1.weight"):
        load_backbone(backbone(), tmp_path / "resnet.pth")
    torch.save(timm_vit(depth=3).state_dict(), tmp_path / "deep.pth")
    with pytest.raises(ValueError, match="does not fit the backbone"):
        load_backbone(backbone(), tmp_path / "deep.pth")


# -------------------------------------------------------------------------------- names and files as people have them


PREFIXES = [
    "",
    "module.",
    "model.",
    "net.",
    "_orig_mod.",
    "module._orig_mod.",
    "model.net.",
    "student.encoder_decoder.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_before_all_names_are_cut(prefix, tmp_path):
    """For a source of each kind of names: the authors', those of OCRNet, which begin with one, and our own."""
    model, state = authors_state()
    own, hrnet = CASES["segmenter"].make_model(), CASES["ocrnet"].make_model()
    for expected, names in ((model, state), (own, own.state_dict()), (hrnet, hrnet.state_dict())):
        heads = {} if expected is not own else {"num_attention_heads": 4}
        torch.save({"state_dict": {prefix + name: x for name, x in names.items()}, "epoch": 3}, tmp_path / "last.ckpt")
        loaded = load_original(tmp_path / "last.ckpt", **heads)
        assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in expected.state_dict().items())


def test_wrappers_inside_of_names_are_cut():
    """A backbone that was compiled alone, blocks that are sharded or recomputed."""
    model, state = authors_state()
    state = {
        name.replace("backbone.", "backbone._orig_mod.").replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): x
        for name, x in state.items()
    }
    loaded = load_original({f"_fsdp_wrapped_module.{name}": x for name, x in state.items()})
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())


def test_what_stands_beside_the_network_is_left_out(caplog):
    """The weights of a loss and a metric's counts, as Lightning saves them; two networks are one too many."""
    model, state = authors_state()
    state = {f"model.{name}": x for name, x in state.items()}
    loaded = load_original({**state, "loss.weight": torch.ones(7), "metric.counts": torch.zeros(7, 7).long()})
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
    assert "left out loss.weight, metric.counts" in caplog.text
    averaged = {name.replace("model.", "ema.module."): x for name, x in state.items()}
    with pytest.raises(ValueError, match=r"several networks, under model, ema; .*startswith\('model\.'\)"):
        load_original({**state, **averaged})


OWN = {
    "setr naive": ("setr", {}),
    "setr pup": ("setr", {"decode_head": "pup"}),
    "setr mla": ("setr", {"decode_head": "mla"}),
    "segformer": ("segformer", {}),
    "segformer table": ("segformer", {"position_encoding": "learned", "image_size": [64, 96]}),
    "segformer levels": ("segformer", {"decoder_stages": [1, 3], "decoder_projection_norm": True}),
    "segformer without fusion": ("segformer", {"decoder_stages": [3], "decoder_fusion": False}),
    "segmenter mask": ("segmenter", {}),
    "segmenter linear": ("segmenter", {"decode_head": "linear", "use_distillation_token": True}),
    "ocrnet hrnet": ("ocrnet", {}),
    "ocrnet resnet": ("ocrnet", {"backbone_type": "resnet", "stem_hidden_sizes": None}),
    "one class": ("segformer", {"num_labels": 1}),
}


@pytest.mark.parametrize("name", OWN)
def test_own_state_dicts_are_known(name, tmp_path, caplog):
    """Without config.json as far as shapes show it, which is said; with one beside the file, exactly."""
    architecture, fields = OWN[name]
    model = randomized(CASES[architecture].make_model(**fields))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images).logits
    heads = {"num_attention_heads": 4, "image_size": 32} if architecture in ("setr", "segmenter") else {}
    loaded = load_original(model.state_dict(), **heads)
    assert "no config.json beside it" in caplog.text
    caplog.clear()
    model.save_pretrained(tmp_path)
    again = load_original(tmp_path)
    assert caplog.text == "" and again.config.to_diff_dict() == model.config.to_diff_dict()
    for other in (loaded, again):
        with torch.no_grad():
            assert torch.equal(other(images).logits, expected)


def cut_zip(path):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


class Foreign:
    """A class of a training program, that is not there where its checkpoint is read."""


@functools.cache
def tiny_models():
    return [case.make_model() for case in CASES.values()]


RUBBISH = {
    "empty.pth": lambda path: path.write_bytes(b""),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "empty.npz": lambda path: path.write_bytes(b""),
    "text.pth": lambda path: path.write_text("not a model"),
    "pointer.safetensors": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n"),
    "page.bin": lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
    "cut.safetensors": lambda path: path.write_bytes(b"\x10\0\0\0\0\0\0\0{"),
    "list.safetensors": lambda path: path.write_bytes(b"\x02\0\0\0\0\0\0\0[]"),
    "beyond.safetensors": lambda path: path.write_bytes(
        (58).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}   '
    ),
    "cut.pth": cut_zip,
    "zip.pth": lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"),
    "tar.pth": lambda path: tarfile.open(path, "w").close(),
    "png.pth": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100),
    "other.npz": lambda path: np.savez(path, a=np.zeros(3)),
    "texts.npz": lambda path: np.savez(path, cls=np.array(["a"])),
    "objects.npz": lambda path: np.savez(path, cls=np.array([{}], object)),
    "text.npz": lambda path: path.write_text("a"),
    "script.pt": lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(str(path)),
    "module.pt": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "foreign.pth": lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Foreign()}, path),
    "list.pth": lambda path: torch.save([torch.zeros(2)], path),
    "number.pth": lambda path: torch.save(3, path),
    "numbers.pth": lambda path: torch.save({"a": 3}, path),
    "nothing.pth": lambda path: torch.save({}, path),
    "optimizer.pth": lambda path: torch.save(torch.optim.SGD([torch.zeros(1)], 0.1, momentum=1).state_dict(), path),
    "keys.pth": lambda path: torch.save({1: torch.zeros(2)}, path),
    "pairs.pth": lambda path: torch.save({("a", 1): torch.zeros(2), None: torch.zeros(2)}, path),
    "folder.pth": lambda path: path.mkdir(),
    "missing.pth": lambda path: None,
}


@pytest.mark.filterwarnings("ignore")  # of torch, about TorchScript
@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_refused_by_name(name, tmp_path):
    """Whatever the file is, as a whole checkpoint and as a backbone of each architecture."""
    RUBBISH[name](tmp_path / name)
    with pytest.raises((ValueError, OSError), match=name):
        load_original(tmp_path / name)
    for model in tiny_models():
        with pytest.raises((ValueError, OSError), match=name):
            load_backbone(model, tmp_path / name)


def test_negative_variances_are_refused():
    with pytest.raises(ValueError, match="the tensor norm.running_var has negative values, and variances are at least"):
        check_tensors({"norm.running_var": torch.tensor([1.0, -1e-3])})


NOT_WEIGHTS = {
    "not finite": lambda x: x * float("nan"),
    "not finite ": lambda x: x / 0,
    "of type torch.int8": lambda x: x.to(torch.int8),  # quantised by another program
    "of type torch.complex64": lambda x: x.to(torch.complex64),
    "sparse or quantized": lambda x: x.to_sparse(),
    "without values": lambda x: x.to("meta"),
    "does not fit": lambda x: x.flatten(),
    "does not fit ": lambda x: x[:0],
    "does not fit  ": lambda x: x.sum(),
}


@pytest.mark.parametrize("message", NOT_WEIGHTS)
@pytest.mark.parametrize("architecture", CASES)
def test_tensors_that_are_no_weights_are_refused(architecture, message, tmp_path):
    """Of the backbone, of the middle and of the head: a message with the file's name."""
    model = CASES[architecture].make_model()
    state = model.state_dict()
    backbone = {name: x for name, x in state.items() if name.startswith("backbone.")}
    weights = [name for name, x in state.items() if x.ndim > 1]
    for name in (weights[0], weights[len(weights) // 2], weights[-1]):
        torch.save({**state, name: NOT_WEIGHTS[message](state[name])}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=f"(?s)a.pth.*{message.strip()}"):
            load_original(tmp_path / "a.pth")
        if name in backbone:
            with pytest.raises(ValueError, match=f"(?s)a.pth.*{message.strip()}"):
                load_backbone(model, tmp_path / "a.pth")


def test_half_precision_is_fine(tmp_path):
    model = CASES["segformer"].make_model()
    save_file(
        {name: x.half() if x.is_floating_point() else x for name, x in model.state_dict().items()},
        tmp_path / "a.safetensors",
    )
    loaded = load_original(tmp_path / "a.safetensors")
    assert all(torch.equal(x, y.half().float()) for x, y in zip(loaded.parameters(), model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------ backbones of SegFormer


def segformer_files(folder):
    """A MiT in every format that is understood: {name: file or folder}, and the model that has its weights."""
    theirs = test_segformer.transformers_model(layer_norm_eps=1e-6, embedding_layer_norm_eps=1e-5)
    whole = test_segformer.authors_state(theirs)
    reference = load_original(whole)
    bare = {name.removeprefix("backbone."): x for name, x in whole.items() if name.startswith("backbone.")}
    torch.save({"state_dict": whole}, folder / "authors_whole.pth")
    torch.save({**bare, "head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}, folder / "mit_b0.pth")
    torch.save({"state_dict": {f"module.{name}": x for name, x in bare.items()}}, folder / "parallel.pth")
    classifier = transformers.SegformerForImageClassification(theirs.config)
    classifier.segformer.load_state_dict(theirs.segformer.state_dict())
    for original in (True, False):
        for name, model in (("whole", theirs), ("classifier", classifier), ("base", theirs.segformer)):
            model.save_pretrained(folder / f"{name} {original}", save_original_format=original)
    mmsegmentation = test_segformer.mmsegmentation_backbone(whole)
    torch.save(mmsegmentation, folder / "mmsegmentation.pth")
    torch.save({name.removeprefix("backbone."): x for name, x in mmsegmentation.items()}, folder / "mit_mmseg.pth")
    reference.save_pretrained(folder / "own whole")
    reference.backbone.save_pretrained(folder / "own base")
    torch.save(reference.backbone.state_dict(), folder / "own.pth")
    return reference


def test_backbones_of_segformer_in_every_format(tmp_path):
    """The weights that `load_original` reads out of the whole checkpoint; its logits are compared in test_segformer."""
    expected = segformer_files(tmp_path).backbone.state_dict()
    sizes = {key: value for key, value in test_segformer.WIDE.items() if key != "decoder_hidden_size"}
    files = sorted(tmp_path.iterdir())
    assert len(files) == 14
    for file in files:
        model = CASES["segformer"].make_model(**sizes)
        head = {name: x.clone() for name, x in model.decode_head.state_dict().items()}
        load_backbone(model, file)
        assert all(torch.equal(expected[name], x) for name, x in model.backbone.state_dict().items()), file
        assert all(torch.equal(head[name], x) for name, x in model.decode_head.state_dict().items()), file
        bare = SegFormerModel(model.config)
        load_backbone(bare, file)
        assert all(torch.equal(expected[name], x) for name, x in bare.state_dict().items()), file


def test_other_backbones_are_refused_with_what_fits(tmp_path):
    model = CASES["segformer"].make_model()
    torch.save(timm_vit().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="vit.pth is no MiT; .* mit_b0.pth .* nvidia/mit-b0"):
        load_backbone(model, tmp_path / "vit.pth")
    transformers.SegformerModel(transformers.SegformerConfig(depths=[1] * 4)).save_pretrained(tmp_path / "b0")
    with pytest.raises(ValueError, match=r"does not fit the backbone of hidden_sizes \[8, 16, 24, 32\] and depths"):
        load_backbone(model, tmp_path / "b0")
    with pytest.raises(ValueError, match="mit-b9 is no file or folder, and nvidia/mit-b9 on the Hub has neither"):
        load_backbone(model, "mit-b9")


@pytest.mark.parametrize("architecture", CASES)
def test_own_backbones_are_read(architecture, tmp_path, caplog):
    """Out of a whole model and alone, into one with another head."""
    model = CASES[architecture].make_model()
    model.save_pretrained(tmp_path / "whole")
    model.backbone.save_pretrained(tmp_path / "alone")
    for place in ("whole", "alone"):
        other = CASES[architecture].make_model(num_labels=9)
        load_backbone(other, tmp_path / place)
        assert all(torch.equal(x, y) for x, y in zip(other.backbone.parameters(), model.backbone.parameters()))
        assert ("left out" in caplog.text) == (place == "whole")
        caplog.clear()
