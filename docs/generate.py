"""Writes what the pages of the documentation show and no one should type: the figures, and the tables of sizes.

    python docs/generate.py            # docs/architectures/*.svg, and the tables in the pages beside them

Parameters and multiply-adds are counted on the meta device, so nothing is allocated and any machine gives the same.
"""

import re
from html import escape
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.training.recipes import describe, recipe_names


FOLDER = Path(__file__).parent / "architectures"
BLUE, GREEN, ORANGE, GREY = "#dbe9fb", "#dcf3e0", "#fdead0", "#eeeeee"  # encoder, decoder, logits, data

# Boxes are (column, row, columns wide, text, colour); arrows are (box, box, text on the line).
FIGURES = {
    "segformer": (
        [
            (0, 0, 1, "image\n3 x H x W", GREY),
            (1, 0, 1, "stage 1\nH/4 x W/4", BLUE),
            (2, 0, 1, "stage 2\nH/8 x W/8", BLUE),
            (3, 0, 1, "stage 3\nH/16 x W/16", BLUE),
            (4, 0, 1, "stage 4\nH/32 x W/32", BLUE),
            (1, 1, 1, "linear", GREEN),
            (2, 1, 1, "linear", GREEN),
            (3, 1, 1, "linear", GREEN),
            (4, 1, 1, "linear", GREEN),
            (1, 2, 4, "upsample to H/4 x W/4, sum (as one 1x1 convolution of all), norm, ReLU", GREEN),
            (5, 2, 1, "classifier\nK x H/4 x W/4", ORANGE),
        ],
        [(0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (6, 9), (7, 9), (8, 9), (9, 10)],
    ),
    "setr": (
        [
            (0, 0, 1, "image\n3 x H x W", GREY),
            (1, 0, 1, "patches of 16\n+ positions", BLUE),
            (2, 0, 3, "transformer blocks, all at H/16 x W/16", BLUE),
            (2, 1, 1, "naive\nnorm, 1x1", GREEN),
            (3, 1, 1, "PUP\n4 x (3x3, up 2)", GREEN),
            (4, 1, 1, "MLA\n4 maps, sums, up 4", GREEN),
            (2, 2, 1, "K x H/16 x W/16", ORANGE),
            (3, 2, 1, "K x H/2 x W/2", ORANGE),
            (4, 2, 1, "K x H/4 x W/4", ORANGE),
        ],
        [(0, 1), (1, 2), (2, 3), (2, 4), (2, 5), (3, 6), (4, 7), (5, 8)],
    ),
    "segmenter": (
        [
            (0, 0, 1, "image\n3 x H x W", GREY),
            (1, 0, 1, "patches of P\n+ positions", BLUE),
            (2, 0, 2, "transformer blocks, norm", BLUE),
            (2, 1, 1, "linear\nclassifier", GREEN),
            (3, 1, 1, "mask transformer\npatches and classes", GREEN),
            (4, 1, 1, "K class\nembeddings", GREEN),
            (2, 2, 1, "K x H/P x W/P", ORANGE),
            (3, 2, 2, "patch . class\nK x H/P x W/P", ORANGE),
        ],
        [(0, 1), (1, 2), (2, 3), (2, 4), (5, 4), (3, 6), (4, 7)],
    ),
    "ocrnet": (
        [
            (0, 0, 1, "image\n3 x H x W", GREY),
            (1, 0, 1, "HRNet, or\ndilated ResNet", BLUE),
            (2, 0, 1, "soft object\nregions", GREEN),
            (3, 0, 2, "region logits, with a loss of their own", ORANGE),
            (2, 1, 1, "pixel\nrepresentations", GREEN),
            (3, 1, 1, "region\nrepresentations", GREEN),
            (4, 1, 1, "object-contextual\nrepresentations", GREEN),
            (2, 2, 3, "augmented representations: 1x1 of both", GREEN),
            (5, 2, 1, "classifier\nK x h x w", ORANGE),
        ],
        [(0, 1), (1, 2), (1, 4), (2, 3), (3, 5), (4, 5), (5, 6), (4, 7), (6, 7), (7, 8)],
    ),
}
WIDTH, HEIGHT, GAP = 150, 54, 34


def figure(boxes: list[tuple], arrows: list[tuple]) -> str:
    """An SVG that reads on light and on dark pages."""

    def place(box):
        column, row, columns = box[:3]
        return column * (WIDTH + GAP) + 10, row * (HEIGHT + GAP) + 10, columns * (WIDTH + GAP) - GAP

    parts = []
    for source, target in arrows:
        (x1, y1, w1), (x2, y2, w2) = place(boxes[source]), place(boxes[target])
        if y1 == y2:  # along the row, either way
            ends = (x1 + w1, x2) if x1 < x2 else (x1, x2 + w2)
            line = (ends[0], y1 + HEIGHT / 2, ends[1], y1 + HEIGHT / 2)
        elif x1 + w1 <= x2:  # to the right and down: out of the right side, in at the left one
            line = (x1 + w1, y1 + HEIGHT / 2, x2, y2 + HEIGHT / 2)
        else:
            x = min(max(x1 + w1 / 2, x2 + 10), x2 + w2 - 10) if w2 > w1 else x2 + w2 / 2
            down = y1 < y2
            line = (x, y1 + HEIGHT if down else y1, x, y2 if down else y2 + HEIGHT)
        parts.append('<line x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}" marker-end="url(#tip)"/>'.format(*line))
    for box in boxes:
        x, y, w = place(box)
        lines = box[3].split("\n")
        parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{HEIGHT}" rx="6" fill="{box[4]}"/>')
        for i, text in enumerate(lines):
            height = y + HEIGHT / 2 + 5 + (i - (len(lines) - 1) / 2) * 17
            parts.append(f'<text x="{x + w / 2:g}" y="{height:g}">{escape(text)}</text>')
    right = max(place(box)[0] + place(box)[2] for box in boxes) + 10
    bottom = max(place(box)[1] for box in boxes) + HEIGHT + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" font-family="sans-serif" '
        'font-size="13" text-anchor="middle"><defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="3" '
        'orient="auto"><path d="M0,0 L7,3 L0,6 z" fill="#555"/></marker></defs>'
        f'<rect width="{right}" height="{bottom}" rx="8" fill="#ffffff"/><g stroke="#555" stroke-width="1.3">'
        + "".join(part for part in parts if part.startswith("<line"))
        + '</g><g fill="#222">'
        + "".join(part for part in parts if not part.startswith("<line"))
        + "</g></svg>\n"
    )


