"""What all figures share: the axes to draw on, and checks of the numbers to be drawn."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from gpntk import _checks
from gpntk.dynamics._arguments import checked_times

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes_for(ax: "Axes | None") -> "Axes":
    """`ax`, or axes of a new figure.

    Lines of new axes have the colours of Petroff (2021), arXiv:2107.02270, which colour-blind readers can tell
    apart; given axes keep the colours they have.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if `ax` is something else.
    """
    import matplotlib
    from matplotlib.axes import Axes

    if ax is not None:
        return _checks.instance("ax", ax, Axes, "matplotlib axes, or None for new ones")
    import matplotlib.pyplot as plt

    ax = plt.figure(layout="constrained").add_subplot()
    ax.set_prop_cycle(color=matplotlib.color_sequences["petroff10"])
    return ax


def vector(name: str, value: Any, length: int | None = None) -> Float[np.ndarray, " n"]:
    """`value` as a vector of finite numbers, of a given length if that is known.

    Raises:
        ValueError: naming the argument, for other shapes, for NaN and infinity, and for what is not real numbers.
    """
    array = numbers(name, value)
    if array.ndim != 1 or array.size == 0 or length not in (None, len(array)):
        wanted = "a vector" if length is None else f"a vector of {length} numbers"
        raise ValueError(f"`{name}` must be {wanted}, got shape {array.shape}.")
    return array


def numbers(name: str, value: Any) -> Float[np.ndarray, "..."]:
    """`value` as an array of finite numbers of any shape; errors are those of `vector`."""
    return np.asarray(_checks.real_array(name, value), float)


def times(value: Any, *, logarithmic: bool = False) -> Float[np.ndarray, " T"]:
    """`value` as a vector of training times: at least 0, infinity allowed, or what a logarithmic axis can show."""
    checked = np.atleast_1d(np.asarray(checked_times("times", value))).tolist()
    for time in checked if logarithmic else ():
        if time == 0.0 or math.isinf(time):
            raise ValueError(f"`times` must be positive and finite on a logarithmic axis, got {time:g}.")
    return np.array(checked)
