"""Figures of statistics against depth."""

import numpy as np
import pytest

import gpntk
from gpntk import plotting


def test_values_are_relative_to_kernels():
    c = gpntk.cumulants(gpntk.MLP(5), np.array([[1.0, 2.0, 0.5]]))
    axes = plotting.plot_against_depth(c)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 5.0 * np.arange(6), atol=1e-9)
    assert axes.get_ylabel() == "$V/K^2$"
    plotting.plot_against_depth(c, "F", ax=axes, label="F")
    expected = [(layer.F / (layer.K * layer.theta)).item() for layer in c.layers]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), expected)


def test_what_cannot_be_drawn_is_refused():
    c = gpntk.cumulants(gpntk.MLP(1), np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"`name` must be one of 'K', .*got 'W'"):
        plotting.plot_against_depth(c, "W")
    with pytest.raises(ValueError, match="`index` must be below 1, the number of inputs, got 1"):
        plotting.plot_against_depth(c, index=1)
    with pytest.raises(TypeError, match=r"`cumulants` must be what gpntk\.cumulants"):
        plotting.plot_against_depth(gpntk.cumulants(gpntk.MLP(1), np.ones((2, 2)), rank=1))
