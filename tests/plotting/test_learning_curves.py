"""Scores against time and size."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.metrics import mean_absolute_error

import gpntk
from gpntk import plotting

TIMES = np.array([0.01, 1.0, 100.0])


@pytest.mark.parametrize("classes", [2, 3])
def test_accuracies_are_those_of_predictions(classes):
    x, y = load_iris(return_X_y=True)
    x, y = (part[y < classes] for part in (x - x.mean(0), np.array(["c", "a", "b"])[y]))
    model = gpntk.NTKClassifier(alpha=0.1).fit(x[::3], y[::3])
    line = plotting.plot_against_time(model, x[1::3], y[1::3], TIMES, color="k").lines[0]
    expected = [np.mean(model.predict(x[1::3], time=time) == y[1::3]) for time in TIMES]
    np.testing.assert_array_equal(line.get_xydata(), np.stack([TIMES, expected], 1))
    assert line.get_color() == "k"


def test_regressors_have_any_score():
    x = np.linspace(-1, 1, 12)[:, None]
    y = np.sin(3 * x[:, 0])
    model = gpntk.NTKRegressor(alpha=0.1).fit(x[::2], y[::2])
    ax = plotting.plot_against_time(model, x, y, TIMES)
    expected = [1 - np.sum((model.predict(x, time=t) - y) ** 2) / np.sum((y - y.mean()) ** 2) for t in TIMES]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, rtol=1e-9)
    assert ax.get_ylabel() == "$R^2$"
    plotting.plot_against_time(model, x, y, TIMES, score=mean_absolute_error, ax=ax)
    errors = [np.mean(np.abs(model.predict(x, time=t) - y)) for t in TIMES]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), errors, rtol=1e-9)
    for arguments, error, message in (
        ({"times": [0.0, 1.0]}, ValueError, "`times` must be positive and finite on a logarithmic axis, got 0"),
        ({"times": [1.0, np.inf]}, ValueError, "`times` must be positive and finite .*, got inf"),
        ({"times": ["soon"]}, TypeError, "`times` must be a real number"),
        ({"score": "accuracy"}, TypeError, "`score` must be a function of targets and predictions"),
        ({"model": gpntk.MLP()}, TypeError, "`model` must be a fitted NTKRegressor or NTKClassifier"),
    ):
        with pytest.raises(error, match=message):
            plotting.plot_against_time(**{"model": model, "X": x, "y": y, "times": TIMES, **arguments})


def test_repetitions_have_means_and_standard_errors():
    scores = np.array([[0.2, 0.5], [0.4, 0.8], [0.9, 0.2]])
    ax = plotting.plot_against_size([10, 1000], scores, label="ours")
    (container,) = ax.containers
    line, _, (bars,) = container
    np.testing.assert_allclose(line.get_xydata(), [[10, 0.5], [1000, 0.5]])
    segments = np.array(bars.get_segments())  # (sizes, ends, coordinates)
    # Deviations of three numbers from their mean: (-0.3, -0.1, 0.4) and (0, 0.3, -0.3).
    errors = np.sqrt(np.array([0.26, 0.18]) / 2 / 3)
    np.testing.assert_allclose(segments[:, :, 1], np.stack([0.5 - errors, 0.5 + errors], 1))
    assert container.get_label() == "ours"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "1000"]
    assert ax.get_xscale() == "log"


def test_one_repetition_has_no_errors():
    ax = plotting.plot_against_size([10, 20], [0.5, 0.6])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 0.6])
    assert not ax.collections


@pytest.mark.parametrize(
    ("sizes", "scores", "message"),
    [
        ([0, 10], [0.1, 0.2], "`sizes` must be positive, got 0"),
        ([5, 10], [0.1], r"`scores` must have one column for each of the 2 sizes.*got shape \(1,\)"),
        ([5, 10], np.ones((2, 3)), r"`scores` must have one column .*got shape \(2, 3\)"),
        ([5, 10], [0.1, np.inf], "`scores` must be finite, got inf"),
    ],
)
def test_bad_scores_are_refused(sizes, scores, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_against_size(sizes, scores)
