"""Weights from elsewhere: whole checkpoints of other code bases, and pre-trained backbones.

`load_original` turns a checkpoint of the authors' code or of mmsegmentation into a model of this package. Each
architecture has a module with a table `SOURCES`, a row per code base: keys by which it is known, keys that are left
out, renamings, and a function that reads the configuration off the shapes. `load_backbone` puts ImageNet weights into
the backbone of a model.
"""

from .backbones import load_backbone
from .original import load_original


__all__ = ["load_backbone", "load_original"]
