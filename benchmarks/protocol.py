"""From picture to label map, beside what users of other libraries do today; SegFormer-B0, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/protocol.py                        # all; mmsegmentation where it is installed
    OMP_NUM_THREADS=2 python benchmarks/protocol.py --parts windows --rounds 3   # each part takes two minutes

- whole: transformers' SegformerImageProcessor, model and post_process_semantic_segmentation, at equal input sizes;
- windows: mmsegmentation's slide_inference (see mmsegmentation.py) with the same windows, one at a time in both.

The same weights in both (random: logits of trained weights leave us less to do). Prints medians, the ratio of medians,
peak additional memory (each in a process of its own) and the share of pixels of equal class.
"""

import argparse
import tempfile

import numpy as np
import torch
from measure import compare, machine, multiply_adds, print_header
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor
from transformers.utils import logging

from hf_segtx import SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.inference import predict
from hf_segtx.models.configuration_segformer import SIZES
from hf_segtx.weights import load_original


def picture(height: int, width: int) -> np.ndarray:
    """A smooth picture with noise (3, height, width), uint8."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([127 + 100 * np.sin((channel + 1) * x / 37 + y / 53) for channel in range(3)])
    return (smooth + np.random.default_rng(0).integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def transformers_model(num_labels: int):
    """transformers' SegFormer-B0 with random weights, and ours loaded from the folder that it saved."""
    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**SIZES["b0"], num_labels=num_labels))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = SegFormerForSemanticSegmentation.from_pretrained(folder)
    return theirs.eval(), ours.eval()


def mmsegmentation_model(num_labels: int, window: int, stride: int):
    """mmsegmentation's, as configs/_base_/models/segformer_mit-b0.py, and ours with its weights."""
    import mmsegmentation
    from mmengine.config import ConfigDict

    head = dict(type="SegformerHead", in_channels=[32, 64, 160, 256], in_index=[0, 1, 2, 3], channels=256)
    head |= dict(num_classes=num_labels, norm_cfg=dict(type="BN"), align_corners=False)
    test = ConfigDict(mode="slide", crop_size=(window, window), stride=(stride, stride))
    backbone = dict(type="MixVisionTransformer", embed_dims=32, num_layers=[2, 2, 2, 2], num_heads=[1, 2, 5, 8])
    theirs = mmsegmentation.build(dict(type="EncoderDecoder", backbone=backbone, decode_head=head, test_cfg=test))
    return theirs.eval(), load_original(theirs.state_dict()).eval()


def compare_maps(title: str, peer, ours, products: float, rounds: int) -> None:
    """Times and measures both functions, and says how much of their label maps agrees."""
    compare(title, peer, ours, products, rounds)
    agreement = (peer() == ours()).float().mean()
    print(f"{'':32} {agreement:.2%} of the pixels have the same class in both")


def whole(arguments: argparse.Namespace) -> None:
    theirs, ours = transformers_model(arguments.num_labels)
    print_header("transformers")
    for image_size, input_size in [((360, 480), (512, 512)), ((1024, 2048), (512, 512)), ((1024, 2048), (1024, 2048))]:
        image = picture(*image_size)
        size = dict(zip(("height", "width"), input_size, strict=True))
        their_processor, processor = SegformerImageProcessor(size=size), SegFormerImageProcessor(size=size)

        @torch.inference_mode()
        def peer(image=image, their_processor=their_processor, image_size=image_size):
            outputs = theirs(**their_processor(images=[image], return_tensors="pt"))
            return their_processor.post_process_semantic_segmentation(outputs, target_sizes=[image_size])[0]

        @torch.inference_mode()
        def own(image=image, processor=processor, image_size=image_size):
            outputs = ours(**processor(images=[image], return_tensors="pt"))
            return processor.post_process_semantic_segmentation(outputs, target_sizes=[image_size])[0]

        title = f"{image_size[1]}x{image_size[0]} shown at {input_size[1]}x{input_size[0]}"
        compare_maps(title, peer, own, multiply_adds(ours, torch.zeros(1, 3, *input_size)), arguments.rounds)


def windows(arguments: argparse.Namespace) -> None:
    print_header("mmsegmentation")
    for image_size, window, stride in [((360, 480), 256, 192), ((1024, 2048), 512, 384)]:
        theirs, ours = mmsegmentation_model(arguments.num_labels, window, stride)
        image = picture(*image_size)
        processor = SegFormerImageProcessor(do_resize=False, window_size=window, window_stride=stride)
        mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (processor.image_mean, processor.image_std))

        @torch.inference_mode()
        def peer(image=image, theirs=theirs, mean=mean, std=std, image_size=image_size):
            from mmseg.structures import SegDataSample  # can be imported once the model is built

            pixel_values = ((torch.from_numpy(image) - mean) / std)[None]
            sample = SegDataSample(metainfo=dict(ori_shape=image_size, img_shape=image_size, pad_shape=image_size))
            return theirs.predict(pixel_values, [sample])[0].pred_sem_seg.data[0]

        @torch.inference_mode()
        def own(image=image, ours=ours, processor=processor):
            return predict(ours, processor, [image], window_batch_size=1)[0]

        count = len(processor(image, return_tensors="pt")["windows"])
        products = count * multiply_adds(ours, torch.zeros(1, 3, window, window))
        title = f"{image_size[1]}x{image_size[0]}, {count} of {window}x{window}"
        compare_maps(title, peer, own, products, arguments.rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["whole", "windows"], choices=["whole", "windows"])
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(machine())
    print(f"float32, SegFormer-B0, {arguments.num_labels} classes")
    for part in arguments.parts:
        {"whole": whole, "windows": windows}[part](arguments)


if __name__ == "__main__":
    main()
