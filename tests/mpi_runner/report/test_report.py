"""The report: its figures are those of the records, it opens in a browser, and what runs say of themselves is text."""

from __future__ import annotations

import csv
import html
import re
import shutil
import subprocess
import threading
import time
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from report_support import SCHEMES, comparison, write_run

from mpi_runner.cli import main
from mpi_runner.config import TrainConfig
from mpi_runner.reading import read_run
from mpi_runner.report.groups import answer_seconds, sections

MOST_BYTES, MOST_SECONDS = 5e6, 20.0  # of a report of ten runs of 1,000 iterations with 12 workers
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Table(HTMLParser):
    """The figures of a page: by scheme, then by name, the value and the interval."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str]] = {}
        self._row, self._cell, self._inside = "", "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        facts = dict(attributes)
        if tag == "tr":
            self._row = ""
        self._inside = tag == "span" or (self._inside and tag in ("b", "small"))
        if tag == "td":
            self._cell = facts.get("data-name") or ""

    def handle_data(self, text: str) -> None:
        if not self._inside:
            return
        if not self._row:
            self._row = text
            self.found[text] = {}
        elif self._cell:
            row = self.found[self._row]
            row[self._cell] = (row.get(self._cell, "") + " " + text).strip()

    def handle_endtag(self, tag: str) -> None:
        if tag in ("span", "td"):
            self._inside = False


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten runs and their report."""
    folder = tmp_path_factory.mktemp("ten")
    comparison(folder, 1000)
    begun = time.process_time()
    assert main(["report", str(folder)]) == 0
    assert time.process_time() - begun < MOST_SECONDS  # of this process: others may be busy
    return folder


