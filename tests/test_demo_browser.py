"""The demos in headless Chromium: pictures in, legend, colours and label maps out, as inference says them."""

import base64
import functools
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from demo_models import NAMES, save_model
from PIL import Image

from hf_segtx.cli import main
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.demo import static_page, write_space
from hf_segtx.inference import load_model, predict
from hf_segtx.visualization import color_map, overlay, palette


pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
COLORS = palette(len(NAMES))
WAIT = 120_000  # milliseconds, on a machine that does other things as well
VIEWPORTS = {"wide": {"width": 1200, "height": 800}, "narrow": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # No sandbox: containers do not have what it needs. The camera is a film of Chromium's own.
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures of other sizes than the network's, one as JPEG as well, and a broken one."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, size, seed in (("wide.png", (150, 350), 9), ("tall.png", (200, 130), 4)):
        SceneDataset(1, seed=seed, size=size)[0]["image"].save(folder / name)
    Image.open(folder / "wide.png").save(folder / "photo.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models that resize to at most 128 pixels: the first bilinearly, the second bicubically, and stretching."""
    folder, size = tmp_path_factory.mktemp("models"), {"shortest_edge": 128, "longest_edge": 512}
    first = save_model(folder / "first", size=size)
    second = save_model(folder / "second", seed=5, size=size, resample=3, stretch_divisor=32)
    return first, second


def expected_map(model, file):
    return predict(*load_model(model), [Image.open(file)])[0].numpy()


def screenshot(page, name):
    """Into SCREENSHOTS, if that is set, for whoever wants to look."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def fits(page):
    """Nothing sticks out to the right."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def lightness(page):
    """Of the page's background, 0-255."""
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return np.mean([float(value) for value in re.findall(r"[\d.]+", color)[:3]])


# ------------------------------------------------------------------------------------------------ a static page


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    try:
        return static_page.fetched_runtime(tmp_path_factory.mktemp("npm"))
    except ValueError as error:
        pytest.skip(str(error))


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def static_site(models, runtime, tmp_path):
    """Writes the page of a model, serves its files, and returns the address."""
    servers = []

    def start(model):
        folder = tmp_path / f"page_{len(servers)}"
        static_page.write_static_page(str(model), *load_model(model), folder, runtime=runtime)
        handler = functools.partial(QuietHandler, directory=folder)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()


def give(page, file):
    """Gives a picture to a static page and waits for what comes of it."""
    page.set_input_files("#file", file)
    said = f"/^{re.escape(file.name)}(:| is)/.test(document.querySelector('#status').textContent)"
    page.wait_for_function(said, timeout=WAIT)


def canvas(page):
    data = page.evaluate("document.querySelector('#canvas').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB"))


def test_static_page(chromium, static_site, models, files):
    page = chromium.new_page(viewport=VIEWPORTS["wide"], color_scheme="light")
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    page.goto(static_site(models[0]))
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('Ready')", timeout=WAIT)
    assert page.inner_text("h1") == "first" and fits(page) and lightness(page) > 200

    for name in ("wide.png", "tall.png"):
        label_map = expected_map(models[0], files / name)
        give(page, files / name)
        page.fill("#opacity", "1")
        colors, found = color_map(label_map, COLORS), canvas(page)
        assert found.shape == colors.shape and len(np.unique(label_map)) > 3
        # Pixels are equal, and so is the map, but for ties that the rounding of another runtime decides.
        assert np.mean((found != colors).any(-1)) < 1e-3
        counts = np.bincount(label_map.ravel())
        order = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label]]
        entries = [entry.split("\n") for entry in page.locator("#legend button").all_inner_texts()]
        assert {entry[0] for entry in entries} == {NAMES[label] for label in order}
        assert entries[0][0] == NAMES[order[0]]
        assert abs(float(entries[0][1].rstrip(" %")) - 100 * counts[order[0]] / label_map.size) < 0.2

    largest = order[0]
    page.click(f"#legend button[data-label='{largest}']")
    shown, picture = canvas(page), np.asarray(Image.open(files / "tall.png"))
    known = (found == colors).all(-1)
    assert np.array_equal(shown[known], np.where((label_map == largest)[..., None], picture, colors)[known])
    screenshot(page, "static_wide_light")

    label_map = expected_map(models[0], files / "photo.jpg")
    give(page, files / "photo.jpg")
    page.fill("#opacity", "1")
    # Decoders of JPEG may differ by a level or two, which moves borders; those of today's Chromium and Pillow do not.
    assert np.mean((canvas(page) != color_map(label_map, COLORS)).any(-1)) < 0.02

    give(page, files / "broken.png")
    assert page.inner_text("#status").startswith("broken.png is not a picture that this browser can read")
    page.click("#examples button")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('scene_1.png: seg')", timeout=WAIT)
    assert errors == []
    page.close()


