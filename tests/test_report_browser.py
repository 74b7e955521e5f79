"The report as a reader meets it: a file, a browser, no network. (`chromium` skips, with the reason, where there is none.)"

import numpy as np
import pandas as pd
import pytest
import torch

from vdmini.core import BadInput
from vdmini.pictures import plot_clips, plot_frames
from vdmini.plots import METRICS, plot_cost, plot_drift, plot_factors, plot_importance
from vdmini.report import Section, write_report

STAGES = ["D.0", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3"]
LAYERS = [f"{s}.{k}.{j}" for s in STAGES for j in range(2) for k in "RA"]


def importance(level, blocks):
    g = np.random.default_rng(0)
    return pd.DataFrame(
        [
            dict(block=b, level=level, metric=m, value=v, lo=v * 0.9, hi=v * 1.1, n=16, seed=0)
            for m in METRICS
            for b, v in zip(["none", *blocks], g.random(len(blocks) + 1))
        ]
    )


def cost(level, blocks):
    g = np.random.default_rng(0)
    parts = pd.DataFrame(
        [
            dict(block=b, level=level, params=int(g.integers(1e6)), flops=1e9, latency_ms=g.random(), peak_bytes=1)
            for b in [*blocks, "rest"]
        ]
    )
    total = parts.drop(columns=["block", "level"]).sum().to_frame().T.assign(block="total", level="total")
    return pd.concat([parts, total])


def sections():
    g = torch.Generator().manual_seed(0)
    clips = lambda names, b: {n: torch.rand(b, 8, 3, 32, 32, generator=g) for n in names}
    table, subs = importance("layer", LAYERS), [f"{l}.{l[-3]}B-{x}" for l in LAYERS for x in "ST"]
    wide = pd.DataFrame(np.random.default_rng(0).random((30, 40)), columns=[f"a rather long column {i}" for i in range(40)])
    return [
        Section(
            "Importance",
            "Random numbers, **not** a measurement.\n\n- one\n- two `code`",
            {
                "Importance of layers": plot_importance(table),
                "Drift": plot_drift(table),
                "Factors": plot_factors(table, "layer"),
                "Sub-blocks": plot_importance(importance("sub", subs), "sub", log=True),
            },
            {"All rows": table},
        ),
        Section(
            "Cost",
            figures={
                "Cost of layers": plot_cost(cost("layer", LAYERS)),
                "Cost of sub-blocks": plot_cost(cost("sub", subs), "sub"),
            },
        ),
        Section(
            "Frames",
            figures={
                "First and last frames": plot_frames(clips(["unpruned", *STAGES], 1)),
                "Frame by frame": plot_clips(clips(["teacher", "student"], 1)),
            },
        ),
        Section("Teacher & student <side by side>", clips=clips(["teacher", "student"], 3)),
        Section("Every stage", clips=clips(["unpruned", *STAGES], 1)),
        Section("A wide table", tables={"Wide": wide}),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "report.html", "A random report", sections())


@pytest.fixture(scope="module", params=["light", "dark"])
def opened(request, chromium, report):
    "The page in one theme, with what it asked for and complained about."
    context = chromium.new_context(color_scheme=request.param, viewport=dict(width=1280, height=900), offline=True)
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.goto(report.as_uri())
    page.wait_for_function(
        "document.querySelectorAll('.js-plotly-plot .main-svg').length > 0"
        " && [...document.querySelectorAll('.plotly-graph-div')].every(d => d.querySelector('svg'))"
    )
    yield page, asked, complaints
    context.close()


def test_asks_nothing_of_the_network(opened, report):
    page, asked, complaints = opened
    page.wait_for_timeout(300)
    assert [u for u in asked if not u.startswith(("data:", "blob:"))] == [report.as_uri()]
    assert complaints == []


def test_every_figure_is_drawn(opened):
    page, *_ = opened
    drawn = page.eval_on_selector_all(".plotly-graph-div", "ds => ds.map(d => d.querySelectorAll('svg.main-svg').length)")
    assert len(drawn) == 8 and all(drawn)


def test_every_picture_is_there_and_named(opened):
    page, *_ = opened
    page.wait_for_function("[...document.images].every(i => i.complete)")
    sizes = page.eval_on_selector_all("main img", "is => is.map(i => [i.naturalWidth, i.naturalHeight, i.alt])")
    assert len(sizes) == 4 and all(w and h and alt for w, h, alt in sizes)
    assert sizes[0][:2] == [66, 32]
    assert page.eval_on_selector_all("main img", "is => is.map(i => getComputedStyle(i).imageRendering)") == ["pixelated"] * 4


@pytest.mark.parametrize("width", [1280, 1920])
def test_the_page_does_not_overflow(opened, width):
    page, *_ = opened
    page.set_viewport_size(dict(width=width, height=900))
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    over = "ds => ds.filter(d => d.getBoundingClientRect().right > innerWidth).length"
    assert page.eval_on_selector_all("figure, .main-svg, .scroll, .clip", over) == 0


def test_text_can_be_read_in_both_themes(opened):
    page, *_ = opened

    def light(selector, prop):
        return (
            sum(
                map(
                    float,
                    page.eval_on_selector(selector, f"e => getComputedStyle(e).{prop}")
                    .removeprefix("rgb(")
                    .rstrip(")")
                    .split(", "),
                )
            )
            / 3
        )

    paper = light("body", "backgroundColor")
    for selector, prop in ("p", "color"), (".xtick text", "fill"), (".gtitle", "fill"), (".cbaxis text", "fill"):
        assert abs(light(selector, prop) - paper) > 120
    cells = page.eval_on_selector_all(".heatmap-label text", "ts => [...new Set(ts.map(t => getComputedStyle(t).fill))]")
    assert len(cells) == 2  # dark on bright cells, bright on dark ones


def test_headings_lead_and_links_arrive(opened):
    page, *_ = opened
    assert page.locator("h1").count() == 1
    assert page.locator("h2").all_inner_texts()[3] == "Teacher & student <side by side>"
    links = page.eval_on_selector_all("nav a", "as => as.map(a => !!document.querySelector(a.getAttribute('href')))")
    assert links == [True] * 6


def test_one_copy_of_plotly_and_small(report):
    page = report.read_text()
    assert page.count("plotly.js v") == 1 and page.count("<script src") == 0 and "cdn.plot.ly" not in page.split("</head>")[1]
    assert report.stat().st_size < 10_000_000


def test_too_big_or_no_room_leaves_nothing(tmp_path):
    with pytest.raises(BadInput, match="fewer or smaller"):
        write_report(tmp_path / "r.html", "big", [], limit_bytes=1000)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        write_report(tmp_path / "file" / "r.html", "no folder", [])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
