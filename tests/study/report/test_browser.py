"""The page in a real browser: no request, nothing overlaps or is cut off, light, dark and printed."""

import base64

import pytest

from sparsemm_eval.study.report import write
from tests.study.report.browser import chromium, needs_browser, requested
from tests.study.study_folder import grid, write_study

pytestmark = needs_browser
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "s"
    write_study(folder, [*grid(), *grid(model="other-reader")], 20)
    return write(folder)


@pytest.fixture(scope="module", params=WIDTHS)
def browser(request, tmp_path_factory, page):
    with chromium(tmp_path_factory.mktemp("profile"), request.param) as driver:
        driver.get(page.as_uri())
        yield driver


def test_nothing_is_asked_for_and_nothing_complains(browser, page):
    others = [url for url in requested(browser) if not url.startswith("data:")]
    assert set(others) <= {page.as_uri()}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert browser.execute_script("return window.evil === undefined")


def test_the_page_is_as_wide_as_the_window(browser):
    wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0


def test_texts_of_figures_are_readable_and_do_not_overlap(browser):
    overlaps = browser.execute_script(
        """
        const found = [];
        for (const svg of document.querySelectorAll("figure svg")) {
          const texts = [...svg.querySelectorAll("text")];
          const boxes = texts.map((text) => [text.textContent.trim(), text.getBoundingClientRect()]);
          const outer = svg.getBoundingClientRect();
          for (const [name, box] of boxes) {
            const inside = box.left >= outer.left - 1 && box.right <= outer.right + 1;
            if (!inside || box.top < outer.top - 1 || box.bottom > outer.bottom + 1) {
              found.push(`clipped: ${name}`);
            }
          }
          boxes.forEach(([name, a], index) => boxes.slice(index + 1).forEach(([other, b]) => {
            const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (across > 2 && down > 4) { found.push(`${name} / ${other}`); }
          }));
        }
        return found;
        """
    )
    assert overlaps == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_from_the_paper(browser, scheme):
    scheme_ = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_)
    colours = browser.execute_script(
        """
        const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
        return [
          of("body", "color"), of("body", "backgroundColor"),
          of("figure svg text", "fill"), of(".note", "color"),
        ];
        """
    )
    ink, paper, figure, note = (luminance(colour) for colour in colours)
    assert (paper > 0.8) == (scheme == "light")
    for colour in (ink, figure, note):
        assert (max(colour, paper) + 0.05) / (min(colour, paper) + 0.05) >= 4.5


def luminance(colour):
    """Relative luminance of ``rgb(r, g, b)`` as the guidelines for accessible contents define it."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_keyboard_reaches_everything(browser):
    reachable = browser.execute_script(
        "const found = [...document.querySelectorAll('a, summary, .scroll[tabindex]')];"
        "return found.every((one) => one.tabIndex === 0)"
    )
    assert reachable


def test_it_prints_without_navigation(browser):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script('return getComputedStyle(document.querySelector("nav")).display') == "none"
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
