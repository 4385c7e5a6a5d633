"""The command `segtx train` as a script: `accelerate launch examples/train.py --help` says what it does."""

from hf_segtx.cli import run_script


if __name__ == "__main__":
    run_script("train")
