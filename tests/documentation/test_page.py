"""The page that prunes in the browser: its answers against Keras, its speed, its keys, its pen.

It is opened as a file in headless Chromium. What the page computes is compared with the library
and with NumPy on the weights that `docs/page/index.html` holds. Screenshots are left in the folder
that REPORT_DIR names, by default report/, to be looked at.
"""

import base64
import importlib.util
import os
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import keras_pruning as kp

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "page"
PAGE = FOLDER / "index.html"
MOST_BYTES = 3_000_000
MOST_MS = 100  # from a move to its answer
PIXELS, CLASSES = 784, 10
IMAGES = 100  # that are compared
SETTINGS = [("weights", 0), ("weights", 57), ("weights", 95), ("units", 29), ("units", 80)]
DAMPING = 0.01

NAMES = (os.environ.get("CHROMIUM", "chromium"), "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]  # a container's user is often root

# Strokes on a pad of size 1, as a hand draws them.
TURN = np.linspace(0, 2 * np.pi, 21)
DIGITS = {
    0: [np.stack([0.5 + 0.25 * np.sin(TURN), 0.5 - 0.33 * np.cos(TURN)], axis=1).tolist()],
    1: [[(0.5, 0.15), (0.5, 0.85)]],
    4: [[(0.35, 0.15), (0.28, 0.55), (0.72, 0.55)], [(0.65, 0.2), (0.62, 0.88)]],
    7: [[(0.25, 0.2), (0.75, 0.2), (0.45, 0.85)]],
}


@pytest.fixture(scope="module")
def make_page():
    spec = importlib.util.spec_from_file_location("make_page", FOLDER / "make_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arrays(make_page):
    """What the page holds: weights in float16, images and labels in bytes."""
    return make_page.embedded(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def network(arrays):
    """The page's network in Keras."""
    model = keras.Sequential(
        [
            keras.Input((PIXELS,)),
            keras.layers.Dense(300, activation="relu"),
            keras.layers.Dense(100, activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    names = [f"{kind}_{number}" for number in (1, 2, 3) for kind in ("kernel", "bias")]
    model.set_weights([arrays[name].astype(np.float32) for name in names])
    return model


@pytest.fixture(scope="module")
def images(arrays):
    return arrays["test_images"].astype(np.float32) / 255


def pruned_by_library(network, method, percent):
    prune = {"weights": kp.prune_weights, "units": kp.prune_units}[method]
    return prune(network, percent / 100)


# ---- the file


def test_the_page_is_what_its_parts_make(make_page, arrays):
    def without_data(page):  # packed otherwise by another release of zlib
        return re.sub(r'(<script id="data"[^>]*>)[^<]*', r"\1", page)

    made = make_page.assemble(arrays)
    assert without_data(made) == without_data(PAGE.read_text(encoding="utf-8")), (
        "index.html is out of date: python docs/page/make_page.py --assemble"
    )
    for name, array in make_page.embedded(made).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_the_page_is_one_file_of_at_most_3_mb():
    assert PAGE.stat().st_size <= MOST_BYTES
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|srcset|action|poster)\s*=\s*["'][^"']""", text) == []
    assert re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|importScripts", text) == []
    links = re.findall(r"<link\b[^>]*>", text)
    assert links == ['<link rel="icon" href="data:,">']


def test_test_and_training_images_are_the_first_thousand_of_mnist(make_page, arrays, shared_data):
    for split, name in (("test", "test_images"), ("train", "calibration_images")):
        x, y = make_page.mnist(split)
        np.testing.assert_array_equal(arrays[name], x[:1000].reshape(-1, PIXELS))
        if split == "test":
            np.testing.assert_array_equal(arrays["test_labels"], y[:1000])


def test_the_network_reads_98_percent_of_the_test_images(network, arrays, images):
    assert np.mean(answers(network, images) == arrays["test_labels"]) >= 0.98


def answers(model, images):
    return model.predict(images, verbose=0).argmax(axis=1)


# ---- in the browser


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright: pip install playwright")
    if not CHROMIUM:
        missing("no chromium: install it, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def missing(text: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(text)


class Opened:
    """The page in a window, and what a visitor does with it."""

    def __init__(self, browser, **options):
        self.tab = browser.new_context(**options).new_page()
        self.requests, self.errors = [], []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", lambda message: self.errors.append(message.text))
        self.tab.goto(PAGE.as_uri())
        self.tab.evaluate("page.ready")

    def set(self, method, percent, reconstruct=False):
        self.tab.locator(f'input[value="{method}"]').check()
        self.tab.locator("#sparsity").fill(str(percent))
        self.tab.locator("#reconstruct").set_checked(reconstruct)
        self.wait()

    def wait(self):
        self.tab.wait_for_function("!page.waiting", timeout=120_000)  # milliseconds

    def floats(self, expression) -> np.ndarray:
        """A Float32Array of the page."""
        script = f"""() => {{
            const bytes = new Uint8Array(Float32Array.from({expression}).buffer);
            let text = "";
            for (const byte of bytes) text += String.fromCharCode(byte);
            return btoa(text);
        }}"""
        return np.frombuffer(base64.b64decode(self.tab.evaluate(script)), np.float32)

    def weights(self) -> list[np.ndarray]:
        """Kernels and biases of the network that is shown, as Keras orders them."""
        found = []
        for number, shape in enumerate([(PIXELS, 300), (300, 100), (100, CLASSES)]):
            layer = f"page.shown.layers[{number}]"
            found.append(self.floats(f"{layer}.kernel").reshape(shape))
            found.append(self.floats(f"{layer}.bias"))
        return found

    def probabilities(self, count=IMAGES) -> np.ndarray:
        """The answers that the page computes for its first test images."""
        script = f"probabilities(page.shown.layers, page.test.images, {count})"
        return self.floats(script).reshape(-1, CLASSES)[:count]

    def text(self, selector) -> str:
        return self.tab.locator(selector).inner_text()

    def number(self, row) -> float:
        """A number of the table's last column."""
        text = self.text(f"#{row} td:last-child")
        return float(re.sub(r"[^\d.]", "", text))

    def draw(self, strokes, size=1.0):
        box = self.tab.locator("#pad").bounding_box()
        for stroke in strokes:
            points = [
                (box["x"] + box["width"] * (0.05 + size * x * 0.9),
                 box["y"] + box["height"] * (0.05 + size * y * 0.9))
                for x, y in stroke
            ]  # fmt: skip
            self.tab.mouse.move(*points[0])
            self.tab.mouse.down()
            for point in points[1:]:
                self.tab.mouse.move(*point, steps=4)
            self.tab.mouse.up()


@pytest.fixture(scope="module")
def page(browser):
    page = Opened(browser, viewport={"width": 1280, "height": 900})
    yield page
    assert page.errors == []


@pytest.mark.browser
@pytest.mark.parametrize(("method", "percent"), SETTINGS)
class TestAtFiveSettings:
    def test_weights_are_those_of_the_library(self, page, network, method, percent):
        page.set(method, percent)
        pruned = pruned_by_library(network, method, percent)
        for ours, theirs in zip(page.weights(), pruned.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_answers_are_those_of_keras(self, page, network, images, arrays, method, percent):
        page.set(method, percent)
        pruned = pruned_by_library(network, method, percent)
        expected = pruned.predict(images, verbose=0)
        np.testing.assert_allclose(page.probabilities(), expected[:IMAGES], atol=1e-5)
        shown = page.tab.evaluate("[...page.shown.found]")
        np.testing.assert_array_equal(shown, expected.argmax(axis=1))
        accuracy = np.mean(expected.argmax(axis=1) == arrays["test_labels"])
        assert page.number("accuracy") == pytest.approx(100 * accuracy, abs=0.051)

    def test_size_and_multiplications_are_counted_as_the_page_says(
        self, page, network, method, percent
    ):
        page.set(method, percent)
        pruned = pruned_by_library(network, method, percent)
        if method == "units":
            small = kp.shrink(pruned)
            multiplications = sum(
                layer.kernel.shape[0] * layer.kernel.shape[1] for layer in small.layers
            )
            numbers, bits = small.count_params(), 0
        else:
            arrays = pruned.get_weights()
            multiplications = sum(np.count_nonzero(a) for a in arrays if a.ndim == 2)
            numbers = sum(np.count_nonzero(a) for a in arrays)
            bits = (PIXELS * 300 + 300 * 100) if percent else 0
        assert page.number("multiplications") == multiplications
        assert page.number("bytes") == pytest.approx((4 * numbers + bits / 8) / 1000, abs=0.051)
        assert sum(page.tab.evaluate("page.shown.masks.map(countOnes)")) == multiplications


@pytest.mark.browser
def test_random_weights_go_in_the_number_asked_for_and_higher_sparsities_take_more(page, network):
    kept = {}
    for percent in (30, 31, 90):
        page.set("random", percent)
        kernels = page.weights()[::2]
        for kernel, original in zip(kernels, network.get_weights()[::2], strict=True):
            is_kept = kernel != 0
            np.testing.assert_array_equal(kernel[is_kept], original[is_kept])
            pruned = 0 if kernel.shape[1] == CLASSES else round(percent / 100 * kernel.size)
            assert np.count_nonzero(~is_kept) == pruned
        kept[percent] = kernels[0] != 0
    assert not (kept[90] & ~kept[31]).any() and not (kept[31] & ~kept[30]).any()
    by_magnitude = np.abs(network.get_weights()[0][~kept[90]]).mean()
    assert by_magnitude == pytest.approx(np.abs(network.get_weights()[0]).mean(), rel=0.02)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("count", "size", "expected"), [(0.5, 5, 2), (0.5, 7, 4), (0.29, 100, 29), (0.95, 30000, 28500)]
)
def test_halves_are_rounded_to_even_numbers_as_the_library_does(page, count, size, expected):
    assert round(count * size) == expected
    assert page.tab.evaluate(f"numPruned({size}, {count})") == expected


@pytest.mark.browser
def test_of_equal_weights_the_first_go_first_as_in_the_library(page):
    kernel = np.array([[0.5, -0.25, 0.25], [0.25, 0.5, 0.25]], np.float32)
    script = f"""() => {{
        const of = (values, units) => ({{ kernel: Float32Array.from(values), units, inputs: 2,
                                          bias: new Float32Array(units) }});
        const layers = [of({kernel.ravel().tolist()}, 3), of([1, 1, 1, 1, 1, 1], 2)];
        return prune(layers, "weights", removalOrders(layers, "weights"), 0.5)[0].kernel.join();
    }}"""
    found = page.tab.evaluate(script)
    expected = kernel * kp.weight_mask(kernel, 0.5)
    assert expected.ravel().tolist() == [0.5, 0, 0, 0, 0.5, 0.25]
    assert [float(w) for w in found.split(",")] == expected.ravel().tolist()


# ---- reconstruction


@threadpool_limits.wrap(1)  # the systems are small
def refitted_by_lstsq(weights, original, x, units=None):
    """Kernels and biases refitted layer by layer, by `np.linalg.lstsq`.

    Of each layer only the first `units` units are refitted, if not all.
    """
    heard = wanted = x.astype(np.float64)
    found = []
    for layer in range(len(weights) // 2):
        both, both0 = (np.vstack(w[2 * layer : 2 * layer + 2]) for w in (weights, original))
        inputs, inputs0 = (np.column_stack([y, np.ones(len(y))]) for y in (heard, wanted))
        both, wanted = both.astype(np.float64), inputs0 @ both0
        root = np.sqrt(DAMPING * np.square(inputs).sum() / inputs.shape[1])
        chosen = both[:, :units] != 0
        for pattern in np.unique(chosen, axis=1).T:  # units that keep the same weights
            kept = np.flatnonzero(pattern)
            alike = np.flatnonzero((chosen.T == pattern).all(axis=1))
            rows = np.vstack([inputs[:, kept], root * np.eye(kept.size)])
            goal = np.zeros((len(rows), alike.size))
            goal[: len(x)] = wanted[:, alike] - inputs @ both[:, alike]
            if kept.size:
                both[np.ix_(kept, alike)] += np.linalg.lstsq(rows, goal)[0]
        found += [both[:-1], both[-1]]
        heard, wanted = np.maximum(inputs @ both, 0), np.maximum(wanted, 0)
    return found


def answers_of(weights, x):
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    sums = np.exp(x @ weights[-2] + weights[-1])
    return sums / sums.sum(axis=1, keepdims=True)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("method", "percent"), [("weights", 95), ("random", 97), ("units", 80)])
def test_reconstruction_is_the_least_squares_solution(
    page, network, images, arrays, method, percent
):
    page.set(method, percent)
    masked = page.weights()
    page.set(method, percent, reconstruct=True)
    refitted = page.weights()
    calibration = arrays["calibration_images"].astype(np.float32) / 255
    expected = refitted_by_lstsq(masked, network.get_weights(), calibration)
    for ours, before in zip(refitted, masked, strict=True):
        np.testing.assert_array_equal(ours == 0, before == 0)
    np.testing.assert_allclose(
        page.probabilities(), answers_of(expected, images[:IMAGES]), atol=1e-4
    )
    found = answers_of(expected, images).argmax(axis=1)
    assert page.number("accuracy") == pytest.approx(
        100 * np.mean(found == arrays["test_labels"]), abs=0.151
    )


@pytest.mark.browser
def test_reconstruction_of_few_lost_weights_is_the_least_squares_solution_too(
    page, network, arrays
):
    page.set("weights", 20)  # solved by the weights that are lost
    masked = page.weights()
    page.set("weights", 20, reconstruct=True)
    calibration = arrays["calibration_images"].astype(np.float32) / 255
    expected = refitted_by_lstsq(masked[:2], network.get_weights()[:2], calibration, units=2)
    kernel, bias = page.weights()[:2]
    step = np.abs(expected[0][:, :2] - masked[0][:, :2]).max()
    assert step > 1e-3
    np.testing.assert_allclose(kernel[:, :2], expected[0][:, :2], atol=1e-3 * step)
    np.testing.assert_allclose(bias[:2], expected[1][:2], atol=1e-3 * step)


@pytest.mark.browser
def test_reconstruction_is_that_of_the_library(page, network, images, arrays):
    page.set("weights", 95, reconstruct=True)
    pruned = pruned_by_library(network, "weights", 95)
    calibration = arrays["calibration_images"].astype(np.float32) / 255
    mended = kp.reconstruct(pruned, network, calibration, damping=DAMPING, progress=False)
    expected = mended.predict(images[:IMAGES], verbose=0)
    np.testing.assert_allclose(page.probabilities(), expected, atol=1e-3)
    masked = np.mean(answers(pruned, images) == arrays["test_labels"])
    assert page.number("accuracy") > 100 * masked + 20
    assert page.text("#words").splitlines()[1].startswith("Reconstructed: ")


@pytest.mark.browser
def test_until_the_reconstruction_is_there_the_masked_answer_is_shown(page):
    page.set("weights", 90)
    masked = page.text("#words")
    page.set("weights", 10)
    first = page.tab.evaluate("""() => {
        document.querySelector("#reconstruct").click();
        const slider = document.querySelector("#sparsity");
        slider.value = 90;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        const text = (id) => document.getElementById(id).innerText;
        return [page.waiting, text("words"), text("solving")];
    }""")
    assert first == [True, masked, "refitting …"]
    page.wait()
    assert page.text("#solving") == "refitted"
    assert page.text("#words").splitlines()[1] != masked.splitlines()[1]


@pytest.mark.browser
def test_a_reconstruction_that_was_left_does_not_come_late(page):
    page.set("weights", 0)
    page.tab.locator("#reconstruct").check()
    for percent in (50, 60, 97):  # the first takes long
        page.tab.locator("#sparsity").fill(str(percent))
    page.wait()
    page.tab.wait_for_timeout(500)
    assert page.tab.evaluate("page.shown.setting.sparsity") == 0.97
    assert np.count_nonzero(page.weights()[0]) == 235_200 - round(0.97 * 235_200)


@pytest.mark.browser
def test_what_the_worker_says_of_a_setting_that_was_left_changes_no_weights(page):
    page.set("weights", 90)
    before = page.weights()[0]
    page.tab.evaluate("""() => {
        const { setting } = page.shown;
        const { layers, found } = page.dense;
        received({ setting: { ...setting, id: setting.id - 1 }, refitted: layers, found });
    }""")
    np.testing.assert_array_equal(page.weights()[0], before)
    assert page.tab.evaluate("page.shown.right < page.dense.right && !page.shown.refitted")


# ---- the visitor


@pytest.mark.browser
@pytest.mark.parametrize("digit", DIGITS)
@pytest.mark.parametrize("size", [1, 0.5], ids=["large", "small"])
def test_a_drawn_digit_is_read_right(page, digit, size):
    page.set("weights", 0)
    page.tab.locator("#clear").click()
    page.draw(DIGITS[digit], size)
    lines = page.text("#words").splitlines()
    assert lines[0].startswith(f"Dense: {digit}, ")
    assert lines[1].startswith(f"Pruned: {digit}, ")
    assert lines[2] == "Your own digit"


@pytest.mark.browser
def test_a_drawing_is_centred_and_scaled_as_mnist_does(page):
    page.tab.locator("#clear").click()
    page.draw([[(0.1, 0.1), (0.3, 0.1), (0.3, 0.6)]])
    seen = page.floats("page.seen").reshape(28, 28)
    rows, columns = np.indices(seen.shape) + 0.5
    assert (seen * rows).sum() / seen.sum() == pytest.approx(14, abs=0.1)
    assert (seen * columns).sum() / seen.sum() == pytest.approx(14, abs=0.1)
    high = np.ptp(np.flatnonzero(seen.any(axis=1))) + 1
    assert 20 <= high <= 21  # a box of 20, perhaps between two pixels
    assert ((seen > 0) & (seen < 1)).any() and seen.max() == 1  # grey edges
    page.tab.locator("#clear").click()
    assert page.text("#words").splitlines()[2] == "Nothing is drawn yet"
    assert not page.floats("page.seen").any()


@pytest.mark.browser
def test_a_finger_draws_too(browser):
    page = Opened(browser, viewport={"width": 360, "height": 740}, has_touch=True)
    assert page.tab.locator("#pad").evaluate("e => getComputedStyle(e).touchAction") == "none"
    page.tab.locator("#clear").tap()
    page.tab.locator("#pad").scroll_into_view_if_needed()
    box = page.tab.locator("#pad").bounding_box()
    session = page.tab.context.new_cdp_session(page.tab)

    def touch(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    for step in range(15):
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * (0.15 + 0.05 * step)
        touch("touchMove" if step else "touchStart", {"x": x, "y": y})
    touch("touchEnd")
    assert page.text("#words").startswith("Dense: 1, ")
    assert page.errors == []


@pytest.mark.browser
def test_everything_is_reached_and_moved_by_keyboard(browser):
    page = Opened(browser, viewport={"width": 1280, "height": 900})
    press, seen = page.tab.keyboard.press, []
    page.wait()
    for _ in range(11):  # eight controls, a summary and two links
        press("Tab")
        seen.append(page.tab.evaluate("document.activeElement.id || document.activeElement.value"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.tab.evaluate(outline) != "none", seen[-1]
        if seen[-1] == "image":
            press("ArrowUp")
            assert page.text("#words").splitlines()[2].startswith("Test image 2 is a ")
        elif seen[-1] == "next":
            press("Enter")
            assert page.text("#words").splitlines()[2].startswith("Test image 3 is a ")
        elif seen[-1] == "mistake":
            press("Enter")
            assert page.text("#words").splitlines()[1].endswith("wrong")
        elif seen[-1] == "weights":
            press("ArrowRight")
            assert page.tab.evaluate("page.shown.setting.method") == "units"
        elif seen[-1] == "sparsity":
            press("ArrowRight")
            assert page.text("#sparsity-value") == "81 %"
        elif seen[-1] == "reconstruct":
            press("Space")
            page.wait()
            assert page.text("#solving") == "refitted"
    wanted = ["clear", "previous", "image", "next", "mistake", "weights", "sparsity", "reconstruct"]
    assert seen[: len(wanted)] == wanted
    assert page.errors == []


@pytest.mark.browser
def test_every_control_has_a_name_and_the_answer_is_read_aloud(page):
    unnamed = page.tab.locator("input, button").evaluate_all(
        """all => all.filter(e => !(e.labels?.length || e.ariaLabel || e.innerText.trim()))
                      .map(e => e.id)"""
    )
    assert unnamed == []
    assert page.tab.locator("#words").get_attribute("aria-live") == "polite"
    pictures = page.tab.locator("[role=img]").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert len(pictures) == 7 and all(pictures)


@pytest.mark.browser
def test_the_masks_are_drawn(page):
    page.set("units", 90)
    counts = page.tab.evaluate("""() => [...document.querySelectorAll("#masks canvas")].map((c) => {
        const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
        const removed = pixelOf(colour("--removed"));
        const drawn = [...new Int32Array(data.buffer)].filter((pixel) => pixel !== 0);
        return drawn.filter((pixel) => pixel !== removed).length;
    })""")
    assert counts == [30 * PIXELS, 30 * 10, 10 * CLASSES]


@pytest.mark.browser
def test_a_move_is_answered_within_100_ms(page, capsys):
    # The best of several, since another process may hold the processor.
    page.set("weights", 50)
    best = page.tab.evaluate(
        """async ({ places, most }) => {
            const slider = document.querySelector("#sparsity");
            const best = [];
            for (const place of places) {
                let least = Infinity;
                for (let again = 0; again < 60 && least > most; again++) {
                    slider.value = place + (again % 2);
                    const start = performance.now();
                    slider.dispatchEvent(new Event("input", { bubbles: true }));
                    while (page.waiting) await new Promise((resolve) => setTimeout(resolve));
                    least = Math.min(least, performance.now() - start);
                }
                best.push(least);
            }
            return best;
        }""",
        {"places": [10, 30, 50, 70, 80, 90, 95], "most": MOST_MS},
    )
    with capsys.disabled():
        print(f"\nmoves answered, accuracy on 1,000 images included, in {np.round(best)} ms")
    assert np.median(best) <= MOST_MS


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("desktop", 1280), ("phone", 360)])
def test_it_fits_the_window_and_nothing_jumps(browser, scheme, name, width):
    folder = Path(os.environ.get("REPORT_DIR") or ROOT / "report")
    folder.mkdir(parents=True, exist_ok=True)
    page = Opened(browser, viewport={"width": width, "height": 740}, color_scheme=scheme)
    page.wait()
    tops = "[...document.querySelectorAll('section, figure, #bars')].map((e) => e.offsetTop)"
    before = page.tab.evaluate(tops)
    for method, percent, reconstruct in (("weights", 0, False), ("random", 99, True)):
        page.set(method, percent, reconstruct)
        assert page.tab.evaluate(tops) == before
        assert page.tab.evaluate("document.documentElement.scrollWidth") == width
    page.tab.locator("#mistake").click()
    assert page.tab.evaluate(tops) == before
    page.set("weights", 95, True)
    page.tab.screenshot(path=folder / f"page-{name}-{scheme}.png", full_page=True)
    assert page.errors == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_their_grounds(browser, scheme):
    page = Opened(browser, color_scheme=scheme)
    names = ["page", "panel", "ink", "muted", "positive", "negative"]
    colours = dict(
        zip(names, page.tab.evaluate(f"{names}.map((n) => colour('--' + n))"), strict=True)
    )

    def luminance(name):
        share = np.array(colours[name]) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(one, other):  # of WCAG 2
        dark, light = sorted([luminance(one), luminance(other)])
        return (light + 0.05) / (dark + 0.05)

    for ground in ("page", "panel"):
        assert contrast("ink", ground) >= 7
        assert contrast("muted", ground) >= 4.5
    assert contrast("positive", "page") >= 4.5  # links
    assert contrast("negative", "page") >= 3  # large and bold


@pytest.mark.browser
def test_it_asks_the_network_for_nothing(browser):
    page = Opened(browser)
    page.set("weights", 95, reconstruct=True)
    assert [url for url in page.requests if not url.startswith(("blob:", "data:"))] == [
        PAGE.as_uri()
    ]
    assert page.errors == []
