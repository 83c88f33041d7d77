"""Figures that people expect; they need matplotlib (`pip install gpntk[plot]`)."""

from gpntk.plotting._depth import plot_against_depth as plot_against_depth
