"""The benchmarks: what they say about the machine, the writer of tables, the script for a GPU."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image


FOLDER = Path(__file__).parents[1] / "benchmarks"
NO_SCRIPTS = {"measure", "drawn_data", "mmsegmentation"}
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in NO_SCRIPTS)


@pytest.fixture
def modules(monkeypatch):
    """measure and all, as scripts in the folder import them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("measure"), importlib.import_module("all")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_says_on_what_it_ran(path):
    called = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and
              isinstance(node.func, ast.Name)}  # fmt: skip
    assert "machine" in called


def test_machine(modules):
    line = modules[0].machine()
    assert torch.backends.cpu.get_cpu_capability() in line and f"torch {torch.__version__.split('+')[0]}" in line
    assert f"{torch.get_num_threads()} threads" in line and "oneDNN unknown" not in line


def test_tables_are_written_and_falls_are_printed(modules, tmp_path, monkeypatch):
    measure, writer = modules
    page, results, file = tmp_path / "README.md", tmp_path / "results.json", tmp_path / "rows.jsonl"
    page.write_text("before\n<!-- benchmark b -->\nold\n<!-- end of benchmark -->\nafter 1.0x\n", encoding="utf-8")
    monkeypatch.setenv(measure.RESULTS_VARIABLE, str(file))

    def rows(*milliseconds):
        file.unlink(missing_ok=True)
        for number, own in enumerate(milliseconds):
            measure.record(f"case {number}", 0.1, own / 1e3, 400 * 2**20, 100 * 2**20)
        return [json.loads(line) for line in file.read_text().splitlines()]

    assert writer.update("b", rows(20, 50), results, page) == []
    text = page.read_text(encoding="utf-8")
    assert "| case 0 | 100 ms | 20 ms | **5.0x** | 25% |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("<!-- end of benchmark -->\nafter 1.0x\n")
    assert measure.machine() in text
    # 5.0x -> 4.55x is less than a tenth, 2.0x -> 1.67x is more
    assert writer.update("b", rows(22, 60), results, page) == ["case 1: 1.67x instead of 2.00x"]
    monkeypatch.setattr(writer, "machine_kind", lambda: "another")
    monkeypatch.setattr(writer, "machine", lambda: "another one")
    assert writer.update("b", rows(90, 90), results, page) == []  # of which nothing is known
    text = page.read_text(encoding="utf-8")
    assert text.count("| case 0 |") == 2 and "\nanother one:\n" in text and "**4.5x**" in text
    with pytest.raises(ValueError, match="0 places for the benchmark 'c'"):
        writer.write_table(text, "c", "")


def test_summary_spans_the_rows_of_a_table(modules):
    titles = ("(2, 150, 8, 8) -> (9, 9): loss", "(2, 150, 8, 8) -> (8, 8): loss", "(2, 19, 8, 8) -> (8, 8): loss")
    numbers = ((100, 50, 10, 1), (100, 25, 10, 2), (100, 1, 10, 9))
    names = ("title", "peer_ms", "ms", "peer_mib", "mib")
    rows = [dict(zip(names, (title, *row), strict=True)) for title, row in zip(titles, numbers, strict=True)]
    lines = modules[1].summary({"upsampling": {"here": {"rows": rows}}, "losses": {"there": {"rows": []}}}).splitlines()
    assert lines[0] == "| | here: faster | memory | there: faster | memory |"
    assert next(line for line in lines if "cross_entropy" in line).endswith("| 2.0 to 4.0x | 10 to 20 % |  |  |")


def test_pages_have_a_place_for_every_table(modules):
    assert "summary" in modules[1].write_table(modules[1].page_of("segformer").read_text(), "summary", "")
    for name, commands in modules[1].TABLES.items():
        page = modules[1].page_of(name).read_text(encoding="utf-8")
        assert "\nnew\n" in modules[1].write_table(page, name, "new")
        assert all((FOLDER / command.split()[0]).is_file() for command in commands)


@pytest.mark.slow
def test_script_for_a_gpu_works():
    """Everything at tiny sizes on the CPU; without --smoke it says that there is no GPU."""
    script = [sys.executable, str(FOLDER / "gpu.py")]
    done = subprocess.run([*script, "--smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("loss with gradient", "label map", "training step", "loader, 0 workers", "OCRNet-W48, ours"):
        assert words in done.stdout
    if not torch.cuda.is_available():
        done = subprocess.run(script, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("there is no GPU here; --smoke")


def test_largest_batch_is_found(monkeypatch):
    """On a GPU the last that fits; on a CPU the last that is faster by more than three percent, within its memory."""
    monkeypatch.syspath_prepend(str(FOLDER))
    throughput = importlib.import_module("throughput")
    bench = throughput.Bench(64, half=False, clock=None, max_gib=1, max_batch=64)
    rates = {1: 10, 2: 15, 4: 16, 8: 16.1, 16: 15, 32: 0, 64: 20}
    monkeypatch.setattr(bench, "rate", lambda model, batch: rates[batch])
    for on_gpu, fitting, expected in ((True, 64, 16), (False, 64, 4), (False, 2, 2), (False, 1, 1)):
        bench.on_gpu = on_gpu
        monkeypatch.setattr(bench, "fits", lambda model, batch, fitting=fitting: batch <= fitting)
        assert bench.largest_batch(None) == expected
    assert throughput.PUBLISHED.keys() <= throughput.networks(150, 512).keys()


@pytest.mark.slow
def test_throughput_prints_a_table_and_draws(tmp_path):
    """Small images, small batches, networks of each library."""
    flags = ["--side", "64", "--num_labels", "5", "--rounds", "1", "--max_batch", "2", "--max_gib", "1"]
    flags += ["--picture", str(tmp_path / "speed.png"), "--sizes"]
    names = ["SegFormer b0", "Segmenter tiny mask", "OCRNet hrnet_w18_small", "FCN resnet50"]
    script = [sys.executable, str(FOLDER / "throughput.py"), *flags, *names]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ") and "images/s" not in line]
    assert {row[0].removeprefix("| ") for row in rows} == {
        "SegFormer b0", "Segmenter tiny mask", "OCRNet hrnet_w18_small", "torchvision FCN resnet50",
        "transformers SegFormer b0"}  # fmt: skip
    rates = [float(row[3]) for row in rows]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0 and all(row[2] in "12" for row in rows)
    assert Image.open(tmp_path / "speed.png").size == (900, 560)
