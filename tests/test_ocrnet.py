"""OCRNet against timm's backbones, the authors' head written out from the paper's equations, and the paper's table."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ConvNextConfig, TimmBackboneConfig

from hf_segtx import OCRNetConfig, OCRNetForSemanticSegmentation, OCRNetModel
from hf_segtx.models.configuration_ocrnet import SIZES
from hf_segtx.models.cpu import WinogradConv2d, is_faster_by_winograd, norm_relu_conv
from hf_segtx.models.modeling_ocrnet import HighResolutionModule, OCRNetDecodeHead, convolve_concatenated
from hf_segtx.weights import load_backbone, load_original


K, WIDTH, KEY_WIDTH = 5, 16, 8
TINY_HEAD = dict(num_labels=K, decoder_hidden_size=WIDTH, decoder_key_size=KEY_WIDTH)
# timm's smallest HRNet
HRNET = dict(hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 2, 2], num_modules=[1, 1, 1, 1], layer1_hidden_size=32)
RESNET = dict(backbone_type="resnet", hidden_sizes=[32, 32, 64, 96], depths=[2, 2, 3, 3], auxiliary_hidden_size=24)


def randomize(model, seed=0):
    """Values and statistics away from 0 and 1, where a mistake would not show, that keep the size of the signal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
    return model.eval()


