"""What a model looks at: sums over loops, plain geometry, and the pictures of the command."""

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CASES

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.cli import main
from hf_segtx.inference import predict
from hf_segtx.models.configuration_ocrnet import OCRNetConfig
from hf_segtx.models.configuration_segmenter import SegmenterConfig
from hf_segtx.models.configuration_setr import SETRConfig
from hf_segtx.models.image_processing_segtx import OCRNetImageProcessor, SegmenterImageProcessor
from hf_segtx.models.modeling_ocrnet import OCRNetForSemanticSegmentation
from hf_segtx.models.modeling_segmenter import SegmenterForSemanticSegmentation
from hf_segtx.models.modeling_setr import SETRForSemanticSegmentation
from hf_segtx.prediction.explain import look_from_place
from hf_segtx.prediction.gradients import follow_gradients
from hf_segtx.prediction.occlusion import occlusion
from hf_segtx.visualization import (
    attention_picture,
    class_embedding_coordinates,
    distance_picture,
    embedding_picture,
    mean_attention_distance,
    palette,
    patch_attention,
    region_picture,
)


GRID, PATCH = (3, 4), 16


def random_weights(heads=2, prefix=1):
    tokens = prefix + GRID[0] * GRID[1]
    return torch.randn(heads, tokens, tokens).softmax(-1)


def test_patch_attention_is_the_row_of_the_patch():
    weights = random_weights(prefix=2)
    maps = patch_attention(weights, (1, 3), GRID)
    assert maps.shape == (2, 3, 4)
    for head in range(2):
        for row in range(3):
            for column in range(4):
                assert maps[head, row, column] == weights[head, 2 + 1 * 4 + 3, 2 + row * 4 + column]
    for patch in ((3, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match="is outside the grid; rows go from 0 to 2, columns from 0 to 3"):
            patch_attention(weights, patch, GRID)
    with pytest.raises(ValueError, match=r"attention weights of shape \(2, 14, 14\) for a grid of 8x8 patches"):
        patch_attention(weights, (0, 0), (8, 8))


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_mean_attention_distance_matches_loops(prefix):
    weights = random_weights(prefix=prefix)
    expected = np.zeros(2)
    places = [(row * PATCH, column * PATCH) for row in range(GRID[0]) for column in range(GRID[1])]
    for head in range(2):
        for i, (y, x) in enumerate(places):
            seen = weights[head, prefix + i, prefix:].numpy()
            distances = [((y - other_y) ** 2 + (x - other_x) ** 2) ** 0.5 for other_y, other_x in places]
            expected[head] += np.average(distances, weights=seen) / len(places)
    np.testing.assert_allclose(mean_attention_distance(weights, GRID, PATCH), expected, rtol=1e-5)  # float32
    to_itself = torch.eye(prefix + 12)[None]
    assert mean_attention_distance(to_itself, GRID, PATCH).tolist() == [0]


def test_class_embedding_coordinates_are_the_plane_of_a_flat_cloud():
    flat = np.random.randn(9, 2) * (3, 1)
    rotation = np.linalg.qr(np.random.randn(6, 6))[0][:2]  # two orthonormal rows
    coordinates = class_embedding_coordinates(torch.from_numpy(flat @ rotation + 5))
    distances, expected = (np.linalg.norm(points[:, None] - points, axis=-1) for points in (coordinates, flat))
    np.testing.assert_allclose(distances, expected, atol=1e-9)  # a rotation and a shift: float64 rounding
    assert coordinates[:, 0].std() > coordinates[:, 1].std()
    assert (coordinates.max(0) == np.abs(coordinates).max(0)).all()
    with pytest.raises(ValueError, match=r"shape \(1, 6\)"):
        class_embedding_coordinates(np.zeros((1, 6)))


def test_attention_picture_frames_the_patch_and_is_brightest_at_the_largest_weight():
    image = Image.new("RGB", (64, 48), (0, 0, 255))
    maps = np.zeros((1, 2, 3, 4))
    maps[0, 1, 2, 3] = 0.5
    picture = np.asarray(attention_picture(image, maps, (0, 0), layers=[7])).astype(int)
    red = np.argwhere((picture == (230, 0, 0)).all(-1))
    blue = np.argwhere((picture == (0, 0, 255)).all(-1))
    np.testing.assert_allclose(red.min(0), blue.min(0), atol=5)  # pixels: the frame is around the first patch
    assert (np.ptp(red, 0) < np.ptp(blue, 0) / 2).all()
    bright = np.argwhere((picture == (252, 253, 191)).all(-1))
    assert len(bright) == 30 * 30 and bright[:, 0].min() > blue[:, 0].max()  # a patch of a panel 120 wide, below


def test_distance_picture_draws_a_dot_a_head_at_its_height():
    picture = np.asarray(distance_picture([[10.0], [90.0]], longest=100))
    dots = np.argwhere((picture == palette(1)[0]).all(-1))
    left, right = dots[dots[:, 1] < 360], dots[dots[:, 1] >= 360]
    top, bottom = 15, 480 - 55  # of the axes, in pixels
    for found, distance in ((left, 10), (right, 90)):
        assert found[:, 0].mean() == pytest.approx(bottom - distance / 100 * (bottom - top), abs=2)


def test_embedding_picture_draws_every_class():
    colors = palette(5)
    points = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]])
    picture = embedding_picture(points, list("abcde"), colors)
    assert set(colors) <= {color for _, color in picture.getcolors(2**20)}


