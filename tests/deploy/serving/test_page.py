"""The server's page in a browser: an image goes in by drop, keyboard or camera, the answer is seen.

Skipped where there is no Chromium; ``VIDI_CHROMIUM`` names one that is not on the path.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vidi
from vidi.deploy import serving
from vidi.engine.answers import BoundaryMap, DetectedObjects, Segmentation
from vidi.engine.flow_fields import FlowField
from vidi.report.drawn import Answer, drawn
from vidi.types import Array, Detections

pytest.importorskip("fastapi")
pytest.importorskip("playwright")
from playwright.sync_api import Browser, Error, Page, Route, expect, sync_playwright

CHROMIUM = os.environ.get("VIDI_CHROMIUM") or shutil.which("chromium")
PAGE = Path(serving.__file__).with_name("page.html").read_text(encoding="utf-8")
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@dataclass
class Visit:
    """A page at the server, and what it did."""

    page: Page
    told: list[str] = field(default_factory=list)
    """Errors and warnings of its console, and errors that nothing caught."""
    asked: list[str] = field(default_factory=list)
    """The addresses of its requests."""

    def choose(self, *paths: Path) -> None:
        """One file for each slot, as a person would, through the browser's dialogue."""
        for index, path in enumerate(paths):
            with self.page.expect_file_chooser() as opened:
                self.page.locator(".slot").nth(index).click()
            opened.value.set_files(path)

    def drop(self, *paths: Path, on: str = "body") -> None:
        """Drop files on an element, with their bytes and a type that is not theirs."""
        self.page.locator(".slot").first.wait_for()
        files = [[p.name, base64.b64encode(p.read_bytes()).decode()] for p in paths]
        self.page.evaluate(
            """([files, on]) => {
                const data = new DataTransfer();
                for (const [name, text] of files) {
                    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
                    data.items.add(new File([bytes], name, { type: "text/plain" }));
                }
                const told = { dataTransfer: data, bubbles: true, cancelable: true };
                document.querySelector(on).dispatchEvent(new DragEvent("drop", told));
            }""",
            [files, on],
        )

    def turn_to(self, task: str) -> None:
        self.page.select_option("#run", f"run{TASKS.index(task)}")

    def expect(self, state: str, text: str | re.Pattern[str] | None = None) -> None:
        expect(self.page.locator("body")).to_have_attribute("data-state", state, timeout=15_000)
        if text is not None:
            expect(self.page.get_by_role("status")).to_have_text(text)

    def picture(self) -> Array:
        """The pixels of the answer's picture, uint8 [H, W, 3]."""
        source = self.page.locator("#picture").get_attribute("src") or ""
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            return np.asarray(image)

    def list(self) -> list[tuple[str, str]]:
        names = self.page.locator("#list .name").all_text_contents()
        values = self.page.locator("#list .value").all_text_contents()
        return list(zip(names, values, strict=True))


SEEN = ("red", "green", "blue")
"""The classes of the models below, whose answers one can tell from the image."""


def parted(image: Array) -> Segmentation:
    """Red where the image is red, else green."""
    mask = (image[..., 0] < 128).astype(np.uint8)
    share = float(mask.mean())
    shares = {"red": 1 - share, "green": share}
    return Segmentation("", mask, dict(sorted(shares.items(), key=lambda item: -item[1])))


def boxed(image: Array) -> DetectedObjects:
    """A sure green object and an unsure blue one, at known places."""
    h, w = image.shape[:2]
    found = Detections(
        xyxy=np.array([[1, 2, w / 2, h / 2], [3, 4, w, h]], np.float32),
        labels=np.array([1, 2]),
        scores=np.array([0.9, 0.25], np.float32),
    )
    return DetectedObjects("", (h, w), found, ("green", "blue"))


def lined(image: Array) -> BoundaryMap:
    """Where the red changes from left to right."""
    red = image[..., 0].astype(np.float32) / 255
    return BoundaryMap("", np.abs(np.diff(red, axis=1, append=red[:, -1:])))


ANSWER: dict[str, Callable[[Array], Answer]] = {
    "segmentation": parted,
    "detection": boxed,
    "boundaries": lined,
}
TASKS = ("classification", *ANSWER, "flow")
"""Of run0, run1 …"""


