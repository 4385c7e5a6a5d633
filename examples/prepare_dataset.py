"""The command `segtx prepare` as a script: `python examples/prepare_dataset.py --help` says what it does."""

from hf_segtx_command import run_script


if __name__ == "__main__":
    run_script("prepare")
