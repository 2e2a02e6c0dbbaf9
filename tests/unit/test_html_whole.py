"""What the page says of the whole run, its prompts, contexts and backends; drawings as files."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from builders import TraceBuilder, llama_graph
from test_backend_model import TID, Builder, products
from test_backend_views import drafted
from test_html import checked, html

from profinfer.cli import run
from profinfer.cli.report import command

GOLDEN = Path(__file__).parents[1] / "golden"
WITH_DOT = pytest.mark.skipif(shutil.which("dot") is None, reason="draws with Graphviz")


def ids_of(trace: Path, tmp_path: Path, *args: str) -> set[str]:
    out = tmp_path / "page.html"
    assert html(trace, out, *args) == 0
    ids = [a["id"] for _, a in checked(out).tags if a.get("id")]
    assert len(ids) == len(set(ids))
    return {i for i in ids if i}


def test_the_whole_run_and_its_one_generation(tmp_path: Path) -> None:
    ids = ids_of(GOLDEN / "pair.pf", tmp_path)
    assert {"run-run_ledger", "requests-generations", "requests-first_tokens"} <= ids
    assert "requests-contexts" not in ids and "backends" not in ids
    # Of a part of each graph there is no whole.
    narrowed = ids_of(GOLDEN / "pair.pf", tmp_path, "--op", "MUL_MAT")
    assert not {"run", "requests"} & narrowed


def test_contexts_and_drafts(tmp_path: Path) -> None:
    assert "requests-contexts" in ids_of(drafted(tmp_path).path, tmp_path)


def test_backends_of_each_phase(tmp_path: Path) -> None:
    builder = Builder()
    for ts, n_tokens, position in ((1000, 4, 0), (3000, 1, 4)):
        last = position + n_tokens - 1
        builder.call_begin(TID, ts, n_tokens=n_tokens, pos_first=position, pos_last=last, seq=0)
        builder.split(ts + 100, ts + 150, products(), "RPC", backend=0xB2)
        builder.call_end(TID, ts + 1000)
    ids = ids_of(builder.write(tmp_path / "rpc.pf"), tmp_path)
    assert {"backends-backends", "backends-2-backends"} <= ids


def prompts(tmp_path: Path) -> Path:
    """Prefill alone, as of a benchmark."""
    builder = TraceBuilder()
    ts = 1_000_000
    for n in (4, 8, 16, 32):
        builder.call_begin(77, ts, n_tokens=n, pos_first=0, pos_last=n - 1, seq=0)
        ts = builder.run_graph(llama_graph(n_tokens=n), begin=ts + 100).end_ns + 100
        builder.call_end(77, ts)
        ts += 1000
    return builder.write(tmp_path / "prompts.pf")


def test_prompts_are_there_where_prefill_is_all_that_ran(tmp_path: Path) -> None:
    assert {"prefill-speed", "time-prompts"} <= ids_of(prompts(tmp_path), tmp_path)
    assert run(command, [str(prompts(tmp_path)), "--plots", str(tmp_path / "plots")]) == 0
    assert (tmp_path / "plots" / "prefill-speed.svg").exists()


@WITH_DOT
def test_the_drawn_layer_is_among_the_plots(tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    assert run(command, [str(GOLDEN / "generation.pf"), "--plots", str(folder)]) == 0
    path = folder / "layer-graph.svg"
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    text = path.read_text()
    assert "MUL_MAT" in text and 'fill="#fff"' in text
    assert "\ntext {" not in text  # its letters are its own


@pytest.mark.parametrize("args", [(), ("--phase", "prefill")])
def test_findings_are_those_of_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    """Of the whole run, whatever part of it is shown."""
    trace = GOLDEN / "disturbed.pf"
    assert run(command, [str(trace), *args, "--format", "json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    told = next(r for r in results if r["name"] == "findings")
    assert html(trace, tmp_path / "page.html", *args) == 0
    listed = (tmp_path / "page.html").read_text().split('class="findings"')[1].split("</ul>")[0]
    texts = [unescape(text) for text in re.findall(r"<li>(.*?)</li>", listed)]
    assert texts == [note["text"].removeprefix("- ") for note in told["notes"]] and texts
