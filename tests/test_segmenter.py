"""Segmenter against the paper written out, checkpoints of both code bases, timm's ViT and the paper's tables."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from hf_segtx.models.configuration_segmenter import SIZES, SegmenterConfig
from hf_segtx.models.image_processing_segtx import SegmenterImageProcessor
from hf_segtx.models.modeling_segmenter import SegmenterForSemanticSegmentation, SegmenterModel
from hf_segtx.weights import load_backbone, load_original


K, WIDTH, DEPTH, HEADS, PATCH, SIDE = 7, 128, 3, 2, 16, 64
TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, num_labels=K)


# ------------------------------------------------------------- oracle: the paper on the authors' tensors, written out


def authors_state(decode_head, distilled=False):
    """Random tensors under the authors' names, with the layers' usual spread so that nothing saturates."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, mean=0.0, std=0.1):
        return mean + std * torch.randn(*shape, generator=generator)

    def linear(name, rows, columns):
        return {f"{name}.weight": draw(rows, columns, std=columns**-0.5), f"{name}.bias": draw(rows)}

    def norm(name, width=WIDTH):
        return {f"{name}.weight": draw(width, mean=1.0), f"{name}.bias": draw(width)}

    def blocks(name, depth):
        state = {}
        for i in range(depth):
            block = f"{name}.blocks.{i}"
            state |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
            state |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
            state |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
        return state

    state = {"encoder.cls_token": draw(1, 1, WIDTH), "encoder.pos_embed": draw(1, 17 + distilled, WIDTH, std=1.0)}
    state["encoder.patch_embed.proj.weight"] = draw(WIDTH, 3, PATCH, PATCH, std=1 / 28)
    state["encoder.patch_embed.proj.bias"] = draw(WIDTH)
    state |= blocks("encoder", DEPTH) | norm("encoder.norm") | linear("encoder.head", 1000, WIDTH)
    if distilled:
        state |= {"encoder.dist_token": draw(1, 1, WIDTH)} | linear("encoder.head_dist", 1000, WIDTH)
    if decode_head == "linear":
        return state | linear("decoder.head", K, WIDTH)
    state |= {"decoder.cls_emb": draw(1, K, WIDTH, std=1.0)} | linear("decoder.proj_dec", WIDTH, WIDTH)
    for name in ("proj_patch", "proj_classes"):
        state[f"decoder.{name}"] = draw(WIDTH, WIDTH, std=WIDTH**-0.5)
    return state | blocks("decoder", 2) | norm("decoder.decoder_norm") | norm("decoder.mask_norm", K)


def blocks_written_out(state, tokens, name, depth, eps):
    for i in range(depth):
        part = {key.removeprefix(f"{name}.blocks.{i}."): v for key, v in state.items() if f"{name}.blocks.{i}." in key}
        x = F.layer_norm(tokens, (WIDTH,), part["norm1.weight"], part["norm1.bias"], eps)
        q, k, v = F.linear(x, part["attn.qkv.weight"], part["attn.qkv.bias"]).chunk(3, dim=-1)
        context = []
        for q_head, k_head, v_head in zip(q.chunk(HEADS, -1), k.chunk(HEADS, -1), v.chunk(HEADS, -1)):
            weights = (q_head @ k_head.transpose(1, 2) / (WIDTH / HEADS) ** 0.5).softmax(-1)
            context.append(weights @ v_head)
        tokens = tokens + F.linear(torch.cat(context, -1), part["attn.proj.weight"], part["attn.proj.bias"])
        x = F.layer_norm(tokens, (WIDTH,), part["norm2.weight"], part["norm2.bias"], eps)
        x = F.gelu(F.linear(x, part["mlp.fc1.weight"], part["mlp.fc1.bias"]))
        tokens = tokens + F.linear(x, part["mlp.fc2.weight"], part["mlp.fc2.bias"])
    return tokens


