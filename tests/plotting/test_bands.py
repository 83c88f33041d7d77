"""Bands, and predictions over training time."""

import jax
import numpy as np
import pytest
import scipy.linalg
from sklearn.exceptions import NotFittedError

import gpntk
from gpntk import plotting

NET = gpntk.MLP(depth=2, activation=gpntk.Erf(), bias_variance=0.3)
X, GRID = np.array([[-1.5], [-0.2], [0.4], [2.0]]), np.linspace(-2, 2, 7)[:, None]
Y = np.sin(2 * X[:, 0])


def band(ax, index):
    """Abscissae, lower and upper edge of the band with this index."""
    vertices = ax.collections[index].get_paths()[0].vertices
    edges = {}
    for x, y in vertices:
        edges.setdefault(x, []).append(y)
    x = np.array(sorted(edges))
    return x, *np.array([[min(edges[a]), max(edges[a])] for a in x]).T


def test_the_band_is_around_the_line():
    x, mean, std = np.array([2.0, 0.0, 1.0]), np.array([3.0, -1.0, 0.5]), np.array([0.3, 0.0, 0.1])
    ax = plotting.plot_band(x, mean, std, factor=3.0, color="C3", label="here")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.0, -1.0], [1.0, 0.5], [2.0, 3.0]])
    assert ax.lines[0].get_label() == "here"
    np.testing.assert_allclose(band(ax, 0), [[0.0, 1.0, 2.0], [-1.0, 0.2, 2.1], [-1.0, 0.8, 3.9]])
    np.testing.assert_allclose(ax.collections[0].get_facecolor()[0, :3], matplotlib_rgb("C3"))


def matplotlib_rgb(colour):
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def dense_flow(times, scale=1.0, alpha=0.0):
    """Mean and deviation at several times from the formulas, with matrix exponentials."""
    with jax.enable_x64(True):
        nngp, ntk = (np.asarray(k) for k in gpntk.nngp_and_ntk(NET, np.concatenate([X, GRID])))
    n, B = len(X), ntk[: len(X), : len(X)] + alpha * np.eye(len(X))
    means, stds = [], []
    for t in times:
        damped = np.zeros_like(B) if np.isinf(t) else scipy.linalg.expm(-t * B)
        A = ntk[n:, :n] @ np.linalg.solve(B, np.eye(n) - damped)
        means.append(A @ Y)
        cross = A @ nngp[:n, n:]
        cov = nngp[n:, n:] + A @ nngp[:n, :n] @ A.T - cross - cross.T
        stds.append(scale * np.sqrt(np.diag(cov)))
    return np.array(means), np.array(stds)


@pytest.mark.parametrize("kind", ["regressor", "flow"])
def test_predictions_are_those_of_the_flow(kind):
    times = np.array([0.0, 0.7, np.inf])
    with jax.enable_x64(True):
        if kind == "flow":
            model = gpntk.GradientFlow(gpntk.NTK(NET), gpntk.NNGP(NET), X, Y, alpha=0.01)
        else:
            model = gpntk.NTKRegressor(NET, alpha=0.01).fit(X, Y)
        ax = plotting.plot_predictions(model, GRID, times)
    means, stds = dense_flow(times, alpha=0.01)
    for index in range(3):
        np.testing.assert_allclose(
            ax.lines[index].get_xydata(), np.stack([GRID[:, 0], means[index]], 1), atol=1e-7
        )
        edges = GRID[:, 0], means[index] - 2 * stds[index], means[index] + 2 * stds[index]
        np.testing.assert_allclose(band(ax, index), edges, atol=1e-6)
    np.testing.assert_allclose(ax.lines[3].get_xydata(), np.stack([X[:, 0], Y], 1))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["$t = 0$", "$t = 0.7$", r"$t = \infty$", "training points"]


def test_outputs_are_in_the_units_of_the_targets():
    targets = np.stack([Y, 100.0 + 20.0 * Y], axis=1)
    model = gpntk.NTKRegressor(NET, normalize_y=True).fit(X, targets)
    ax = plotting.plot_predictions(model, X, along=[0.0, 1.0, 2.0, 3.0], output=1)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), targets[:, 1], rtol=1e-4)
    assert len(ax.lines) == 1  # no training points where their place on the axis is not known
    points = plotting.plot_predictions(model, GRID, output=1).lines[1].get_xydata()
    np.testing.assert_allclose(points, np.stack([X[:, 0], targets[:, 1]], 1))
    with pytest.raises(ValueError, match="`output` must be below 2, the number of outputs, got 2"):
        plotting.plot_predictions(model, GRID, output=2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [[0.0, 1.0]]}, ValueError, r"`x` must be a vector, got shape \(1, 2\)"),
        ({"mean": [1.0]}, ValueError, r"`mean` must be a vector of 2 numbers, got shape \(1,\)"),
        ({"std": [0.1, -0.2]}, ValueError, "`std` must not be negative, got -0.2"),
        ({"std": [0.1, np.nan]}, ValueError, "`std` must be finite, got NaN"),
        ({"factor": -1.0}, ValueError, "`factor` must be a finite real number >= 0, got -1"),
    ],
)
def test_bad_bands_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        plotting.plot_band(**{"x": [0.0, 1.0], "mean": [0.0, 1.0], "std": [0.1, 0.1], **changes})


def test_predictions_that_cannot_be_drawn_are_refused():
    model = gpntk.NTKRegressor(NET).fit(X, Y)
    for arguments, error, message in (
        ((model, GRID, -1.0), ValueError, "`times` must be a real number >= 0, got -1"),
        ((model, GRID, [[1.0]]), ValueError, r"`times` must be a number or a vector"),
        ((model, GRID, []), ValueError, r"`times` must be a number or a vector"),
        ((model, GRID[:, 0], 1.0), ValueError, r"`X` must be inputs of shape \(M, D\), got shape \(7,\)"),
        ((model, np.ones((2, 3)), 1.0), ValueError, "`along` must be given .* those of `X` have 3"),
        ((gpntk.NTKRegressor(NET), GRID), NotFittedError, "not fitted"),
        ((gpntk.NTK(NET), GRID), TypeError, "`model` must be a fitted NTKRegressor or a GradientFlow"),
        ((gpntk.GradientFlow(gpntk.NTK(NET), None, X, Y), GRID, 1.0), ValueError, "`nngp` must be a kernel"),
    ):
        with pytest.raises(error, match=message):
            plotting.plot_predictions(*arguments)
