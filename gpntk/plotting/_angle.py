"""Kernels as functions of the angle between two inputs."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from gpjax.kernels import AbstractKernel
from jaxtyping import Float

from gpntk import _checks
from gpntk.plotting._axes import axes_for, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_against_angle(
    kernel: AbstractKernel,
    *,
    plane: Float[np.ndarray, "2 D"] | None = None,
    relative: bool = False,
    points: int = 181,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    r"""A kernel of two inputs of equal norm against the angle between them, from 0 to 180 degrees.

    One input stays, the other one turns in a plane: $x(\phi) = \cos\phi\,u + \sin\phi\,v$ with $|u| = |v|$.

    Args:
        kernel: a GPJax kernel.
        plane: two inputs that span the plane. The first one is $u$; the part of the second one at right angles to
            it, scaled to its norm, is $v$. `None` means two features and inputs of mean square 1.
        relative: whether to divide by the value at equal inputs.
        points: number of angles, both ends included.
        ax: matplotlib axes; new ones by default.
        **line: passed on to `ax.plot`.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for inputs that the kernel does not take or that do not span a plane, fewer than two angles,
            and where `relative` would divide by zero.
        TypeError: for arguments of the wrong kind.
    """
    _checks.instance("kernel", kernel, AbstractKernel, "a GPJax kernel such as gpntk.NTK(gpntk.MLP())")
    _checks.boolean("relative", relative)
    first, second = _orthogonal(np.sqrt(2.0) * np.eye(2) if plane is None else plane)
    angles = np.linspace(0.0, 180.0, _checks.integer("points", points, minimum=2))
    cosines, sines = np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))
    # At the ends to the last bit: kinked activations know equal and opposite inputs by their bits.
    sines[-1] = 0.0
    turned = cosines[:, None] * first + sines[:, None] * second
    try:
        with jax.enable_x64(True):
            values = np.asarray(kernel.cross_covariance(first[None], turned))[0]
    except ValueError as error:
        got = "two features, the default" if plane is None else f"shape {np.shape(plane)}"
        raise ValueError(f"`plane` must be two inputs of the kernel, got {got}: {error}") from error
    if relative:
        if values[0] == 0.0:
            raise ValueError("`relative` must be False for a kernel that is 0 at equal inputs, got True.")
        values = values / values[0]
    ax = axes_for(ax)
    ax.plot(angles, values, **line)
    ax.set(
        xlabel="angle between inputs (degrees)",
        ylabel="kernel, relative to equal inputs" if relative else "kernel",
    )
    ax.set_xticks(np.arange(0, 181, 45))
    return ax


def _orthogonal(plane: Any) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
    plane = numbers("plane", plane)
    if plane.ndim != 2 or len(plane) != 2 or plane.shape[1] == 0:
        raise ValueError(f"`plane` must be two inputs, of shape (2, D), got shape {plane.shape}.")
    (first, second), size = plane, np.linalg.norm(plane[0])
    direction = first / size if size > 0 else first
    # Twice, because the first time leaves rounding errors of the size of what is taken away.
    rest = second - (second @ direction) * direction
    rest = rest - (rest @ direction) * direction
    length = np.linalg.norm(rest)
    if size == 0 or length <= 1e-12 * np.linalg.norm(second):
        raise ValueError("`plane` must be two inputs in different directions, got parallel or zero ones.")
    return first, rest * (size / length)
