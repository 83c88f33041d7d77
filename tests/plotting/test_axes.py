"""What holds for every figure: where it is drawn, and what it does with axes that are none."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import gpntk
from gpntk import plotting

X = np.linspace(-1.0, 1.0, 4)[:, None]
NET = gpntk.MLP(depth=1, bias_variance=0.1)
CASES = {
    "depth": lambda ax: plotting.plot_against_depth(gpntk.cumulants(gpntk.MLP(1), np.ones((1, 2))), ax=ax),
    "angle": lambda ax: plotting.plot_against_angle(gpntk.NTK(NET), ax=ax),
    "band": lambda ax: plotting.plot_band([0.0, 1.0], [1.0, 2.0], [0.1, 0.2], ax=ax),
    "predictions": lambda ax: plotting.plot_predictions(gpntk.NTKRegressor(NET).fit(X, X[:, 0]), X, ax=ax),
    "time": lambda ax: plotting.plot_against_time(
        gpntk.NTKRegressor(NET).fit(X, X[:, 0]), X, X[:, 0], [1.0, 2.0], ax=ax
    ),
    "size": lambda ax: plotting.plot_against_size([10, 20], [0.5, 0.6], ax=ax),
    "orbit": lambda ax: plotting.plot_orbit(gpntk.groups.C4((2, 2, 1)), np.arange(4.0), (2, 2), ax=ax),
    "sphere": lambda ax: plotting.plot_sphere(gpntk.groups.SO3(2), np.ones(6), rings=4, ax=ax),
}


def test_every_figure_has_a_case():
    public = [name for name in vars(plotting) if name.startswith("plot_")]
    assert sorted(public) == sorted("plot_band" if c == "band" else f"plot_{_suffix(c)}" for c in CASES)


def _suffix(case):
    return f"against_{case}" if case in ("depth", "angle", "time", "size") else case


@pytest.mark.parametrize("draw", CASES.values(), ids=CASES)
def test_figures_are_drawn_where_they_are_wanted(draw):
    _, (left, right) = plt.subplots(1, 2)
    assert draw(right) is right
    assert right.has_data()
    assert not left.has_data()
    new = draw(None)
    assert new.figure is not right.figure
    assert new.has_data()
    new.figure.canvas.draw()  # as for a file: warnings would be errors


@pytest.mark.parametrize("draw", CASES.values(), ids=CASES)
def test_what_is_not_axes_is_refused(draw):
    with pytest.raises(TypeError, match="`ax` must be matplotlib axes, or None for new ones, got 1"):
        draw(1)
