"""Pages that are one HTML file without anything outside of it: for a training run, and for a model.

    path.write_text(page("My model", [heading("Classes"), table(["class", "IoU %"], [["road", 91.2]])]))

Texts of users are shown as they are: whatever is no `Html` is escaped.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image


STYLE = """:root{color-scheme:light dark;--ink:#1f2328;--paper:#fff;--line:#e1e4e8;--soft:#f3f4f6;--faint:#636b74}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#16181c;--line:#343941;--soft:#24282e;--faint:#9aa3ad}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;
padding:0 1rem;overflow-wrap:break-word}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse}
td,th{padding:.2rem .7rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%;border-radius:4px;display:block}
code{background:var(--soft);padding:.1rem .3rem}li{margin:.5rem 0}
.bar{background:#4c8bf5;height:.7rem;display:block;margin-top:.35rem}
.key{display:inline-block;margin-right:1rem;white-space:nowrap}
.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:3px;margin-right:.35rem;vertical-align:-.05rem}
.row{display:flex;flex-wrap:wrap;gap:.6rem;margin:.6rem 0 1.2rem}
figure{margin:0;flex:1 1 15rem;max-width:19rem}.row.small figure{flex:0 1 10rem}
figcaption{color:var(--faint);font-size:.85rem}"""


class Html(str):
    """A text that is HTML already."""


def text(value) -> Html:
    """Anything as HTML: numbers with two digits behind the point, "-" for nan and None, the rest escaped."""
    if isinstance(value, Html):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Html("-")
    return Html(f"{value:.2f}" if isinstance(value, float) else escape(str(value)))


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file.

    Args:
        parts: HTML.
    """
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = f"<h1>{escape(title)}</h1>{''.join(parts)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def heading(words: str) -> Html:
    return Html(f"<h2>{escape(words)}</h2>")


def paragraph(words: str) -> Html:
    return Html(f"<p>{text(words)}</p>")


def points(items: Sequence[str], numbered: bool = False) -> Html:
    """A list."""
    kind = "ol" if numbered else "ul"
    return Html(f"<{kind}>{''.join(f'<li>{text(item)}</li>' for item in items)}</{kind}>")


def table(header: Sequence, rows: Iterable[Sequence]) -> Html:
    """A table that is scrolled where the screen is narrow; numbers stand to the right."""

    def cell(value) -> str:
        is_number = value is None or isinstance(value, int | float)
        return f'<td class="n">{text(value)}</td>' if is_number else f"<td>{text(value)}</td>"

    head = "".join(f"<th>{text(value)}</th>" for value in header)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return Html(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')


def bar(share: float | None) -> Html:
    """A bar of [0, 1]; none for nan and None."""
    share = 0.0 if share is None or math.isnan(share) else share
    return Html(f'<span class="bar" style="width:{10 * share:.2f}rem"></span>')


def code(words: str) -> Html:
    return Html(f"<code>{escape(words)}</code>")


def color_key(names: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> Html:
    """Names beside their colours."""
    entries = (
        f'<span class="key"><i style="background:rgb{tuple(color)}"></i>{escape(name)}</span>'
        for name, color in zip(names, colors, strict=True)
    )
    return Html(f"<p>{''.join(entries)}</p>")


def picture(image: Image.Image, words: str) -> Html:
    """The image in the page itself.

    Args:
        words: for those who do not see it.
    """
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Html(f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{data}">')


def figures(pairs: Iterable[tuple[Image.Image, str]], small: bool = False) -> Html:
    """Images with the words below each, side by side as far as the screen is wide."""
    shown = "".join(
        f"<figure>{picture(image, words)}<figcaption>{escape(words)}</figcaption></figure>" for image, words in pairs
    )
    return Html(f'<div class="row{" small" * small}">{shown}</div>')
