"""The NNGP and the NTK of an architecture, as GPJax kernels and as plain functions."""

import abc
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gpjax.kernels.computations import AbstractKernelComputation
from gpjax.parameters import val
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._features import checked_features
from gpntk.finite_width._pairs import (
    InputFeatures,
    check_inputs,
    input_features,
    pair_statistics,
    warn_if_narrow,
)
from gpntk.kernels._base import AbstractFeatureKernel
from gpntk.kernels._engine import BlockedComputation
from gpntk.kernels._tiles import default_grouping
from gpntk.networks import MLP, AbstractNetwork, KernelState
from gpntk.networks._network import NetworkFeatures, variance_parameter

# Arrays over pairs of inputs that the recursion at order 1/n holds at a time.
_ARRAYS_PER_PAIR = 64


class WidthFeatures(NamedTuple):
    """What kernels of networks of finite width need to know of each input."""

    network: NetworkFeatures
    inputs: InputFeatures


class AbstractNetworkKernel(AbstractFeatureKernel):
    """What NNGP and NTK share: all but which of the two kernels of an architecture they select."""

    net: AbstractNetwork
    variance: Any | None
    width: float | None = eqx.field(static=True)

    def __init__(
        self,
        net: AbstractNetwork,
        variance: Any | None = None,
        width: float | None = None,
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        self.net = _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
        self.variance = None if variance is None else variance_parameter("variance", variance, may_vanish=False)
        self.width = None if width is None else _checks.real_number("width", width, minimum=1.0, infinite=True)
        if width is not None:
            _checks.instance("net", net, MLP, "a gpntk.MLP where `width` is given")
        super().__init__(active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine)

    @abc.abstractmethod
    def select(self, state: KernelState) -> Float[Array, "..."]:
        """Which of the two kernels this is."""

    @property
    def _mlp(self) -> MLP:
        """The network where `width` is given."""
        return cast(MLP, self.net)

    @property
    def sites_per_pair(self):
        return self.net.domain.sites_per_pair if self.width is None else _ARRAYS_PER_PAIR

    def features(self, x):
        x = self.slice_input(x)
        features = self.net.features(_checks.inputs("x", x, self.net.n_features))
        if self.width is None:
            return features
        return WidthFeatures(features, input_features(self._mlp, features.embedded.variance))

    def check_features(self, features):
        if self.width is None:
            self.net.check_features(features)
            return
        self.net.check_features(features.network)
        check_inputs(self._mlp, features.inputs)
        if not _checks.is_traced(features):
            outputs = features.inputs.layers
            warn_if_narrow(self.width, np.asarray(outputs.K[:, -1]), np.asarray(outputs.V[:, -1]))

    def pair(self, features1, features2):
        if self.width is None:
            return self._scaled(self.select(self.net.kernels(features1, features2)))
        covariance = self.net.domain.covariance(features1.network.embedded, features2.network.embedded)
        pairs = pair_statistics(self._mlp, covariance, features1.inputs, features2.inputs)
        return self._scaled(self.select(self._corrected(pairs)))

    def diagonal_values(self, features):
        if self.width is None:
            return self._scaled(self.select(self.net.diagonal(features)))
        inputs = jax.tree.map(lambda leaf: leaf[:, -1], features.inputs.layers)
        return self._scaled(self.select(self._corrected(inputs)))

    def _corrected(self, statistics) -> KernelState:
        return KernelState(
            statistics.K + statistics.K1 / self.width, statistics.theta + statistics.theta1 / self.width
        )

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
        width: width of the last hidden layer of a multilayer perceptron: the kernel becomes the mean over networks
            of that width to order 1/width, $K + K_1/n$. A fixed number, not trained. Warns where the width is too
            small for an expansion in 1/width, and names the smallest usable one. `None` means infinite width.
        active_dims: columns of the inputs that the kernel sees, as for any GPJax kernel.
        n_dims: number of those columns, as for any GPJax kernel.
        compute_engine: how matrices are evaluated.

    Raises:
        ValueError: for a `variance` that is not positive and a `width` below 1; when evaluated, for inputs that do
            not fit the architecture or for which Gaussian moments of the activation diverge.
        TypeError: if `net` is not an architecture (with a `width`, not a multilayer perceptron), and for other
            arguments of the wrong kind.
    """

    def __init__(  # spelled out as in `gpntk.MLP`
        self,
        net: AbstractNetwork,
        variance: Any | None = None,
        width: float | None = None,
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        super().__init__(
            net, variance, width, active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine
        )

    def select(self, state):
        return state.nngp


class NTK(AbstractNetworkKernel):
    r"""The neural tangent kernel of an infinitely wide network, a GPJax kernel.

    It is the kernel that gradient flow regresses with (Jacot, Gabriel & Hongler 2018, arXiv:1806.07572): see
    `gpntk.NTKRegressor`. As the prior of a GPJax model it gives a different, useful Gaussian process whose
    posterior mean is that of the trained network. Arguments are those of `NNGP`; with a `width` it is the mean of
    the empirical NTK at initialisation, $\Theta + \Theta_1/n$.
    """

    def __init__(  # spelled out as in `gpntk.MLP`
        self,
        net: AbstractNetwork,
        variance: Any | None = None,
        width: float | None = None,
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        super().__init__(
            net, variance, width, active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine
        )

    def select(self, state):
        return state.ntk


class _BothKernels(eqx.Module):
    """Both kernels of an architecture as one for the engine, whose values are two."""

    net: AbstractNetwork

    @property
    def sites_per_pair(self):
        return self.net.domain.sites_per_pair

    @property
    def grouping(self):
        return default_grouping(self.sites_per_pair)

    def pair(self, features1, features2):
        return self.net.kernels(features1, features2)

    def diagonal_values(self, features):
        return self.net.diagonal(features)


def nngp_and_ntk(
    net: AbstractNetwork,
    x1: Float[ArrayLike, "N1 D"],
    x2: Float[ArrayLike, "N2 D"] | None = None,
    *,
    compute_engine: BlockedComputation = BlockedComputation(),  # noqa: B008 (immutable)
) -> tuple[Float[Array, "N1 N2"], Float[Array, "N1 N2"]]:
    """Both kernels of an architecture in one pass.

    Args:
        net: the architecture.
        x1: inputs, one per row; images and signals flattened.
        x2: further inputs; `None` means `x1`, of which only one triangle is computed.
        compute_engine: how matrices are evaluated: with a progress bar, on several devices.

    Returns:
        NNGP and NTK matrices.

    Raises:
        ValueError: if inputs are not finite 2-D arrays of matching dimension, if a Gaussian moment of the
            activation diverges, if kernel values overflow, or if they do not fit into memory.
        TypeError: if `net` is not an architecture or `compute_engine` not a `BlockedComputation`.
    """
    _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
    _checks.instance(
        "compute_engine", compute_engine, BlockedComputation, "an engine such as BlockedComputation()"
    )
    kernel, x1 = _BothKernels(net), _checks.inputs("x1", x1, net.n_features)
    features1 = checked_features(net, x1)
    if x2 is None:
        return tuple(compute_engine.gram_of_features(kernel, features1))
    x2 = _checks.inputs("x2", x2, net.n_features)
    _checks.equal_columns(x1=x1, x2=x2)
    return tuple(compute_engine.cross_of_features(kernel, features1, checked_features(net, x2)))
