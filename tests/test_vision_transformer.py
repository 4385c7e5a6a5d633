"""The shared Vision Transformer against timm's, and what it adds: other image sizes, maps of blocks."""

import pytest
import timm.models.deit
import timm.models.resnetv2
import timm.models.vision_transformer
import timm.models.vision_transformer_hybrid
import torch
import torch.nn.functional as F

from hf_segtx.models.configuration_setr import SETRConfig
from hf_segtx.models.layers import crop_padding
from hf_segtx.models.vision_transformer import CACHED_TABLES, VisionTransformer
from hf_segtx.weights.vision_transformer import as_timm


TINY = dict(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
TIMM = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0)


def randomized(module):
    """Values away from those of initialisation: zeros and ones hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def build(final_norm=True, drop_prefix=False, **overrides):
    config = SETRConfig(**{**TINY, **overrides})
    config._attn_implementation = "sdpa"
    vit = VisionTransformer(config, final_norm=final_norm, drop_prefix=drop_prefix)
    vit.initialize_tokens(0.5)
    return randomized(vit)


def assert_matches_timm(reference, vit):
    state = {name: value for name, value in reference.state_dict().items() if not name.startswith("head")}
    vit.load_state_dict(as_timm(state))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = reference.get_intermediate_layers(images, [0, 2], reshape=True)
        tokens, own_maps = vit(images, (0, 2))
        expected = reference.forward_features(images)
    # 1e-4: float32 rounding through three blocks, in another order of operations
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    for own, of_timm in zip(own_maps, maps, strict=True):
        torch.testing.assert_close(own, of_timm, rtol=1e-4, atol=1e-4)


def test_matches_timm():
    assert_matches_timm(randomized(timm.models.vision_transformer.VisionTransformer(**TIMM)), build())


def test_matches_timm_distilled():
    assert_matches_timm(
        randomized(timm.models.deit.VisionTransformerDistilled(**TIMM)), build(use_distillation_token=True)
    )


def test_matches_timm_hybrid():
    stem = timm.models.resnetv2.ResNetV2(
        layers=(1, 2, 1), channels=(128, 256, 512), stem_chs=32, num_classes=0, global_pool="", preact=False,
        stem_type="same", conv_layer=timm.layers.StdConv2dSame,
    )  # fmt: skip
    reference = timm.models.vision_transformer.VisionTransformer(
        **{**TIMM, "img_size": 64, "patch_size": 1},
        embed_layer=lambda **kwargs: timm.models.vision_transformer_hybrid.HybridEmbed(stem, **kwargs),
    )
    vit = build(image_size=64, patch_size=16, stem_depths=[1, 2, 1], stem_hidden_sizes=[128, 256, 512])
    vit.load_state_dict(as_timm(randomized(reference).state_dict()))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens, expected = vit(images)[0], reference.forward_features(images)
    # 1e-4: float32 rounding; weight standardisation amplifies it
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)


def test_positions_match_interpolation():
    for mode in ("bilinear", "bicubic"):
        vit = build(position_resize_mode=mode)
        assert vit.position_table((4, 4)) is vit.pos_embed  # exact at its own size
        grid = vit.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
        expected = F.interpolate(grid, size=(3, 7), mode=mode, align_corners=False).flatten(2).transpose(1, 2)
        table = vit.position_table((3, 7))
        assert torch.equal(table[:, :1], vit.pos_embed[:, :1])
        torch.testing.assert_close(table[:, 1:], expected)


def test_oblong_native_size():
    vit = build(image_size=[32, 64])
    assert vit.pos_embed.shape == (1, 1 + 4 * 8, 32)
    assert vit.position_table((4, 8)) is vit.pos_embed
    assert vit(torch.randn(1, 3, 32, 64))[0].shape == (1, 33, 32)


def test_resized_table_is_kept_until_the_weights_change():
    vit, images = build(), torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        first = vit.position_table((6, 4))
        vit(images)
        assert vit.position_table((6, 4)) is first
        vit.pos_embed.mul_(2)  # as an optimiser does
        second = vit.position_table((6, 4))
        torch.testing.assert_close(second, 2 * first)
        vit.load_state_dict(build().state_dict())
        assert not torch.equal(vit.position_table((6, 4)), second)
        vit.train()
        vit.pos_embed.data.fill_(1)  # unseen by version counters, as some averaging of weights
        assert torch.equal(vit.eval().position_table((6, 4)), torch.ones(1, 25, 32))
        for height in range(1, 2 * CACHED_TABLES):
            vit.position_table((height, 3))
        assert len(vit._tables) == CACHED_TABLES
    assert all("_tables" not in name for name in vit.state_dict())


def test_resized_table_passes_gradients():
    vit = build()
    vit(torch.randn(1, 3, 48, 32))[0].sum().backward()
    assert vit.pos_embed.grad[:, 1:].abs().sum() > 0
    assert not vit._tables  # nothing of the graph is kept


@pytest.mark.parametrize("height, width", [(43, 30), (43, 32), (48, 30)])
def test_incomplete_patches_are_padded(height, width):
    vit, images = build(), torch.randn(2, 3, height, width)
    padded = F.pad(images, (0, 32 - width, 0, 48 - height))
    with torch.no_grad():
        assert torch.equal(vit(images)[0], vit(padded)[0])
        logits = torch.randn(2, 5, 6, 4)
        full = F.interpolate(logits, size=(48, 32), mode="bilinear", align_corners=False)
        assert torch.equal(crop_padding(logits, (height, width), 8), full[:, :, :height, :width])
        assert crop_padding(logits, (48, 32), 8) is logits


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(48, 32), (43, 32), (48, 31), (41, 25)])
def test_one_graph_crops_every_size(size, align_corners, monkeypatch):
    """In an export, without a condition on the size."""
    logits = torch.randn(2, 5, 6, 4)
    expected = crop_padding(logits, size, 8, align_corners)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(crop_padding(logits, size, 8, align_corners), expected)


def test_prefix_tokens_leave_before_the_first_block():
    vit, images = build(final_norm=False, drop_prefix=True), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.patch_embed(images).flatten(2).transpose(1, 2) + vit.pos_embed[:, 1:]
        for block in vit.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(vit(images)[0], tokens)


def test_drop_path_grows_linearly_and_keeps_the_mean():
    vit = build(drop_path_rate=0.4)
    assert [round(block.drop_path.rate, 6) for block in vit.blocks] == [0.0, 0.2, 0.4]
    dropped = vit.train().blocks[2].drop_path(torch.ones(4000, 3, 2))
    assert set(dropped.flatten().tolist()) == {0.0, (torch.ones(()) / 0.6).item()}  # scaled by 1 / (1 - 0.4)
    assert abs(dropped.mean().item() - 1) < 0.06  # 0.013 is one standard deviation of the mean of 4000


def test_dropout_acts_in_training_only():
    vit, images = build(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(vit(images)[0], vit(images)[0])
        vit.train()
        assert not torch.equal(vit(images)[0], vit(images)[0])


def test_compiles_without_breaks_and_exports_for_other_sizes():
    vit = build()
    images = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        expected = vit(images, (1,))[0]
        compiled = torch.compile(vit, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images, (1,))[0], expected)
        rows, columns = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("columns", min=2, max=64)
        program = torch.export.export(
            vit, (torch.randn(2, 3, 32, 32),), dynamic_shapes={"pixel_values": {2: 8 * rows, 3: 8 * columns}}
        )
        torch.testing.assert_close(program.module()(images)[0], expected, rtol=1e-4, atol=1e-5)  # float32 rounding
