"""Monte Carlo estimates of the order-1/n statistics, from sampled networks of one width."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray
from tqdm import tqdm

from gpntk import _checks
from gpntk._features import checked_features
from gpntk._products import einsum, matmul
from gpntk.finite_width._schedule import Schedule
from gpntk.networks import MLP

_GROUPS = 64
_NUMBERS_AT_ONCE = 2**25


@dataclasses.dataclass(frozen=True)
class SampledCumulants:
    """Monte Carlo counterparts of the fields of `Cumulants`, each with its standard error `*_se`."""

    width: int
    n_samples: int
    K: Float[np.ndarray, "N N"]
    theta: Float[np.ndarray, "N N"]
    K1: Float[np.ndarray, "N N"]
    theta1: Float[np.ndarray, "N N"]
    V: Float[np.ndarray, "N N N N"]
    D: Float[np.ndarray, "N N N N"]
    F: Float[np.ndarray, "N N N N"]
    A: Float[np.ndarray, "N N N N"]
    B: Float[np.ndarray, "N N N N"]
    K_se: Float[np.ndarray, "N N"]
    theta_se: Float[np.ndarray, "N N"]
    K1_se: Float[np.ndarray, "N N"]
    theta1_se: Float[np.ndarray, "N N"]
    V_se: Float[np.ndarray, "N N N N"]
    D_se: Float[np.ndarray, "N N N N"]
    F_se: Float[np.ndarray, "N N N N"]
    A_se: Float[np.ndarray, "N N N N"]
    B_se: Float[np.ndarray, "N N N N"]


def sample_cumulants(
    net: MLP,
    X: Float[ArrayLike, "N D"],
    width: int,
    n_samples: int,
    key: PRNGKeyArray,
    *,
    progress: bool = False,
) -> SampledCumulants:
    """Estimate all order-1/n statistics from sampled networks, averaging over the last weights exactly.

    The estimates are unbiased for networks of this width: they differ from the coefficients of 1/n by terms of
    order 1/width. `K1` is width times (mean - K) with K the infinite-width kernel, `theta1` likewise. Networks are
    drawn in 64 groups, none of which is stored; the spread of the groups gives the standard errors.

    Args:
        net: the architecture.
        X: inputs, one per row.
        width: width of the last hidden layer.
        n_samples: number of networks, at least 256; rounded up to a multiple of 64.
        key: JAX random key.
        progress: whether to show a progress bar.

    Raises:
        TypeError: if `net` is not an MLP.
        ValueError: for bad inputs, a width below 1 or fewer than 256 networks.
    """
    _checks.instance("net", net, MLP, "a gpntk.MLP")
    x = _checks.inputs("X", X, net.n_features)
    _checks.key("key", key)
    _checks.boolean("progress", progress)
    width = _checks.integer("width", width, minimum=1)
    per_group = -(-_checks.integer("n_samples", n_samples, minimum=4 * _GROUPS) // _GROUPS)
    # The NTK of hidden layers is a matrix on neurons for every pair of inputs.
    at_once = max(1, _NUMBERS_AT_ONCE // (max(net.hidden_widths(width)) ** 2 * len(x) ** 2))
    nngp, ntk = _infinite_width(net, x)

    estimates = []
    for group_key in tqdm(jax.random.split(key, _GROUPS), disable=not progress, desc="networks", unit="group"):
        keys = jax.random.split(group_key, per_group)
        estimates.append(_estimates(net, x, nngp, ntk, keys, width, min(at_once, per_group)))
    fields = {}
    for name in estimates[0]:
        stacked = np.stack([np.asarray(e[name]) for e in estimates])
        fields[name] = stacked.mean(axis=0)
        fields[f"{name}_se"] = stacked.std(axis=0, ddof=1) / np.sqrt(_GROUPS)
    return SampledCumulants(width=width, n_samples=per_group * _GROUPS, **fields)


def _infinite_width(net, x):
    # Compiled: JAX mixes up precisions if variances are unwrapped outside of `jit` and later with another one.
    return _kernels(net, checked_features(net, x))


@eqx.filter_jit
def _kernels(net, features):
    return net.kernels(features, features)


@functools.partial(jax.jit, static_argnames=("width", "at_once"))
def _estimates(net, x, nngp, ntk, keys, width, at_once):
    """The statistics estimated from one group of networks."""

    def one(key):
        params = net.init(key, x.shape[1], width)
        params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)
        return _conditional_moments(net, params, x)

    kernel, tangent, mixed, crossed = jax.lax.map(one, keys, batch_size=at_once)
    # Deviations from the infinite-width kernels are small: differences of large numbers are not needed.
    kernel_move, tangent_move = kernel - nngp, tangent - ntk

    def covariance(first, second):
        first, second = first - first.mean(0), second - second.mean(0)
        return einsum("sab,scd->abcd", first, second) * (width / (len(keys) - 1))

    return {
        "K": kernel.mean(0),
        "theta": tangent.mean(0),
        "K1": width * kernel_move.mean(0),
        "theta1": width * tangent_move.mean(0),
        "V": covariance(kernel_move, kernel_move),
        "D": covariance(kernel_move, tangent_move),
        "F": width * mixed.mean(0),
        "A": covariance(tangent_move, tangent_move),
        "B": width * crossed.mean(0),
    }


def _conditional_moments(net, params, x):
    r"""Averages over the readout weights of one network, exactly.

    With $H_{kl}(c, d)$ the NTK of the last hidden preactivations, neuron k at c and l at d: the mean kernel and
    NTK, and $E[z_a z'_b H_{zz'}(c, d)]$ and $E[H_{zz'}(a, b) H_{zz'}(c, d)]$ of two different outputs z, z'.
    """
    weight_variance, (bias_variance, *_, readout_bias_variance), _ = Schedule.of(net, x.dtype)
    first, *dense = [layer for layer in params[0] if "weight" in layer]

    def bias(parameters):
        return jnp.sqrt(bias_variance) * parameters.get("bias", 0.0)

    kernel = bias_variance + weight_variance * matmul(x, x.T) / x.shape[1]
    hidden = None  # kernel times the unit matrix, so wide that it is worth not multiplying with
    z = jnp.sqrt(weight_variance / x.shape[1]) * matmul(x, first["weight"]) + bias(first)
    for parameters in dense:
        weight = parameters["weight"]
        value, slope = jax.jvp(net.activation, (z,), (jnp.ones_like(z),))
        scaled = jnp.sqrt(weight_variance / len(weight)) * weight
        through = einsum("ak,ki->aki", slope, scaled)
        if hidden is None:
            passed = einsum("ab,aki,bkj->abij", kernel, through, through, optimize=True)
        else:
            passed = einsum("aki,abkl,blj->abij", through, hidden, through, optimize=True)
        kernel = bias_variance + weight_variance * matmul(value, value.T) / len(weight)
        hidden = passed + _times_unit_matrix(kernel, weight.shape[1])
        z = matmul(value, scaled) + bias(parameters)

    if hidden is None:
        hidden = _times_unit_matrix(kernel, z.shape[1])
    value, slope = jax.jvp(net.activation, (z,), (jnp.ones_like(z),))
    share = weight_variance / z.shape[1]
    kernel = readout_bias_variance + share * matmul(value, value.T)
    sloped = einsum("ak,abkl,bl->abkl", slope, hidden, slope)
    tangent = kernel + share * einsum("abkk->ab", sloped)
    mixed = share**2 * einsum("ak,bl,cdkl->abcd", value, value, sloped, optimize=True)
    crossed = share**2 * einsum("abkl,cdkl->abcd", sloped, sloped)
    return kernel, tangent, mixed, crossed


def _times_unit_matrix(matrix, size):
    return einsum("ab,kl->abkl", matrix, jnp.eye(size, dtype=matrix.dtype))
