"""The workbench as its users meet it: in JupyterLab, in a browser, with a mouse and with keys."""

import re
from pathlib import Path

import pytest
from jupyter_browser import ask, notebook, tell
from PIL import Image
from playwright.sync_api import expect

from vdmini.budget import Budget, recorded
from vdmini.surgery import Plan

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "nbs" / "tutorials" / "keep_or_drop.ipynb"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(jupyter, chromium):
    with notebook(jupyter, chromium, TUTORIAL, timeout_s=300) as page:
        page.locator(".vdmini-map svg").first.wait_for()
        press(page, "Keep all")
        settled(page)
        yield page


def press(page, name: str) -> None:
    page.locator("button.jupyter-button", has_text=re.compile(rf"^\s*{name}\s*$")).first.click()


def upload(page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("button.jupyter-button", has_text="Upload").first.click()
    chooser.value.set_files(path)


def cell(page, block: str):
    return page.locator(f".vdmini-map [data-block='{block}']").first


def dropped(page) -> list[str]:
    return list(ask(page, "bench.plan.dropped"))


def inside(box: dict, home: dict) -> bool:
    far = [home[k] + home[side] - box[k] - box[side] for k, side in (("x", "width"), ("y", "height"))]
    return min(*far, box["x"] - home["x"], box["y"] - home["y"]) >= -1


def settled(page) -> None:
    ask(page, "bench.background.wait(60)")


def budget_row(page) -> str:
    return page.locator("th:has-text('this plan')").first.locator("xpath=..").inner_text()


def expected(*names: str) -> list[str]:
    left = Budget("tiny-svd", recorded("cost"))(Plan.dropping("tiny-svd", *names))
    return [f"{left.params / 1e6:,.2f}", f"{left.flops / 1e9:,.2f}", f"{left.latency_ms:,.2f}"]


def frame(page) -> str:
    return ask(page, "__import__('hashlib').sha256(bench.clips.player._every['this plan'].numpy().tobytes()).hexdigest()")


def test_two_clicks_change_budget_and_clip(page):
    before = frame(page)
    cell(page, "U.3.R.1").click()
    cell(page, "U.3.A.1").click()
    page.wait_for_function("() => document.querySelector(\"[data-block='U.3.A.1']\").getAttribute('aria-checked') === 'false'")
    assert dropped(page) == ["U.3.R.1", "U.3.A.1"]
    for figure in expected("U.3.R.1", "U.3.A.1"):
        assert figure in budget_row(page)
    settled(page)
    assert frame(page) != before


def test_paper_undo_redo(page):
    press(page, "Keep all")
    press(page, "Paper's plan")
    page.wait_for_function("() => document.querySelector(\"[data-block='D.3.R.0']\").getAttribute('aria-checked') === 'false'")
    assert dropped(page) == list(Plan.paper("tiny-svd").dropped)
    for figure in expected(*Plan.paper("tiny-svd").dropped):
        assert figure in budget_row(page)
    press(page, "Undo")
    page.wait_for_function("() => document.querySelector(\"[data-block='D.3.R.0']\").getAttribute('aria-checked') === 'true'")
    assert dropped(page) == []
    press(page, "Redo")
    page.wait_for_function("() => document.querySelector(\"[data-block='D.3.R.0']\").getAttribute('aria-checked') === 'false'")
    assert dropped(page) == list(Plan.paper("tiny-svd").dropped)


def test_shift_click_takes_the_stage_and_keys_walk(page):
    press(page, "Keep all")
    page.wait_for_function("() => document.querySelector(\"[data-block='D.3.R.0']\").getAttribute('aria-checked') === 'true'")
    cell(page, "M.A.0").click(modifiers=["Shift"])
    page.wait_for_function("() => document.querySelector(\"[data-block='M.R.0']\").getAttribute('aria-checked') === 'false'")
    assert dropped(page) == ["M"]
    cell(page, "U.2.A.0").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.dataset.block") == "U.2.R.1"
    page.keyboard.press("ArrowUp")
    assert page.evaluate("() => document.activeElement.dataset.block") == "U.3.R.1"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector(\"[data-block='U.3.R.1']\").getAttribute('aria-checked') === 'false'")
    assert page.evaluate("() => document.activeElement.dataset.block") == "U.3.R.1"  # the focus outlives the drawing
    assert dropped(page) == ["M", "U.3.R.1"]


def test_hover_tells_all_figures(page):
    cell(page, "U.3.R.0").hover()
    told = page.locator(".vdmini-tip").first.inner_text()
    for line in ("U.3.R.0", "tiny-FVD", "content drift", "motion drift", "parameters, million", "latency, ms"):
        assert line in told
    value = recorded("importance").query("block == 'U.3.R.0' and metric == 'tiny_fvd'").iloc[0]
    assert f"{value.value:.4g}  ({value.lo:.4g} – {value.hi:.4g})" in told
    for block in ("M.R.0", "D.2.A.1"):  # whatever row it is in, the tip is not cut off
        cell(page, block).hover()
        tip, home = page.locator(".vdmini-tip").first, page.locator(":has(> .vdmini-map)").first
        assert block in tip.inner_text()
        assert inside(tip.bounding_box(), home.bounding_box())


def test_saved_plan_is_a_file(page):
    press(page, "Keep all")
    cell(page, "D.2.A.1").click()
    name = page.get_by_label("name").first
    name.fill("clicked")
    name.blur()
    press(page, "Save")
    page.get_by_text("saved as").first.wait_for()
    folder = ask(page, "__import__('os').getcwd()")
    assert Plan.load(str(Path(folder) / "plans" / "clicked.json")) == Plan.dropping("tiny-svd", "D.2.A.1")
    press(page, "Fine-tune …")
    page.get_by_text("copy this into a cell").first.wait_for()
    assert ask(page, "bench.shelf.cell.value") == "!vdmini_train tiny-svd --plan plans/clicked.json --out runs/clicked"


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_cut_off(jupyter, chromium, width, theme, tmp_path_factory):
    cells = [
        "from vdmini.widgets import Workbench; from vdmini.budget import recorded; from vdmini.teachers import load_teacher",
        "bench = Workbench(load_teacher('tiny-svd'), recorded('importance'), recorded('cost')); bench",
    ]
    with notebook(jupyter, chromium, cells, theme=theme, width=width, height=1900) as page:
        page.locator(".vdmini-map svg").first.wait_for()
        settled(page)
        page.locator(".js-plotly-plot").first.wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=str(tmp_path_factory.getbasetemp() / f"workbench-{width}-{theme}.png"))
        wide = page.evaluate(
            "() => [...document.querySelectorAll('.jp-OutputArea-output')].map(o => [o.scrollWidth, o.clientWidth])"
        )
        assert page.locator(".vdmini-map svg").first.bounding_box()["width"] > 700
        assert wide and all(scroll <= client + 1 for scroll, client in wide)


