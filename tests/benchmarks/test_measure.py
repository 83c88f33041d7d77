"""Results of benchmarks: an interrupted run leaves those that were there."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    yield measure
    sys.modules.pop("measure")


def test_results_are_replaced_whole_or_not_at_all(measure, tmp_path):
    path = tmp_path / "folder" / "results.json"
    measure.write_json(path, {"seconds": 1.0})

    # Fails when half of it is written.
    with pytest.raises(TypeError, match="not JSON serializable"):
        measure.write_json(path, {"seconds": 2.0, "kernel": object()})
    assert json.loads(path.read_text()) == {"seconds": 1.0}
    measure.write_json(path, {"seconds": 3.0})
    assert json.loads(path.read_text()) == {"seconds": 3.0}
