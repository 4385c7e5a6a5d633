"""Runs the benchmarks behind the tables of README and docs/measured.md and writes the tables: no number is typed.

    OMP_NUM_THREADS=2 python benchmarks/all.py                             # all; an hour, on a machine that rests
    OMP_NUM_THREADS=2 python benchmarks/all.py --tables segformer
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=2 \
        python benchmarks/all.py                                           # as on a processor without AVX-512

A table stands between `<!-- benchmark NAME -->` and `<!-- end of benchmark -->`, once for each kind of
machine in `results.json`, where the last results of each are kept. What is now slower than there by more than a tenth,
relative to its peer, is printed. A benchmark that fails leaves its table as it is, and makes the exit status 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import RESULTS_VARIABLE, machine, machine_kind


FOLDER = Path(__file__).resolve().parent
TABLES = {  # their commands
    "segformer": ["segformer.py"],
    "segformer_kept_memory": ["segformer.py --keep_freed_memory"],
    "upsampling": ["upsampling.py"],
    "mmsegmentation": [
        "setr.py --sizes base --steps logits --rounds 3",
        "segmenter.py --steps logits --rounds 3",
        "ocrnet.py --steps logits --rounds 3",
    ],
    "mmsegmentation_large": ["setr.py --sizes large --steps logits --rounds 3"],
    "mmsegmentation_training": [
        "setr.py --sizes base --heads pup --steps training",
        "segmenter.py --sizes small --steps training --rounds 5",
        "ocrnet.py --sizes hrnet_w18 --steps training",
    ],
    "protocol": ["protocol.py"],
    "losses": ["losses.py"],
    "export": ["export.py --parts models --models segformer --sizes b0 b2 --no_compile"],
}
PAGES = {  # where their tables are, if not in docs/measured.md
    "segformer": "README.md",
    "segformer_kept_memory": "docs/speed.md",
    "export": "docs/deployment.md",
}
SUMMARY = (  # of the README: what, its table, the titles that count
    ("SETR, Segmenter, OCRNet beside mmsegmentation 1.2.2", "mmsegmentation", ""),
    ("SETR with ViT-L beside mmsegmentation", "mmsegmentation_large", ""),
    ("a training step of SETR, Segmenter, OCRNet beside mmsegmentation", "mmsegmentation_training", ""),
    ("loss with its gradient beside `F.interpolate` and `F.cross_entropy`, 150 classes", "upsampling", "150.*: loss"),
    ("label map beside `F.interpolate` and `argmax`, 150 classes", "upsampling", "150.*: label map"),
    ("focal, Dice, Lovasz-softmax and RMI losses beside their formulas, 150 classes", "losses", "150"),
    ("picture to label map beside transformers (whole) and mmsegmentation (windows)", "protocol", ""),
    (
        "SegFormer-B0 and B2, eager, beside transformers' in ONNX Runtime and OpenVINO",
        "export",
        "eager beside transformers, ",
    ),
    ("the same, ours exported too", "export", "ours, .* beside transformers, "),
)
FALL = 0.9  # of a ratio to the peer, from where on it is printed


def run(command: str) -> list[dict] | None:
    """What a benchmark records (see `measure.record`); None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.jsonl"
        script, *flags = command.split()
        done = subprocess.run(
            [sys.executable, FOLDER / script, *flags], env=os.environ | {RESULTS_VARIABLE: str(file)}, check=False
        )
        if done.returncode:
            return None
        return [json.loads(line) for line in file.read_text().splitlines()]


def faster(row: dict) -> float:
    """How many times as fast as the peer."""
    return row["peer_ms"] / row["ms"]


def falls(old: list[dict], new: list[dict]) -> list[str]:
    """A line for each row whose ratio to the peer fell by more than a tenth."""
    before = {row["title"]: faster(row) for row in old}
    return [
        f"{row['title']}: {faster(row):.2f}x instead of {before[row['title']]:.2f}x"
        for row in new
        if faster(row) < FALL * before.get(row["title"], 0)
    ]


