"""Convolutional networks on images, plain and over the rotations and reflections of the plane."""

import abc
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._products import einsum
from gpntk.activations import AbstractActivation, ReLU
from gpntk.groups import C4, D4, AbstractGroup
from gpntk.groups._planar import image_shape, planar_permutations, point_group, square_image_shape
from gpntk.networks._domains import AbstractDomain
from gpntk.networks._layers import Dense, Nonlinearity, Repeat
from gpntk.networks._network import NetworkFeatures
from gpntk.networks._planar_layers import Convolution, Flatten, Grid, GroupConvolution, PositionPool
from gpntk.networks._pooling_network import AbstractPoolingNetwork
from gpntk.networks._state import KernelState

_GROUPS = {"C4": C4, "D4": D4}
_PADDINGS = ("same", "valid", "circular")
_READOUTS = ("pool", "flatten")


class Images(AbstractDomain):
    r"""Images, in pairs: $K(t, u) = \frac1c \sum_c f_c(t) f'_c(u)$.

    Sites of one input are the T positions of a grid; sites of a pair are all (t, u), of shape (T, T), or (T,)
    where only $u = t$ is wanted.
    """

    input_shape: tuple[int, int, int] = eqx.field(static=True)
    grid: Grid = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)

    def embed(self, x):
        return self.grid.embed(self.signal(x)) / np.sqrt(self.input_shape[-1]).astype(x.dtype)

    def variance(self, embedded):
        return jnp.sum(embedded * embedded, -1)

    def covariance(self, embedded1, embedded2):
        return self._products("ntc,muc->nmtu", "ntc,mtc->nmt", embedded1, embedded2)

    def paired_covariance(self, embedded1, embedded2):
        return self._products("ntc,nuc->ntu", "ntc,ntc->nt", embedded1, embedded2)

    def _products(self, all_pairs, diagonal, embedded1, embedded2):
        formula = all_pairs if self.all_pairs else diagonal
        return einsum(formula, embedded1, embedded2)

    def align_left(self, leaf):
        return jnp.expand_dims(leaf, 2) if self.all_pairs else leaf

    def align_right(self, leaf):
        return jnp.expand_dims(leaf, 1) if self.all_pairs else leaf

    @property
    def sites_per_pair(self):
        return self.grid.size ** (2 if self.all_pairs else 1)

    def signal(self, x):
        return x.reshape(len(x), *self.input_shape)


class _AbstractPlanarNetwork(AbstractPoolingNetwork):
    """What plain and group-convolutional networks on images share: everything but the layers."""

    input_shape: eqx.AbstractVar[tuple[int, int, int]]
    filter_size: eqx.AbstractVar[int]
    padding: eqx.AbstractVar[str]
    readout: eqx.AbstractVar[str]

    __init__ = AbstractPoolingNetwork.__init__  # for type checkers, as in `MLP`

    @property
    @abc.abstractmethod
    def _fibre(self) -> str | None:
        """The name of the group of rotations, if any."""

    @property
    @abc.abstractmethod
    def _convolution(self) -> Convolution | GroupConvolution:
        """The convolution before every activation."""

    @property
    def domain(self):
        return Images(self.input_shape, self._grid, self._all_pairs)

    @property
    def body(self):
        last = PositionPool(self._grid) if self._all_pairs else Flatten(self._grid, self._fibre)
        return (Repeat((self._convolution, Nonlinearity(self.activation)), self.depth), last)

    @property
    def _grid(self) -> Grid:
        return Grid(*self.input_shape[:2], self.filter_size, self.padding, self.depth)

    @property
    def n_features(self):
        return int(np.prod(self.input_shape))

    @property
    def _all_pairs(self) -> bool:
        return self.readout == "pool"

    def arrange(self, kernel):
        outputs = self._grid.outputs
        return kernel[..., outputs[:, None], outputs]

    def check_unpooled(self):
        if not self._all_pairs:
            raise ValueError('`net` must have readout="pool" for unpooled kernels, got readout="flatten".')

    def is_invariant(self, group):
        # A rotation takes windows to windows, and only "same" padding with an even filter puts them elsewhere.
        windows_rotate = self.padding != "same" or self.filter_size % 2 == 1
        return windows_rotate and planar_group_name(group, self.input_shape) is not None

    def _checked_options(self, filter_size, padding, readout):
        """Constructor arguments that all networks on images share, checked."""
        filter_size = _checks.integer("filter_size", filter_size, minimum=1)
        padding = _checks.option("padding", padding, _PADDINGS)
        smallest = min(self.input_shape[:2])
        if padding == "valid" and smallest <= self.depth * (filter_size - 1):
            raise ValueError(
                f'`depth` times (`filter_size` - 1) must be below the image size {smallest} for "valid" padding, '
                f"got {self.depth} * {filter_size - 1}: no positions would be left."
            )
        return filter_size, padding, _checks.option("readout", readout, _READOUTS)


