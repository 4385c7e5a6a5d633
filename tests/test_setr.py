"""SETR against the authors' and mmsegmentation's networks written out on their own parameter names."""

import pytest
import timm
import torch
import torch.nn.functional as F

from hf_segtx.models.configuration_setr import SETRConfig
from hf_segtx.models.modeling_setr import SETRForSemanticSegmentation, SETRModel
from hf_segtx.weights import load_original


K, C, DEPTH, HEADS = 5, 128, 4, 2
WIDTH, NARROW = 12, 6  # of the heads' convolutions
TINY = dict(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=4, num_attention_heads=4)
HEAD_KINDS = ("naive", "pup", "mla")


# ---------------------------------------------------------------- networks written out, on the sources' own state dicts


def tensors(shapes):
    """Random weights; scales that keep the signal's size, statistics away from 0 and 1."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape) + 0.5
        elif len(shape) > 1 and "token" not in name and "pos_embed" not in name:
            state[name] = torch.randn(shape) / shape[1:].numel() ** 0.5
        else:
            state[name] = 0.3 * torch.randn(shape) + ("norm" in name or "ln" in name)
    return state


def convolution(name, n_in, n_out, kernel_size, bias):
    shapes = {f"{name}.weight": torch.Size((n_out, n_in, kernel_size, kernel_size))}
    return {**shapes, **({f"{name}.bias": torch.Size((n_out,))} if bias else {})}


def norm(name, width):
    return {f"{name}.{part}": torch.Size((width,)) for part in ("weight", "bias")}


def batch_norm(name, width):
    statistics = {f"{name}.{part}": torch.Size((width,)) for part in ("running_mean", "running_var")}
    return {**norm(name, width), **statistics, f"{name}.num_batches_tracked": torch.Size(())}


def linear(name, n_in, n_out):
    return {f"{name}.weight": torch.Size((n_out, n_in)), f"{name}.bias": torch.Size((n_out,))}


def backbone(names):
    shapes = {"backbone.cls_token": torch.Size((1, 1, C)), "backbone.pos_embed": torch.Size((1, 1 + 4 * 4, C))}
    shapes |= convolution(f"backbone.{names['patch']}", 3, C, 8, bias=True)
    for i in range(DEPTH):
        block = f"backbone.{names['blocks']}.{i}"
        shapes |= norm(f"{block}.{names['norm1']}", C) | norm(f"{block}.{names['norm2']}", C)
        shapes |= linear(f"{block}.{names['fc1']}", C, 4 * C) | linear(f"{block}.{names['fc2']}", 4 * C, C)
        shapes |= {f"{block}.{names['qkv']}{p}": torch.Size(s) for p, s in (("weight", (3 * C, C)), ("bias", (3 * C,)))}
        shapes |= linear(f"{block}.{names['out']}", C, C)
    return shapes


TIMM_NAMES = dict(
    patch="patch_embed.proj", blocks="blocks", norm1="norm1", norm2="norm2", fc1="mlp.fc1", fc2="mlp.fc2",
    qkv="attn.qkv.", out="attn.proj",
)  # fmt: skip
MMSEG_NAMES = dict(
    patch="patch_embed.projection", blocks="layers", norm1="ln1", norm2="ln2", fc1="ffn.layers.0.0", fc2="ffn.layers.1",
    qkv="attn.attn.in_proj_", out="attn.attn.out_proj",
)  # fmt: skip


def layer_norm(x, state, name):
    return F.layer_norm(x, (x.shape[-1],), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def map_norm(x, state, name):
    return layer_norm(x.permute(0, 2, 3, 1), state, name).permute(0, 3, 1, 2)


def conv(x, state, name):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def conv_bn_relu(x, state, conv_name, norm_name):
    parts = (state[f"{norm_name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(conv(x, state, conv_name), *parts))


def resize(x, size, align_corners=False):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def scale(x, factor, align_corners=False):
    return resize(x, [factor * n for n in x.shape[2:]], align_corners)


def block_outputs(images, state, names, with_class_token):
    patches = F.conv2d(
        images, state[f"backbone.{names['patch']}.weight"], state.get(f"backbone.{names['patch']}.bias"), stride=8
    )
    batch, _, h, w = patches.shape
    table = state["backbone.pos_embed"]
    grid = resize(table[:, 1:].transpose(1, 2).reshape(1, C, 4, 4), (h, w)).flatten(2).transpose(1, 2)
    x = torch.cat((state["backbone.cls_token"].expand(batch, 1, C), patches.flatten(2).transpose(1, 2)), 1)
    x = x + torch.cat((table[:, :1], grid), 1)
    if not with_class_token:
        x = x[:, 1:]
    maps = []
    for i in range(DEPTH):
        name = f"backbone.{names['blocks']}.{i}"
        y = layer_norm(x, state, f"{name}.{names['norm1']}")
        y = F.linear(y, state[f"{name}.{names['qkv']}weight"], state[f"{name}.{names['qkv']}bias"])
        q, k, v = (part.reshape(batch, -1, HEADS, C // HEADS).transpose(1, 2) for part in y.chunk(3, dim=-1))
        y = ((q @ k.transpose(2, 3) / (C // HEADS) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, state[f"{name}.{names['out']}.weight"], state[f"{name}.{names['out']}.bias"])
        y = layer_norm(x, state, f"{name}.{names['norm2']}")
        y = F.gelu(F.linear(y, state[f"{name}.{names['fc1']}.weight"], state[f"{name}.{names['fc1']}.bias"]))
        x = x + F.linear(y, state[f"{name}.{names['fc2']}.weight"], state[f"{name}.{names['fc2']}.bias"])
        maps.append(x[:, with_class_token:].transpose(1, 2).reshape(batch, C, h, w))
    return maps


def authors_head_shapes(head, kernel_size, convolutions):
    shapes = norm(f"{head}.norm", C) | convolution(f"{head}.conv_seg", 512, K, 1, bias=True)  # conv_seg is not used
    for i in range(convolutions):
        shapes |= convolution(f"{head}.conv_{i}", WIDTH if i else C, WIDTH, kernel_size, bias=True)
        shapes |= batch_norm(f"{head}.syncbn_fc_{i}", WIDTH)
    return shapes | convolution(f"{head}.conv_{convolutions}", WIDTH, K, 1, bias=True)


def authors_naive():
    shapes = backbone(TIMM_NAMES) | authors_head_shapes("decode_head", 1, 1)
    for i in range(3):
        shapes |= authors_head_shapes(f"auxiliary_head.{i}", 1, 1)
    state = tensors(shapes)

    def forward(images):
        def head(x, name):
            x = conv_bn_relu(map_norm(x, state, f"{name}.norm"), state, f"{name}.conv_0", f"{name}.syncbn_fc_0")
            return resize(conv(x, state, f"{name}.conv_1"), images.shape[2:])

        maps = block_outputs(images, state, TIMM_NAMES, True)
        return head(maps[3], "decode_head"), [head(maps[i], f"auxiliary_head.{i}") for i in range(3)]

    return state, forward


def authors_pup():
    shapes = backbone(TIMM_NAMES) | authors_head_shapes("decode_head", 3, 4)
    for i in range(4):
        shapes |= authors_head_shapes(f"auxiliary_head.{i}", 3, 1)
    state = tensors(shapes)

    def forward(images):
        def stage(x, name, i, factor):
            return scale(conv_bn_relu(x, state, f"{name}.conv_{i}", f"{name}.syncbn_fc_{i}"), factor)

        maps = block_outputs(images, state, TIMM_NAMES, True)
        x = map_norm(maps[3], state, "decode_head.norm")
        for i in range(4):
            x = stage(x, "decode_head", i, 2 if i < 3 else 1)
        logits = resize(conv(x, state, "decode_head.conv_4"), images.shape[2:])
        auxiliary = []
        for i in range(4):
            x = stage(map_norm(maps[i], state, f"auxiliary_head.{i}.norm"), f"auxiliary_head.{i}", 0, 4)
            auxiliary.append(resize(conv(x, state, f"auxiliary_head.{i}.conv_1"), images.shape[2:]))
        return logits, auxiliary

    return state, forward


def authors_mla():
    shapes = backbone(TIMM_NAMES) | convolution("decode_head.cls", 4 * NARROW, K, 3, bias=True)
    shapes |= convolution("decode_head.conv_seg", 512, K, 1, bias=True)
    for i in range(4):
        level, head = f"backbone.mla.mla_p{i + 2}", f"decode_head.mlahead.head{i + 2}"
        shapes |= norm(f"backbone.norm_{i}", C)
        shapes |= convolution(f"{level}_1x1.0", C, WIDTH, 1, bias=False) | batch_norm(f"{level}_1x1.1", WIDTH)
        shapes |= convolution(f"{level}.0", WIDTH, WIDTH, 3, bias=False) | batch_norm(f"{level}.1", WIDTH)
        shapes |= convolution(f"{head}.0", WIDTH, NARROW, 3, bias=False) | batch_norm(f"{head}.1", NARROW)
        shapes |= convolution(f"{head}.3", NARROW, NARROW, 3, bias=False) | batch_norm(f"{head}.4", NARROW)
        shapes |= convolution(f"auxiliary_head.{i}.aux", WIDTH, K, 1, bias=False)
        shapes |= convolution(f"auxiliary_head.{i}.conv_seg", 512, K, 1, bias=True)
    state = tensors(shapes)

    def forward(images):
        maps = block_outputs(images, state, TIMM_NAMES, False)
        m = {}
        for p in (5, 4, 3, 2):
            name = f"backbone.mla.mla_p{p}_1x1"
            m[p] = conv_bn_relu(map_norm(maps[p - 2], state, f"backbone.norm_{p - 2}"), state, f"{name}.0", f"{name}.1")
            m[p] = m[p] + m.get(p + 1, 0)
        levels, heads = [], []
        for p in (2, 3, 4, 5):
            name, head = f"backbone.mla.mla_p{p}", f"decode_head.mlahead.head{p}"
            levels.append(conv_bn_relu(m[p], state, f"{name}.0", f"{name}.1"))
            x = conv_bn_relu(levels[-1], state, f"{head}.0", f"{head}.1")
            heads.append(scale(conv_bn_relu(x, state, f"{head}.3", f"{head}.4"), 4, align_corners=True))
        logits = resize(conv(torch.cat(heads, 1), state, "decode_head.cls"), images.shape[2:])
        auxiliary = [
            resize(conv(level, state, f"auxiliary_head.{i}.aux"), images.shape[2:]) for i, level in enumerate(levels)
        ]
        return logits, auxiliary

    return state, forward


def mmseg_upsampling(kernel_size, convolutions, auxiliary_convolutions):
    def head_shapes(head, count):
        shapes = norm(f"{head}.norm", C) | convolution(f"{head}.conv_seg", WIDTH, K, 1, bias=True)
        for i in range(count):
            shapes |= convolution(f"{head}.up_convs.{i}.0.conv", WIDTH if i else C, WIDTH, kernel_size, bias=False)
            shapes |= batch_norm(f"{head}.up_convs.{i}.0.bn", WIDTH)
        return shapes

    shapes = backbone(MMSEG_NAMES) | head_shapes("decode_head", convolutions)
    for i in range(3):
        shapes |= head_shapes(f"auxiliary_head.{i}", auxiliary_convolutions)
    state = tensors(shapes)

    def forward(images):
        def head(x, name, count, factor):
            x = map_norm(x, state, f"{name}.norm")
            for i in range(count):
                x = scale(conv_bn_relu(x, state, f"{name}.up_convs.{i}.0.conv", f"{name}.up_convs.{i}.0.bn"), factor)
            return resize(conv(x, state, f"{name}.conv_seg"), images.shape[2:])

        maps = block_outputs(images, state, MMSEG_NAMES, True)
        auxiliary = [head(maps[i], f"auxiliary_head.{i}", auxiliary_convolutions, 4) for i in range(3)]
        return head(maps[3], "decode_head", convolutions, 2 if convolutions == 4 else 4), auxiliary

    return state, forward


def mmseg_mla():
    shapes = backbone(MMSEG_NAMES) | convolution("decode_head.conv_seg", 4 * NARROW, K, 1, bias=True)
    for i in range(4):
        shapes |= norm(f"neck.norm.{i}", C)
        for name, n_in, n_out, kernel_size in (
            (f"neck.mla.channel_proj.{i}", C, WIDTH, 1),
            (f"neck.mla.feat_extract.{i}", WIDTH, WIDTH, 3),
            (f"decode_head.up_convs.{i}.0", WIDTH, NARROW, 3),
            (f"decode_head.up_convs.{i}.1", NARROW, NARROW, 3),
        ):
            shapes |= convolution(f"{name}.conv", n_in, n_out, kernel_size, bias=False)
            shapes |= batch_norm(f"{name}.bn", n_out)
        shapes |= convolution(f"auxiliary_head.{i}.conv_seg", WIDTH, K, 1, bias=True)
    del shapes["backbone.patch_embed.projection.bias"]  # as mmsegmentation 1.2.2 builds it unless told otherwise
    state = tensors(shapes)

    def forward(images):
        def module(x, name):
            return conv_bn_relu(x, state, f"{name}.conv", f"{name}.bn")

        maps = block_outputs(images, state, MMSEG_NAMES, False)
        maps = [module(map_norm(x, state, f"neck.norm.{i}"), f"neck.mla.channel_proj.{i}") for i, x in enumerate(maps)]
        sums, levels, heads = 0, [], []
        for i, x in enumerate(reversed(maps)):
            sums = x + sums
            levels.append(module(sums, f"neck.mla.feat_extract.{i}"))
            x = module(module(levels[-1], f"decode_head.up_convs.{i}.0"), f"decode_head.up_convs.{i}.1")
            heads.append(scale(x, 4))
        logits = resize(conv(torch.cat(heads, 1), state, "decode_head.conv_seg"), images.shape[2:])
        auxiliary = [
            resize(conv(x, state, f"auxiliary_head.{i}.conv_seg"), images.shape[2:]) for i, x in enumerate(levels)
        ]
        return logits, auxiliary

    return state, forward


SOURCES = {
    "authors_naive": authors_naive,
    "authors_pup": authors_pup,
    "authors_mla": authors_mla,
    "mmseg_naive_ade20k": lambda: mmseg_upsampling(1, 1, 2),
    "mmseg_naive_cityscapes": lambda: mmseg_upsampling(1, 1, 1),
    "mmseg_pup": lambda: mmseg_upsampling(3, 4, 2),
    "mmseg_mla": mmseg_mla,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)], ids=["native", "oblong"])
def test_checkpoint_matches_its_source(source, grid):
    state, forward = SOURCES[source]()
    images = torch.randn(2, 3, 8 * grid[0], 8 * grid[1])
    model = load_original(state)
    with torch.no_grad():
        logits, auxiliary = forward(images)
        output = model(images, output_auxiliary_logits=True)
    ours = [resize(x, images.shape[2:]) for x in (output.logits, *output.auxiliary_logits)]
    assert len(ours) == 1 + len(auxiliary)
    for own, expected in zip(ours, (logits, *auxiliary), strict=True):
        # 1e-4 of the spread: float32 rounding through four blocks and a head, in another order of operations
        assert (own - expected).abs().max() < 1e-4 * expected.std()


# --------------------------------------------------------------------------------------------------- the model itself


def build(decode_head, model_class=SETRForSemanticSegmentation, **overrides):
    fields = {**TINY, "decode_head": decode_head, "decoder_hidden_size": WIDTH, "num_labels": K}
    model = model_class(SETRConfig(**{**fields, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


# 512x512, 150 classes, with auxiliary heads and, for each head, the 1x1 convolution of the authors' base class that
# their heads do not use (512 to 150 channels) and that is not created here.
@pytest.mark.parametrize(
    "size, decode_head, millions",
    [
        ("large", "naive", 305.67),
        ("large", "mla", 310.57),
        ("large", "pup", 318.31),
        ("base", "naive", 87.69),
        ("base", "mla", 92.59),
        ("base", "pup", 97.64),
        ("deit_base", "pup", 97.64),
    ],
)
def test_parameter_count_of_table_2(size, decode_head, millions):
    with torch.device("meta"):
        model = SETRForSemanticSegmentation(SETRConfig.from_size(size, decode_head=decode_head, num_labels=150))
    heads = 1 + len(model.auxiliary_heads)
    count = sum(parameter.numel() for parameter in model.parameters()) + heads * (512 * 150 + 150)
    assert round(count / 1e6, 2) == millions


def test_blocks_that_are_read():
    assert SETRConfig.from_size("large").feature_indices == [9, 14, 19, 23]
    assert SETRConfig.from_size("large", decode_head="mla").feature_indices == [5, 11, 17, 23]
    assert SETRConfig.from_size("base").feature_indices == [2, 5, 8, 11]
    assert SETRConfig(num_hidden_layers=2).feature_indices == [0, 1]
    assert SETRConfig(num_hidden_layers=2).auxiliary_levels == [0]
    model = build("naive", SETRModel, feature_indices=[1, 3])
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
    for feature_map, index in zip(output.feature_maps, (1, 3), strict=True):
        tokens = output.hidden_states[index + 1][:, 1:]  # hidden_states[0] is the input of block 0
        assert torch.equal(feature_map, tokens.transpose(1, 2).reshape(2, 32, 4, 6))


@pytest.mark.parametrize("decode_head, side", [("naive", 4), ("pup", 32), ("mla", 16)])
def test_logits_keep_the_resolution_of_the_head(decode_head, side, tmp_path):
    model, images = build(decode_head), torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(images).logits
        assert logits.shape == (1, K, side, side)
        assert torch.equal(type(model).from_pretrained(tmp_path)(images).logits, logits)


@pytest.mark.parametrize("decode_head", HEAD_KINDS)
def test_odd_size_matches_padding_and_cropping(decode_head):
    model, images = build(decode_head), torch.randn(2, 3, 43, 30)
    with torch.no_grad():
        padded = model(F.pad(images, (0, 2, 0, 5))).logits
        assert torch.equal(model(images).logits, resize(padded, (48, 32))[:, :, :43, :30])


@pytest.mark.parametrize("decode_head", HEAD_KINDS)
def test_loss_is_main_plus_weighted_auxiliary_losses(decode_head):
    model = build(decode_head, auxiliary_loss_weight=0.3).train()
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, K, (2, 32, 32))
    output = model(images, labels=labels, output_auxiliary_logits=True)
    assert model.training and len(output.auxiliary_logits) == (3 if decode_head == "naive" else 4)
    expected = F.cross_entropy(resize(output.logits, (32, 32)), labels)
    for logits in output.auxiliary_logits:
        expected = expected + 0.3 * F.cross_entropy(resize(logits, (32, 32)), labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # else DistributedDataParallel waits


@pytest.mark.parametrize("decode_head", HEAD_KINDS)
def test_auxiliary_heads_rest_in_evaluation(decode_head):
    model, images = build(decode_head), torch.randn(2, 3, 32, 32)
    labels = torch.randint(0, K, (2, 32, 32))
    calls = []
    for head in model.auxiliary_heads:
        head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        output = model(images, labels=labels)
        main = F.cross_entropy(resize(output.logits, (32, 32)), labels)
        torch.testing.assert_close(output.loss, main)
        assert output.auxiliary_logits is None and not calls
        model.train()(images)
        assert not calls
        assert model.eval()(images, output_auxiliary_logits=True).auxiliary_logits is not None and calls


def test_no_auxiliary_heads():
    model = build("pup", auxiliary_levels=[]).train()
    output = model(torch.randn(2, 3, 32, 32), labels=torch.zeros(2, 32, 32, dtype=torch.long))
    assert not len(model.auxiliary_heads) and output.loss.isfinite()


def test_heads_read_the_chosen_blocks():
    model, images = build("naive", feature_indices=[1, 2], auxiliary_levels=[0]), torch.randn(1, 3, 32, 32)

    def logits():
        output = model(images, output_auxiliary_logits=True)
        return output.logits, *output.auxiliary_logits

    with torch.no_grad():
        before, changed = logits(), []
        for block in model.backbone.vit.blocks[:0:-1]:  # the last three, deepest first
            block.mlp.fc2.bias.add_(torch.randn_like(block.mlp.fc2.bias))
            changed.append([not torch.equal(x, y) for x, y in zip(logits(), before, strict=True)])
    assert changed == [[False, False], [True, False], [True, True]]


def test_mla_does_not_see_the_class_token():
    images = torch.randn(1, 3, 32, 32)
    for decode_head in HEAD_KINDS:
        model = build(decode_head)
        with torch.no_grad():
            before = model(images).logits
            model.backbone.vit.cls_token.add_(1)
            assert torch.equal(model(images).logits, before) == (decode_head == "mla")


def test_parameters_of_the_papers_hybrid():
    """Table 2 has 112.59 M for "Hybrid-Base" and calls its stem ResNet-50; so many has PUP on ViT-B whose patches are
    the last map of timm's ResNet-26d with stride 16 through a linear layer (`HybridEmbed` of the authors, whose list of
    models has `vit_base_resnet26d_224`). With ResNet-50 it would be 122 M. Ours has the ResNet-50 of the ViT paper.
    """

    def parameters(module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        config = SETRConfig.from_size("base", decode_head="pup", num_labels=150, image_size=512)
        model = SETRForSemanticSegmentation(config)
        ours = SETRForSemanticSegmentation(SETRConfig.from_size("hybrid_base", decode_head="pup", num_labels=150))
    unused = 5 * (512 * 150 + 150)  # of the authors' heads, as in the other counts
    found = {}
    for name in ("resnet26d", "resnet50d"):
        stem = timm.create_model(name, features_only=True, out_indices=[4], output_stride=16)
        (channels,) = stem.feature_info.channels()
        patches = parameters(stem) + channels * 768 + 768
        found[name] = parameters(model) - parameters(model.backbone.vit.patch_embed) + patches + unused
    assert {name: round(count / 1e6, 2) for name, count in found.items()} == {"resnet26d": 112.59, "resnet50d": 122.15}
    assert round((parameters(ours) + unused) / 1e6, 2) == 109.73


def test_hybrid_trains():
    model = build("naive", patch_size=16, stem_depths=[1, 1, 1], stem_hidden_sizes=[128, 128, 256]).train()
    output = model(torch.randn(2, 3, 40, 32), labels=torch.zeros(2, 40, 32, dtype=torch.long))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.device("meta"):
        published = SETRForSemanticSegmentation(SETRConfig.from_size("hybrid_base"))
        widths = published.backbone.vit.patch_embed.backbone.num_features
    assert widths == [64, 256, 512, 1024]  # ResNet-50 up to stride 16


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(num_attention_heads=5), "num_attention_heads 5 does not divide hidden_size 32"),
        (dict(feature_indices=[1, 4]), r"feature_indices is \[1, 4\]; give increasing block numbers from 0 to 3"),
        (dict(feature_indices=[]), r"feature_indices is \[\]"),
        (dict(decode_head="mla", feature_indices=[1, 2, 3]), "3 levels; decode_head 'mla' needs exactly 4"),
        (dict(decode_head="mla", num_hidden_layers=2), "2 levels; decode_head 'mla' needs exactly 4"),
        (dict(auxiliary_levels=[0, 4]), r"auxiliary_levels is \[0, 4\]; .* 0 to 3"),
        (dict(decode_head="fcn"), "decode_head is 'fcn'; choose one of naive, pup, mla"),
        (dict(decoder_upsampling=[2, 0]), "decoder_upsampling: 0 is out of range; give 1 to"),
        (dict(position_resize_mode="nearest"), "position_resize_mode is 'nearest'"),
        (dict(stem_depths=[3, 4, 9]), "patch_size is 8, but a stem of 3 stages has stride 16"),
        (dict(stem_depths=[3, 4], stem_hidden_sizes=[8]), "stem_hidden_sizes has 1 entries, stem_depths 2"),
        (dict(mla_classifier_kernel_size=5), "mla_classifier_kernel_size is 5; choose 1 or 3"),
        (dict(image_size=[32, 32, 3]), r"image_size is \[32, 32, 3\]"),
    ],
)
def test_wrong_combinations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        SETRConfig(**{**TINY, **overrides})


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="unknown SETR size 'huge'; choose one of base, large"):
        SETRConfig.from_size("huge")
