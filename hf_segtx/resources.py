"""Files that come with the package and are no code. In a checkout they stand where people look for them."""

from pathlib import Path


FOLDERS = {"recipes": "examples/recipes", "accelerate": "examples/accelerate", "model_cards": "model_cards"}


def resource_folder(name: str) -> Path:
    """The folder of recipes, configurations of accelerate or model_cards: in the installed package, else the checkout.

    Raises:
        OSError: if the package was installed without it.
    """
    package = Path(__file__).parent
    for folder in (package / name, package.parent / FOLDERS[name]):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{package / name} is missing; install hf_segtx again")
