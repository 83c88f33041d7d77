r"""The objects that users get: all order-1/n statistics of an architecture at a set of inputs."""

import dataclasses
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from gpntk import _checks
from gpntk._features import checked_features
from gpntk._products import einsum
from gpntk.finite_width._factored import compressed, moved, source_factors
from gpntk.finite_width._fourth_moments import fourth_moments, to_covariance
from gpntk.finite_width._pair_maps import Pairing, pair_maps
from gpntk.finite_width._pairs import (
    InputFeatures,
    InputStatistics,
    PairStatistics,
    check_inputs,
    input_features,
    pair_statistics,
    relative_fluctuation,
    smallest_width,
    warn_if_narrow,
)
from gpntk.finite_width._recursion import Statistics, next_layer
from gpntk.finite_width._schedule import Schedule
from gpntk.networks import MLP, NetworkFeatures
from gpntk.networks._domains import rows_and_columns

# Five tensors of N^4 numbers and their three sources, in eight replicates, with as much again for temporaries.
_TENSORS_IN_MEMORY = 8 * 8 * 2
_MOST_BYTES = 16 * 2**30
_MEANS = ("K", "theta", "K1", "theta1")


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
    rounding (K1 and theta1 always are). Roberts, Yaida & Hanin (2022), chapters 4 and 8, define the tensors.
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

    @property
    def smallest_width(self) -> int:
        """The width below which `at` warns: kernels fluctuate by more than half of themselves."""
        return smallest_width(relative_fluctuation(np.diagonal(self.K), np.einsum("aaaa->a", self.V)))

    def at(self, width: float) -> Corrected:
        """Corrected kernels and fluctuation covariances at a width of the last hidden layer.

        Warns where kernels fluctuate by more than half of themselves, so that an expansion in 1/n makes no sense.

        Raises:
            ValueError: if `width` is not a number of at least 1.
        """
        width = _checks.real_number("width", width, minimum=1.0, infinite=True)
        warn_if_narrow(width, np.diagonal(self.K), np.einsum("aaaa->a", self.V))
        tensors = {name: getattr(self, name) / width for name in ("V", "D", "F", "A", "B")}
        return Corrected(width, self.K + self.K1 / width, self.theta + self.theta1 / width, **tensors)


@dataclasses.dataclass(frozen=True)
class CorrectedFactors:
    """Kernels and fluctuations of networks of one finite width, to order 1/width, in factored form."""

    width: float
    nngp: Float[np.ndarray, "N N"]
    ntk: Float[np.ndarray, "N N"]
    V_factors: Float[np.ndarray, "R N N"]
    V_residual: Float[np.ndarray, "N N"]


@dataclasses.dataclass(frozen=True)
class FactoredCumulants:
    r"""Statistics of a network's outputs at order 1/n with V in factored form, for many inputs.

    $$V_{(ab)(cd)} \approx \sum_r \phi^r_{ab}\,\phi^r_{cd} + R_{ab}\,[(ab) = (cd)]$$

    with `V_factors[r]` $= \phi^r$, symmetric and orthogonal to each other in the Frobenius inner product, largest
    first, and `V_residual` $= R \ge 0$ what the factors lack of the variance of single kernel entries (which is
    known exactly). So `V` is positive semidefinite as it stands; contractions with matrices G and H are
    `sum((V_factors * G).sum((1, 2)) * (V_factors * H).sum((1, 2)))`, and a random kernel with these statistics is
    `K + K1 / n + (g @ V_factors.reshape(R, -1)).reshape(N, N) / sqrt(n)`, g standard normal.

    `K`, `theta`, `K1`, `theta1` (N, N) are exact. `error_estimate["V"]` is the Frobenius norm of the standard
    error of the factors' sum (it can exceed the tolerance where very many directions matter: sampling stops after
    half a minute a layer), `error_estimate["V_truncated"]` an estimate from above of what the limited rank leaves
    out, the residual not counted.
    """

    K: Float[np.ndarray, "N N"]
    theta: Float[np.ndarray, "N N"]
    K1: Float[np.ndarray, "N N"]
    theta1: Float[np.ndarray, "N N"]
    V_factors: Float[np.ndarray, "R N N"]
    V_residual: Float[np.ndarray, "N N"]
    error_estimate: dict[str, float]

    def at(self, width: float) -> CorrectedFactors:
        """Corrected kernels and fluctuations at a width of the last hidden layer; warns like `Cumulants.at`.

        Raises:
            ValueError: if `width` is not a number of at least 1.
        """
        width = _checks.real_number("width", width, minimum=1.0, infinite=True)
        own = np.einsum("raa->ra", self.V_factors)
        warn_if_narrow(width, np.diagonal(self.K), np.sum(own**2, axis=0) + np.diagonal(self.V_residual))
        return CorrectedFactors(
            width,
            self.K + self.K1 / width,
            self.theta + self.theta1 / width,
            self.V_factors / math.sqrt(width),
            self.V_residual / width,
        )