def markdown(kinds: dict[str, dict]) -> str:
    """A table for each kind of machine, under a line that says all about it.

    Args:
        kinds: of a table, as in `results.json`: {kind: {"machine": its line, "rows": [...]}}.
    """
    parts = []
    for result in kinds.values():
        lines = [
            f"{result['machine']}:",
            "",
            "| | peer | hf_segtx | faster | additional memory |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in result["rows"]:
            memory = f"{row['mib'] / row['peer_mib']:.0%}" if row["peer_mib"] else ""
            times = f"{row['peer_ms']:.0f} ms | {row['ms']:.0f} ms | **{faster(row):.1f}x**"
            lines.append(f"| {row['title']} | {times} | {memory} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def summary(results: dict[str, dict]) -> str:
    """The README's table about all tables: least and most of how many times as fast, and of the share of memory."""

    def span(values: list[float], form: str, unit: str) -> str:
        ends = [format(value, form) for value in (min(values), max(values))]
        return " to ".join(dict.fromkeys(ends)) + unit

    kinds = list(dict.fromkeys(kind for _, name, _ in SUMMARY for kind in results.get(name, {})))
    lines = [f"| | {' | '.join(f'{kind}: faster | memory' for kind in kinds)} |", "|---|" + "---:|" * 2 * len(kinds)]
    for what, name, titles in SUMMARY:
        cells = []
        for kind in kinds:
            rows = results.get(name, {}).get(kind, {}).get("rows", [])
            rows = [row for row in rows if re.search(titles, row["title"])]
            shares = [100 * row["mib"] / row["peer_mib"] for row in rows if row["peer_mib"]]
            cells += [span([faster(row) for row in rows], ".1f", "x") if rows else ""]
            cells += [span(shares, ".0f", " %") if shares else ""]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page_of(name: str) -> Path:
    """The page with the table."""
    return FOLDER.parent / PAGES.get(name, "docs/measured.md")


def write_table(page: str, name: str, table: str) -> str:
    """The page with the table between its markers.

    Raises:
        ValueError: if the page does not have these markers, once.
    """
    pattern = rf"(<!-- benchmark {re.escape(name)} -->\n).*?(<!-- end of benchmark -->)"
    page, count = re.subn(pattern, lambda found: f"{found[1]}{table}\n{found[2]}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{count} places for the benchmark {name!r}; mark one by <!-- benchmark {name} -->")
    return page


def update(name: str, rows: list[dict], results_file: Path, page_file: Path) -> list[str]:
    """Keeps the rows of a table, writes it, and returns the lines of what fell."""
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    kinds = results.setdefault(name, {})
    fallen = falls(kinds.get(machine_kind(), {}).get("rows", []), rows)
    kinds[machine_kind()] = {"machine": machine(), "rows": rows}
    page = write_table(page_file.read_text(encoding="utf-8"), name, markdown(kinds))
    results_file.write_text(json.dumps(results, indent=1) + "\n")
    page_file.write_text(page, encoding="utf-8")
    return fallen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    arguments = parser.parse_args()
    fallen, failed = [], []
    for name in arguments.tables:
        rows = []
        for command in TABLES[name]:
            found = run(command)
            if found is None:
                failed.append(command)
            rows += found or []
        if not any(command in failed for command in TABLES[name]):
            fallen += update(name, rows, FOLDER / "results.json", page_of(name))
    readme, results = page_of("segformer"), json.loads((FOLDER / "results.json").read_text())
    readme.write_text(write_table(readme.read_text(encoding="utf-8"), "summary", summary(results)), encoding="utf-8")
    print(*[f"slower than before: {line}" for line in fallen] or ["nothing fell by more than a tenth"], sep="\n")
    if failed:
        sys.exit(f"failed, with their tables as they were: {', '.join(failed)}")


if __name__ == "__main__":
    main()
