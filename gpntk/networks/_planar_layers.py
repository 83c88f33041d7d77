"""Convolutions in the plane, and pooling: how they act on kernels, and finite layers."""

import abc
import dataclasses
import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk._products import matmul
from gpntk.groups._planar import planar_permutations, point_group
from gpntk.networks._layers import AbstractLayer, Dense
from gpntk.networks._state import KernelState


@dataclasses.dataclass(frozen=True)
class Grid:
    """The positions of an image as kernels hold them: in one row, with room between lines for what filters see.

    A joint shift of two positions is then the same shift along two axes, however many lines it crosses, and sums
    over filters run over long contiguous stretches. Margins between lines hold numbers without meaning.
    "valid" convolutions are the "same" ones with fewer outputs, which is what `outputs` leaves of the positions.

    Args:
        height: number of lines.
        width: number of pixels in a line.
        filter_size: height and width of the filters.
        padding: "same" (with zeros), "valid" or "circular".
        convolutions: how many convolutions there are.
    """

    height: int
    width: int
    filter_size: int
    padding: str
    convolutions: int

    @property
    def margins(self) -> tuple[int, int]:
        """How far a filter reaches to the left and right of its centre; even ones reach further to the right."""
        return (self.filter_size - 1) // 2, self.filter_size // 2

    @property
    def stride(self) -> int:
        """The distance between lines. Neighbouring lines share a margin of zeros, but not one of pixels."""
        left, right = self.margins
        return self.width + right + (left if self.padding == "circular" else 0)

    @property
    def size(self) -> int:
        """The number of positions, those in margins included."""
        return self.height * self.stride

    @property
    def pixels(self) -> np.ndarray:
        """Where the pixels of the image are, in C order."""
        return np.arange(self.size).reshape(self.height, self.stride)[:, : self.width].ravel()

    @property
    def outputs(self) -> np.ndarray:
        """Which of the pixels the last convolution has outputs for, as indices of positions."""
        first, (height, width) = 0, (self.height, self.width)
        if self.padding == "valid":
            first, lost = (self.convolutions * reach for reach in (self.margins[0], self.filter_size - 1))
            height, width = height - lost, width - lost
        pixels = self.pixels.reshape(self.height, self.width)
        return pixels[first : first + height, first : first + width].ravel()

    def embed(self, images: Float[Array, "N H W c"]) -> Float[Array, "N T c"]:
        """Images as rows of positions, with zeros in the margins."""
        margin = self.stride - self.width
        padded = jnp.pad(images, ((0, 0), (0, 0), (0, margin), (0, 0)))
        return padded.reshape(len(images), self.size, images.shape[-1])

    def mean(self, x: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
        """The mean over the outputs, on the last `axes` axes."""
        return _mean_over_last(x, axes, self.outputs)

    def filter_mean(self, x: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
        """The mean over the filter around every position, which moves along the last `axes` axes together."""
        if self.filter_size == 1:
            return x
        x = _window_sum(self._surrounded(x, axes), axes, self.filter_size, self.stride)
        x = _window_sum(self._cleared(x, axes), axes, self.filter_size, 1)
        # What follows the last line is missing where margins are not shared.
        x = _pad(x, axes, 0, self.size - x.shape[-1])
        return x / self.filter_size**2

    def _surrounded(self, x, axes: int):
        """All positions with what filters see before the first and behind the last of them."""
        left, right = self.margins
        if self.padding != "circular":
            return _pad(x, axes, left * (self.stride + 1), right * (self.stride + 1))
        lines, columns = np.arange(-left, self.height + right), np.arange(-left, self.stride - left)
        wrapped = lines[:, None] % self.height * self.stride + columns % self.width
        for axis in range(-axes, 0):
            x = jnp.take(x, wrapped.ravel(), axis, mode="clip")
        return x

    def _cleared(self, x, axes: int):
        """Zeros in the margins between lines; adding up whole lines before has not moved them."""
        left, right = self.margins
        if self.padding == "circular":
            return x
        inside = np.zeros(left + self.size + right, x.dtype)
        inside[left + self.pixels] = 1.0
        for axis in range(axes):
            x = x * inside.reshape(-1, *(1,) * axis)
        return x


class _AbstractConvolution(AbstractLayer):
    r"""What all convolutions in the plane do to kernels: a mean over the filter, then a `Dense` layer.

    $$K(t, u) \leftarrow C_b + \frac{C_W}{|S|} \sum_{\tau \in S} K(t + \tau, u + \tau)$$

    and the same for the NTK. Positions are those of a `Grid`: the last axis for one input, and for a pair the last
    two, or the last one where only $u = t$ is wanted.
    """

    dense: eqx.AbstractVar[Dense]
    grid: eqx.AbstractVar[Grid]
    all_pairs: eqx.AbstractVar[bool]

    def transform_variance(self, variance):
        return self.dense.transform_variance(self.grid.filter_mean(variance, 1))

    def propagate(self, state, features1, features2):
        axes = 2 if self.all_pairs else 1
        state = KernelState(*(self.grid.filter_mean(kernel, axes) for kernel in state))
        return self.dense.propagate(state, features1, features2)

    def _padded(self, x: Float[Array, "N H W ..."]) -> Float[Array, "N H W ..."]:
        """A signal of a finite network, padded such that a "valid" convolution is what remains to do."""
        if self.grid.padding == "valid":
            return x
        mode = "wrap" if self.grid.padding == "circular" else "constant"
        spatial = (self.grid.margins,) * 2
        return jnp.pad(x, ((0, 0), *spatial, *((0, 0),) * (x.ndim - 3)), mode=mode)

    def _sample(self, key, shape, fan_in, width):
        """Filters for `fan_in` (numbers of rotations and channels), and the spatial shape of the outputs."""
        size = self.grid.filter_size
        lost = size - 1 if self.grid.padding == "valid" else 0
        return self.dense.sample(key, (size, size, *fan_in, width)), tuple(n - lost for n in shape[:2])

    @abc.abstractmethod
    def apply(self, parameters, x): ...


class Convolution(_AbstractConvolution):
    """A convolution of images, (N, H, W, channels)."""

    dense: Dense
    grid: Grid = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)

    def init(self, key, shape, widths):
        width = next(widths)
        parameters, positions = self._sample(key, shape, shape[2:], width)
        return parameters, (*positions, width)

    def apply(self, parameters, x):
        products = _correlate(self._padded(x), parameters["weight"])
        return self.dense.scale_and_shift(products, self.grid.filter_size**2 * x.shape[-1], parameters)


class GroupConvolution(_AbstractConvolution):
    r"""Lifting to, and convolution over, the group of translations and C4 or D4.

    Lifting takes images (N, H, W, channels) to signals on the group (N, H, W, order, channels),

    $$[N_1 f](t, r) = \sqrt{\tfrac{C_W}{c|S|}} \sum_{x \in S} \kappa(x) f(t + R_r x), \qquad
      [N f](t, r) = \sqrt{\tfrac{C_W}{c|S||H|}} \sum_{\tau \in S, \rho \in H} \kappa(\tau, \rho)
      f(t + R_r \tau, r\rho),$$

    Cohen & Welling (2016), arXiv:1602.07576, eqs. (10) and (11). The filter must be mapped to itself by the
    rotations, so its size is odd. Then kernels depend on $(t, t', s = r' r^{-1})$ only and, with
    $u = R_s^{-1} t'$, every $s$ is a plain convolution.
    """

    dense: Dense
    grid: Grid = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)
    group: str = eqx.field(static=True)

    def init(self, key, shape, widths):
        width = next(widths)
        parameters, positions = self._sample(key, shape, shape[2:], width)
        return parameters, (*positions, point_group(self.group).order, width)

    def apply(self, parameters, x):
        # Rotations become channels, and the group convolution one convolution with all rotated filters.
        filters = self._rotated(parameters["weight"])
        *window, fan_in, order, outputs = filters.shape
        signal = self._padded(x.reshape(*x.shape[:3], fan_in))
        products = _correlate(signal, filters.reshape(*window, fan_in, order * outputs))
        products = products.reshape(*products.shape[:3], order, outputs)
        return self.dense.scale_and_shift(products, self.grid.filter_size**2 * fan_in, parameters)

    def _rotated(self, weight: Float[Array, "k k ... c n"]) -> Float[Array, "k k inputs order n"]:
        r"""The filter as every r sees it, $\kappa(R_r^{-1}\tau, r^{-1}q)$ at position $\tau$ and rotation $q$."""
        group = point_group(self.group)
        size, (channels, outputs) = self.grid.filter_size, weight.shape[-2:]
        positions = planar_permutations(self.group, size)[group.inverse]
        lifts = weight.ndim == 4
        fibre = np.zeros((group.order, 1), int) if lifts else group.table[group.inverse]
        flat = weight.reshape(size * size, -1, channels, outputs)
        rotated = flat[positions[:, :, None], fibre[:, None, :]]
        return jnp.moveaxis(rotated, 0, -2).reshape(size, size, -1, group.order, outputs)


