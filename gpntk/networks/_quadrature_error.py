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
from gpntk.groups._wigner import cosets, inverse_wigner, padded, quadrature_order, quadrature_weights
from gpntk.networks._layers import variance_through
from gpntk.networks._mlp import MLP
from gpntk.networks._network import NetworkFeatures, propagate

if TYPE_CHECKING:
    from gpntk.networks._spherical import SphericalCNN

SMOOTH, KINKED = 1e-6, 1e-4
_LOWEST, _HIGHEST = 4, 48
# Random signals: how many at most and at least, and how many numbers a rule may take for all of them.
_MOST_SIGNALS, _FEWEST_SIGNALS, _NUMBERS = 1024, 8, 1 << 20
_CHUNK = 1 << 15
# The largest error of 1,500 random signals is up to this many times that of the ones looked at.
_MARGIN = 4.0
# The finer rule has errors of its own, for kinked activations a fifth, which may have the same sign.
_MARGIN_OF_DIFFERENCES = 1.5


def choose_quadrature(net: "SphericalCNN") -> int:
    """The smallest bandlimit of a rule that is good enough for random signals, at most 48 or the signals' own.

    A relative error of 1e-6 for smooth activations and 1e-4 for those whose derivative jumps. Where the variances
    of the network are traced, it is chosen for those of a network by default; for a traced activation it is 2L +
    4.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        problem = _problem(net)
        if problem is None:
            return max(_LOWEST, 2 * net.bandlimit + 4)
        tolerance = KINKED if _is_kinked(problem) else SMOOTH
        levels = _levels(problem)
        good = next((level for level in levels if _error(problem, level) <= tolerance), levels[-1])
        bad = max((level for level in levels if level < good), default=good - 1)
        while good - bad > max(1, good // 16):
            middle = (bad + good) // 2
            bad, good = (bad, middle) if _error(problem, middle) <= tolerance else (middle, good)
        return good


def quadrature_error(net: "SphericalCNN") -> float:
    """The relative error of the diagonal for random signals of mean square 1; NaN for a traced activation."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        problem = _problem(net)
        return math.nan if problem is None else _error(problem, net.quadrature_bandlimit)


def diagonal_error(net: "SphericalCNN", features: NetworkFeatures) -> float:
    """The largest relative error of the kernels of given inputs with themselves."""
    coarse = _diagonal(net, features)
    fine = _diagonal(net.replace(quadrature_bandlimit=_finer(net.quadrature_bandlimit)), features)
    coarse, fine = (np.stack(kernels) for kernels in (coarse, fine))
    return _MARGIN_OF_DIFFERENCES * float(np.max(_relative(coarse, fine, fine.mean(-1, keepdims=True))))


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
    weight, bias = 2.0, 0.0
    if not _checks.is_traced(net.weight_variance, net.bias_variance):
        weight, bias = (0.0 if v is None else float(val(v)) for v in (net.weight_variance, net.bias_variance))
    return _Problem(
        net.activation, net.depth, weight, bias, net.readout_bias, net.bandlimit, net.channels, net.inversion
    )


def _finer(quadrature: int) -> int:
    return math.ceil(1.5 * quadrature)


def _relative(coarse, fine, typical) -> Float[np.ndarray, "kernels N"]:
    """Errors in units of the kernel, or of a typical one where it is smaller.

    Relative to itself alone the error of a kernel near zero has no bound: without biases odd activations give
    signals of no mean over the sphere a kernel of zero.
    """
    scale = np.maximum(np.abs(fine), typical)
    return np.abs(coarse - fine) / np.where(scale == 0, 1.0, scale)


def _error(problem: _Problem, quadrature: int) -> float:
    return _MARGIN * float(_probes(problem, quadrature).errors.max())


class _Probes(NamedTuple):
    """Random signals, the largest error of NNGP and NTK of each, and the mean kernels of random signals."""

    signals: Float[np.ndarray, "signals channels L*L"]
    errors: Float[np.ndarray, " signals"]
    typical: Float[np.ndarray, "kernels 1"]


