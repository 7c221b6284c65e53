"""The documentation: its snippets run and print what they show, it names everything public, its links resolve."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fastgc
import mpi_runner
from fastgc import _xla, codes, compression, kernels, schemes

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SKIPPED_FOLDERS = {"build", "dist", "node_modules", "shared", "runs"}
MODULES = {
    "fastgc": fastgc,
    "fastgc.codes": codes,
    "fastgc.compression": compression,
    "fastgc.schemes": schemes,
    "fastgc.kernels": kernels,
    "mpi_runner": mpi_runner,
}
NEEDS = {"jax.md": _xla.problem()}
"""Pages whose snippets cannot run here, and why."""
if NEEDS["jax.md"] is None:
    MODULES["fastgc.jax"] = importlib.import_module("fastgc.jax")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of the first line inside, from 1


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    language: str | None = None
    inside: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if language is None and line.startswith("```"):
            language, inside, start = line[3:].strip(), [], number + 1
        elif language is not None and line.startswith("```"):
            found.append(Block(language, "".join(f"{content}\n" for content in inside), start))
            language = None
        elif language is not None:
            inside.append(line)
    assert language is None, f"the block that begins at line {start - 1} does not end"
    return found


def without_blocks(text: str) -> str:
    """The page's prose: no fenced blocks, no code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def identifier(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_snippets_run_and_print_what_they_show(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ```python blocks of a page in one namespace; a ```text block right after one is what it prints."""
    if not page.exists():
        pytest.skip(f"{page.name} has not been written yet")
    if (reason := NEEDS.get(page.name)) is not None:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)  # snippets may write files
    # As the module __main__ has it: dataclasses and Numba look a function's module up.
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = blocks(page.read_text(encoding="utf-8"))
    for optional in ("torch", "jax"):
        if any(b.language == "python" and re.search(rf"^import {optional}\b", b.text, re.MULTILINE) for b in found):
            pytest.importorskip(optional)
    for i, block in enumerate(found):
        if block.language != "python":
            continue
        place = f"{identifier(page)}:{block.line}"
        printed = io.StringIO()
        # Padded with empty lines, so that a traceback names the page's own line.
        program = compile("\n" * (block.line - 1) + block.text, identifier(page), "exec")
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("error", RuntimeWarning)
            exec(program, namespace)
        if i + 1 < len(found) and found[i + 1].language == "text":
            assert printed.getvalue() == found[i + 1].text, f"{place} prints something else"
        else:
            assert printed.getvalue() == "", f"{place} prints, and no ```text block shows it"


@pytest.mark.parametrize("module", MODULES)
def test_api_page_names_everything_public(module: str) -> None:
    code = " ".join(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    absent = [name for name in MODULES[module].__all__ if not re.search(rf"\b{re.escape(name)}\b", code)]
    assert absent == [], f"docs/api.md does not name these of {module}"


METHODS = [fastgc.GradientCode, codes.LinearCode]


@pytest.mark.parametrize("owner", METHODS, ids=lambda owner: owner.__name__)
def test_api_page_names_every_method(owner: type) -> None:
    code = " ".join(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    public = [name for name in vars(owner) if not name.startswith("_")]
    assert [name for name in public if not re.search(rf"\b{name}\b", code)] == []


def markdown_files() -> list[Path]:
    """Every .md file of the tree but those of hidden folders, of builds and of what lies beside the project."""
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not any(p.startswith(".") or p in SKIPPED_FOLDERS for p in path.relative_to(ROOT).parts[:-1])
    )


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M
    ):
        kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(kept.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", markdown_files(), ids=identifier)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):  # https:, mailto:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_readme_shows_the_committed_training_figures() -> None:
    results = json.loads((ROOT / "bench" / "results" / "training.json").read_text(encoding="utf-8"))
    assert {"cpu", "date", "commit", "command", "versions"} <= set(results)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = results["runs"][0]["mean_seconds"]
    for run in results["runs"]:
        times = [f"{run[name] * 1000:.0f}" for name in ("mean_seconds", "median_seconds", "p95_seconds")]
        ratio = f"{run['mean_seconds'] / first:.2f}"
        cells = [f"`{run['scheme']}`", f"{run['test_auc']:.4f}", *times, f"{run['bytes_received'] / 1e6:.0f}", ratio]
        assert f"| {' | '.join(cells)} |" in readme
