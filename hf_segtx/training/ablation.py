"""The tables of the papers as files: which runs each has, what was published of them, and ours beside it.

    ablation = read_ablation("segformer_1b")                  # one that comes with the package, or the path of a file
    cost = count(arguments, ablation.num_labels, (512, 512))
    write_table(folder, ablation, {"C = 256": cost}, "")      # ablation.md and ablation.json, of the runs in there

A file is YAML, with the fields of `Ablation`, and for each row those of `Row`.
"""

import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path

from ..markdown import code_block, plain
from ..resources import resource_folder
from .arguments import Arguments


PARAMETERS, MULTIPLY_ADDS, SCORE = "M parameters", "G multiply-adds", "mIoU"
# Of Student's distribution with 1, 2, ... degrees of freedom; those beyond the last are a little smaller.
QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


@dataclass
class Row:
    """A row of a table.

    Attributes:
        flags: of `segtx train`. None: another model than ours, which the paper compares with.
        published: column -> number.
        image_size: if it is another one than the table's.
        warmup_share: of the steps, whatever their number.
        random_weights: whatever the flags say.
    """

    flags: str | None = None
    published: dict[str, float] = field(default_factory=dict)
    image_size: list[int] | None = None
    warmup_share: float | None = None
    random_weights: bool = False


@dataclass
class Ablation:
    """A table; its name is that of its file.

    Attributes:
        title, source: of the table.
        data: what the paper trained on.
        num_labels: of these data, for the numbers of parameters.
        image_size: height and width, for the numbers of multiply-adds.
        rows: by their names.
        flags: of `segtx train`, for all rows.
        note: what differs from the paper, or is not known of it.
        evaluations: column -> flags of `segtx evaluate`. If there are none, the score is that of the training.
    """

    name: str
    title: str
    source: str
    data: str
    num_labels: int
    image_size: list[int]
    rows: dict[str, Row]
    flags: str = ""
    note: str = ""
    evaluations: dict[str, str] = field(default_factory=dict)

    @property
    def own_rows(self) -> list[str]:
        """Names of the rows that can be trained."""
        return [name for name, row in self.rows.items() if row.flags is not None]

    @property
    def columns(self) -> list[str]:
        """Those of the scores."""
        return list(self.evaluations) or [SCORE]


def ablation_names() -> list[str]:
    """Those that come with the package."""
    return sorted(file.stem for file in resource_folder("ablations").glob("*.yaml"))


