"""Importing the package must leave the process as it found it, and cost little."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import jax, numpy as np
before = dict(jax.config.values), np.geterr()
import gpntk
after = dict(jax.config.values), np.geterr()
changed = {name for name in before[0] if before[0][name] != after[0][name]}
assert not changed, changed
assert before[1] == after[1]
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""


COST = """
import sys, time
def seconds(code):
    start = time.process_time()
    exec(code, {})
    return time.process_time() - start
alone = seconds("import gpntk")
assert not {"jax", "numpy"} & set(sys.modules)
required = seconds("import jax, gpjax")
kernels = seconds("import gpntk; gpntk.MLP, gpntk.NTK, gpntk.groups, gpntk.GradientFlow")
assert not {"sklearn", "scipy.stats", "diffrax", "matplotlib", "s2fft", "pandas"} & set(sys.modules)
everything = kernels + seconds("import gpntk; [getattr(gpntk, name) for name in gpntk.__all__]")
assert not {"diffrax", "matplotlib", "s2fft", "arviz"} & set(sys.modules)
# Kernels take 0.2 s beside 1.4 s of JAX and GPJax, and everything less than 1 s, two thirds of it scikit-learn's;
# ratios do not depend on the machine.
costs = [seconds / required for seconds in (alone, kernels, everything)]
assert all(cost < most for cost, most in zip(costs, (0.05, 0.3, 0.85))), costs
"""


def _run(code):
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_import_changes_no_global_state_and_starts_no_device():
    _run(PROBE)


def test_imports_are_of_what_is_used():
    _run(COST)


def test_packages_import_only_those_before_them():
    """The order of the table in CONTRIBUTING.md."""
    rows = re.findall(r"^\| (`\w+/`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    order = re.findall(r"`(\w+)/`", " ".join(rows))
    folders = {path.parent.name for path in (ROOT / "gpntk").glob("*/__init__.py")}
    assert set(order) == folders
    for place, package in enumerate(order):
        for path in (ROOT / "gpntk" / package).glob("*.py"):
            imported = re.findall(r"^ *from gpntk\.(\w+)", path.read_text(), re.MULTILINE)
            assert not set(imported) & set(order[place + 1 :]), path


def test_one_version():
    import gpntk

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert gpntk.__version__ == project["version"] == cited[1]


def test_every_public_name_is_there():
    import gpntk

    for name in gpntk.__all__:
        assert getattr(gpntk, name).__doc__, name
    assert set(gpntk.__all__) <= set(dir(gpntk))
