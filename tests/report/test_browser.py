"""The page in a real browser: `pip install playwright` and a Chromium (`apt-get install chromium`)."""

import os
import shutil

import pytest
from synthetic_records import bench, comparison, evaluation, pruned_run, sample, write_record

from eggs_ptp.report.page import render_html
from eggs_ptp.report.report import make_report

pytestmark = pytest.mark.browser

LONG = "a-folder-name-that-is-much-wider-than-a-phone-and-has-no-space-where-the-line-could-be-broken" * 2
WIDTHS = (360, 1440)
SCHEMES = ("light", "dark")
OVERFLOWING = """() => [...document.querySelectorAll("body *")].filter(element =>
    !element.closest(".wide, pre, .skip, svg") && element.getBoundingClientRect().right > innerWidth + 0.5
).map(element => element.tagName + "." + element.className)"""
REACHABLE = """() => document.querySelectorAll(
    "a[href], button, summary, [tabindex='0']").length - document.querySelectorAll(
    "details:not([open]) :is(a[href], button, [tabindex='0'])").length"""
FOCUSED = "() => document.activeElement === document.body ? null : document.activeElement.tagName.toLowerCase()"
TOP = "() => document.activeElement.getBoundingClientRect().top + scrollY"
OUTLINE = "() => getComputedStyle(document.activeElement).outlineStyle"
CLIPPED = """() => [...document.querySelectorAll("svg.picture")].flatMap(svg => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter(text => {
        const rect = text.getBoundingClientRect();
        const horizontal = rect.left < box.left - 1 || rect.right > box.right + 1;
        return horizontal || rect.top < box.top - 1 || rect.bottom > box.bottom + 1;
    }).map(text => svg.querySelector("title").textContent + ": " + text.textContent);
})"""


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    program = os.environ.get("EGGS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium, or name one in EGGS_CHROMIUM")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    runs = [pruned_run(folder / "a", blocks=6), pruned_run(folder / LONG, method="ria")]
    for run, value in zip(runs, (28.0, 31.0), strict=True):
        write_record(folder / "records" / f"{run.name[:9]}.json", evaluation(str(run), "org/base", value))
    records = [bench(str(runs[0])), comparison("org/base"), sample("org/base", LONG), sample(str(runs[1]), " upon")]
    for index, record in enumerate(records):
        write_record(folder / "records" / f"{index}.json", record)
    write_record(folder / "records" / f"{LONG}.json", "{")
    path = folder / "report.html"
    path.write_text(render_html(make_report(runs, [folder / "records"])), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, page_file):
    """`opened(360, "dark")`: the page, and the messages of its console."""
    contexts = []

    def show(width, scheme):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on(
            "request", lambda request: messages.append(request.url) if not request.url.startswith("file:") else None
        )
        page.goto(page_file.as_uri())
        return page, messages

    yield show
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_the_console_is_silent(opened, width, scheme):
    page, messages = opened(width, scheme)
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(CLIPPED) == []
    assert [line for line in messages if not line.startswith(("data:", "file:"))] == []


def test_the_theme_follows_the_system_and_print_is_light(opened):
    colours = {}
    for scheme in SCHEMES:
        page, _ = opened(1440, scheme)
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 21, 28)"}
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colours["light"]


def test_the_keyboard_reaches_everything_in_reading_order(opened):
    page, _ = opened(1440, "light")
    focused = []
    tops = []
    for _ in range(page.evaluate(REACHABLE)):
        page.keyboard.press("Tab")
        focused.append(page.evaluate(FOCUSED))
        tops.append(page.evaluate(TOP))
        assert page.evaluate(OUTLINE) == "solid"
    assert None not in focused
    assert {"a", "div", "summary"} <= set(focused)
    sections = [top for tag, top in zip(focused, tops, strict=True) if tag == "summary"]
    assert sections == sorted(sections)
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) is None  # every element was reached, and none keeps the focus


def test_the_first_stop_skips_to_the_report(opened):
    page, _ = opened(360, "light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_a_table_is_sorted_from_the_keyboard(opened):
    page, _ = opened(1440, "light")
    details = page.locator("details:has-text('All 42 matrices of a')")
    details.locator("summary").press("Enter")
    column = details.locator("th[scope=col]").nth(4)

    def values():
        return [float(text) for text in details.locator("tbody td:nth-child(5)").all_inner_texts()]

    before = values()
    assert before != sorted(before, reverse=True)
    column.locator("button").press("Enter")
    assert values() == sorted(before, reverse=True)
    assert column.get_attribute("aria-sort") == "descending"
    column.locator("button").press("Enter")
    assert values() == sorted(before)
