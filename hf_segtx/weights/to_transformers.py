"""Our SegFormer as transformers' own `segformer`: a renaming, for code that knows no other class.

transformers.js and the many tools that look for `model_type: segformer` load such a folder. Not every model of ours can
be one: transformers has no projection norms, no learned positions, no heads on fewer stages, and LayerNorms of 1e-5.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from ..models.segmentation_base import copy_permissions
from .files import renamed


NAMES = {  # of our state dict -> those in transformers' files
    r"^backbone\.stages\.(\d)\.patch_embed\.proj\.": r"segformer.encoder.patch_embeddings.\1.proj.",
    r"^backbone\.stages\.(\d)\.patch_embed\.norm\.": r"segformer.encoder.patch_embeddings.\1.layer_norm.",
    r"^backbone\.stages\.(\d)\.norm\.": r"segformer.encoder.layer_norm.\1.",
    r"^backbone\.stages\.(\d)\.blocks\.(\d+)\.": r"segformer.encoder.block.\1.\2.",
    r"\.norm([12])\.": r".layer_norm_\1.",
    r"\.attn\.(query|key|value)\.": r".attention.self.\1.",
    r"\.attn\.reduction\.": ".attention.self.sr.",
    r"\.attn\.reduction_norm\.": ".attention.self.layer_norm.",
    r"\.attn\.proj\.": ".attention.output.dense.",
    r"\.mlp\.fc([12])\.": r".mlp.dense\1.",
    r"\.mlp\.dwconv\.": ".mlp.dwconv.dwconv.",
    r"^decode_head\.projections\.(\d)\.": r"decode_head.linear_c.\1.proj.",
    r"^decode_head\.fuse\.": "decode_head.linear_fuse.",
    r"^decode_head\.norm\.": "decode_head.batch_norm.",
}
SHARED_FIELDS = (
    "num_channels depths sr_ratios hidden_sizes patch_sizes strides num_attention_heads mlp_ratios hidden_act "
    "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout_prob initializer_range drop_path_rate "
    "decoder_hidden_size semantic_loss_ignore_index"
).split()
LAYER_NORM_EPS = 1e-5  # of every LayerNorm there, whatever a configuration says


def transformers_config(model: PreTrainedModel) -> SegformerConfig:
    """The configuration of the same network in transformers.

    Raises:
        ValueError: naming the field that has no counterpart there.
    """
    config = model.config
    if config.model_type != "segtx_segformer":
        raise ValueError(f"transformers has no {type(model).__name__}; only SegFormer can be written for it")
    if config.backbone_config is not None:
        raise ValueError(f"backbone_config is one of {config.backbone_config.model_type}; SegFormer there has MiT only")
    stages = list(range(len(config.depths)))
    wanted = {
        "position_encoding": "mix_ffn",
        "decoder_projection_norm": False,
        "decoder_fusion": True,
        "decoder_stages": stages,
        "layer_norm_eps": LAYER_NORM_EPS,
        "embedding_layer_norm_eps": LAYER_NORM_EPS,
        "is_binary": False,
    }
    for field, there in wanted.items():
        value = getattr(config, field)
        if (list(value) if isinstance(value, tuple) else value) != there:
            cure = ""
            if field.endswith("eps"):
                cure = f"; load the model with {field}={there:g}, which changes logits by a few 1e-5 of their deviation"
            raise ValueError(f"{field} is {value}, which transformers' SegFormer, with {there}, cannot express{cure}")
    return SegformerConfig(
        **{name: getattr(config, name) for name in SHARED_FIELDS},
        num_encoder_blocks=len(stages),
        id2label=config.id2label,
        label2id=config.label2id,
        architectures=["SegformerForSemanticSegmentation"],
    )


def transformers_processor(processor) -> tuple[SegformerImageProcessor, list[str]]:
    """The image processor that comes nearest in transformers, and what of ours it cannot do, a sentence each."""
    size, lost = {key: value for key, value in dict(processor.size).items() if value}, []
    if processor.do_resize and "height" not in size:
        lost.append(
            f"images keep their ratio here ({size}); there they are squashed to {size['shortest_edge']} squared"
        )
        size = {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    if processor.window_size is not None:
        lost.append("windows do not exist there; whole images are shown to the model")
    elif not processor.do_resize and processor.do_pad and processor.size_divisor:
        lost.append(f"images are padded to multiples of {processor.size_divisor} here; there they are not")
    if processor.do_flip_channel_order:
        lost.append("images are BGR here; there they are RGB")
    names = "do_rescale rescale_factor do_normalize image_mean image_std do_reduce_labels resample".split()
    settings = {name: getattr(processor, name) for name in names}
    if processor.do_resize:
        settings["size"] = size
    return SegformerImageProcessor(do_resize=processor.do_resize, **settings), lost


def save_for_transformers(model: PreTrainedModel, processor, folder: str | Path) -> list[str]:
    """Writes config.json, model.safetensors and preprocessor_config.json; returns what of the processor was lost.

    The folder is read back by transformers and compared: nothing missing, nothing left over, the same logits.

    Raises:
        ValueError: if the model cannot be expressed.
    """
    folder = Path(folder)
    config = transformers_config(model)
    folder.mkdir(parents=True, exist_ok=True)
    state = renamed({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}, NAMES)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    copy_permissions(folder / "config.json", [folder / "model.safetensors"])
    theirs, report = SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    left = {key: sorted(report[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}
    pixel_values = torch.linspace(-2, 2, 64 * 96 * config.num_channels).sin().view(1, config.num_channels, 64, 96)
    with torch.no_grad():
        expected = model.cpu().float().eval()(pixel_values).logits
        found = theirs.float().eval()(pixel_values).logits
    difference = float((found - expected).abs().max() / expected.std())
    if left or not difference < 1e-3:
        raise ValueError(
            f"{folder}: transformers {left or 'reads all weights'}, and its logits differ by {difference:.2g} standard "
            "deviations; this model cannot be written for it"
        )
    converted, lost = transformers_processor(processor)
    converted.save_pretrained(folder)
    return lost
