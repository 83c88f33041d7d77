"""The page of benchmarks says what the stored results say, and reads what it has never seen."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))


def test_the_page_is_up_to_date():
    written = (ROOT / "docs" / "benchmarks.md").read_text()
    assert written == REPORT["page"](REPORT["stored"]()), "run python benchmarks/report.py"


def test_every_benchmark_runs_with_the_others():
    """`run.py` takes all scripts that have results; helpers are the only others."""
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    sections = REPORT["SECTIONS"]
    assert {(sections[name].script if name in sections else None) or name for name in REPORT["stored"]()} <= names
    assert {"measure", "nt_worker", "peers", "report", "run"} <= names


def test_ratios_are_those_of_the_times():
    results = {
        "hardware": {"cpu": "a processor", "cores": 3, "memory_gib": 5.5, "system": "Linux"},
        "versions": {"jax": "0.10.7"},
        "speed": {"versions": {"other": "1.2"}, "case": {"gpntk": {"median": 0.02}, "other": {"median": 0.5}}},
    }
    text = REPORT["page"]({"planar": results})
    assert "| case | 20 ms | other | 500 ms | **25** |" in text
    assert "a processor, 3 cores, 5.5 GiB, Linux; jax 0.10.7; other side: other 1.2." in text


def test_files_without_a_section_are_listed():
    results = {"large": [{"n": 4, "ours": {"median": 3.0, "first": 40.0, "all": [3.0]}}], "note": "none"}
    text = REPORT["page"]({"something_new": results})
    assert "## Something new" in text
    assert "| large, 1, ours | 3.0 s | 40 s |" in text
    assert "versions not recorded" in text


@pytest.mark.parametrize(
    ("value", "expected"), [(1602.3, "1602"), (99.9, "100"), (12.34, "12"), (0.0567, "0.057"), (2.0, "2.0")]
)
def test_two_figures(value, expected):
    assert REPORT["figures"](value) == expected
