"""The shifts of mean kernels against the delta method taken literally: brute quadrature, no tensors, no recursion.

The neurons of hidden layer l make the covariance of the next layer's fields (z_1, z_2, zdot_1, zdot_2) fluctuate
by an independent S_l / n_l around what it is given the layer before. The outputs' mean covariance moves by half of
the second derivative of everything that follows, contracted with S_l, for each layer:

    n shift = 1/2 sum_l (n / n_l) D^2 (M o ... o M) [S_l],   M(C) = E[r],  S = Cov(r, r),  fields ~ N(0, C).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk

X = np.array([[0.9, -0.4, 0.3], [0.2, 0.8, 0.5]])
WEIGHT_VARIANCE, BIAS_VARIANCE = 1.2, 0.1


def points():
    """A tensor rule for four standard normals: fine in those that make z, exact for quintics in the others."""
    fine, coarse = (np.polynomial.hermite_e.hermegauss(n) for n in (40, 3))
    nodes = np.stack(np.meshgrid(fine[0], fine[0], coarse[0], coarse[0], indexing="ij"), axis=-1).reshape(-1, 4)
    weights = functools.reduce(np.multiply.outer, (fine[1], fine[1], coarse[1], coarse[1])).ravel()
    return jnp.asarray(nodes), jnp.asarray(weights / weights.sum())


def contributions(activation, nodes, covariance):
    """What a neuron contributes to the next covariance matrix of the fields, at all points (P, 4, 4)."""
    fields = nodes @ jnp.linalg.cholesky(covariance).T
    z, tangent = fields[:, :2], fields[:, 2:]
    value, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
    moved = jnp.concatenate([value, slope * tangent], axis=1)
    products = WEIGHT_VARIANCE * moved[:, :, None] * moved[:, None, :]
    constant = BIAS_VARIANCE * jnp.kron(jnp.eye(2), jnp.ones((2, 2)))
    # The weights that read the layer are parameters too: their share of the tangents.
    read = WEIGHT_VARIANCE * jnp.einsum("pa,pb->pab", value, value)
    return products + constant + jnp.pad(read, ((0, 0), (2, 0), (2, 0)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def literal_shifts(activation, ratios):
    nodes, weights = points()
    kernel_map = lambda c: jnp.einsum("p,pab->ab", weights, contributions(activation, nodes, c))  # noqa: E731
    first = BIAS_VARIANCE + WEIGHT_VARIANCE * X @ X.T / X.shape[1]
    covariance, shift = jnp.kron(jnp.eye(2), first), 0.0
    for layer, ratio in enumerate(ratios):
        neurons = contributions(activation, nodes, covariance).reshape(len(nodes), 16)
        covariance = kernel_map(covariance)
        neurons = neurons - covariance.reshape(16)
        sizes, directions = jnp.linalg.eigh(neurons.T * weights @ neurons)
        directions = directions.T.reshape(16, 4, 4)

        def outputs(c, layer=layer):
            for _ in ratios[layer + 1 :]:
                c = kernel_map(c)
            return c

        def second_derivative(direction, outputs=outputs, at=covariance):
            along = lambda c: jax.jvp(outputs, (c,), (direction,))[1]  # noqa: E731
            return jax.jvp(along, (at,), (direction,))[1]

        directions = 0.5 * (directions + directions.transpose(0, 2, 1))
        shift += 0.5 / ratio * jnp.einsum("d,dab->ab", sizes, jax.lax.map(second_derivative, directions))
    return shift[:2, :2], shift[2:, 2:]


# Not steeper: the quadrature over points would need more nodes.
@pytest.mark.parametrize("activation", [gpntk.Erf(b=0.6), gpntk.GELU()], ids=repr)
def test_shifts_of_mean_kernels(x64, activation):
    ratios = (0.5, 2.0, 1.0)
    net = gpntk.MLP(3, activation, WEIGHT_VARIANCE, BIAS_VARIANCE, width_ratios=ratios)
    c = gpntk.cumulants(net, X, tolerance=1e-2)
    K1, theta1 = literal_shifts(activation, ratios)
    np.testing.assert_allclose(c.K1, K1, atol=1e-8 * np.max(np.abs(K1)))
    np.testing.assert_allclose(c.theta1, theta1, atol=1e-8 * np.max(np.abs(theta1)))
