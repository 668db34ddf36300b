"""The pages in real headless Chromium: figures, live updates, keyboard, accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aid_edge.hub.web.conftest import FLEET_SIZE, Site

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = [pytest.mark.browser]
AXE = Path(__file__).parents[3] / "support" / "axe.min.js"


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A page of a context of its own, on which any outside request or script error fails."""
    context = browser.new_context(base_url=site.url, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems: list[str] = []

    def note_request(request: Any) -> None:
        if not request.url.startswith((site.url, "data:")):
            problems.append(f"outside request: {request.url}")

    page.on("request", note_request)
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on(
        "console",
        lambda m: problems.append(m.text) if "Content Security Policy" in m.text else None,
    )
    yield page
    context.close()
    assert problems == []


def is_live(page: Any) -> None:
    page.wait_for_selector("#live[data-kind=on]")


def text_of(page: Any, selector: str) -> str:
    text: str = page.inner_text(selector)
    return " ".join(text.split())


def test_fleet_shows_status_tiles_and_figures(page: Any) -> None:
    page.goto("/")
    tiles = text_of(page, "#tiles")
    assert f"{FLEET_SIZE + 3} all" in tiles
    assert "12 ○ offline" in tiles
    assert "1 ◌ never-seen" in tiles
    row = text_of(page, "#row-camera-01")
    assert "▲ late" in row
    assert "efficientnet-lite0@1.1.0" in row
    assert "ms" in row
    assert page.locator("tbody tr").count() == 50


def test_change_arrives_without_reloading(page: Any, site: Site) -> None:
    page.goto("/")
    is_live(page)
    page.evaluate("window.before = document.querySelector('#row-sensor-001')")
    page.focus("#row-sensor-001 a")
    assert "0 0 0" in text_of(page, "#row-sensor-001")
    site.filler.answer("sensor-001", 77, late=3)
    site.live.changed("sensor-001")
    expect(page.locator("#row-sensor-001")).to_contain_text("77")
    expect(page.locator("#tiles .s-late b")).to_have_text("2")
    # Morphed, not replaced: who stood there with the keyboard still does.
    assert page.evaluate("window.before === document.querySelector('#row-sensor-001')")
    assert page.evaluate("document.activeElement.innerText") == "sensor-001"


def test_new_device_appears_without_reloading(page: Any, site: Site) -> None:
    page.goto("/?text=aaa-new")
    is_live(page)
    assert "No device matches" in page.inner_text("#listing")
    site.filler.connect("aaa-new")
    site.live.changed("aaa-new")
    page.wait_for_selector("#row-aaa-new")
    with site.filler.store.transaction() as t:
        t._connection.execute("DELETE FROM device WHERE id = 'aaa-new'")
    site.live.changed("aaa-new")
    page.wait_for_selector("text=No device matches")


def test_filter_works_by_keyboard_and_is_in_the_address(page: Any) -> None:
    page.goto("/")
    is_live(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to content"
    page.focus("#text")
    page.keyboard.type("camera-0")
    expect(page.locator("tbody tr")).to_have_count(3)
    assert page.evaluate("document.activeElement.id") == "text"
    assert page.evaluate("location.search").startswith("?text=camera-0")
    page.reload()
    assert page.locator("tbody tr").count() == 3
    page.focus("#tiles a.s-failed")
    page.keyboard.press("Enter")
    page.wait_for_url("**/*status=failed*")
    assert page.locator("tbody tr").all_inner_texts()[0].startswith("camera-02")
    page.go_back()
    assert page.locator("tbody tr").count() == 3


def test_filtered_page_stays_live(page: Any, site: Site) -> None:
    page.goto("/")
    is_live(page)
    page.fill("#text", "sensor-007")
    expect(page.locator("tbody tr")).to_have_count(1)
    site.filler.answer("sensor-007", 55)
    site.live.changed("sensor-007")
    expect(page.locator("#row-sensor-007")).to_contain_text("55")
    assert page.locator("tbody tr").count() == 1


def test_paging_by_keyboard_reaches_every_device_once(page: Any) -> None:
    page.goto("/")
    names: list[str] = []
    while True:
        names += page.locator("tbody th a").all_inner_texts()
        if not page.locator("a[rel=next]").count():
            break
        page.focus("a[rel=next]")
        # The page reloads parts of itself: only the address says that the next one is there.
        before = page.url
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url, before=before: url != before)
    assert len(names) == FLEET_SIZE + 3
    assert sorted(set(names)) == names
    page.click("text=« First page")
    page.wait_for_url(lambda url: "after" not in url)


def test_pages_work_without_scripts(browser: Any, site: Site) -> None:
    context = browser.new_context(base_url=site.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.fill("#text", "camera-01")
    page.click("button[type=submit]")
    assert page.locator("tbody tr").count() == 1
    page.click("tbody th a")
    assert "camera-01" in page.inner_text("h1")
    assert page.locator("#device-latency svg").count() == 1
    context.close()


def test_device_shows_all_it_knows(page: Any) -> None:
    page.goto("/")
    page.click("#row-camera-01 a")
    page.wait_for_url("**/devices/camera-01")
    assert "late" in page.inner_text("h1")
    assert "efficientnet-lite0@1.1.0" in page.inner_text("#device-slots")
    facts = page.inner_text("#device-facts")
    assert "51.5 °C" in facts
    assert "bubblewrap" in facts
    assert "in force" in facts
    assert page.locator("#device-latency svg rect.bar").count() > 5
    assert "p95" in page.text_content("#device-latency svg")
    page.wait_for_selector("#series canvas")
    answers = page.inner_text("#device-answers")
    assert "coffee mug" in answers
    assert "<b>bold</b>" in answers
    said = page.inner_text("#device-feedback")
    assert "wrong" in said
    assert "<script>alert(1)</script>" in said
    assert "now proving" in page.inner_text("#device-events")
    assert page.get_attribute("#device-events time", "title").endswith("UTC")


def test_every_chart_has_its_table(page: Any) -> None:
    page.goto("/devices/camera-01")
    for summary in page.locator("summary").all():
        summary.press("Enter")
    latency = page.locator("#device-latency details")
    shown = sum(
        int(n.replace("\u202f", "")) for n in latency.nth(0).locator("td.n").all_inner_texts()
    )
    assert shown == int(text_of(page, ".figures div:nth-child(3) dd").replace(" ", ""))
    assert latency.nth(1).locator("tbody tr").count() >= 36
    assert page.locator("#device-answers details tbody tr").count() == 10


def test_device_page_changes_live_and_keeps_what_is_open(page: Any, site: Site) -> None:
    page.goto("/devices/camera-01")
    is_live(page)
    page.wait_for_selector("#series canvas")
    page.locator("#device-latency summary").first.click()
    before = text_of(page, ".figures div:nth-child(3) dd")
    site.filler.answer("camera-01", 60)
    site.filler.say("camera-01", "wrong", "a second opinion")
    site.live.changed("camera-01")
    page.wait_for_selector("text=a second opinion")
    assert text_of(page, ".figures div:nth-child(3) dd") != before
    assert page.locator("#device-latency details[open]").count() == 1
    assert page.locator("#series canvas").count() == 1


def test_failed_deployment_says_why(page: Any) -> None:
    page.goto("/devices/camera-02")
    assert "differs by 0.31" in page.inner_text("#device-head")
    assert "differs by 0.31" in page.inner_text("#device-slots")


def test_device_that_never_connected_says_what_to_do(page: Any) -> None:
    page.goto("/devices/camera-03")
    assert "install.sh" in page.inner_text("#device-head")
    assert "aid-edge deploy" in page.inner_text("#device-slots")


def test_connection_lost_is_said_and_made_again(page: Any) -> None:
    lost = []

    def drop_first(socket: Any) -> None:
        if lost:
            socket.connect_to_server()
        else:
            lost.append(socket)
            socket.close()

    page.route_web_socket("**/live", drop_first)
    page.goto("/")
    expect(page.locator("#live")).to_contain_text("not live: trying again")
    is_live(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "path",
    ["/", "/?text=nothing-like-it", "/devices/camera-01", "/devices/camera-02",
     "/devices/camera-03", "/login", "/no-such-page"],
)  # fmt: skip
def test_axe_finds_nothing(browser: Any, site: Site, scheme: str, width: int, path: str) -> None:
    context = browser.new_context(
        base_url=site.url,
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        bypass_csp=True,
    )
    page = context.new_page()
    page.goto(path)
    if "device" in path:
        for summary in page.locator("summary").all():
            summary.click()
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run(document)")
    problems = [
        f"{v['id']}: {node['html'][:160]}" for v in found["violations"] for node in v["nodes"]
    ]
    assert problems == []
    assert len(found["passes"]) > 10
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    context.close()
