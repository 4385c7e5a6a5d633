"""Drawing of annotations, held against COCO's own tools, and outlines, which drawing must turn into the same map."""

import numpy as np
import pytest

from hf_segtx.data.annotations import (
    AnnotatedMask,
    Overlap,
    decode_runs,
    describe_overlap,
    draw,
    encode_runs,
    fill,
    labels_of_names,
    overlap_of,
    raw_ids,
)
from hf_segtx.data.labels import Labels
from hf_segtx.data.outlines import find_regions, joined


def filled(parts, size):
    inside = np.zeros(size, bool)
    place, pixels, _ = fill(parts, size)
    inside[place] = pixels
    return inside


def rectangle(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def test_polygons_have_the_pixels_of_cocos_tools():
    """Random ones that cross themselves and leave the image, with whole and fractional coordinates; every pixel."""
    mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for number in range(400):
        size = tuple(random.integers(1, 60, 2).tolist())
        points = random.uniform(-0.2, 1.2, (random.integers(3, 9), 2)) * size[::-1]
        points = np.round(points) if number % 3 == 0 else points
        points[1] = points[0] if number % 7 == 0 else points[1]
        polygons = [points.ravel().tolist(), (points[::-1] + 5).ravel().tolist()][: 1 + number % 2]
        expected = mask.decode(mask.merge(mask.frPyObjects(polygons, *size))).astype(bool)
        assert np.array_equal(filled(polygons, size), expected), (size, polygons)


def test_a_rectangle_has_the_pixels_between_its_sides():
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:7] = True
    assert np.array_equal(filled([rectangle(2, 1, 7, 4)], (6, 8)), expected)


@pytest.mark.parametrize(
    "part", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 0, float("nan"), 1], ["a"] * 6, [[1], 2]]
)
def test_what_is_no_polygon_is_refused(part):
    with pytest.raises(ValueError, match="is no polygon; give x and y of three points or more"):
        fill([part], (4, 4))


def test_run_lengths_are_those_of_cocos_tools():
    mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for number in range(100):
        size = tuple(random.integers(1, 70, 2).tolist())
        inside = random.random(size) < (0.0, 0.1, 0.5, 1.0)[number % 4]
        if number % 3:
            inside = np.repeat(np.repeat(inside, 9, 0), 5, 1)
        packed = mask.encode(np.asfortranarray(inside.astype(np.uint8)))
        assert np.array_equal(decode_runs(packed["counts"], inside.shape), inside)
        assert np.array_equal(decode_runs(packed["counts"].decode(), inside.shape), inside)
        counts = encode_runs(inside)
        assert mask.frPyObjects({"size": list(inside.shape), "counts": counts}, *inside.shape) == packed
        assert np.array_equal(decode_runs(counts, inside.shape), inside)
    for wrong in ([5], [-1, 7], [2.5, 3.5], "0"):
        with pytest.raises(ValueError, match=r"the runs cover -?\d+ pixels, the mask has 2 x 3"):
            decode_runs(wrong, (2, 3))


def test_the_last_shape_is_on_top_or_the_smaller_one():
    """Two rectangles share 2 x 3 pixels, two of one class 1 x 3; and a polygon in another one is no hole."""
    small, large = rectangle(0, 0, 4, 3), rectangle(2, 0, 10, 3)
    mask, overlap = draw((3, 10), [(1, [small]), (2, [large]), (2, [rectangle(9, 0, 10, 3)])])
    assert mask[0].tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 2, 2] and overlap == Overlap(9, 6, 0)
    mask, overlap = draw((3, 10), [(1, [small]), (2, [large])], background=255, by_size=True)
    assert mask[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2] and overlap == Overlap(6, 6, 0)
    ring = [rectangle(0, 0, 9, 9), rectangle(3, 3, 6, 6)]
    assert draw((9, 9), [(1, ring)])[0].all() and draw((9, 9), [(1, ring[::-1])])[1] == Overlap(0, 0, 1)
    assert draw((2, 2), [(1200, [rectangle(0, 0, 1, 1)])])[0].tolist() == [[1200, 0], [0, 0]]


def test_overlaps_are_counted_when_masks_are_drawn():
    masks = [AnnotatedMask("a", lambda: ((2, 4), [(1, [rectangle(0, 0, 3, 2)]), (2, [rectangle(2, 0, 4, 2)])]))]
    masks += [AnnotatedMask("b", lambda: ((2, 4), [])), "mask.png"]
    assert overlap_of(masks) == (Overlap(0, 0, 0), 0)
    assert np.asarray(masks[0]).tolist() == [[1, 1, 2, 2]] * 2 and not np.asarray(masks[1]).any()
    assert overlap_of(masks) == (Overlap(2, 2, 0), 1)
    assert describe_overlap(*overlap_of(masks)).startswith("1 have 2 pixels under more than one annotation, 2 of them")
    with pytest.raises(ValueError, match="c: the mask cannot be drawn: KeyError.'counts'"):
        np.asarray(AnnotatedMask("c", lambda: {}["counts"]))


@pytest.mark.parametrize("scale", [(1, 1), (2, 3)])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_outlines_give_the_label_map_again(scale, classes):
    """Also of pixels that touch at corners only; there is one outline for each connected part (scipy's count)."""
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(0)
    for _ in range(15):
        label_map = np.kron(random.integers(0, classes, random.integers(1, 25, 2)), np.ones(scale, int))
        regions = find_regions(label_map)
        assert len(regions) == sum(ndimage.label(label_map == label)[1] for label in np.unique(label_map))
        by_line, by_rings = np.full((2, *label_map.shape), -1)
        for region in regions:
            by_line[filled([joined(region).ravel()], label_map.shape)] = region.label
            inside = filled([region.outline.ravel()], label_map.shape)
            for hole in region.holes:
                inside &= ~filled([hole.ravel()], label_map.shape)
            assert (by_rings[inside] == -1).all()
            by_rings[inside] = region.label
        assert np.array_equal(by_line, label_map) and np.array_equal(by_rings, label_map)
        assert {region.label for region in find_regions(label_map, {0})} == set(np.unique(label_map)) - {0}


def test_outlines_have_corners_only():
    (region,) = find_regions(np.ones((5, 7), int))
    assert sorted(map(tuple, region.outline.tolist())) == [(0, 0), (0, 5), (7, 0), (7, 5)] and region.holes == []


def test_names_become_ids():
    labels = labels_of_names(["road", "Background", "tree"])
    assert labels.names == ("background", "road", "tree")
    assert raw_ids(labels, ["tree", "ROAD ", "_background_", "__ignore__"], "x") == (
        {"tree": 2, "ROAD ": 1, "_background_": 0, "__ignore__": 255},
        0,
    )
    with pytest.raises(ValueError, match="x: 'car' is none of the classes background, road, tree; rename or add it"):
        raw_ids(labels, ["car"], "x")
    shifted = Labels(("sky", "Road"), raw_to_train={7: 1, 3: 0, 8: 1})
    assert raw_ids(shifted, ["road", "Road", "void"], "x") == ({"road": 7, "Road": 7, "void": 255}, 255)
    with pytest.raises(ValueError, match="no class is called background, and no id is ignored"):
        raw_ids(Labels(tuple(map(str, range(300))), ignore_index=-100), ["7"], "x")