class CNN(_AbstractPlanarNetwork):
    r"""A convolutional network on images, followed by global average pooling or flattening, and a readout.

    $$z_{l+1}(t) = \sqrt{\tfrac{C_W}{n |S|}} \sum_{\tau \in S} W_{l+1}(\tau)\, \sigma(z_l(t + \tau))
      + \sqrt{C_b}\, b_{l+1}$$

    Kernels: Novak et al. (2019), arXiv:1810.05148; Arora et al. (2019), arXiv:1904.11955. With pooling they need
    the covariances of all pairs of positions, with flattening those of equal positions. The further arguments
    are those of `AbstractNetwork`; fan-in is filter area times channels.

    Args:
        input_shape: (H, W, C); inputs are images flattened in C order, channels last.
        depth: number of convolutions, and of activations.
        filter_size: height and width of the filters. Even filters reach further down and to the right.
        padding: "same" (with zeros, also divided by the full filter area), "valid" or "circular".
        readout: "pool" (the mean over positions) or "flatten".
        activation: see `AbstractNetwork`.
        weight_variance: see `AbstractNetwork`.
        bias_variance: see `AbstractNetwork`.
        readout_bias: see `AbstractNetwork`.
        width_ratios: see `AbstractNetwork`; widths are numbers of channels.

    Raises:
        ValueError: for bad shapes and options, or where "valid" padding leaves no position.
        TypeError: for arguments of the wrong kind.
    """

    input_shape: tuple[int, int, int] = eqx.field(static=True)
    filter_size: int = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    readout: str = eqx.field(static=True)

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        depth: int = 2,
        filter_size: int = 3,
        padding: str = "same",
        readout: str = "pool",
        activation: AbstractActivation = ReLU(),  # noqa: B008 (immutable)
        weight_variance: Any = 2.0,
        bias_variance: Any = 0.0,
        readout_bias: bool = True,
        width_ratios: tuple[float, ...] | None = None,
    ):
        super().__init__(depth, activation, weight_variance, bias_variance, readout_bias, width_ratios)
        self.input_shape = image_shape("input_shape", input_shape)
        self.filter_size, self.padding, self.readout = self._checked_options(filter_size, padding, readout)

    @property
    def _fibre(self):
        return None

    @property
    def _convolution(self):
        return Convolution(Dense(self.weight_variance, self.bias_variance), self._grid, self._all_pairs)


