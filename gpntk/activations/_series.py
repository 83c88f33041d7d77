r"""Activations without a closed form: duals as Hermite series, computed from the function alone.

With normalised Hermite polynomials $h_k$ and $a_k(q) = E_{u \sim N(0,1)}[\sigma(\sqrt q\,u)\, h_k(u)]$,

$$E[\sigma\sigma] = \sum_k a_k(q_1)\, a_k(q_2)\, \rho^k, \qquad
  E[\sigma'\sigma'] = \sum_k b_k(q_1)\, b_k(q_2)\, \rho^k,\quad b_k = \sqrt{k+1}\, a_{k+1} / \sqrt q$$

(Daniely, Frostig & Singer 2016, Lemma 11). The coefficients belong to one input each; a pair costs two
short series. What the truncation leaves out, split into its even and odd part, is known exactly from
$E[\sigma^2]$ and is put on the last two powers, so that coincident and antipodal pairs are exact, every
Gram matrix stays positive semidefinite, and the size of that remainder bounds the error elsewhere.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._products import matmul
from gpntk.activations._base import AbstractActivation, derive_from, root_and_inverse

# The Gaussian is integrated on [-12, 12], in panels that shrink geometrically towards 0: there a function
# of sqrt(q) u is steep when q is large, and there user functions have their kinks.
_RANGE = 12.0
_PANELS = np.concatenate([[0.0], 0.5 ** np.arange(12, 1, -1), np.arange(0.5, _RANGE + 0.25, 0.5)])
_NODES_PER_PANEL = {32: 10, 64: 16}
# With these orders tanh at variance 10 is exact to 1e-5 where 1 - |rho| > 1e-3, in either precision.
ORDER = {32: 192, 64: 256}
_CHUNK = 16
_ROWS_AT_ONCE = 1024


@functools.lru_cache
def gaussian_quadrature(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes `(m,)`, Gaussian weights `(m,)` and weighted Hermite basis `(m, order + 2)`."""
    points, weights = np.polynomial.legendre.leggauss(_NODES_PER_PANEL[bits])
    edges = np.concatenate([-_PANELS[:0:-1], _PANELS])
    half = 0.5 * np.diff(edges)[:, None]
    nodes = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * points).ravel()
    root_density = np.exp(-0.25 * nodes**2) / (2 * math.pi) ** 0.25
    weights = (half * weights).ravel() * root_density
    # Recurrence for h_k times the root of the density, which stays bounded at every order.
    basis = [root_density, nodes * root_density]
    for k in range(1, ORDER[bits] + 3):
        basis.append((nodes * basis[k] - math.sqrt(k) * basis[k - 1]) / math.sqrt(k + 1))
    return nodes, weights * root_density, weights[:, None] * np.stack(basis, axis=1)


class SeriesFeatures(NamedTuple):
    """Hermite coefficients of one input, and bounds on the relative errors of its duals."""

    inverse: Float[Array, "..."]
    mean: Float[Array, "..."]
    slope: Float[Array, "..."]
    values: Float[Array, "... K"]
    slopes: Float[Array, "... K"]
    error: Float[Array, "..."]
    slope_error: Float[Array, "..."]


