"""The notebooks of the documentation: committed with outputs that are small and name no folder of a machine; they run.

After an edit of one of them, `OMP_NUM_THREADS=1 python tests/test_notebooks.py` makes all outputs anew, in two minutes.
"""

import base64
import io
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image


FOLDER = Path(__file__).parents[1] / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(file: Path):
    return nbformat.read(file, as_version=4)


def execute(notebook, folder: Path):
    """Runs it in a folder, with this environment; an error in a cell is raised."""
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=place).execute()
    return notebook


def outputs(notebook) -> list:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook) -> list[Image.Image]:
    found = [data for output in outputs(notebook) for data in [output.get("data", {}).get("image/jpeg")] if data]
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    """Where Jupyter writes, instead of the user's folders."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs(file, tmp_path, home):
    """In an empty folder, without the network (see conftest.py); pictures come out like those that were committed."""
    committed = read(file)
    found = execute(read(file), tmp_path)
    assert [picture.width for picture in pictures(found)] == [picture.width for picture in pictures(committed)]


@pytest.mark.slow
def test_a_cell_that_fails_would_be_seen(tmp_path, home):
    """Also a command that only says so by its exit status."""
    source = "from hf_segtx.cli import main as segtx\n\nassert segtx(['train', '--no_such_flag']) == 0"
    with pytest.raises(CellExecutionError):
        execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_committed_outputs(file):
    """All cells ran, in order; pictures fit a small screen; no logs, no paths of a machine; small files."""
    notebook = read(file)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    found = outputs(notebook)
    assert not [output for output in found if output.output_type == "error" or output.get("name") == "stderr"]
    assert pictures(notebook) and max(picture.width for picture in pictures(notebook)) <= 640
    text = "\n".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in found)
    assert not re.search(r"/(home|root|tmp|usr|work|venv|Users)\b|site-packages", text)
    assert file.stat().st_size < 500_000  # bytes; GitHub shows no preview of large notebooks


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_first_cell_installs_and_links_lead_to_files(file):
    notebook = read(file)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "%pip install" in first.source and 'find_spec("hf_segtx") is None' in first.source
    text = "\n".join(cell.source for cell in notebook.cells)
    targets = re.findall(r"/hf-segtx/hf_segtx/blob/main/([\w./]+)", text)
    assert f"docs/notebooks/{file.name}" in targets  # the badge of Colab
    assert all((FOLDER.parents[1] / target).is_file() for target in targets), targets


def test_documentation_links_all_notebooks():
    page = (FOLDER.parent / "index.md").read_text()
    assert len(NOTEBOOKS) == 3 and all(f"/docs/notebooks/{file.name}" in page for file in NOTEBOOKS)


if __name__ == "__main__":
    for file in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(read(file), folder)
        for cell in notebook.cells:
            if cell.cell_type == "code":  # without logs and progress bars
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(notebook, file)
