"""Statistics at order 1/n against depth."""

from typing import TYPE_CHECKING, Any

import numpy as np

from gpntk import _checks
from gpntk.finite_width import Cumulants
from gpntk.plotting._axes import axes_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What every tensor of one input is measured by: powers of its kernel and of its NTK.
_UNITS = {
    "K": (0, 0),
    "theta": (0, 0),
    "K1": (1, 0),
    "theta1": (0, 1),
    "V": (2, 0),
    "D": (1, 1),
    "F": (1, 1),
    "A": (0, 2),
    "B": (0, 2),
}


def plot_against_depth(
    cumulants: Cumulants, name: str = "V", *, index: int = 0, ax: "Axes | None" = None, **line: Any
) -> "Axes":
    r"""One statistic of one input at every layer, relative to its kernel and NTK, against the number of layers.

    V is shown as $V/K^2$, D and F as $D/(K\Theta)$, A and B as $A/\Theta^2$, K1 and theta1 as $K_1/K$ and
    $\Theta_1/\Theta$: divided by the width, these are relative fluctuations and shifts. The first preactivations,
    where nothing has arisen, count as layer 0.

    Args:
        cumulants: as `gpntk.cumulants` returns them.
        name: field of the statistic.
        index: which input.
        ax: matplotlib axes; new ones by default.
        **line: passed on to `ax.plot`.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for an unknown statistic or input.
        TypeError: if `cumulants` are not those of all layers.
    """
    _checks.instance("cumulants", cumulants, Cumulants, "what gpntk.cumulants(net, X) returns without `rank`")
    _checks.option("name", name, _UNITS)
    index = _checks.integer("index", index, minimum=0)
    if index >= len(cumulants.K):
        raise ValueError(f"`index` must be below {len(cumulants.K)}, the number of inputs, got {index}.")
    values = [_relative(layer, name, index) for layer in cumulants.layers]
    ax = axes_for(ax)
    ax.plot(np.arange(len(values)), values, **line)
    ax.set(xlabel="layer", ylabel=_label(name))
    return ax


def _relative(layer: Cumulants, name: str, index: int) -> float:
    tensor = getattr(layer, name)
    kernels, ntks = _UNITS[name]
    return tensor[(index,) * tensor.ndim] / (layer.K[index, index] ** kernels * layer.theta[index, index] ** ntks)


def _label(name: str) -> str:
    kernels, ntks = _UNITS[name]
    symbol = {"theta": r"\Theta", "theta1": r"\Theta_1", "K1": "K_1"}.get(name, name)
    unit = "".join(
        base if power == 1 else f"{base}^{power}" for base, power in (("K", kernels), (r"\Theta", ntks)) if power
    )
    return f"${symbol}/{unit}$" if unit else f"${symbol}$"
