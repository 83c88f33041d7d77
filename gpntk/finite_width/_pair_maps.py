r"""The infinite-width kernel map of one activation and its derivatives, for all pairs of a set of inputs.

The recursion at order 1/n is the delta method: it needs $T = E[\sigma_a\sigma_b]$ and $U =
E[\sigma_a'\sigma_b'] = \partial T/\partial k$ as functions of $(k, q_a, q_b)$, with first and second
derivatives. By Price's theorem the Gaussian moments of higher derivatives of $\sigma$ that the diagrams contain
are among them: $E[\sigma_a\sigma_b''] = 2\,\partial T/\partial q_b$, $E[\sigma_a''\sigma_b''] = \partial
U/\partial k$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk.activations import AbstractActivation
from gpntk.activations._base import coincidence_tolerance, standard_deviation


class Derivatives(NamedTuple):
    """A function of `(k, q_a, q_b)` with its first and second derivatives, each of shape (N, N)."""

    value: Float[Array, "N N"]
    gradient: Float[Array, "3 N N"]
    hessian: Float[Array, "3 3 N N"]
    by_second_variance: Float[Array, "N N"]
    """The partial derivative with respect to `q_b` proper, also where `gradient` is along a path."""


def pair_maps(activation: AbstractActivation, kernel: Float[Array, "N N"]) -> tuple[Derivatives, Derivatives]:
    r"""The dual $T$ and the dual derivative $U$ with their derivatives, at a kernel matrix.

    At coincident inputs, $z_b = c z_a$, single derivatives of a kinked activation's dual diverge although all
    contractions are finite: fluctuations keep the pair coincident, so that only the path
    $(k, q_a, q_b) = (c, 1, c^2)\,q_a$ matters. There the derivatives along the path are put in the place of
    those with respect to $q_a$, and the others are 0.
    """
    variance = jnp.diagonal(kernel)
    first, second = jnp.broadcast_arrays(variance[:, None], variance[None, :])
    scale, inverse = standard_deviation(variance)
    correlation = kernel * (inverse[:, None] * inverse[None, :])
    coincident = 1.0 - jnp.abs(correlation) <= coincidence_tolerance(kernel.dtype)
    ratio = jnp.sign(correlation) * (scale[None, :] * inverse[:, None])
    along_path = coincident & (variance[:, None] > 0)

    def derivatives(function):
        def at_point(arguments):
            return function(*arguments)

        def on_path(variance, ratio):
            return function(ratio * variance, variance, ratio**2 * variance)

        points = jnp.stack([kernel, first, second])
        value = _over_pairs(at_point)(points)
        gradient = jnp.moveaxis(_over_pairs(jax.grad(at_point))(points), -1, 0)
        hessian = jnp.moveaxis(_over_pairs(jax.hessian(at_point))(points), (-2, -1), (0, 1))
        slope = jax.vmap(jax.vmap(jax.grad(on_path)))(first, ratio)
        curvature = jax.vmap(jax.vmap(jax.grad(jax.grad(on_path))))(first, ratio)
        path_gradient = jnp.zeros_like(gradient).at[1].set(slope)
        path_hessian = jnp.zeros_like(hessian).at[1, 1].set(curvature)
        return Derivatives(
            value,
            jnp.where(along_path, path_gradient, gradient),
            jnp.where(along_path, path_hessian, hessian),
            gradient[2],
        )

    return derivatives(activation.dual), derivatives(activation.dual_derivative)


def _over_pairs(function):
    return jax.vmap(jax.vmap(function, in_axes=1), in_axes=1)
