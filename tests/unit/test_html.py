from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from builders import llama_graph, sample_run
from kvruns import kv_run

from profinfer.analysis.result import Column, Note, Result
from profinfer.cli import run
from profinfer.cli.report import command
from profinfer.model.trace import Trace
from profinfer.render.html import bars, plot
from profinfer.render.html.charts import Axis, Bars, Plot, Series
from profinfer.render.html.drawing import NARROW, WIDE
from profinfer.render.html.scales import scale
from profinfer.render.html.tables import table
from profinfer.render.html.tokenfigures import thinned

GOLDEN = Path(__file__).parents[1] / "golden"
EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>&amp;'


class Checker(HTMLParser):
    """Every element is closed in order; collects what is there."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "input"}:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, (self.stack[-5:], tag)
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text())
    assert checker.stack == []
    return checker


def html(trace: Path, target: Path, *args: str) -> int:
    return run(command, [str(trace), "--html", str(target), *args])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a golden trace; made once."""
    folder = tmp_path_factory.mktemp("pages")

    @cache
    def made(name: str) -> Path:
        out = folder / f"{name}.html"
        assert html(GOLDEN / f"{name}.pf", out) == 0
        return out

    return made


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("*.pf")))
def test_every_trace_has_a_sound_page(name: str, page: Callable[[str], Path]) -> None:
    out = page(name)
    checker = checked(out)
    ids = [a["id"] for _, a in checker.tags if a.get("id")]
    assert len(ids) == len(set(ids)), "an id is there twice"
    links = {a["href"][1:] for t, a in checker.tags if t == "a" and a.get("href")}
    assert links <= set(ids)
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", out.read_text().lower())
    assert {"summary", "time", "recording"} <= set(ids)


def test_experts_and_the_graph_have_their_sections(page: Callable[[str], Path]) -> None:
    ids = [a["id"] for _, a in checked(page("routed")).tags if a.get("id")]
    assert {"experts", "experts-experts_by_layer", "graph"} <= set(ids)
    ids = [a["id"] for _, a in checked(page("generation")).tags if a.get("id")]
    assert "graph" in ids and "experts" not in ids
    assert shutil.which("dot") is None or "layer-graph" in ids


def test_counters_have_their_section(page: Callable[[str], Path], tmp_path: Path) -> None:
    checker = checked(page("counted"))
    ids = [a["id"] for _, a in checker.tags if a.get("id")]
    assert {"counters", "counters-counters_by_op"} <= set(ids)
    text = page("counted").read_text()
    names = [c.name for c in Trace.open(GOLDEN / "counted.pf").meta.plan.counters]
    assert names and all(name in text for name in names)
    assert "counters" not in [a.get("id") for _, a in checked(page("generation")).tags]


def test_without_graphviz_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    out = tmp_path / "r.html"
    assert html(GOLDEN / "generation.pf", out) == 0
    checker = checked(out)
    assert "Graphviz is not installed" in "".join(checker.text)
    assert "layer-graph" not in [a.get("id") for _, a in checker.tags]