def test_region_picture_shows_regions_beside_relations():
    relation = np.zeros((10, 3, 4))
    relation[7] = 1
    region_maps = np.full((10, 3, 4), 1 / 12)
    image, names = Image.new("RGB", (64, 48), (0, 0, 255)), [str(k) for k in range(10)]
    alone = np.asarray(region_picture(image, region_maps, relation, names, classes=[7]))
    dark = np.asarray(region_picture(image, region_maps, relation, names, classes=[3]))
    panel = 240 * 180  # pixels; the region map is even and so is all at its largest value
    bright = [(picture == (252, 253, 191)).all(-1).sum() for picture in (alone, dark)]
    assert bright == [2 * panel, panel]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command in this process, with this model, into the folder `out`; returns its exit status and that folder."""

    def run(model, processor, *words):
        monkeypatch.setattr("hf_segtx.cli.explain.load", lambda name, settings: (model.eval(), processor))
        output = tmp_path / "out"
        status = main(["explain", "model", *map(str, words), "--output_dir", str(output)])
        return status, sorted(file.name for file in output.iterdir() if file.name != ".segtx_results")

    return run


def write_photos(folder, *names):
    for name in names:
        Image.fromarray(np.random.randint(0, 256, (60, 90, 3), dtype=np.uint8)).save(folder / name)
    return [folder / name for name in names]


TINY = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, num_labels=5)
MODELS = {
    "segmenter mask": lambda: SegmenterForSemanticSegmentation(SegmenterConfig(**TINY)),
    "segmenter linear deit": lambda: SegmenterForSemanticSegmentation(
        SegmenterConfig(**TINY, decode_head="linear", use_distillation_token=True)
    ),
    "setr naive": lambda: SETRForSemanticSegmentation(SETRConfig(**TINY, decode_head="naive")),
    "setr mla": lambda: SETRForSemanticSegmentation(SETRConfig(**TINY, decode_head="mla")),
}


@pytest.mark.parametrize("name", MODELS)
def test_command_writes_its_pictures(name, run, tmp_path, capsys):
    model, processor = MODELS[name](), SegmenterImageProcessor(size={"height": 50, "width": 70})
    files = write_photos(tmp_path, "street.png", "field.png")
    words = [*files, "--pixel", "55", "80", "--layers", "0", "3"]
    expected = ["class_embeddings.csv", "class_embeddings.png", "distances.csv", "distances.png"]
    expected += ["field_attention.png", "field_classes.png", "receptive_fields.png"]
    expected += ["street_attention.png", "street_classes.png"]
    for _ in range(2):  # what it wrote may be replaced
        assert run(model, processor, *words) == (0, expected)
    table = np.loadtxt(tmp_path / "out/distances.csv", delimiter=",", skiprows=1)
    assert table.shape == (4, 3)
    # nearly even attention of a random network on 4x5 patches: about the mean distance of two patches
    assert table[:, 1:] == pytest.approx(32, abs=10)
    capsys.readouterr()
    for wrong, said in (
        (["--layers", "4"], "--layers [4]; there are 0 to 3"),
        (["--pixel", "60", "0"], "--pixel (60, 0) is outside"),
        (["--pixel", "1"], "--pixel has 1 values"),
        (["drive.mp4"], "drive.mp4: there is no such file or folder"),
    ):
        assert run(model, processor, *files, *wrong)[0] == 2
        assert said in capsys.readouterr().err


def test_command_draws_the_regions_of_ocrnet(run, tmp_path):
    """Two pictures of one name, and a file of the user in the place of a result."""
    config = OCRNetConfig(
        num_labels=5, backbone_type="resnet", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8
    )
    model, processor = OCRNetForSemanticSegmentation(config), OCRNetImageProcessor(do_resize=False)
    files = write_photos(tmp_path, "street.png", "street.jpg")
    results = ["class_embeddings.csv", "class_embeddings.png", "receptive_fields.png"]
    results += [
        f"street.{kind}" for kind in ("jpg_classes.png", "jpg_regions.png", "png_classes.png", "png_regions.png")
    ]
    assert run(model, processor, *files) == (0, results)
    (tmp_path / "out/street.jpg_regions.png").write_bytes(b"mine")
    assert run(model, processor, *files)[0] == 2
    assert (tmp_path / "out/street.jpg_regions.png").read_bytes() == b"mine"


def test_command_draws_the_attention_of_segformer(run, tmp_path):
    """From the chosen place to the reduced keys, against the weights that the model itself returns."""
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
    torch.manual_seed(0)
    model = SegFormerForSemanticSegmentation(SegFormerConfig(**sizes, decoder_hidden_size=16, num_labels=3))
    processor = SegFormerImageProcessor(do_resize=False, size_divisor=32)
    results = ["class_embeddings.csv", "class_embeddings.png", "receptive_fields.png"]
    results += ["street_attention.png", "street_classes.png"]
    (file,) = write_photos(tmp_path, "street.png")
    assert run(model, processor, file, "--pixel", "21", "70") == (0, results)
    model.set_attn_implementation("eager")
    pixel_values = processor(Image.open(file), return_tensors="pt")["pixel_values"]  # (1, 3, 64, 96)
    maps, _ = look_from_place(model, pixel_values, (5, 17), (16, 24))
    weights = model(pixel_values, output_attentions=True).attentions
    assert [m.shape for m in maps] == [(1, 2, 3), (2, 2, 3), (2, 2, 3), (2, 2, 3), (4, 2, 3)]
    for row, column, stride, layer in ((5, 17, 24, 0), (2, 8, 12, 1), (2, 8, 12, 2), (1, 4, 6, 3), (0, 2, 3, 4)):
        expected = weights[layer][0, :, row * stride + column].reshape(-1, 2, 3)
        np.testing.assert_allclose(maps[layer], expected.detach(), atol=1e-6)  # float32, the same operations


class Identity(torch.nn.Module):
    """A "network" of known gradients: two maps, the second twice the sum over 2x2 pixels; logits are its channels."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.config = SimpleNamespace(id2label={0: "sky", 1: "road"})

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.backbone(pixel_values).feature_maps[-1] * 3)


