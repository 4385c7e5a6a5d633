"""The command `segtx check` as a script: `python examples/check_dataset.py --help` says what it does."""

from hf_segtx.cli import run_script


if __name__ == "__main__":
    run_script("check")
