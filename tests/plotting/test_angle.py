"""Kernels against the angle."""

import gpjax as gpx
import numpy as np
import pytest

import gpntk
from gpntk import plotting

ANGLES = np.deg2rad(np.linspace(0, 180, 181))
RELU = gpntk.NNGP(gpntk.MLP(depth=1, activation=gpntk.ReLU(), weight_variance=2.0))


def test_relu_is_the_arc_cosine_kernel():
    # Cho & Saul (2009), eq. (6), at inputs of mean square 1: variance C_W of the first preactivations.
    expected = 2 / np.pi * (np.sin(ANGLES) + (np.pi - ANGLES) * np.cos(ANGLES))
    line = plotting.plot_against_angle(RELU, color="red", label="NNGP").lines[0]
    np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 180, 181))
    np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-12)
    assert (line.get_color(), line.get_label()) == ("red", "NNGP")
    relative = plotting.plot_against_angle(RELU, relative=True, points=5).lines[0].get_ydata()
    np.testing.assert_allclose(relative, expected[::45] / 2, atol=1e-12)


def test_the_plane_is_spanned_by_any_two_inputs():
    # |u|^2 = 9 in three dimensions: distances are those of a chord.
    plane = [[2.0, 2.0, 1.0], [5.0, -1.0, 0.0]]
    ax = plotting.plot_against_angle(gpx.kernels.RBF(lengthscale=1.7), plane=plane)
    expected = np.exp(-((2 * 3 * np.sin(ANGLES / 2)) ** 2) / (2 * 1.7**2))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, rtol=1e-6)
    # It turns towards the second input.
    kernel = gpx.kernels.Linear()
    towards = plotting.plot_against_angle(kernel, plane=[[1.0, 0.0], [1.0, 1.0]]).lines[0].get_ydata()
    np.testing.assert_allclose(towards, np.cos(ANGLES), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plane": np.ones((2, 3))}, ValueError, "`plane` must be two inputs in different directions"),
        ({"plane": np.eye(2) * 0}, ValueError, "`plane` must be two inputs in different directions"),
        ({"plane": np.eye(3)}, ValueError, r"`plane` must be two inputs, of shape \(2, D\), got shape \(3, 3\)"),
        ({"plane": [[1.0, np.nan], [0.0, 1.0]]}, ValueError, "`plane` must be finite, got NaN"),
        ({"plane": "xy"}, ValueError, "`plane` must be an array of real numbers, got dtype <U2"),
        ({"points": 1}, ValueError, "`points` must be an integer >= 2, got 1"),
        ({"relative": "yes"}, TypeError, "`relative` must be True or False, got 'yes'"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        plotting.plot_against_angle(RELU, **arguments)


def test_kernels_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match=r"`kernel` must be a GPJax kernel such as .*got MLP"):
        plotting.plot_against_angle(gpntk.MLP())
    with pytest.raises(
        ValueError, match=r"`plane` must be two inputs of the kernel, got two features.*expects 16"
    ):
        plotting.plot_against_angle(gpntk.NTK(gpntk.CNN((4, 4, 1))))
    zero = gpntk.NNGP(gpntk.MLP(activation=gpntk.Erf(a=0.0)))
    with pytest.raises(ValueError, match="`relative` must be False for a kernel that is 0"):
        plotting.plot_against_angle(zero, relative=True)
