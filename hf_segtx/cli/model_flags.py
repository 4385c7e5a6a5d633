"""The flags of all commands that load a model, and the model on its device."""

from dataclasses import dataclass

from ..settings import setting


@dataclass
class ModelSettings:
    """Model and device."""

    model_revision: str = setting("main", "Branch, tag or commit of a model on the Hub.")
    device: str | None = setting(None, "Such as cuda:1 or cpu; else an accelerator, if there is one.")
    cache_dir: str | None = setting(None, "Folder where downloads are kept.")
    token: str | None = setting(None, "Hub token for downloads; else that of `hf auth login`.")
    trust_remote_code: bool = setting(False, "Run the code that comes with a model on the Hub.")
    provider: str | None = setting(
        None, "Of an exported model: ONNX Runtime's provider, such as CUDAExecutionProvider, or OpenVINO's device."
    )
    threads: int | None = setting(None, "Of an exported model on the CPU; else the runtime's own choice.", "[1, inf)")


def load(name: str, settings: ModelSettings, *, optimize: bool = False):
    """The model, on its device and in evaluation mode, and its image processor.

    Args:
        optimize: take the faster copy for inference of a model of this package.

    Raises:
        ValueError, OSError: if there is no such model or device.
    """
    import torch

    from ..inference import load_model
    from ..models.segmentation_base import SegmentationPreTrainedModel

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        device = torch.device(settings.device or found)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, for words and numbers that it does not know
        raise ValueError(f"device {settings.device} cannot be used ({str(error).splitlines()[0]})") from error
    options = {
        name: getattr(settings, name) for name in ("cache_dir", "token", "trust_remote_code", "provider", "threads")
    }
    model, processor = load_model(name, revision=settings.model_revision, **options)
    model = model.to(device).eval()
    if optimize and isinstance(model, SegmentationPreTrainedModel):
        model = model.optimize_for_inference()
    return model, processor
