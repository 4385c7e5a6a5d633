"""The command `segtx demo` as a script: `python examples/demo.py --help` says what it does."""

from hf_segtx.cli import run_script


if __name__ == "__main__":
    run_script("demo")
