"""The tables of results/README.md are what their commands print of the results files, README's are parts of them."""
from __future__ import annotations

import importlib
import re
from collections import defaultdict

import pytest

pytest.importorskip("mmaction")
pytest.importorskip("mmseg")

# heading -> the commands below it, and how many figures of its tables they print at least
SECTIONS = {
    "## CWFID": (["cwfid_table --normalised"], 50),
    "## Digit clips": (["digit_clips_table"], 100),
    "## UDML: noise on one modality": (
        ["udml_table digit-clips --ablations", "udml_table cwfid --ablations",
         "udml_table nyuv2-half --ablations --seeds 0 1"], 330),
    "## Six views": (["features_table handwritten6"], 150),
    "## CMU-MOSI": (["features_table cmu-mosi"], 240),
    "## Which fusion to choose": (
        ["preset_ranking", "scfae_search handwritten6", "scfae_search digit-clips --seeds 100 101 102"], 200),
    "## SCFAE's own tables": (["scfae_tables all handwritten6", "scfae_tables all digit-clips"], 190),
}
# what the pages call otherwise, for those who read a table without its command
NAMES = {
    "no estimator (dependency alone)": "UDML default, no estimator",
    "no probabilistic embedding, hence no BatchNorm": "UDML default, no embedding",
    "estimator reads the variance alone, no novelty": "UDML default, variance read alone",
    "no dependency": "UDML default, no dependency",
    "no novelty": "UDML default, no novelty",
    "SCFAE as shipped": "SCFAE",
    "SCFAE literal, no norm": "SCFAE literal",
    "SCFAE (CWFID: width 9/32)": "SCFAE",
}


def rows_of(markdown: str) -> dict[str, set[str]]:
    """First cell -> the other cells of all rows that begin with it, without bold."""
    rows = defaultdict(set)
    for line in markdown.splitlines():
        if line.startswith("| ") and not line.startswith("| -"):
            name, *cells = (cell.replace("*", "").strip() for cell in line.strip().strip("|").split("|"))
            rows[name].update(cells)
    return rows


def names(name: str) -> set[str]:
    """What the commands call a row of README; one of its tables has rows with dropout alone, and says so once."""
    name = NAMES.get(name, name)
    return {name, re.sub(r"(, received)?(, heads)?$", r"\1, dropout\2", name, count=1)}


def printed(repository, monkeypatch, capsys, command: str) -> str:
    name, *words = command.split()
    tools = repository / "tools" / "benchmarks"
    monkeypatch.syspath_prepend(str(tools))
    monkeypatch.chdir(repository)
    if name != "preset_ranking":
        words.append("--render-only")
    monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
    capsys.readouterr()
    assert importlib.import_module(name).main() == 0
    return capsys.readouterr().out


def section(page: str, heading: str) -> str:
    found, = (part for part in re.split(r"(?m)^(?=##+ )", page) if part.startswith(heading))
    return found


def figures_of(text: str, known: dict[str, set[str]]) -> tuple[list[str], int]:
    """The figures of rows that are ``known`` by name which do not stand there; how many were looked at."""
    figures = [
        (name, cell) for name, cells in rows_of(text).items() if names(name) & set(known)
        for cell in cells if re.fullmatch(r"[+-]?\d+\.\d+( ± \d+\.\d+)?( \([a-z].+\))?", cell)]
    return [f"{name}: {cell}" for name, cell in figures
            if not any(cell in known[other] for other in names(name) & set(known))], len(figures)


@pytest.mark.parametrize("heading", SECTIONS)
def test_tables(heading, repository, monkeypatch, capsys):
    commands, least = SECTIONS[heading]
    known = defaultdict(set)
    for command in commands:
        for name, cells in rows_of(printed(repository, monkeypatch, capsys, command)).items():
            known[name] |= cells
    page = (repository / "results" / "README.md").read_text(encoding="utf-8")
    wrong, number = figures_of(section(page, heading), known)
    assert wrong == []
    assert number >= least


def test_readmes_own_tables_are_parts_of_those(repository):
    pages = [(repository / name).read_text(encoding="utf-8") for name in ("README.md", "results/README.md")]
    wrong, number = figures_of(section(pages[0], "## Results"), rows_of(pages[1]))
    assert wrong == []
    assert number >= 100


@pytest.mark.parametrize(("task", "files"), [
    ("digit-clips", "recognition/{}_small_digit-clips.py"), ("cwfid", "segmentation/{}_r18-segformer_cwfid.py")])
def test_configs_expect_what_their_rows_hold(task, files, repository, monkeypatch, capsys):
    rows = rows_of(printed(repository, monkeypatch, capsys, f"udml_table {task}"))
    for row, (word, _) in importlib.import_module("udml_table").FORMS.items():
        config = (repository / "configs" / files.format(word)).read_text(encoding="utf-8")
        line, = re.findall(r"(?m)^Expect: (.+) with half", config)
        figures = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", line)
        assert len(figures) == 3
        assert [figure for figure in figures if not any(cell.startswith(figure) for cell in rows[row])] == [], word


def test_bold_figures_are_within_a_deviation_of_the_best_shown(repository):
    results = section((repository / "README.md").read_text(encoding="utf-8"), "## Results")
    tables = [table for table in re.findall(r"(?m)(?:^\|.*\n)+", results) if " ± " in table]
    assert len(tables) == 2
    for table in tables:
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        for name, *column in zip(header, *rows, strict=True):
            figures = [re.fullmatch(r"(\**)([\d.]+) ± ([\d.]+)\**", cell) for cell in column]
            shown = [(bool(found[1]), float(found[2]), float(found[3])) for found in figures if found]
            if not shown:
                continue
            _, best, spread = max(shown, key=lambda figure: figure[1])
            assert [bold for bold, *_ in shown] == [
                round(best - mean, 1) <= max(spread, sd) for _, mean, sd in shown], name
