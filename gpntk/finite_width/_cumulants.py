r"""The object that users get: all order-1/n statistics of an architecture at a set of inputs."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from gpjax.parameters import val
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.finite_width._fourth_moments import fourth_moments
from gpntk.finite_width._pair_maps import pair_maps
from gpntk.finite_width._recursion import Statistics, first_layer, next_layer
from gpntk.networks import MLP

# Seven tensors of N^4 numbers, in eight replicates, with as much again for temporaries.
_TENSORS_IN_MEMORY = 7 * 8 * 2
_MOST_BYTES = 16 * 2**30


@dataclasses.dataclass(frozen=True)
class Corrected:
    """Kernels and fluctuations of networks of one finite width, to order 1/width."""

    width: float
    nngp: Float[np.ndarray, "N N"]
    ntk: Float[np.ndarray, "N N"]
    V: Float[np.ndarray, "N N N N"]
    D: Float[np.ndarray, "N N N N"]
    F: Float[np.ndarray, "N N N N"]
    A: Float[np.ndarray, "N N N N"]
    B: Float[np.ndarray, "N N N N"]


@dataclasses.dataclass(frozen=True)
class Cumulants:
    r"""Statistics of a network's outputs at order 1/n, n the width of its last hidden layer.

    Arrays are indexed by inputs in the order of the subscripts below; the fields belong to a single layer, by
    default the outputs. With $\dot z, \grave z$ two independent tangent fields of $z$,

    - `K`, `theta` (N, N): NNGP and NTK at infinite width;
    - `K1`, `theta1` (N, N): $E[z z] = K + K_1/n$, $E[\hat\Theta] = \Theta + \Theta_1/n$;
    - `V[a,b,c,d]`: n times the covariance of the random kernel entries $(z_a z_b)$ and $(z_c z_d)$;
    - `D[a,b,c,d]`: of $(z_a z_b)$ and $(\dot z_c \dot z_d)$;
    - `F[a,b,c,d]`: of $(z_a \dot z_c)$ and $(z_b \dot z_d)$;
    - `A[a,b,c,d]`: of $(\dot z_a \dot z_b)$ and $(\grave z_c \grave z_d)$;
    - `B[a,b,c,d]`: of $(\dot z_a \grave z_c)$ and $(\dot z_b \grave z_d)$.

    `layers[l]` holds the same for the preactivations of layer l + 1, as coefficients of 1/(its fan-in).
    `error_estimate` has the Frobenius norm of the standard error of each tensor, 0 where integrals are exact to
    rounding. Roberts, Yaida & Hanin (2022), chapters 4 and 8, define the tensors.
    """

    K: Float[np.ndarray, "N N"]
    theta: Float[np.ndarray, "N N"]
    K1: Float[np.ndarray, "N N"]
    theta1: Float[np.ndarray, "N N"]
    V: Float[np.ndarray, "N N N N"]
    D: Float[np.ndarray, "N N N N"]
    F: Float[np.ndarray, "N N N N"]
    A: Float[np.ndarray, "N N N N"]
    B: Float[np.ndarray, "N N N N"]
    error_estimate: dict[str, float]
    layers: tuple["Cumulants", ...] = ()

    def at(self, width: float) -> Corrected:
        """Corrected kernels and fluctuation covariances at a width of the last hidden layer.

        Raises:
            ValueError: if `width` is not a number of at least 1.
        """
        width = _checks.real_number("width", width, minimum=1.0, infinite=True)
        tensors = {name: getattr(self, name) / width for name in ("V", "D", "F", "A", "B")}
        return Corrected(width, self.K + self.K1 / width, self.theta + self.theta1 / width, **tensors)


def cumulants(net: MLP, X: Float[Array, "N D"], *, tolerance: float = 2e-4, seed: int = 0) -> Cumulants:
    """All order-1/n statistics of a multilayer perceptron at the inputs X, in double precision.

    One recursion over layers gives all tensors together. Its only integrals over more than two inputs are
    computed by randomised quasi-Monte Carlo (exactly for a single input and for linear networks).

    Args:
        net: the architecture; unequal widths enter through its `width_ratios`.
        X: inputs, one per row.
        tolerance: relative standard error (Frobenius norm) of the four-input moments at which sampling stops.
        seed: of the randomisation.

    Raises:
        TypeError: if `net` is not an MLP.
        ValueError: for bad inputs, diverging Gaussian moments, or tensors that do not fit into memory (with their
            size in bytes).
    """
    _checks.instance("net", net, MLP, "a gpntk.MLP")
    tolerance = _checks.real_number("tolerance", tolerance, minimum=0.0, strict=True)
    with jax.enable_x64(True):
        x = jnp.asarray(_checks.inputs("X", X, net.n_features), jnp.float64)
        _check_memory(len(x))
        features = net.features(x)
        net.check_moments(features)
        weight_variance = jnp.asarray(val(net.weight_variance), x.dtype)
        bias = jnp.asarray(0.0 if net.bias_variance is None else val(net.bias_variance), x.dtype)
        readout_bias = bias if net.readout_bias else jnp.zeros_like(bias)
        widths = net.width_ratios or (1.0,) * net.depth
        # The first layer has no hidden fan-in; nothing at order 1/n has arisen there.
        ratios = [1.0, *(after / before for before, after in itertools.pairwise(widths))]

        inputs = _symmetric(net.domain.covariance(features.embedded, features.embedded))
        statistics = first_layer(bias + weight_variance * inputs)
        layers = [_replicated(statistics)]
        for layer, ratio in enumerate(ratios):
            kernel = layers[-1].K[0]
            dual, dual_derivative = _pair_maps(net.activation, kernel)
            moments = fourth_moments(
                net.activation, kernel, dual.value, dual_derivative.value, tolerance, seed + layer
            )
            next_bias = readout_bias if layer == net.depth - 1 else bias
            layers.append(
                _next_layers(layers[-1], dual, dual_derivative, moments, weight_variance, next_bias, ratio)
            )
        results = [_summarise(statistics) for statistics in layers]
    return dataclasses.replace(results[-1], layers=tuple(results))


_pair_maps = jax.jit(pair_maps)


@jax.jit
def _next_layers(statistics, dual, dual_derivative, moments, weight_variance, bias_variance, ratio):
    """`next_layer` for every replicate of the moments."""
    replicates = max(len(moments.values_values), len(statistics.K))
    statistics, moments = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[:replicates], (replicates, *leaf.shape[1:])), (statistics, moments)
    )
    advance = lambda s, m: next_layer(s, dual, dual_derivative, m, weight_variance, bias_variance, ratio)  # noqa: E731
    return jax.vmap(advance)(statistics, moments)


def _replicated(statistics: Statistics) -> Statistics:
    return jax.tree.map(lambda leaf: leaf[None], statistics)


def _summarise(statistics: Statistics) -> Cumulants:
    arrays = {name: np.asarray(leaf) for name, leaf in statistics._asdict().items()}
    errors = {
        name: float(np.linalg.norm(a.std(axis=0, ddof=1)) / math.sqrt(len(a))) if len(a) > 1 else 0.0
        for name, a in arrays.items()
    }
    return Cumulants(**{name: a.mean(axis=0) for name, a in arrays.items()}, error_estimate=errors)


def _symmetric(matrix):
    return 0.5 * (matrix + matrix.T)


def _check_memory(n: int) -> None:
    needed = _TENSORS_IN_MEMORY * 8 * n**4
    if needed > _MOST_BYTES:
        raise ValueError(
            f"The tensors of {n} inputs need {needed:,} bytes, more than the {_MOST_BYTES:,} allowed: "
            "pass fewer inputs (the number of entries grows as N^4)."
        )