def counts(name: str, size: str, head: str | None) -> tuple[float, float]:
    """Millions of parameters, and GFLOPs (two for each multiply-add) of an image of 512x512, with 150 classes."""
    row = ARCHITECTURES[name]
    settings = {"decode_head": head} if head else {}
    with torch.device("meta"):
        model = row.model(row.config.from_size(size, num_labels=150, **settings)).eval()
        with FlopCounterMode(display=False) as counter:  # with gradients: prediction on a CPU asks for numbers of rows
            model(torch.empty(1, 3, 512, 512))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 1e9


def heads(name: str) -> list[str | None]:
    """The decode heads to choose from; None where there is one."""
    module = __import__(ARCHITECTURES[name].config.__module__, fromlist=["DECODE_HEADS"])
    return list(getattr(module, "DECODE_HEADS", [None]))


def size_table(name: str) -> str:
    lines = ["| size | head | M parameters | GFLOPs at 512x512 |", "|---|---|---:|---:|"]
    for size in ARCHITECTURES[name].sizes:
        for head in heads(name):
            parameters, flops = counts(name, size, head)
            lines.append(f"| `{size}` | {head or ''} | {parameters:.1f} | {flops:.1f} |")
    return "\n".join(lines)


def recipe_table(name: str) -> str:
    lines = ["| recipe | data set | published mIoU |", "|---|---|---|"]
    for recipe in recipe_names():
        if recipe.startswith(name):
            data, score = describe(recipe)
            lines.append(f"| `{recipe}` | {data} | {score} |")
    return "\n".join(lines)


def replaced(text: str, marker: str, table: str) -> str:
    """The page with what is between the lines of a marker exchanged."""
    return re.sub(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.S)


def write() -> None:
    """Exchanges figures and tables."""
    for name, (boxes, arrows) in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(figure(boxes, arrows))
        page = FOLDER / f"{name}.md"
        text = replaced(page.read_text(), "sizes", size_table(name))
        page.write_text(replaced(text, "recipes", recipe_table(name)))


if __name__ == "__main__":
    write()