class AbstractSeries(AbstractActivation):
    """An activation whose features are its Hermite coefficients, by composite Gauss-Legendre quadrature."""

    @abc.abstractmethod
    def __call__(self, x): ...

    def features(self, variance):
        scale, inverse = root_and_inverse(variance)
        flat = jax.lax.map(self._coefficients, scale.reshape(-1), batch_size=_ROWS_AT_ONCE)
        series = jax.tree.map(lambda leaf: leaf.reshape(variance.shape + leaf.shape[1:]), flat)
        return SeriesFeatures(inverse, *series)

    def pair(self, covariance, features1, features2):
        (inverse1, mean1, slope1, values1, slopes1, *_) = features1
        (inverse2, mean2, slope2, values2, slopes2, *_) = features2
        rho = covariance * (inverse1 * inverse2)
        # The slope of `clip` at its ends would be wrong at coincident inputs.
        rho = derive_from(jnp.clip(rho, -1.0, 1.0), rho)
        # Orders 0 and 1 apart: with slope = b_0 they need no division by the variance, which may be 0.
        dual = mean1 * mean2 + slope1 * slope2 * covariance + rho * rho * power_sum(values1, values2, rho)
        return dual, slope1 * slope2 + rho * power_sum(slopes1, slopes2, rho)

    def truncation_error(self, variance: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        r"""Bounds on the errors of the dual and of the dual derivative, as shares of their norms.

        The norms are $E[\sigma^2]$ and $E[\sigma'^2]$. The bounds hold for pairs of inputs of this variance,
        whatever their correlation; at coincident and antipodal pairs, and away from them (where high powers of
        the correlation vanish), errors are far smaller. They cover the orders left out, and the quadrature: by
        Stein's lemma $\sqrt{k+1}\,a_{k+1} = \sqrt q\,b_k$, which jumps, kinks away from zero and functions too
        steep for the panels violate.
        """
        features = self.features(jnp.asarray(variance))
        return features.error, features.slope_error

    def _coefficients(self, scale: Float[Array, ""]):
        """Mean, mean slope, and the coefficients of orders 2... and 1... of the function and its slope."""
        bits = 64 if scale.dtype == jnp.float64 else 32
        nodes, weights, basis = (jnp.asarray(table, scale.dtype) for table in gaussian_quadrature(bits))
        x = scale * nodes
        value, slope = jax.jvp(self.__call__, (x,), (jnp.ones_like(x),))
        order = ORDER[bits]
        values, slopes = matmul(value, basis[:, : order + 2]), matmul(slope, basis[:, : order + 1])
        norm, slope_norm = matmul(value * value, weights), matmul(slope * slope, weights)
        mismatch = jnp.sqrt(jnp.arange(1, order + 2, dtype=x.dtype)) * values[1:] - scale * slopes
        quadrature = _share(jnp.sum(mismatch**2), norm + scale**2 * slope_norm)
        quadrature = 2.0 * root_and_inverse(quadrature)[0]
        at_least_2 = with_remainder(value, values, weights)[2:]
        at_least_1 = with_remainder(slope, slopes, weights)[1:]
        error = quadrature + _share(jnp.sum(at_least_2[-2:] ** 2), norm)
        slope_error = quadrature + _share(jnp.sum(at_least_1[-2:] ** 2), slope_norm)
        mean, mean_slope = matmul(value, weights), matmul(slope, weights)
        return mean, mean_slope, at_least_2, at_least_1, error, slope_error


def _share(part, whole):
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)


