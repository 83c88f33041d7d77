"""Group-convolutional networks over finite groups."""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._products import einsum
from gpntk.activations import AbstractActivation, ReLU
from gpntk.groups import FiniteGroup
from gpntk.networks._domains import (
    AbstractDomain,
    PointFeatures,
    exact_at_coincidence,
    fingerprint,
    rows_and_columns,
)
from gpntk.networks._layers import AbstractLayer, Dense, Nonlinearity
from gpntk.networks._planar_layers import Pool
from gpntk.networks._pooling_network import AbstractPoolingNetwork
from gpntk.networks._state import KernelState

Supports = tuple[tuple[int, ...], ...]
"""The support of every layer: indices of points for the first one, of group elements for the others."""


class GroupSignals(AbstractDomain):
    r"""Signals on a set of points X, seen from every element of a group: patches $f(gx)$, $x \in S \subseteq X$.

    $$K(g, g') = \frac{1}{c|S|} \sum_{x \in S, c} f_c(g x) f'_c(g' x)$$

    Sites of one input are the elements g, sites of a pair are all (g, g'). On the support S = X this is a function
    of $g g'^{-1}$, and the variance is constant on the orbit: one input has no sites then, and sites of a pair
    are the elements $g g'^{-1}$.
    """

    group: FiniteGroup = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    support: tuple[int, ...] = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)

    def embed(self, x):
        patches = self.signal(x)
        scaled = patches / np.sqrt(patches.shape[-1]).astype(x.dtype)
        return PointFeatures(scaled, jnp.sum(scaled * scaled, -1), fingerprint(scaled), fingerprint(-scaled))

    def variance(self, embedded):
        return embedded.variance if self.all_pairs else embedded.variance[:, self.group.identity]

    def covariance(self, embedded1, embedded2):
        left, right = self._sides(embedded1, embedded2)
        formula = "ngd,mhd->nmgh" if self.all_pairs else "ngd,mhd->nmg"
        product = einsum(formula, left.x, right.x)
        return exact_at_coincidence(product, *rows_and_columns(*self._over_site_pairs(left, right)))

    def paired_covariance(self, embedded1, embedded2):
        left, right = self._sides(embedded1, embedded2)
        formula = "ngd,nhd->ngh" if self.all_pairs else "ngd,nhd->ng"
        product = einsum(formula, left.x, right.x)
        return exact_at_coincidence(product, *self._over_site_pairs(left, right))

    def _sides(self, embedded1: PointFeatures, embedded2: PointFeatures) -> tuple[PointFeatures, PointFeatures]:
        """Where all depends on g g'^-1, the second input is wanted at the identity alone."""
        if not self.all_pairs:
            embedded2 = jax.tree.map(lambda leaf: leaf[:, self.group.identity, None], embedded2)
        return embedded1, embedded2

    def _over_site_pairs(self, left: PointFeatures, right: PointFeatures) -> tuple[Any, Any]:
        """Features but for the patches themselves, in shapes that broadcast against (N, *sites of a pair)."""
        left, right = left._replace(x=None), right._replace(x=None)
        if not self.all_pairs:
            return left, right
        return jax.tree.map(lambda leaf: leaf[:, :, None], left), jax.tree.map(lambda leaf: leaf[:, None], right)

    def align_left(self, leaf):
        return jnp.expand_dims(leaf, 2 if self.all_pairs else 1)

    def align_right(self, leaf):
        return jnp.expand_dims(leaf, 1)

    @property
    def sites_per_pair(self):
        return self.group.order ** (2 if self.all_pairs else 1)

    def signal(self, x):
        points = x.reshape(len(x), self.group.points, self.channels)
        return points[:, self.group.permutations[:, self.support]].reshape(len(x), self.group.order, -1)


class SubsetConvolution(AbstractLayer):
    r"""A convolution over a finite group with a filter on the subset S, and a bias.

    $$[N f](g) = \sqrt{\tfrac{C_W}{n|S|}} \sum_{h \in S} \kappa(h) f(gh)$$

    Its kernels are those of a `Dense` layer after

    $$K(g, g') \leftarrow \frac{1}{|S|} \sum_{h \in S} K(gh, g'h).$$

    Where kernels depend on $g g'^{-1}$ only, the mean over h leaves them as they are.
    """

    dense: Dense
    group: FiniteGroup = eqx.field(static=True)
    subset: tuple[int, ...] = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)

    def transform_variance(self, variance):
        if self.all_pairs:
            variance = jnp.mean(variance[:, self._neighbours], axis=-1)
        return self.dense.transform_variance(variance)

    def propagate(self, state, features1, features2):
        if self.all_pairs:
            state = KernelState(*(self._mean(kernel) for kernel in state))
        return self.dense.propagate(state, features1, features2)

    def _mean(self, kernel: Float[Array, "... order order"]) -> Float[Array, "... order order"]:
        # One element of the subset at a time: all of them together would take |S| times the memory.
        shifted = (kernel[..., column[:, None], column] for column in self._neighbours.T)
        return functools.reduce(operator.add, shifted) / len(self.subset)

    def init(self, key, shape, widths):
        order, channels = shape
        return self.dense.init(key, (order, len(self.subset) * channels), widths)

    def apply(self, parameters, x):
        return self.dense.apply(parameters, x[:, self._neighbours].reshape(*x.shape[:2], -1))

    @property
    def _neighbours(self) -> np.ndarray:
        """The elements gh, of shape (order, |S|)."""
        return self.group.table[:, self.subset]