def test_static_page_dark_and_narrow(chromium, static_site, models, files):
    """And the other filter, stretched sides, and a picture that is dropped."""
    page = chromium.new_page(viewport=VIEWPORTS["narrow"], color_scheme="dark")
    page.goto(static_site(models[1]))
    content = base64.b64encode((files / "wide.png").read_bytes()).decode()
    transfer = page.evaluate_handle(
        """content => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png"));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('dropped.png: seg')", timeout=WAIT)
    assert fits(page) and lightness(page) < 60
    screenshot(page, "static_narrow_dark")
    page.fill("#opacity", "1")
    colors = color_map(expected_map(models[1], files / "wide.png"), COLORS)
    assert np.mean((canvas(page) != colors).any(-1)) < 1e-3  # as above
    page.close()


@pytest.mark.parametrize(
    "architecture, rules",
    [
        ("segmenter", {"do_resize": False, "window_size": 48, "window_stride": 32, "small_images": "enlarge"}),
        (
            "segformer",
            {
                "size": {"shortest_edge": 70},
                "window_size": [64, 96],
                "window_stride": 40,
                "small_images": "cut",
                "align_corners": True,
            },
        ),
    ],
)
def test_static_page_averages_windows(chromium, static_site, files, tmp_path, architecture, rules):
    """On pictures larger and smaller than a window."""
    model = save_model(tmp_path / "model", architecture, **rules)
    Image.open(files / "tall.png").resize((30, 40)).save(tmp_path / "small.png")
    page = chromium.new_page()
    page.goto(static_site(model))
    for file in (files / "wide.png", tmp_path / "small.png"):
        give(page, file)
        page.fill("#opacity", "1")
        label_map = expected_map(model, file)
        assert len(np.unique(label_map)) > 1
        assert np.mean((canvas(page) != color_map(label_map, COLORS)).any(-1)) < 1e-3  # as above
    page.close()


# ------------------------------------------------------------------------------------------------------ the app


@contextmanager
def running(words, folder):
    """The address of an app in a process of its own, which runs in that folder."""
    pytest.importorskip("gradio")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": str(folder / "uploads")}
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    try:
        said = next((line for line in process.stdout if "http://" in line), "")
        yield re.search(r"http://[\d.:]+", said)[0]
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def app(models, tmp_path_factory):
    """`segtx demo` with both models."""
    words = ["-m", "hf_segtx", "demo", *map(str, models), "--port", "0", "--device", "cpu"]
    with running(words, tmp_path_factory.mktemp("gradio")) as address:
        yield address


def opened(chromium, app, viewport, scheme):
    page = chromium.new_context(viewport=VIEWPORTS[viewport], color_scheme=scheme).new_page()
    page.goto(app)
    page.locator("input[type=file]").first.wait_for(state="attached", timeout=WAIT)
    return page


def drawn(page, model):
    """What the slider shows of a model, as an array."""
    source = page.locator("#result img").nth(model).get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))


def upload(page, file, size):
    page.locator("input[type=file]").first.set_input_files(file)
    wait_for_size(page, size)


def wait_for_size(page, size):
    loaded = f"""[...document.querySelectorAll('#result img')].filter(
        (image) => image.naturalWidth === {size[0]} && image.naturalHeight === {size[1]}).length > 1"""
    page.wait_for_function(loaded, timeout=WAIT)


def changed(page, before):
    """Waits until the slider shows another picture than the one of that address."""
    page.wait_for_function(
        "before => document.querySelector('#result img').getAttribute('src') !== before", arg=before, timeout=WAIT
    )


def test_app(chromium, app, models, files):
    page = opened(chromium, app, "wide", "light")
    upload(page, files / "wide.png", (350, 150))
    maps = [expected_map(model, files / "wide.png") for model in models]
    picture = Image.open(files / "wide.png")
    sides = [drawn(page, index) for index in (0, 1)]
    wanted = [np.asarray(overlay(picture, label_map, COLORS, 0.5)) for label_map in maps]
    assert not np.array_equal(*wanted)
    assert sorted(side.tobytes() for side in sides) == sorted(
        side.tobytes() for side in wanted
    )  # which is on top varies
    legend = page.locator("#legend label").all_inner_texts()
    assert {text.split()[0] for text in legend} == {NAMES[label] for label in np.unique(maps)}
    assert fits(page) and lightness(page) > 200
    screenshot(page, "app_wide_light")

    largest = int(np.bincount(np.ravel(maps)).argmax())
    swatch = page.locator(f"#legend input[name='{largest}']")
    color = swatch.evaluate("element => getComputedStyle(element).backgroundColor")
    assert color == f"rgb{COLORS[largest]}"
    before = page.locator("#result img").first.get_attribute("src")
    swatch.click()
    changed(page, before)
    hidden = [np.where((label_map == largest)[..., None], picture, 0) for label_map in maps]
    for side in (drawn(page, 0), drawn(page, 1)):
        assert any(np.array_equal(np.where((m == largest)[..., None], side, 0), h) for m, h in zip(maps, hidden))
    before = page.locator("#result img").first.get_attribute("src")
    page.get_by_label("entropy", exact=True).click()
    changed(page, before)

    with page.expect_download() as download:
        page.get_by_text("Label map (PNG), second").click()
    assert download.value.suggested_filename == "wide_labels_2.png"
    assert np.array_equal(np.asarray(Image.open(download.value.path())), maps[1])
    page.context.close()


def test_app_says_what_is_wrong(chromium, app, files):
    """And then shows nothing of the picture before."""
    page = opened(chromium, app, "narrow", "dark")
    upload(page, files / "wide.png", (350, 150))
    page.get_by_label("Remove Image").first.click()
    page.wait_for_function("document.querySelectorAll('#result img').length === 0", timeout=WAIT)
    upload(page, files / "wide.png", (350, 150))
    page.locator("input[type=file]").first.set_input_files(files / "broken.png")
    page.get_by_text("broken.png: cannot be decoded").first.wait_for(timeout=WAIT)
    page.wait_for_function("document.querySelectorAll('#result img').length === 0", timeout=WAIT)
    assert fits(page)
    screenshot(page, "app_narrow_dark_broken")
    page.context.close()


def test_app_has_several_visitors_at_once(chromium, app, models, files):
    """Each sees what was given by themselves, also after both have changed the opacity."""
    names = ("wide.png", "tall.png")
    pages = [opened(chromium, app, "narrow", "dark") for _ in names]
    for page, name in zip(pages, names):
        page.locator("input[type=file]").first.set_input_files(files / name)
    for page, name in zip(pages, names):
        wait_for_size(page, Image.open(files / name).size)
    for page, name in zip(pages, names):
        wanted = sorted(color_map(expected_map(model, files / name), COLORS).tobytes() for model in models)
        for attempt in range(WAIT // 200):
            if attempt % 25 == 0:  # on a machine that is busy a page may miss what is typed
                for value in ("0.9", "1"):
                    page.locator("#opacity input[type=number]").fill(value)
                    page.locator("#opacity input[type=number]").press("Enter")
            seen = sorted(drawn(page, index).tobytes() for index in (0, 1))
            if seen == wanted:
                break
            page.wait_for_timeout(200)
        assert seen == wanted
        screenshot(page, f"app_narrow_dark_{name[:4]}")
        page.context.close()


def wait_for_video(page, index):
    """Until it has a picture: buttons below jump when that comes, and a press that is under way then misses them."""
    page.wait_for_function(f"[...document.querySelectorAll('video')].at({index})?.videoWidth > 0", timeout=WAIT)


def test_app_segments_videos_and_cameras(chromium, app, files, tmp_path):
    av = pytest.importorskip("av")
    scenes = SceneDataset(4, seed=2, size=(96, 128))
    with av.open(str(tmp_path / "drive.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(scenes[index]["image"])))
        container.mux(stream.encode())
    page = opened(chromium, app, "wide", "light")
    page.get_by_role("tab", name="Video").click()
    page.locator("input[type=file][accept*=video]").first.set_input_files(tmp_path / "drive.mp4")
    wait_for_video(page, 0)
    page.get_by_role("button", name="Segment", exact=True).click()
    page.wait_for_function("document.querySelectorAll('video[src*=overlay]').length === 2", timeout=WAIT)
    content = page.request.get(page.locator("video[src*=overlay]").first.get_attribute("src")).body()
    with av.open(io.BytesIO(content)) as film:
        frames = list(film.decode(video=0))
    assert len(frames) == 4 and frames[0].height > 96  # a legend is below
    screenshot(page, "app_video")
    page.get_by_role("tab", name="Camera").click()
    page.get_by_text("Click to Access Webcam").last.click()
    wait_for_video(page, -1)
    page.get_by_label("capture photo").last.click()
    page.wait_for_function("document.querySelectorAll('#camera_overlay img').length === 1", timeout=WAIT)
    screenshot(page, "app_camera")
    page.context.close()


def test_space_runs_where_it_was_written(chromium, models, files, tmp_path):
    """With the library and the model that are in it."""
    write_space(tmp_path / "space", [str(models[0])], "me/demo")
    with running(["app.py"], tmp_path / "space") as address:
        page = opened(chromium, address, "wide", "dark")
        upload(page, files / "wide.png", (350, 150))
        picture, label_map = Image.open(files / "wide.png"), expected_map(models[0], files / "wide.png")
        wanted = {np.asarray(overlay(picture, label_map, COLORS, 0.5)).tobytes(), np.asarray(picture).tobytes()}
        assert {drawn(page, index).tobytes() for index in (0, 1)} == wanted
        page.context.close()


def test_report_fits_every_screen(chromium, models, tmp_path):
    """The report of segtx evaluate: nothing sticks out, every picture is there, and the browser's colours are taken."""
    file = tmp_path / "report.html"
    assert main(["evaluate", str(models[0]), "--max_eval_samples", "3", "--html", str(file)]) == 0
    for name, viewport in VIEWPORTS.items():
        for scheme in ("light", "dark"):
            page = chromium.new_page(viewport=viewport, color_scheme=scheme)
            page.goto(file.as_uri())
            assert fits(page)
            widths = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
            assert len(widths) > 9 and min(widths) > 50
            brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (sum(brightness) < 200) == (scheme == "dark")
            screenshot(page, f"report_{name}_{scheme}")
            page.close()
