"""Infinitely wide networks as scikit-learn estimators."""

from gpntk.estimators._classifier import NTKClassifier as NTKClassifier
from gpntk.estimators._finite_width import FiniteWidthRegressor as FiniteWidthRegressor
from gpntk.estimators._regressor import NTKRegressor as NTKRegressor