def test_failing_generation_says_so_and_the_next_click_works(page):
    press(page, "Keep all")
    settled(page)
    tell(page, "bench.teacher.vae.decode = lambda *a, **k: (_ for _ in ()).throw(MemoryError('no memory left'))")
    cell(page, "U.3.A.0").click()
    page.get_by_text("MemoryError: no memory left").first.wait_for()
    assert dropped(page) == ["U.3.A.0"]
    tell(page, "del bench.teacher.vae.decode")
    before = frame(page)
    cell(page, "U.3.A.1").click()
    page.get_by_text("MemoryError").first.wait_for(state="hidden")
    settled(page)
    assert dropped(page) == ["U.3.A.0", "U.3.A.1"] and frame(page) != before


def test_found_plan_is_measured_beside_its_estimate(page):
    page.locator("select:has(option:text-is('parameters, million'))").last.select_option("parameters, million")
    limit = page.locator(".widget-text input[type=number]").first
    three_quarters = f"{0.75 * Budget('tiny-svd', recorded('cost')).total.params / 1e6:.3f}"
    expect(limit).to_have_value(three_quarters)  # what the panel proposes; typing before it would be overwritten
    limit.fill("4.93")
    limit.press("Tab")
    press(page, "Find a plan")
    page.wait_for_function("() => document.querySelector(\"[data-block='D.3.R.0']\").getAttribute('aria-checked') === 'false'")
    assert ask(page, "float(bench.budget(bench.plan).params)") <= 4.93e6
    said = page.locator(".jupyter-widgets", has_text="the sum of single harms").last
    assert "not measured" in said.inner_text()
    press(page, "Measure this plan")
    said.filter(has_text="), measured").wait_for(timeout=90_000)
    assert "not measured" not in said.inner_text()
    assert ask(page, "len(bench.figures.figure.data[2].y)") == 1


