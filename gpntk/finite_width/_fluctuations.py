r"""The random kernel of a finite network as a sum over factors, for contractions that never hold the tensor V.

Conditioned on its last hidden layer, a network of width n is Gaussian with a random kernel of mean $K + K_1/n$ and
covariance $V/n$. `fluctuation_sums` writes $V = \sum_r F_r F_r^T$ with symmetric matrices $F_r$: one for each
quasi-Monte Carlo point of each hidden layer, where a point is a draw z of one neuron's preactivations, born as
$C_W(\sigma_a\sigma_b - E[\sigma_a\sigma_b])$ and carried to the outputs by the first derivative of the kernel map
(the recursion of `gpntk.cumulants`, factored). Whatever is linear in V is then a sum over r,
accumulated in batches, with N^2 numbers a point. All of it is differentiable in the variances of the network.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._features import checked_features
from gpntk.activations._base import root_and_inverse
from gpntk.finite_width._pair_maps import Derivatives, dual_by_covariances
from gpntk.finite_width._schedule import Schedule
from gpntk.finite_width._sobol import sobol_normals
from gpntk.networks import MLP

REPLICATES = 4
_ENTRIES_AT_ONCE = 2**20
# Relative to each variance: sampling through a singular covariance matrix needs a floor, and its square root is
# the relative error of a sampled preactivation.
_JITTER = 1e-10


class HiddenLayer(NamedTuple):
    """The kernel of a hidden layer's preactivations and the map from it to the next, without the variances."""

    kernel: Float[Array, "T T"]
    dual: Derivatives


class RandomKernel(NamedTuple):
    """What the fluctuations of a network's kernel at some inputs are computed from."""

    net: MLP
    x: Float[Array, "T D"]
    layers: tuple[HiddenLayer, ...]
    kernel: Float[Array, "T T"]
    """The kernel of the outputs at infinite width."""


class FactorBatch(NamedTuple):
    """A batch of factors: all rows, the columns of the first J inputs, and the diagonal."""

    block: Float[Array, "B T J"]
    diagonal: Float[Array, "B T"]


class FluctuationSums(NamedTuple):
    """Sums over the factors of V and the mean shift, the leading axis of both independent randomisations."""

    sums: Any
    shift: FactorBatch
    """K1: its rectangular block and its diagonal, with the replicates in the place of the batch."""


Summarise = Callable[..., Any]
"""From a `FactorBatch` and arguments to a pytree of sums over the batch."""


def random_kernel(net: MLP, x: Float[Array, "T D"]) -> RandomKernel:
    """The kernels of all layers at the inputs `x`, with the derivatives of the maps between them.

    Raises:
        ValueError: if Gaussian moments of the activation diverge at these inputs.
    """
    checked_features(net, x)
    weight, (bias, *biases), _ = Schedule.of(net, x.dtype)
    kernel = bias + weight * _inputs(net, x)
    layers = []
    for next_bias in biases:
        layers.append(HiddenLayer(kernel, _dual(net.activation, kernel)))
        kernel = next_bias + weight * layers[-1].dual.value
    return RandomKernel(net, x, tuple(layers), kernel)


def fluctuation_sums(
    random: RandomKernel, n_joint: int, summarise: Summarise, arguments: tuple, n_points: int, seed: int
) -> FluctuationSums:
    """Sums of `summarise` over the factors of V.

    Args:
        random: the architecture at all inputs. The first `n_joint` are sampled jointly. Each further one is
            sampled jointly with those alone: its numbers do not depend on which others there are, and products of
            two of them mean nothing.
        n_joint: J, at least 1.
        summarise: a function of one batch and `arguments`. Keep one function object: it is compiled once.
        arguments: pytrees of arrays that `summarise` needs.
        n_points: number of points per layer and replicate, a power of two.
        seed: of the randomisations.
    """
    n_inputs, n_features = random.x.shape
    # The first preactivations are sampled through weights and bias where those are the fewer numbers.
    dims = (min(n_features, n_joint) + 1, *[n_joint + 1] * (random.net.depth - 1))
    normals = base_normals(dims, n_points, seed)
    at_once = max(1, min(n_points, _ENTRIES_AT_ONCE // (n_inputs * n_joint)))
    at_once = 1 << (at_once.bit_length() - 1)
    return _fluctuation_sums(random, normals, arguments, n_joint, summarise, at_once)


@functools.lru_cache(maxsize=4)
def base_normals(dims: tuple[int, ...], n_points: int, seed: int) -> tuple[Float[np.ndarray, "R S dim"], ...]:
    """Scrambled Sobol points as standard normal numbers, independent for every layer and replicate."""
    seeds = iter(np.random.SeedSequence(seed).spawn(len(dims) * REPLICATES))
    return tuple(np.stack([sobol_normals(dim, next(seeds))(n_points) for _ in range(REPLICATES)]) for dim in dims)


@eqx.filter_jit
def _inputs(net, x):
    embedded = net.domain.embed(x)
    covariance = net.domain.covariance(embedded, embedded)
    return 0.5 * (covariance + covariance.T)


@eqx.filter_jit
def _dual(activation, kernel):
    return dual_by_covariances(activation, kernel)


@eqx.filter_jit
def _fluctuation_sums(random, normals, arguments, n_joint, summarise, at_once) -> FluctuationSums:
    net, x, layers, _ = random
    weight, (bias, *_), ratios = Schedule.of(net, x.dtype)

    def born_and_carried(points, source: int, to_fields: Callable):
        """Sums over the factors born at these points, and what they add to the shift of each later layer."""
        values = net.activation(to_fields(points))
        factors, shifts = _born(values, layers[source].dual, weight, n_joint), []
        for layer, ratio in zip(layers[source + 1 :], ratios[source + 1 :], strict=True):
            second = _second_order(layer.dual, factors)
            shifts.append(_scaled(jax.tree.map(lambda leaf: leaf.sum(0), second), 0.5 * ratio * weight))
            factors = _scaled(first_order(layer.dual, factors), ratio**0.5 * weight)
        return summarise(factors, *arguments), shifts

    def replicate(normals):
        sums, shifts = [], []
        for source, points in enumerate(normals):
            to_fields = _fields(layers[source].kernel, x, weight, bias, n_joint, first=source == 0)
            function = functools.partial(born_and_carried, source=source, to_fields=to_fields)
            own_sums, own_shifts = _mean_over_points(jax.checkpoint(function), points, at_once)
            sums.append(own_sums)
            shifts.append(own_shifts)
        shift = FactorBatch(jnp.zeros((1, len(x), n_joint), x.dtype), jnp.zeros((1, len(x)), x.dtype))
        for place, (layer, ratio) in enumerate(zip(layers[1:], ratios[1:], strict=True)):
            added = _total([own[place - source] for source, own in enumerate(shifts[: place + 1])])
            shift = _total([_scaled(first_order(layer.dual, shift), ratio * weight), added])
        return FluctuationSums(_total(sums), jax.tree.map(lambda leaf: leaf[0], shift))

    return jax.lax.map(replicate, tuple(jnp.asarray(n, x.dtype) for n in normals))


def _mean_over_points(function: Callable, points: Float[Array, "S dim"], at_once: int) -> Any:
    """Sums that `function` makes of a batch of points, for all of them and divided by their number."""
    batches = points.reshape(-1, at_once, points.shape[-1])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, batches[0]))
    sums, _ = jax.lax.scan(lambda total, batch: (_total([total, function(batch)]), None), zeros, batches)
    return jax.tree.map(lambda leaf: leaf / len(points), sums)


