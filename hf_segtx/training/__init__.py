"""Training: arguments, the run, its report, and what both stand on.

    from hf_segtx.training import Arguments, train

    results = train(Arguments(train_dir="data/train", validation_dir="data/val", architecture="segformer", size="b0"))

`Arguments` needs nothing but Python; torch and the models are imported with `TrainingRun` and `train`.
"""

from .arguments import Arguments


__all__ = ["Arguments", "TrainingRun", "train"]


def __getattr__(name: str):
    if name in ("TrainingRun", "train"):
        from . import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
