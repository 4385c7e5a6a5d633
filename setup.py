"""Which packages there are, and which files that are no code go into the wheel; all else is in pyproject.toml."""

from setuptools import find_packages, setup


# Where the files lie in the installed package -> where they stand in the repository; as in hf_segtx/resources.py.
FILES = {
    "hf_segtx.recipes": "examples/recipes",
    "hf_segtx.ablations": "examples/ablations",
    "hf_segtx.accelerate": "examples/accelerate",
    "hf_segtx.model_cards": "model_cards",
}

setup(
    packages=[*find_packages(include=["hf_segtx", "hf_segtx.*"]), *FILES],
    package_dir=FILES,
    package_data={
        "hf_segtx": ["py.typed"],
        "hf_segtx.demo": ["page/*"],
        "hf_segtx.recipes": ["*.args"],
        "hf_segtx.ablations": ["*.yaml"],
        "hf_segtx.accelerate": ["*.yaml"],
        "hf_segtx.model_cards": ["*.md"],
    },
)
