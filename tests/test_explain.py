"""What a Vision Transformer looks at: sums over loops, plain geometry, and the pictures of the command."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.cli import main
from hf_segtx.models.configuration_ocrnet import OCRNetConfig
from hf_segtx.models.configuration_segmenter import SegmenterConfig
from hf_segtx.models.configuration_setr import SETRConfig
from hf_segtx.models.image_processing_segtx import OCRNetImageProcessor, SegmenterImageProcessor
from hf_segtx.models.modeling_ocrnet import OCRNetForSemanticSegmentation
from hf_segtx.models.modeling_segmenter import SegmenterForSemanticSegmentation
from hf_segtx.models.modeling_setr import SETRForSemanticSegmentation
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
    words = [*files, "--patch", "3", "4", "--layers", "0", "3"]
    expected = ["class_embeddings.csv", "class_embeddings.png", "distances.csv", "distances.png"]
    expected += ["field_attention.png", "street_attention.png"]
    for _ in range(2):  # what it wrote may be replaced
        assert run(model, processor, *words) == (0, expected)
    table = np.loadtxt(tmp_path / "out/distances.csv", delimiter=",", skiprows=1)
    assert table.shape == (4, 3)
    # nearly even attention of a random network on 4x5 patches: about the mean distance of two patches
    assert table[:, 1:] == pytest.approx(32, abs=10)
    capsys.readouterr()
    for wrong, said in (
        (["--layers", "4"], "--layers [4]; there are 0 to 3"),
        (["--patch", "9", "0"], "--patch (9, 0) is outside the grid"),
        (["--patch", "1"], "--patch has 1 values"),
        (["drive.mp4"], "drive.mp4: no pictures or videos"),
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
    results = ["class_embeddings.csv", "class_embeddings.png", "street.jpg_regions.png", "street.png_regions.png"]
    assert run(model, processor, *files) == (0, results)
    (tmp_path / "out/street.jpg_regions.png").write_bytes(b"mine")
    assert run(model, processor, *files)[0] == 2
    assert (tmp_path / "out/street.jpg_regions.png").read_bytes() == b"mine"


def test_model_without_attention_explains_its_classes_only(run, tmp_path, capsys):
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
    model = SegFormerForSemanticSegmentation(SegFormerConfig(**sizes, num_labels=3))
    processor = SegFormerImageProcessor(do_resize=False)
    assert run(model, processor) == (0, ["class_embeddings.csv", "class_embeddings.png"])
    assert run(model, processor, *write_photos(tmp_path, "street.png"))[0] == 2
    assert "give no images, for the class embeddings only" in capsys.readouterr().err