class _AbstractPool(AbstractLayer):
    """A mean, at finite width over all axes between those of inputs and of channels."""

    def init(self, key, shape, widths):
        return {}, shape[-1:]

    def apply(self, parameters, x):
        return jnp.mean(x, tuple(range(1, x.ndim - 1)))


class Pool(_AbstractPool):
    """The mean over all sites."""

    input_axes: int = eqx.field(static=True)
    pair_axes: int = eqx.field(static=True)

    def transform_variance(self, variance):
        # The variance of a mean is not a function of variances: this upper bound is exact for constant signals.
        return _mean_over_last(variance, self.input_axes), None

    def propagate(self, state, features1, features2):
        return KernelState(*(_mean_over_last(kernel, self.pair_axes) for kernel in state))


class PositionPool(_AbstractPool):
    """The mean over positions (and rotations)."""

    grid: Grid = eqx.field(static=True)

    def transform_variance(self, variance):
        # An upper bound, as in `Pool`.
        return self.grid.mean(variance, 1), None

    def propagate(self, state, features1, features2):
        return KernelState(*(self.grid.mean(kernel, 2) for kernel in state))


class Flatten(AbstractLayer):
    """Positions become channels; signals on C4 or D4 are averaged over the group first.

    To kernels this is the mean over the diagonal $u = t$ (and over the group). With a group, the position t of
    the flattened signal is the mean of the signal over the orbit $(R_r t, r)$.
    """

    grid: Grid = eqx.field(static=True)
    group: str | None = eqx.field(static=True)

    def transform_variance(self, variance):
        return self.grid.mean(variance, 1), None

    def propagate(self, state, features1, features2):
        return KernelState(*(self.grid.mean(kernel, 1) for kernel in state))

    def init(self, key, shape, widths):
        return {}, (shape[0] * shape[1] * shape[-1],)

    def apply(self, parameters, x):
        if self.group is not None:
            size, side, _, order, channels = x.shape
            x = x.reshape(size, side * side, order, channels)
            rotations = np.arange(order)
            orbits = x[:, planar_permutations(self.group, side), rotations[:, None]]
            x = jnp.mean(orbits, axis=1)
        return x.reshape(len(x), -1)


