"The clip player: what Python sends, and what a person sees and does in JupyterLab."

import base64
import io
import itertools

import numpy as np
import pytest
import torch
from einops import rearrange
from jupyter_browser import ask, notebook, set_theme, tell
from PIL import Image

from vdmini.core import BadInput
from vdmini.player import ClipPlayer


def random_clips(*names, b=2, f=8, h=4, w=6):
    g = torch.Generator().manual_seed(0)
    return {n: torch.rand(b, f, 3, h, w, generator=g) for n in names}


def read(png: bytes):  # → h w c uint8
    return torch.tensor(np.array(Image.open(io.BytesIO(png)).convert("RGB")))


def frames_of(player):  # → names f c h w uint8, read back from what is sent
    s = player.shown
    cut = [rearrange(read(p), "(r h) (k w) c -> (r k) c h w", h=s["height"], k=s["columns"]) for p in s["sheets"]]
    return torch.stack(cut)[:, : s["frames"]]


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("f", [1, 5, 8, 9])
def test_the_browser_gets_the_frames_of_the_chosen_clip(f, clip):
    clips = random_clips("a", "b", f=f)
    sent = frames_of(ClipPlayer(clips, clip=clip))
    assert torch.equal(sent, (torch.stack([c[clip] for c in clips.values()]) * 255).round().byte())


def test_another_clip_or_other_clips_are_one_change():
    clips, changes = random_clips("a", "b"), []
    player = ClipPlayer(clips)
    player.observe(lambda change: changes.append(change.new["names"]), "shown")
    player.clip = 1
    assert changes == [["a", "b"]]
    assert torch.equal(frames_of(player)[1], (clips["b"][1] * 255).round().byte())
    player.show(random_clips("c", b=1))  # clip 1 is no more
    assert changes[1:] == [["c"]] and player.clip == 0


@pytest.mark.parametrize("call", ["show", "clip"])
def test_what_was_shown_stays_when_bad_input_is_refused(call):
    player = ClipPlayer(random_clips("a", "b"))
    before = player.shown
    with pytest.raises(BadInput):
        player.show(random_clips("a") | random_clips("b", f=3), clip=1) if call == "show" else setattr(player, "clip", 2)
    assert player.shown is before and player.clip == 0
    player.clip = 1  # and it goes on working
    assert player.shown is not before


def test_the_static_strip_comes_with_the_widget():
    clips = random_clips("a <b>", h=32, w=32)
    player = ClipPlayer(clips, clip=1)
    data, _ = player._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/html"] == player.strip().data and "a &lt;b&gt;" in data["text/html"]
    uri = data["text/html"].split("base64,")[1].split('"')[0]
    thumbs = read(base64.b64decode(uri))[::2, ::2]  # 32 pixels stand as 64, gaps of 2 as 1
    for k, frame in enumerate((0, 4, 7)):
        here = rearrange(thumbs[:, 33 * k : 33 * k + 32], "h w c -> c h w")
        assert torch.equal(here, (clips["a <b>"][1, frame] * 255).round().byte())


CELLS = [
    """import torch
from vdmini.player import ClipPlayer
g = torch.Generator().manual_seed(0)
a, b = torch.rand(2, 3, 8, 3, 32, 32, generator=g)
b = a + (b - .5) / 32
player = ClipPlayer({"whole model": a, "this plan": b.clamp(0, 1), "the whole model once more": a})
player""",
    "player.strip()",
]
PIXELS = """cs => cs.map(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"""


@pytest.fixture(scope="module")
def page(jupyter, chromium):
    with notebook(jupyter, chromium, CELLS) as page:
        page.locator(".vdmini-player canvas").nth(2).wait_for(timeout=60_000)
        yield page


@pytest.fixture(autouse=True)
def rewound(request):
    "Each test meets a player that stands at frame 0 of clip 0, looping at normal speed."
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        if (pause := page.get_by_role("button", name="Pause")).count():
            pause.click()
        page.get_by_label("loop").check()
        page.get_by_label("difference to").uncheck()
        page.get_by_label("speed").select_option("1")
        scrub(page, 0)