@pytest.fixture(scope="module")
def server(browser: Browser, serve: Any, colours: Any, trained: Path) -> Iterator[str]:
    """A server of a trained run, and of models with plain answers for the other tasks."""
    models = [vidi.load(trained), *(colours(task) for task in TASKS[1:])]
    for model, answer in zip(models[1:], ANSWER.values(), strict=False):
        model._said = answer
    with serve(*models) as running:
        yield running.url


@pytest.fixture(scope="module")
def guarded(browser: Browser, serve: Any, colours: Any) -> Iterator[str]:
    """A server that asks for a token, which is: open sesame."""
    with serve(colours(), token="open sesame") as running:
        yield running.url


@pytest.fixture
def photo(tmp_path: Path) -> Any:
    """Write an image, red at its left and green at its right, as a PNG file; ``red``: how much of
    it is red."""

    def write(name: str, red: float = 0.75, size: tuple[int, int] = (60, 80)) -> Path:
        pixels = np.full((*size, 3), (20, 200, 40), np.uint8)
        pixels[:, : int(red * size[1])] = (220, 30, 20)
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def digit(tmp_path: Path, digits: list[Array]) -> Any:
    def write(index: int) -> Path:
        path = tmp_path / f"digit-{index}.png"
        Image.fromarray(digits[index]).save(path)
        return path

    return write


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the path, and VIDI_CHROMIUM names none")
    with sync_playwright() as playwright:
        arguments = [*FAKE_CAMERA, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """Open a page, and see at the end that it asked nobody else and that its console is empty."""
    contexts = []

    def open_page(address: str, size: Any = DESKTOP, **options: Any) -> Visit:
        context = browser.new_context(viewport=size, reduced_motion="reduce", **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        made = Visit(context.new_page())
        made.page.on("pageerror", lambda error: made.told.append(str(error)))
        made.page.on("console", lambda message: made.told.append(message.text))
        made.page.on("request", lambda request: made.asked.append(request.url))
        made.page.goto(address)
        visits.append((address, made))
        return made

    visits: list[tuple[str, Visit]] = []
    yield open_page
    for address, made in visits:
        assert made.told == []
        others = [url for url in made.asked if not url.startswith((address, "data:", "blob:"))]
        assert others == []
    for context in contexts:
        context.close()


# The file ----------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_a_strict_policy_allows() -> None:
    """One style and one script, nothing from elsewhere, and no style or handler within a tag."""
    for tag in ("style", "script"):
        assert len(re.findall(f"<{tag}", PAGE)) == 1
    assert re.findall(r"https?://[^\s'\"<>]+", PAGE) == ["http://www.w3.org/2000/svg"]
    tags = re.findall(r"<[a-z][^>]*>", re.sub(r"(?s)<script>.*</script>", "", PAGE))
    assert len(tags) > 40
    for tag in tags:
        assert not re.search(r"\s(on\w+|style)\s*=", tag), tag
        assert not re.search(r"\s(src|href)\s*=\s*.(?!data:)", tag), tag


@pytest.mark.parametrize("theme", [0, 1])
def test_words_stand_out_from_their_paper(theme: int) -> None:
    """WCAG 2's contrast of at least 4.5 for all that is read, light and dark."""
    blocks = re.findall(r":root \{(.*?)\}", PAGE, re.S)
    colours = dict(re.findall(r"--([\w-]+): #(\w{6});", blocks[theme]))
    pairs = itertools.product(("ink", "quiet", "accent"), ("paper", "card"))
    for ink, paper in [
        *pairs,
        ("on-accent", "accent"),
        ("wrong", "wrong-paper"),
        ("quiet", "track"),
    ]:
        light = sorted(luminance(colours[name]) for name in (ink, paper))
        assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5, (ink, paper)


def luminance(colour: str) -> float:
    levels = np.array([int(colour[k : k + 2], 16) / 255 for k in (0, 2, 4)])
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


# Question and answer -----------------------------------------------------------------------------


def test_an_image_is_dropped_and_its_class_is_seen(
    server: str, visit: Any, trained: Path, digit: Any
) -> None:
    path = digit(5)
    expected = vidi.load(trained).predict(path)[0]
    one = visit(server)
    one.expect("ready", re.compile("Choose an image"))
    expect(one.page.locator("#task")).to_have_text("classification")
    expect(one.page.locator("#classes summary")).to_have_text("10 classes")
    one.drop(path)
    one.expect("answered", expected.label)
    rows = one.list()
    assert rows[0] == (expected.label, f"{100 * expected.probability:.1f} %")
    assert len(rows) == 5
    shares = [float(value.removesuffix(" %")) for _, value in rows]
    assert shares == sorted(shares, reverse=True)
    widths = one.page.locator("#list .bar i").evaluate_all(
        "all => all.map((one) => one.clientWidth / one.parentElement.clientWidth)"
    )
    assert widths == pytest.approx([share / 100 for share in shares], abs=0.01)
    assert re.fullmatch(r"in [\d.]+ m?s", one.page.locator("#time").inner_text())
    assert one.page.locator(".slot img").evaluate("one => one.naturalWidth") == 8


@pytest.mark.parametrize("task", ANSWER)
def test_what_is_drawn_is_shown_and_can_be_saved(
    server: str, visit: Any, photo: Any, task: str
) -> None:
    path = photo("street.png")
    with Image.open(path) as image:
        pixels = np.asarray(image)
    one = visit(server)
    one.turn_to(task)
    one.choose(path)
    one.expect("answered")
    expect(one.page.locator("#picture")).to_be_visible()
    with one.page.expect_download() as saved:
        one.page.click("#save")
    assert saved.value.suggested_filename == f"street-{task}.png"
    with Image.open(saved.value.path()) as image:
        expected = drawn(pixels, ANSWER[task](pixels), SEEN, least=0.5)
        np.testing.assert_array_equal(np.asarray(image), expected)
    told = {
        "segmentation": [("red", "75.0 %"), ("green", "25.0 %")],
        "detection": [("green", "0.90")],
        "boundaries": [("Largest probability of a pixel", "78.4 %"), ("Mean probability", "1.0 %")],
    }
    assert one.list() == told[task]


def test_less_sure_objects_are_shown_where_that_is_asked_for(
    server: str, visit: Any, photo: Any
) -> None:
    one = visit(server)
    one.turn_to("detection")
    one.choose(photo("a.png"))
    one.expect("answered", "1 × green")
    expect(one.page.locator("#list .where")).to_have_text("x 1 to 40, y 2 to 30")
    for key, told in (("Home", "1 × green, 1 × blue"), ("End", "Nothing so sure")):
        one.page.locator("#least input").press(key)
        expect(one.page.get_by_role("status")).to_have_text(told)


def test_two_frames_give_their_motion(server: str, visit: Any, photo: Any) -> None:
    first, second = photo("first.png", 0.25), photo("second.png", 0.75)
    one = visit(server)
    one.turn_to("flow")
    one.drop(second, on=".slot:last-child")
    one.expect("ready", "Choose the other image, too.")
    one.drop(first)
    one.expect("answered", "Motion")
    names = one.page.locator(".slot .call").all_inner_texts()
    assert [name.split(",")[0] for name in names] == [first.name, second.name]
    expect(one.page.locator("#picture")).to_be_visible()
    # Half of the pixels turn from green to red: by (200, -170).
    motion = np.zeros((60, 80, 2), np.float32)
    motion[:, 20:60] = 200, -170
    frame = np.zeros((60, 80, 3), np.uint8)
    expected = drawn(frame, FlowField("", "", frame, frame, motion), ())
    np.testing.assert_array_equal(one.picture(), expected)
    assert one.list() == [("Mean", f"{np.hypot(200, 170) / 2:.2f} px"),
                          ("Largest", f"{np.hypot(200, 170):.2f} px")]  # fmt: skip
    one.drop(second, first)
    one.expect("answered", "Motion")
    assert one.page.locator(".slot .call").first.inner_text().startswith(second.name)


def answering(said: dict[str, Any]) -> Callable[[Route], None]:
    return lambda route: route.fulfill(json={"answers": [said]})


def test_answers_with_odd_names_and_without_numbers_are_told(
    server: str, visit: Any, photo: Any
) -> None:
    """Names that are numbers, or JavaScript's own; and motion that is no finite number."""
    names = ["constructor", "7", "constructor", "__proto__"]
    objects = [{"class": name, "score": 0.9, "box": [0, 0, 2, 2]} for name in names]
    told: dict[str, tuple[dict[str, Any], str, list[tuple[str, str]]]] = {
        "segmentation": (
            {"shares": {"red": 0.5, "10": 0.3, "2": 0.2}},
            "Mostly red",
            [("red", "50.0 %"), ("10", "30.0 %"), ("2", "20.0 %")],
        ),
        "detection": (
            {"objects": objects},
            "2 × constructor, 1 × 7, 1 × __proto__",
            [(name, "0.90") for name in names],
        ),
        "flow": (
            {"mean_motion": None, "largest_motion": None},
            "Motion",
            [("Mean", "not finite"), ("Largest", "not finite")],
        ),
    }
    one = visit(server)
    for task, (said, headline, rows) in told.items():
        one.page.route("**/predict?*", answering(said))
        one.turn_to(task)
        one.drop(photo("a.png"), *([photo("b.png")] if task == "flow" else []))
        one.expect("answered", headline)
        assert one.list() == rows
        one.page.unroute("**/predict?*")


def test_another_run_is_asked_about_the_same_image(server: str, visit: Any, photo: Any) -> None:
    one = visit(server)
    one.choose(photo("a.png"))
    one.expect("answered")
    one.turn_to("segmentation")
    one.expect("answered", "Mostly red")
    one.turn_to("flow")
    one.expect("ready", re.compile("Choose two images"))
    assert one.page.locator(".slot.filled").count() == 0
    expect(one.page.locator("#answer")).to_be_hidden()


# What goes wrong ---------------------------------------------------------------------------------


def refused(one: Visit, status: int) -> None:
    """The browser itself tells its console of refusals; the page told it nothing else."""
    assert one.told and all(f"status of {status}" in line for line in one.told), one.told
    one.told.clear()


def test_a_file_that_is_no_image_is_an_error_in_a_sentence(
    server: str, visit: Any, photo: Any, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no image at all")
    one = visit(server)
    one.drop(text)
    one.expect("error", re.compile(r"^The image .*\.$"))
    expect(one.page.locator("#answer")).to_be_hidden()
    expect(one.page.get_by_role("button", name="Try again")).to_be_visible()
    refused(one, 422)
    one.drop(photo("a.png"))
    one.expect("answered")
    expect(one.page.get_by_role("button", name="Try again")).to_be_hidden()


def test_a_file_that_is_too_large_is_not_sent(server: str, visit: Any) -> None:
    one = visit(server)
    one.expect("ready")
    before = len(one.asked)
    one.page.evaluate("choose([new File([new Uint8Array(40 * 2 ** 20)], 'large.png')], null)")
    one.expect("error", "That is 41.9 MB; this server takes 33.6 MB at most.")
    assert [url for url in one.asked[before:] if "predict" in url] == []


def test_a_server_that_stopped_is_told_and_asked_again(server: str, visit: Any, photo: Any) -> None:
    one = visit(server)
    one.expect("ready")
    one.page.route("**/predict?*", lambda route: route.abort())
    one.choose(photo("a.png"))
    one.expect("error", re.compile("did not answer"))
    one.page.unroute("**/predict?*")
    one.page.get_by_role("button", name="Try again").click()
    one.expect("answered")
    assert all("net::ERR_FAILED" in line for line in one.told)
    one.told.clear()


def test_a_late_answer_does_not_replace_a_newer_one(
    server: str, visit: Any, digit: Any, trained: Path
) -> None:
    """The first question is held back until the second is answered."""
    model = vidi.load(trained)
    paths = [digit(index) for index in range(12)]
    labels = [one.label for one in model.predict(paths)]
    other = next(k for k, label in enumerate(labels) if label != labels[0])
    one = visit(server)
    one.expect("ready")
    held: list[Any] = []
    one.page.route("**/predict?*", lambda route: held.append(route), times=1)
    one.drop(paths[0])
    one.expect("thinking")
    one.drop(paths[other])
    one.expect("answered", labels[other])
    for route in held:
        try:
            route.continue_()
        except Error:  # the page has broken it off already, as it should
            continue
    one.page.wait_for_timeout(300)
    one.expect("answered", labels[other])


def test_the_token_is_asked_for_and_not_kept(guarded: str, visit: Any, photo: Any) -> None:
    one = visit(guarded)
    door = one.page.locator("#door")
    expect(door).to_be_visible()
    one.page.keyboard.type("open barley")
    one.page.keyboard.press("Enter")
    expect(door).to_contain_text("That was not it")
    one.page.keyboard.type("open sesame")
    one.page.keyboard.press("Enter")
    one.expect("ready")
    expect(door).to_be_hidden()
    one.choose(photo("a.png"))
    one.expect("answered")
    refused(one, 401)
    kept = "[localStorage.length, sessionStorage.length, document.cookie.length]"
    assert one.page.evaluate(kept) == [0, 0, 0]
    assert not any("sesame" in url for url in one.asked)
    one.page.reload()
    expect(door).to_be_visible()
    one.page.keyboard.press("Escape")
    one.expect("error", "Without its token the server does not answer.")
    refused(one, 401)
    one.page.get_by_role("button", name="Try again").click()
    expect(door).to_be_visible()
    refused(one, 401)


# Hands and eyes ----------------------------------------------------------------------------------


def test_the_camera_takes_a_picture_and_is_closed(server: str, visit: Any) -> None:
    one = visit(server)
    one.page.evaluate(
        """() => {
            const devices = navigator.mediaDevices, get = devices.getUserMedia.bind(devices);
            devices.getUserMedia = async (wanted) => (window.stream = await get(wanted));
        }"""
    )
    one.page.get_by_role("button", name="Use the camera").click()
    expect(one.page.locator("video")).to_be_visible()
    one.page.keyboard.press("Enter")
    one.expect("answered")
    assert one.page.evaluate("stream.getTracks().map((track) => track.readyState)") == ["ended"]
    assert one.page.locator(".slot img").evaluate("one => one.naturalWidth") >= 320


def test_the_camera_takes_two_frames_of_motion(server: str, visit: Any) -> None:
    """What is sent is looked at; the answer is made up, since the frames are large."""
    one = visit(server)
    sent = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_buffer or b"")
        motion = {"size": [1080, 1920], "mean_motion": 1.0, "largest_motion": 2.0}
        route.fulfill(json={"answers": [motion]})

    one.page.route("**/predict?*", answer)
    one.turn_to("flow")
    one.page.get_by_role("button", name="Use the camera").click()
    one.page.get_by_role("button", name="Take two pictures").click()
    one.expect("answered", "Motion")
    frames = re.findall(rb'name="(first|second)".*?\r\n\r\n(\x89PNG.*?)\r\n--', sent[0], re.S)
    assert [name for name, _ in frames] == [b"first", b"second"]
    assert frames[0][1] != frames[1][1], "time has passed between them"


def test_without_a_camera_a_sentence_says_so(server: str, visit: Any) -> None:
    one = visit(server)
    one.page.evaluate(
        """() => {
            navigator.mediaDevices.getUserMedia = () =>
                Promise.reject(new DOMException("", "NotFoundError"));
        }"""
    )
    one.page.get_by_role("button", name="Use the camera").click()
    one.expect("error", "There is no camera.")


def test_all_is_done_with_the_keyboard_alone(server: str, visit: Any, photo: Any) -> None:
    one = visit(server)
    one.page.on("filechooser", lambda chooser: None)  # dialogues are caught from now on
    one.expect("ready")
    reached = []
    for _ in range(6):
        one.page.keyboard.press("Tab")
        reached.append(one.page.evaluate("document.activeElement.innerText.split('\\n')[0]"))
        if reached[-1] == "Choose an image":
            break
    assert "Choose an image" in reached
    with one.page.expect_file_chooser() as opened:
        one.page.keyboard.press("Enter")
    opened.value.set_files(photo("a.png"))
    one.expect("answered")
    one.page.keyboard.press("Tab")
    assert one.page.evaluate("document.activeElement.innerText") == "Use the camera"


@pytest.mark.parametrize("task", TASKS)
def test_on_a_phone_all_stands_in_one_column_and_targets_are_large(
    server: str, visit: Any, photo: Any, task: str
) -> None:
    one = visit(server, PHONE, has_touch=True, is_mobile=True)
    one.turn_to(task)
    one.choose(*[photo(f"{k}.png", size=(300, 400)) for k in range(1 + (task == "flow"))])
    one.expect("answered")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for target in one.page.locator("button, select, input:not([type=file])").all():
        box = target.bounding_box()
        assert box is None or box["height"] >= 44
    question, answer = (one.page.locator("section").nth(k).bounding_box() for k in (0, 1))
    assert question
    assert answer
    assert answer["y"] > question["y"] + question["height"]
    top, bottom = answer["y"], answer["y"] + answer["height"]
    assert top >= -1
    assert bottom <= PHONE["height"] + 1 or top <= 1, "as much of the answer as the screen holds"
