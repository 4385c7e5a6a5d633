"""The model card with measured results, and the upload of a trained model to the Hub.

python -m hf_segtx.hub outputs/run USER/NAME      # uploads an output folder of examples/train.py, or repeats it
"""

import json
import re
import sys
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from jinja2 import Environment, FileSystemLoader

from .architectures import ARCHITECTURES
from .markdown import plain
from .visualization.curves import training_curves


RECORDS = ("all_results.json", "train.args")  # of a training, which repeat its arguments
DINOV3_LICENSE = {
    "license": "other",
    "license_name": "dinov3-license",
    "license_link": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
}
# Licences of the released weights of backbones, by their names: of the kind in transformers, in timm, or on the Hub.
# The first that fits counts. Those that are not here say it in their cards on the Hub.
WEIGHT_LICENSES = {
    r"dinov3": DINOV3_LICENSE,
    r"sam2_hiera": {"license": "apache-2.0"},
    r"convnext_?v2|hiera|vit_?mae|[._-]mae\b|i_?jepa|metaclip": {"license": "cc-by-nc-4.0"},
    r"dinov2|siglip|beit": {"license": "apache-2.0"},
}
# What goes wrong with a network or the Hub; HTTPError is that of the HTTP library that huggingface_hub uses.
HUB_ERRORS = (OSError, HTTPError, OfflineModeIsEnabled)


def check_token(token: str | None = None) -> str:
    """The user that a Hub token belongs to; with None the token of `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: if there is no token, the Hub refuses it, it cannot write, or the Hub cannot be reached.
    """
    try:
        user = HfApi(token=token).whoami()
    except LocalTokenNotFoundError as error:
        raise ValueError("no Hub token; run `hf auth login`, set HF_TOKEN or give hub_token") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the Hub refuses the token ({error}); make one at hf.co/settings/tokens") from error
    except HUB_ERRORS as error:
        raise ValueError(f"the Hub cannot be reached ({error}); omit push_to_hub") from error
    if user["auth"].get("accessToken", {}).get("role") == "read":
        raise ValueError("the Hub token may only read; make one that may write at hf.co/settings/tokens")
    return user["name"]


