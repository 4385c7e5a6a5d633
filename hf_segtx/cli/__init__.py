"""The command `segtx`: a module per subcommand, which parses, calls the library and reports.

Nothing but Python itself is imported before the arguments are parsed, so that help and misspelt flags are answered at
once.
"""

import importlib
import logging
import os
import sys
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


COMMANDS = {  # the name is that of the module, too
    "train": "train a model on your data, a data set of the Hub, or embedded scenes",
    "evaluate": "score a model on a data set, with its protocol",
    "predict": "pictures, folders, videos, cameras -> label maps and overlays",
    "check": "histogram, overlays and verdict of a data set",
    "prepare": "any data set -> sharded Parquet for the Hub and for --streaming",
    "plan": "measure a training step; propose batch, crop, precision and hours",
    "convert": "checkpoint of another code base -> folder for from_pretrained",
    "export": "model -> ONNX, OpenVINO or torch.export, verified beside the checkpoint",
    "demo": "model -> app in the browser, Space of the Hub, or page without a server",
    "explain": "attention, class embeddings and object regions as pictures",
    "rank": "which pictures to label next, as a list and a contact sheet",
    "recipes": "list the settings of published runs, or print one",
    "ablate": "train the rows of a table of the papers, and write it with ours beside it",
}


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: segtx COMMAND [--help] ...", "", *lines, "", "segtx COMMAND --help lists its flags"])


def main(command_line: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 2 for what the user can cure, said in a line."""
    words = sys.argv[1:] if command_line is None else command_line
    name = words[0] if words else ""
    if name in ("", "-h", "--help"):
        print(usage(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        cure = f"did you mean `segtx {close[0]}`?" if close else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: {name!r} is not a command of segtx; {cure}", file=sys.stderr)
        return 2
    try:
        with messages_shown():
            status = importlib.import_module(f".{name}", __name__).run(words[1:])
        leave_other_processes()
        return status
    except BrokenPipeError:  # of `segtx recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 141  # as the shell says it: 128 + SIGPIPE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from ..training.machine import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"error: out of memory ({said}); take smaller batches, crops or windows", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"interrupted{interruption.args[0] if interruption.args else ''}", file=sys.stderr)
        return 130


def leave_other_processes() -> None:
    """Ends the group of the processes of a launcher, in which a command may train and evaluate several times."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def messages_shown():
    """What the library says, such as which layout data have, goes to stderr; of several processes one speaks."""
    logger, handler = logging.getLogger("hf_segtx"), logging.StreamHandler()
    level = logger.level
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def run_script(name: str) -> None:
    """What a script of `examples/` does: the command `name`, with the script's own command line.

    The folder of the script is not searched for modules: `evaluate.py` in it would hide the library of that name.
    """
    folder = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != folder]
    sys.exit(main([name, *sys.argv[1:]]))