def rows(run: Path, name: str) -> list[dict[str, str]]:
    with (run / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_figures_are_those_of_the_records(ten: Path) -> None:
    """Computed here from the files alone, by plain loops."""
    page = (ten / "report.html").read_text("utf-8")
    assert len(page.encode()) < MOST_BYTES
    found = Table(page[page.index("<tbody>") : page.index("</tbody>")]).found
    assert len(found) == len(SCHEMES)
    means: dict[str, float] = {}
    for number, (name, options) in enumerate(SCHEMES):
        runs = [next(ten.glob(f"{seed}-{number}-*")) for seed in (1, 2)]
        times = [[float(row["seconds"]) for row in rows(run, "iterations.csv")] for run in runs]
        ordered = sorted(t for of_run in times for t in of_run)
        label = name + (f"({', '.join(f'{k}={v}' for k, v in options.items())})" if options else "")
        cells = found[label]
        means[label] = sum(sum(t) / len(t) for t in times) / len(times)
        value, low, high = re.findall(r"[\d.]+", cells["ms an iteration"])
        assert value == f"{means[label] * 1000:.1f}"
        assert float(low) < float(value) < float(high)
        for q in (50, 95, 99):  # linear between the neighbours, as NumPy has it
            place = q / 100 * (len(ordered) - 1)
            below, share = int(place), place - int(place)
            exact = ordered[below] * (1 - share) + ordered[min(below + 1, len(ordered) - 1)] * share
            assert float(cells[f"p{q} ms"]) == pytest.approx(exact * 1000, abs=0.051)
        ratio = means[label] / means["uncoded"]
        assert float(cells["ratio"].split()[0]) == pytest.approx(ratio, abs=0.00051)
        for way, column in (("MB in", "bytes_received"), ("MB out", "bytes_sent")):
            total = sum(int(row[column]) for run in runs for row in rows(run, "iterations.csv")) / 2000
            assert float(cells[way]) == pytest.approx(total / 1e6, rel=0.005)
        losses = [float(rows(run, "iterations.csv")[-1]["loss"]) for run in runs]
        assert float(cells["loss"]) == pytest.approx(sum(losses) / 2, abs=0.0000051)
        outcomes = [row["outcome"] for run in runs for row in rows(run, "arrivals.csv")]
        unused = sum(outcome != "used" for outcome in outcomes) / len(outcomes)
        assert cells["not used"] == f"{unused * 100:.0f} %"
        assert cells["lost"] == str(sum(len(rows(run, "faults.csv")) for run in runs))
        assert (cells["runs"], cells["iterations"]) == ("2", "2,000")


def test_the_master_time_and_the_fastest_of_a_family(ten: Path) -> None:
    (section,) = sections([read_run(run) for run in sorted(ten.glob("*-*"))])
    assert section.baseline.label == "uncoded"
    grouped = [group for group in section.groups if group.family == "grouped"]
    assert len(grouped) == 2
    fastest = min(grouped, key=lambda group: group.mean.value if group.mean else 0)
    assert fastest in section.best
    assert not set(grouped) - {fastest} & set(section.best)
    for group in section.groups:
        steps = [sum(float(row[s]) for row in rows(run.path, "iterations.csv") for s in ("send", "receive"))
                 for run in group.runs]  # fmt: skip
        assert group.steps["send"] + group.steps["receive"] == pytest.approx(sum(steps) / 2000)
        assert group.steps["between"] == pytest.approx(0.0003, abs=2e-6)


def test_a_reduction_that_changes_is_drawn_and_its_switches_are_listed(tmp_path: Path) -> None:
    run = tmp_path / "auto"
    write_run(run, TrainConfig("grouped", 4, 30, "", {"load": 4, "reduction": "auto"}))
    table = rows(run, "iterations.csv")
    with (run / "iterations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(row | {"reduction": "1" if int(row["iteration"]) < 12 else "3"} for row in table)
    (run / "switches.csv").write_text(
        "iteration,before,after,predicted_before,predicted_after,reason\n"
        '12,1,3,0.050000,0.020000,"as <predicted>"\n20,3,2,nan,nan,"too few"\n'
    )
    write_run(tmp_path / "fixed", TrainConfig("grouped", 4, 30, "", {"load": 4, "reduction": 2}))
    assert main(["report", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 0
    page = (tmp_path / "report.html").read_text()
    for shown in ("iteration 12", "reduction 1 → 3", "50.0 → 20.0 ms", "as &lt;predicted&gt;", "– → –"):
        assert shown in page
    assert (tmp_path / "figures" / "reductions.svg").exists()
    (section,) = sections([read_run(tmp_path / name) for name in ("auto", "fixed")])
    assert [group.reductions for group in section.groups] == [[1, 3], [2]]


def test_answers_say_who_straggled_when(ten: Path) -> None:
    run = read_run(next(ten.glob("1-2-*")))  # its worker 7 is lost in iteration 334
    seconds = answer_seconds(run)
    assert seconds.shape == (12, 1000)
    assert np.isnan(seconds[7, 334:]).all()
    assert np.isfinite(np.delete(seconds, 7, axis=0)[:, :950]).all()
    table = run.arrivals[(run.arrivals["outcome"] == "used") & (run.arrivals["iteration"] == 500)]
    for arrival in table.itertuples():
        assert seconds[arrival.worker, 499] == pytest.approx(arrival.arrived - arrival.sent, abs=1e-9)


def test_a_baseline_is_chosen_by_name(ten: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = "polynomial(stragglers=2, reduction=2)"
    (section,) = sections([read_run(run) for run in sorted(ten.glob("*-*"))], baseline=chosen, skip=10)
    assert section.baseline.label == chosen
    uncoded = section.groups[0]
    exact = [float(row["seconds"]) for row in rows(uncoded.runs[0].path, "iterations.csv")[10:]]
    assert uncoded.seconds[0].tolist() == exact
    assert section.fastest_of("grouped").family == "grouped"
    assert main(["report", str(ten), "--baseline", "cyclic_mds"]) == 2
    refusal = capsys.readouterr().err
    assert "--baseline must be one of uncoded; fractional_repetition(stragglers=2);" in refusal
    assert refusal.count("\n") == 1


def test_runs_under_other_delays_are_not_compared_unless_asked_to(tmp_path: Path) -> None:
    for delay in ("none", "exponential:0.1"):
        for name in ("uncoded", "cyclic_repetition"):
            options = {} if name == "uncoded" else {"stragglers": 1}
            write_run(tmp_path / f"{delay[:3]}-{name}", TrainConfig(name, 4, 5, "", options, delay=delay))
    runs = [read_run(path) for path in sorted(tmp_path.iterdir())]
    apart = sections(runs)
    assert [section.title for section in apart] == ["delay exponential:0.1", "delay none"]
    assert [len(section.groups) for section in apart] == [2, 2]
    (together,) = sections(runs, together=True)
    assert "uncoded, delay none" in [group.label for group in together.groups]


def test_figures_for_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", TrainConfig("grouped", 4, 30, "", {"load": 2, "reduction": 1}))
    assert main(["report", str(tmp_path / "run"), "--figures", str(tmp_path / "figures")]) == 0
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    names = ("ratios", "distribution", "loss-time", "loss-iterations", "master", "bytes", "run1-stragglers")
    assert {f"{name}.{ending}" for name in names for ending in ("svg", "png")} <= made
    for path in (tmp_path / "figures").iterdir():
        start = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert path.read_bytes().startswith(start)
        assert b"#fe01" not in path.read_bytes()  # colours of the page's style sheet have no place here


HOSTILE = "<script>alert(1)</script>\"'&$x_{1$\\frac"


def test_what_runs_say_is_text(tmp_path: Path) -> None:
    """In the configuration, in folders' names, in the log, in hosts and reasons."""
    folder = tmp_path / "<b>run"
    write_run(folder, TrainConfig("uncoded", 3, 12, "", data=HOSTILE, model="<i>"), lose=None)
    config = (folder / "config.json").read_text().replace('"uncoded"', '"<img src=x onerror=alert(2)>$_{$"')
    (folder / "config.json").write_text(config)
    with (folder / "faults.csv").open("a", newline="") as file:
        csv.writer(file).writerow([1.5, 3, 1, "</li><script>host", 5, "died", HOSTILE])
    with (folder / "log.txt").open("a") as file:
        file.write("</pre><script>log\n")
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<script>") == page.count("</script>") == 1  # the page's own
    assert "<img" not in page.replace("&lt;img", "")
    assert "<b>run" not in page
    assert "<i>" not in page
    assert html.escape("<img src=x onerror=alert(2)>$_{$") in page
    assert "script-src 'sha256-" in page


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path, iterations: int) -> None:
    write_run(tmp_path / "run", TrainConfig("uncoded", 3, 3, ""), end=False)
    text = (tmp_path / "run" / "iterations.csv").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "iterations.csv").write_text("".join(text[: 1 + iterations]) + "9,0.1")
    assert main(["report", str(tmp_path / "run"), "--skip", "0"]) == 0
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert f"{iterations} of 3 iterations" in page


def test_what_cannot_be_reported_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", TrainConfig("uncoded", 3, 3, ""))
    for words, said in (
        ([str(tmp_path / "none")], "holds no run that has begun"),
        ([str(tmp_path / "run"), "--skip", "-1"], "--skip must be at least 0, not -1"),
        ([str(tmp_path / "run"), "--out", "/dev/null/page"], "cannot write /dev/null"),
    ):
        assert main(["report", *words]) == 2
        refusal = capsys.readouterr().err
        assert said in refusal
        assert refusal.count("\n") == 1


# In a browser ---------------------------------------------------------------------------------------------------------

FRAME = """<!doctype html><style>body {{ margin: 0 }} iframe {{ border: 0; width: {width}px; height: 900px }}</style>
<iframe src="report.html"></iframe><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument.documentElement, view = frame.contentWindow;
  const box = page.querySelector("input[data-series='1']");
  const shown = () => [...page.querySelectorAll(".charts .series-1")].filter(
    part => view.getComputedStyle(part).display !== "none").length;
  const before = shown();
  box.click();
  document.body.dataset.found = [page.scrollWidth, before, shown(), page.querySelectorAll("figure svg").length].join();
}};
</script>"""


def browser() -> str:
    for name in BROWSERS:
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip(f"no browser to open the report in: none of {', '.join(BROWSERS)} is installed")


def visit(address: str, folder: Path, *options: str) -> tuple[str, str]:
    """The page's text as the browser has it after its scripts, and what it said on the console."""
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=20000", *options,
        "--dump-dom", address,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_in_a_browser(ten: Path, tmp_path: Path, width: int) -> None:
    browser()
    (ten / "frame.html").write_text(FRAME.format(width=width))
    handler = partial(_Silent, directory=str(ten))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            page, said = visit(f"http://127.0.0.1:{server.server_port}/frame.html", tmp_path)
        finally:
            server.shutdown()
            thread.join()
    assert said == ""
    found = re.search(r'data-found="([\d,]+)"', page)
    assert found is not None, "the frame's script did not come to its end"
    needed, before, after, drawings = map(int, found[1].split(","))
    assert needed <= width  # nothing to scroll sideways
    assert before >= 6
    assert after == 0  # the box hides its scheme in every plot
    assert drawings >= 16


def test_the_console_is_listened_to_and_files_open_alone(ten: Path, tmp_path: Path) -> None:
    """A page that is broken does say so; the report, opened as a file without any server, says nothing."""
    broken = tmp_path / "broken.html"
    text = (ten / "report.html").read_text("utf-8")
    broken.write_text(text.replace('"use strict";', '"use strict"; nothing.there();'), "utf-8")
    assert "CONSOLE" in visit(broken.as_uri(), tmp_path)[1]  # refused: it is not the script that the page allows
    page, said = visit((ten / "report.html").as_uri(), tmp_path)
    assert said == ""
    assert "fastest" in page


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass
