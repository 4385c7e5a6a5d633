"""Registers the architectures with transformers' Auto classes, as late as possible: their code takes seconds to import.

Nothing is imported here. The configurations are registered after `AutoConfig` was imported, the image processors after
`AutoImageProcessor` was. The models, which are found through a configuration, follow with the first of those that is
made. The pipeline is exchanged after `transformers.pipelines` was imported. What was imported before is registered at
once. So the Auto classes never lack what they are asked for, and whoever asks for nothing waits for nothing.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path


MODELS = Path(__file__).parent / "models"


class AfterImport(MetaPathFinder):
    """Calls functions after modules were imported.

    If that happens in the middle of an import of a file of `models/`, they wait for its end: they import all of these,
    which would fail for one that is half there.

    Args:
        functions: by the full names of modules; each is called once.
    """

    def __init__(self, functions: dict[str, Callable[[], None]]):
        self.functions = functions
        self.waiting: dict[str, Callable[[], None]] = {}
        self.sought: set[str] = set()
        self.depth = 0  # of imports of `models/` that are under way

    def find_spec(self, name: str, path=None, target=None):
        """What the other finders find; run with the function after it."""
        is_own = name.startswith(f"{__package__}.models.")
        if name in self.sought or not (is_own or name in self.functions):
            return None
        self.sought.add(name)
        try:
            spec = find_spec(name)
        finally:
            self.sought.remove(name)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                self.depth += is_own
                try:
                    execute(module)
                finally:
                    self.depth -= is_own
                if name in self.functions:
                    self.waiting[name] = self.functions.pop(name)
                self.call()

            spec.loader.exec_module = exec_module
        return spec

    def call(self) -> None:
        """Calls what waits, unless a file of `models/` is still being imported."""
        while self.waiting and not self.depth:
            name, function = self.waiting.popitem()
            try:
                function()
            except BaseException:  # such as Ctrl-C; whoever tries again gets the function, too
                self.functions[name] = function
                raise


def register_configurations() -> None:
    """Makes `AutoConfig` know the configurations."""
    from transformers import AutoConfig

    for file in MODELS.glob("configuration_*.py"):
        for configuration in vars(importlib.import_module(f"{__package__}.models.{file.stem}")).values():
            if getattr(configuration, "model_type", "").startswith("segtx_"):
                AutoConfig.register(configuration.model_type, configuration, exist_ok=True)


def register_with_first_configuration() -> None:
    """Lets the first configuration that is made register the models."""
    from .models.configuration_base import SegmentationConfig

    def __new__(cls, *_, **__):
        register_all()
        return super(SegmentationConfig, cls).__new__(cls)

    SegmentationConfig.__new__ = __new__


def register_all() -> None:
    """Registers configurations, models and image processors."""
    importlib.import_module(f"{__package__}.architectures")


def register_pipeline() -> None:
    """Lets `pipeline("image-segmentation")` read images as this package does."""
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline import SegmentationPipeline

    PIPELINE_REGISTRY.supported_tasks["image-segmentation"]["impl"] = SegmentationPipeline


def register_when_needed() -> None:
    """Registers what transformers needs by now, and arranges the rest."""
    functions = {
        f"{__package__}.models.configuration_base": register_with_first_configuration,
        f"{__package__}.models.image_processing_segtx": register_all,  # which lets them be saved with their code
        "transformers.models.auto.configuration_auto": register_configurations,
        "transformers.models.auto.image_processing_auto": register_all,
        "transformers.pipelines": register_pipeline,
    }
    there = [name for name in functions if name in sys.modules]
    now = [functions.pop(name) for name in there]
    sys.meta_path.insert(0, AfterImport(functions))
    for function in now:
        function()
