"""The command `segtx plan` as a script: `python examples/plan.py --help` says what it does."""

from hf_segtx.cli import run_script


if __name__ == "__main__":
    run_script("plan")
