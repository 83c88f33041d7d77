"""Scalar functions of training, against arithmetic with 60 digits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from gpntk.dynamics._responses import DESCENT, FLOW, Steps, phi
from gpntk.dynamics._spectral import divided_difference

mpmath.mp.dps = 60
EPS = np.finfo(np.float64).eps


def exact_phi(x):
    x = mpmath.mpf(x)
    return mpmath.mpf(1) if x == 0 else -mpmath.expm1(-x) / x


def exact_phi_slope(x):
    x = mpmath.mpf(x)
    if abs(x) < mpmath.mpf("1e-20"):
        return -mpmath.mpf(1) / 2 + x / 3
    return (mpmath.exp(-x) - exact_phi(x)) / x


def exact_flow(b, s):
    return mpmath.mpf(s) * exact_phi(mpmath.mpf(b) * mpmath.mpf(s)) if b else mpmath.mpf(s)


def exact_descent(b, k, size):
    b, size = mpmath.mpf(b), mpmath.mpf(size)
    return k * size if b == 0 else (1 - (1 - size * b) ** k) / b


def relative_error(values, exact):
    return max(
        abs(mpmath.mpf(float(v)) - e) / abs(e) for v, e in zip(np.ravel(values), np.ravel(exact), strict=True)
    )


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


POINTS = np.concatenate(
    [
        [0.0, 0.5, 1.0, 1e300],
        np.geomspace(1e-300, 1e300, 601),
        np.linspace(0, 3, 601),
        -np.geomspace(1e-18, 1, 100),
    ]
)


def test_phi_is_accurate_to_four_eps():
    assert relative_error(phi(POINTS), [exact_phi(x) for x in POINTS]) < 4 * EPS


def test_derivative_of_phi_is_accurate():
    # Above the radius of the series the quotient cancels by a factor of up to four.
    x = POINTS[POINTS < 1e100]
    slopes = jax.vmap(jax.grad(phi))(jnp.asarray(x))
    assert relative_error(slopes, [exact_phi_slope(v) for v in x]) < 16 * EPS


def test_phi_in_float32():
    x = np.geomspace(1e-30, 1e30, 300).astype(np.float32)
    values = phi(jnp.asarray(x))
    assert values.dtype == jnp.float32
    assert relative_error(values, [exact_phi(float(v)) for v in x]) < 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize("time", [0.0, 1e-12, 1.0, 1e6, 1e12, np.inf])
def test_flow_response_over_fifteen_decades(time):
    b = np.geomspace(1e-12, 1e3, 60)
    exact = [1 / mpmath.mpf(x) if np.isinf(time) else exact_flow(x, time) for x in b]
    values = FLOW.value(jnp.asarray(b), jnp.asarray(time))
    if time == 0:
        assert not values.any()
    else:
        assert relative_error(values, exact) < 8 * EPS


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1001, 10**6])
def test_descent_response_up_to_the_largest_step(steps):
    b = np.concatenate([[0.0], np.geomspace(1e-12, 1, 60), np.linspace(1, 3.99, 60)])
    values = DESCENT.value(jnp.asarray(b), Steps(jnp.asarray(float(steps)), jnp.asarray(0.5)))
    # A power of 1 - x amplifies the rounding of 1 - x by its exponent, unless the power itself is negligible.
    assert relative_error(values, [exact_descent(x, steps, 0.5) for x in b]) < 64 * EPS


def test_descent_response_has_a_limit():
    b = jnp.array([1e-9, 0.3, 1.0, 2.0, 3.9])
    assert np.allclose(DESCENT.value(b, Steps(jnp.asarray(np.inf), jnp.asarray(0.5))), 1 / b, rtol=4 * EPS)
    assert not DESCENT.value(b, Steps(jnp.asarray(0.0), jnp.asarray(0.5))).any()


@pytest.mark.parametrize(
    ("response", "clock", "exact"),
    [
        (FLOW, 3.0, lambda b: exact_flow(b, 3.0)),
        (FLOW, 1e4, lambda b: exact_flow(b, 1e4)),
        (DESCENT, Steps(7.0, 0.5), lambda b: exact_descent(b, 7, 0.5)),
        (DESCENT, Steps(1000.0, 0.5), lambda b: exact_descent(b, 1000, 0.5)),
    ],
)
def test_divided_differences_of_near_and_far_eigenvalues(response, clock, exact):
    clock = jax.tree.map(jnp.asarray, clock)
    b = np.array([1e-9, 1e-4, 1e-4, 0.3, 0.3 + 1e-12, 0.3 + 1e-7, 0.30001, 0.31, 1.7, 1.7 + 1e-6, 3.9])
    values = divided_difference(response, jnp.asarray(b), clock)

    def exact_difference(i, j):
        if b[i] == b[j]:
            return mpmath.diff(lambda x: exact(x), b[i])
        return (exact(b[i]) - exact(b[j])) / (mpmath.mpf(b[i]) - mpmath.mpf(b[j]))

    expected = [[exact_difference(i, j) for j in range(len(b))] for i in range(len(b))]
    # eps^(2/3) is 4e-11; see `divided_difference`.
    assert relative_error(values, expected) < 1e-9
