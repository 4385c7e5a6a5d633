"""Label maps of any number of pictures on a Ray cluster, as Parquet; to read, copy and change.

    pip install "hf_segtx[ray]"
    python examples/own_code/predict_ray.py outputs/mine archive/ labels --workers 4 --gpus 1

A row for each picture: name, height, width, label (PNG of class ids), confidence, entropy, or the error of a picture
that cannot be read. Without a cluster it uses the cores of this machine. Tables are read alike: `ray.data.read_parquet`
or `read_webdataset` instead of `read_binary_files`, and `image_column` is the column that holds the images.
"""

import argparse
import sys

import ray
from ray.data import SaveMode

from hf_segtx.prediction import BatchSegmenter


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder that all machines see, or Hub name")
    parser.add_argument("images", help="folder or address of picture files")
    parser.add_argument("output_dir")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a model of its own")
    parser.add_argument("--gpus", type=float, default=0, help="of each; 0.5 lets two share one")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures that are handed over at a time")
    arguments = parser.parse_args()
    # Workers that took whole processors would leave none to read for them, and wait for ever.
    files = ray.data.read_binary_files(arguments.images, include_paths=True, num_cpus=0.1)
    labels = files.map_batches(
        BatchSegmenter,
        fn_constructor_args=(arguments.model,),
        batch_size=arguments.batch_size,
        compute=ray.data.ActorPoolStrategy(size=arguments.workers),
        num_cpus=0.9,
        num_gpus=arguments.gpus,
    )
    labels.write_parquet(arguments.output_dir, mode=SaveMode.ERROR, ray_remote_args={"num_cpus": 0.1})
    written = ray.data.read_parquet(arguments.output_dir, columns=["error"])
    errors = written.filter(lambda row: row["error"] is not None).take_all()
    print("\n".join(f"error: {row['error']}" for row in errors), file=sys.stderr)
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