def read_ablation(name: str) -> Ablation:
    """The table of this name that comes with the package, or of the file of this path.

    Raises:
        ValueError: if there is none, it has other fields, or rows whose folders would be the same.
    """
    import yaml

    named = resource_folder("ablations") / f"{name}.yaml"
    file = next((file for file in (Path(name), named) if file.is_file()), None)
    if file is None:
        close = get_close_matches(name, ablation_names(), n=1)
        cure = f"did you mean {close[0]}?" if close else f"there are {', '.join(ablation_names())}"
        raise ValueError(f"there is no ablation {name}; {cure}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        rows = {row: Row(**values) for row, values in content.pop("rows").items()}
        ablation = Ablation(name=file.stem, rows=rows, **content)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        known = ", ".join(option.name for option in fields(Ablation)[1:])
        raise ValueError(f"{file} is no ablation, a YAML file with {known} ({error})") from error
    for first, second in combinations(ablation.own_rows, 2):
        if run_folder(file, first, 0) == run_folder(file, second, 0):
            raise ValueError(f"{file}: the rows {first!r} and {second!r} would have one folder; name them otherwise")
    return ablation


def count(arguments: Arguments, num_labels: int, image_size: tuple[int, int]) -> dict[str, float]:
    """Millions of parameters, and 1e9 multiply-adds of an image, of the model that the arguments describe.

    Nothing is allocated. The multiply-adds are those that are done here, which for SegFormer's head are fewer than the
    paper's: it is evaluated at each map's own resolution.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..data.labels import Labels
    from .setup import build_model

    labels = Labels(tuple(f"class {number}" for number in range(num_labels)))
    with torch.device("meta"):
        model = build_model(replace(arguments, backbone_weights=None), labels)[0].eval()
        with FlopCounterMode(display=False) as counter:  # with gradients: prediction on a CPU asks for numbers of rows
            model(torch.empty(1, model.config.num_channels, *image_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {PARAMETERS: parameters / 1e6, MULTIPLY_ADDS: counter.get_total_flops() / 2e9}


def run_folder(folder: Path, row: str, seed: int) -> Path:
    """Where a row is trained."""
    return folder / _as_name(row) / f"seed_{seed}"


def evaluation_folder(run: Path, column: str) -> Path:
    """Where an evaluation of a run is."""
    return run / f"evaluation_{_as_name(column)}"


def _as_name(title: str) -> str:
    return re.sub(r"\W+", "_", title).strip("_").lower()


def summary(scores: list[float]) -> dict[str, float | None]:
    """The mean, and half of its 95 % interval (Student); None of a single score."""
    half = None
    if len(scores) > 1:
        quantile = QUANTILES[min(len(scores) - 2, len(QUANTILES) - 1)]
        half = quantile * statistics.stdev(scores) / math.sqrt(len(scores))
    return {"mean": statistics.mean(scores), "interval": half}


def scores_of(folder: Path, ablation: Ablation, row: str) -> dict[str, dict[str, float]]:
    """Column -> seed -> mean IoU in percent, of the runs that are finished."""
    found: dict[str, dict[str, float]] = {column: {} for column in ablation.columns}
    for run in sorted(run_folder(folder, row, 0).parent.glob("seed_*")):
        for column, scores in found.items():
            file = run / "all_results.json"
            if ablation.evaluations:
                file = evaluation_folder(run, column) / "evaluation.json"
            if file.is_file():
                scores[run.name.removeprefix("seed_")] = 100 * json.loads(file.read_text())["mean_iou"]
    return found


def known_rows(folder: Path) -> dict[str, dict]:
    """What the ablation.json of a folder says of each row, if there is one."""
    file = folder / "ablation.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    return {row["row"]: row for row in rows}


def write_table(folder: Path, ablation: Ablation, known: Mapping[str, dict], flags: str) -> str:
    """Writes ablation.json and ablation.md; returns the text of the latter.

    Args:
        known: row -> what `count` says of it, and the "arguments" that decide its scores; of others the file is asked.
        flags: of all runs, besides those of the table.
    """
    known, rows = {**known_rows(folder), **known}, []
    for name, row in ablation.rows.items():
        kept = {key: known[name][key] for key in (PARAMETERS, MULTIPLY_ADDS, "arguments") if key in known.get(name, {})}
        entry = {"row": name, "published": row.published, **kept}
        if row.flags is not None:
            found = {column: scores for column, scores in scores_of(folder, ablation, name).items() if scores}
            entry["scores"] = {
                column: {"seeds": by_seed, **summary(list(by_seed.values()))} for column, by_seed in found.items()
            }
        rows.append(entry)
    head = {name: getattr(ablation, name) for name in ("title", "source", "data", "note", "num_labels", "image_size")}
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**head, "flags": flags, "rows": rows}, indent=2)
    (folder / ".ablation.json").write_text(content + "\n", encoding="utf-8")
    (folder / ".ablation.json").replace(folder / "ablation.json")  # whole, for who reads it meanwhile
    text = as_markdown(ablation, rows, flags)
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    return text


def as_markdown(ablation: Ablation, rows: list[dict], flags: str) -> str:
    """The paper's table with ours beside it."""
    published = list(dict.fromkeys(column for row in rows for column in row["published"]))
    ours = [PARAMETERS, MULTIPLY_ADDS, *ablation.columns]
    titles = ["", *(f"{column}, published" for column in published), *(f"{column}, ours" for column in ours)]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows:
        cells = [plain(row["row"]), *(f"{row['published'].get(column, '')}" for column in published)]
        cells += [f"{row[column]:.2f}" if column in row else "" for column in ours[:2]]
        for column in ablation.columns:
            scores = row.get("scores", {}).get(column, {"seeds": {}})
            half = f" ± {scores['interval']:.2f}" if scores.get("interval") else ""
            seeds = f" ({len(scores['seeds'])} seeds)" if half else ""
            cells.append(f"{scores['mean']:.2f}{half}{seeds}" if scores["seeds"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    height, width = ablation.image_size
    about = (
        f"Published: {ablation.source}; {ablation.data}. Ours: parameters with {ablation.num_labels} classes, "
        f"multiply-adds of {height}x{width} pixels, as they are done here; scores in percent, with the 95 % "
        "interval of the mean over seeds."
    )
    changed = flags and f"Flags of the runs besides those of the table:\n\n{code_block(flags)}"
    evaluated = "\n".join(f"{column}, ours: {flags}" for column, flags in ablation.evaluations.items())
    evaluated = evaluated and f"Flags of the evaluations:\n\n{code_block(evaluated)}"
    parts = [f"# {ablation.title}", about, ablation.note, changed, evaluated, "\n".join(lines)]
    return "\n\n".join(filter(None, parts)) + "\n"