def scrub(page, frame):
    page.get_by_label("frame").last.fill(str(frame))


def position(page):
    return int(page.get_by_label("frame").last.input_value())


def drawn(page):  # → canvases h w c uint8
    pixels = page.locator(".vdmini-player canvas").evaluate_all(PIXELS)
    return torch.tensor(pixels, dtype=torch.uint8).view(-1, 32, 32, 4)[..., :3]


def wait_until(page, holds, timeout_s=10):
    "Wait for what the page and the kernel agree on after some messages; fails if they never do."
    for _ in range(10 * timeout_s):
        if holds():
            return
        page.wait_for_timeout(100)
    assert holds()


def expected(page, frame, clip=0):
    values = ask(page, f"[(c[{clip}, {frame}] * 255).round().int().tolist() for c in player._every.values()]")
    return rearrange(torch.tensor(values, dtype=torch.uint8), "k c h w -> k h w c")


@pytest.mark.browser
@pytest.mark.parametrize("frame", [0, 3, 7])
def test_scrubbing_shows_that_frame_in_every_canvas(page, frame):
    scrub(page, frame)
    assert torch.equal(drawn(page), expected(page, frame))
    assert page.locator(".vdmini-player output").inner_text() == f"{frame + 1} / 8"


@pytest.mark.browser
def test_play_goes_on_and_pause_stops(page):
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => +document.querySelector('.vdmini-player [type=range]').value >= 2")
    page.get_by_role("button", name="Pause").click()
    stopped = position(page)
    page.wait_for_timeout(500)
    assert position(page) == stopped
    assert torch.equal(drawn(page), expected(page, stopped))


@pytest.mark.browser
def test_without_the_loop_it_ends_and_play_starts_over(page):
    page.get_by_label("loop").uncheck()
    page.get_by_label("speed").select_option("2")
    scrub(page, 5)
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Play").wait_for()
    assert position(page) == 7
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => +document.querySelector('.vdmini-player [type=range]').value < 7")


@pytest.mark.browser
def test_with_the_loop_it_begins_again(page):
    scrub(page, 7)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => +document.querySelector('.vdmini-player [type=range]').value < 7")
    assert page.get_by_role("button", name="Pause").count() == 1


@pytest.mark.browser
def test_the_difference_is_to_the_first_model(page):
    scrub(page, 4)
    page.get_by_label("difference to whole model").check()
    whole, plan, again = expected(page, 4).int()
    seen = drawn(page).int()
    assert torch.equal(seen[0], whole) and (plan - whole).any()
    assert torch.equal(seen[1], (plan - whole).abs())
    assert not seen[2].any()
    brighter = page.locator(".vdmini-player canvas").evaluate_all("cs => cs.map(c => getComputedStyle(c).filter)")
    assert brighter == ["none", "brightness(8)", "brightness(8)"]


@pytest.mark.browser
def test_the_keyboard_reaches_everything(page):
    page.locator(".vdmini-player .clips").focus()
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Pause").count() == 1
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").count() == 1
    cell = "() => jupyterapp.shell.currentWidget.content.activeCellIndex"
    active = page.evaluate(cell)
    at = position(page)
    for tag in ("BUTTON", "INPUT"):
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.tagName") == tag
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert position(page) == min(at + 2, 7) and page.evaluate(cell) == active
    for what in ("SELECT", "checkbox", "checkbox", "SELECT"):
        page.keyboard.press("Tab")
        assert what in page.evaluate("() => [document.activeElement.tagName, document.activeElement.type]")


@pytest.mark.browser
def test_clips_are_chosen_in_the_page_and_in_python(page):
    page.get_by_role("combobox", name="clip").select_option("2")
    scrub(page, 6)
    wait_until(page, lambda: ask(page, "player.clip") == 2 and torch.equal(drawn(page), expected(page, 6, 2)))
    tell(page, "player.clip = 0")
    wait_until(page, lambda: page.get_by_role("combobox", name="clip").input_value() == "0")
    assert position(page) == 6 and torch.equal(drawn(page), expected(page, 6))


