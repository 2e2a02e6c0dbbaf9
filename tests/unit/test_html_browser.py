"""A report in a real browser: it asks for nothing, complains of nothing, sorts and filters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser
from kvruns import kv_run

from profinfer.cli import run
from profinfer.cli.report import command

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("html")
    trace = kv_run(120).write(folder / "kv.pf")
    assert run(command, [str(trace), "--html", str(folder / "r.html")]) == 0
    return folder / "r.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def column(page: Page, table: str, at: int) -> list[str]:
    cells = f"[...document.querySelectorAll('#{table} tbody tr')]"
    cells += f".filter(r => !r.hidden).map(r => r.cells[{at}].textContent)"
    return list(page.value(cells))


def scroll_to(page: Page, css: str) -> None:
    """Until the page has come to rest."""
    page.value(f"document.querySelector({json.dumps(css)}).scrollIntoView({{block: 'center'}})")
    page.value("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))")


def click(page: Page, css: str) -> None:
    page.value(f"document.querySelector({json.dumps(css)}).click()")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_both_themes_and_widths(
    page: Page, report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    page.open(report, width, 900, dark)
    assert page.asked == [] and page.said == []
    back = page.value("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, back.removeprefix("rgb(").removesuffix(")").split(","))) > 384
    assert light is not dark
    assert page.value("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('#token-times svg')].filter(s => s.clientWidth > 0)"
    assert page.value(f"{shown}.length") == 1
    text = f"{shown}[0].querySelector('text').getBoundingClientRect().height"
    assert page.value(text) >= 9  # legible
    assert len(page.picture(tmp_path / "page.png", "#tokens")) > 10_000
    click(page, "#theme")
    assert page.value("getComputedStyle(document.body).backgroundColor") != back
    click(page, "#theme")
    page.value("localStorage.clear()")


def test_tables_sort(page: Page, report: Path) -> None:
    page.open(report)
    table = "time-operators_by_role"
    before = column(page, table, 0)
    click(page, f"#{table} thead th:nth-child(1) button")
    assert column(page, table, 0) == sorted(before)
    click(page, f"#{table} thead th:nth-child(1) button")
    assert column(page, table, 0) == sorted(before, reverse=True)
    head = f"document.querySelector('#{table} thead th:nth-child(1)')"
    assert page.value(f"{head}.getAttribute('aria-sort')") == "descending"
    click(page, f"#{table} thead th:nth-child(2) button")
    numbers = [float(n.replace(",", "")) for n in column(page, table, 1)]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) > 3


def test_tables_filter_and_show_all_columns(page: Page, report: Path) -> None:
    page.open(report)
    table = "time-operators_by_node"
    click(page, f"details:has(#{table}) summary")
    every = column(page, table, 0)
    page.value(
        f"(f => {{ f.value = 'ffn UP'; f.dispatchEvent(new Event('input')); }})"
        f"(document.querySelector('#{table} input'))"
    )
    assert column(page, table, 0) == ["ffn_up-1", "ffn_up-0"] and len(every) > 10
    hidden = f"getComputedStyle(document.querySelector('#{table} td.detail')).display"
    assert page.value(hidden) == "none"
    click(page, f"#{table} button.more")
    assert page.value(hidden) == "table-cell"


def test_values_answer_to_pointer_and_keys(page: Page, report: Path) -> None:
    page.open(report)
    tip = "document.getElementById('tip')"
    svg = "document.querySelector('#token-times .wide svg')"
    scroll_to(page, "#token-times .wide svg")
    key = f"{svg}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight'}}))"
    page.value(key)
    first = page.value(f"{tip}.textContent")
    assert first.startswith("position 5: ")
    page.value(key)
    assert page.value(f"{tip}.textContent").startswith("position 6: ")
    scroll_to(page, "#layers .wide svg")
    box = page.value(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector("
        "'#layers .wide rect[data-i=\"0\"]').getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    assert page.value(f"{tip}.textContent").startswith("layer 0, ")
    assert page.value(f"{tip}.hidden") is False
    assert page.said == []


def test_nothing_of_a_name_runs(page: Page, tmp_path: Path) -> None:
    evil = "</script><script>window.hit = 1</script><img src=http://evil.test/x onerror=hit=1>"
    target = {"argv": ["./llama", "-m", f"{evil}.gguf"]}
    trace = kv_run(20, {}, target=target).write(tmp_path / "e.pf")
    out = tmp_path / "e.html"
    assert run(command, [str(trace), "--html", str(out)]) == 0
    page.open(out)
    assert page.value("window.hit") is None
    assert page.value("document.title").startswith("x onerror=hit=1>")
    assert page.asked == []
