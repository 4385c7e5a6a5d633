"""SegFormer against transformers' SegFormer, the paper's tables, and the head written out as in the paper."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import SegformerConfig, SegformerForImageClassification, SegformerForSemanticSegmentation
from transformers import SegformerModel as TransformersSegformerModel
from transformers.utils import logging

from hf_segtx import SegFormerConfig, SegFormerForImageClassification, SegFormerForSemanticSegmentation, SegFormerModel
from hf_segtx.models.configuration_segformer import SIZES


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
    compare(theirs, load_quietly(SegFormerForImageClassification, tmp_path / "mit", caplog), [(64, 96)])
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
@pytest.mark.parametrize("size", SIZES)
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
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.backbone(x)
    # The paper counts the head as it is written there: project, concatenate at 1/4, fuse, classify.
    width, finest = config.decoder_hidden_size, (side // 4) ** 2
    project = sum(c * width * finest // 4**i for i, c in enumerate(config.hidden_sizes))
    head = project + finest * width * (4 * width + 150)
    assert counter.get_total_flops() / 2e9 + head / 1e9 == pytest.approx(flops, rel=0.003)  # printed with 2-4 digits
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() / 2e9 < 0.75 * flops  # what evaluating the head at each stage's resolution saves


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


def test_learned_positions_replace_the_convolution():
    config = SegFormerConfig(**TINY, num_labels=7, position_encoding="learned", image_size=64)
    model = SegFormerForSemanticSegmentation(config).eval()
    assert not any("dwconv" in name for name, _ in model.named_parameters())
    assert [tuple(stage.patch_embed.pos_embed.shape[1:]) for stage in model.backbone.stages] == [
        (8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]  # fmt: skip
    x = torch.randn(1, 3, 64, 64)
    shifted = torch.roll(x, 32, dims=3)
    with torch.no_grad():
        before = model(shifted).logits
        model.backbone.stages[0].patch_embed.pos_embed.zero_()
        assert not torch.allclose(model(shifted).logits, before)
        assert model(torch.randn(1, 3, 96, 80)).logits.shape == (1, 7, 24, 20)  # tables resized


def test_drop_path_grows_linearly():
    model = SegFormerModel(SegFormerConfig(**TINY, drop_path_rate=0.2))
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(num_attention_heads=[3, 2, 3, 4]), "num_attention_heads 3 does not divide hidden size 8"),
        (dict(depths=[1, 1]), "depths has 2 entries, hidden_sizes 4"),
        (dict(decoder_stages=[0, 4]), r"decoder_stages is \[0, 4\]; .* from 0 to 3"),
        (dict(sr_ratios=[0, 1, 1, 1]), "every entry must be at least 1"),
        (dict(position_encoding="sine"), "position_encoding is 'sine'; choose"),
    ],
)
def test_wrong_combinations_are_refused(wrong, message):
    # `strict` wraps what a check raises; the cause has our words
    with pytest.raises(Exception, match=message):
        SegFormerConfig(**{**TINY, **wrong})
