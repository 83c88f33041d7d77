"""Training dynamics of infinitely wide networks, and the solvers behind them."""

from gpntk.dynamics._gaussian_process import (
    MatrixFreePosterior as MatrixFreePosterior,
    matrix_free_mll as matrix_free_mll,
)
from gpntk.dynamics._matrix_free import MatrixFree as MatrixFree, SolverReport as SolverReport
from gpntk.dynamics._training import GradientDescent as GradientDescent, GradientFlow as GradientFlow
