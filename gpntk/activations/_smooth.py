"""Smooth activations whose duals have a closed form."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp

from gpntk._checks import real_number
from gpntk.activations._angles import arcsine
from gpntk.activations._base import (
    AbstractActivation,
    coefficient,
    derive_from,
    one_minus_square,
    root_and_inverse,
    snap,
)


def _damped(variance, strength):
    r"""$\sqrt p$, $p = 1/(1 + s q)$, $1 - p$ and $q^{-1/2}$, where $\det(1 + s\Sigma)$ appears."""
    retained = 1.0 / (1.0 + strength * variance)
    return jnp.sqrt(retained), retained, strength * variance * retained, root_and_inverse(variance)[1]


def _damped_determinant(sine, rho, features1, features2):
    r"""$\det(1 + s\Sigma) / ((1 + s q_1)(1 + s q_2))$, without cancellation at coincident inputs of any norm.

    It is one minus the square of `sine`, $s k \sqrt{p_1 p_2}$.
    """
    (_, p1, lost1, _), (_, p2, lost2, _) = features1, features2
    determinant = p1 + p2 - p1 * p2 + lost1 * lost2 * one_minus_square(rho)
    return _smooth_at_zero(determinant, 1.0 - sine**2, features1, features2)


def _smooth_at_zero(value, plain, features1, features2):
    """`value`, and the equal `plain` where a variance is zero: correlations have no second derivatives there."""
    return jnp.where((features1[3] == 0) | (features2[3] == 0), plain, value)


class Erf(AbstractActivation):
    r"""$a\,\mathrm{erf}(b x) + c$.

    $$E[\sigma\sigma] = \tfrac{2a^2}{\pi}\arcsin\frac{2b^2k}{\sqrt{(1+2b^2q_1)(1+2b^2q_2)}} + c^2, \qquad
      E[\sigma'\sigma'] = \frac{4a^2b^2/\pi}{\sqrt{(1+2b^2q_1)(1+2b^2q_2) - 4b^4k^2}}$$

    Williams (1997), eq. (11).

    Raises:
        ValueError: for numbers that are not finite, or larger than 1e150.
        TypeError: for what is not a real number.
    """

    a: float = eqx.field(static=True)
    b: float = eqx.field(static=True)
    c: float = eqx.field(static=True)

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0):
        self.a, self.b, self.c = _coefficients(a=a, b=b, c=c)

    def __call__(self, x):
        return self.a * jax.lax.erf(self.b * x) + self.c

    def features(self, variance):
        return _damped(variance, 2.0 * self.b**2)

    def pair(self, covariance, features1, features2):
        weight = features1[0] * features2[0]
        rho = covariance * (features1[3] * features2[3])
        plain_sine = 2.0 * self.b**2 * covariance * weight
        cosine = jnp.sqrt(_damped_determinant(plain_sine, rho, features1, features2))
        # 2 b^2 k / sqrt((1 + 2 b^2 q1)(1 + 2 b^2 q2)) from factors of which none can overflow.
        sine = rho * (jnp.sqrt(features1[2]) * jnp.sqrt(features2[2]))
        angle = arcsine(derive_from(sine, plain_sine), cosine)
        dual = (2.0 * self.a**2 / math.pi) * angle + self.c**2
        return dual, (4.0 * (self.a * self.b) ** 2 / math.pi) * weight / cosine


class GELU(AbstractActivation):
    r"""The exact Gaussian error linear unit $x\,\Phi(x)$, $\Phi$ the normal distribution function.

    With $p_i = 1/(1+q_i)$, $D = (1+q_1)(1+q_2) - k^2$ and $r = k\sqrt{p_1p_2}$, Stein's lemma gives

    $$E[\sigma\sigma] = \frac{q_1q_2 - k^2 + k^2(p_1+p_2)}{2\pi\sqrt{D}}
      + k\left(\tfrac14 + \tfrac{\arcsin r}{2\pi}\right),$$

    and its derivative with respect to $k$ the dual derivative. Tsuchida, Pearce, van der Heide, Roosta &
    Gallagher (2021), arXiv:2002.08517, Section 3, have an equivalent form.
    """

    def __call__(self, x):
        return jax.nn.gelu(x, approximate=False)

    def features(self, variance):
        return _damped(variance, 1.0)

    def pair(self, covariance, features1, features2):
        (root1, p1, lost1, inverse1), (root2, p2, lost2, inverse2) = features1, features2
        rho = covariance * (inverse1 * inverse2)
        sine = covariance * (root1 * root2)
        determinant = _damped_determinant(sine, rho, features1, features2)
        cosine = jnp.sqrt(determinant)
        density = 0.5 / (math.pi * cosine)
        quadrant = 0.25 + arcsine(sine, cosine) / (2.0 * math.pi)
        # (q1 q2 - k^2 + k^2 (p1 + p2)) / (q1 q2). In this order nothing overflows or underflows on the way.
        spread = one_minus_square(rho) + rho * rho * (p1 + p2)
        size1, size2 = lost1 / root1, lost2 / root2
        plain = density * (size1 * size2 - covariance * sine * (1.0 - p1 - p2))
        curved = _smooth_at_zero(size1 * (density * spread) * size2, plain, features1, features2)
        slope = p1 + p2 + p1 * (p2 / determinant)
        return curved + covariance * quadrant, quadrant + sine * density * slope


class _AbstractSinusoid(AbstractActivation):
    r"""$a \sin(b x + c)$.

    $$E[\sigma\sigma] = \tfrac{a^2}{2}\left[e^{-b^2(q_1+q_2-2k)/2} - \cos(2c)\,e^{-b^2(q_1+q_2+2k)/2}\right],$$

    the real part of Gaussian characteristic functions; the dual derivative is its derivative in $k$. What is even
    in $k$, the part of $\cos$, and what is odd, that of $\sin$, are computed apart: at small variances the
    difference of the two exponentials has lost its digits.
    """

    @property
    @abc.abstractmethod
    def wave(self) -> tuple[float, float, float]:
        """Amplitude, frequency and phase of the sine."""

    def __call__(self, x):
        amplitude, frequency, phase = self.wave
        return amplitude * jnp.sin(frequency * x + phase)

    def features(self, variance):
        return variance, *root_and_inverse(variance)

    def pair(self, covariance, features1, features2):
        amplitude, frequency, phase = self.wave
        (variance1, scale1, inverse1), (variance2, scale2, inverse2) = features1, features2
        rho = covariance * (inverse1 * inverse2)
        gap, mean, product = 0.5 * (scale1 - scale2) ** 2, 0.5 * (variance1 + variance2), scale1 * scale2
        difference = derive_from(gap + product * snap(1.0 - rho), mean - covariance)
        total = derive_from(gap + product * snap(1.0 + rho), mean + covariance)
        near, far = jnp.exp(-(frequency**2) * difference), jnp.exp(-(frequency**2) * total)
        sign = jnp.where(covariance < 0, -1.0, 1.0)
        even = 0.5 * (near + far)
        odd = -0.5 * sign * jnp.where(sign < 0, far, near) * jnp.expm1(-2.0 * frequency**2 * sign * covariance)
        sine, cosine = (amplitude * math.sin(phase)) ** 2, (amplitude * math.cos(phase)) ** 2
        return sine * even + cosine * odd, frequency**2 * (cosine * even + sine * odd)


class Sin(_AbstractSinusoid):
    """`a * sin(b * x + c)`.

    Raises:
        ValueError: for numbers that are not finite, or larger than 1e150.
        TypeError: for what is not a real number.
    """

    a: float = eqx.field(static=True)
    b: float = eqx.field(static=True)
    c: float = eqx.field(static=True)

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0):
        self.a, self.b, self.c = _coefficients(a=a, b=b, c=c)

    @property
    def wave(self):
        return self.a, self.b, self.c


class Cos(_AbstractSinusoid):
    """`a * cos(b * x + c)`.

    Raises:
        ValueError: for numbers that are not finite, or larger than 1e150.
        TypeError: for what is not a real number.
    """

    a: float = eqx.field(static=True)
    b: float = eqx.field(static=True)
    c: float = eqx.field(static=True)

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0):
        self.a, self.b, self.c = _coefficients(a=a, b=b, c=c)

    @property
    def wave(self):
        return self.a, self.b, self.c + 0.5 * math.pi


class Rbf(_AbstractSinusoid):
    r"""$\sqrt2 \sin(\sqrt{2\gamma}\,x + \pi/4)$, whose dual is the RBF kernel $e^{-\gamma(q_1 + q_2 - 2k)}$.

    Raises:
        ValueError: for a `gamma` that is not positive and finite.
        TypeError: for what is not a real number.
    """

    gamma: float = eqx.field(static=True)

    def __init__(self, gamma: float = 1.0):
        self.gamma = real_number("gamma", gamma, minimum=0.0, strict=True)

    @property
    def wave(self):
        return math.sqrt(2.0), math.sqrt(2.0 * self.gamma), 0.25 * math.pi


class Exp(AbstractActivation):
    r"""$a\,e^{bx}$, with $E[\sigma\sigma] = a^2 e^{b^2(q_1+q_2+2k)/2}$.

    Raises:
        ValueError: for numbers that are not finite, or larger than 1e150.
        TypeError: for what is not a real number.
    """

    a: float = eqx.field(static=True)
    b: float = eqx.field(static=True)

    def __init__(self, a: float = 1.0, b: float = 1.0):
        self.a, self.b = _coefficients(a=a, b=b)

    def __call__(self, x):
        return self.a * jnp.exp(self.b * x)

    def features(self, variance):
        return variance

    def pair(self, covariance, features1, features2):
        dual = self.a**2 * jnp.exp(self.b**2 * (0.5 * (features1 + features2) + covariance))
        return dual, self.b**2 * dual


class Gaussian(AbstractActivation):
    r"""$a\,e^{bx^2}$, with $E[\sigma\sigma] = a^2 / \sqrt{(1-2bq_1)(1-2bq_2) - 4b^2k^2}$.

    For $b > 0$ the moments exist only at variances below $1/(4b)$.

    Raises:
        ValueError: for numbers that are not finite, or larger than 1e150.
        TypeError: for what is not a real number.
    """

    a: float = eqx.field(static=True)
    b: float = eqx.field(static=True)

    def __init__(self, a: float = 1.0, b: float = -1.0):
        self.a, self.b = _coefficients(a=a, b=b)

    def __call__(self, x):
        return self.a * jnp.exp(self.b * x * x)

    def features(self, variance):
        return _damped(variance, -2.0 * self.b)

    def pair(self, covariance, features1, features2):
        rho = covariance * (features1[3] * features2[3])
        weight = features1[0] * features2[0]
        sine = -2.0 * self.b * covariance * weight
        inverse_root = weight / jnp.sqrt(_damped_determinant(sine, rho, features1, features2))
        # The cube alone could underflow, while the product with a large covariance does not.
        cube = covariance * inverse_root * inverse_root * inverse_root
        return self.a**2 * inverse_root, 4.0 * (self.a * self.b) ** 2 * cube


def _coefficients(**values: float) -> tuple[float, ...]:
    return tuple(coefficient(name, value) for name, value in values.items())
