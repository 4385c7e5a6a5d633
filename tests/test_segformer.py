"""SegFormer against transformers' SegFormer, the paper's tables, and the head written out as in the paper."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)
from transformers import SegformerModel as TransformersSegformerModel
from transformers.utils import logging

from hf_segtx import SegFormerConfig, SegFormerForImageClassification, SegFormerForSemanticSegmentation, SegFormerModel
from hf_segtx.models import cpu
from hf_segtx.models.configuration_segformer import SIZES
from hf_segtx.models.modeling_segformer import minimum_side
from hf_segtx.weights import load_original


TINY = dict(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)


def randomize(model):
    """Norms, biases and statistics away from 0 and 1, where a mistake would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def load_quietly(cls, folder, caplog):
    """`from_pretrained` that fails on any missing or unexpected key and on any line in the log."""
    logging.enable_propagation()
    caplog.clear()
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert caplog.text == ""
    return model.eval()


def compare(theirs, ours, sizes, pick=lambda output: output.logits):
    for size in sizes:
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, output = pick(theirs(x)), pick(ours(x))
        # The head adds in another order: rounding of float32, relative to the spread of the logits.
        assert (output - expected).abs().max() < 2e-5 * expected.std()


@pytest.mark.parametrize("original_format", [True, False], ids=["hub names", "module names"])
def test_matches_transformers(original_format, tmp_path, caplog):
    theirs = randomize(SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=7)))
    theirs.save_pretrained(tmp_path, save_original_format=original_format)
    ours = load_quietly(SegFormerForSemanticSegmentation, tmp_path, caplog)
    compare(theirs, ours, [(128, 128), (96, 160), (101, 75)])
    ours.save_pretrained(tmp_path / "ours")
    compare(theirs, load_quietly(SegFormerForSemanticSegmentation, tmp_path / "ours", caplog), [(128, 128)])


def test_matches_transformers_backbone_and_classifier(tmp_path, caplog):
    theirs = randomize(SegformerForImageClassification(SegformerConfig(**TINY, num_labels=11)))
    theirs.save_pretrained(tmp_path / "mit")
    classifier = load_quietly(SegFormerForImageClassification, tmp_path / "mit", caplog)
    compare(theirs, classifier, [(64, 96)])
    images, labels = torch.randn(2, 3, 64, 96), torch.tensor([3, 7])
    loss, logits = classifier(images, labels=labels, return_dict=False)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    theirs.segformer.save_pretrained(tmp_path / "base")
    for folder in ("mit", "base"):
        ours, report = SegFormerModel.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not report["missing_keys"]
        compare(theirs.segformer, ours.eval(), [(64, 96)], pick=lambda output: output.last_hidden_state)
    segmenter, report = SegFormerForSemanticSegmentation.from_pretrained(tmp_path / "mit", output_loading_info=True)
    assert all(key.startswith("decode_head.") for key in report["missing_keys"]) and not report["unexpected_keys"]
    compare(TransformersSegformerModel.from_pretrained(tmp_path / "base").eval(), segmenter.backbone.eval(), [(64, 96)],
            pick=lambda output: output.last_hidden_state)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", [f"b{number}" for number in range(6)])  # the others are not in transformers
def test_every_size_matches_transformers(size, tmp_path, caplog):
    theirs = randomize(SegformerForSemanticSegmentation(SegformerConfig(**SIZES[size], num_labels=150)))
    theirs.save_pretrained(tmp_path)
    ours = load_quietly(SegFormerForSemanticSegmentation, tmp_path, caplog)
    compare(theirs, ours, [(128, 128), (96, 160), (101, 75)])


# Table 1 of the paper: parameters in millions and multiply-adds in 1e9 at 512x512 (B5: 640x640), 150 classes.
TABLE_1 = {
    "b0": (3.8, 8.4, 512),
    "b1": (13.7, 15.9, 512),
    "b2": (27.5, 62.4, 512),
    "b3": (47.3, 79.0, 512),
    "b4": (64.1, 95.7, 512),
    "b5": (84.7, 183.3, 640),
}


