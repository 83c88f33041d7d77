r"""How fine a quadrature over rotations must be: the error of kernels of random signals with themselves.

The kernel over the rotations of a pair is that of an `MLP`, pointwise; its mean is wanted. The integrand is
roughest where f' is a rotated f, so that its correlation reaches the variance: a kinked activation has a
singularity there, a smooth one comes near to its own. Such pairs, all of a Gram diagonal among them, have the
largest errors.
"""

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gpjax.parameters import val
from jaxtyping import Float

from gpntk import _checks
from gpntk.activations import AbstractActivation
from gpntk.groups._wigner import inverse_wigner, padded, quadrature_weights
from gpntk.networks._mlp import MLP
from gpntk.networks._network import NetworkFeatures, propagate

if TYPE_CHECKING:
    from gpntk.networks._spherical import SphericalCNN

SMOOTH, KINKED = 1e-6, 1e-4
_BANDLIMITS = (*range(4, 16), *range(16, 32, 2), *range(32, 49, 4))
_SIGNALS = 8
_CHUNK = 1 << 15
# Other random signals have errors of two times the largest of eight or less.
_MARGIN = 3.0


def choose_quadrature(net: "SphericalCNN") -> int:
    """The smallest bandlimit of a rule that is good enough for random signals, at most 48.

    A relative error of 1e-6 for smooth activations and 1e-4 for those whose derivative jumps. Where the variances
    of the network are traced, it is chosen for those of a network by default; for a traced activation it is 2L +
    4.
    """
    lowest = max(net.bandlimit, _BANDLIMITS[0])
    candidates = [b for b in _BANDLIMITS if b >= lowest] or [lowest]
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        problem = _problem(net)
        if problem is None:
            return max(lowest, 2 * net.bandlimit + 4)
        tolerance = KINKED if _is_kinked(problem) else SMOOTH
        good = (b for b in candidates if _error(problem, b) <= tolerance)
        return next(good, candidates[-1])


def quadrature_error(net: "SphericalCNN") -> float:
    """The relative error of the diagonal for random signals of mean square 1; NaN for a traced activation."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        problem = _problem(net)
        return math.nan if problem is None else _error(problem, net.quadrature_bandlimit)


def diagonal_error(net: "SphericalCNN", features: NetworkFeatures) -> float:
    """The largest relative error of the kernels of given inputs with themselves."""
    coarse = _diagonal(net, features)
    fine = _diagonal(net.replace(quadrature_bandlimit=_finer(net.quadrature_bandlimit)), features)
    return _relative(*(np.stack(kernels) for kernels in (coarse, fine)))


class _Problem(NamedTuple):
    """What the error depends on: the network pointwise in the rotation, and the shape of the signals."""

    activation: AbstractActivation
    depth: int
    weight_variance: float
    bias_variance: float
    readout_bias: bool
    bandlimit: int
    channels: int
    inversion: bool

    @property
    def pointwise(self) -> MLP:
        return MLP(self.depth, self.activation, self.weight_variance, self.bias_variance, self.readout_bias)


def _problem(net: "SphericalCNN") -> _Problem | None:
    if _checks.is_traced(net.activation):
        return None
    variances = 2.0, 0.0
    if not _checks.is_traced(net.weight_variance, net.bias_variance):
        variances = tuple(0.0 if v is None else float(val(v)) for v in (net.weight_variance, net.bias_variance))
    return _Problem(
        net.activation, net.depth, *variances, net.readout_bias, net.bandlimit, net.channels, net.inversion
    )


def _finer(quadrature: int) -> int:
    return math.ceil(1.5 * quadrature)


def _error(problem: _Problem, quadrature: int) -> float:
    return _MARGIN * _relative(*(_kernels(problem, b) for b in (quadrature, _finer(quadrature))))


def _relative(coarse: Float[np.ndarray, "... N"], fine: Float[np.ndarray, "... N"]) -> float:
    return float(np.max(np.abs(coarse - fine) / np.where(fine == 0, 1.0, np.abs(fine))))


def _kernels(problem: _Problem, quadrature: int) -> Float[np.ndarray, "2 signals"]:
    """NNGP and NTK of random signals with themselves, by the rule of the given bandlimit."""
    try:
        return _remembered_kernels(problem, quadrature)
    except TypeError:  # an activation that holds arrays has no hash
        return _remembered_kernels.__wrapped__(problem, quadrature)


@functools.lru_cache(maxsize=1024)
def _remembered_kernels(problem: _Problem, quadrature: int) -> Float[np.ndarray, "2 signals"]:
    products = _random_products(problem.bandlimit, problem.channels)
    parity = (-1.0) ** np.arange(problem.bandlimit)[:, None, None]
    cosets = [products, parity * products] if problem.inversion else [products]
    correlations = [inverse_wigner(part, quadrature, np.einsum) for part in cosets]
    means = [_mean_kernels(problem.pointwise, part, quadrature) for part in correlations]
    return np.mean(means, axis=0)


@functools.lru_cache(maxsize=32)
def _random_products(bandlimit: int, channels: int) -> Float[np.ndarray, "signals L 2L-1 2L-1"]:
    """Products of the coefficients of random signals of mean square 1, summed over channels."""
    a = np.random.default_rng(0).normal(size=(_SIGNALS, channels, bandlimit**2))
    a /= np.sqrt(np.sum(a**2, (1, 2), keepdims=True))
    a = np.asarray(padded(a, bandlimit))
    return np.einsum("nclm,nclk->nlmk", a, a)


def _mean_kernels(mlp: MLP, correlations: Float[np.ndarray, "signals nodes"], quadrature: int):
    """In pieces of equal size, so that rules of all sizes share one compiled function."""
    weights = quadrature_weights(quadrature)
    total, (signals, nodes) = 0.0, correlations.shape
    at_once = _CHUNK // signals
    for start in range(0, nodes, at_once):
        missing = (0, max(0, start + at_once - nodes))
        piece = np.pad(correlations[:, start : start + at_once], [(0, 0), missing])
        total = total + np.asarray(_weighted(mlp, piece, np.pad(weights[start : start + at_once], missing)))
    return total


@eqx.filter_jit
def _weighted(mlp, correlations, weights):
    variance, features = jnp.ones(()), []
    for layer in mlp.layers:
        variance, layer_features = layer.transform_variance(variance)
        features.append(layer_features)
    state = propagate(mlp.layers, jnp.asarray(correlations), features, features)
    return jnp.stack([kernel @ weights for kernel in state])


def _is_kinked(problem: _Problem) -> bool:
    """Whether the dual derivative has a root at coincidence, as it has where the activation's derivative jumps."""
    near = 1e-8
    slope = np.asarray(problem.activation.dual_derivative(np.array([1.0, 1.0 - near]), 1.0, 1.0))
    return bool(slope[0] - slope[1] > 1e3 * near * abs(slope[0])) or slope[0] == 0


@eqx.filter_jit
def _diagonal(net, features):
    return net.diagonal(features)
