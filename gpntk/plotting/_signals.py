"""What groups do to signals: orbits of images, and signals on the sphere."""

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gpntk import _checks
from gpntk.groups import SO3, FiniteGroup
from gpntk.groups._harmonics import spherical_harmonics
from gpntk.plotting._axes import axes_for, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_orbit(
    group: FiniteGroup,
    x: Float[np.ndarray, " D"],
    shape: tuple[int, int] | None = None,
    *,
    channel: int = 0,
    columns: int = 8,
    ax: "Axes | None" = None,
    **image: Any,
) -> "Axes":
    r"""A signal as every element of a finite group transforms it, $\rho(g) f = f \circ g^{-1}$.

    Args:
        group: the group.
        x: one signal, flattened, channels last.
        shape: (height, width) of images, which are laid out in rows. `None` is for points that are not
            pixels: every transformed signal is one row of a matrix.
        channel: which channel of the signal.
        columns: number of images in a row.
        ax: matplotlib axes; new ones by default.
        **image: passed on to `ax.imshow`.

    Returns:
        The axes; ticks are the elements of the group.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for a signal or a shape that does not fit the group, and a channel that there is not.
        TypeError: for arguments of the wrong kind.
    """
    _checks.instance("group", group, FiniteGroup, "a finite group such as gpntk.groups.C4((8, 8, 1))")
    x = vector("x", x, group.n_features)
    channel = _channel(channel, group.channels)
    columns = _checks.integer("columns", columns, minimum=1)
    with jax.enable_x64(True):
        orbit = np.asarray(group.act(jnp.asarray(x[None])))
    orbit = orbit.reshape(group.order, group.points, group.channels)[..., channel]
    options: dict[str, Any] = {"cmap": "gray", "interpolation": "nearest"}
    if shape is None:
        ax = axes_for(ax)
        ax.imshow(orbit, **{**options, "aspect": "auto", **image})
        ax.set(xlabel="point", ylabel="element of the group")
        return ax
    height, width = _image_shape(shape, group.points)
    columns = min(group.order, columns)
    rows = math.ceil(group.order / columns)
    # One empty pixel between images.
    mosaic = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for element, signal in enumerate(orbit):
        row, column = divmod(element, columns)
        top, left = row * (height + 1), column * (width + 1)
        mosaic[top : top + height, left : left + width] = signal.reshape(height, width)
    ax = axes_for(ax)
    ax.imshow(np.ma.masked_invalid(mosaic), **{**options, **image})
    ax.set_xticks(np.arange(columns) * (width + 1) + (width - 1) / 2, np.arange(columns))
    ax.set_yticks(np.arange(rows) * (height + 1) + (height - 1) / 2, np.arange(rows) * columns)
    ax.tick_params(length=0)
    ax.set(xlabel="element of the group")
    ax.spines[:].set_visible(False)
    return ax


def plot_sphere(
    group: SO3,
    x: Float[np.ndarray, " D"],
    *,
    channel: int = 0,
    rings: int = 90,
    ax: "Axes | None" = None,
    **mesh: Any,
) -> "Axes":
    r"""A signal on the sphere, in Hammer's projection, which keeps areas.

    The north pole is up, longitude $\phi = 0$ in the middle, and $\phi$ grows to the right. Drawn is the signal
    that the group sees: what lies beyond the bandlimit is not in it.

    Args:
        group: `gpntk.groups.SO3`, which knows the sampling; `net.group` of a `SphericalCNN`.
        x: one signal in that sampling, flattened.
        channel: which channel of the signal.
        rings: number of latitudes of the picture; it has twice as many longitudes.
        ax: matplotlib axes; new ones by default.
        **mesh: passed on to `ax.pcolormesh`. Colours are symmetric about zero unless `vmin`, `vmax` or `norm` say
            otherwise.

    Returns:
        The axes, with a colour bar.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for a signal that does not fit the group, a channel that there is not, and too few rings.
        TypeError: for arguments of the wrong kind.
    """
    _checks.instance("group", group, SO3, "gpntk.groups.SO3(...), or `net.group` of a gpntk.SphericalCNN")
    x = vector("x", x, math.prod(group.signal_shape))
    channel = _channel(channel, group.channels)
    rings = _checks.integer("rings", rings, minimum=2)
    with jax.enable_x64(True):
        coefficients = np.asarray(group.coefficients(jnp.asarray(x[None])))[0, channel]
    # Values at the centres of cells, whose corners are where the projection puts them.
    theta, phi = np.pi * (np.arange(rings) + 0.5) / rings, np.pi * (np.arange(2 * rings) + 0.5) / rings - np.pi
    points = tuple(np.repeat(theta, len(phi)).tolist()), tuple(np.tile(phi, rings).tolist())
    values = (spherical_harmonics(group.bandlimit, *points) @ coefficients).reshape(rings, -1)
    corners = _hammer(np.linspace(0, np.pi, rings + 1)[:, None], np.linspace(-np.pi, np.pi, 2 * rings + 1))
    ax = axes_for(ax)
    options: dict[str, Any] = {"cmap": "RdBu_r", "rasterized": True, **mesh}
    if not {"vmin", "vmax", "norm"} & set(mesh):
        limit = np.abs(values).max() or 1.0
        options |= {"vmin": -limit, "vmax": limit}
    drawn = ax.pcolormesh(*corners, values, **options)
    for angle in np.linspace(-np.pi, np.pi, 7):
        ax.plot(*_hammer(np.linspace(0, np.pi, 61), angle), color="0.5", lw=0.4)
    for angle in np.linspace(0, np.pi, 7)[1:-1]:
        ax.plot(*_hammer(angle, np.linspace(-np.pi, np.pi, 121)), color="0.5", lw=0.4)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.figure.colorbar(drawn, ax=ax, shrink=0.6)
    return ax


def _hammer(theta, phi):
    """Hammer (1892): the equal-area azimuthal projection of half the longitude, stretched twofold."""
    sine = np.sin(theta)
    scale = np.sqrt(2.0 / (1.0 + sine * np.cos(phi / 2)))
    return 2.0 * scale * sine * np.sin(phi / 2), scale * np.cos(theta)


def _channel(channel: Any, channels: int) -> int:
    channel = _checks.integer("channel", channel, minimum=0)
    if channel >= channels:
        raise ValueError(f"`channel` must be below {channels}, the number of channels, got {channel}.")
    return channel


def _image_shape(shape: Any, points: int) -> tuple[int, int]:
    sides = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sides) != 2:
        raise ValueError(f"`shape` must be (height, width) or None, got {shape!r}.")
    height, width = (_checks.integer("shape", side, minimum=1) for side in sides)
    if height * width != points:
        raise ValueError(f"`shape` must have {points} pixels, as many as the group has points, got {shape}.")
    return height, width