def cumulants(
    net: MLP, X: Float[ArrayLike, "N D"], rank: int | None = None, *, tolerance: float | None = None, seed: int = 0
) -> "Cumulants | FactoredCumulants":
    r"""All order-1/n statistics of a multilayer perceptron at the inputs X, in double precision.

    One recursion over layers gives all tensors together. K1 and theta1 contain moments of two inputs only and are
    exact. The tensors contain moments of four inputs, which are computed by randomised quasi-Monte Carlo, and
    exactly for a single input, for the error function and for linear networks.

    With a `rank`, V is represented by that many factors on pairs of inputs and D, F, A and B are left out: for
    hundreds of inputs, where a tensor of N^4 entries does not fit. See `FactoredCumulants`.

    Args:
        net: the architecture; unequal widths enter through its `width_ratios`.
        X: inputs, one per row.
        rank: number of factors of V; `None` computes all tensors with all their entries.
        tolerance: relative standard error (Frobenius norm) of the four-input moments at which sampling stops. By
            default 2e-4 for the tensors and 1e-3 for factors.
        seed: of the randomisation.

    Raises:
        TypeError: if `net` is not an MLP.
        ValueError: for bad inputs, diverging Gaussian moments, or tensors that do not fit into memory (with their
            size in bytes).
    """
    _checks.instance("net", net, MLP, "a gpntk.MLP")
    rank = None if rank is None else _checks.integer("rank", rank, minimum=1)
    tolerance = (2e-4 if rank is None else 1e-3) if tolerance is None else tolerance
    tolerance = _checks.real_number("tolerance", tolerance, minimum=0.0, strict=True)
    seed = _checks.integer("seed", seed, minimum=0)
    with jax.enable_x64(True):
        x = jnp.asarray(_checks.inputs("X", X, net.n_features), jnp.float64)
        _check_memory(len(x), rank)
        features, inputs = _infinite_width(net, x)
        if rank is None and len(x) == 1:
            return _with_layers(_of_one_input(inputs.layers))
        pairs = _pairs(net, features, inputs)
        if rank is not None:
            return _factored(net, inputs, pairs, rank, tolerance, seed)
        tensors = _tensors(net, inputs, pairs, tolerance, seed)
        means = zip(*(np.asarray(getattr(pairs, name)) for name in _MEANS), strict=True)
    return _with_layers([_summarise(m, t) for m, t in zip(means, tensors, strict=True)])


def _with_layers(layers: list[Cumulants]) -> Cumulants:
    if not all(
        np.isfinite(getattr(layer, name)).all() for layer in layers for name in _MEANS + Statistics._fields
    ):
        raise ValueError(
            "Statistics of order 1/n are not finite in double precision: their squares overflow or underflow. "
            "Scale the inputs or the variances."
        )
    return dataclasses.replace(layers[-1], layers=tuple(layers))


