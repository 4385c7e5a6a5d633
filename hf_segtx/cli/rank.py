"""Says which pictures to label next: those that the model is least sure of, and that are unlike each other.

    segtx rank outputs/camvid/best unlabelled/ --count 50
    segtx rank outputs/camvid/best 'archive/**/*.jpg' --output_dir next

Writes into --output_dir `ranking.csv` (order, path, uncertainty, entropy, disagreement) and `contact_sheet.png`, the
chosen pictures under the predicted classes. Uncertain is where averaging over scales and flips leaves a large entropy,
or changes the classes of many pixels; of pictures that look alike to the model's backbone one is taken.

Exit status: 0, 1 if pictures could not be read, 2 if something is wrong.
"""

import csv
import io
import sys
from dataclasses import dataclass

from ..settings import setting
from .flags import FlagParser
from .model_flags import ModelSettings, load
from .training_flags import named_flags


@dataclass
class RankSettings:
    """Results."""

    output_dir: str = setting("ranking", "Folder of the results.")
    count: int = setting(50, "How many pictures are wanted.", "[1, inf)")
    diversity: float = setting(1.0, "Weight of unlikeness; 0 looks at uncertainty alone.", "[0, 10]")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("rank", __doc__)
    parser.add_argument("model", help="Folder of a saved model, or Hub name.")
    parser.add_argument("images", nargs="+", help="Picture files, folders, quoted glob patterns.")
    parser.add_dataclass(RankSettings)
    parser.add_dataclass(ModelSettings)
    arguments = parser.parse_args(command_line)
    settings = parser.values_of(RankSettings, arguments)
    with named_flags(RankSettings, ModelSettings):
        from ..prediction import Predictor, Results, find_sources, is_video
        from ..prediction.pictures import as_png
        from ..prediction.ranking import contact_sheet, rank

        files = list(find_sources(arguments.images).names)
        if video := next(filter(is_video, files), None):
            raise ValueError(f"{video}: videos are not ranked; give pictures, such as its frames")
        results = Results(settings.output_dir)
        places = [results.claim(name, "all pictures") for name in ("ranking.csv", "contact_sheet.png")]
        model, processor = load(arguments.model, parser.values_of(ModelSettings, arguments), optimize=True)
        ranked, failures = rank(model, processor, files, count=settings.count, diversity=settings.diversity)
        table = io.StringIO(newline="")
        rows = ([i, one.file, one.uncertainty, one.entropy, one.disagreement] for i, one in enumerate(ranked, 1))
        csv.writer(table).writerows([["order", "image", "uncertainty", "entropy", "disagreement"], *rows])
        results.write(places[0], table.getvalue().encode())
        results.write(places[1], as_png(contact_sheet(ranked, Predictor(model, processor))))
    for message in failures.values():
        print(f"error: {message}", file=sys.stderr)
    print(f"{len(ranked)} of {len(files)} pictures in {settings.output_dir}/ranking.csv, first {ranked[0].file}")
    return 1 if failures else 0