class Backbone(torch.nn.Module):
    def forward(self, pixel_values):
        first = pixel_values[:, :2]
        return SimpleNamespace(feature_maps=(first, 8 * torch.nn.functional.avg_pool2d(first, 2)))


def test_gradients_by_hand():
    pixels = torch.zeros(1, 3, 4, 6)
    pixels[0, 0, :, :4], pixels[0, 1, :, 4:] = 1, 2  # class 0 left, class 1 right
    found = follow_gradients(Identity(), pixels)
    assert found.largest_classes(2) == [0, 1] and found.name(1) == "road"
    # d (sum of logit 0 over its 4 cells) / d (map 0) is 3 in those 4 of 6 cells: the mean, 2, weights the map of 8s
    np.testing.assert_allclose(found.class_activation(0), [[16, 16, 0]] * 2)
    np.testing.assert_allclose(found.class_activation(1), [[0, 0, 16]] * 2)  # 3 in 2 of 6 cells, times 16
    fields, titles = found.receptive_fields()
    assert titles == ["map 1, 1/1", "map 2, 1/2", "logits, 1/2"]
    first, second, last = np.zeros((3, 4, 6))
    first[2, 3] = 2  # two channels
    second[2:4, 2:4] = 2 * 8 / 4
    np.testing.assert_allclose(fields[0], first)
    np.testing.assert_allclose(fields[1], second)
    np.testing.assert_allclose(fields[2], 3 * second)


