r"""Criticality: variances at which depth neither blows signals up nor lets them die.

For one input the kernel map $K \leftarrow C_b + C_W\,T(K)$, $T(K) = E[\sigma^2]$, has the parallel susceptibility
$\chi_\parallel = C_W\,T'(K)$, by which a small change of the norm of an input grows in a layer, and the
perpendicular susceptibility $\chi_\perp = C_W\,E[\sigma'^2]$, by which the distance of two inputs of equal norm
grows, and with it gradients. At criticality both are 1 at a fixed point (Roberts, Yaida & Hanin, *The Principles
of Deep Learning Theory*, chapter 5).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.optimize import brentq

from gpntk import _checks
from gpntk.activations import AbstractActivation
from gpntk.finite_width._input_moments import input_moments
from gpntk.networks import MLP

# Fixed points are looked for between these kernels; below, an activation is what its slope at 0 makes of it.
_SMALLEST, _LARGEST, _POINTS = 1e-6, 1e2, 400
_SCALE_INVARIANT = 1e-9


class CriticalInitialization(NamedTuple):
    """Variances of weights and biases at which both susceptibilities are 1 at a fixed point of the kernel."""

    weight_variance: float
    bias_variance: float
    fixed_point: float
    """Kernel of one input at the fixed point; NaN where every kernel is one."""
    kind: str
    """`"scale-invariant"`, `"half-stable"` or `"vanishing"` (the kernel decays like one over the depth)."""


def susceptibilities(
    activation: AbstractActivation, weight_variance: float, variance: Float[ArrayLike, "..."]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    r"""Parallel and perpendicular susceptibility, $C_W\,\partial_q E[\sigma^2]$ and $C_W\,E[\sigma'^2]$.

    Args:
        activation: the nonlinearity.
        weight_variance: $C_W$, positive.
        variance: kernel of an input with itself (of its preactivations), one or several.

    Raises:
        ValueError: for a weight variance that is not positive or a negative kernel.
    """
    _checks.instance("activation", activation, AbstractActivation, "an activation such as gpntk.ReLU()")
    weight_variance = _checks.real_number("weight_variance", weight_variance, minimum=0.0, strict=True)
    variance = np.asarray(_checks.real_array("variance", variance, np.float64))
    if not (variance >= 0).all():
        raise ValueError(f"`variance` must be >= 0, got {np.min(variance):g}.")
    with jax.enable_x64(True):
        moments = _moments(activation, variance)
        parallel, perpendicular = np.asarray(moments.second_slope), np.asarray(moments.slope)
    return weight_variance * parallel, weight_variance * perpendicular


def critical_initialization(activation: AbstractActivation) -> CriticalInitialization:
    r"""Variances for which a deep network of this activation is critical.

    - Scale-invariant activations (ReLU and its relatives): $C_W = 1/E[\sigma'^2]$, no bias, every kernel a fixed
      point.
    - Activations with $\sigma(0) = 0$ and $\sigma'(0) \ne 0$ whose kernel decays to 0 slowly (tanh, erf, sin):
      $C_W = 1/\sigma'(0)^2$, no bias, fixed point 0.
    - Others (GELU, SiLU): the fixed point with the smallest kernel at which both susceptibilities are 1, with a
      bias. It attracts from one side only.

    Roberts, Yaida & Hanin, *The Principles of Deep Learning Theory*, chapter 5.

    Raises:
        ValueError: where none exists (softplus, sigmoid).

    >>> import gpntk
    >>> critical = gpntk.critical_initialization(gpntk.GELU())
    >>> print(f"{critical.weight_variance:.6f} {critical.bias_variance:.6f} {critical.kind}")
    1.983058 0.172922 half-stable
    """
    _checks.instance("activation", activation, AbstractActivation, "an activation such as gpntk.ReLU()")
    with jax.enable_x64(True):
        kernels = np.geomspace(_SMALLEST, _LARGEST, _POINTS)
        moments = _moments(activation, kernels)
        ratio = np.asarray(moments.second) / kernels
        slope = float(jax.grad(activation.__call__)(0.0))
        if ratio[0] > 0 and np.ptp(ratio) < _SCALE_INVARIANT * ratio[0]:
            return CriticalInitialization(float(1.0 / ratio[0]), 0.0, float("nan"), "scale-invariant")
        # Fixed points with chi_parallel = chi_perpendicular, which then can both be 1.
        excess = np.asarray(moments.second_slope - moments.slope)
        # Small kernels follow K T(K)/K, which decreases in K if 0 attracts.
        vanishes_at_zero = abs(float(activation(jnp.asarray(0.0)))) < 1e-12
        if vanishes_at_zero and abs(slope) > 1e-6 and ratio[kernels > 1e-3][0] < ratio[0]:
            return CriticalInitialization(1.0 / slope**2, 0.0, 0.0, "vanishing")
        with np.errstate(all="ignore"):
            changes = excess[:-1] * excess[1:] < 0
        for left in np.flatnonzero(changes & np.isfinite(excess[1:])):
            interval = kernels[left], kernels[left + 1]
            fixed_point: Any = brentq(lambda q: _imbalance(activation, q), *interval, xtol=1e-15)  # a number
            at = _moments(activation, np.asarray(fixed_point))
            weight_variance = float(1.0 / at.slope)
            bias_variance = fixed_point - weight_variance * float(at.second)
            if bias_variance >= 0.0:
                return CriticalInitialization(weight_variance, bias_variance, fixed_point, "half-stable")
    raise ValueError(
        f"`activation` must have a critical initialisation, got {activation!r}: no variances make both "
        "susceptibilities 1 at a fixed point of its kernel with a bias variance >= 0."
    )


def depth_to_width(net: MLP, width: float) -> float:
    r"""The parameter of the expansion in 1/n: $\sum_l 1/n_l$ over hidden layers, depth / width for equal widths.

    Args:
        net: the architecture.
        width: width of its last hidden layer.

    Raises:
        ValueError: for a width below 1.
    """
    _checks.instance("net", net, MLP, "a gpntk.MLP")
    width = _checks.real_number("width", width, minimum=1.0, infinite=True)
    return sum(1.0 / (ratio * width) for ratio in net.width_ratios or (1.0,) * net.depth)


def _moments(activation, variance):
    return _compiled_moments(activation, jnp.asarray(variance, jnp.float64))


_compiled_moments = jax.jit(input_moments, static_argnums=0)


def _imbalance(activation, variance):
    moments = _moments(activation, np.asarray(variance))
    return float(moments.second_slope - moments.slope)
