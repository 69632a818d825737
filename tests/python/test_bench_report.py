"""`runtime bench report`: every row on one page that asks nobody for anything, whatever the rows hold."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from runtime.cli.main import main

pytest.importorskip("matplotlib")
ROWS = Path(__file__).parents[2] / "docs" / "benchmarks"
DEVICE = {"device": "a CPU", "versions": {"runtime": "1.2.3", "torch": "9.9"}, "commit": "abc123", "date": "2026-01-02"}


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.attributes, self.tables, self.words = text, [], [], [], []
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._cell is not None:
            self._cell.append(data)

    @property
    def num_rows(self):
        return sum(len(table) - 1 for table in self.tables)

    def column(self, heading):
        """The cells below a heading, of all tables."""
        found = []
        for head, *rows in self.tables:
            if heading in head:
                found += [row[head.index(heading)] for row in rows]
        return found


@pytest.fixture
def report(tmp_path, capsys):
    """Writes rows to a file; (page, what --json says)."""

    def run(*rows, arguments=()):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        output = tmp_path / "report.html"
        assert main(["bench", "report", str(path), "-o", str(output), "--json", *map(str, arguments)]) == 0
        return Page(output.read_text(encoding="utf-8")), json.loads(capsys.readouterr().out)

    return run


def refusal(capsys, *arguments):
    assert main(["bench", "report", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def decode(engine, batch, tpot_ms, **more):
    row = {"engine": engine, "model": "m", "tp": 1, "scenario": f"decode_b{batch}", "batch": batch, "dtype": "float32"}
    return {**row, "tpot_ms": tpot_ms, "tok_s": round(1e3 * batch / tpot_ms, 1), **more, **DEVICE}


@pytest.mark.parametrize("path", sorted(ROWS.glob("*.jsonl")), ids=lambda path: path.name)
def test_every_file_of_the_project_is_shown(path, tmp_path, capsys):
    assert main(["bench", "report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert page.num_rows == len(rows)
    shown = " ".join(page.words)
    for row in rows:
        assert row["device"] in shown and all(str(value)[:20] in shown for value in row.get("versions", {}).values())


def test_a_page_asks_nobody_and_runs_nothing(report):
    page, found = report(*(decode(e, b, 5.0 + b, pct_of_limit=50.0) for e in ("runtime", "vllm") for b in (1, 8)))
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags
    assert {value for name, value in page.attributes if name.endswith("href") and not value.startswith("#")} == set()
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    policy = dict(page.attributes)["content"], page.text.count("Content-Security-Policy")
    assert "default-src 'none'" in page.text and policy[1] == 1
    assert not re.findall(r"url\((?!#)|@import", page.text)
    assert page.tags.count("svg") == len(found["charts"]) == 3


def test_plots_follow_the_light_or_dark_of_the_page(report):
    page, _ = report(decode("runtime", 1, 5.0), decode("runtime", 8, 6.0))
    (svg,) = re.findall(r"<svg.*?</svg>", page.text, re.DOTALL)
    assert "var(--ink)" in svg and "var(--line)" in svg and "var(--s0)" in svg
    assert not re.search(r"(fill|stroke): ?#", svg)  # no colour of its own
    light, dark = re.findall(r"--ink: (#\w+)", page.text)
    assert "prefers-color-scheme: dark" in page.text and light != dark


def test_ids_are_unique_in_a_page(report):
    page, _ = report(*(decode(e, b, 5.0, pct_of_limit=9.0) for e in ("runtime", "vllm") for b in (1, 8)))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page.text))
    assert referred <= set(ids)


def test_what_rows_hold_is_plotted(report, tmp_path):
    histogram = {"itl_histogram": [[1.0, 3], [1.2589, 5], [3.1623, 1]]}
    rows = [decode(e, b, 5.0 + b, pct_of_limit=40.0, **histogram) for e in ("runtime", "peer") for b in (1, 8)]
    served = {"engine": "runtime", "model": "m", "scenario": "serve", "tok_s": 9.0, "tpot_p50_ms": 3.0, **DEVICE}
    rows += [served | {"rate": rate, "tok_s": 9.0 * rate} for rate in (1, 2)]
    rows += [{"scenario": "allreduce", "tp": 2, "bytes": n, "nccl_us": 3.0, "one_shot_us": 2.0} for n in (1024, 4096)]
    rows += [{"op": "linear", "model": "m", "case": "x", "us": 2.0, "library_us": 3.0, "device": "a GPU"}]
    rows += [{"scenario": "mixed_256", "model": "m", "error_pct": -3.0, "ttft_error_pct": 8.0}]
    rows += [{"num_rows": 3, "num_decode_rows": n, "num_tokens": 9, "seconds": 0.01, "scenario": "s"} for n in (1, 3)]
    page, found = report(*rows, arguments=["--png", tmp_path / "png" / "plots"])
    assert found["charts"] == [
        "Latency against throughput: m",
        "Share of the device's limit: m",
        "Engines: m on a CPU",
        "Gaps between tokens: m, decode_b1",
        "Gaps between tokens: m, decode_b8",
        "Sums over ranks: 2 x ",
        "Kernels beside the library: a GPU",
        "Predictions of the simulator: m",
        "Steps: rows.jsonl s",
    ]
    pictures = [Path(name) for name in found["png"]]
    assert sorted(pictures) == sorted((tmp_path / "png" / "plots").iterdir()) and len(pictures) == 9
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert found["files"] == [{"path": str(tmp_path / "rows.jsonl"), "rows": len(rows) - 2, "steps": 2}]
    assert page.num_rows == len(rows) - 2 and "2 steps in 0.02 s" in page.text


def test_engines_are_compared_on_one_device_alone(report):
    elsewhere = decode("vllm", 1, 4.0) | {"device": "a GPU"}
    assert report(decode("runtime", 1, 5.0), elsewhere)[1]["charts"] == ["Latency against throughput: m"]
    page, found = report(decode("runtime", 1, 5.0), decode("vllm", 1, 3.7))
    assert found["charts"][1] == "Engines: m on a CPU"
    assert "0.74" in [word.strip() for word in page.words]  # 3.7 ms against 5 ms
    page, _ = report(decode("runtime", 1, 5.0), decode("vllm", 1, 3.7, time_ratio=0.625))  # pair by pair
    assert "0.625" in (shown := [word.strip() for word in page.words]) and "0.74" not in shown


def test_what_a_row_lacks_is_a_dash(report):
    page, _ = report({"engine": "runtime", "scenario": "x", "tpot_ms": 1.5, "in": 7}, {"scenario": "y", "in": 8}, {})
    assert page.num_rows == 3
    assert page.column("tpot ms") == ["1.5"] and page.column("in tokens") == ["7", "8"]
    page, _ = report({"a": 1, "b": 2, "c": 3, "d": None}, {"a": 1, "b": 2, "c": 3, "e": ""}, {"a": 1, "b": 2, "c": 3})
    assert page.column("d") == ["–"] * 3 and page.column("e") == ["–"] * 3


def test_figures_have_units_and_devices_stand_above(report):
    page, _ = report(decode("runtime", 1, 5.0, limit=2.5, pct_of_limit=50.0), decode("runtime", 8, 7.25))
    assert page.column("tpot ms") == ["5", "7.25"] and page.column("throughput tok/s") == ["200", "1103.4"]
    assert page.column("limit") == ["2.5 ms", "–"] and page.column("share of limit %") == ["50", "–"]
    shared = " ".join(page.words)
    assert "a CPU" in shared and "runtime 1.2.3, torch 9.9" in shared and "abc123" in shared
    assert page.column("device") == []


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg><iframe>",
    r"$\frac{1}{0$ \undefined & <b>",
    "_hidden",
    "a\x00b\x1b[31m\ud800\u202e",
    "]]>--><!--",
    'stroke: #0a0bff; id="c0-x" url(#y)',
    "x" * 100_000,
    "数据 🙂",
    "",
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["engine", "model", "scenario", "device"])
def test_texts_of_rows_stay_texts(report, name, tmp_path):
    usual = {"tpot_ms": 5.0} if name != "model" else {}  # a model has plots of its own
    usual |= {"model": "m", "scenario": "decode_b1", "engine": "runtime", "device": "a CPU", "pct_of_limit": 9.0}
    rows = [{**usual, name: words, words: words} for words in HOSTILE]
    page, _ = report(*rows, arguments=["--png", tmp_path / "png"] if name == "engine" else [])
    assert not {"script", "img", "iframe"} & set(page.tags)
    assert page.tags.count("style") == 1 + page.tags.count("svg") > 1
    assert not [attribute for attribute, _ in page.attributes if attribute.startswith("on")]
    assert page.num_rows == len(rows) and len(page.text) < 1_000_000
    assert not re.search("[\x00\x1b\u202e\ud800]", page.text)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [(-1.0, 1e308, True), (10**400, "5", [[1]]), (float("nan"), {"p50": 1.0}, [])])
def test_any_value_in_a_figure_is_shown(report, values):
    names = ("tpot_ms", "tok_s", "pct_of_limit", "tp", "rate", "s", "bytes", "nccl_us", "us", "library_us", "error_pct")
    names = (*names, "itl_histogram", "limit", "versions", "runs", "settings", "deterministic", "scale")
    rows = [decode("runtime", 1, 5.0), decode("peer", 1, 5.0)]
    for value in values:
        rows += [decode("peer", 8, 5.0) | {name: value} for name in names]
        rows += [{"scenario": "allreduce", "op": "x"} | dict.fromkeys(names, value)]
    page, _ = report(*rows, {"seconds": values[0], "num_rows": values[1], "num_tokens": values[2]})
    assert page.num_rows == len(rows)


def test_thousands_of_steps_are_thinned_to_the_longest(report):
    steps = [{"num_rows": 1, "num_decode_rows": 1, "num_tokens": 1, "seconds": 0.001} for _ in range(6000)]
    steps[4321]["seconds"] = 0.5
    page, _ = report(*steps)
    assert "longest of 4 steps" in page.text and page.text.count("<use") < 3200 and len(page.text) < 500_000
    assert "500" in [word.strip() for word in page.words]  # ms, of the axis


def test_files_without_rows(tmp_path, capsys):
    empty, full = tmp_path / "empty.jsonl", tmp_path / "full.jsonl"
    empty.write_text("\n\n")
    assert "empty.jsonl: 0 rows: must have at least 1" in refusal(capsys, empty, "-o", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    full.write_text('{"scenario": "x"}\n')
    assert main(["bench", "report", str(empty), str(full), "-o", str(tmp_path / "r.html")]) == 0
    assert "(1 rows)" in capsys.readouterr().out and "No rows." in (tmp_path / "r.html").read_text()


def test_what_is_no_file_of_rows_is_refused(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    for text, sentence in [
        (b'{"scenario": 1}\n\n{"scenario": \n', "rows.jsonl, line 3: not JSON: "),
        (b'{"scenario": 1}\n[1, 2]\n', "rows.jsonl, line 2: must be an object"),
        (b"[" * 100_000, "rows.jsonl, line 1: not JSON: "),
        (b"\xff\xfe\x00", "rows.jsonl is not UTF-8 text: invalid start byte at byte 0"),
    ]:
        path.write_bytes(text)
        assert sentence in refusal(capsys, path)
    assert "cannot read" in refusal(capsys, tmp_path / "absent.jsonl")
    assert "cannot read" in refusal(capsys, tmp_path)


def test_places_that_cannot_be_written_are_refused(tmp_path, capsys):
    rows = ROWS / "simulation.jsonl"
    assert f"there is no folder {tmp_path / 'a'}" in refusal(capsys, rows, "-o", tmp_path / "a" / "r.html")
    assert "r.html: Is a directory" in refusal(capsys, rows, "-o", _made(tmp_path / "r.html"))
    (tmp_path / "file").write_text("")
    assert "file: must be a folder" in refusal(capsys, rows, "-o", tmp_path / "x.html", "--png", tmp_path / "file")
    with pytest.raises(SystemExit):
        main(["bench", "report"])
    assert "the following arguments are required: FILE" in capsys.readouterr().err


def _made(folder):
    folder.mkdir()
    return folder


def test_a_report_needs_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = "a report needs matplotlib, which is not installed (pip install 'runtime-llm[bench]')"
    assert sentence in refusal(capsys, ROWS / "simulation.jsonl", "-o", tmp_path / "r.html")
