"""What users install: the source distribution is complete, and its wheel trains in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hf_segtx.resources import FOLDERS


ROOT = Path(__file__).parents[1]
TINY = '{"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}'

pytestmark = pytest.mark.slow


def run(*words, folder, check=True, **environment):
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def project_files() -> list[str]:
    """Those of the repository; where there is none, those of an unpacked source distribution."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.splitlines()
    if not files:
        found = (file for file in ROOT.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        files = [file.relative_to(ROOT).as_posix() for file in found]
    return [file for file in files if (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def sdist(project_files, tmp_path_factory) -> Path:
    """The unpacked source distribution, made from a copy: building leaves files behind."""
    folder = tmp_path_factory.mktemp("project")
    for file in project_files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    code = "import setuptools.build_meta as build; print(build.build_sdist('dist'))"
    run(sys.executable, "-c", code, folder=folder)
    (archive,) = (folder / "dist").iterdir()
    shutil.unpack_archive(archive, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, sdist, folder=folder)
    (file,) = folder.iterdir()
    return file


def test_source_distribution_has_what_the_tests_need(sdist, project_files):
    there = {file.relative_to(sdist).as_posix() for file in sdist.rglob("*") if file.is_file()}
    needed = {file for file in project_files if not file.startswith(".git")}
    assert needed - there == set()


def test_wheel_has_every_module_and_file_of_the_package(wheel, project_files):
    with zipfile.ZipFile(wheel) as content:
        there = set(content.namelist())
        metadata = content.read(next(name for name in there if name.endswith("METADATA"))).decode()
    expected = {file for file in project_files if file.startswith("hf_segtx/")}
    for name, folder in FOLDERS.items():
        expected |= {f"hf_segtx/{name}/{file.name}" for file in (ROOT / folder).iterdir() if file.is_file()}
    assert len(expected) > 130 and expected - there == set()
    outside = {name for name in there - expected if ".dist-info/" not in name}
    assert outside == set()
    assert "Project-URL: Homepage, https://" in metadata and "](docs/predictions.png)" not in metadata


def test_wheel_works_in_an_empty_folder(wheel, tmp_path):
    """Only the installed package is there, and its dependencies: no repository, no network."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel, folder=work)
    segtx = [sys.executable, site / "bin/segtx"]
    environment = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    where = run(sys.executable, "-c", "import hf_segtx; print(hf_segtx.__file__)", folder=work, **environment).stdout
    assert Path(where.strip()).is_relative_to(site)

    recipes = run(*segtx, "recipes", folder=work, **environment).stdout
    assert re.search(r"^segformer_b0_ade20k_512 +ADE20K, 150 classes +37\.4 %", recipes, re.MULTILINE)
    recipe = run(*segtx, "recipes", "segformer_b0_camvid", folder=work, **environment).stdout
    assert recipe == (ROOT / "examples/recipes/segformer_b0_camvid.args").read_text()
    assert "\nsegformer_1b " in run(*segtx, "ablate", folder=work, **environment).stdout

    words = ["--recipe", "segformer_b0_camvid", "--config_overrides", TINY, "--max_train_steps", "2"]
    words += ["--num_warmup_steps", "0", "--crop_size", "64", "--max_train_samples", "8", "--max_eval_samples", "4"]
    words += ["--per_device_train_batch_size", "2"]
    run(*segtx, "train", *words, "--output_dir", "run", folder=work, **environment)
    card = (work / "run/README.md").read_text()
    assert "mean IoU" in card and "SegFormer" in card and "{{" not in card
    assert (work / "run/model.safetensors").is_file() and (work / "run/train.args").is_file()
    scores = run(*segtx, "evaluate", "run", "--from_card", folder=work, **environment).stdout
    assert "the same (difference +0.000" in scores
    assert {file.name for file in work.iterdir()} == {"run"}
    wrong = run(*segtx, "train", "--recipe", "segformer_b0_camvd", folder=work, check=False, **environment)
    assert wrong.returncode == 2 and "did you mean segformer_b0_camvid?" in wrong.stderr
