"""Architectures: one object for infinite-width kernels and finite networks."""

from gpntk.networks._domains import AbstractDomain as AbstractDomain
from gpntk.networks._equivariant import equivariant as equivariant
from gpntk.networks._finite_group import FiniteGroupCNN as FiniteGroupCNN
from gpntk.networks._layers import (
    AbstractLayer as AbstractLayer,
    Dense as Dense,
    Nonlinearity as Nonlinearity,
    Repeat as Repeat,
)
from gpntk.networks._mlp import MLP as MLP
from gpntk.networks._network import AbstractNetwork as AbstractNetwork, NetworkFeatures as NetworkFeatures
from gpntk.networks._planar import CNN as CNN, PlanarGroupCNN as PlanarGroupCNN
from gpntk.networks._pooling_network import AbstractPoolingNetwork as AbstractPoolingNetwork
from gpntk.networks._spherical import SphericalCNN as SphericalCNN
from gpntk.networks._state import KernelState as KernelState
