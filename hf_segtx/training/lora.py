"""Low-rank adaptation (LoRA, Hu et al., arXiv 2106.09685) of the backbone through `peft`, with the heads trained whole.

    model = peft.get_peft_model(model, lora_config(model, r=8))     # train it as ever, with a learning rate around 1e-3
    model.save_pretrained("adapter")                                # megabytes: low-rank factors, heads and norms
    model = peft.PeftModel.from_pretrained(base_model, "adapter").merge_and_unload()

After merging it is the plain model again, for `save_pretrained` and `push_to_hub`.
"""

import copy

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn


def lora_config(model: nn.Module, **settings) -> LoraConfig:
    """Adapts every linear layer of the backbone, or every convolution where there are none (OCRNet).

    The heads are trained and saved whole, and so are the batch norms of the backbone: their running statistics move in
    training, so an adapter without them would not predict as it did. A neck, which no pre-trained weights have, counts
    among the heads.

    Args:
        model: a `...ForSemanticSegmentation`.
        settings: of `peft.LoraConfig`, such as `r` and `lora_alpha`.
    """
    heads = {name: layer for name, layer in model.named_children() if name != "backbone"}
    if getattr(model.backbone, "neck", None) is not None:
        heads["backbone.neck"] = model.backbone.neck
    layers = {f"backbone.{name}": layer for name, layer in model.backbone.named_modules()}
    layers = {name: layer for name, layer in layers.items() if not name.startswith(tuple(f"{n}." for n in heads))}
    targets = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if not targets:
        targets = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups == 1]
    whole = [name for name, layer in layers.items() if isinstance(layer, nn.BatchNorm2d)]
    for name, head in heads.items():  # peft takes no lists of modules
        whole += [f"{name}.{index}" for index in range(len(head))] if isinstance(head, nn.ModuleList) else [name]
    return LoraConfig(target_modules=targets, modules_to_save=whole, **settings)


def add_adapters(model: nn.Module, rank: int) -> None:
    """Puts adapters with alpha = 2 rank into the model itself, as `segtx train` trains it; freezes the rest."""
    config = lora_config(model, r=rank, lora_alpha=2 * rank)
    whole, config.modules_to_save = tuple(f"{name}." for name in config.modules_to_save), None  # else copied
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".lora_" in name or name.startswith(whole)


def merged(model: nn.Module) -> nn.Module:
    """A copy of a model with the adapters of `add_adapters` as one without: peft adds them to the weights."""
    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, layer.get_base_layer())
    return plain
