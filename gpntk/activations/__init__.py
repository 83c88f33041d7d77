"""Activation functions with their Gaussian moments (duals)."""

from gpntk.activations._base import AbstractActivation as AbstractActivation
from gpntk.activations._homogeneous import (
    ABReLU as ABReLU,
    Abs as Abs,
    LeakyReLU as LeakyReLU,
    ReLU as ReLU,
    Sign as Sign,
)
from gpntk.activations._polynomial import (
    Hermite as Hermite,
    Identity as Identity,
    Monomial as Monomial,
    Polynomial as Polynomial,
)
from gpntk.activations._series import (
    Elementwise as Elementwise,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softplus as Softplus,
    Tanh as Tanh,
)
from gpntk.activations._smooth import (
    GELU as GELU,
    Cos as Cos,
    Erf as Erf,
    Exp as Exp,
    Gaussian as Gaussian,
    Rbf as Rbf,
    Sin as Sin,
)
