"""Convolutions over rotations, and pooling: how they act on kernels, and finite layers.

Finite signals on the group have shape (N, nodes, channels); with inversion the nodes come twice, second those
of rotations that follow x -> -x.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._products import einsum
from gpntk.groups._wigner import (
    forward_wigner,
    inverse_wigner,
    padded,
    quadrature_order,
    quadrature_weights,
    values_on_group,
)
from gpntk.networks._layers import AbstractLayer, Dense
from gpntk.networks._state import KernelState


class Lift(AbstractLayer):
    r"""From signals on the sphere to signals on the group, with a filter on the sphere.

    $$[N f](R) = \sqrt{\tfrac{C_W}{c}} \sum_c \int \kappa_c(x) f_c(Rx)\, dx
      = \sqrt{\tfrac{C_W}{c}} \sum_{c,l,m,n} f_{clm} D^l_{mn}(R)\, \kappa_{cln}$$

    Inputs are coefficients (N, L^2, channels). Kernels are those of a `Dense` layer.
    """

    dense: Dense
    bandlimit: int = eqx.field(static=True)
    quadrature: int = eqx.field(static=True)
    inversion: bool = eqx.field(static=True)

    def transform_variance(self, variance):
        return self.dense.transform_variance(variance)

    def propagate(self, state, features1, features2):
        return self.dense.propagate(state, features1, features2)

    def init(self, key, shape, widths):
        width = next(widths)
        nodes = quadrature_order(self.quadrature) * (2 if self.inversion else 1)
        return self.dense.sample(key, (*shape, width)), (nodes, width)

    def apply(self, parameters, x):
        filters = jnp.moveaxis(parameters["weight"], 0, -1)
        signals = padded(jnp.moveaxis(x, 1, -1), self.bandlimit)
        products = einsum("nclm,colk->nolmk", signals, padded(filters, self.bandlimit))
        values = values_on_group(products, self.quadrature, self.inversion)
        return self.dense.scale_and_shift(jnp.moveaxis(values, 1, -1), x.shape[-1], parameters)


class RotationConvolution(AbstractLayer):
    r"""A convolution over the group, with white-noise filters up to the bandlimit of the quadrature.

    $$[N f](R) = \sqrt{\tfrac{C_W}{n}} \sum_c \int \kappa_c(S) f_c(RS)\, dS$$

    In orthonormal functions $\sqrt{2l+1}\, D^l_{mn}$ this is a product of matrices for every degree. On O(3) the
    even and the odd parts under inversion do not mix. Its kernels are those of a `Dense` layer.
    """

    dense: Dense
    quadrature: int = eqx.field(static=True)
    inversion: bool = eqx.field(static=True)

    def transform_variance(self, variance):
        return self.dense.transform_variance(variance)

    def propagate(self, state, features1, features2):
        return self.dense.propagate(state, features1, features2)

    def init(self, key, shape, widths):
        nodes, channels = shape
        width = next(widths)
        parities = 2 if self.inversion else 1
        entries = int(np.sum((2 * np.arange(self.quadrature) + 1) ** 2))
        return self.dense.sample(key, (parities * entries, channels, width)), (nodes, width)

    def apply(self, parameters, x):
        channels = x.shape[-1]
        filters = parameters["weight"]
        if not self.inversion:
            values = self._convolve(x, filters)
        else:
            (proper, inverted), (even, odd) = jnp.split(x, 2, axis=1), jnp.split(filters, 2)
            even, odd = (
                self._convolve((proper + inverted) / 2, even),
                self._convolve((proper - inverted) / 2, odd),
            )
            values = jnp.concatenate([even + odd, even - odd], axis=1)
        return self.dense.scale_and_shift(values, channels, parameters)

    def _convolve(self, x: Float[Array, "N nodes c"], filters: Float[Array, "entries c n"]):
        size = self.quadrature
        coefficients = forward_wigner(jnp.moveaxis(x, -1, 1), size, size)
        start = np.concatenate([[0], np.cumsum((2 * np.arange(size) + 1) ** 2)])
        products = []
        for degree in range(size):
            block, n_orders = slice(size - 1 - degree, size + degree), 2 * degree + 1
            square = filters[start[degree] : start[degree + 1]].reshape(n_orders, n_orders, *filters.shape[1:])
            # The integral against D is 1/sqrt(2l+1) of the orthonormal coefficient, and so is the result of it.
            product = einsum("ncmk,kpco->nomp", coefficients[:, :, degree, block, block], square)
            margins = [(0, 0)] * 2 + [(size - 1 - degree, size - 1 - degree)] * 2
            products.append(jnp.pad(product * np.sqrt(n_orders).astype(x.dtype), margins))
        return jnp.moveaxis(inverse_wigner(jnp.stack(products, 2), size), 1, -1)


class QuadratureMean(AbstractLayer):
    """The mean over the group, by quadrature."""

    quadrature: int = eqx.field(static=True)
    inversion: bool = eqx.field(static=True)

    def transform_variance(self, variance):
        # The variance of a mean is not a function of variances: this upper bound is exact for constant signals.
        return variance, None

    def propagate(self, state, features1, features2):
        return KernelState(*(einsum("...s,s->...", kernel, self._weights(kernel)) for kernel in state))

    def init(self, key, shape, widths):
        return {}, shape[-1:]

    def apply(self, parameters, x):
        return einsum("nsc,s->nc", x, self._weights(x))

    def _weights(self, like: Float[Array, "..."]) -> Float[np.ndarray, " nodes"]:
        weights = quadrature_weights(self.quadrature)
        return (np.tile(weights / 2, 2) if self.inversion else weights).astype(like.dtype)
