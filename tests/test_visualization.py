"""Pictures: every pixel against the palette and simple arithmetic."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segtx.visualization import color_map, comparison, label_png, legend, overlay, palette
from hf_segtx.visualization.label_maps import HATCH


COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def test_palette_is_distinct_and_grows_at_its_end():
    colors = palette(150)
    assert colors[:20] == palette(20) and len(set(palette(1000))) == 1000 and len(palette(1200)) == 1200
    differences = np.abs(np.array(colors)[:, None] - np.array(colors)).sum(-1)
    np.fill_diagonal(differences, 999)
    assert differences.min() >= 20  # of 765: the closest two of 150 classes can still be told apart
    assert differences[:12, :12].min() >= 80
    assert all(isinstance(value, int) and 0 <= value <= 255 for color in colors for value in color)


def test_color_map_matches_palette_and_leaves_void_black():
    label_map = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    expected = [[COLORS[0], COLORS[1], COLORS[2]], [COLORS[2], (0, 0, 0), COLORS[0]]]
    for same in (label_map, torch.from_numpy(label_map).long(), label_map.astype(np.uint16)):
        assert color_map(same, COLORS).tolist() == np.array(expected).tolist()
    assert color_map(np.array([[-100]]), COLORS, ignore_index=-100).tolist() == [[[0, 0, 0]]]
    with pytest.raises(ValueError, match="the id 3, but the palette has colours for 0 to 2 and void is 255"):
        color_map(np.array([[3]]), COLORS)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2\)"):
        color_map(np.zeros((1, 2, 2), int), COLORS)


def test_overlay_blends_inside_and_keeps_void():
    image = Image.new("RGB", (6, 4), (100, 100, 100))
    label_map = np.full((4, 6), 255)
    label_map[:, 3:] = 1
    result = np.asarray(overlay(image, label_map, COLORS, alpha=0.25))
    assert (result[:, :3] == 100).all()
    assert (result[:, 4:] == [75, 125, 75]).all()  # 0.75 * 100 + 0.25 * color
    assert np.array_equal(np.asarray(overlay(np.asarray(image), label_map, COLORS, alpha=0.25)), result)
    label_map[:, :3] = 0
    assert np.asarray(overlay(image, label_map, COLORS))[0, 2].tolist() == [200, 0, 0]  # border in full colour
    with pytest.raises(ValueError, match="label map is of size 3x4, but its image is 6x4"):
        overlay(image, label_map[:, :3], COLORS)


def test_label_png_keeps_ids_and_colors():
    label_map = np.array([[0, 1, 255], [2, 2, 1]])
    file = io.BytesIO()
    label_png(label_map, COLORS).save(file, format="png")
    image = Image.open(file)
    assert image.mode == "P" and np.asarray(image).tolist() == label_map.tolist()
    assert np.array_equal(np.asarray(image.convert("RGB")), color_map(label_map, COLORS))
    assert np.asarray(label_png(np.array([[-1]]), COLORS, ignore_index=-1)).tolist() == [[255]]
    with pytest.raises(ValueError, match="300 classes do not fit into an 8-bit mask"):
        label_png(label_map, palette(300))


def colors_of(picture: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


def test_legend_shows_the_classes_that_are_present():
    names = ["sky", "road", "tree"]
    assert set(COLORS) <= colors_of(legend(names, COLORS))
    some = colors_of(legend(names, COLORS, present=[0, 2], void=True))
    assert {COLORS[0], COLORS[2], *HATCH} <= some and COLORS[1] not in some
    narrow, wide = legend(names, COLORS, width=100), legend(names, COLORS, width=600)
    assert narrow.width == 100 and wide.width == 600 and narrow.height > 2 * wide.height
    legend([], [])  # nothing to show is no error


def test_comparison_of_images_of_different_sizes():
    names = ["sky", "road", "tree"]
    sizes = [(20, 40), (50, 25), (1, 90)]
    images = [np.full((*size, 3), 90, np.uint8) for size in sizes]
    labels = [np.zeros(size, np.uint8) for size in sizes]
    labels[0][:, :20] = 255
    predictions = [torch.ones(size, dtype=torch.long) for size in sizes]
    picture = comparison(images, labels, predictions, names, COLORS, panel_width=100)
    assert {COLORS[0], COLORS[1], *HATCH, (90, 90, 90)} <= colors_of(picture)
    assert COLORS[2] not in colors_of(picture)  # does not occur, neither in a panel nor in the legend
    truth = np.asarray(picture)[:, 100 + 2 * 12 :][:, :100].reshape(-1, 3).tolist()
    # half of a 100x50 panel, all of 100x200 and 100x1, and no other panel has this colour
    assert sum(tuple(color) == COLORS[0] for color in truth) == pytest.approx(50 * 50 + 200 * 100 + 100, abs=300)
    with pytest.raises(ValueError, match="3 images, 2 labels, 3 predictions"):
        comparison(images, labels[:2], predictions, names, COLORS)
    with pytest.raises(ValueError, match="prediction is of size 40x20, but its image is 25x50"):
        comparison(images[1:2], labels[1:2], predictions[:1], names, COLORS)
