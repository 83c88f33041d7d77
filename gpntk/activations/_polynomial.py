"""Polynomial activations: their duals are finite series in the covariance."""

import abc
import functools
import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk._checks import integer, real_number, sequence
from gpntk.activations._base import AbstractActivation


def horner(
    table1: Float[Array, "... K"], table2: Float[Array, "... K"], x: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """`sum_k table1[k] table2[k] x^k` and its derivative with respect to `x`, in one pass."""
    # The order axis goes first, so that each term reads contiguous rows of both tables.
    table1, table2 = jnp.moveaxis(table1, -1, 0), jnp.moveaxis(table2, -1, 0)
    value = derivative = jnp.zeros_like(x)
    for coefficient1, coefficient2 in zip(table1[::-1], table2[::-1], strict=True):
        derivative = derivative * x + value
        value = value * x + coefficient1 * coefficient2
    return value, derivative


class _AbstractPolynomial(AbstractActivation):
    r"""$\sigma(x) = \sum_m c_m x^m$.

    $$E[\sigma\sigma] = \sum_j \frac{k^j}{j!}\, E[\sigma^{(j)}(u)]\, E[\sigma^{(j)}(v)],$$

    the Wiener chaos expansion, finite for polynomials. Derivatives have moments that are polynomials in
    the variance, so values and gradients are exact at zero variance and at coincident inputs.
    """

    @property
    @abc.abstractmethod
    def power_series(self) -> tuple[float, ...]:
        """Coefficients of the powers, lowest first."""

    def __call__(self, x):
        value = jnp.zeros_like(x)
        for coefficient in self.power_series[::-1]:
            value = value * x + coefficient
        return value

    def features(self, variance):
        return jnp.stack([_series(c, variance) for c in _chaos_coefficients(self.power_series)], axis=-1)

    def pair(self, covariance, features1, features2):
        return horner(features1, features2, covariance)


@functools.lru_cache
def _chaos_coefficients(power_series: tuple[float, ...]) -> list[list[float]]:
    r"""Of $E[\sigma^{(j)}(u)]/\sqrt{j!}$ as a polynomial in the variance, for every j.

    The power m contributes $c_m\, m! / (2^h h! \sqrt{j!})$ to the order h = (m - j)/2. Factorials stay integers up
    to the end: as floats they would overflow long before the coefficient does.
    """
    degree = len(power_series) - 1
    coefficients = []
    for j in range(degree + 1):
        moments = []
        for h in range((degree - j) // 2 + 1):
            m = j + 2 * h
            weight = math.factorial(m) // (2**h * math.factorial(h))
            moments.append(power_series[m] * _root_of_ratio(weight**2, math.factorial(j)))
        coefficients.append(moments)
    return coefficients


def _root_of_ratio(numerator: int, denominator: int) -> float:
    """The root of a ratio of integers of any size; `OverflowError` only where the root itself is too large."""
    shift = (numerator.bit_length() - denominator.bit_length()) // 2
    scaled = (numerator, denominator << 2 * shift) if shift > 0 else (numerator << -2 * shift, denominator)
    return math.ldexp(math.sqrt(scaled[0] / scaled[1]), shift)


def _series(coefficients: list[float], variance: Float[Array, "..."]) -> Float[Array, "..."]:
    value = jnp.zeros_like(variance)
    for coefficient in coefficients[::-1]:
        value = value * variance + coefficient
    return value


def _check_degree(name: str, value, power_series: tuple[float, ...]) -> None:
    try:
        finite = all(math.isfinite(c) for row in _chaos_coefficients(power_series) for c in row)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(
            f"`{name}` must be of a lower degree or smaller: the Gaussian moments overflow double precision, "
            f"got {value!r}."
        )


class Polynomial(_AbstractPolynomial):
    """The polynomial with the given `coefficients`, lowest power first.

    Raises:
        ValueError: for no coefficients, one that is not finite, and where Gaussian moments overflow.
        TypeError: for what is not a sequence of real numbers.
    """

    coefficients: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, coefficients):
        coefficients = sequence("coefficients", coefficients)
        if not coefficients:
            raise ValueError("`coefficients` must hold at least one number, got an empty sequence.")
        self.coefficients = tuple(
            real_number(f"coefficients[{m}]", c, minimum=-math.inf) for m, c in enumerate(coefficients)
        )
        _check_degree("coefficients", self.coefficients, self.coefficients)

    @property
    def power_series(self):
        return self.coefficients


class Monomial(_AbstractPolynomial):
    """The power `x**k`, `k >= 0`.

    Raises:
        ValueError: for a negative `k`, and one for which Gaussian moments overflow.
        TypeError: if `k` is not an integer.
    """

    k: int = eqx.field(static=True)

    def __init__(self, k: int):
        self.k = integer("k", k, minimum=0)
        _check_degree("k", self.k, self.power_series)

    @property
    def power_series(self):
        return (0.0,) * self.k + (1.0,)


class Hermite(AbstractActivation):
    r"""The normalised Hermite polynomial $He_k(x)/\sqrt{k!}$; it has unit second moment at unit variance.

    $$E[\sigma\sigma] = \sum_{i \le k/2} \binom{k}{2i} \binom{2i}{i}
      \left(\frac{(q_1 - 1)(q_2 - 1)}{4}\right)^{i} k^{k - 2i}_{12}$$

    at any variances, $k_{12}$ the covariance. Each order is a single term: nothing cancels at high degree.

    Raises:
        ValueError: for a negative `k`.
        TypeError: if `k` is not an integer.
    """

    k: int = eqx.field(static=True)

    def __init__(self, k: int):
        self.k = integer("k", k, minimum=0)

    def __call__(self, x):
        previous, value = jnp.zeros_like(x), jnp.ones_like(x)
        for degree in range(self.k):
            previous, value = value, (x * value - math.sqrt(degree) * previous) / math.sqrt(degree + 1)
        return value

    def features(self, variance):
        table = [jnp.zeros_like(variance)] * (self.k + 1)
        term = jnp.ones_like(variance)
        for i in range(self.k // 2 + 1):
            table[self.k - 2 * i] = term
            # From one binomial coefficient under the root to the next: they alone would overflow.
            left = self.k - 2 * i
            term = term * (math.sqrt(left * (left - 1)) / (i + 1) * 0.5 * (variance - 1.0))
        return jnp.stack(table, axis=-1)

    def pair(self, covariance, features1, features2):
        return horner(features1, features2, covariance)


class Identity(AbstractActivation):
    """No nonlinearity: a deep linear network."""

    def __call__(self, x):
        return x

    def features(self, variance):
        return ()

    def pair(self, covariance, features1, features2):
        return covariance, jnp.ones_like(covariance)
