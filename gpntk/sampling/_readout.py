"""Kernels of finite networks averaged over the weights of the last layer, one network at a time and in bulk."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm import tqdm

from gpntk import _checks
from gpntk._products import matmul
from gpntk.networks import AbstractNetwork, KernelState
from gpntk.sampling._cost import affordable, working_set
from gpntk.sampling._empirical import checked, ntk


def readout_kernels(
    net: AbstractNetwork, params: list, x1: Float[ArrayLike, "N1 D"], x2: Float[ArrayLike, "N2 D"] | None = None
) -> tuple[Float[Array, "N1 N2"], Float[Array, "N1 N2"]]:
    r"""NNGP and NTK of a finite network, averaged exactly over the weights of its last layer.

    With hidden activations $h(x) \in \mathbb{R}^n$ and their Jacobian $J_i = \partial h_i / \partial\theta$ with
    respect to all parameters before the readout, the output $\sqrt{C_W/n}\, w \cdot h + \sqrt{C_b}\, b$ has

    $$K = C_b + \frac{C_W}{n} \langle h(x), h(x') \rangle, \qquad
      \Theta = K + \frac{C_W}{n} \sum_i J_i(x) J_i(x')^T,$$

    because the readout's own gradients sum to $K$ and $E[w_i w_j] = \delta_{ij}$. Both fluctuate less than
    products of outputs and the empirical NTK, and have the same means. At depth 1 their means over networks
    are the kernels of infinite width at every $n$; at larger depth they differ by $O(1/n)$.

    Args:
        net: the architecture.
        params: parameters of a finite network, from `net.init`; those of the readout are not used.
        x1: inputs, one per row.
        x2: further inputs; `None` means `x1`.

    Returns:
        NNGP and NTK, each of shape (N1, N2).

    Raises:
        ValueError: if inputs are not finite 2-D arrays of matching dimension, or `params` are not those of
            `net`.
        TypeError: if `net` is not an architecture.
    """
    params, x1, x2 = checked(net, params, x1, x2)
    nngp, ntk = _readout_kernels(net, params[:-1], x1, x2)
    return nngp, ntk


class SampledKernels(NamedTuple):
    """Means over sampled networks of the kernels of `readout_kernels`, and the standard errors of the means."""

    nngp: Float[np.ndarray, "N N"]
    ntk: Float[np.ndarray, "N N"]
    nngp_se: Float[np.ndarray, "N N"]
    ntk_se: Float[np.ndarray, "N N"]


def sample_kernels(
    net: AbstractNetwork,
    X: Float[ArrayLike, "N D"],
    width: int,
    n_samples: int,
    key: PRNGKeyArray,
    *,
    progress: bool = False,
) -> SampledKernels:
    r"""Mean kernels of networks of finite width, by Monte Carlo.

    The NNGP of each network is that of `readout_kernels`. The sum over parameters in its NTK is estimated from
    one random direction $\xi$ in parameter space, $\sum_\mu J_\mu J'_\mu = E_\xi[(J\xi)(J'\xi)]$ for
    independent signs $\xi_\mu$. Averaged over the $n$ hidden units this is as noisy as the NNGP itself, and it
    costs a forward pass in place of $n$ Jacobians. Networks are sampled in batches that fit into memory.

    Args:
        net: the architecture.
        X: inputs, one per row.
        width: width of the last hidden layer.
        n_samples: number of networks, at least 2.
        key: JAX random key; it determines the result to rounding.
        progress: whether to show a progress bar.

    Returns:
        Means and standard errors, (N, N) each. With $E(n)$ the mean at width $n$, $2 E(2n) - E(n)$ differs from
        the kernel of infinite width by $O(1/n^2)$.

    Raises:
        ValueError: if `X` is not a finite 2-D array that fits the architecture, `width` < 1, or
            `n_samples` < 2.
        TypeError: if `net` is not an architecture, or `key` not a random key.
    """
    _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
    X = _checks.inputs("X", X, net.n_features)
    width = _checks.integer("width", width, minimum=1)
    n_samples = _checks.integer("n_samples", n_samples, minimum=2)
    _checks.key("key", key)
    _checks.boolean("progress", progress)
    at_once = affordable(working_set(_sample, net, X, width, key, 0), n_samples)
    at_once = math.ceil(n_samples / math.ceil(n_samples / at_once))  # batches of equal size

    count, mean, squares = 0, np.zeros((2, len(X), len(X))), np.zeros((2, len(X), len(X)))
    with tqdm(total=n_samples, disable=not progress, desc="networks") as bar:
        for start in range(0, n_samples, at_once):
            size = min(at_once, n_samples - start)
            batch_mean, batch_squares = (
                # Arrays, because numbers would be constants of the compiled function.
                np.asarray(a, np.float64)
                for a in _sample_batch(net, X, width, key, np.asarray(start), np.asarray(size), at_once)
            )
            # Chan, Golub & LeVeque (1983), eq. (2.1): no cancellation, however many batches.
            difference, total = batch_mean - mean, count + size
            mean = mean + difference * (size / total)
            squares = squares + batch_squares + difference**2 * (count * size / total)
            count = total
            bar.update(size)
    standard_error = np.sqrt(squares / (n_samples * (n_samples - 1)))
    (nngp, ntk), (nngp_se, ntk_se) = mean, standard_error
    return SampledKernels(nngp, ntk, nngp_se, ntk_se)


def _units(net, body_params, x):
    return net.hidden([*body_params, None], x)


def _inner(h1: Float[Array, "N1 n"], h2: Float[Array, "N2 n"]) -> Float[Array, "N1 N2"]:
    """Inner products over units, divided by their number."""
    return matmul(h1, h2.T) / h1.shape[-1]


def _through_readout(net, hidden_nngp, hidden_ntk) -> KernelState:
    """Averaged over its weights, a finite readout maps kernels as an infinitely wide one does."""
    return net.readout_layer.propagate(KernelState(hidden_nngp, hidden_ntk), None, None)


@eqx.filter_jit
def _readout_kernels(net, body_params, x1, x2):
    h1 = _units(net, body_params, x1)
    h2 = h1 if x2 is None else _units(net, body_params, x2)
    return _through_readout(net, _inner(h1, h2), ntk(_units, net, body_params, x1, x2, "mean"))


def _sample(net, X, width, key, index) -> Float[Array, "2 N N"]:
    """One draw of (NNGP, NTK). Draws are numbered, so that they do not depend on how they are batched."""
    network_key, direction_key = jax.random.split(jax.random.fold_in(key, index))
    body_params = net.init(network_key, X.shape[1], width)[:-1]
    body_params = jax.tree.map(lambda leaf: leaf.astype(X.dtype), body_params)
    flat, restore = ravel_pytree(body_params)
    # Signs serve as well as normal numbers, and one draw compiles faster than one for each layer.
    direction = restore(jax.random.rademacher(direction_key, flat.shape, flat.dtype))
    hidden, tangent = jax.jvp(lambda p: _units(net, p, X), (body_params,), (direction,))
    return jnp.stack(_through_readout(net, _inner(hidden, hidden), _inner(tangent, tangent)))


@eqx.filter_jit
def _sample_batch(net, X, width, key, start, size, at_once):
    """Mean and sum of squared deviations of the draws from `start` on, `size` of the `at_once` computed."""
    indices = jnp.arange(at_once)
    draws = jax.vmap(lambda index: _sample(net, X, width, key, start + index))(indices)
    kept = (indices < size)[:, None, None, None]
    mean = jnp.sum(jnp.where(kept, draws, 0.0), axis=0) / size
    return mean, jnp.sum(jnp.where(kept, (draws - mean) ** 2, 0.0), axis=0)