def written_out(state, image, eps=1e-5, mode="bilinear"):
    """Logits at the size of the image: Sections 3.1 to 3.3, with the padding and cropping of the authors' code."""
    height, width = image.shape[2:]
    image = F.pad(image, (0, -width % PATCH, 0, -height % PATCH))
    x = F.conv2d(image, state["encoder.patch_embed.proj.weight"], state["encoder.patch_embed.proj.bias"], stride=PATCH)
    grid = x.shape[2:]
    names = [name for name in ("encoder.cls_token", "encoder.dist_token") if name in state]
    prefix = [state[name].expand(len(x), -1, -1) for name in names]
    table = state["encoder.pos_embed"]
    patches = table[:, len(prefix) :].transpose(1, 2).unflatten(2, (4, 4))
    if grid != (4, 4):
        patches = F.interpolate(patches, grid, mode=mode)
    table = torch.cat([table[:, : len(prefix)], patches.flatten(2).transpose(1, 2)], 1)
    tokens = torch.cat([*prefix, x.flatten(2).transpose(1, 2)], 1) + table
    tokens = blocks_written_out(state, tokens, "encoder", DEPTH, eps)
    tokens = F.layer_norm(tokens, (WIDTH,), state["encoder.norm.weight"], state["encoder.norm.bias"], eps)
    tokens = tokens[:, len(prefix) :]
    if "decoder.head.weight" in state:
        masks = F.linear(tokens, state["decoder.head.weight"], state["decoder.head.bias"])
    else:
        tokens = F.linear(tokens, state["decoder.proj_dec.weight"], state["decoder.proj_dec.bias"])
        tokens = torch.cat([tokens, state["decoder.cls_emb"].expand(len(x), -1, -1)], 1)
        tokens = blocks_written_out(state, tokens, "decoder", 2, 1e-5)
        norm = state["decoder.decoder_norm.weight"], state["decoder.decoder_norm.bias"]
        tokens = F.layer_norm(tokens, (WIDTH,), *norm, 1e-5)
        patches = tokens[:, :-K] @ state["decoder.proj_patch"]
        classes = tokens[:, -K:] @ state["decoder.proj_classes"]
        cosines = F.cosine_similarity(patches[:, :, None], classes[:, None], dim=-1)  # (B, N, K)
        masks = F.layer_norm(cosines, (K,), state["decoder.mask_norm.weight"], state["decoder.mask_norm.bias"], 1e-5)
    masks = masks.transpose(1, 2).unflatten(2, grid)
    return F.interpolate(masks, image.shape[2:], mode="bilinear")[..., :height, :width]


def mmsegmentation_state(state):
    """The same network under mmsegmentation's names."""
    result = {}
    for name, value in state.items():
        if name.startswith(("encoder.head", "encoder.dist")):
            continue
        if name == "decoder.head.weight":
            value = value[:, :, None, None]
        if name.endswith(("proj_patch", "proj_classes")):
            name, value = f"{name}.weight", value.T.contiguous()
        for old, new in {
            "encoder.norm": "encoder.ln1",
            "decoder.head": "decode_head.conv_seg",
            "encoder.": "backbone.",
            "decoder.": "decode_head.",
            "blocks.": "layers.",
            "patch_embed.proj": "patch_embed.projection",
            "norm1": "ln1",
            "norm2": "ln2",
            "attn.qkv.": "attn.attn.in_proj_",
            "attn.proj": "attn.attn.out_proj",
            "mlp.fc1": "ffn.layers.0.0",
            "mlp.fc2": "ffn.layers.1",
            "proj_dec": "dec_proj",
            "proj_patch": "patch_proj",
            "proj_classes": "classes_proj",
        }.items():
            name = name.replace(old, new)
        result[name] = value
    return result


def assert_matches(model, expected, image):
    with torch.no_grad():
        logits = model(image).logits
    if logits.shape[2:] != image.shape[2:]:  # not padded
        logits = F.interpolate(logits, image.shape[2:], mode="bilinear")
    # Sums in another order in some ten layers: float32 rounding, relative to the spread of the logits.
    assert (logits - expected).abs().max() < 1e-4 * expected.std()


IMAGE_SIZES = pytest.mark.parametrize("size", [(64, 64), (48, 96), (70, 51)], ids=["square", "oblong", "padded"])


@IMAGE_SIZES
@pytest.mark.parametrize("decode_head", ["linear", "mask"])
@pytest.mark.parametrize("distilled", [False, True], ids=["vit", "deit"])
def test_authors_checkpoint_matches_the_paper_written_out(decode_head, distilled, size):
    state, image = authors_state(decode_head, distilled), torch.randn(2, 3, *size)
    model = load_original(state)
    assert model.config.decode_head == decode_head and model.config.use_distillation_token == distilled
    assert_matches(model, written_out(state, image), image)