def images(*size, count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_equal(output, expected):
    """Equal up to the rounding of float32 in some dozens of layers whose sums run in another order."""
    assert output.shape == expected.shape
    assert (output - expected).abs().max() < 3e-5 * expected.std()


# ------------------------------------------------------------------------------------------------------- the backbones


def timm_hrnet(align_corners):
    model = timm.create_model("hrnet_w18_small", features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
    for module in model.modules():
        if isinstance(module, nn.Upsample):  # as segmentation networks do it; timm's is the classification network
            module.mode, module.align_corners = "bilinear", align_corners
    return randomize(model)


def timm_resnet(stem_hidden_sizes, output_stride):
    stem = dict(stem_type="deep", stem_width=stem_hidden_sizes[0]) if len(stem_hidden_sizes) == 3 else {}
    model = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck,
        RESNET["depths"],
        channels=[width // 4 for width in RESNET["hidden_sizes"]],
        output_stride=output_stride,
        **stem,
    )
    return randomize(model)


@pytest.mark.parametrize("align_corners", [False, True])
def test_hrnet_matches_timm(align_corners, tmp_path):
    theirs = timm_hrnet(align_corners)
    ours = OCRNetModel(OCRNetConfig(**HRNET, align_corners=align_corners)).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    load_backbone(ours, tmp_path)
    with torch.no_grad():
        output = ours(images(64, 96))
        for feature_map, expected in zip(output.feature_maps, theirs(images(64, 96)), strict=True):
            assert_equal(feature_map, expected)
    assert output.last_hidden_state is output.feature_maps[-1]


def test_hrnet_resizes_branches_of_odd_sizes_as_mmsegmentation():
    """There, nn.Upsample enlarges by the power of 2, then `resize` makes the sizes equal."""
    module = randomize(HighResolutionModule([4, 4, 4], depth=1, align_corners=False))
    maps = [torch.randn(2, 4, height, width) for height, width in ((9, 13), (5, 7), (3, 4))]
    with torch.no_grad():
        branches = [branch(x) for branch, x in zip(module.branches, maps)]
        for i, fused in enumerate(module(maps)):
            total = torch.zeros_like(fused)
            for j, layer in enumerate(module.fuse_layers[i]):
                x = F.interpolate(layer(branches[j]), scale_factor=2 ** max(j - i, 0), mode="bilinear")
                total += F.interpolate(x, maps[i].shape[2:], mode="bilinear")
            assert_equal(fused, total.relu())


@pytest.mark.parametrize("stem_hidden_sizes", [[64], [8, 8, 16]], ids=["7x7", "deep"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_resnet_matches_timm(stem_hidden_sizes, output_stride, tmp_path):
    theirs = timm_resnet(stem_hidden_sizes, output_stride)
    config = OCRNetConfig(**RESNET, stem_hidden_sizes=stem_hidden_sizes, output_stride=output_stride)
    ours = OCRNetModel(config).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")  # with the classifier of ImageNet
    load_backbone(ours, tmp_path / "resnet.pth")
    with torch.no_grad():
        stages = theirs.forward_intermediates(images(75, 101), intermediates_only=True)[1:]
        for feature_map, expected in zip(ours(images(75, 101)).feature_maps, stages, strict=True):
            assert_equal(feature_map, expected)


def test_resnet_pooling_can_round_up():
    sides = [
        OCRNetModel(OCRNetConfig(**RESNET, pool_ceil_mode=rounds_up))(images(64, 64)).feature_maps[-1].shape[-1]
        for rounds_up in (False, True)
    ]
    assert sides == [8, 9]  # openseg: 512 -> 65


def test_backbone_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save(timm_resnet([64], 8).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet.pth does not fit .* `stem_hidden_sizes` \(\[64\] for a 7x7"):
        load_backbone(OCRNetModel(OCRNetConfig(**RESNET)), tmp_path / "resnet.pth")


# ------------------------------------------------------- the authors' network: their names, the equations of the paper


class Authors(nn.Module):
    """HRNet-OCR and openseg: modules with their names, run by the equations of Section 3.2 as they are printed.

    Args:
        nested: BatchNorm and ReLU after a convolution are a list of their own, as in the shared parts of both.
    """

    def __init__(self, bias: bool, kernel_size: int, region_width: int, channels=(240, 240), nested=False):
        super().__init__()

        def norm(width, nested=True):
            return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()) if nested else nn.BatchNorm2d(width)

        def chain(*widths, bias=bias):
            layers = [(nn.Conv2d(n, m, 1, bias=bias), norm(m)) for n, m in zip(widths, widths[1:])]
            return nn.Sequential(*[layer for pair in layers for layer in pair])

        self.bias, self.nested = bias, nested
        self.pixels = nn.Sequential(nn.Conv2d(channels[1], WIDTH, 3, padding=1), norm(WIDTH, nested))
        if not nested:
            self.pixels.append(nn.ReLU())
        self.regions = nn.Sequential(
            nn.Conv2d(channels[0], region_width, kernel_size, padding=kernel_size // 2),
            norm(region_width, nested),
            nn.Dropout2d() if nested else nn.ReLU(),
            nn.Conv2d(region_width, K, 1),
        )
        block = nn.Module()
        block.f_pixel = chain(WIDTH, KEY_WIDTH, KEY_WIDTH)
        block.f_object = chain(WIDTH, KEY_WIDTH, KEY_WIDTH)
        block.f_down, block.f_up = chain(WIDTH, KEY_WIDTH), chain(KEY_WIDTH, WIDTH)
        self.ocr = nn.Module()
        self.ocr.object_context_block = block
        self.ocr.conv_bn_dropout = chain(2 * WIDTH, WIDTH)
        self.classifier = nn.Conv2d(WIDTH, K, 1)

    def forward(self, features, features_of_regions):
        region_logits = self.regions(features_of_regions)  # (B, K, h, w)
        x = self.pixels(features)
        (count, _, height, width), block = x.shape, self.ocr.object_context_block
        y = torch.zeros_like(x)
        for image in range(count):
            m = region_logits[image].flatten(1).softmax(dim=1)
            f = torch.stack([sum_over(m[k], x[image].flatten(1)) for k in range(K)], dim=1)  # Eq. 4
            query = block.f_pixel(x[image : image + 1])[0].flatten(1)
            key = block.f_object(f[None, :, :, None])[0, :, :, 0]
            value = block.f_down(f[None, :, :, None])[0, :, :, 0]
            kappa = torch.exp(query.T @ key / KEY_WIDTH**0.5)
            w = kappa / kappa.sum(dim=1, keepdim=True)  # Eq. 5
            context = (w @ value.T).T.unflatten(1, (height, width))
            y[image] = block.f_up(context[None])[0]  # Eq. 3
        z = self.ocr.conv_bn_dropout(torch.cat([y, x], dim=1))  # Eq. 6
        return self.classifier(z), region_logits


def sum_over(weights, features):
    return (weights * features).sum(dim=1)


def concatenated(maps, align_corners):
    size = maps[0].shape[2:]
    upsampled = [F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners) for x in maps[1:]]
    return torch.cat([maps[0], *upsampled], dim=1)


def renamed(state, names):
    for pattern, name in names.items():
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    return state


def compare(model, expected, size, folder):
    model.save_pretrained(folder)
    loaded = OCRNetForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        for network in (model, model.optimize_for_inference(), loaded):
            output = network(images(*size), output_auxiliary_logits=True)
            assert_equal(output.logits, expected[0])
            assert_equal(output.auxiliary_logits[0], expected[1])


HRNET_OCR_NAMES = {
    r"^pixels": "conv3x3_ocr",
    r"^regions": "aux_head",
    r"^ocr": "ocr_distri_head",
    r"^classifier": "cls_head",
}
OPENSEG_HRNET_NAMES = {r"^pixels": "conv3x3", r"^regions\.3": "aux_head.2", **HRNET_OCR_NAMES}
OPENSEG_RESNET_NAMES = {
    r"^pixels": "conv_3x3",
    r"^regions": "dsn_head",
    r"^ocr": "spatial_ocr_head",
    r"^classifier": "head",
}
MMSEGMENTATION_NAMES = {
    r"^pixels\.0": "decode_head.1.bottleneck.conv",
    r"^pixels\.1": "decode_head.1.bottleneck.bn",
    r"^regions\.0": "decode_head.0.convs.0.conv",
    r"^regions\.1": "decode_head.0.convs.0.bn",
    r"^regions\.3": "decode_head.0.conv_seg",
    r"^classifier": "decode_head.1.conv_seg",
    r"^ocr\.object_context_block\.": "decode_head.1.object_context_block.",
    r"^ocr\.conv_bn_dropout\.": "decode_head.1.object_context_block.bottleneck.",
    r"f_(pixel|object)\.0\.": r"f_\1.0.conv.",
    r"f_(pixel|object)\.1\.0\.": r"f_\1.0.bn.",
    r"f_(pixel|object)\.2\.": r"f_\1.1.conv.",
    r"f_(pixel|object)\.3\.0\.": r"f_\1.1.bn.",
    r"(f_down|f_up|bottleneck)\.0\.": r"\1.conv.",
    r"(f_down|f_up|bottleneck)\.1\.0\.": r"\1.bn.",
    r"f_pixel": "query_project",
    r"f_object": "key_project",
    r"f_down": "value_project",
    r"f_up": "out_project",
}


@pytest.mark.parametrize("source", ["HRNet-OCR", "mmsegmentation", "openseg"])
def test_checkpoints_on_hrnet_match_the_paper_written_out(source, tmp_path):
    align_corners = source != "mmsegmentation"
    backbone = timm_hrnet(align_corners)
    openseg = source == "openseg"
    head = randomize(Authors(bias=openseg, kernel_size=3 if openseg else 1, region_width=24, nested=openseg), seed=1)
    if source == "HRNet-OCR":
        state = renamed({**backbone.state_dict(), **renamed(head.state_dict(), HRNET_OCR_NAMES)}, {r"^": "model."})
    else:
        names = OPENSEG_HRNET_NAMES if openseg else MMSEGMENTATION_NAMES
        state = {**renamed(backbone.state_dict(), {r"^": "backbone."}), **renamed(head.state_dict(), names)}
    with torch.no_grad():
        features = concatenated(backbone(images(64, 96)), align_corners)
        expected = head(features, features)
    model = load_original(state)
    assert model.config.auxiliary_kernel_size == (3 if openseg else 1)
    compare(model, expected, (64, 96), tmp_path)


@pytest.mark.parametrize("source", ["openseg", "mmsegmentation"])
def test_checkpoints_on_resnet_match_the_paper_written_out(source, tmp_path):
    backbone = timm_resnet([8, 8, 16], 8)
    openseg = source == "openseg"
    if openseg:
        backbone.maxpool.ceil_mode = True
    head = randomize(Authors(bias=openseg, kernel_size=3, region_width=24, channels=(64, 96), nested=openseg), seed=1)
    del backbone.fc
    state = renamed(backbone.state_dict(), {r"^conv1": "stem", r"^bn1": "stem.7", r"^": "backbone."})
    if openseg:
        for i, name in enumerate(("conv1", "bn1", "", "conv2", "bn2", "", "conv3", "bn3")):
            state = renamed(state, {rf"\.stem\.{i}\.": f".resinit.{name}."})
    names = OPENSEG_RESNET_NAMES if openseg else MMSEGMENTATION_NAMES
    state |= renamed(head.state_dict(), names)
    with torch.no_grad():
        maps = backbone.forward_intermediates(images(75, 101), intermediates_only=True)
        expected = head(maps[-1], maps[-2])
    compare(load_original(renamed(state, {r"^": "module."})), expected, (75, 101), tmp_path)


def test_in_place_batch_norm_of_openseg(tmp_path):
    """Its layers are BatchNorm with |weight| + eps and, in the head, leaky ReLU; the names lack a level."""
    backbone = timm_hrnet(True)
    head = randomize(Authors(bias=True, kernel_size=3, region_width=24, nested=True), seed=1)
    for module in head.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.01))
    with torch.no_grad():
        maps = backbone(images(64, 96))
        features = concatenated(maps, True)
        expected = head(features, features)
    state = renamed(head.state_dict(), {**OPENSEG_HRNET_NAMES, r"\.(\d)\.0\.": r".\1."})
    state |= renamed(backbone.state_dict(), {r"^": "backbone."})
    for key in state:
        if key.endswith(".weight") and key.replace("weight", "running_mean") in state:
            state[key] = -(state[key] - 1e-5)
    model = load_original(state)
    assert model.config.decoder_hidden_act == "leaky_relu"
    compare(model, expected, (64, 96), tmp_path)


# -------------------------------------------------------------------------------------- what is computed in another way


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (19, 26), (9, 45)])
def test_convolution_of_coarse_maps_matches_that_of_their_upsampling(size, kernel_size, align_corners):
    torch.manual_seed(0)
    maps = [torch.randn(2, 4 + i, *(-(-n // 2**i) for n in size), dtype=torch.float64) for i in range(4)]
    conv = nn.Conv2d(22, 6, kernel_size, padding=kernel_size // 2).double()
    torch.testing.assert_close(
        convolve_concatenated(conv, maps, align_corners), conv(concatenated(maps, align_corners))
    )


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (13, 9), (3, 5), (61, 45), (5, 520)])  # last: several blocks of rows
def test_winograd_convolution_matches_the_plain_one_in_float64(size, dilation):
    torch.manual_seed(0)
    conv = nn.Conv2d(40, 24, 3, padding=dilation, dilation=dilation)
    feature_map = torch.randn(2, 40, *size)
    with torch.no_grad():
        expected = conv.double()(feature_map.double())
        assert torch.equal(WinogradConv2d(conv)(feature_map.double()), expected)  # elsewhere than in float32, the plain
        winograd = WinogradConv2d(conv.float())
        winograd.weight = None  # its transform is used
        output = winograd(feature_map)
    assert output.shape == expected.shape
    assert (output - expected).abs().max() < 1e-5 * expected.std()  # float32; sums of rows before the products


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("frozen", ["nothing", "norms", "before"])
def test_norm_relu_conv_matches_its_modules(count, frozen):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, 2, padding=2, dilation=2, bias=False)
    ours = [randomize(module).train().double() for module in (nn.BatchNorm2d(6), conv, nn.BatchNorm2d(4))]
    theirs = copy.deepcopy(ours)
    results = []
    for modules in (ours, theirs):
        norm, conv, next_norm = modules
        for module in (norm, next_norm):
            module.requires_grad_(frozen != "norms")
        x = images(9, 12).double().repeat(1, 2, 1, 1).requires_grad_(frozen != "before")
        if modules is ours:
            y = norm_relu_conv(norm, conv, x, *[next_norm][: count - 2])
            assert type(y.grad_fn).__name__ == "NormReLUConvBackward"  # what saves memory
        else:
            y = conv(F.relu(norm(x)))
            y = y if count == 2 else next_norm(y)
        (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
        gradients = [tensor.grad for tensor in (x, *[p for module in modules for p in module.parameters()])]
        results.append([y, *[buffer for module in modules for buffer in module.buffers()], *gradients])
    for own, expected in zip(*results):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("case", ["evaluation", "cumulative average", "autocast", "adapter", "hook", "backward hook"])
def test_norm_relu_conv_is_its_modules_where_they_are_not_plain(case):
    norm, conv, images_ = randomize(nn.BatchNorm2d(3)), nn.Conv2d(3, 4, 3, bias=False), images(9, 12)
    if case != "evaluation":
        norm.train()
    if case == "cumulative average":
        norm.momentum = None
    if case == "adapter":
        conv = nn.utils.parametrizations.weight_norm(conv)
    results, other, normalised, forward = [], copy.deepcopy(norm), [], norm.forward
    norm.forward = lambda x: normalised.append(forward(x)) or normalised[-1]
    if case == "hook":
        norm.register_forward_hook(lambda module, arguments, result: None)
    if case == "backward hook":
        conv.register_full_backward_hook(lambda module, inputs, outputs: None)
    for part in (norm, other):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            y = norm_relu_conv(part, conv, images_) if part is norm else conv(F.relu(part(images_)))
        y.float().square().sum().backward()
        results.append([y, *part.buffers(), *(p.grad.clone() for p in conv.parameters())])
    assert all(torch.equal(own, expected) for own, expected in zip(*results, strict=True))
    assert normalised[0].min() == 0  # the ReLU writes over what the norm gave: no memory of its own


def test_norms_of_other_momentum_or_eps_are_not_taken_for_the_same():
    conv, x = nn.Conv2d(3, 4, 3, bias=False), images(9, 12)
    for field in ("momentum", "eps"):
        norms = nn.BatchNorm2d(3), nn.BatchNorm2d(4)
        setattr(norms[0], field, 0.5)
        others = copy.deepcopy(norms)
        y, expected = norm_relu_conv(norms[0], conv, x, norms[1]), others[1](conv(F.relu(others[0](x))))
        pairs = [(y, expected), *zip(*([b for norm in pair for b in norm.buffers()] for pair in (norms, others)))]
        assert all(torch.equal(own, other) for own, other in pairs)


def test_fused_copy_with_large_convolutions_is_the_same_function():
    config = OCRNetConfig(**TINY_HEAD, **{**RESNET, "hidden_sizes": [32, 48, 64, 1024]})
    model = randomize(OCRNetForSemanticSegmentation(config))
    fused = model.optimize_for_inference()
    assert sum(isinstance(module, WinogradConv2d) for module in fused.modules()) == 3  # of the last stage, 256 wide
    with torch.no_grad():
        assert_equal(fused(images(75, 101)).logits, model(images(75, 101)).logits)
    with torch.device("meta"):
        geometries = ((256, 256, 3), (255, 256, 3), (256, 255, 3), (256, 256, 1), (256, 256, 3, 2), (256, 256, (3, 1)))
        assert [is_faster_by_winograd(nn.Conv2d(*geometry)) for geometry in geometries] == [True, *[False] * 5]


def test_complexity_of_table_1():
    """10.5 M parameters and 340 GFLOPs (two a multiply-add) on a map 1x2048x128x128, 19 classes; no classifier."""
    with torch.device("meta"):
        head = OCRNetDecodeHead(OCRNetConfig.from_size("resnet101", num_labels=19), 2048).eval()
        maps, region_logits = torch.randn(1, 2048, 128, 128), torch.randn(1, 19, 128, 128)
    classifier = sum(p.numel() for p in head.classifier.parameters())
    assert (sum(p.numel() for p in head.parameters()) - classifier) / 1e6 == pytest.approx(10.5, abs=0.15)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head([maps], region_logits)
    pixels = 128 * 128
    flops = counter.get_total_flops() - 2 * 19 * 512 * pixels
    as_printed = flops + 2 * pixels * (256 * 512 + 19 * (256 - 512)) - 2 * 19 * 256 * 512  # rho applied to every pixel
    assert as_printed / 1e9 == pytest.approx(340, rel=0.01)
    assert flops < as_printed


# Parameters in millions with 150 classes, of mmsegmentation's form.
MMSEGMENTATION = dict(num_labels=150, decoder_conv_bias=False, context_conv_bias=False, auxiliary_conv_bias=False)
DEEP_STEM = dict(stem_hidden_sizes=[32, 32, 64], auxiliary_hidden_size=256)
PARAMETERS = {"hrnet_w18": 12.18, "hrnet_w48": 70.53, "resnet50": 36.6, "resnet101": 55.6}


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters(size):
    config = OCRNetConfig.from_size(size, **MMSEGMENTATION, **(DEEP_STEM if "resnet" in size else {}))
    with torch.device("meta"):
        model = OCRNetForSemanticSegmentation(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[size], abs=0.05)


def test_fused_copy_leaves_the_model_as_it_is():
    model = randomize(OCRNetForSemanticSegmentation(OCRNetConfig(**TINY_HEAD, **HRNET, stem_hidden_sizes=[8, 12])))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = model.optimize_for_inference()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert_equal(fused(images(75, 101)).logits, model(images(75, 101)).logits)


# ---------------------------------------------------------------------------------------------------- loss and outputs


def test_loss_matches_plain_pytorch():
    model = randomize(OCRNetForSemanticSegmentation(OCRNetConfig(**TINY_HEAD, **RESNET, align_corners=True)))
    labels = torch.randint(0, K + 1, (2, 75, 101)).masked_fill_(torch.rand(2, 75, 101) < 0.2, 255)
    labels[labels == K] = 255
    for module in model.modules():  # training mode, but a function of the image only
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout2d)):
            module.eval()
    model.training = True
    output = model(images(75, 101), labels=labels, output_auxiliary_logits=True)
    assert output.align_corners.tolist() == [True, True]
    losses = [
        F.cross_entropy(F.interpolate(x, (75, 101), mode="bilinear", align_corners=True), labels, ignore_index=255)
        for x in (output.logits, *output.auxiliary_logits)
    ]
    torch.testing.assert_close(output.loss, losses[0] + 0.4 * losses[1])


def test_regions_and_relation_are_in_the_output_when_asked_for():
    model = randomize(OCRNetForSemanticSegmentation(OCRNetConfig(**TINY_HEAD, **HRNET)))
    with torch.no_grad():
        output = model(images(64, 96))
        assert output.region_maps is output.pixel_region_relation is output.region_representations is None
        assert output.align_corners is None
        output = model(images(64, 96), output_regions=True)
    ones = torch.ones(())
    torch.testing.assert_close(output.region_maps.sum(dim=(2, 3)), ones.expand(2, K))
    torch.testing.assert_close(output.pixel_region_relation.sum(dim=1), ones.expand(2, 16, 24))
    assert output.region_representations.shape == (2, K, WIDTH)


@pytest.mark.parametrize(
    "backbone_config",
    [
        ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[1, 2, 3, 4]),
        TimmBackboneConfig(backbone="resnet18", out_indices=[1, 2, 3, 4]),
    ],
    ids=["transformers", "timm"],
)
def test_other_backbones(backbone_config, tmp_path):
    config = OCRNetConfig(**TINY_HEAD, backbone_config=backbone_config)
    model = OCRNetForSemanticSegmentation(config).eval()
    assert model.auxiliary_heads[0].conv.conv.in_channels == sum(model.backbone.channels)
    model.save_pretrained(tmp_path)
    loaded = OCRNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        output = model(images(64, 96), labels=torch.zeros(2, 64, 96, dtype=torch.long))
        assert output.logits.shape == (2, K, 16, 24) and output.loss.isfinite()
        torch.testing.assert_close(loaded(images(64, 96)).logits, output.logits)
        assert_equal(loaded.optimize_for_inference()(images(64, 96)).logits, output.logits)


def test_classifiers_begin_with_small_weights():
    """So that the first loss is about log(K), as both authors' codes have it."""
    model = OCRNetForSemanticSegmentation(OCRNetConfig(**{**TINY_HEAD, "num_labels": 300}, **HRNET))
    for head in (model.decode_head, model.auxiliary_heads[0]):
        weight = head.classifier.weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.1) and not head.classifier.bias.any()
        assert weight.mean().item() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_built(size):
    with torch.device("meta"):
        OCRNetForSemanticSegmentation(OCRNetConfig.from_size(size))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(backbone_type="vgg"), "backbone_type is 'vgg'; choose"),
        (dict(backbone_type="auto"), "backbone_config is missing"),
        (dict(backbone_type="resnet", backbone_config=ConvNextConfig()), "backbone_config is given"),
        (dict(num_channels=4, backbone_config=ConvNextConfig()), "num_channels is 4, in backbone_config 3"),
        (dict(hidden_sizes=[18, 36, 72]), r"hidden_sizes is \[18, 36, 72\]; give four numbers"),
        (dict(stem_hidden_sizes=[64]), "HRNet's stem has two convolutions"),
        (dict(backbone_type="resnet", output_stride=32), "output_stride is 32; choose 8 or 16"),
        (dict(backbone_type="resnet", hidden_sizes=[18, 36, 72, 144]), "hidden_sizes has 18; .* multiple of 4"),
        (dict(auxiliary_kernel_size=5), "auxiliary_kernel_size is 5; choose 1 or 3"),
        (dict(decoder_hidden_act="gelu"), "decoder_hidden_act is 'gelu'; choose"),
    ],
)
def test_wrong_combinations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        OCRNetConfig(**wrong)
