"""Data: from what people have on their disks and on the Hub to checked samples and batches.

files, rows  ->  layouts, tables     pairs of undecoded images and masks
             ->  loading             `load_data`: training data, validation data, labels
             ->  dataset             samples, decoded by decoding, partial_decoding and masks when asked for
             ->  augmentation, loaders    batches

settings                what `load_data` can be told
layouts                 which form files have: public_layouts (with pascal_layouts, public_files), voc_folders, folders
                        (with pairing), pair_files, and annotations of coco, labelme and yolo; files is what these share
tables, shards          rows of `datasets`; Parquet files and archives that are read where they are
annotations, outlines   polygons and run lengths -> masks; label maps -> polygons
labels, label_tables    the label contract, and those of public data sets; class_files: what lies beside data
checks, diagnosis       what would spoil a run, and what is wrong with a data set, in words
held_out                the part of the training data that validates
parquet                 any data set -> Parquet for the Hub
scenes                  the embedded data set
"""

import importlib


_NAMES = {
    "DataSettings": "settings",
    "Labels": "labels",
    "SegmentationDataset": "dataset",
    "load_data": "loading",
    "read_image": "decoding",
    "read_mask": "masks",
}
__all__ = list(_NAMES)


def __getattr__(name: str):
    if name in _NAMES:  # imported when first used: the commands need `settings` before they wait for torch
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