def test_uploads_and_controls_change_the_clip(page, tmp_path):
    press(page, "Keep all")
    settled(page)
    before = frame(page)
    now = ask(page, "bench.clips.start.parts['motion'].direction.label")
    page.get_by_label("direction").first.select_option("W" if now == "E" else "E")
    settled(page)
    turned = frame(page)
    assert turned != before
    Image.new("RGB", (64, 48), (200, 40, 40)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_text("no picture")
    upload(page, tmp_path / "red.png")
    page.locator("option:text-is('uploaded frame')").first.wait_for(state="attached")
    settled(page)
    red = frame(page)
    assert red != turned
    upload(page, tmp_path / "broken.png")
    page.get_by_text("broken.png:").first.wait_for()
    assert frame(page) == red


TEXT = """
import torch
from vdmini.cost import cost
from vdmini.detectors import Detector
from vdmini.material import Material
from vdmini.sweep import sweep
from vdmini.teachers import random_teacher
from vdmini.widgets import Workbench

read = lambda clips: dict(clip=clips.mean((1, 3, 4)), frame=clips.mean((3, 4)))
mean = Detector("mean", "mean_distance", "distance of mean colours", 3, 2, read)
teacher = random_teacher("tiny-cogvideox-2b").sampled(steps=1)
said = ["a fox runs", "rain"]
real = Material(torch.rand(2, 9, 3, 32, 48), torch.zeros(2, 2, dtype=torch.long), None, captions=said)
importance = sweep(teacher, real, "layer", mean, progress=False)
bench = Workbench(teacher, importance, cost(teacher.network, teacher.inputs(), repeats=1), material=real, detector=mean)
bench
"""


@pytest.fixture(scope="module")
def text(jupyter, chromium):
    "A model that takes prompts, with random weights."
    with notebook(jupyter, chromium, [TEXT], height=1600) as page:
        page.locator(".vdmini-map svg").first.wait_for()
        settled(page)
        yield page


def say(page, label: str, value: str) -> None:
    "Type into a box, and wait until the kernel has heard it."
    box = page.get_by_label(label, exact=True).first
    box.fill(value)
    box.press("Enter")
    heard = f"[b.value for b in (*s.settings.values(), s.parts['prompts'].text) if b.description == {label!r}][0]"
    for _ in range(100):
        if str(ask(page, f"(lambda s: {heard})(bench.clips.start)")) == value:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{label} did not become {value!r}")


def test_a_prompt_is_typed_and_the_clip_follows(text):
    assert text.get_by_label("prompt").first.input_value() == "a fox runs"
    before = frame(text)
    say(text, "prompt", "a crow on a wire")
    settled(text)
    crow = frame(text)
    assert crow != before and ask(text, "bench.clips.start.asked()[0].prompts") == ("a crow on a wire",)
    say(text, "prompt", "")
    text.get_by_text("the prompt is empty").first.wait_for()
    say(text, "steps", "0")
    say(text, "prompt", "rain")
    text.get_by_text("steps 0; expected a whole number, at least 1").first.wait_for()
    assert frame(text) == crow
    text.locator("select:has(option:text-is('captions …'))").first.select_option("rain")
    say(text, "steps", "2")
    text.wait_for_function("() => document.querySelector('.vdmini-player [role=status]').innerText === ''")
    settled(text)
    assert frame(text) != crow


def test_cancel_stops_the_work_and_replaces_nothing(text):
    say(text, "steps", "1")
    settled(text)
    before = frame(text)
    say(text, "steps", "900")
    button = text.locator("button.jupyter-button", has_text="Cancel").first
    expect(button).to_be_visible()
    assert ask(text, "bench.background.running")
    button.click()
    text.get_by_text("stopped").first.wait_for()
    settled(text)
    assert not ask(text, "bench.background.running") and ask(text, "bench.background.progress") < 0.9
    assert frame(text) == before
    expect(button).to_be_hidden()
    say(text, "steps", "2")
    settled(text)
    assert frame(text) != before


def test_blocks_of_a_transformer_are_dropped_found_and_measured(text):
    cell(text, "B.07").click()
    text.wait_for_function("() => document.querySelector(\"[data-block='B.07']\").getAttribute('aria-checked') === 'false'")
    assert dropped(text) == ["B.07"]
    expect(text.locator("button.jupyter-button", has_text="Paper's plan").first).to_be_disabled()
    press(text, "Find a plan")
    text.wait_for_function("() => document.querySelectorAll(\"[data-block][aria-checked='false']\").length > 3")
    assert ask(text, "float(bench.budget(bench.plan).latency_ms / bench.budget.total.latency_ms)") <= 0.75
    settled(text)
    press(text, "Measure this plan")
    text.locator(".jupyter-widgets", has_text="the sum of single harms").last.filter(has_text="), measured").wait_for()
