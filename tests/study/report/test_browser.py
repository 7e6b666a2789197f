"""The page in a real browser: figures, filters, hovering, downloads."""

import base64
import io
import re
import time

import pandas as pd
import pytest
from PIL import Image

from sparsemm_eval.study.method_knobs import title_of
from sparsemm_eval.study.report import write
from sparsemm_eval.study.results import collect
from sparsemm_eval.study.seeds import configurations
from tests.study.report.browser import chromium, needs_browser, requested
from tests.study.study_folder import HEADS, LAYERS, grid, write_study

pytestmark = needs_browser

TASKS = ("pages_qa", "pages_ocr")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "s"
    write_study(folder, grid(), 20)
    write(folder)
    return folder


@pytest.fixture(scope="module")
def frame(study):
    found = configurations(*collect(study))
    return found[found["state"] == "done"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def browser(profile):
    with chromium(profile) as driver:
        yield driver


@pytest.fixture
def page(browser, profile, study):
    """The page loaded anew: no filter, choice, focus, place, pointer, message or download of another test."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    pointer = ActionBuilder(browser)
    pointer.pointer_action.move_to_location(0, 0)
    pointer.perform()
    # Loaded from itself, a page may keep its place and its choices.
    browser.get("about:blank")
    for path in (profile / "downloads").iterdir():
        path.unlink()
    requested(browser)
    browser.get_log("browser")
    open_page(browser, study / "report.html")
    return browser


def open_page(driver, path):
    driver.get(path.as_uri())
    wait(driver, "return document.documentElement.dataset.ready")


def wait(driver, script, seconds=150):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = driver.execute_script(script)
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {seconds} s for: {script}")


def traces(driver, chart, kind="series"):
    """A chart's traces of a kind as dicts, in drawing order."""
    script = "return document.getElementById(arguments[0]).data.filter(t => t.meta.kind === arguments[1])"
    keys = ".map(t => ({method: t.meta.method, knobs: t.meta.knobs, x: t.x, y: t.y}))"
    return driver.execute_script(script + keys, chart, kind)


def click(driver, selector):
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(driver, identifier, value):
    driver.execute_script(
        """
        const select = document.getElementById(arguments[0]);
        select.value = arguments[1];
        select.dispatchEvent(new Event("change", {bubbles: true}));
        """,
        identifier,
        value,
    )


def rows_of(frame, trace, task):
    kernel = (trace["knobs"] or {}).get("kernel_size")
    same = frame["kernel_size"].isna() if kernel is None else frame["kernel_size"] == kernel
    return frame[(frame["method"] == trace["method"]) & (frame["task"] == task) & same]


def test_loads_without_errors_and_without_requests(page, study):
    errors = [entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []
    others = [url for url in requested(page) if not url.startswith(("data:", "blob:"))]
    assert others == [(study / "report.html").as_uri()]
    assert page.execute_script("return window.evil === undefined")


@pytest.mark.parametrize(("number", "task"), enumerate(TASKS))
@pytest.mark.parametrize(
    ("kind", "x", "y"),
    [
        ("curve", "effective_budget", "score"),
        ("memory", "kv_bytes_per_sample", "score"),
        ("agreement", "effective_budget", "agreement"),
    ],
)
def test_curves_are_the_data(page, frame, number, task, kind, x, y):
    found = traces(page, f"{kind}-{number}")
    methods = frame[frame["task"] == task].dropna(subset=[y])[["method", "kernel_size"]].drop_duplicates()
    assert len(found) == len(methods)
    for trace in found:
        rows = rows_of(frame, trace, task).sort_values(x)
        assert trace["x"] == pytest.approx(rows[x].tolist())
        assert trace["y"] == pytest.approx(rows[y].tolist())
        assert len(trace["x"]) == (1 if trace["method"] == "fullkv" else 4)


def test_bands_are_the_intervals(page, frame):
    bands = traces(page, "curve-0", "band")
    assert len(bands) == 11
    rows = frame[(frame["method"] == "snapkv") & (frame["task"] == TASKS[0]) & (frame["kernel_size"] == 5)]
    rows = rows.sort_values("effective_budget")
    band = next(band for band in bands if band["method"] == "snapkv")
    assert band["y"] == pytest.approx([*rows["ci_high"], *rows["ci_low"][::-1]])


def test_every_seed_has_a_point(page, study):
    cells, _ = collect(study)
    points = traces(page, "curve-0", "seeds")
    found = sorted(score for trace in points for score in trace["y"])
    random = cells[(cells["method"] == "random") & (cells["task"] == TASKS[0])]
    assert found == pytest.approx(sorted(random["score"]))


def test_pareto_front_against_a_loop(page, frame):
    (front,) = traces(page, "memory-1", "front")
    rows = frame[frame["task"] == TASKS[1]]
    best = [
        (row["kv_bytes_per_sample"], row["score"])
        for _, row in rows.iterrows()
        if not any(
            (other["kv_bytes_per_sample"] < row["kv_bytes_per_sample"] and other["score"] >= row["score"])
            or (other["kv_bytes_per_sample"] == row["kv_bytes_per_sample"] and other["score"] > row["score"])
            for _, other in rows.iterrows()
        )
    ]
    assert set(zip(front["x"], front["y"], strict=True)) == set(best)
    assert front["x"] == sorted(front["x"])


def test_full_cache_line_is_level(page, frame):
    (line,) = traces(page, "curve-1", "line")
    rows = frame[frame["task"] == TASKS[1]]
    full = rows[rows["method"] == "fullkv"].iloc[0]
    assert line["y"] == pytest.approx([full["score"]] * 2)
    assert line["x"] == pytest.approx([rows["effective_budget"].min(), rows["effective_budget"].max()])


def test_hover_shows_the_values(page, frame):
    from selenium.webdriver.common.action_chains import ActionChains

    chart = page.find_element("id", "curve-0")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    # Where the plot put a point that no other one is near, relative to the middle of the chart.
    point = page.execute_script(
        """
        const chart = arguments[0], full = chart._fullLayout, box = chart.getBoundingClientRect();
        const all = chart.data.filter((t) => t.hovertemplate).flatMap((t) => t.x.map((x, i) => ({
          kind: t.meta.kind, method: t.meta.method, knobs: t.meta.knobs, index: i,
          left: full.xaxis.l2p(Math.log10(x)) + full._size.l, top: full.yaxis.l2p(t.y[i]) + full._size.t,
        })));
        const alone = (p) => all.every((q) => q === p || Math.hypot(p.left - q.left, p.top - q.top) > 25);
        const found = all.find((p) => p.kind === "series" && p.method !== "fullkv" && alone(p));
        return {...found, left: found.left - box.width / 2, top: found.top - box.height / 2};
        """,
        chart,
    )
    ActionChains(page).move_to_element(chart).perform()
    ActionChains(page).move_to_element_with_offset(chart, round(point["left"]), round(point["top"])).perform()
    text = wait(page, "const t = document.querySelector('#curve-0 .hovertext'); return t && t.textContent")
    row = rows_of(frame, point, TASKS[0]).sort_values("effective_budget").iloc[point["index"]]
    assert text.startswith(title_of(point["method"]) + f" · kernel_size {point['knobs']['kernel_size']}")
    assert f"exact_match {row['score']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" in text
    assert f"effective budget {row['effective_budget']:.1f}, nominal {row['budget']}" in text


def test_method_filter(page):
    click(page, 'input[name="method"][value="snapkv"]')
    assert "snapkv" not in {trace["method"] for trace in traces(page, "curve-0")}
    assert len(traces(page, "curve-0")) == 9
    hidden = page.execute_script(
        "return [...document.querySelectorAll('#curves tr[data-row][hidden]')].map(r => r.textContent)"
    )
    assert hidden
    assert all("SnapKV" in text for text in hidden)
    click(page, 'input[name="method"][value="snapkv"]')
    assert len(traces(page, "curve-0")) == 11


def test_knob_filter_keeps_methods_without_the_knob(page):
    click(page, 'input[name="knob:kernel_size"][value="7"]')
    found = traces(page, "memory-0")
    assert {(trace["knobs"] or {}).get("kernel_size") for trace in found} == {5, None}
    assert len(found) == 6
    assert "of 84" in page.find_element("id", "shown").text


def test_task_filter(page):
    click(page, 'input[name="task"][value="pages_ocr"]')
    shown = page.execute_script(
        "return [...document.querySelectorAll('figure[data-task]:not([hidden])')].map(f => f.dataset.task)"
    )
    assert set(shown) == {"pages_qa"}
    cards = page.execute_script(
        "return [...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.task)"
    )
    assert set(cards) == {"pages_qa"}


def test_nothing_left_is_said_and_undone(page):
    boxes = page.execute_script(
        "return [...document.querySelectorAll('input[name=method]')].map(b => b.value)"
    )
    for method in boxes:
        click(page, f'input[name="method"][value="{method}"]')
    assert "Nothing to show" in page.find_element("id", "curve-0").text
    click(page, 'input[name="method"][value="sparsemm"]')
    assert len(traces(page, "curve-0")) == 2
    assert page.find_elements("css selector", "#curve-0 .empty") == []


def test_disagreements_show_pictures_and_no_document_twice(page):
    script = "return [...document.querySelectorAll('.card')].filter(c => !c.hidden)"
    cards = page.execute_script(script + ".map(c => [c.dataset.method, c.dataset.task, c.dataset.doc])")
    assert len(cards) == 12
    assert len({tuple(card) for card in cards}) == 12
    wait(page, script + ".every(c => c.querySelector('img').naturalWidth > 50)")


def test_times_by_measure(page, frame):
    choose(page, "measure", "kv_bytes_peak_per_call")
    trace = next(t for t in traces(page, "time-0") if t["method"] == "adakv")
    rows = rows_of(frame, trace, TASKS[0]).sort_values("budget")
    assert trace["x"] == [str(budget) for budget in rows["budget"]]
    assert trace["y"] == pytest.approx(rows["kv_bytes_peak_per_call"].tolist())


def test_heat_map_follows_the_chosen_run(page, study):
    cells, _ = collect(study)
    wanted = cells[(cells["method"] == "adakv") & (cells["budget"] == 64)].iloc[0]
    choose(page, "cell", wanted["cell"])
    values = page.execute_script("return document.getElementById('heat').data[0].z")
    assert [len(values), len(values[0])] == [LAYERS, HEADS]
    mean = sum(map(sum, values)) / (LAYERS * HEADS)
    assert mean == pytest.approx(wanted["effective_budget"], rel=0.02)
    assert "AdaKV" in page.find_element("id", "heat-title").text
    table = page.execute_script("return document.getElementById('heat-table').rows[2].cells[3].textContent")
    assert float(table) == values[1][2]


def downloaded(driver, profile, name):
    path = profile / "downloads" / name
    end = time.monotonic() + 150
    while time.monotonic() < end:
        if path.is_file() and path.stat().st_size:
            return path.read_bytes()
        time.sleep(0.1)
    pytest.fail(f"{name} was not downloaded; there is {list(path.parent.iterdir())}")


def test_downloads(page, profile, study):
    click(page, "#csv")
    table = pd.read_csv(io.BytesIO(downloaded(page, profile, "s-results.csv")))
    cells, _ = collect(study)
    assert table["cell"].tolist() == cells["cell"].tolist()
    assert table["score"].fillna(-1).tolist() == pytest.approx(cells["score"].fillna(-1).tolist())
    click(page, "#curves figure button[data-export=svg]")
    picture = downloaded(page, profile, "s-curve-pages_qa.svg").decode()
    assert picture.startswith("<svg")
    assert "SparseMM · kernel_size 5" in picture
    assert "effective budget" in picture
    click(page, "#heads figure button[data-export=png]")
    with Image.open(io.BytesIO(downloaded(page, profile, "s-heat.png"))) as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(10**7)) > 50
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_desktop_screenshot_is_not_blank(page):
    page.execute_script("document.getElementById('curve-0').scrollIntoView({block: 'center'})")
    with Image.open(io.BytesIO(page.get_screenshot_as_png())) as image:
        colors = image.convert("RGB").getcolors(10**7)
    assert len(colors) > 200
    assert max(count for count, _ in colors) < 0.97 * image.size[0] * image.size[1]


def test_a_phone_scrolls_in_one_direction_only(study, tmp_path):
    with chromium(tmp_path, width=390, height=844) as driver:
        open_page(driver, study / "report.html")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert not driver.execute_script("return document.querySelector('#filters details').open")
        widths = driver.execute_script(
            "return [...document.querySelectorAll('svg.main-svg')].map(s => s.getBoundingClientRect().right)"
        )
        assert widths
        assert max(widths) <= 390
        assert len(traces(driver, "curve-0")) == 11


def test_print_has_the_figures_and_not_the_controls(page):
    content = page.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"]
    document = base64.b64decode(content)
    assert document.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", document))
    assert 4 <= pages <= 16
    # Afterwards the screen's figures are as wide as before.
    widths = page.execute_script(
        "return [...document.querySelectorAll('#curves .chart')].map(c => [c.layout.width, c.clientWidth])"
    )
    assert all(abs(drawn - room) <= 2 for drawn, room in widths)


def test_keyboard_reaches_the_content_first(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("tag name", "body").send_keys(Keys.TAB)
    focused = page.switch_to.active_element
    assert focused.text == "Skip to the results"
    focused.send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "main"


def test_every_control_has_a_name_and_every_figure_a_text(page):
    unnamed = page.execute_script(
        """
        const label = (e) => e.labels && e.labels.length ? e.labels[0].textContent : "";
        const name = (e) => e.getAttribute("aria-label") || label(e) || e.textContent;
        const controls = [...document.querySelectorAll("button, input, select, summary, a")];
        return controls.filter((e) => !name(e).trim()).map((e) => e.outerHTML);
        """
    )
    assert unnamed == []
    labels = page.execute_script(
        "return [...document.querySelectorAll('.chart')].map(c => c.getAttribute('aria-label'))"
    )
    assert len(labels) == 9
    assert all("The table below holds the values" in label for label in labels)