def test_the_page_loads_nothing(page: Callable[[str], Path]) -> None:
    out = page("generation")
    checker = checked(out)
    for tag, attributes in checker.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "style"} & set(attributes), (tag, attributes)
        assert not [a for a in attributes if a.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(a["content"] for t, a in checker.tags if a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy
    text = out.read_text()
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket", text)
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # of namespaces
    assert set(re.findall(r"https?://[^\"']+", text)) <= names


def test_names_are_no_markup(tmp_path: Path) -> None:
    target = {"argv": ["./llama", "-m", f"/models/{EVIL}.gguf"], "exe": "/opt/llama"}
    builder = sample_run(decode_tokens=40, target=target, engine={"name": EVIL}).builder
    builder.thread(78, builder._last_ts + 1, "</script><b>")
    graph = llama_graph(layers=1)
    graph.cgraph += 4096
    for node in graph.nodes:
        if node.name.startswith("ffn"):
            node.name = f"{node.name}</script><img src=x>"
    ts = builder._last_ts + 1000
    builder.call_begin(77, ts, pos_first=45, pos_last=45)
    truth = builder.run_graph(graph, begin=ts + 400)
    builder.call_end(77, truth.end_ns + 150)
    out = tmp_path / "r.html"
    assert html(builder.write(tmp_path / "evil.pf"), out) == 0
    checker, text = checked(out), out.read_text()
    assert not [t for t, _ in checker.tags if t in {"img", "b"}]
    scripts = [a for t, a in checker.tags if t == "script"]
    assert [a for a in scripts if a.get("type") != "application/json"] == [{}]
    assert EVIL not in text and "<img" not in text
    assert "ffn_up-0&lt;/script&gt;&lt;img src=x&gt;" in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_names_in_tables_and_charts_are_escaped() -> None:
    columns = (Column(EVIL, EVIL, "text", EVIL), Column("n", EVIL, "count", EVIL))
    frame = pd.DataFrame([[EVIL, 1], [EVIL, 2]], columns=[EVIL, "n"])
    shown = table(Result("x", EVIL, EVIL, columns, frame, (Note("info", EVIL),), {"n": 3}), "x")
    picture = Plot(
        "x", EVIL, EVIL, Axis(EVIL), Axis(EVIL),
        [Series(EVIL, [1, 2], [1, 2], tips=[EVIL, EVIL], label=EVIL)], [(1.5, EVIL)],
    )  # fmt: skip
    stacked = Bars("x", EVIL, EVIL, [EVIL], [EVIL], [[1.0]], Axis(EVIL), [0], [[EVIL]])
    for markup in (shown, plot.draw(picture, WIDE), bars.draw(stacked, NARROW)):
        checker = Checker()
        checker.feed(markup)
        assert checker.stack == []
        assert not {"img", "script"} & {t for t, _ in checker.tags}


def test_five_hundred_tokens_stay_small(tmp_path: Path) -> None:
    trace = kv_run(500, {}).write(tmp_path / "long.pf")
    out = tmp_path / "r.html"
    assert html(trace, out) == 0
    assert out.stat().st_size < 1 << 20


def test_thinning_says_what_it_leaves_out() -> None:
    rows = thinned(10_000, 3_000)
    assert len(rows) <= 3_001 and rows[0] == 0 and rows[-1] == 9_999
    assert thinned(7, 3_000).tolist() == list(range(7))


def test_tables_sort_by_what_is_stored(page: Callable[[str], Path]) -> None:
    checker = checked(page("generation"))
    values = [a for t, a in checker.tags if t in {"td", "th"} and "data-v" in a]
    assert values and all(float(a["data-v"] or "x") is not None for a in values)


@pytest.mark.parametrize(
    ("args", "shown", "hidden"),
    [
        (["--phase", "prefill"], "prefill: 12 tokens", "decode: 5 tokens, 5 calls"),
        (["--tokens", "1:3"], "decode: 2 tokens", "prefill: 12 tokens, 1 call"),
        (["--op", "MUL_MAT", "--layer", "1"], "MUL_MAT", "A token's wall time"),
        (["--warmup"], "all phases", "decode: 5 tokens, 5 calls"),
    ],
)
def test_options_choose_what_is_shown(
    tmp_path: Path, args: list[str], shown: str, hidden: str
) -> None:
    out = tmp_path / "r.html"
    assert html(GOLDEN / "generation.pf", out, *args) == 0
    text = "".join(checked(out).text)
    assert shown in text and hidden not in text


def test_what_is_missing_stands_at_the_top(page: Callable[[str], Path]) -> None:
    text = "".join(checked(page("lossy")).text)
    assert text.index("Not everything was recorded") < text.index("Wall time")
    assert "not everything was recorded, see the summary" in text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--by", "op"], "--html holds every view"),
        (["--format", "json"], "--html holds every view"),
        (["--roofline"], "--html holds every view"),
    ],
)
def test_contradictions_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], says: str
) -> None:
    assert html(GOLDEN / "pair.pf", tmp_path / "r.html", *args) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_nothing_else_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without operators: a page that is soon made.
    trace = sample_run(layers=1, plan={"level": "graph", "ops": {"mode": "none"}}).builder.write(
        tmp_path / "t.pf"
    )
    other = tmp_path / "thesis.html"
    other.write_text("<!doctype html>\n<p>mine")
    assert html(trace, other) == 2
    assert "is no report of profinfer" in capsys.readouterr().err
    assert other.read_text() == "<!doctype html>\n<p>mine"
    assert html(trace, other, "--force") == 0
    assert html(trace, other) == 0  # a report of ours is made again
    assert html(trace, trace, "--force") == 2
    assert "the recording itself" in capsys.readouterr().err
    assert html(trace, tmp_path) == 2
    assert html(trace, tmp_path / "no" / "r.html") == 1
    assert "cannot write" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.part"))