def _total(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: functools.reduce(operator.add, leaves), *trees)


def _scaled(tree: Any, factor: Float[Array, ""]) -> Any:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _fields(kernel, x, weight, bias, n_joint, *, first):
    """From standard normal numbers to preactivations of one neuron at all inputs."""
    n_features = x.shape[1]
    if first and n_features <= n_joint:
        scaled = jnp.sqrt(weight / n_features) * x
        offset, _ = root_and_inverse(bias)
        return lambda u: u[:, :n_features] @ scaled.T + offset * u[:, n_features:]
    deviations, factor = correlation_factor(kernel[:n_joint, :n_joint])
    covariances = kernel[:n_joint, n_joint:] / jnp.where(deviations > 0, deviations, 1.0)[:, None]
    loadings = jax.scipy.linalg.solve_triangular(factor, covariances, lower=True)
    variances = jnp.diagonal(kernel)[n_joint:]
    residual, _ = root_and_inverse(jnp.maximum(variances - jnp.sum(loadings**2, axis=0), _JITTER * variances))
    return lambda u: jnp.concatenate(
        [u[:, :n_joint] @ factor.T * deviations, u[:, :n_joint] @ loadings + u[:, n_joint:] * residual], axis=1
    )


def correlation_factor(kernel: Float[Array, "J J"]) -> tuple[Float[Array, " J"], Float[Array, "J J"]]:
    """Standard deviations, and the lower factor of the correlation matrix, which may be singular.

    Preactivations made from them are good to 1e-5 of each standard deviation, however these differ; some may be 0.
    """
    deviations, _ = root_and_inverse(jnp.diagonal(kernel))
    safe = jnp.where(deviations > 0, deviations, 1.0)
    correlation = kernel / (safe[:, None] * safe[None, :])
    floors = jnp.where(deviations > 0, _JITTER, 1.0)
    return deviations, jnp.linalg.cholesky(correlation + jnp.diag(floors))


def _born(values, dual, weight, n_joint) -> FactorBatch:
    mean = dual.value
    block = values[:, :, None] * values[:, None, :n_joint] - mean[:, :n_joint]
    return FactorBatch(weight * block, weight * (values**2 - jnp.diagonal(mean)))


def _moves(factors: FactorBatch):
    """The moves of the three arguments (k, q_a, q_b) of the kernel map."""
    columns = factors.diagonal[:, None, : factors.block.shape[2]]
    return factors.block, factors.diagonal[:, :, None], columns


def first_order(dual: Derivatives, factors: FactorBatch) -> FactorBatch:
    """The first derivative of the dual in the direction of each factor."""
    gradient = dual.gradient[:, :, : factors.block.shape[2]]
    own = jnp.sum(jnp.diagonal(dual.gradient, axis1=1, axis2=2), axis=0)
    block = functools.reduce(operator.add, (g * move for g, move in zip(gradient, _moves(factors), strict=True)))
    return FactorBatch(block, own * factors.diagonal)


def _second_order(dual: Derivatives, factors: FactorBatch) -> FactorBatch:
    """The second derivative of the dual in the direction of each factor, twice."""
    hessian = dual.hessian[:, :, :, : factors.block.shape[2]]
    moves = _moves(factors)
    terms = (hessian[i, j] * (moves[i] * moves[j]) for i in range(3) for j in range(3))
    block = functools.reduce(operator.add, terms)
    own = jnp.sum(jnp.diagonal(dual.hessian, axis1=2, axis2=3), axis=(0, 1))
    return FactorBatch(block, own * factors.diagonal**2)
