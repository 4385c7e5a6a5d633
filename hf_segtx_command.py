"""The command `segtx`: one thin module of `hf_segtx.cli` per subcommand.

It stands beside the package and not in it, because importing the package registers the architectures with transformers,
which takes seconds: help and misspelt flags are answered before that.
"""

import importlib
import sys
from pathlib import Path


COMMANDS = {  # name -> (module of hf_segtx.cli, what it does)
    "train": ("train", "train a model on your data, a data set of the Hub, or embedded scenes"),
    "evaluate": ("evaluate", "score a model on a data set, with its protocol"),
    "predict": ("predict", "pictures, folders, videos, cameras -> label maps and overlays"),
    "check": ("check", "histogram, overlays and verdict of a data set"),
    "prepare": ("prepare", "any data set -> sharded Parquet for the Hub and for --streaming"),
    "plan": ("plan", "measure a training step; propose batch, crop, precision and hours"),
    "convert": ("convert", "checkpoint of another code base -> folder for from_pretrained"),
    "explain": ("explain", "attention, class embeddings and object regions as pictures"),
}


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: segtx COMMAND [--help] ...", "", *lines, "", "segtx COMMAND --help lists its flags"])


def main(command_line: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 2 for what the user can cure, said in a line."""
    words = sys.argv[1:] if command_line is None else command_line
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"error: {words[0]!r} is no command of segtx\n\n{usage()}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"hf_segtx.cli.{COMMANDS[words[0]][0]}")
    try:
        return command.run(words[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was written stays", file=sys.stderr)
        return 130


def run_script(name: str) -> None:
    """What a script of `examples/` does: the command `name`, with the script's own command line.

    The folder of the script is not searched for modules: `evaluate.py` in it would hide the library of that name.
    """
    folder = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != folder]
    sys.exit(main([name, *sys.argv[1:]]))