@pytest.mark.parametrize("size", TABLE_1)
def test_parameters_and_flops_of_table_1(size):
    parameters, flops, side = TABLE_1[size]
    config = SegFormerConfig.from_size(size, num_labels=150)
    with torch.device("meta"):
        model = SegFormerForSemanticSegmentation(config).eval()
        x = torch.randn(1, 3, side, side)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)
    with FlopCounterMode(display=False) as counter:  # without no_grad, with which rows next to a block count twice
        model.backbone(x)
    # The paper counts the head as it is written there: project, concatenate at 1/4, fuse, classify.
    width, finest = config.decoder_hidden_size, (side // 4) ** 2
    project = sum(c * width * finest // 4**i for i, c in enumerate(config.hidden_sizes))
    head = project + finest * width * (4 * width + 150)
    assert counter.get_total_flops() / 2e9 + head / 1e9 == pytest.approx(flops, rel=0.003)  # printed with 2-4 digits
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() / 2e9 < 0.75 * flops  # what evaluating the head at each stage's resolution saves


# Table 1d, as above, at 512x512.
TABLE_1D = {
    "b2_s4": (24.7, 22.3),
    "resnet50": (29.0, 69.2),
    "resnet101": (47.9, 88.7),
    "resnext101": (86.8, 127.5),
}


@pytest.mark.parametrize("size", TABLE_1D)
def test_parameters_and_flops_of_table_1d(size):
    parameters, flops = TABLE_1D[size]
    config = SegFormerConfig.from_size(size, num_labels=150)
    with torch.device("meta"):
        model = SegFormerForSemanticSegmentation(config).eval()
        x = torch.randn(1, 3, 512, 512)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)
    with FlopCounterMode(display=False) as counter:
        maps = model.backbone(x).feature_maps
    # As the paper writes it: project, upsample to 1/4, concatenate and fuse if there are several, classify.
    width, read = config.decoder_hidden_size, [maps[stage] for stage in config.decoder_stages]
    project = sum(width * feature_map[0].numel() for feature_map in read)
    head = project + 128**2 * width * (150 + len(read) * width * config.decoder_fusion)
    assert counter.get_total_flops() / 2e9 + head / 1e9 == pytest.approx(flops, rel=0.005)  # the paper's counts norms


@pytest.mark.parametrize("normalized", [False, True], ids=["authors", "mmsegmentation"])
@pytest.mark.parametrize("stages", [[0, 1, 2, 3], [3], [1, 2]])
def test_head_matches_the_paper_written_out(normalized, stages):
    config = SegFormerConfig(**TINY, num_labels=7, decoder_stages=stages, decoder_projection_norm=normalized)
    model = randomize(SegFormerForSemanticSegmentation(config))
    head = model.decode_head
    with torch.no_grad():
        maps = model.backbone(torch.randn(2, 3, 75, 101)).feature_maps
        upsampled = []
        for i, stage in enumerate(stages):
            x = head.projections[i](maps[stage].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            if normalized:
                x = F.relu(head.projection_norms[i](x))
            upsampled.append(F.interpolate(x, size=maps[0].shape[2:], mode="bilinear", align_corners=False))
        x = F.conv2d(torch.cat(upsampled[::-1], dim=1), head.fuse.weight)
        expected = head.classifier(F.relu(head.norm(x)))
        torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("stage", [0, 3])
def test_head_without_fusion_matches_the_paper_written_out(normalized, stage):
    """Projected, upsampled to 1/4, classified."""
    config = SegFormerConfig(
        **TINY, num_labels=7, decoder_stages=[stage], decoder_fusion=False, decoder_projection_norm=normalized
    )
    model = randomize(SegFormerForSemanticSegmentation(config))
    head, images = model.decode_head, torch.randn(2, 3, 75, 101)
    maps = model.backbone(images).feature_maps
    x = head.projections[0](maps[stage].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if normalized:
        x = F.relu(head.projection_norms[0](x))
    expected = head.classifier(F.interpolate(x, size=maps[0].shape[2:], mode="bilinear", align_corners=False))
    torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)  # sums in another order
    model.train()
    model(images, labels=torch.zeros(2, 75, 101, dtype=torch.long)).loss.backward()  # no value is lost in place
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("settings", [{}, {"decoder_projection_norm": True}, {"decoder_stages": [1, 2]}])
def test_prediction_by_rows_is_the_whole_map_at_once(settings, monkeypatch):
    """Oracle: the way that training takes. Rows of a block and their number do not divide the maps' heights."""
    model = randomize(SegFormerForSemanticSegmentation(SegFormerConfig(**TINY, num_labels=7, **settings)))
    images = torch.rand(2, 3, 184, 120)
    whole = model(images).logits
    taken, block_rows = [], cpu.block_rows

    def noted(*given):
        taken.append(block_rows(*given))
        return taken[-1]

    monkeypatch.setattr(cpu, "BLOCK_NUMEL_CPU", 0)
    monkeypatch.setattr(cpu, "block_rows", noted)
    model(images)
    assert not taken  # with autograd, which would keep every block
    with torch.no_grad():
        rows = model(images).logits
    assert max(taken) <= 16  # of up to 46
    assert (rows - whole).abs().max() < 1e-5 * whole.abs().max()  # float32, sums in another order


def test_blocks_of_rows_hold_the_same_number_of_values_of_any_batch(monkeypatch):
    heights = []
    for rows in (30, 0):
        monkeypatch.setattr(cpu, "BLOCK_NUMEL_CPU", rows * 3 * 6 * 5)  # of 3 images, 6 pixels wide, of 5 channels
        cpu.by_rows(lambda x, rows: heights.append(x.shape[1]) or x[:, rows], torch.rand(3, 45, 6, 2), 5, halo=1)
        noted = [lambda x: heights.append(x.shape[2]) or x]
        cpu.add_upsampled_by_rows([torch.rand(3, 5, 45, 6)], noted, 5, (45, 6), lambda x: x)
    # the halo counted; about equal, 30 at most, and 16 where no number is few enough; of sums of maps always 16
    assert heights == [24, 23, 16, 16, 13, 16, 17, 16, 16, 16, 13]


class Adapted(torch.nn.Module):
    """A layer in the manner of adapters (LoRA): it shows the weight of the layer below, but computes something else."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x):
        return 2 * self.layer(x)


@pytest.mark.parametrize("training", [False, True])
def test_adapters_in_the_head_have_their_effect(training):
    """The head multiplies weights of two layers where it can; an adapter is more than its weight."""
    model = randomize(SegFormerForSemanticSegmentation(SegFormerConfig(**TINY, num_labels=7)))
    head, images = model.decode_head, torch.randn(1, 3, 64, 64)
    with torch.set_grad_enabled(training):
        layer = head.projections[1]
        head.projections[1] = Adapted(layer)
        adapted = model(images).logits
        head.projections[1] = layer
        before = model(images).logits
        for parameter in layer.parameters():
            parameter.data *= 2
        doubled = model(images).logits
    assert not torch.allclose(adapted, before, rtol=1e-3)
    torch.testing.assert_close(adapted, doubled, rtol=1e-4, atol=1e-5)  # sums in another order


@pytest.mark.parametrize(
    "settings, least",
    [
        ({}, 29),
        ({"sr_ratios": [2, 2, 4, 1]}, 49),
        ({"strides": [2, 2, 2, 1], "sr_ratios": [1, 6, 1, 1]}, 21),
        ({"sr_ratios": [1, 1, 1, 1]}, 1),
        ({"patch_sizes": [8, 4, 2, 6], "sr_ratios": [1, 1, 1, 3]}, 36),
    ],
)
def test_images_below_the_least_size_are_refused(settings, least):
    """Oracle: the stages themselves, which work from that size on and fail below."""
    model = SegFormerForSemanticSegmentation(SegFormerConfig(**TINY, num_labels=3, **settings)).eval()
    assert minimum_side(model.config) == least
    with torch.no_grad():
        assert model(torch.zeros(1, 3, least, least)).logits.isfinite().all()
        for height, width in ((least - 1, 64), (64, least - 1)):
            with pytest.raises(ValueError, match=f"images of {height}x{width} pixels; .* at least {least} a side"):
                model(torch.zeros(1, 3, height, width))
            with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
                torch.nn.Sequential(*model.backbone.stages)(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("image_size", [64, [75, 101]])
def test_learned_positions_replace_the_convolution(image_size):
    config = SegFormerConfig(**TINY, num_labels=7, position_encoding="learned", image_size=image_size)
    model = SegFormerForSemanticSegmentation(config).eval()
    assert not any("dwconv" in name for name, _ in model.named_parameters())
    maps = model.backbone(torch.zeros(1, 3, *([64, 64] if image_size == 64 else image_size))).feature_maps
    assert [stage.patch_embed.pos_embed.shape for stage in model.backbone.stages] == [x.shape for x in maps]
    x = torch.randn(1, 3, 64, 64)
    shifted = torch.roll(x, 32, dims=3)
    with torch.no_grad():
        before = model(shifted).logits
        embed = model.backbone.stages[0].patch_embed
        assert embed.pos_embed.std().item() == pytest.approx(0.02, rel=0.1) and embed.pos_embed.mean().abs() < 0.002
        images = torch.randn(2, 3, 96, 80)
        table, with_table = F.interpolate(embed.pos_embed, (24, 20), mode="bilinear"), embed(images)
        embed.pos_embed.zero_()
        torch.testing.assert_close(with_table, embed(images) + table.permute(0, 2, 3, 1))
        assert not torch.allclose(model(shifted).logits, before)
        assert model(images).logits.shape == (2, 7, 24, 20)  # all tables resized


def test_drop_path_grows_linearly():
    model = SegFormerModel(SegFormerConfig(**TINY, drop_path_rate=0.2))
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("place", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_only(place):
    model = SegFormerModel(SegFormerConfig(**TINY, drop_path_rate=0.0, **{place: 0.5})).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images).last_hidden_state, model(images).last_hidden_state)
        model.train()
        assert not torch.equal(model(images).last_hidden_state, model(images).last_hidden_state)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(num_attention_heads=[3, 2, 3, 4]), "num_attention_heads 3 does not divide hidden size 8"),
        (dict(depths=[1, 1]), "depths has 2 entries, hidden_sizes 4"),
        (dict(decoder_stages=[0, 4]), r"decoder_stages is \[0, 4\]; .* from 0 to 3"),
        (dict(decoder_fusion=False), r"decoder_stages \[0, 1, 2, 3\]; several stages have to be fused"),
        (dict(sr_ratios=[0, 1, 1, 1]), "sr_ratios: 0 is out of range; give 1 to"),
        (dict(position_encoding="sine"), "position_encoding is 'sine'; choose"),
    ],
)
def test_wrong_combinations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SegFormerConfig(**{**TINY, **wrong})


# ------------------------------------------------------------------------------------ checkpoints of other code bases


def transformers_model(layer_norm_eps, embedding_layer_norm_eps, num_labels=5, **sizes):
    """transformers' SegFormer with random weights and the epsilons of another code base: an oracle for that one."""
    theirs = randomize(SegformerForSemanticSegmentation(SegformerConfig(**{**WIDE, **sizes}, num_labels=num_labels)))
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            embedding = "patch_embeddings" in name or "sequence_reduction" in name
            module.eps = embedding_layer_norm_eps if embedding else layer_norm_eps
    return theirs


# Heads follow from the widths, as in every published size: one for each multiple of the first width.
WIDE = dict(depths=[2, 1, 2, 1], hidden_sizes=[8, 16, 40, 64], num_attention_heads=[1, 2, 5, 8], decoder_hidden_size=24)


def authors_state(theirs):
    """The weights of transformers' model in the names and the layout of NVlabs/SegFormer."""
    state = {"decode_head.conv_seg.weight": torch.zeros(5, 128, 1, 1), "decode_head.conv_seg.bias": torch.zeros(5)}
    for s, stage in enumerate(theirs.segformer.stages):
        parts = {f"patch_embed{s + 1}.proj": stage.patch_embeddings.proj, f"norm{s + 1}": stage.layer_norm}
        parts[f"patch_embed{s + 1}.norm"] = stage.patch_embeddings.layer_norm
        for i, block in enumerate(stage.blocks):
            here, attention = f"block{s + 1}.{i}", block.attention
            for kind in ("weight", "bias"):
                pair = [getattr(attention.k_proj, kind), getattr(attention.v_proj, kind)]
                state[f"backbone.{here}.attn.kv.{kind}"] = torch.cat(pair)
            parts |= {f"{here}.attn.q": attention.q_proj, f"{here}.attn.proj": attention.o_proj}
            if attention.sequence_reduction_ratio > 1:
                parts[f"{here}.attn.sr"] = attention.sequence_reduction.sequence_reduction
                parts[f"{here}.attn.norm"] = attention.sequence_reduction.layer_norm
            parts |= {f"{here}.norm1": block.layernorm_before, f"{here}.norm2": block.layernorm_after}
            parts |= {f"{here}.mlp.fc1": block.mlp.fc1, f"{here}.mlp.fc2": block.mlp.fc2}
            parts[f"{here}.mlp.dwconv.dwconv"] = block.mlp.dwconv.dwconv
        state |= {f"backbone.{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    head = theirs.decode_head
    parts = {f"linear_c{i + 1}.proj": part.proj for i, part in enumerate(head.linear_projections)}
    parts |= {"linear_fuse.conv": head.linear_fuse, "linear_fuse.bn": head.batch_norm, "linear_pred": head.classifier}
    return state | {f"decode_head.{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}


def test_authors_checkpoint_gives_its_logits(tmp_path):
    theirs = transformers_model(layer_norm_eps=1e-6, embedding_layer_norm_eps=1e-5)
    torch.save({"state_dict": authors_state(theirs), "meta": {"CLASSES": ["a"] * 5}}, tmp_path / "segformer.pth")
    ours = load_original(tmp_path / "segformer.pth")
    assert ours.config.depths == [2, 1, 2, 1] and ours.config.num_labels == 5
    compare(theirs, ours, [(128, 128), (96, 160)])


@pytest.mark.parametrize("original_format", [True, False], ids=["hub names", "module names"])
def test_transformers_checkpoint_gives_its_logits(original_format, tmp_path):
    theirs = transformers_model(1e-5, 1e-5, sr_ratios=[4, 2, 1, 1], num_channels=4)
    theirs.save_pretrained(tmp_path, save_original_format=original_format)
    ours = load_original(tmp_path / "model.safetensors")
    assert ours.config.sr_ratios == [4, 2, 1, 1]
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).logits, theirs(x).logits, rtol=1e-4, atol=1e-5)  # another order of sums


def mmsegmentation_backbone(authors):
    """The backbone of an authors' state dict in mmsegmentation's names and layout."""
    state = {}
    for name, tensor in authors.items():
        if name.startswith("backbone."):
            name = re.sub(r"patch_embed(\d)\.", lambda m: f"layers.{int(m[1]) - 1}.0.", name)
            name = re.sub(r"layers\.(\d)\.0\.proj\.", r"layers.\1.0.projection.", name)
            name = re.sub(r"block(\d)\.", lambda m: f"layers.{int(m[1]) - 1}.1.", name)
            name = re.sub(r"backbone\.norm(\d)\.", lambda m: f"backbone.layers.{int(m[1]) - 1}.2.", name)
            name = name.replace("attn.proj", "attn.attn.out_proj").replace("mlp.fc1", "ffn.layers.0")
            name = name.replace("mlp.dwconv.dwconv", "ffn.layers.1").replace("mlp.fc2", "ffn.layers.4")
            if re.search(r"ffn\.layers\.[04]\.weight", name):
                tensor = tensor[:, :, None, None]
            state[name] = tensor
    for name in [name for name in state if ".attn.q." in name]:  # one matrix for queries, keys and values
        query, pair = state.pop(name), state.pop(name.replace(".q.", ".kv."))
        state[name.replace(".attn.q.", ".attn.attn.in_proj_")] = torch.cat([query, pair])
    return state


def test_mmsegmentation_checkpoint_gives_its_logits():
    """The backbone against transformers', the head written out as mmsegmentation has it."""
    theirs = transformers_model(layer_norm_eps=1e-6, embedding_layer_norm_eps=1e-6)
    state = mmsegmentation_backbone(authors_state(theirs))
    generator = torch.Generator().manual_seed(5)
    for i, width in enumerate([*WIDE["hidden_sizes"], 4 * 24]):
        part = f"decode_head.convs.{i}" if i < 4 else "decode_head.fusion_conv"
        state[f"{part}.conv.weight"] = torch.randn(24, width, 1, 1, generator=generator) / width**0.5
        for k in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            state[f"{part}.{k}"] = 0.5 + torch.rand(24, generator=generator)
        state[f"{part}.bn.num_batches_tracked"] = torch.tensor(7)
    state["decode_head.conv_seg.weight"] = torch.randn(5, 24, 1, 1, generator=generator)
    state["decode_head.conv_seg.bias"] = torch.randn(5, generator=generator)

    def brick(part, x):
        x = F.conv2d(x, state[f"{part}.conv.weight"])
        statistics = [state[f"{part}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *statistics))

    ours = load_original(state)
    x = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        maps = theirs.segformer(x, output_hidden_states=True).hidden_states
        levels = [brick(f"decode_head.convs.{i}", level) for i, level in enumerate(maps)]
        levels = [F.interpolate(level, size=maps[0].shape[2:], mode="bilinear") for level in levels]
        fused = brick("decode_head.fusion_conv", torch.cat(levels, dim=1))
        expected = F.conv2d(fused, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])
        assert (ours(x).logits - expected).abs().max() < 2e-5 * expected.std()  # sums in another order


def test_convert_script(tmp_path):
    theirs = transformers_model(layer_norm_eps=1e-6, embedding_layer_norm_eps=1e-5)
    torch.save({"state_dict": authors_state(theirs)}, tmp_path / "segformer.pth")
    (tmp_path / "id2label.json").write_text('["sky", "road", "tree", "car", "dog"]')
    script = [sys.executable, Path(__file__).parents[1] / "examples" / "convert.py", tmp_path / "segformer.pth"]
    script += ["--output_dir", tmp_path / "converted", "--classes_file", tmp_path / "id2label.json"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted").eval()
    assert model.config.id2label[4] == "dog"
    compare(theirs, model, [(64, 64)])
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "converted")).__name__ == "SegFormerImageProcessor"
    again = subprocess.run(script, capture_output=True, text=True)
    assert again.returncode == 2 and "holds a model already" in again.stderr and "Traceback" not in again.stderr


def test_initialisation_is_the_authors():
    """Linear layers 0.02, convolutions sqrt(2 / fan-out) with groups counted, the classifier as a linear layer."""
    model = SegFormerForSemanticSegmentation(SegFormerConfig(**TINY, num_labels=50, initializer_range=0.02))
    # In units of the deviation that each should have.
    measured = {"linear": [], "convolution": [], "depthwise": [], "classifier": []}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            measured["linear"].append(module.weight.flatten() / 0.02)
        elif isinstance(module, torch.nn.Conv2d):
            outputs = module.weight[:, 0].numel() // module.groups  # that one input value adds to
            kind, std = "depthwise" if module.groups > 1 else "convolution", (2 / outputs) ** 0.5
            if name.endswith("classifier"):
                kind, std = "classifier", 0.02
            measured[kind].append(module.weight.flatten() / std)
        assert getattr(module, "bias", None) is None or not module.bias.any(), name
    for kind, weights in measured.items():
        # Of 800 random numbers or more: four times the error of a deviation is 0.1.
        assert torch.cat(weights).std().item() == pytest.approx(1, abs=0.1), kind
        assert torch.cat(weights).mean().item() == pytest.approx(0, abs=0.15), kind
