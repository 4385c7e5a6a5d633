"""Files that come with the package and are no code. In a checkout they stand where people look for them."""

from pathlib import Path


FOLDERS = {
    "recipes": "examples/recipes",
    "ablations": "examples/ablations",
    "accelerate": "examples/accelerate",
    "model_cards": "model_cards",
}


def resource_folder(name: str) -> Path:
    """The folder of one of `FOLDERS`: in the installed package, else in the checkout.

    Raises:
        OSError: if the package was installed without it.
    """
    package = Path(__file__).parent
    for folder in (package / name, package.parent / FOLDERS[name]):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{package / name} is missing; install hf_segtx again")
