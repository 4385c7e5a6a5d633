"""The command `segtx prepare` as a script: `python examples/prepare_dataset.py --help` says what it does."""

from hf_segtx.cli import run_script


if __name__ == "__main__":
    run_script("prepare")
