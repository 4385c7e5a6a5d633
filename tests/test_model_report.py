"""The report on a model: what the page says beside what was measured, and typical errors beside loops."""

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from demo_models import save_model
from PIL import Image
from test_calibration import VOID, slow_error
from tiny import CASES

from hf_segtx import SegFormerImageProcessor, html_page
from hf_segtx.calibration import calibrate
from hf_segtx.cli import main
from hf_segtx.data import Labels, load_data
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.error_analysis import confusion_pairs
from hf_segtx.evaluation import score
from hf_segtx.inference import evaluate, load_model, segment
from hf_segtx.model_report import write_report
from hf_segtx.typical_errors import OUTLINE, k_means, largest_regions, typical_errors


IMAGES = 3


class Reader(HTMLParser):
    """Texts of the cells of each table, and all other texts; tags that are not closed are an error."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tables, self.texts, self.images = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        elif "style" not in self.open:
            self.texts.append(data)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), size={"shortest_edge": 64})


def data():
    return load_data(max_eval_samples=IMAGES)[1:]


@pytest.mark.parametrize("views", [{}, {"scales": [0.5, 1], "flip": True}], ids=["one view", "several views"])
def test_page_says_what_was_measured(views, checkpoint, tmp_path, capsys):
    words = ["--scales", "0.5", "1", "--flip"] * bool(views)
    words += ["--max_eval_samples", str(IMAGES), "--html", str(tmp_path / "report.html"), "--worst", "2"]
    assert main(["evaluate", str(checkpoint), *words]) == 0
    shown = capsys.readouterr().out
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    model, processor = load_model(checkpoint)
    dataset, labels = data()
    scores = evaluate(model, processor, dataset, progress=False, **views)
    classes, confusions = page.tables
    names = list(labels.id2label.values())
    assert [row[0] for row in classes[1:]] == [*names, "mean", "objects"]
    iou = [f"{100 * value:.2f}" if value == value else "-" for value in scores["per_category_iou"]]
    assert [row[1] for row in classes[1:-1]] == [*iou, f"{100 * scores['mean_iou']:.2f}"]
    pairs = confusion_pairs(scores["confusion_matrix"], names)
    assert [row[:2] for row in confusions[1:]] == [[pair["truth"], pair["prediction"]] for pair in pairs]
    assert [row[2] for row in confusions[1:]] == [f"{100 * pair['share_of_class']:.2f}" for pair in pairs]
    confidences, hits = [], []
    for item in dataset:
        result = segment(model, processor, [item["image"]], return_uncertainty=True, **views)[0]
        label = torch.as_tensor(item["label"])
        confidences += result.confidence[label != labels.ignore_index].tolist()
        hits += (result.label_map == label)[label != labels.ignore_index].tolist()
    error = f"{100 * slow_error(confidences, hits):.2f} %"
    text = " ".join(page.texts)
    assert f"how far confidence and truth are apart, is {error}" in text and error in shown
    assert scores["data_fingerprint"] in text and f"Report on {checkpoint}" in page.texts
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.images)
    decoded = [Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) for image in page.images]
    assert (
        len([image for image in page.images if image["alt"].startswith("truth; ")]) == 2 and min(decoded[0].size) > 99
    )
    assert any("stands for" in image["alt"] for image in page.images)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", (tmp_path / "report.html").read_text())


def test_temperature_is_saved_with_the_model(tmp_path, capsys):
    folder = save_model(tmp_path / "model", size={"shortest_edge": 64})
    before = load_model(folder)[1].to_dict()
    words = [str(folder), "--max_eval_samples", str(IMAGES), "--calibrate", "--mode", "slide", "--window_size", "64"]
    assert main(["evaluate", *words]) == 0
    after = load_model(folder)[1].to_dict()
    assert 0.1 <= after["temperature"] <= 10 and f"temperature {after['temperature']:.3f}" in capsys.readouterr().out
    assert after == before | {"temperature": after["temperature"]}  # and no windows
    for wrong, said in (
        (["nobody/nothing", "--calibrate"], "--calibrate saves into the folder of a model"),
        ([str(folder), "--calibrate", "--flip"], "averages of several need another one; omit --scales and --flip"),
        ([str(folder), "--html", "x.html", "--classes_only"], "--html shows what --classes_only omits"),
    ):
        assert main(["evaluate", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_texts_of_users_are_shown_as_they_are():
    words = '<b>"&'
    rows = [[words, 1.0, None], [html_page.code(words), float("nan"), 3]]
    parts = [html_page.paragraph(words), html_page.table([words, "b", "c"], rows), html_page.points([words])]
    parts += [html_page.color_key([words], [(1, 2, 3)]), html_page.picture(Image.new("RGB", (9, 9)), words)]
    page = Reader(html_page.page(words, parts))
    assert page.tables == [[[words, "b", "c"], [words, "1.00", "-"], [words, "-", "3"]]]
    assert page.images[0]["alt"] == words and page.texts.count(words) == 5


def test_groups_are_found():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(place, 0.1, (count, 2)) for place, count in ((0, 5), (4, 9), (9, 3))])
    group_of, centres = k_means(points, 3)
    assert sorted(np.bincount(group_of).tolist()) == [3, 5, 9]
    for number, centre in enumerate(centres):
        np.testing.assert_allclose(centre, points[group_of == number].mean(0))
    group_of, centres = k_means(np.ones((4, 2)), 3)
    assert group_of.tolist() == [0] * 4 and centres.shape == (1, 2)


def test_regions_are_the_largest_that_touch():
    mask = np.zeros((60, 80), bool)
    mask[:10, :10], mask[10:20, 10:20] = True, True  # touch at a corner: 200 pixels
    mask[30:40, 30:39], mask[50:58, 0:8], mask[50:57, 40:49], mask[30, 60:70] = True, True, True, True
    regions = largest_regions(mask)
    assert [int(region.sum()) for region in regions] == [200, 90, 64] and regions[0][15, 15] and regions[0][5, 5]
    assert largest_regions(np.zeros((9, 9), bool)) == []


class Seeing(torch.nn.Module):
    """Takes red for class 1, and its features are the colours."""

    def __init__(self):
        super().__init__()
        self.backbone = Colours()
        self.config = SimpleNamespace(num_labels=2)

    def forward(self, pixel_values):
        colours = self.backbone(pixel_values).feature_maps[-1]
        return SimpleNamespace(logits=torch.cat([0.5 - colours[:, :1], colours[:, :1] - 0.5], 1))


class Colours(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        return SimpleNamespace(feature_maps=(torch.nn.functional.avg_pool2d(pixel_values * self.weight, 2),))


def test_typical_errors_are_of_each_kind():
    """Red and violet squares on black where the truth is 0: seven of one kind, two of the other."""
    items = []
    for index, colours in enumerate(["rrv", "rrr", "rrv"]):
        pixels = np.zeros((64, 96, 3), np.uint8)
        for place, colour in enumerate(colours):
            left, side = 4 + 32 * place, 12 + 2 * index
            pixels[8 : 8 + side, left : left + side] = (255, 0, 0) if colour == "r" else (255, 0, 250)
        items.append({"image": Image.fromarray(pixels), "label": np.zeros((64, 96), np.uint8), "name": f"n{index}"})
    processor = SegFormerImageProcessor(
        do_resize=False, image_mean=[0, 0, 0], image_std=[1, 1, 1], size_divisor=None, minimum_size=None
    )
    red, none = typical_errors(Seeing().eval(), processor, items, [(0, 1), (1, 0)], groups=2)
    assert none == [] and [error.group for error in red] == [7, 2]
    for error, colour in zip(red, ((255, 0, 0), (255, 0, 250)), strict=True):
        assert error.pixels in (144, 196, 256) and error.name in ("n0", "n1", "n2")
        outline = np.argwhere((np.asarray(error.picture) == OUTLINE).all(-1))
        row, column = (outline.min(0) + outline.max(0)) // 2
        assert np.ptp(outline, 0).tolist() == pytest.approx([2.5 * error.pixels**0.5] * 2, abs=3)  # enlarged 2.5 times
        assert error.picture.getpixel((int(column), int(row))) == colour


class Scenes(torch.utils.data.Dataset):
    """Three scenes; of one class only whether a pixel belongs to the first."""

    def __init__(self, classes, names):
        self.scenes, self.classes = SceneDataset(3, seed=4, size=(60, 90)), classes
        self.labels = self.scenes.labels if classes > 1 else Labels(names=names, ignore_index=VOID)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        item = self.scenes[index]
        if self.classes > 1:
            return item
        return item | {"label": np.where(item["label"] == VOID, VOID, item["label"] == 0).astype(np.uint8)}


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "window"), [(1, 32), (8, None)])
@pytest.mark.parametrize("name", CASES)
def test_every_architecture_gets_a_report(name, classes, window, tmp_path):
    folder = save_model(tmp_path / "model", name, num_labels=classes, do_resize=False, window_size=window)
    model, processor = load_model(folder)
    dataset = Scenes(classes, list(model.config.id2label.values()))
    scores = score(model, processor, dataset, dataset.labels)
    calibration = calibrate(model, processor, dataset)
    results = {"model": name, "data": "scenes", **scores.results}
    write_report(tmp_path / "a/b.html", model, processor, dataset, dataset.labels, results, scores.worst, calibration)
    page = Reader((tmp_path / "a/b.html").read_text())
    assert len(page.images) >= 1 + 3 * 3 and f"Report on {name}" in page.texts
    assert len(page.tables[0]) == len(dataset.labels.id2label) + 3  # with names, mean and numbers of objects
