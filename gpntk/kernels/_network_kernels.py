"""The NNGP and the NTK of an architecture, as GPJax kernels and as plain functions."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from gpjax.kernels.computations import AbstractKernelComputation
from gpjax.parameters import val
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.kernels._base import AbstractFeatureKernel
from gpntk.kernels._engine import (
    BlockedComputation,
    cross_blocks,
    cross_in_steps,
    default_block_size,
    gram_blocks,
    gram_in_steps,
)
from gpntk.networks import AbstractNetwork, KernelState
from gpntk.networks._network import variance_parameter


class AbstractNetworkKernel(AbstractFeatureKernel):
    net: AbstractNetwork
    variance: Any | None

    def __init__(
        self,
        net: AbstractNetwork,
        variance: Any | None = None,
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        self.net = _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
        self.variance = None if variance is None else variance_parameter("variance", variance, may_vanish=False)
        super().__init__(active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine)

    @abc.abstractmethod
    def select(self, state: KernelState) -> Float[Array, "..."]:
        """Which of the two kernels this is."""

    @property
    def sites_per_pair(self):
        return self.net.domain.sites_per_pair

    def features(self, x):
        x = self.slice_input(x)
        return self.net.features(_checks.inputs("x", x, self.net.n_features))

    def check_features(self, features):
        self.net.check_moments(features)

    def pair(self, features1, features2):
        return self._scaled(self.select(self.net.kernels(features1, features2)))

    def diagonal_values(self, features):
        return self._scaled(self.select(self.net.diagonal(features)))

    def _scaled(self, values):
        return values if self.variance is None else jnp.asarray(val(self.variance), values.dtype) * values


class NNGP(AbstractNetworkKernel):
    """The covariance of the outputs of an infinitely wide network at initialisation, a GPJax kernel.

    Used as the prior of a GPJax model, it makes Bayesian inference over infinitely wide networks (Neal 1996;
    Lee et al. 2018, arXiv:1711.00165). `weight_variance` and `bias_variance` of the architecture are trained by
    `gpjax.fit` like any other hyperparameters.

    Args:
        net: the architecture.
        variance: output scale, a positive trainable parameter; `None` means there is none.
        active_dims: columns of the inputs that the kernel sees, as for any GPJax kernel.
        n_dims: number of those columns, as for any GPJax kernel.
        compute_engine: how matrices are evaluated.
    """

    def select(self, state):
        return state.nngp


class NTK(AbstractNetworkKernel):
    """The neural tangent kernel of an infinitely wide network, a GPJax kernel.

    It is the kernel that gradient flow regresses with (Jacot, Gabriel & Hongler 2018, arXiv:1806.07572): see
    `gpntk.NTKRegressor`. As the prior of a GPJax model it gives a different, useful Gaussian process whose
    posterior mean is that of the trained network. Arguments are those of `NNGP`.
    """

    def select(self, state):
        return state.ntk


def nngp_and_ntk(
    net: AbstractNetwork,
    x1: Float[Array, "N1 D"],
    x2: Float[Array, "N2 D"] | None = None,
    *,
    progress: bool = False,
) -> tuple[Float[Array, "N1 N2"], Float[Array, "N1 N2"]]:
    """Both kernels of an architecture in one pass.

    Args:
        net: the architecture.
        x1: inputs, one per row; images and signals flattened.
        x2: further inputs; `None` means `x1`, of which only one triangle is computed.
        progress: whether to show a progress bar; there is none under `jit` and `grad`.

    Returns:
        NNGP and NTK matrices.

    Raises:
        ValueError: if inputs are not finite 2-D arrays of matching dimension, or if a Gaussian moment of the
            activation diverges.
    """
    _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
    x1 = _checks.inputs("x1", x1, net.n_features)
    block_size = default_block_size(net.domain.sites_per_pair)
    features1 = _features(net, x1)
    net.check_moments(features1)
    if x2 is None:
        if progress and not _checks.is_traced(net, features1):
            return tuple(gram_in_steps(net.kernels, net.diagonal, features1, block_size))
        return tuple(_gram(net, features1, block_size))
    x2 = _checks.inputs("x2", x2, net.n_features)
    _checks.equal_columns(x1=x1, x2=x2)
    features2 = _features(net, x2)
    net.check_moments(features2)
    if progress and not _checks.is_traced(net, features1, features2):
        return tuple(cross_in_steps(net.kernels, features1, features2, block_size))
    return tuple(_cross(net, features1, features2, block_size))


@eqx.filter_jit
def _features(net, x):
    return net.features(x)


@eqx.filter_jit
def _gram(net, features, block_size):
    return gram_blocks(net.kernels, net.diagonal, features, block_size)


@eqx.filter_jit
def _cross(net, features1, features2, block_size):
    return cross_blocks(net.kernels, features1, features2, block_size)