def with_remainder(function, coefficients, weights):
    """The coefficients, the last even and the last odd one carrying all that higher orders hold."""
    norm = matmul(function * function, weights)
    # An integrand that has not died out at the ends of the range has no moment that can be computed.
    ends = jnp.maximum(function[0] ** 2 * weights[0], function[-1] ** 2 * weights[-1])
    norm = jnp.where(ends > 1e-9 * norm, jnp.inf, norm)
    mirrored = matmul(function * function[::-1], weights)  # the nodes are symmetric
    parity = jnp.array([1.0, -1.0], norm.dtype) * (-1.0) ** (len(coefficients) % 2)
    kept = coefficients[:-2]
    same = jnp.stack([jnp.sum(kept[-2::-2] ** 2), jnp.sum(kept[-1::-2] ** 2)])
    squares = 0.5 * (norm + parity * mirrored) - same
    # A converged series leaves rounding errors of the norm there, and the root would make them large. The last
    # orders bound what can follow: by `order * a^2 / (2p - 1)` where coefficients fall like `order^-p`.
    limit = 4.0 * len(coefficients) * jnp.max(kept[-len(kept) // 4 :] ** 2)
    is_rounding = squares < 100.0 * jnp.finfo(norm.dtype).eps * norm
    remainder, _ = root_and_inverse(jnp.where(is_rounding, jnp.minimum(squares, limit), squares))
    return jnp.concatenate([kept, remainder])


def power_sum(table1: Float[Array, "... K"], table2: Float[Array, "... K"], rho: Float[Array, "..."]):
    """`sum_k table1[k] table2[k] rho^k` by Horner's rule, in chunks of orders from the highest down.

    Chunks that cannot change the result in the working precision are skipped: how many orders matter
    depends on the variances, which are not known when the loop is compiled.
    """
    chunks = [
        jnp.moveaxis(table, -1, 0)[::-1].reshape(-1, _CHUNK, *table.shape[:-1]) for table in (table1, table2)
    ]
    largest = [jnp.max(jnp.abs(chunk), axis=tuple(range(1, chunk.ndim))) for chunk in chunks]
    bound = largest[0] * largest[1]
    matters = bound > 0.01 * jnp.finfo(rho.dtype).eps * jnp.max(bound)
    shape = jnp.broadcast_shapes(rho.shape, chunks[0].shape[2:], chunks[1].shape[2:])

    # Evaluated again in the backward pass, which would otherwise store the partial sum of every order.
    @jax.checkpoint
    def add(total, chunk):
        coefficients1, coefficients2, needed = chunk

        def horner(total):
            for coefficient1, coefficient2 in zip(coefficients1, coefficients2, strict=True):
                total = total * rho + coefficient1 * coefficient2
            return total

        return jax.lax.cond(needed, horner, lambda total: total, total), None

    # Skipping stops at the first chunk that matters: below it powers must be counted.
    matters = jax.lax.associative_scan(jnp.logical_or, matters)
    return jax.lax.scan(add, jnp.zeros(shape, rho.dtype), (*chunks, matters))[0]


class Tanh(AbstractSeries):
    """The hyperbolic tangent."""

    def __call__(self, x):
        return jnp.tanh(x)


class Sigmoid(AbstractSeries):
    """The logistic function `1 / (1 + exp(-x))`."""

    def __call__(self, x):
        return jax.nn.sigmoid(x)


class SiLU(AbstractSeries):
    """The sigmoid linear unit `x / (1 + exp(-x))`, also called swish."""

    def __call__(self, x):
        return jax.nn.silu(x)


class Softplus(AbstractSeries):
    """`log(1 + exp(x))`."""

    def __call__(self, x):
        return jax.nn.softplus(x)


class Elementwise(AbstractSeries):
    """Any elementwise function `fn` of JAX arrays, with numerical duals.

    Smooth functions reach rounding error at moderate variances; a kink (best at 0, where the quadrature
    has a panel edge) makes the series converge slowly: see `truncation_error`. Piecewise linear functions
    have exact duals as `ABReLU`.

    Raises:
        TypeError: if `fn` is not callable.
        ValueError: if `fn` does not map an array to an array of the same shape.
    """

    fn: Callable[[Float[Array, "..."]], Float[Array, "..."]] = eqx.field(static=True)

    def __init__(self, fn: Callable[[Float[Array, "..."]], Float[Array, "..."]]):
        if not callable(fn):
            raise TypeError(f"`fn` must be a function of one array, got {fn!r}.")
        probe = jax.ShapeDtypeStruct((3,), jnp.float32)
        try:
            result = jax.eval_shape(lambda x: fn(x), probe)
        except jax.errors.TracerArrayConversionError:
            raise TypeError(f"`fn` must be made of functions of jax.numpy, not numpy, got {fn!r}.") from None
        except TypeError as error:
            raise TypeError(f"`fn` must be a function of one array, got {fn!r}: {error}") from error
        if getattr(result, "shape", None) != probe.shape:
            raise ValueError(f"`fn` must map an array of shape (3,) to one of the same shape, got {result!r}.")
        self.fn = fn

    def __call__(self, x):
        return jnp.asarray(self.fn(x), x.dtype)
