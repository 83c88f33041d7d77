"""Scores against training time and against the number of training examples."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted

from gpntk import _checks
from gpntk.estimators import NTKClassifier, NTKRegressor
from gpntk.plotting._axes import axes_for, numbers, times as checked_times, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_against_time(
    model: NTKRegressor | NTKClassifier,
    X: Float[np.ndarray, "M D"],
    y: Float[np.ndarray, "M ..."],
    times: Float[np.ndarray, " T"],
    *,
    score: Callable[[Any, Any], float] | None = None,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    """The score of an estimator on some data over its training time, from one fit.

    Args:
        model: a fitted `NTKRegressor` or `NTKClassifier`.
        X: inputs, test inputs as a rule.
        y: their targets.
        times: training times, positive and finite, for a logarithmic axis.
        score: a function of targets and predictions, of `sklearn.metrics` for instance. `None` means the
            accuracy of classes and the R² of numbers.
        ax: matplotlib axes; new ones by default.
        **line: passed on to `ax.plot`.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for times out of range and data that the estimator refuses.
        TypeError: for arguments of the wrong kind.
        sklearn.exceptions.NotFittedError: for an estimator that was not fitted.
    """
    kinds = NTKRegressor, NTKClassifier
    _checks.instance("model", model, kinds, "a fitted NTKRegressor or NTKClassifier")
    instants = checked_times(times, logarithmic=True)
    is_classifier = isinstance(model, NTKClassifier)
    name = {True: "accuracy", False: "$R^2$"}[is_classifier] if score is None else "score"
    if score is None:
        from sklearn import metrics  # here, because only this needs it

        score = metrics.accuracy_score if is_classifier else metrics.r2_score
    elif not callable(score):
        raise TypeError(f"`score` must be a function of targets and predictions, or None, got {score!r}.")
    check_is_fitted(model)
    targets = _checks.as_array("y", y)
    if isinstance(model, NTKClassifier) and targets.ndim != 1:
        raise ValueError(f"`y` must be a vector of classes, got shape {targets.shape}.")
    if _checks.is_real(targets.dtype):
        _checks.real_array("y", targets)
    predictions = model.predict_path(X, instants)
    if isinstance(model, NTKClassifier):
        # Two classes have one decision function, positive for the second one.
        picked = (predictions > 0).astype(int) if len(model.classes_) == 2 else predictions.argmax(-1)
        predictions = model.classes_[picked]
    values = [score(y, prediction) for prediction in predictions]
    ax = axes_for(ax)
    ax.semilogx(instants, values, **{"marker": "o", "ms": 4, **line})
    ax.set(xlabel="training time (learning rate x steps)", ylabel=name)
    return ax


def plot_against_size(
    sizes: Float[np.ndarray, " S"],
    scores: Float[np.ndarray, "*R S"],
    *,
    ax: "Axes | None" = None,
    **line: Any,
) -> "Axes":
    """Scores or errors against the number of training examples: mean and standard error over repetitions.

    Args:
        sizes: numbers of training examples.
        scores: one score a size, or one row of them for each of several repetitions.
        ax: matplotlib axes; new ones by default.
        **line: passed on to `ax.errorbar`.

    Returns:
        The axes, logarithmic in the sizes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for sizes that are not positive, and scores of other shapes or that are not finite.
        TypeError: for arguments of the wrong kind.
    """
    sizes, scores = vector("sizes", sizes), numbers("scores", scores)
    if (sizes <= 0).any():
        raise ValueError(f"`sizes` must be positive, got {sizes.min():g}.")
    if scores.ndim not in (1, 2) or scores.size == 0 or scores.shape[-1] != len(sizes):
        raise ValueError(
            f"`scores` must have one column for each of the {len(sizes)} sizes, and one row for each repetition, "
            f"got shape {scores.shape}."
        )
    scores = np.atleast_2d(scores)
    repetitions = len(scores)
    error = scores.std(0, ddof=1) / repetitions**0.5 if repetitions > 1 else None
    ax = axes_for(ax)
    ax.errorbar(sizes, scores.mean(0), yerr=error, **{"marker": "o", "ms": 4, "capsize": 3, **line})
    ax.set(xscale="log", xlabel="training examples", ylabel="score")
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.xaxis.minorticks_off()
    return ax
