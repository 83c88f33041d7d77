"""Activations with a kink at zero: ReLU and its relatives, and the sign."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp

from gpntk.activations._angles import arc_cosine, arcsine
from gpntk.activations._base import AbstractActivation, coefficient, one_minus_square, root_and_inverse


class AbstractPiecewiseLinear(AbstractActivation):
    r"""$\sigma(x) = a \min(x, 0) + b \max(x, 0)$.

    With correlation $\rho$ and the arc-cosine kernels $\kappa_0, \kappa_1$ of Cho & Saul (2009),

    $$E[\sigma\sigma] = \sqrt{q_1 q_2}\,\tfrac12\left[(a^2 + b^2)\,\kappa_1(\rho) - 2ab\,\kappa_1(-\rho)\right],
      \qquad E[\sigma'\sigma'] = \tfrac12 (a^2 + b^2)\,\kappa_0(\rho) + ab\,\kappa_0(-\rho).$$
    """

    @property
    @abc.abstractmethod
    def slopes(self) -> tuple[float, float]:
        """The slopes `(a, b)` left and right of zero."""

    def __call__(self, x):
        left, right = self.slopes
        # `maximum` and `minimum` give each side half of the slope at the kink.
        return left * jnp.minimum(x, 0) + right * jnp.maximum(x, 0)

    def features(self, variance):
        return root_and_inverse(variance)

    def pair(self, covariance, features1, features2):
        (scale1, inverse1), (scale2, inverse2) = features1, features2
        left, right = self.slopes
        rho = covariance * (inverse1 * inverse2)
        same, opposite = 0.5 * (left**2 + right**2), left * right
        degree0, degree1 = arc_cosine(rho)
        # kappa_1(-rho) = kappa_1(rho) - rho and kappa_0(-rho) = 1 - kappa_0(rho): one evaluation serves both.
        dual = (same - opposite) * degree1 + opposite * rho
        return (scale1 * scale2) * dual, (same - opposite) * degree0 + opposite


class ReLU(AbstractPiecewiseLinear):
    """The rectifier `max(x, 0)`."""

    @property
    def slopes(self):
        return 0.0, 1.0


class LeakyReLU(AbstractPiecewiseLinear):
    """`x` for positive, `negative_slope * x` for negative arguments.

    Raises:
        ValueError: for a slope that is not finite, or larger than 1e150.
        TypeError: for what is not a real number.
    """

    negative_slope: float = eqx.field(static=True)

    def __init__(self, negative_slope: float = 0.01):
        self.negative_slope = coefficient("negative_slope", negative_slope)

    @property
    def slopes(self):
        return self.negative_slope, 1.0


class ABReLU(AbstractPiecewiseLinear):
    """`a * min(x, 0) + b * max(x, 0)`.

    Raises:
        ValueError: for slopes that are not finite, or larger than 1e150.
        TypeError: for what is not a real number.
    """

    a: float = eqx.field(static=True)
    b: float = eqx.field(static=True)

    def __init__(self, a: float, b: float):
        self.a = coefficient("a", a)
        self.b = coefficient("b", b)

    @property
    def slopes(self):
        return self.a, self.b


class Abs(AbstractPiecewiseLinear):
    """The absolute value."""

    @property
    def slopes(self):
        return -1.0, 1.0


class Sign(AbstractActivation):
    r"""The sign, with $E[\sigma\sigma] = \tfrac{2}{\pi}\arcsin\rho$; its dual derivative is 0 by convention."""

    def __call__(self, x):
        return jnp.sign(x)

    def features(self, variance):
        return root_and_inverse(variance)

    def pair(self, covariance, features1, features2):
        rho = covariance * (features1[1] * features2[1])
        cosine, _ = root_and_inverse(one_minus_square(rho))
        return (2.0 / math.pi) * arcsine(rho, cosine), jnp.zeros_like(rho)
