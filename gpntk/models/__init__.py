"""NumPyro models of Bayesian networks of finite width, to order 1/n."""

from gpntk.models._action import quartic_action_regression as quartic_action_regression
from gpntk.models._classification import finite_width_classification as finite_width_classification
from gpntk.models._evidence import evidence_regression as evidence_regression
from gpntk.models._regression import finite_width_regression as finite_width_regression