@IMAGE_SIZES
@pytest.mark.parametrize("decode_head", ["linear", "mask"])
def test_mmsegmentation_checkpoint_matches_the_paper_written_out(decode_head, size):
    state, image = authors_state(decode_head), torch.randn(2, 3, *size)
    model = load_original(mmsegmentation_state(state))
    assert_matches(model, written_out(state, image, eps=1e-6, mode="bicubic"), image)


VARIANT = """
net_kwargs:
  backbone: vit_tiny_patch16_384
  d_model: 128
  decoder: {drop_path_rate: 0.05, dropout: 0.2, n_cls: 7, n_layers: 2, name: mask_transformer}
  distilled: false
  drop_path_rate: 0.15
  dropout: 0.0
  image_size: !!python/tuple
  - 32
  - 128
  n_cls: 7
  n_heads: 4
  n_layers: 3
  normalization: vit
  patch_size: 16
"""


@pytest.mark.parametrize("given", ["folder", "file"])
def test_authors_folder(given, tmp_path):
    torch.save({"model": authors_state("mask"), "n_cls": K, "epoch": 63, "optimizer": {}}, tmp_path / "checkpoint.pth")
    (tmp_path / "variant.yml").write_text(VARIANT)
    config = load_original(tmp_path if given == "folder" else tmp_path / "checkpoint.pth", drop_path_rate=0.0).config
    assert config.image_size == [32, 128] and config.num_attention_heads == 4  # neither can be seen in the weights
    assert config.decoder_drop_path_rate == 0.05 and config.decoder_dropout_prob == 0.2
    assert config.drop_path_rate == 0.0  # what is asked for comes before what the file says


def test_authors_folder_with_another_variant_is_refused(tmp_path):
    torch.save({"model": authors_state("mask")}, tmp_path / "checkpoint.pth")
    (tmp_path / "variant.yml").write_text("net_kwargs: {d_model: 128}")
    with pytest.raises(ValueError, match="variant.yml does not describe a Segmenter"):
        load_original(tmp_path)


# ------------------------------------------------------------------------------------------------------- paper's tables

# Parameters in millions with 150 classes: what the authors' code builds, without the ImageNet classifier it never uses.
PARAMETERS = {
    ("tiny", "mask"): (512, 6.713),
    ("small", "mask"): (512, 26.034),
    ("base", "mask"): (512, 102.498),
    ("large", "mask"): (640, 333.234),
    ("tiny", "linear"): (512, 5.712),
    ("small", "linear"): (512, 22.041),
    ("base", "linear"): (512, 86.550),
    ("large", "linear"): (640, 304.893),
}


