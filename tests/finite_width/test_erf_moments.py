"""Four-input moments of the error function, against quadrature over the preactivations and points in them."""

import jax
import numpy as np
import pytest
from scipy.special import erf

import gpntk
from gpntk.finite_width._erf_moments import erf_covariances

# Two directions; the third input repeats the first, the fourth is zero.
FACTOR = np.array([[1.0, 0.0], [0.6, 0.5], [1.0, 0.0], [0.0, 0.0]])
PAIRS = np.triu_indices(4)


def by_quadrature(a, b, c, factor):
    """Covariances on pairs of inputs of two directions, by a tensor rule that is exact to rounding here."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    z = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2) @ factor.T
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    first, second = PAIRS
    value, slope = a * erf(b * z) + c, 2 * a * b / np.sqrt(np.pi) * np.exp(-((b * z) ** 2))
    values, slopes = value[:, first] * value[:, second], slope[:, first] * slope[:, second]
    values, slopes = values - weights @ values, slopes - weights @ slopes
    return values.T * weights @ values, values.T * weights @ slopes, slopes.T * weights @ slopes


@pytest.mark.parametrize(
    ("a", "b", "c", "scale"), [(1.0, 1.0, 0.0, 1.0), (1.3, -0.7, 0.4, 1.2), (1.0, 0.1, 0.0, 0.5)]
)
def test_against_quadrature(x64, a, b, c, scale):
    factor = scale * FACTOR
    ours = erf_covariances(a, b, c, factor @ factor.T, PAIRS)
    for covariance, expected in zip(ours, by_quadrature(a, b, c, factor), strict=True):
        np.testing.assert_allclose(covariance, expected, atol=1e-13 * np.max(np.abs(expected)))


@pytest.mark.parametrize("variance", [1e2, 1e5])
def test_large_arguments_are_signs(x64, variance):
    """Products of signs of (z1, z2) and (z1, z2): E[1] = 1, and slopes concentrate where both arguments vanish."""
    kernel = variance * np.array([[1.0, 0.5], [0.5, 1.0]])
    values, mixed, slopes = erf_covariances(1.0, 1.0, 0.0, kernel, np.triu_indices(2))
    # Signs: of (z1 z2) with itself 1 - (2/pi arcsin 1/2)^2 = 8/9, of z1^2 with anything 0, up to 1/sqrt(variance).
    assert float(values[1, 1]) == pytest.approx(8 / 9, abs=2 / np.sqrt(variance))
    assert abs(float(values[0, 1])) < 2 / np.sqrt(variance)
    # E[z1' z2' z1' z2'] = (4/pi)^2 density of (0, 0) times (int exp(-2x^2) dx)^2 = 4/(pi^2 sqrt(3/4) variance).
    assert float(slopes[1, 1]) == pytest.approx(4 / (np.pi**2 * np.sqrt(0.75) * variance), rel=0.05)
    assert np.isfinite(np.asarray(mixed)).all()


@pytest.mark.parametrize("n_features", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_tensors_against_points(n_features):
    """The same function without its closed form, by a lattice (two features and the bias) and by Sobol points."""
    X = np.random.default_rng(0).normal(size=(4, n_features))
    net = gpntk.MLP(2, gpntk.Erf(0.9, 1.1, 0.2), weight_variance=1.2, bias_variance=0.2)
    exact = gpntk.cumulants(net, X)
    sampled = gpntk.cumulants(net.replace(activation=gpntk.Elementwise(_shifted_erf)), X, tolerance=1e-3)
    for name in ("V", "D", "F", "A", "B"):
        tensor = getattr(exact, name)
        assert exact.error_estimate[name] == 0.0
        difference = np.linalg.norm(getattr(sampled, name) - tensor)
        # Eight replicates estimate their spread to a quarter of itself.
        assert difference < 4 * sampled.error_estimate[name] < 4e-3 * np.linalg.norm(tensor), name


def _shifted_erf(x):
    return 0.9 * jax.lax.erf(1.1 * x) + 0.2
