"""`python -m hf_segtx COMMAND ...` is `segtx COMMAND ...`; so is `accelerate launch -m hf_segtx COMMAND ...`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