def test_fields_of_a_convolution_end_where_it_does(run, tmp_path):
    """OCRNet's ResNet, a map before any context: nothing from beyond the kernels."""
    config = OCRNetConfig(
        num_labels=5, backbone_type="resnet", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8
    )
    torch.manual_seed(0)
    found = follow_gradients(OCRNetForSemanticSegmentation(config).eval(), torch.randn(1, 3, 128, 128))
    fields, _ = found.receptive_fields()
    assert (fields[0] > 0).any() and (fields[0][:32] == 0).all() and (fields[0][:, 96:] == 0).all()
    assert (fields[-1][:8] > 0).any()  # context reaches everywhere


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_is_explained(name, run, tmp_path):
    case = CASES[name]
    processor = case.row.processor(do_resize=False, size_divisor=32)
    status, files = run(case.make_model(), processor, *write_photos(tmp_path, "street.png"))
    assert status == 0 and {"street_classes.png", "receptive_fields.png"} <= set(files)


def test_one_class_is_explained(run, tmp_path):
    """A sigmoid: no class embeddings, and the class is not called background."""
    model = CASES["segformer"].make_model(num_labels=1)
    processor = SegFormerImageProcessor(do_resize=False)
    status, files = run(model, processor, *write_photos(tmp_path, "street.png"))
    assert status == 0 and files == ["receptive_fields.png", "street_attention.png", "street_classes.png"]
    assert follow_gradients(model, torch.randn(1, 3, 64, 64)).name(0) == "LABEL_0"


class Looking(torch.nn.Module):
    """Logits of which class 1, everywhere, is a weighted sum over the picture; of one class, that alone."""

    def __init__(self, weights, classes=2):
        super().__init__()
        self.weights, self.classes = weights, classes

    def forward(self, pixel_values):
        of_class = (pixel_values * self.weights).sum((1, 2, 3))[:, None, None, None].expand(-1, 1, 3, 4)
        zero = torch.zeros_like(of_class)
        return SimpleNamespace(logits=torch.cat([zero, of_class], 1) if self.classes == 2 else of_class)


@pytest.mark.parametrize("classes", [1, 2])
def test_occlusion_matches_loops(classes):
    torch.manual_seed(0)
    weights, pixels, side = torch.randn(3, 9, 14) / 10, torch.randn(1, 3, 9, 14), 4
    model = Looking(weights, classes)
    masks = torch.rand(1, 3, 4) > 0.5
    found = occlusion(model, pixels, [classes - 1], masks, side)

    def score(pixel_values):
        return torch.sigmoid((pixel_values[0] * weights).sum()).item()  # of 0 and x, too

    total, count = np.zeros((2, 9, 14))
    for top in (0, 2, 4, 5):
        for left in (0, 2, 4, 6, 8, 10):
            covered = pixels.clone()
            covered[:, :, top : top + side, left : left + side] = 0
            for row in range(top, top + side):
                for column in range(left, left + side):
                    total[row, column] += score(pixels) - score(covered)
                    count[row, column] += 1
    assert found.shape == (1, 9, 14)
    np.testing.assert_allclose(found[0], total / count, atol=1e-5)  # float32