def _window_sum(x: Float[Array, "..."], axes: int, count: int, step: int) -> Float[Array, "..."]:
    """Sums of `count` values that are `step` apart on the last `axes` axes at the same time."""
    size = x.shape[-1] - (count - 1) * step
    starts = range(0, count * step, step)
    return functools.reduce(operator.add, (x[(..., *(slice(start, start + size),) * axes)] for start in starts))


def _pad(x: Float[Array, "..."], axes: int, before: int, behind: int) -> Float[Array, "..."]:
    """Zeros before and behind, on the last `axes` axes."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - axes) + [(before, behind)] * axes)


def _mean_over_last(x: Float[Array, "..."], axes: int, positions: np.ndarray | slice = slice(None)):
    """The mean over the last `axes` axes, of all entries or of those at some positions on every axis.

    A product with a vector, axis by axis: partial sums keep single precision accurate over a million sites, and
    XLA's CPU backend would take the layers before a sum into it, one copy of every constant for each site.
    """
    for _ in range(axes):
        chosen = np.zeros(x.shape[-1], x.dtype)
        chosen[positions] = 1.0
        x = matmul(x, chosen) / chosen.sum()
    return x


def _correlate(x: Float[Array, "N H W c"], weight: Float[Array, "k k c n"]) -> Float[Array, "N h w n"]:
    return jax.lax.conv_general_dilated(
        x,
        weight,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
