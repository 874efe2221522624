"""The page of `lstmfast report` in a browser: opens without a network, computes as the library does, and reacts."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lstmfast as lf
from lstmfast.report import causes, page
from lstmfast.report.network import Network, rounded
from lstmfast.report.passage import Passage, characters_of_bytes
from lstmfast.text.vocabulary import Vocabulary
from lstmfast.training.config import Config

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")

FUNCTION = 'def f(a, b):\n    """Return the sum."""\n    return a + b  # add\n\n\n'
TEXT = (FUNCTION + 'class Three(Two):\n    x = {"k": [1, 2]}\n') * 4
VOCABULARY = Vocabulary.characters(TEXT)
CELLS = {
    "plain": {},
    "two layers": {"num_layers": 2, "embedding_size": 5},
    "tied": {"embedding_size": 16, "tied": True},
    "projection": {"cell": lf.Cell(projection_size=7), "num_layers": 2},
    "peepholes and a clip": {"cell": lf.Cell(peepholes=True, cell_clip=0.4), "num_layers": 2},
    "coupled gates": {"cell": lf.Cell(coupled_gates=True, peepholes=True)},
}


def model_of(**options: Any) -> lf.CharLM:
    """A model whose weights are so large that its gates move."""
    rng = np.random.default_rng(5)
    model = lf.CharLM(options.pop("vocab_size", VOCABULARY.size), 16, rng=rng, **options)
    model.parameter_buffer[...] = rng.normal(scale=0.6, size=model.parameter_buffer.shape)
    return model


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A page in the browser, what it asked the network for and wrote to the console, and the network that it holds."""

    browser_page: Any
    requests: list[str]
    errors: list[str]
    network: Network
    passage: Passage
    ids: np.ndarray  # what the model reads: the beginning, then the passage

    def __call__(self, script: str) -> Any:
        return self.browser_page.evaluate(script)

    def floats(self, script: str) -> np.ndarray:
        """An array of the page."""
        return np.array(self(f"Array.from({script})"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def open_page(
    browser: Any, folder: Path, model: lf.CharLM, vocabulary: Vocabulary, passage: Passage, **context: Any
) -> Opened:
    run = page.Run("a run", Config(), [{"step": 0, "loss": 3.0}, {"step": 5, "loss": 2.0}], "=== step 5 ===\nabc\n\n")
    beginning = int(vocabulary.encode("\n")[0])
    file = folder / "report.html"
    file.write_bytes(page.to_html(page.contents(model, vocabulary, passage, beginning, run)))
    opened = browser.new_context(offline=True, **context).new_page()
    requests: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(file.as_uri())
    opened.wait_for_selector("html[data-ready]")
    ids = np.concatenate([[beginning], passage.ids]).astype(np.int64)
    return Opened(opened, requests, errors, rounded(Network.of(model)), passage, ids)


@pytest.fixture(scope="module", params=CELLS, ids=str)
def any_cell(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Opened]:
    passage = Passage(VOCABULARY.encode(TEXT), list(TEXT), ())
    opened = open_page(browser, tmp_path_factory.mktemp("page"), model_of(**CELLS[request.param]), VOCABULARY, passage)
    yield opened
    opened.browser_page.close()


@pytest.fixture
def plain(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    passage = Passage(VOCABULARY.encode(TEXT), list(TEXT), ("Where it is from.",))
    opened = open_page(browser, tmp_path, model_of(), VOCABULARY, passage)
    yield opened
    opened.browser_page.close()


# --- numbers


def test_nothing_is_asked_of_a_network_and_nothing_goes_wrong(any_cell: Opened) -> None:
    asked = [address for address in any_cell.requests if not address.startswith(("file:", "data:"))]
    assert (asked, any_cell.errors) == ([], [])


def test_states_and_gates_along_the_text_are_the_librarys(any_cell: Opened) -> None:
    trace = any_cell.network.read(any_cell.ids)
    for layer in range(len(any_cell.network.layers)):
        for name, values in (("h", trace.h), ("c", trace.c), ("gates", trace.gates)):
            states = any_cell(f"passage.states.map((states) => Array.from(states[{layer}].{name}))")
            assert_allclose(np.array(states), values[layer].reshape(len(values[layer]), -1), rtol=1e-5, atol=2e-5)


def test_probabilities_of_a_typed_text_are_the_librarys(any_cell: Opened) -> None:
    text = "class f(a):\n    return"
    any_cell.browser_page.fill("#typed", text)
    shown = any_cell.floats("probabilities(network.logits(typed.states[typed.states.length - 1]), 1)")
    logits = any_cell.network.read(np.concatenate([any_cell.ids[:1], VOCABULARY.encode(text)])).logits[-1]
    assert_allclose(shown, np.exp(logits - np.logaddexp.reduce(logits)), atol=2e-5)


@pytest.mark.parametrize("place", [0, 40, 250])
def test_what_a_prediction_hangs_on_is_the_librarys(any_cell: Opened, place: int) -> None:
    first = max(place + 1 - page.WINDOW, 0)
    shown = any_cell.floats(f"network.connectivity(passage.states, {first}, {place}, passage.ids[{place}])")
    trace = any_cell.network.read(any_cell.ids)
    wanted = causes.connectivity(any_cell.network, trace, any_cell.ids, place + 1, page.WINDOW)
    assert_allclose(shown, wanted[len(wanted) - len(shown) :], rtol=1e-3, atol=1e-6)


def test_writing_on_at_temperature_zero_is_greedy_sampling(any_cell: Opened) -> None:
    any_cell.browser_page.fill("#typed", "class ")
    any_cell("byId('temperature').value = 0; for (let k = 0; k < 20; k++) writeOne();")
    ids = list(np.concatenate([any_cell.ids[:1], VOCABULARY.encode("class ")]))
    for _ in range(20):
        ids.append(int(any_cell.network.read(np.array(ids)).logits[-1].argmax()))
    assert any_cell.browser_page.input_value("#typed") == VOCABULARY.decode(np.array(ids[1:]))


def test_surprise_and_guesses_are_the_librarys(plain: Opened) -> None:
    trace = plain.network.read(plain.ids)
    assert_allclose(plain.floats("passage.bits"), trace.surprise(plain.ids), atol=1e-5)
    best = plain.floats("guesses.ids").reshape(-1, 5)
    assert_array_equal(best[:, 0], trace.logits[:-1].argmax(axis=-1))


def test_a_text_of_one_character_has_a_page(browser: Any, tmp_path: Path) -> None:
    opened = open_page(browser, tmp_path, model_of(), VOCABULARY, Passage(VOCABULARY.encode("d"), ["d"], ()))
    assert (opened.errors, opened("spans.length")) == ([], 1)


def test_the_page_of_a_trained_model_guesses_as_the_model_does(browser: Any, tmp_path: Path) -> None:
    model = lf.CharLM(VOCABULARY.size, 32, rng=np.random.default_rng(0))
    ids = VOCABULARY.encode(TEXT)
    optimizer = lf.optimizers.Adam()
    optimizer.init(model.parameter_buffer)
    inputs, targets = np.ascontiguousarray(ids[:-1, None]), np.ascontiguousarray(ids[1:, None])
    for _ in range(150):
        model.loss_and_gradients(inputs, targets)
        optimizer.update(model.parameter_buffer, model.gradient_buffer, learning_rate=0.01)
    opened = open_page(browser, tmp_path, model, VOCABULARY, Passage(ids, list(TEXT), ()))
    exact = Network.of(model).read(opened.ids)
    own = np.array(opened("passage.states.map((states) => network.logits(states).reduce((best, l, k, all) => "
                          "(l > all[best] ? k : best), 0))"))
    int8, _ = model.inference(weights="int8")(np.ascontiguousarray(opened.ids[:, None].astype(np.int32)))
    for logits in (exact.logits, int8.reshape(len(own), -1)):
        assert np.mean(own == logits.argmax(axis=-1)) >= 0.99
    c = np.array(opened("passage.states.map((states) => Array.from(states[0].c.map(Math.tanh)))"))
    assert np.abs(c - np.tanh(exact.c[0])).max() < 0.1 and np.abs(c - np.tanh(exact.c[0])).mean() < 0.01


# --- what happens when one does something


def test_typing_moves_the_bars(plain: Opened) -> None:
    before = plain.browser_page.inner_text("#next")
    plain.browser_page.press("#typed", "End")
    plain.browser_page.type("#typed", "x = [1")
    assert plain.browser_page.inner_text("#next") != before


def test_a_character_that_the_model_does_not_know_is_named_and_skipped(plain: Opened) -> None:
    plain.browser_page.fill("#typed", "def ß")
    assert "“ß”" in plain.browser_page.inner_text("#unknown")
    assert plain("typed.ids.length") == len("def ")


def test_write_on_writes_until_it_is_stopped(plain: Opened) -> None:
    plain.browser_page.click("#write")
    plain.browser_page.wait_for_function("typed.ids.length > passage.characters.join('').split('\\n')[0].length + 3")
    plain.browser_page.click("#write")
    assert plain("typed.timer") == 0 and plain.browser_page.inner_text("#write") == "Write on"


def test_pointing_at_a_character_shows_what_was_expected(plain: Opened) -> None:
    plain.browser_page.hover("#text span:nth-child(8)")
    shown = plain.browser_page.inner_text("#place")
    rank = int(plain("guesses.rank[7]"))
    assert f"guess number {rank}" in shown and f"{plain('passage.bits[7]'):.2f} bits" in shown
    assert plain.browser_page.locator("#place li").count() == 5


def test_the_arrow_keys_move_through_the_text(plain: Opened) -> None:
    before = plain("chosen.place")
    plain.browser_page.focus("#text")
    for _ in range(3):
        plain.browser_page.keyboard.press("ArrowLeft")
    assert plain("chosen.place") == before - 3
    assert plain("document.querySelectorAll('#text .here').length") == 1


def test_a_found_cell_colours_the_text_and_is_followed_everywhere(plain: Opened) -> None:
    before = plain("spans[20].style.backgroundColor")
    plain.browser_page.focus("#cells tbody tr:nth-child(3) button")
    plain.browser_page.keyboard.press("Enter")
    name = plain.browser_page.inner_text("#cells tbody tr:nth-child(3) td")
    assert plain.browser_page.inner_text("#gates h2") == f"Gates of {name}"
    assert plain("spans[20].style.backgroundColor") != before


def test_a_square_chooses_its_cell(plain: Opened) -> None:
    box = plain.browser_page.locator("#states canvas").first.bounding_box()
    plain.browser_page.locator("#states canvas").first.click(position={"x": 2, "y": box["height"] - 2})
    assert plain("chosen.cell") == plain("columnsFor(16) * (Math.ceil(16 / columnsFor(16)) - 1)")


def test_selected_characters_find_the_cells_that_differ_there(plain: Opened) -> None:
    begin = TEXT.index('"""') + 3
    plain(f"document.getSelection().setBaseAndExtent(spans[{begin}].firstChild, 0, spans[{begin + 9}].firstChild, 1)")
    plain.browser_page.wait_for_selector("#selection button")
    first = plain(f"cellsOn({begin}, {begin + 10})[0]")
    tanh_c = np.tanh(plain.network.read(plain.ids).c[0][1:])
    z = np.abs(tanh_c[begin : begin + 10].mean(axis=0) - tanh_c.mean(axis=0)) / tanh_c.std(axis=0)
    assert first["cell"] == z.argmax()
    plain.browser_page.click("#selection button")
    assert plain("chosen.cell") == first["cell"] and plain.browser_page.inner_text("#others")


def test_a_run_of_bytes_reads_and_writes_characters_of_several(browser: Any, tmp_path: Path) -> None:
    vocabulary = Vocabulary.bytes_()
    ids = vocabulary.encode("né à\n" * 30)
    passage = Passage(ids, characters_of_bytes(ids), ())
    opened = open_page(browser, tmp_path, model_of(vocab_size=256), vocabulary, passage)
    opened.browser_page.fill("#typed", "é")
    assert opened("typed.ids") == list("é".encode())
    assert opened.errors == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_scrolls_sideways(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    passage = Passage(VOCABULARY.encode(TEXT), list(TEXT), ())
    screen = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    opened = open_page(browser, tmp_path, model_of(num_layers=2), VOCABULARY, passage, **screen)
    assert opened("document.documentElement.scrollWidth") == width
    assert opened("getComputedStyle(document.body).backgroundColor !== 'rgb(253, 252, 250)'") == (scheme == "dark")
