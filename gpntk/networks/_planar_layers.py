"""Convolutions in the plane, and pooling: how they act on kernels, and finite layers."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gpntk.groups._planar import planar_permutations, point_group
from gpntk.networks._layers import AbstractLayer, Dense
from gpntk.networks._state import KernelState


class _AbstractConvolution(AbstractLayer):
    r"""What all convolutions in the plane do to kernels: a mean over the filter, then a `Dense` layer.

    $$K(t, u) \leftarrow C_b + \frac{C_W}{|S|} \sum_{\tau \in S} K(t + \tau, u + \tau)$$

    and the same for the NTK. Positions of one input are its last two axes; those of a pair are the last four,
    (height, width) of the first and of the second input, or the last two where only $u = t$ is wanted.
    """

    dense: eqx.AbstractVar[Dense]
    filter_size: eqx.AbstractVar[int]
    padding: eqx.AbstractVar[str]
    all_pairs: eqx.AbstractVar[bool]

    def transform_variance(self, variance):
        return self.dense.transform_variance(self._filter_mean(variance, ((-2,), (-1,))))

    def propagate(self, state, features1, features2):
        axes = ((-4, -2), (-3, -1)) if self.all_pairs else ((-2,), (-1,))
        state = KernelState(*(self._filter_mean(kernel, axes) for kernel in state))
        return self.dense.propagate(state, features1, features2)

    def _filter_mean(self, x: Float[Array, "..."], directions) -> Float[Array, "..."]:
        # One direction after the other, and in the same order for variances and kernels: rounding is the same.
        for axes in directions:
            x = _window_sum(x, axes, self.filter_size, self.padding)
        return x / self.filter_size**2

    def _padded(self, x: Float[Array, "N H W ..."]) -> Float[Array, "N H W ..."]:
        """A signal of a finite network, padded such that a "valid" convolution is what remains to do."""
        if self.padding == "valid":
            return x
        mode = "wrap" if self.padding == "circular" else "constant"
        spatial = (_margins(self.filter_size),) * 2
        return jnp.pad(x, ((0, 0), *spatial, *((0, 0),) * (x.ndim - 3)), mode=mode)

    @abc.abstractmethod
    def apply(self, parameters, x): ...


class Convolution(_AbstractConvolution):
    """A convolution of images, (N, H, W, channels)."""

    dense: Dense
    filter_size: int = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)

    def init(self, key, shape, widths):
        *positions, channels = shape
        width = next(widths)
        window = (self.filter_size, self.filter_size)
        parameters = self.dense.sample(key, (*window, channels, width))
        return parameters, (*_output_size(positions, self), width)

    def apply(self, parameters, x):
        products = _correlate(self._padded(x), parameters["weight"])
        return self.dense.scale_and_shift(products, self.filter_size**2 * x.shape[-1], parameters)


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
    filter_size: int = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    all_pairs: bool = eqx.field(static=True)
    group: str = eqx.field(static=True)
    lifts: bool = eqx.field(static=True)

    def init(self, key, shape, widths):
        height, width, channels = shape[0], shape[1], shape[-1]
        n_outputs, order = next(widths), point_group(self.group).order
        fibre = () if self.lifts else (order,)
        parameters = self.dense.sample(key, (self.filter_size, self.filter_size, *fibre, channels, n_outputs))
        return parameters, (*_output_size((height, width), self), order, n_outputs)

    def apply(self, parameters, x):
        # Rotations become channels, and the group convolution one convolution with all rotated filters.
        filters = self._rotated(parameters["weight"])
        *window, fan_in, order, outputs = filters.shape
        signal = self._padded(x.reshape(*x.shape[:3], fan_in))
        products = _correlate(signal, filters.reshape(*window, fan_in, order * outputs))
        products = products.reshape(*products.shape[:3], order, outputs)
        return self.dense.scale_and_shift(products, self.filter_size**2 * fan_in, parameters)

    def _rotated(self, weight: Float[Array, "k k ... c n"]) -> Float[Array, "k k inputs order n"]:
        r"""The filter as every r sees it, $\kappa(R_r^{-1}\tau, r^{-1}q)$ at position $\tau$ and rotation $q$."""
        group = point_group(self.group)
        size, (channels, outputs) = self.filter_size, weight.shape[-2:]
        positions = planar_permutations(self.group, size)[group.inverse]
        fibre = np.zeros((group.order, 1), int) if self.lifts else group.table[group.inverse]
        flat = weight.reshape(size * size, -1, channels, outputs)
        rotated = flat[positions[:, :, None], fibre[:, None, :]]
        return jnp.moveaxis(rotated, 0, -2).reshape(size, size, -1, group.order, outputs)


class Pool(AbstractLayer):
    """The mean over all sites: positions, pairs of them, rotations.

    At finite width it is the mean over all axes between those of inputs and of channels.
    """

    input_axes: int = eqx.field(static=True)
    pair_axes: int = eqx.field(static=True)

    def transform_variance(self, variance):
        # The variance of a mean is not a function of variances: this upper bound is exact for constant signals.
        return _mean_over_last(variance, self.input_axes), None

    def propagate(self, state, features1, features2):
        return KernelState(*(_mean_over_last(kernel, self.pair_axes) for kernel in state))

    def init(self, key, shape, widths):
        return {}, shape[-1:]

    def apply(self, parameters, x):
        return jnp.mean(x, tuple(range(1, x.ndim - 1)))


class Flatten(AbstractLayer):
    """Positions become channels; signals on C4 or D4 are averaged over the group first.

    To kernels this is the mean over the diagonal $u = t$ (and over the group). With a group, the position t of
    the flattened signal is the mean of the signal over the orbit $(R_r t, r)$.
    """

    group: str | None = eqx.field(static=True)

    def transform_variance(self, variance):
        return _mean_over_last(variance, 2), None

    def propagate(self, state, features1, features2):
        return KernelState(*(_mean_over_last(kernel, 3) for kernel in state))

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


def _margins(filter_size: int) -> tuple[int, int]:
    """How far a filter reaches to the left and right of its centre; even ones reach further to the right."""
    return (filter_size - 1) // 2, filter_size // 2


def _output_size(size, layer) -> tuple[int, ...]:
    shrinkage = layer.filter_size - 1 if layer.padding == "valid" else 0
    return tuple(n - shrinkage for n in size)


def _window_sum(x: Float[Array, "..."], axes: tuple[int, ...], filter_size: int, padding: str):
    """Sums over a window that moves along all `axes` at the same time."""
    if filter_size == 1:
        return x
    axes = tuple(axis % x.ndim for axis in axes)
    if padding != "valid":
        margins = [_margins(filter_size) if axis in axes else (0, 0) for axis in range(x.ndim)]
        x = jnp.pad(x, margins, mode="wrap" if padding == "circular" else "constant")
    sizes = [n - filter_size + 1 if axis in axes else n for axis, n in enumerate(x.shape)]
    total = 0.0
    for shift in range(filter_size):
        starts = [shift if axis in axes else 0 for axis in range(x.ndim)]
        total = total + jax.lax.dynamic_slice(x, starts, sizes)
    return total


def _mean_over_last(x: Float[Array, "..."], count: int) -> Float[Array, "..."]:
    # Axis by axis: partial sums keep single precision accurate over a million sites.
    for _ in range(count):
        x = jnp.mean(x, axis=-1)
    return x


def _correlate(x: Float[Array, "N H W c"], weight: Float[Array, "k k c n"]) -> Float[Array, "N h w n"]:
    return jax.lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