@pytest.mark.parametrize("size, decode_head", PARAMETERS)
def test_parameters_and_flops(size, decode_head):
    side, expected = PARAMETERS[size, decode_head]
    config = SegmenterConfig.from_size(size, decode_head=decode_head, image_size=side, num_labels=150)
    with torch.device("meta"):
        model = SegmenterForSemanticSegmentation(config).eval()
        x = torch.randn(1, 3, side, side)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(expected, abs=0.0006)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    # Multiply-adds counted by hand: patches, 12 C^2 + 2 C N a token and block (Section 3.1), and the head.
    width, depth, patches = config.hidden_size, config.num_hidden_layers, (side // 16) ** 2
    tokens, in_head = patches + 1, patches + 150
    flops = patches * 3 * 16**2 * width + depth * tokens * (12 * width**2 + 2 * width * tokens)
    if decode_head == "linear":
        flops += patches * width * 150
    else:
        flops += 2 * in_head * (12 * width**2 + 2 * width * in_head)
        flops += patches * width**2 + in_head * width**2 + patches * width * 150
    assert counter.get_total_flops() / 2 == flops


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_every_size_and_patch_gives_a_map(size, patch_size):
    config = SegmenterConfig.from_size(size, patch_size=patch_size, num_labels=19)
    with torch.device("meta"):
        model = SegmenterForSemanticSegmentation(config).eval()
        logits = model(torch.randn(1, 3, 256, 320)).logits
    assert logits.shape == (1, 19, 256 // patch_size, 320 // patch_size)
    assert (model.backbone.vit.dist_token is not None) == (size == "deit_base")


# ------------------------------------------------------------------------------------------------------------ behaviour


def test_decoder_of_another_width():
    """Everything after the projection is as wide as the configuration says."""
    config = SegmenterConfig(**TINY, decode_head="mask", decoder_hidden_size=24, decoder_num_attention_heads=3)
    model = SegmenterForSemanticSegmentation(config)
    head = model.decode_head
    assert head.projection.weight.shape == (24, 32) and head.class_embeddings.shape == (1, K, 24)
    assert {(block.mlp.fc1.in_features, block.attn.num_heads) for block in head.blocks} == {(24, 3)}
    assert model(torch.randn(1, 3, 32, 48)).logits.shape == (1, K, 2, 3)


@pytest.mark.parametrize("width, heads", [(32, 1), (126, 1), (128, 2), (200, 2), (320, 5)])
def test_decoder_has_a_head_for_every_64_channels_or_fewer(width, heads):
    assert SegmenterConfig(**TINY, decode_head="mask", decoder_hidden_size=width).decoder_num_attention_heads == heads


def test_stochastic_depth_and_dropout_are_where_the_config_says():
    decoder = {"decoder_num_hidden_layers": 4, "decoder_drop_path_rate": 0.3}
    config = SegmenterConfig(**TINY | {"num_hidden_layers": 3}, **decoder, drop_path_rate=0.2, hidden_dropout_prob=0.3)
    model = SegmenterForSemanticSegmentation(config)
    blocks, head_blocks = model.backbone.vit.blocks, model.decode_head.blocks
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert [block.drop_path.rate for block in head_blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert {block.dropout.p for block in blocks} == {0.3} and {block.attn.dropout for block in blocks} == {0.0}
    assert {block.dropout.p for block in head_blocks} == {block.attn.dropout for block in head_blocks} == {0.1}
    head = SegmenterForSemanticSegmentation(SegmenterConfig(**TINY, decoder_num_hidden_layers=1)).decode_head
    assert [block.drop_path.rate for block in head.blocks] == [0.0]  # none where there is no way from first to last


def test_attention_implementation_reaches_the_mask_transformer():
    model = SegmenterForSemanticSegmentation(SegmenterConfig(**TINY)).eval()
    weights = []
    model.decode_head.blocks[1].attn.register_forward_hook(lambda module, inputs, output: weights.append(output[1]))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        fused = model(image).logits
        model.set_attn_implementation("eager")
        written = model(image, output_attentions=True)
    assert weights[0] is None and weights[1].shape == (2, 1, 16 + K, 16 + K)
    assert [tuple(layer.shape) for layer in written.attentions] == 2 * [(2, 2, 17, 17)]
    torch.testing.assert_close(written.logits, fused, rtol=1e-4, atol=1e-5)  # softmax in another order


def test_initialisation_is_the_authors():
    model = SegmenterForSemanticSegmentation(SegmenterConfig(**{**TINY, "hidden_size": 64}))
    head = model.decode_head
    for tensor, std in (
        (model.backbone.vit.pos_embed, 0.02),
        (head.class_embeddings, 0.02),
        (head.patch_projection.weight, 64**-0.5),
        (head.class_projection.weight, 64**-0.5),
    ):
        assert tensor.std().item() == pytest.approx(std, rel=0.15)  # of some hundred to thousand random numbers
        assert tensor.mean().item() == pytest.approx(0, abs=0.2 * std)


def test_one_class_keeps_its_mask():
    """A LayerNorm over one class would make every pixel the same; only its scale and shift are applied."""
    model = SegmenterForSemanticSegmentation(SegmenterConfig(**{**TINY, "num_labels": 1})).eval()
    image, norm = torch.randn(1, 3, 64, 64), model.decode_head.mask_norm
    with torch.no_grad():
        cosines = model(image).logits
        norm.weight.fill_(2)
        norm.bias.fill_(3)
        torch.testing.assert_close(model(image).logits, 2 * cosines + 3)
    assert cosines.std() > 0 and cosines.abs().max() <= 1 + 1e-6


def test_padded_image_has_the_loss_and_the_map_of_its_own_pixels():
    model = SegmenterForSemanticSegmentation(SegmenterConfig(**TINY)).eval()
    image, labels = torch.randn(1, 3, 50, 70), torch.randint(0, K, (1, 50, 70))
    padded = F.pad(image, (0, 10, 0, 14))
    with torch.no_grad():
        output, whole = model(image, labels=labels), model(padded, labels=F.pad(labels, (0, 10, 0, 14), value=255))
    assert output.logits.shape == (1, K, 50, 70) and whole.logits.shape == (1, K, 4, 5)
    torch.testing.assert_close(output.loss, whole.loss)
    processor = SegmenterImageProcessor(do_resize=False, size_divisor=None)
    label_map = processor.post_process_semantic_segmentation(output, target_sizes=[(50, 70)])[0]
    expected = F.interpolate(whole.logits, (64, 80), mode="bilinear")[0, :, :50, :70].argmax(0)
    assert (label_map == expected).float().mean() > 0.999  # two classes may be equal up to rounding


@pytest.mark.parametrize("distilled", [False, True], ids=["vit", "deit"])
def test_backbone_matches_timm(distilled, tmp_path):
    name = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    theirs = timm.create_model(name, img_size=64, depth=2, num_classes=0).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    # timm's epsilon is 1e-6, the authors' of Segmenter 1e-5
    config = SegmenterConfig.from_size(
        "tiny", num_hidden_layers=2, image_size=64, use_distillation_token=distilled, layer_norm_eps=1e-6, num_labels=K
    )
    model = SegmenterForSemanticSegmentation(config).eval()
    load_backbone(model, tmp_path)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = model.backbone(image, output_hidden_states=True)
        torch.testing.assert_close(
            output.last_hidden_state, theirs.forward_features(image), rtol=1e-4, atol=1e-4
        )  # attention adds in another order
        assert torch.equal(model.backbone.vit.norm(output.hidden_states[-1]), output.last_hidden_state)


@pytest.mark.parametrize("patch_size", [8, 32])
def test_backbone_of_another_patch_size_sees_the_same_picture(patch_size, tmp_path):
    """Patches of a smooth picture at another scale give nearly the tokens that they gave."""
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=0).eval()
    with torch.no_grad():  # a trained kernel is smooth; a random one is not
        theirs.patch_embed.proj.weight.copy_(
            F.interpolate(torch.randn(192, 3, 4, 4), size=(16, 16), mode="bicubic") / 16
        )
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    side = 4 * patch_size
    config = SegmenterConfig.from_size("tiny", num_hidden_layers=1, image_size=side, patch_size=patch_size)
    model = SegmenterModel(config).eval()
    load_backbone(model, tmp_path)
    smooth = torch.randn(1, 3, 16, 16)
    images = [F.interpolate(smooth, size=(n, n), mode="bicubic", antialias=True) for n in (64, side)]
    with torch.no_grad():
        expected, tokens = theirs.forward_features(images[0]), model(images[1]).last_hidden_state
    assert F.cosine_similarity(expected, tokens, dim=-1).min() > 0.95


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(decode_head="pup"), "decode_head is 'pup'; choose one of linear, mask"),
        (dict(num_attention_heads=3), "num_attention_heads 3 does not divide hidden_size 32"),
        (dict(decoder_num_attention_heads=5), "decoder_num_attention_heads 5 does not divide decoder_hidden_size 32"),
        (dict(decoder_num_hidden_layers=0), "decoder_num_hidden_layers: 0 is out of range; give 1 to 1000"),
        (dict(patch_size=0), "patch_size: 0 is out of range"),
        (dict(drop_path_rate=1.0), "drop_path_rate: 1.0 is out of range; give 0 to below 1"),
        (dict(drop_path_rate=-0.001), "drop_path_rate: -0.001 is out of range; give 0 to below 1"),
        (dict(mlp_ratio=0.03), "mlp_ratio is 0.03: nothing is left of hidden_size 32"),  # 0.04 leaves one
        (dict(image_size=[64]), r"image_size is \[64\]; give"),
        (dict(position_resize_mode="nearest"), "position_resize_mode is 'nearest'; choose"),
        (dict(output_hidden_states="all"), "output_hidden_states is 'all'; give true or false"),
    ],
)
def test_wrong_combinations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**{**TINY, **wrong})


def test_configuration_fills_in_the_decoder(tmp_path):
    config = SegmenterConfig.from_size("base", decode_head="mask")
    assert (config.decoder_hidden_size, config.decoder_num_attention_heads) == (768, 12)
    config.save_pretrained(tmp_path)
    assert json.loads(SegmenterConfig.from_pretrained(tmp_path).to_json_string()) == json.loads(config.to_json_string())
