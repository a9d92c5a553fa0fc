"""A benchmark's page and line of JSON hold every figure; the page appears whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edge_gemma.runtime import bench
from edge_gemma.runtime.bench import Figure, Report
from edge_gemma.runtime.bench_report import check_target, tables, to_html, to_json, write_html

VOID = {"meta"}


@pytest.fixture(scope="module")
def report() -> Report:
    """With every part there is."""

    def figure(median: float, spread: float) -> Figure:
        return Figure.of([median, median - spread, median + spread])

    first = bench.FirstToken(
        prompt_tokens=271,
        seconds=figure(8.25, 0.5),
        encode_seconds=figure(5.75, 1),
        prefill_seconds=figure(2, 1),
    )
    return Report(
        source="somebody/<model>",
        recipe="int4",
        options={"threads": 2, "cache_dir": Path("cache")},
        runs=3,
        tokens=32,
        threads=2,
        context=4096,
        global_kv="int8",
        prefill={128: figure(61.5, 2), 2048: figure(57.25, 3)},
        decode={
            0: bench.Decode(tokens_per_second=figure(12.75, 1), share=figure(0.83, 0.1)),
            4096: bench.Decode(tokens_per_second=figure(11.25, 1), share=figure(0.71, 0.1)),
        },
        first_token={"text": first, "image": first, "audio": first},
        load={"cold": figure(8.5, 1), "warm": figure(3.25, 1)},
        memory={
            name: figure(size * 1024**2, 5 * 1024**2)
            for name, size in (
                ("load", 1500),
                ("text", 1590),
                ("image", 1680),
                ("audio", 1770),
            )
        },
        bandwidth=figure(28.4e9, 2e9),
        bandwidth_method="adding up",
        bandwidth_array=128 << 20,
        weights_per_token=1_442_971_212,
        notes=("a <note>",),
    )


class Page(HTMLParser):
    """Checks that elements close in order; collects the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.cells[-1] += data


def drawings(page: str) -> list[list[str]]:
    """The texts of each plot."""
    found = []
    while "<svg" in page:
        _, _, page = page.partition("<svg")
        inside, _, page = page.partition("</svg>")
        root = ElementTree.fromstring(f"<svg{inside}</svg>")
        found.append([element.text or "" for element in root.iter("text")])
    return found


def test_the_page_holds_every_figure(report: Report) -> None:
    page = to_html(report, "edge-gemma bench 'a & b'", {"machine": "Some <CPU>"})
    cells = Page(page).cells
    shown = [cell for table in tables(report) for row in [table.header or (), *table.rows] for cell in row]
    assert cells == ["machine", "Some <CPU>", *shown]
    for figure in ("61.5", "57.2", "12.8", "83%", "271", "8.25", "5.75", "3.25", "28.4 GB/s", "19.7"):
        assert any(figure in cell for cell in cells), figure
    assert "decoding of 32 tokens, global KV in int8" in page
    decode, prefill, memory, bound = drawings(page)
    assert {"12.8", "11.2", "0", "4096"} <= set(decode)
    assert {"61.5", "57.2", "128", "2048"} <= set(prefill)
    assert {"load", "text", "image", "audio"} <= set(memory)
    assert {"83%", "71%", "read bandwidth 28.4 GB/s"} <= set(bound)
    assert "a &lt;note&gt;" in page and "a &amp; b" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched


def test_a_report_of_little(report: Report) -> None:
    empty: dict[str, Any] = {"prefill": {}, "decode": {}, "first_token": {}, "bandwidth": None, "notes": ()}
    found = dataclasses.replace(report, **empty)
    titles = [table.title for table in tables(found)]
    assert not [title for title in titles if title.startswith(("prefill", "decoding", "time"))]
    page = to_html(found, "edge-gemma bench", {})
    assert Page(page).cells and len(drawings(page)) == 1


def test_json_is_one_line(report: Report) -> None:
    text = to_json(report, "edge-gemma bench x", {"numpy": "2"})
    assert "\n" not in text
    data = json.loads(text)
    assert data.keys() == {"command", "environment", "results"}
    fields = {field.name for field in dataclasses.fields(Report)}
    assert data["results"].keys() == fields | {"bound_tokens_per_second"}
    assert data["results"]["bound_tokens_per_second"] == pytest.approx(28.4e9 / 1_442_971_212)
    assert data["results"]["decode"]["4096"]["tokens_per_second"]["min"] == 10.25


def test_a_page_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("before")
    check_target(target)
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            write_html(target, "after")
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]
    write_html(target, "after")
    assert target.read_text() == "after" and list(tmp_path.iterdir()) == [target]