def _probes(problem: _Problem, quadrature: int) -> _Probes:
    try:
        return _remembered_probes(problem, quadrature)
    except TypeError:  # an activation that holds arrays has no hash
        return _remembered_probes.__wrapped__(problem, quadrature)


@functools.lru_cache(maxsize=256)
def _remembered_probes(problem: _Problem, quadrature: int) -> _Probes:
    """Errors of a rule: as many random signals as are affordable, those with the largest errors of coarser rules.

    Errors of different signals differ by orders of magnitude, and mostly the same signals have large ones.
    """
    finer = _finer(quadrature)
    n_signals = int(np.clip(_NUMBERS // quadrature_order(finer), _FEWEST_SIGNALS, _MOST_SIGNALS))
    lowest, *further = _levels(problem)
    if quadrature <= lowest:
        signals, typical = _random_signals(n_signals, problem.channels, problem.bandlimit), None
    else:
        coarser = _probes(problem, max([lowest, *(level for level in further if 4 * level <= 3 * quadrature)]))
        signals, typical = coarser.signals[np.argsort(-coarser.errors)[:n_signals]], coarser.typical
    coarse, fine = (_kernels(problem, signals, b) for b in (quadrature, finer))
    if typical is None:
        typical = fine.mean(1, keepdims=True)
    return _Probes(signals, _relative(coarse, fine, typical).max(0), typical)


def _levels(problem: _Problem) -> list[int]:
    """Bandlimits of rules, each larger by a third."""
    levels = [max(problem.bandlimit, _LOWEST)]
    while levels[-1] < _HIGHEST:
        levels.append(min(math.ceil(4 * levels[-1] / 3), _HIGHEST))
    return levels


def _random_signals(n: int, channels: int, bandlimit: int) -> Float[np.ndarray, "n channels L*L"]:
    """Coefficients, independent and normal, of signals of mean square 1."""
    a = np.random.default_rng(0).normal(size=(n, channels, bandlimit**2))
    return a / np.sqrt(np.sum(a**2, (1, 2), keepdims=True))


def _kernels(problem: _Problem, signals, quadrature: int) -> Float[np.ndarray, "2 signals"]:
    """NNGP and NTK of signals with themselves, by the rule of the given bandlimit."""
    a = padded(signals, problem.bandlimit)
    products = np.einsum("nclm,nclk->nlmk", a, a, optimize=True)
    weights, means = quadrature_weights(quadrature), []
    for part in cosets(products, problem.inversion):
        correlations = inverse_wigner(part, quadrature, functools.partial(np.einsum, optimize=True))
        means.append(_pointwise_kernels(problem, correlations) @ weights)
    return np.mean(means, axis=0)


def _pointwise_kernels(problem: _Problem, correlations) -> Float[np.ndarray, "2 signals nodes"]:
    """In pieces of equal size, so that rules of all sizes share one compiled function."""
    flat = np.pad(np.ravel(correlations), (0, -np.size(correlations) % _CHUNK)).reshape(-1, _CHUNK)
    values = np.stack([np.stack(_dense_kernels(problem.pointwise, piece)) for piece in flat], 1)
    return values.reshape(2, -1)[:, : np.size(correlations)].reshape(2, *np.shape(correlations))


@eqx.filter_jit
def _dense_kernels(mlp, correlations):
    _, features = variance_through(mlp.layers, jnp.ones(()))
    return tuple(propagate(mlp.layers, jnp.asarray(correlations), features, features))


def _is_kinked(problem: _Problem) -> bool:
    """Whether the dual derivative has a root at coincidence, as it has where the activation's derivative jumps."""
    near = 1e-8
    slope = np.asarray(problem.activation.dual_derivative(np.array([1.0, 1.0 - near]), 1.0, 1.0))
    return bool(slope[0] - slope[1] > 1e3 * near * abs(slope[0])) or slope[0] == 0


@eqx.filter_jit
def _diagonal(net, features):
    return net.diagonal(features)
