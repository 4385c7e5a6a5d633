"""Lists the recipes that come along, the settings of published runs, or prints one.

segtx recipes                                  # name, data set and published score of each
segtx recipes segformer                        # those whose name has this in it
segtx recipes segformer_b0_ade20k_512          # its text: source, settings
segtx train --recipe segformer_b0_ade20k_512 --train_dir ... --validation_dir ...
"""

from .flags import FlagParser


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("recipes", __doc__)
    parser.add_argument("name", nargs="?", default="", help="Name of a recipe, or a part of names.")
    name = parser.parse_args(command_line).name
    from ..training.recipes import describe, find_recipe, recipe_names

    names = [known for known in recipe_names() if name in known]
    if name and (name in names or not names):
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return 0
    rows = [("recipe", "data set", "mean IoU"), *((known, *describe(known)) for known in names)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for known, data, score in rows:
        print(f"{known:<{widths[0]}}  {data:<{widths[1]}}  {score}".rstrip())
    return 0
