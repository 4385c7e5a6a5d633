"""The model card with measured results, and the upload of a trained model to the Hub."""

from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled


# Of an output folder of examples/train.py, what is not the final model.
NOT_UPLOADED = ["step_*", "step_*/**", "best", "best/**", "last", "last/**", ".*"]


def check_token(token: str | None = None) -> str:
    """The user that a Hub token belongs to; with None the token of `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: if there is no token, the Hub refuses it, or the Hub cannot be reached.
    """
    try:
        return HfApi(token=token).whoami()["name"]
    except LocalTokenNotFoundError as error:
        raise ValueError("no Hub token; run `hf auth login`, set HF_TOKEN or give --hub_token") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the Hub refuses the token ({error}); make one at hf.co/settings/tokens") from error
    except (OfflineModeIsEnabled, OSError) as error:
        raise ValueError(f"the Hub cannot be reached ({error}); leave --push_to_hub away") from error


def write_card(folder: str | Path, template: str | Path, results: dict, *, name: str, data: str, **text) -> Path:
    """Writes README.md from a template of `model_cards/`, with the scores in its metadata too.

    Args:
        folder: of the saved model.
        template: Markdown with Jinja fields; it gets `results` (see `hf_segtx.inference.as_json`), `name`, `data` and
            `text`, and `card_data` as its metadata.
        name: of the model, e.g. the repository's.
        data: what it was trained and evaluated on, a name.
    """
    score = EvalResult(
        task_type="image-segmentation",
        dataset_type=data,
        dataset_name=data,
        metric_type="mean_iou",
        metric_name="mean IoU",
        metric_value=round(results["mean_iou"], 4),
    )
    card_data = ModelCardData(
        model_name=name,
        pipeline_tag="image-segmentation",
        library_name="transformers",
        tags=["hf_segtx", "semantic-segmentation"],
        metrics=["mean_iou"],
        eval_results=[score],
    )
    card = ModelCard.from_template(card_data, str(template), results=results, name=name, data=data, **text)
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def push(folder: str | Path, repository: str, token: str | None = None) -> str:
    """Uploads the final model of an output folder (not its checkpoints); returns the address of the repository."""
    api = HfApi(token=token)
    address = api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=address.repo_id, folder_path=folder, ignore_patterns=NOT_UPLOADED)
    return str(address)