def _infinite_width(net: MLP, x: Float[Array, "N D"]) -> tuple[NetworkFeatures, InputFeatures]:
    """Features of the inputs, checked, and statistics of each input at every layer."""
    features = checked_features(net, x)
    inputs = _inputs(net, features.embedded.variance)
    check_inputs(net, inputs)
    return features, inputs


_inputs = eqx.filter_jit(input_features)


@eqx.filter_jit
def _pairs(net, features, inputs) -> PairStatistics:
    """Statistics of pairs of inputs at every layer."""
    covariance = net.domain.covariance(features.embedded, features.embedded)
    return pair_statistics(net, 0.5 * (covariance + covariance.T), inputs, inputs, every_layer=True)


def _of_one_input(statistics: InputStatistics) -> list[Cumulants]:
    """Statistics of a single input at every layer, all exact."""
    statistics = jax.tree.map(np.asarray, statistics)
    layers = []
    for layer in range(statistics.K.shape[1]):
        by_name = {name: leaf[:, layer] for name, leaf in statistics._asdict().items()}
        means = [by_name[name].reshape(1, 1) for name in _MEANS]
        layers.append(
            _summarise(means, Statistics(*(by_name[n].reshape(1, 1, 1, 1, 1) for n in Statistics._fields)))
        )
    return layers


def _tensors(
    net: MLP, inputs: InputFeatures, pairs: PairStatistics, tolerance: float, seed: int
) -> list[Statistics]:
    """Tensors at every layer, in replicates."""
    schedule = Schedule.of(net, jnp.float64)
    statistics = jax.tree.map(lambda leaf: leaf[None], Statistics.of_first_layer(pairs.K.shape[1]))
    layers = [statistics]
    for layer in range(net.depth):
        maps, following, moments = _layer_maps(net, inputs, pairs.K, jnp.asarray(layer))
        fourth = fourth_moments(
            net.activation, pairs.K[layer], maps[0].value, maps[1].value, following, tolerance, seed + layer
        )
        statistics = _next_layers(
            statistics,
            fourth,
            pairs.theta[layer],
            maps,
            moments,
            following,
            schedule.weight_variance,
            schedule.ratios[layer],
        )
        layers.append(statistics)
    pairing = [Pairing.of(variance[:, None], variance[None, :]) for variance in inputs.layers.K.T]
    return [_in_covariances(t, p) for t, p in zip(layers, pairing, strict=True)]


@eqx.filter_jit
def _layer_maps(net, inputs: InputFeatures, kernels: Float[Array, "layers N N"], layer: Int[Array, ""]):
    """The kernel map of one layer for all pairs, geometry of the next, and moments of single inputs."""
    moments = jax.tree.map(lambda leaf: leaf[:, layer], inputs.moments)
    variance = inputs.layers.K[:, layer + 1]
    maps = pair_maps(net.activation, kernels[layer], *rows_and_columns(moments, moments))
    return maps, Pairing.of(variance[:, None], variance[None, :]), moments


@jax.jit
def _next_layers(statistics, fourth, theta, maps, moments, following, weight_variance, ratio):
    """`next_layer` for every replicate of the moments."""
    # One replicate where integrals are exact, two of lattices, eight of Sobol points; layers can differ.
    replicates = max(len(fourth.values_values), len(statistics.V))
    statistics, fourth = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (replicates // len(leaf), 1, 1, 1, 1)), (statistics, fourth)
    )
    dual, dual_derivative = maps

    def advance(statistics, fourth):
        return next_layer(
            statistics, theta, dual, dual_derivative, moments, fourth, following, weight_variance, ratio
        )

    return jax.vmap(advance)(statistics, fourth)


@jax.jit
def _in_covariances(statistics: Statistics, pairing: Pairing) -> Statistics:
    """Tensors whose pairs of inputs stand for covariances, as users know them."""

    def convert(statistics):
        swapped = to_covariance(statistics.V, pairing).transpose(2, 3, 0, 1)
        return statistics._replace(V=to_covariance(swapped, pairing), D=to_covariance(statistics.D, pairing))

    return jax.vmap(convert)(statistics)


