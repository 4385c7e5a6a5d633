"""Weights from elsewhere: whole checkpoints of other code bases, and pre-trained backbones.

`load_original` turns a checkpoint of the authors' code, of mmsegmentation or of transformers into a model of this
package, `conversion` into a folder. Each architecture has a module with a table `SOURCES`, a row per code base: keys by
which it is known, keys that are left out, renamings, and a function that reads the configuration off the shapes.
`load_backbone` puts ImageNet weights into the backbone of a model.
"""

from .backbones import load_backbone
from .original import load_original


__all__ = ["load_backbone", "load_original"]
