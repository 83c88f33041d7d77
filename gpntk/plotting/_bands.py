"""Means with bands around them, and predictions of wide networks over training time."""

import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted

from gpntk import _checks
from gpntk.dynamics import GradientFlow
from gpntk.estimators import NTKRegressor
from gpntk.plotting._axes import axes_for, numbers, times as checked_times, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_band(
    x: Float[np.ndarray, " M"],
    mean: Float[np.ndarray, " M"],
    std: Float[np.ndarray, " M"],
    *,
    factor: float = 2.0,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    """A mean as a line and a band of some standard deviations around it.

    Args:
        x: abscissae, in any order.
        mean: the line.
        std: standard deviations, not negative.
        factor: half the width of the band, in standard deviations.
        ax: matplotlib axes; new ones by default.
        **line: passed on to `ax.plot`. The band has the colour of the line.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for vectors of different lengths, numbers that are not finite and negative deviations.
        TypeError: for arguments of the wrong kind.
    """
    x = vector("x", x)
    mean, std = vector("mean", mean, len(x)), vector("std", std, len(x))
    factor = _checks.real_number("factor", factor, minimum=0.0)
    if (std < 0).any():
        raise ValueError(f"`std` must not be negative, got {std.min():g}.")
    ax = axes_for(ax)
    order = np.argsort(x, kind="stable")
    x, mean, half = x[order], mean[order], factor * std[order]
    (drawn,) = ax.plot(x, mean, **line)
    ax.fill_between(
        x, mean - half, mean + half, color=drawn.get_color(), alpha=0.2, lw=0, zorder=drawn.zorder - 0.5
    )
    return ax


def plot_predictions(
    model: NTKRegressor | GradientFlow,
    X: Float[np.ndarray, "M D"],
    times: float | Float[np.ndarray, " T"] = math.inf,
    *,
    along: Float[np.ndarray, " M"] | None = None,
    output: int = 0,
    factor: float = 2.0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Mean and spread of trained wide networks, one band for each training time, from one fit.

    Training points are drawn too where inputs have one feature. Bands are those of initialisations, without noise.

    Args:
        model: a fitted `NTKRegressor`, or a `GradientFlow` with a prior.
        X: inputs.
        times: training times, at least 0, infinity allowed; early ones are dark, late ones light.
        along: what to draw the predictions of the rows of `X` against; `None` means their only feature.
        output: which output of several.
        factor: half the width of the bands, in standard deviations.
        ax: matplotlib axes; new ones by default.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for inputs of several features without `along`, an output that there is not, times out of
            range, and a model that has no spread.
        TypeError: for arguments of the wrong kind.
        sklearn.exceptions.NotFittedError: for an estimator that was not fitted.
    """
    _checks.instance("model", model, (NTKRegressor, GradientFlow), "a fitted NTKRegressor or a GradientFlow")
    instants = checked_times(times)
    rows = numbers("X", X)
    if rows.ndim != 2 or rows.size == 0:
        raise ValueError(f"`X` must be inputs of shape (M, D), got shape {rows.shape}.")
    if along is None and rows.shape[1] != 1:
        raise ValueError(
            f"`along` must be given where inputs have several features: those of `X` have {rows.shape[1]}."
        )
    abscissae = rows[:, 0] if along is None else vector("along", along, len(rows))
    means, stds, points, targets = _trained(model, X, instants)
    output = _checks.integer("output", output, minimum=0)
    if output >= means.shape[-1]:
        raise ValueError(f"`output` must be below {means.shape[-1]}, the number of outputs, got {output}.")
    import matplotlib

    ax = axes_for(ax)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(instants)))
    for time, mean, std, shade in zip(instants, means[..., output], stds[..., output], shades, strict=True):
        label = r"$t = \infty$" if math.isinf(time) else f"$t = {time:g}$"
        plot_band(abscissae, mean, std, factor=factor, ax=ax, color=shade, label=label)
    if along is None:
        ax.plot(points[:, 0], targets[:, output], "ko", ms=4, zorder=5, label="training points")
    ax.set(xlabel="input" if along is None else "along the inputs", ylabel="output")
    ax.legend(frameon=False)
    return ax


def _trained(model, X, instants):
    """Means and standard deviations (T, M, q), training inputs (N, D) and targets (N, q)."""
    if isinstance(model, GradientFlow):
        mean, std = (np.asarray(a) for a in (model.mean(X, instants), np.sqrt(model.variance(X, instants))))
        outputs = mean.reshape(*std.shape, -1)
        spread = np.repeat(std[..., None], outputs.shape[-1], axis=-1)
        return outputs, spread, np.asarray(model.X), np.asarray(model.y).reshape(len(model.y), -1)
    check_is_fitted(model)
    pairs = [model.predict(X, return_std=True, time=time) for time in instants.tolist()]
    means, stds = (np.stack(part).reshape(len(instants), len(X), -1) for part in zip(*pairs, strict=True))
    with jax.enable_x64(True):
        points, targets = np.asarray(model._flow.X), np.asarray(model._flow.y)
    targets = targets * model._y_scale + model._y_mean
    return means, stds, points, targets.reshape(len(targets), -1)
