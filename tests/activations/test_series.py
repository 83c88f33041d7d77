"""Hermite series: the error they state, against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_moments import angle, mean_of_product
from scipy import special

import gpntk

CASES = {
    "tanh": (gpntk.Tanh(), np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "sigmoid": (gpntk.Sigmoid(), special.expit, lambda x: special.expit(x) * special.expit(-x)),
    "silu": (
        gpntk.SiLU(),
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) * (1 + x * special.expit(-x)),
    ),
    "softplus": (gpntk.Softplus(), lambda x: np.logaddexp(0, x), special.expit),
}
VARIANCES = np.array([0.1, 1.0, 10.0, 100.0])
CORRELATIONS = np.array([0.5, 0.99, 0.9999, -0.999])


def moments(activation, k, q):
    return np.stack(jax.jit(lambda k, q: (activation.dual(k, q, q), activation.dual_derivative(k, q, q)))(k, q))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_truncation_error_bounds_the_error(name):
    activation, *functions = CASES[name]
    bounds = np.stack(jax.jit(activation.truncation_error)(VARIANCES))
    q, rho = (a.ravel() for a in np.meshgrid(VARIANCES, CORRELATIONS, indexing="ij"))
    values = moments(activation, rho * q, q).reshape(2, *bounds.shape[1:], -1)
    for i, variance in enumerate(VARIANCES):
        for function, bound, value in zip(functions, bounds[:, i], values[:, i], strict=True):
            norm = mean_of_product(function, variance, variance, 0.0)
            exact = [
                mean_of_product(function, variance, variance, angle(r * variance, variance, variance))
                for r in CORRELATIONS
            ]
            # The reference resolves steep functions to 1e-9, and to rounding up to variance 1.
            resolution = 1e-12 if variance <= 1 else 1e-9
            assert np.abs(value - exact).max() <= (bound + resolution) * norm


@pytest.mark.usefixtures("x64")
def test_kink_at_zero_against_the_closed_form():
    series, exact = gpntk.Elementwise(lambda x: jnp.maximum(x, 0)), gpntk.ReLU()
    rho = np.concatenate([np.linspace(-1.0, 1.0, 41), 1 - 10.0 ** -np.arange(2.0, 6.0)])
    errors = np.abs(moments(series, rho, np.ones_like(rho)) - moments(exact, rho, np.ones_like(rho)))
    bounds = np.stack(series.truncation_error(1.0))
    largest = errors.max(axis=1) / 0.5  # both second moments are 1/2
    assert (largest <= bounds).all()
    assert (largest >= 0.1 * bounds).all()  # and the bound is not idle


@pytest.mark.usefixtures("x64")
def test_coincident_pairs_are_exact_however_slow_the_series():
    """The powers left out are all there: E[tanh'^2] tends to 4 / (3 sqrt(2 pi q))."""
    q = jnp.array([1e4, 1e6])
    limit = 4 / (3 * np.sqrt(2 * np.pi * q))
    value, slope = moments(gpntk.Tanh(), q, q)
    np.testing.assert_allclose(slope, limit, rtol=1e-4)
    # E[tanh^2] = 1 - E[sech^2], and E[sech^2] tends to 2 / sqrt(2 pi q).
    np.testing.assert_allclose(1 - value, 2 / np.sqrt(2 * np.pi * q), rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fn", [lambda x: jnp.clip(x, -1, 1), jnp.sign, lambda x: jnp.tanh(1e8 * x)])
def test_kinks_away_from_zero_jumps_and_steep_functions_are_noticed(fn):
    assert max(map(float, gpntk.Elementwise(fn).truncation_error(1.0))) > 5e-3
