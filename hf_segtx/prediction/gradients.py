"""What the logits of a picture depend on, by their gradients: which places speak for a class, and how far a model sees.

    found = follow_gradients(model, pixel_values)
    found.class_activation(found.largest_classes(1)[0])     # (h, w)
    fields, titles = found.receptive_fields()               # (H, W) each

Shapes: K classes; (H, W) the picture, (h, w) the last map of the backbone.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Gradients:
    """A picture, the maps of the backbone and the logits that the model made of it.

    Args:
        pixel_values: (1, C, H, W).
        feature_maps: (1, C_i, h_i, w_i) of the backbone, as its head reads them.
        logits: (1, K, h', w').
        id2label: names of the values in label maps.
    """

    pixel_values: torch.Tensor
    feature_maps: tuple[torch.Tensor, ...]
    logits: torch.Tensor
    id2label: dict[int, str]

    def label_map(self) -> torch.Tensor:
        """(h', w') the class of each pixel, counted as the logits are; of one logit -1 where it is not positive."""
        logits = self.logits.detach()[0]
        return (logits[0] > 0).long() - 1 if len(logits) == 1 else logits.argmax(0)

    def largest_classes(self, count: int) -> list[int]:
        """Ids of the classes with most pixels, at most so many; with one logit, of its class."""
        if self.logits.shape[1] == 1:
            return [0]
        found, counts = self.label_map().unique(return_counts=True)
        return found[counts.argsort(descending=True)[:count]].tolist()

    def name(self, index: int) -> str:
        """Of a class."""
        return self.id2label[index + (self.logits.shape[1] == 1)]  # 0 is the background there

    def class_activation(self, index: int) -> np.ndarray:
        """Which places of the backbone's last map speak for the pixels of a class.

        Grad-CAM (Selvaraju et al., ICCV 2017, Eqs. 1 and 2) of the sum of the class's logits over its pixels, as in
        Seg-Grad-CAM (Vinogradova et al., AAAI 2020, Eq. 2).

        Returns:
            (h, w), from 0 on.
        """
        logits, last = self.logits[0], self.feature_maps[-1]
        of_class = logits[index][self.label_map() == index].sum()
        (gradient,) = torch.autograd.grad(of_class, last, retain_graph=True, materialize_grads=True)
        weights = gradient.mean((2, 3), keepdim=True)
        return (weights * last).sum(1)[0].relu().detach().float().cpu().numpy()

    def receptive_fields(self) -> tuple[list[np.ndarray], list[str]]:
        """How much each pixel changes the middle of each map, and of the logits: the effective receptive field.

        The absolute gradient of the sum over the channels there (Luo et al., NeurIPS 2016), summed over the colours;
        SegFormer, Figure 3.

        Returns:
            (H, W) arrays, and a title for each.
        """
        fields, titles = [], []
        for number, values in enumerate((*self.feature_maps, self.logits)):
            height, width = values.shape[2:]
            middle = values[0, :, height // 2, width // 2].sum()
            (gradient,) = torch.autograd.grad(middle, self.pixel_values, retain_graph=True, materialize_grads=True)
            fields.append(gradient[0].abs().sum(0).float().cpu().numpy())
            what = "logits" if values is self.logits else f"map {number + 1}"
            titles.append(f"{what}, 1/{round(self.pixel_values.shape[3] / width)}")
        return fields, titles


def follow_gradients(model, pixel_values: torch.Tensor) -> Gradients:
    """One picture (1, C, H, W) through a model in evaluation mode, so that gradients can be asked for."""
    maps: list[tuple[torch.Tensor, ...]] = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: maps.append(output.feature_maps))
    try:
        with torch.enable_grad():
            pixel_values = pixel_values.clone().requires_grad_()
            logits = model(pixel_values).logits
    finally:
        hook.remove()
    return Gradients(pixel_values, tuple(maps[0]), logits, model.config.id2label)