def test_occlusion_finds_what_the_class_rests_on():
    weights = torch.zeros(3, 40, 64)
    weights[:, 8:16, 24:32] = 1
    model = Looking(weights)
    fall = occlusion(model, torch.full((1, 3, 40, 64), 0.01), [0, 1], torch.ones(2, 3, 4, dtype=torch.bool))
    row, column = np.unravel_index(fall[1].argmax(), (40, 64))
    assert 8 <= row < 16 and 24 <= column < 32
    assert fall[1][8:16, 24:32].min() > 0 and fall[1][24:].max() == 0 and fall[1][:, 40:].max() == 0
    np.testing.assert_allclose(fall[0], -fall[1], atol=1e-6)  # what one class loses, the other gains


def test_command_draws_occlusion(run, tmp_path, monkeypatch):
    """Of the classes in the picture over their pixels, or of the class at a place, padding left aside."""
    seen = []

    def spy(model, pixel_values, classes, masks, side):
        seen.append((pixel_values, classes, masks, side))
        return occlusion(model, pixel_values, classes, masks, side)

    monkeypatch.setattr(sys.modules["hf_segtx.prediction.explain"], "occlusion", spy)  # the package has a function so
    case = CASES["segformer"]
    model, processor = case.make_model(), case.row.processor(do_resize=False, size_divisor=32)
    photos = write_photos(tmp_path, "street.png")  # 60x90, padded to 64x96
    for words in ([], ["--pixel", "59", "89"]):
        status, files = run(model, processor, *photos, "--occlusion", "--occlusion_side", "30", *words)
        assert status == 0 and "street_occlusion.png" in files
    (pixel_values, classes, masks, side), (_, (at_pixel,), mask, _) = seen
    best = model(pixel_values).logits[0].argmax(0)
    assert side == 30 and set(classes) == set(best.unique().tolist())
    assert all(torch.equal(mask, best == index) for index, mask in zip(classes, masks, strict=True))
    assert mask.nonzero().tolist() == [[0, 14, 22]] and at_pixel == best[14, 22]  # 59.5 / 64 * 16 and 89.5 / 96 * 24


def test_models_are_compared(tmp_path, monkeypatch, capsys):
    """Against label maps that are counted pixel by pixel."""
    case = CASES["segformer"]
    torch.manual_seed(0)
    models = [case.make_model(), CASES["ocrnet"].make_model()]
    processor = SegFormerImageProcessor(do_resize=False)
    photos = write_photos(tmp_path, "street.png", "lane.png")
    monkeypatch.setattr("hf_segtx.cli.explain.load", lambda name, settings: (models[name == "other"].eval(), processor))
    assert main(["explain", "model", *map(str, photos), "--other", "other", "--output_dir", str(tmp_path / "two")]) == 0
    found = {file.name for file in (tmp_path / "two").iterdir()}
    assert {"street_differences.png", "lane_differences.png", "receptive_fields.png"} <= found
    expected = {}
    for photo in photos:
        first, second = (predict(model, processor, [Image.open(photo)])[0].tolist() for model in models)
        for here, there in zip(sum(first, []), sum(second, []), strict=True):
            if here != there:
                expected[f"LABEL_{here}", f"LABEL_{there}"] = expected.get((f"LABEL_{here}", f"LABEL_{there}"), 0) + 1
    with open(tmp_path / "two/differences.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert {(here, there): int(pixels) for here, there, pixels, _ in rows} == expected and len(expected) > 0
    assert [int(row[2]) for row in rows] == sorted((int(row[2]) for row in rows), reverse=True)
    assert sum(float(row[3]) for row in rows) == pytest.approx(sum(expected.values()) / (2 * 60 * 90), abs=1e-4)
    models[1] = case.make_model(num_labels=3)
    assert main(["explain", "model", *map(str, photos), "--other", "other", "--output_dir", str(tmp_path / "two")]) == 2
    assert "the models have other classes" in capsys.readouterr().err


def test_models_that_see_windows_are_shown_the_whole_picture(run, tmp_path):
    case = CASES["segmenter"]
    whole = case.row.processor(do_resize=False, size_divisor=8)
    photos = write_photos(tmp_path, "street.png")
    model = case.make_model()
    pictures = []
    for processor in (whole, case.row.processor(do_resize=False, size_divisor=8, window_size=32)):
        run(model, processor, *photos)
        pictures.append((tmp_path / "out/street_classes.png").read_bytes())
    assert pictures[0] == pictures[1]
