"""What the type checker is shown as the code of users is such code: it runs."""

import inspect
import runpy
from pathlib import Path

import numpy as np
import pytest

import gpntk


def test_typed_code_of_users_runs():
    names = runpy.run_path(str(Path(__file__).with_name("typed_user.py")))
    np.testing.assert_allclose(names["mean"], names["y"], atol=0.3)
    np.testing.assert_allclose(names["predictions"], names["mean"], rtol=1e-4)


@pytest.mark.parametrize("kind", [gpntk.MLP, gpntk.NNGP, gpntk.NTK, gpntk.Sum, gpntk.SetSum, gpntk.SlotSum])
def test_constructors_that_are_spelled_out_are_those_of_the_base(kind):
    assert inspect.signature(kind) == inspect.signature(kind.__base__)
