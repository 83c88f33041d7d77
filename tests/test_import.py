"""Importing the package must leave the process as it found it."""

import subprocess
import sys

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


def test_import_changes_no_global_state_and_starts_no_device():
    finished = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_every_public_name_is_there():
    import gpntk

    for name in gpntk.__all__:
        assert getattr(gpntk, name).__doc__, name
    assert set(gpntk.__all__) <= set(dir(gpntk))
