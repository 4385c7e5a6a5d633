"""The model card against what huggingface_hub reads in it; tokens and uploads against a local stand-in of the Hub."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from conformance.fake_hub import FakeHub
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt
from PIL import Image
from tiny import CASES
from transformers import (
    ConvNextV2Config,
    Dinov2Config,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    TimmBackboneConfig,
)

from hf_segtx import SegFormerImageProcessor
from hf_segtx.hub import check_token, push, without_folders, write_card
from hf_segtx.visualization import training_curves


ROOT = Path(__file__).resolve().parent.parent
RESULTS = {
    "mean_iou": 0.41236,
    "mean_accuracy": 0.5,
    "overall_accuracy": 0.75,
    "images": 12,
    "protocol": "single scale, whole images: colons too",
    "classes": {
        "sky": {"iou": 0.8, "accuracy": 0.9},
        "pole": {"iou": 0.02, "accuracy": 0.1},
        "void|hole": {"iou": None, "accuracy": None},
    },
    "evaluations": [{"step": 5, "mean_iou": 0.2}, {"step": 10, "mean_iou": 0.41236}],
    "losses": [{"step": step, "loss": 1 / step} for step in range(1, 11)],
}
TEMPLATES = sorted(path for path in (ROOT / "model_cards").glob("*.md") if path.name != "card.md")


@pytest.fixture
def hub(monkeypatch):
    """A Hub of its own for huggingface_hub, which reads its address at import, and a token that may write."""
    with FakeHub() as fake:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake.endpoint)
        template = fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_fake")
        huggingface_hub.close_session()  # made for the offline mode
        yield fake
    huggingface_hub.close_session()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_card_matches_what_huggingface_hub_reads(template, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "predictions.png")
    settings = {"name": "me/run", "data": "CamVid", "dataset_name": "me/camvid", "training": "10 steps"}
    card = ModelCard.load(write_card(tmp_path, template, RESULTS, start="nvidia/mit-b0", **settings))
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"]) == ("image-segmentation", "transformers")
    assert template.stem in data["tags"]
    assert (data["base_model"], data["datasets"]) == ("nvidia/mit-b0", ["me/camvid"])
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_type) == (0.4124, "me/camvid")
    assert result.metric_args == {"protocol": RESULTS["protocol"]}
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results/mean_iou.yaml").read_text()))
    assert (entry.dataset_id, entry.value, entry.notes) == ("me/camvid", 0.4124, RESULTS["protocol"])
    for text in ("mean IoU 41.24 %", "| sky | 80.00 | 90.00 |", "| void\\|hole | - | - |", "10 steps", "@inpro"):
        assert text in card.text
    assert "below 50 %: pole." in card.text and "hf.co/nvidia/mit-b0" in card.text and "arxiv.org" in card.text
    for picture in ("predictions.png", "curves.png"):
        assert f"]({picture})" in card.text and Image.open(tmp_path / picture).width > 0
    code = card.text.split("```python\n")[1].split("```")[0]
    assert sum(bool(line) for line in code.splitlines()) <= 5
    compile(code, "card", "exec")


def test_card_without_data_of_the_hub_and_curves(tmp_path):
    results = {key: value for key, value in RESULTS.items() if key not in ("evaluations", "losses")}
    settings = {"name": "run", "data": "my photos", "dataset_name": str(tmp_path)}
    card = ModelCard.load(write_card(tmp_path, TEMPLATES[0], results, license="mit", **settings))
    assert card.data.license == "mit" and card.data.datasets is None and card.data.base_model is None
    assert card.data.eval_results[0].dataset_type == "local"
    assert "from random weights" in card.text and ".png" not in card.text
    assert not (tmp_path / ".eval_results").exists()


MARKS = [
    "*bold*", "_under_score_", "`code`", "[link](https://a.b)", "![image](x.png)", "<script>alert(1)</script>", "<b>",
    "a|b", "a\\|b", "a\\", "&lt;", "~~gone~~", "line\nnext | row |", "line\r\n\r\n# Title", "https://a.b",
    "www.evil.com", "me@evil.com", "# Title", "```\nfence", "{{ results }}", "{% for %}", "---", "- item", "1. item",
    "$x$", "Straße", "道路",
    "e\u0301", "क्\u200dष", "\u202eturned", "tab\tstop", "a\x00b", " spaces  between ", "https://<b>", "\\<i>", "| | |",
    "'\"", "Title #",
]  # fmt: skip


def shown(mark):
    return " ".join(re.sub("[\x00\u202e]", " ", mark).split())


def rendered(markdown):
    """(texts by row of the only table, all text, tags that occur) of a Markdown text, with HTML as the Hub shows it."""
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": True}).parse(markdown)
    rows, inside = [], False
    inline = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            (rows[-1] if inside else inline).append(token)
        inside = token.type in ("td_open", "th_open")
    children = [child for token in [*inline, *sum(rows, [])] for child in token.children]
    kinds = {child.type for child in children} | {
        f"link to {child.attrGet('href')}" for child in children if child.attrs
    }

    def text(token):
        return "".join(child.content for child in token.children)

    return [[text(token) for token in row] for row in rows], [text(token) for token in inline], kinds, tokens


def test_cards_show_names_as_they_are(tmp_path):
    """Every name comes out of a Markdown renderer as the text that it is, and adds neither tag, link, nor row."""
    names = [shown(mark) for mark in MARKS]
    classes = {mark: {"iou": 0.1, "accuracy": 0.2} for mark in MARKS}
    harmless = {str(number): {"iou": 0.1, "accuracy": 0.2} for number in range(len(MARKS))}
    kinds = {}
    for name, results in (("harmless", {**RESULTS, "classes": harmless}), ("names", {**RESULTS, "classes": classes})):
        (tmp_path / name).mkdir()
        card = ModelCard.load(write_card(tmp_path / name, TEMPLATES[0], results, name="me/run", data="CamVid"))
        rows, texts, kinds[name], tokens = rendered(card.text)
        kinds[name] = (kinds[name], [token.type for token in tokens if token.type != "inline"])
    assert [row[0] for row in rows[1:]] == names and all(len(row) == 3 for row in rows)
    assert any(f"below 50 %: {', '.join(names)}." in text for text in texts)
    assert kinds["names"][1] == kinds["harmless"][1] and kinds["names"][0] - {"text_special"} == kinds["harmless"][0]


@pytest.mark.parametrize("mark", MARKS)
def test_cards_show_other_texts_as_they_are(mark, tmp_path):
    """The name of the model, the data, the start and the licence; the example remains Python, the metadata YAML."""
    settings = {"name": mark, "data": mark, "start": f"nowhere/{mark}", "license": mark}
    card = ModelCard.load(write_card(tmp_path, TEMPLATES[0], RESULTS, **settings))
    _, texts, kinds, tokens = rendered(card.text)
    assert texts[0] == shown(mark) and any(f"on {shown(without_folders(mark))}, from" in text for text in texts)
    assert any(f"Weights: {shown(mark)}" in text for text in texts)
    links = [kind for kind in kinds if kind.startswith("link to ")]
    known = ("https://hf.co/nowhere/", "https://arxiv.org/", "https://pypi.org/", "None")  # None: of pictures
    assert all(link.removeprefix("link to ").startswith(known) for link in links)
    assert not kinds & {"em_open", "html_inline", "s_open"} and "html_block" not in [token.type for token in tokens]
    code = next(token.content for token in tokens if token.type == "fence" and token.info == "python")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.keyword) and node.arg == "model"]
    assert [call.value.value for call in calls] == [" ".join(mark.split())]
    assert card.data.model_name == " ".join(mark.split())


def test_card_inherits_licence_and_lineage(tmp_path, hub):
    """Of a model on the Hub, and through the card of a folder that was trained from it."""
    base = "---\nlicense: other\nlicense_name: research-only\n---\n"
    api = huggingface_hub.HfApi()
    api.create_repo("me/base")
    api.upload_file(path_or_fileobj=base.encode(), path_in_repo="README.md", repo_id="me/base")
    settings = {"name": "run", "data": "scenes"}
    (tmp_path / "first").mkdir()
    write_card(tmp_path / "first", TEMPLATES[0], RESULTS, start="me/base", **settings)
    (tmp_path / "second").mkdir()
    card = ModelCard.load(write_card(tmp_path / "second", TEMPLATES[0], RESULTS, start=tmp_path / "first", **settings))
    assert (card.data.base_model, card.data.license, card.data.license_name) == ("me/base", "other", "research-only")
    assert "research-only; derived from [me/base]" in card.text


@pytest.mark.parametrize(
    ("start", "backbone", "licence", "text"),
    [
        ("me/base", Dinov2Config(), "research-only", "Its backbone is dinov2, of"),  # of the card on the Hub
        (
            "nowhere/dinov3-vits16",
            DINOv3ViTConfig(),
            "dinov3-license",
            "stay under the [DINOv3 License](https://ai.meta",
        ),
        ("weights", DINOv3ConvNextConfig(), "dinov3-license", "pass on a copy"),
        ("weights", TimmBackboneConfig(backbone="vit_small_patch16_dinov3"), "dinov3-license", "DINOv3"),
        ("weights", ConvNextV2Config(), "cc-by-nc-4.0", "non-commercial use only"),
        ("timm/vit_base_patch16_224.mae", TimmBackboneConfig(backbone="vit_base_patch16_224"), "cc-by-nc-4.0", "only"),
        (
            "timm/sam2_hiera_tiny.fb_r896",
            TimmBackboneConfig(backbone="sam2_hiera_tiny"),
            "apache-2.0",
            "sam2_hiera_tiny",
        ),
        (None, DINOv3ViTConfig(), None, "Its backbone is dinov3"),  # of random weights
        ("nowhere/dinov3-else", None, None, "from"),  # no backbone of another library
    ],
)
def test_card_has_the_licence_of_the_backbone(start, backbone, licence, text, tmp_path, hub):
    api = huggingface_hub.HfApi()
    api.create_repo("me/base", exist_ok=True)
    base = "---\nlicense: other\nlicense_name: research-only\n---\n"
    api.upload_file(path_or_fileobj=base.encode(), path_in_repo="README.md", repo_id="me/base")
    CASES["segformer"].row.config(backbone_config=backbone, decoder_stages=[0]).save_pretrained(tmp_path)
    card = ModelCard.load(write_card(tmp_path, TEMPLATES[0], RESULTS, name="run", data="scenes", start=start))
    assert (card.data.get("license_name") or card.data.license) == licence
    assert text in card.text and ("backbone is" in card.text) == (backbone is not None)
    card = ModelCard.load(
        write_card(tmp_path, TEMPLATES[0], RESULTS, name="run", data="scenes", start=start, license="mit")
    )
    assert card.data.license == ("other" if licence == "dinov3-license" else "mit")  # DINOv3's is not to be replaced


def test_folders_of_the_machine_stay_private(tmp_path, hub):
    text = "--train_dir /home/me/data/ade ~/weights/b0.pth https://hf.co/a/b me/data out/run 1/4 N/A (/opt/d)"
    assert without_folders(text) == "--train_dir ade b0.pth https://hf.co/a/b me/data out/run 1/4 N/A (d)"
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "all_results.json").write_text(json.dumps({"arguments": [f"--train_dir {tmp_path}/camvid", "--flip"]}))
    settings = {"name": "run", "data": f"{tmp_path}/camvid", "start": f"{tmp_path}/mit"}
    training = f"`--train_dir {tmp_path}/camvid`"
    card = write_card(run, TEMPLATES[0], RESULTS, training=training, **settings).read_text()
    assert str(tmp_path) not in card and "on camvid, from mit." in card and "`--train_dir camvid`" in card
    push(run, "me/run")
    uploaded = huggingface_hub.hf_hub_download("me/run", "all_results.json", cache_dir=tmp_path / "cache")
    assert json.loads(Path(uploaded).read_text()) == {"arguments": ["--train_dir camvid", "--flip"]}
    assert str(tmp_path) in (run / "all_results.json").read_text()  # here evaluate.py --from_card needs it


def test_curves_need_something_to_show():
    assert training_curves(RESULTS["evaluations"], RESULTS["losses"]).width == 2 * 560
    assert training_curves([], RESULTS["losses"]).width == 560
    with pytest.raises(ValueError, match="no evaluations and no losses"):
        training_curves([])


def test_tokens_are_checked(hub, monkeypatch):
    assert check_token() == "tester"
    with pytest.raises(ValueError, match="refuses the token"):
        check_token("hf_wrong")
    with pytest.raises(ValueError, match="may only read"):
        check_token("hf_read")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="no Hub token"):
        check_token()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ValueError, match="cannot be reached"):
        check_token("hf_fake")


def test_push_is_one_commit_and_can_be_repeated(tmp_path, hub, monkeypatch):
    CASES["segformer"].make_model().save_pretrained(tmp_path)
    SegFormerImageProcessor().save_pretrained(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "predictions.png")
    write_card(tmp_path, TEMPLATES[0], RESULTS, name="me/run", data="CamVid", dataset_name="me/camvid")
    for other in ("step_3/model.safetensors", ".partial-test"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    (tmp_path / "last").symlink_to("step_3")

    hub.is_broken = True
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    with pytest.raises(ValueError, match="is whole; to repeat the upload:\npython -m hf_segtx.hub"):
        push(tmp_path, "me/run")
    assert len(hub.repos["model", "me/run"]["commits"]) == 1  # the empty one
    hub.is_broken = False
    assert push(tmp_path, "me/run").endswith("/me/run")
    commits = hub.repos["model", "me/run"]["commits"]
    assert len(commits) == 2
    assert set(commits[-1][1]) - {".gitattributes"} == {
        "README.md", "curves.png", "predictions.png", ".eval_results/mean_iou.yaml", "config.json", "model.safetensors",
        "preprocessor_config.json", "configuration_segformer.py", "modeling_segformer.py", "segmentation_base.py",
        *(path.name for path in tmp_path.glob("*.py")),
    }  # fmt: skip
    with pytest.raises(ValueError, match="no config.json"):
        push(tmp_path / "step_3", "me/run")


@pytest.mark.slow
def test_training_pushes_the_final_model_and_no_token(tmp_path):
    """In a process of its own: the address of the Hub is read at import."""
    flags = ["--config_overrides", json.dumps(CASES["segformer"].config), "--max_train_steps", "2"]
    flags += ["--num_warmup_steps", "0", "--max_eval_samples", "2", "--per_device_train_batch_size", "2"]
    flags += ["--push_to_hub", "--hub_model_id", "me/scenes", "--output_dir", str(tmp_path / "out")]
    flags += ["--logging_steps", "1", "--evaluation_steps", "1"]
    if importlib.util.find_spec("tensorboard"):
        flags += ["--with_tracking", "--report_to", "tensorboard"]
    with FakeHub() as hub:
        environment = {**os.environ, **hub.env(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        del environment["HF_TOKEN"]
        command = [sys.executable, str(ROOT / "examples/train.py"), *flags]
        settings = {"capture_output": True, "text": True, "env": environment, "timeout": 600}
        refused = subprocess.run([*command, "--hub_token", "hf_wrong"], **settings)
        assert refused.returncode == 2 and "refuses the token" in refused.stderr and not (tmp_path / "out").exists()
        done = subprocess.run([*command, "--hub_token", "hf_fake"], **settings)
        assert done.returncode == 0, done.stderr
        assert len(hub.repos["model", "me/scenes"]["commits"]) == 2
        files = hub.repos["model", "me/scenes"]["commits"][-1][1]
    assert {"README.md", "curves.png", "predictions.png", "config.json", "model.safetensors"} <= set(files)
    assert not [file for file in files if file.startswith(("step_", "best", "last"))]
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    for text in (done.stdout.encode(), done.stderr.encode(), refused.stderr.encode(), *written, *files.values()):
        assert b"hf_fake" not in text and b"hf_wrong" not in text
