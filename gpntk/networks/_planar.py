"""Convolutional networks on images, plain and over the rotations and reflections of the plane."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.activations import AbstractActivation, ReLU
from gpntk.groups import C4, D4, AbstractGroup
from gpntk.groups._planar import image_shape, planar_permutations, point_group, square_image_shape
from gpntk.networks._domains import AbstractDomain
from gpntk.networks._layers import Dense, Nonlinearity
from gpntk.networks._planar_layers import Convolution, Flatten, GroupConvolution, Pool
from gpntk.networks._pooling_network import AbstractPoolingNetwork

_GROUPS = {"C4": C4, "D4": D4}
_PADDINGS = ("same", "valid", "circular")
_READOUTS = ("pool", "flatten")


class Images(AbstractDomain):
    r"""Images, in pairs: $K_s(t, u) = \frac1c \sum_c f_c(t) f'_c(R_s u)$.

    Sites of one input are positions (H, W); sites of a pair are (s, t, u), of shape (order, H, W, H, W), or
    (order, H, W) where only $u = t$ is wanted. Without a group, s has length 1.
    """

    input_shape: tuple[int, int, int] = eqx.field(static=True)
    group: str | None = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)

    def embed(self, x):
        return self.signal(x) / np.sqrt(self.input_shape[-1]).astype(x.dtype)

    def variance(self, embedded):
        return jnp.sum(embedded * embedded, -1)

    def covariance(self, embedded1, embedded2):
        return self._products("nhwc,msxyc->nmshwxy", "nhwc,mshwc->nmshw", embedded1, embedded2)

    def paired_covariance(self, embedded1, embedded2):
        return self._products("nhwc,nsxyc->nshwxy", "nhwc,nshwc->nshw", embedded1, embedded2)

    def _products(self, all_pairs, diagonal, embedded1, embedded2):
        formula = all_pairs if self.all_pairs else diagonal
        return jnp.einsum(formula, embedded1, self._rotated(embedded2), precision=jax.lax.Precision.HIGHEST)

    def align_left(self, leaf):
        return jnp.expand_dims(leaf, (1, 4, 5) if self.all_pairs else 1)

    def align_right(self, leaf):
        rotated = self._rotated(leaf)
        return jnp.expand_dims(rotated, (2, 3)) if self.all_pairs else rotated

    def _rotated(self, leaf: Float[Array, "N h w ..."]) -> Float[Array, "N order h w ..."]:
        """A function of positions in all frames, f(R_s u); "valid" convolutions may have cropped it."""
        if self.group is None:
            return leaf[:, None]
        size, side = leaf.shape[:2]
        flat = leaf.reshape(size, side * side, *leaf.shape[3:])
        return flat[:, planar_permutations(self.group, side)].reshape(size, -1, side, side, *leaf.shape[3:])

    @property
    def sites_per_pair(self):
        positions = self.input_shape[0] * self.input_shape[1]
        order = 1 if self.group is None else point_group(self.group).order
        return order * positions ** (2 if self.all_pairs else 1)

    def signal(self, x):
        return x.reshape(len(x), *self.input_shape)


class _AbstractPlanarNetwork(AbstractPoolingNetwork):
    """What plain and group-convolutional networks on images share: everything but the layers."""

    input_shape: eqx.AbstractVar[tuple[int, int, int]]
    filter_size: eqx.AbstractVar[int]
    padding: eqx.AbstractVar[str]
    readout: eqx.AbstractVar[str]

    @property
    @abc.abstractmethod
    def _fibre(self) -> str | None:
        """The name of the group of rotations, if any."""

    @abc.abstractmethod
    def _convolution(self, index: int) -> Convolution | GroupConvolution:
        """The convolution before activation number `index`."""

    @property
    def domain(self):
        return Images(self.input_shape, self._fibre, self._all_pairs)

    @property
    def body(self):
        activation = Nonlinearity(self.activation)
        hidden = [layer for index in range(self.depth) for layer in (self._convolution(index), activation)]
        last = Pool(input_axes=2, pair_axes=5) if self._all_pairs else Flatten(self._fibre)
        return (*hidden, last)

    @property
    def n_features(self):
        return int(np.prod(self.input_shape))

    @property
    def _all_pairs(self) -> bool:
        return self.readout == "pool"

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

    def _convolution(self, index):
        dense = Dense(self.weight_variance, self.bias_variance)
        return Convolution(dense, self.filter_size, self.padding, self._all_pairs)

    def arrange(self, kernel):
        return _flat_positions(kernel)[:, :, 0]


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
                "map an even filter to itself, and the network would not be equivariant."
            )

    @property
    def _fibre(self):
        return self.group

    def _convolution(self, index):
        dense = Dense(self.weight_variance, self.bias_variance)
        lifts = index == 0
        return GroupConvolution(dense, self.filter_size, self.padding, self._all_pairs, self.group, lifts)

    def arrange(self, kernel):
        # K_s(t, u) becomes K(s, t, t') with u = R_s^-1 t'.
        side, flat = kernel.shape[-1], _flat_positions(kernel)
        order, positions = flat.shape[2:4]
        inverse = planar_permutations(self.group, side)[point_group(self.group).inverse]
        s, t = np.arange(order)[:, None, None], np.arange(positions)[:, None]
        return flat[:, :, s, t, inverse[:, None, :]]


def planar_group_name(group: AbstractGroup, input_shape: tuple[int, int, int]) -> str | None:
    """Which of C4 and D4 the group is, acting on images of the given shape; `None` if it is neither."""
    if input_shape[0] != input_shape[1]:
        return None
    return next((name for name, make in _GROUPS.items() if make(input_shape) == group), None)


def _flat_positions(kernel: Float[Array, "N1 N2 s h w x y"]) -> Float[Array, "N1 N2 s h*w x*y"]:
    *leading, height, width, _, _ = kernel.shape
    return kernel.reshape(*leading, height * width, height * width)
