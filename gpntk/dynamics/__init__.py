"""Training dynamics of infinitely wide networks."""

from gpntk.dynamics._matrix_free import MatrixFree as MatrixFree, SolverReport as SolverReport
from gpntk.dynamics._training import GradientDescent as GradientDescent, GradientFlow as GradientFlow