@pytest.mark.browser
def test_other_clips_come_into_the_same_player_which_goes_on(page):
    scrub(page, 5)
    page.get_by_role("button", name="Play").click()
    tell(page, "player.show({'one': a[:1]}); player.fps = .001; player.message = 'out of memory: <b>1 GiB</b>'")
    page.wait_for_function("() => document.querySelectorAll('.vdmini-player canvas').length === 1")
    assert page.locator(".vdmini-player [role=status]").inner_text() == "out of memory: <b>1 GiB</b>"
    assert page.get_by_role("button", name="Pause").count() == 1 and position(page) >= 5
    hidden = page.locator(".vdmini-player .controls label").filter(visible=False)
    assert [o.strip()[:10] for o in hidden.all_text_contents()] == ["difference", "clip0"]
    tell(page, "player.message = ''; player.fps = 8; player.show({'whole model': a, 'this plan': b.clamp(0, 1), 'again': a})")
    page.wait_for_function("() => document.querySelectorAll('.vdmini-player canvas').length === 3")
    assert not page.locator(".vdmini-player [role=status]").is_visible()


BOXES = """es => es.map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"""


def overlap(a, b):
    return a[0] < b[2] - 0.5 and b[0] < a[2] - 0.5 and a[1] < b[3] - 0.5 and b[1] < a[3] - 0.5


SHOWN = dict(
    few="'whole model': a, 'this plan': b.clamp(0, 1), 'again': a",
    many="**{f'a rather long name, number {i}, of a model': a for i in range(9)}",
    large="'whole model': torch.rand(1, 5, 3, 288, 512), 'tuned student': torch.rand(1, 5, 3, 288, 512)",
)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("what", ["many", "large", "few"])
def test_nothing_overlaps_or_is_cut_off(page, what, width):
    page.set_viewport_size(dict(width=width, height=900))
    tell(page, f"player.show({{{SHOWN[what]}}})")
    n = ask(page, "len(player.shown['names'])")
    page.wait_for_function("n => document.querySelectorAll('.vdmini-player canvas').length === n", arg=n)
    room = page.locator(".vdmini-player").evaluate_all(BOXES)[0]
    parts = page.locator(".vdmini-player figure, .vdmini-player .controls > *").filter(visible=True).evaluate_all(BOXES)
    assert len(parts) == n + (6 if what == "large" else 7)
    assert all(b[0] >= room[0] and b[2] <= room[2] for b in parts)
    assert not [pair for pair in itertools.combinations(parts, 2) if overlap(*pair)]
    canvases = page.locator(".vdmini-player canvas").evaluate_all(
        "cs => cs.map(c => [c.clientWidth / c.width, c.clientHeight / c.height, getComputedStyle(c).imageRendering])"
    )
    if what == "large":  # side by side, never enlarged
        assert all(0.6 < across <= 1 and abs(down - across) < 0.01 and how == "auto" for across, down, how in canvases)
        assert parts[0][1] == parts[1][1]
    else:
        assert canvases == [[8, 8, "pixelated"]] * n


@pytest.mark.browser
def test_nothing_is_asked_of_the_network(page, jupyter):
    asked = page.evaluate("() => performance.getEntriesByType('resource').map(e => e.name)")
    assert asked and not [
        u for u in asked if not u.startswith((jupyter.url, jupyter.url.replace("http", "ws", 1), "data:", "blob:"))
    ]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_strips_are_seen_and_text_can_be_read(page, theme, width):
    set_theme(page, theme)
    page.set_viewport_size(dict(width=width, height=900))
    page.wait_for_timeout(300)
    strips = page.locator(".jp-OutputArea-output img").evaluate_all("is => is.map(i => [i.naturalWidth, i.naturalHeight])")
    assert strips == [[196, 64]] * 6  # under the clips, and in the next cell
    contrast = """e => {
        const bright = c => c.match(/\\d+/g).slice(0, 3).reduce((s, v) => s + +v, 0) / 3
        const paper = getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor
        return Math.abs(bright(getComputedStyle(e).color) - bright(paper))
    }"""
    for part in "figcaption", "button", "select", "label", "output":
        assert page.locator(f".vdmini-player {part}").first.evaluate(contrast) > 120
