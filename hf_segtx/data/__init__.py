"""Data: from what people have on their disks and on the Hub to checked samples and batches.

files, rows  ->  folders, layouts, tables    pairs of undecoded images and masks
             ->  loading                      `load_data`: training data, validation data, labels
             ->  dataset                      samples, decoded by decoding and partial_decoding when asked for
             ->  augmentation, loaders        batches

labels, label_tables    the label contract, and those of public data sets
checks, diagnosis       what would spoil a run, and what is wrong with a data set, in words
scenes                  the embedded data set
"""

from .dataset import SegmentationDataset
from .decoding import read_image, read_mask
from .labels import Labels
from .loading import load_data


__all__ = ["Labels", "SegmentationDataset", "load_data", "read_image", "read_mask"]