def write_card(
    folder: str | Path,
    template: str | Path,
    results: dict,
    *,
    name: str,
    data: str,
    dataset_name: str | None = None,
    start: str | None = None,
    license: str | None = None,
    training: str = "",
) -> Path:
    """Writes README.md and curves.png, and for data of the Hub the scores in `.eval_results/`; returns the card.

    Args:
        folder: of the saved model. Its predictions.png, if there, becomes part of the card.
        template: of `model_cards/`.
        results: scores of `hf_segtx.inference.as_json`, "protocol" (a sentence) and, for the curves, "evaluations" and
            "losses": lists of {"step", "mean_iou", ...} and {"step", "loss"}.
        name: of the model, the repository's.
        data: what it was trained and evaluated on, in words.
        dataset_name: the Hub's name of that data set; a folder is passed over.
        start: Hub name, folder or file of the weights that the training started from; None for random ones.
        license: identifier of the Hub, such as "apache-2.0"; default: that of `start`, if its card says one.
        training: Markdown on how it was trained; all other texts may hold anything and are shown as they are.
    """
    folder = Path(folder)
    base_model, base_license = lineage(start, ARCHITECTURES[Path(template).stem].weights.HUB_OWNER)
    backbone = other_backbone(folder)
    if backbone and start:
        weights_license = license_of_weights(f"{Path(start).name if Path(start).exists() else start} {backbone}")
        base_license = base_license or weights_license  # first what the card of the Hub says, if it can be had
        if weights_license == DINOV3_LICENSE:  # which stays with whatever is made of the weights
            base_license, license = weights_license, None
    if dataset_name is not None and not is_hub_name(dataset_name):
        dataset_name = None
    data, start, training = (text and without_folders(str(text)) for text in (data, start, training))
    name, data = (" ".join(text.split()) for text in (name, data))  # a line each
    score = round(results["mean_iou"], 4)
    card_data = ModelCardData(
        model_name=name,
        pipeline_tag="image-segmentation",
        library_name="transformers",
        tags=["hf_segtx", "semantic-segmentation", Path(template).stem],
        base_model=base_model,
        datasets=[dataset_name] if dataset_name else None,
        metrics=["mean_iou"],
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type=dataset_name or "local",
                dataset_name=data,
                metric_type="mean_iou",
                metric_name="mean IoU",
                metric_value=score,
                metric_args={"protocol": results["protocol"]},
            )
        ],
        **({"license": license} if license else base_license),
    )
    entries_file = folder / ".eval_results" / "mean_iou.yaml"
    entries_file.unlink(missing_ok=True)  # of an earlier run on other data
    if dataset_name:  # the format knows data sets of the Hub only
        entry = EvalResultEntry(dataset_id=dataset_name, task_id="mean_iou", value=score, notes=results["protocol"])
        entries_file.parent.mkdir(exist_ok=True)
        entries_file.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False))
    evaluations, losses = results.get("evaluations", []), results.get("losses", [])
    has_curves = max(len(evaluations), len(losses)) > 1
    if has_curves:
        training_curves(evaluations, losses).save(folder / "curves.png")
    template = Path(template)
    environment = Environment(loader=FileSystemLoader(template.parent), trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain  # for whatever users named
    text = environment.get_template(template.name).render(
        card_data=card_data,
        results=results,
        name=name,
        data=data,
        start=start,
        base_model=base_model,
        backbone=backbone,
        training=training,
        has_curves=has_curves,
        has_predictions=(folder / "predictions.png").is_file(),
    )
    path = folder / "README.md"
    ModelCard(text).save(path)
    return path


def is_hub_name(name: str) -> bool:
    """Whether this names a repository of the Hub, and no file or folder here."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists()


def without_folders(text: str) -> str:
    """The text with absolute paths cut to their last name: those of this machine are nobody else's business."""
    return re.sub(r"(?<![\w.:/-])(?:~|[A-Za-z]:)?/(?:[^\s'\"`/]+/)*([^\s'\"`/]+)/*(?=[\s'\"`,;:)]|$)", r"\1", text)


def lineage(start: str | None, owner: str) -> tuple[str | None, dict]:
    """Where weights come from: the model of the Hub that training started from, and the licence that its card states.

    Args:
        start: Hub name, bare name of a backbone, or folder, in which case its card tells where it came from; None for
            nowhere.
        owner: of backbones with a bare name.

    Returns:
        name on the Hub or None, and those of {"license", "license_name", "license_link"} that are known.
    """
    if start is None:
        return None, {}
    base_model = None
    if not Path(start).exists() and is_hub_name(start):
        base_model = start if "/" in start else f"{owner}/{start}"
    source = base_model or Path(start) / "README.md"
    try:
        base = ModelCard.load(source, ignore_metadata_errors=True).data
    except (*HUB_ERRORS, ValueError, HFValidationError):  # no card, or no network
        return base_model, {}
    keys = ("license", "license_name", "license_link")
    if base_model is None and isinstance(base.base_model, str) and is_hub_name(base.base_model):
        base_model = base.base_model
    return base_model, {key: base.get(key) for key in keys if base.get(key)}


def other_backbone(folder: str | Path) -> str | None:
    """What a saved model's backbone is called in transformers or timm; None if it is the architecture's own."""
    file = Path(folder) / "config.json"
    config = (json.loads(file.read_text()) if file.is_file() else {}).get("backbone_config") or {}
    return config.get("backbone") or config.get("model_type")


def license_of_weights(name: str) -> dict:
    """The licence of a backbone's released weights, in the words of a card; {} if it is not known.

    Args:
        name: of the weights, or of the kind of backbone.
    """
    return next((known for pattern, known in WEIGHT_LICENSES.items() if re.search(pattern, name, re.IGNORECASE)), {})


def push(folder: str | Path, repository: str, token: str | None = None) -> str:
    """Uploads the final model of an output folder (not its checkpoints) in one commit; returns its address.

    Folders of this machine are named in it by their last names only. May be repeated after an interruption: a commit is
    whole or not there, and weights that arrived are not sent again.

    Raises:
        ValueError: if the upload fails, with the command that repeats it.
    """
    folder = Path(folder)
    files = [file for file in sorted(folder.glob("*")) if file.is_file() and not file.name.startswith(".")]
    files += sorted(folder.glob(".eval_results/*.yaml"))
    if folder / "config.json" not in files:
        raise ValueError(f"{folder} is not the folder of a model: it has no config.json")
    api = HfApi(token=token)
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.create_commit(  # not upload_folder, which may make several commits
            address.repo_id,
            [
                CommitOperationAdd(
                    str(file.relative_to(folder)),
                    without_folders(file.read_text()).encode() if file.name in RECORDS else file,
                )
                for file in files
            ],
            commit_message=f"Model, processor and card from hf_segtx: {folder.resolve().name}",
        )
    except (*HUB_ERRORS, RuntimeError) as error:  # what create_commit makes of a connection that breaks
        raise ValueError(
            f"the upload of {folder} to {repository} failed ({error}). The folder is whole; to repeat the upload:\n"
            f"python -m hf_segtx.hub {folder} {repository}"
        ) from error
    return str(address)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        check_token()
        print(f"uploaded to {push(*sys.argv[1:])}")
    except ValueError as error:
        sys.exit(f"error: {error}")