class PlanarGroupCNN(_AbstractPlanarNetwork):
    r"""A group-convolutional network over translations and the rotations (and reflections) of a square.

    A lifting convolution, group convolutions, and the mean over positions and rotations: outputs are invariant
    under C4 or D4. Cohen & Welling (2016), arXiv:1602.07576. Its kernels are those of the `CNN` with the same
    arguments, averaged over rotations of one input: filters that rotations map to themselves make
    $K_{(t,r),(t',r')}$ a function of $t$, $t'$ and $s = r' r^{-1}$, and every s a plain convolution of $f$
    and $f' \circ R_s$. Exact and far cheaper than the recursion on pairs of group elements.

    Args:
        group: "C4" or "D4".
        input_shape: (H, H, C); inputs are square images flattened in C order, channels last.
        depth: number of convolutions, the lifting one included, and of activations.
        filter_size: height and width of the filters, odd.
        padding: "same" (with zeros, also divided by the full filter area), "valid" or "circular".
        readout: "pool" (the mean over positions and rotations) or "flatten" (the mean over rotations, in the
            frame of each, with weights for every position).
        activation: see `AbstractNetwork`.
        weight_variance: see `AbstractNetwork`.
        bias_variance: see `AbstractNetwork`.
        readout_bias: see `AbstractNetwork`.
        width_ratios: see `AbstractNetwork`; widths are numbers of channels.

    Raises:
        ValueError: for bad shapes and options, even filters, images that are not square, or where "valid"
            padding leaves no position.
        TypeError: for arguments of the wrong kind.
    """

    group: str = eqx.field(static=True)
    input_shape: tuple[int, int, int] = eqx.field(static=True)
    filter_size: int = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    readout: str = eqx.field(static=True)

    def __init__(
        self,
        group: str = "C4",
        input_shape: tuple[int, int, int] | None = None,
        depth: int = 2,
        filter_size: int = 3,
        padding: str = "same",
        readout: str = "pool",
        activation: AbstractActivation = ReLU(),  # noqa: B008 (immutable)
        weight_variance: Any = 2.0,
        bias_variance: Any = 0.0,
        readout_bias: bool = True,
        width_ratios: tuple[float, ...] | None = None,
    ):
        super().__init__(depth, activation, weight_variance, bias_variance, readout_bias, width_ratios)
        self.group = _checks.option("group", group, _GROUPS)
        self.input_shape = square_image_shape("input_shape", input_shape)
        self.filter_size, self.padding, self.readout = self._checked_options(filter_size, padding, readout)
        if self.filter_size % 2 == 0:
            raise ValueError(
                f"`filter_size` must be odd, got {self.filter_size}: rotations by 90 degrees about a pixel do not "
                "map an even filter to itself, and the network would not be equivariant. FiniteGroupCNN takes any "
                "filters, for the rotations and translations of a torus."
            )

    @property
    def _fibre(self):
        return self.group

    @property
    def _convolution(self):
        dense = Dense(self.weight_variance, self.bias_variance)
        return GroupConvolution(dense, self._grid, self._all_pairs, self.group)

    # Every s is a network without rotations, between f and f' o R_s.

    def kernels(self, features1, features2):
        return self._mean_over_frames(partial(super().kernels, features1), features2)

    def paired_kernels(self, features1, features2):
        return self._mean_over_frames(partial(super().paired_kernels, features1), features2)

    def unpooled(self, features1, features2):
        frames = self._in_all_frames(partial(super().unpooled, features1), features2)
        return jax.tree.map(self._in_one_frame, frames)

    def _in_all_frames(self, kernels: Callable, features2: NetworkFeatures) -> KernelState:
        """Kernels of the first input and the second one in frame s, with a leading axis for s."""
        turned = np.tile(np.arange(self._grid.size), (point_group(self.group).order, 1))
        pixels = self._grid.pixels
        turned[:, pixels] = pixels[planar_permutations(self.group, self.input_shape[0])]

        def in_frame(positions):
            embedded, layers = jax.tree.map(
                lambda leaf: leaf[:, positions], (features2.embedded, features2.layers)
            )
            return kernels(features2._replace(embedded=embedded, layers=layers))

        # One frame after the other: all of them together would take |H| times the memory.
        return jax.lax.map(in_frame, turned)

    def _mean_over_frames(self, kernels: Callable, features2: NetworkFeatures) -> KernelState:
        return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), self._in_all_frames(kernels, features2))

    def _in_one_frame(self, kernel: Float[Array, "s N1 N2 P P"]) -> Float[Array, "N1 N2 s P P"]:
        """From K_s(t, u) to K(s, t, t') with u = R_s^-1 t'."""
        order, *_, positions = kernel.shape
        inverse = planar_permutations(self.group, math.isqrt(positions))[point_group(self.group).inverse]
        s, t = np.arange(order)[:, None, None], np.arange(positions)[:, None]
        return jnp.moveaxis(kernel, 0, 2)[:, :, s, t, inverse[:, None, :]]


def planar_group_name(group: AbstractGroup, input_shape: tuple[int, int, int]) -> str | None:
    """Which of C4 and D4 the group is, acting on images of the given shape; `None` if it is neither."""
    if input_shape[0] != input_shape[1]:
        return None
    return next((name for name, make in _GROUPS.items() if make(input_shape) == group), None)
