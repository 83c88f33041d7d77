"""Figures that people expect; they need matplotlib (`pip install gpntk[plot]`).

Every function draws on the axes `ax`, or on new ones, and returns them: titles, limits, legends and files are
matplotlib's.
"""

from gpntk.plotting._angle import plot_against_angle as plot_against_angle
from gpntk.plotting._bands import plot_band as plot_band, plot_predictions as plot_predictions
from gpntk.plotting._depth import plot_against_depth as plot_against_depth
from gpntk.plotting._learning_curves import (
    plot_against_size as plot_against_size,
    plot_against_time as plot_against_time,
)
from gpntk.plotting._signals import plot_orbit as plot_orbit, plot_sphere as plot_sphere