class FiniteGroupCNN(AbstractPoolingNetwork):
    r"""A group-convolutional network over a finite group acting on a set of points.

    $$[N_1 f](g) = \sqrt{\tfrac{C_W}{c|S_1|}} \sum_{x \in S_1} \kappa(x) f(gx), \qquad
      [N_{l+1} f](g) = \sqrt{\tfrac{C_W}{n|S_{l+1}|}} \sum_{h \in S_{l+1}} \kappa(h)\, \sigma([N_l f](gh))$$

    followed by the mean over the group and a readout, each with the biases of `AbstractNetwork`; outputs are
    invariant under the group. On full supports, kernels depend on $g g'^{-1}$ only: they are the dense ones
    pointwise in the group, and their mean is the orbit average of the kernels of an `MLP` with the same
    arguments. On smaller supports the kernels of all pairs $(g, g')$ are needed.

    Args:
        group: the group and its action on the points.
        channels: number of channels of the inputs, which are flattened with channels last.
        depth: number of hidden layers, the lifting one included, and of activations.
        supports: `depth` entries, first the points that the lifting filter sees, then the group elements that
            the filter of each further layer sees, `None` for all of them. `None` means full supports.
        activation: see `AbstractNetwork`.
        weight_variance: see `AbstractNetwork`.
        bias_variance: see `AbstractNetwork`.
        readout_bias: see `AbstractNetwork`.
        width_ratios: see `AbstractNetwork`; widths are numbers of channels.

    Raises:
        ValueError: for supports that are not `depth` non-empty subsets, or a group that acts on signals with
            another number of channels.
        TypeError: for arguments of the wrong kind.
    """

    group: FiniteGroup = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    supports: Supports | None = eqx.field(static=True)

    def __init__(
        self,
        group: FiniteGroup,
        channels: int = 1,
        depth: int = 2,
        supports: Sequence[Sequence[int] | None] | None = None,
        activation: AbstractActivation = ReLU(),  # noqa: B008 (immutable)
        weight_variance: Any = 2.0,
        bias_variance: Any = 0.0,
        readout_bias: bool = True,
        width_ratios: tuple[float, ...] | None = None,
    ):
        super().__init__(depth, activation, weight_variance, bias_variance, readout_bias, width_ratios)
        self.group = _checks.instance("group", group, FiniteGroup, "a FiniteGroup")
        self.channels = _checks.integer("channels", channels, minimum=1)
        if group.channels not in (1, self.channels):
            raise ValueError(
                f"`channels` must be {group.channels}, which is what the group acts on, got {self.channels}."
            )
        self.supports = _checked_supports(supports, group, self.depth)

    @property
    def domain(self):
        return GroupSignals(self.group, self.channels, self._subsets[0], self.supports is not None)

    @property
    def body(self):
        dense, activation = Dense(self.weight_variance, self.bias_variance), Nonlinearity(self.activation)
        all_pairs = self.supports is not None
        layers = [dense, activation]
        for subset in self._subsets[1:]:
            layers += [SubsetConvolution(dense, self.group, subset, all_pairs), activation]
        return (*layers, Pool(*((1, 2) if all_pairs else (0, 1))))

    @property
    def n_features(self):
        return self.group.points * self.channels

    @property
    def _subsets(self) -> Supports:
        if self.supports is not None:
            return self.supports
        return _full_supports(self.group, self.depth)

    def is_invariant(self, group):
        return group == self.group


def _full_supports(group: FiniteGroup, depth: int) -> Supports:
    return (tuple(range(group.points)), *(tuple(range(group.order)),) * (depth - 1))


def _checked_supports(supports: Any, group: FiniteGroup, depth: int) -> Supports | None:
    """Supports as sorted tuples of indices; `None` if all of them are full."""
    if supports is None:
        return None
    full = _full_supports(group, depth)
    if not isinstance(supports, Sequence) or len(supports) != depth:
        raise ValueError(
            f"`supports` must be None or have {depth} entries, the points of the lifting filter and the group "
            f"elements of each further filter, got {supports!r}."
        )
    checked = []
    for layer, (support, everything) in enumerate(zip(supports, full, strict=True)):
        indices = everything if support is None else support
        if not isinstance(indices, Iterable):
            raise TypeError(f"`supports[{layer}]` must be a sequence of integers or None, got {support!r}.")
        subset = tuple(sorted(_checks.integer(f"supports[{layer}]", i, minimum=0) for i in indices))
        if not subset or len(set(subset)) != len(subset) or subset[-1] >= len(everything):
            raise ValueError(
                f"`supports[{layer}]` must be a non-empty set of different integers below {len(everything)}, "
                f"got {support!r}."
            )
        checked.append(subset)
    return None if tuple(checked) == full else tuple(checked)