def _summarise(means: Sequence[np.ndarray], tensors: Statistics) -> Cumulants:
    """One layer: the fields `_MEANS`, and the average and spread of tensors over replicates."""
    arrays = {name: np.asarray(leaf) for name, leaf in tensors._asdict().items()}
    errors = {
        name: float(np.linalg.norm(a.std(axis=0, ddof=1)) / math.sqrt(len(a))) if len(a) > 1 else 0.0
        for name, a in arrays.items()
    }
    return Cumulants(
        *means,
        **{name: a.mean(axis=0) for name, a in arrays.items()},
        error_estimate={**dict.fromkeys(_MEANS, 0.0), **errors},
    )


def _factored(net, inputs, pairs, rank: int, tolerance: float, seed: int) -> FactoredCumulants:
    """V of the outputs in factored form."""
    schedule = Schedule.of(net, jnp.float64)
    weight_variance = float(schedule.weight_variance)
    size = pairs.K.shape[1]
    factors, sampled, left_out = np.zeros((0, size, size)), 0.0, 0.0
    for layer in range(net.depth):
        maps, _, _ = _layer_maps(net, inputs, pairs.K, jnp.asarray(layer))
        # Until the last layer more is kept than asked for, since what matters may change.
        kept = rank if layer == net.depth - 1 else 2 * rank
        kernel, second_moments = np.asarray(pairs.K[layer]), np.asarray(maps[0].value)
        added = source_factors(net.activation, kernel, second_moments, kept, tolerance, seed + layer)
        ratio = float(schedule.ratios[layer])
        # Errors go through the same map as the factors; the factors tell by how much it enlarges them.
        before = np.sum(factors**2)
        factors = moved(factors, maps[0], weight_variance * math.sqrt(ratio))
        growth = np.sum(factors**2) / before if before > 0 else 1.0
        sampled = math.hypot(sampled * growth, weight_variance**2 * added.standard_error)
        # What is left out is positive semidefinite and adds up.
        left_out = left_out * growth + weight_variance**2 * added.truncated
        factors, dropped = compressed(np.concatenate([factors, weight_variance * added.factors]), kept)
        left_out += dropped
    last = jax.tree.map(lambda leaf: np.asarray(leaf[-1]), pairs)
    variance = inputs.layers.K[:, -1]
    exact = _pair_variances(last.V, Pairing.of(variance[:, None], variance[None, :]))
    residual = np.asarray(exact) - np.sum(factors**2, axis=0)
    return FactoredCumulants(
        last.K,
        last.theta,
        last.K1,
        last.theta1,
        factors,
        residual.clip(0.0),
        {**dict.fromkeys(_MEANS, 0.0), "V": sampled, "V_truncated": left_out},
    )


def _pair_variances(V: Float[Array, "3 3 N N"], pairing: Pairing) -> Float[Array, "N N"]:
    """Variances of the random covariances of pairs, from those of the excess and both variances."""
    row = jnp.stack([jnp.ones_like(V[0, 0]), 0.5 * pairing.ratio, 0.5 * pairing.inverse_ratio])
    return einsum("i...,ij...,j...->...", row, V, row)


def _check_memory(n: int, rank: int | None) -> None:
    needed = 8 * (_TENSORS_IN_MEMORY * n**4 if rank is None else 6 * rank * n**2)
    if needed > _MOST_BYTES:
        what, remedy = (
            (f"The tensors of {n} inputs", "pass fewer inputs (the number of entries grows as N^4), or a `rank`")
            if rank is None
            else (f"{rank} factors on {n} inputs", "lower `rank` or pass fewer inputs")
        )
        raise ValueError(f"{what} need {needed:,} bytes, more than the {_MOST_BYTES:,} allowed: {remedy}.")
