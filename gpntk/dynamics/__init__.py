"""Training dynamics of infinitely wide networks."""

from gpntk.dynamics._training import GradientDescent as GradientDescent, GradientFlow as GradientFlow