def test_plots_are_svg_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = kv_run(60).write(tmp_path / "kv.pf")
    folder = tmp_path / "plots"
    assert run(command, [str(trace), "--plots", str(folder)]) == 0
    names = {p.stem for p in folder.glob("*.svg")}
    assert {"token-times", "growth", "layers", "matmul-size", "threads-chart"} <= names
    for path in folder.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in path.read_text()
    assert run(command, [str(trace), "--plots", str(folder)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("axis", "values", "unit", "labels"),
    [
        (Axis("t", "ns"), [0, 7_300_000], "ms", ["0", "2", "4", "6", "8"]),
        (Axis("t", "ns"), [0, 9_100_000], "ms", ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (Axis("t", "ns"), [0, 910_000], "µs", ["0", "250", "500", "750", "1,000"]),
        (Axis("r", "ratio"), [0, 0.009], "%", ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (Axis("n", tight=True, zero=False), [0, 45_000], "", ["0", "20k", "40k"]),
        (
            Axis("n", tight=True, zero=False),
            [100_000, 110_000],
            "",
            ["100,000", "102,500", "105,000", "107,500", "110,000"],
        ),
        (Axis("t", "ns", log=True), [2e4, 2e6], "µs", ["100", "1,000"]),
        (Axis("n", "count", log=True), [2e5, 3e7], "", ["1M", "10M"]),
        (Axis("b", "bytes"), [0, 3 << 20], "MiB", ["0", "1", "2", "3"]),
        (Axis("r", "ratio"), [0, 1], "%", ["0", "25", "50", "75", "100"]),
    ],
)
def test_ticks_are_round(axis: Axis, values: list[float], unit: str, labels: list[str]) -> None:
    shown = scale(axis, values, 0.0, 100.0)
    assert shown.unit == unit
    told = [text for _, text in shown.ticks(4)]
    assert [t for t in told if t in labels] == labels
    # What is written is where it is written.
    if not axis.log and not shown.short:
        ticks = shown.ticks(4)
        assert [float(t.replace(",", "")) * shown.factor for _, t in ticks] == pytest.approx(
            [v for v, _ in ticks]
        )


def test_values_beyond_the_axis_lie_on_its_edge() -> None:
    shown = scale(Axis("t", "ns", most=100.0), [1.0, 1e9], 0.0, 50.0)
    assert shown(1e9) == shown(100.0) == 50.0


def test_marks_lie_where_their_values_are() -> None:
    picture = Plot("x", "x", "", Axis("x", tight=True), Axis("y"),
                   [Series("", [0, 10], [0, 100], "points", tips=["a", "b"])])  # fmt: skip
    root = ElementTree.fromstring(plot.draw(picture, WIDE))
    x0, y0, x1, y1 = map(float, root.attrib["data-points"].split())
    assert x0 < x1 == WIDE.width - 12 and y0 > y1
    assert plot.tips(picture) == ["a", "b"]
