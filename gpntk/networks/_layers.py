"""Layers: how each transforms kernels in the limit of infinite width, and activations at finite width."""

import abc
from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from gpjax.parameters import val
from jaxtyping import Array, Float, PRNGKeyArray

from gpntk._devices import is_accelerated
from gpntk._products import matmul
from gpntk.activations import AbstractActivation
from gpntk.networks._state import KernelState

LayerParameters = Any
"""Weights of one layer: a dictionary of arrays, empty for layers without any; a list of those for `Repeat`."""


# Accelerators are fastest with many layers in one pass over memory. XLA's CPU backend would repeat all of them for
# each use of what they give.
_LAYERS_PER_PASS = 8


class AbstractLayer(eqx.Module):
    """One layer of an architecture, in the limit of infinite width and at finite width.

    A layer neither knows which domain it acts on nor whether it sees all pairs of inputs or one.
    """

    @abc.abstractmethod
    def transform_variance(self, variance: Float[Array, " N *sites"]) -> tuple[Float[Array, " N *sites"], Any]:
        """Variance of each input after the layer, and what `propagate` needs to know of one input.

        The latter is a pytree of arrays whose leading axes are those of `variance`.
        """

    @abc.abstractmethod
    def propagate(self, state: KernelState, features1: Any, features2: Any) -> KernelState:
        """Kernels after the layer, from kernels before it and the features of both inputs."""

    @abc.abstractmethod
    def init(
        self, key: PRNGKeyArray, shape: tuple[int, ...], widths: Iterator[int]
    ) -> tuple[LayerParameters, tuple[int, ...]]:
        """Random parameters for inputs of `shape` (channels last), and the shape of the outputs.

        A layer with weights takes its number of output channels from `widths`.
        """

    @abc.abstractmethod
    def apply(self, parameters: LayerParameters, x: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The finite layer, on a batch."""


class Dense(AbstractLayer):
    r"""The affine map $z = \sqrt{C_W/n}\,W x + \sqrt{C_b}\,b$ with standard normal $W$ and $b$.

    $$K \leftarrow C_b + C_W K, \qquad \Theta \leftarrow K + C_W \Theta$$

    with the new $K$ on the right: Jacot, Gabriel & Hongler (2018), Proposition 1 and Theorem 1.
    """

    weight_variance: Any
    bias_variance: Any | None

    def transform_variance(self, variance):
        return self._affine(variance), None

    def propagate(self, state, features1, features2):
        nngp = self._affine(state.nngp)
        return KernelState(nngp, nngp + _value(self.weight_variance, nngp) * state.ntk)

    def init(self, key, shape, widths):
        width = next(widths)
        return self.sample(key, (shape[-1], width)), (*shape[:-1], width)

    def apply(self, parameters, x):
        fan_in = parameters["weight"].shape[0]
        if x.shape[-1] != fan_in:
            raise ValueError(f"x has {x.shape[-1]} features, but the layer expects {fan_in} features as input.")
        return self.scale_and_shift(matmul(x, parameters["weight"]), fan_in, parameters)

    def sample(self, key: PRNGKeyArray, weight_shape: tuple[int, ...]) -> LayerParameters:
        """Standard normal weights, with the output channels on the last axis, and biases."""
        weight_key, bias_key = jax.random.split(key)
        parameters = {"weight": jax.random.normal(weight_key, weight_shape)}
        if self.bias_variance is not None:
            parameters["bias"] = jax.random.normal(bias_key, weight_shape[-1:])
        return parameters

    def scale_and_shift(self, products: Float[Array, "..."], fan_in: int, parameters: LayerParameters):
        r"""Outputs $\sqrt{C_W/n}\,W x + \sqrt{C_b}\,b$ from the products $W x$ of fan-in $n$."""
        outputs = jnp.sqrt(_value(self.weight_variance, products) / fan_in) * products
        if self.bias_variance is not None:
            outputs = outputs + jnp.sqrt(_value(self.bias_variance, products)) * parameters["bias"]
        return outputs

    def _affine(self, second_moment):
        scaled = _value(self.weight_variance, second_moment) * second_moment
        return scaled if self.bias_variance is None else scaled + _value(self.bias_variance, second_moment)


class Nonlinearity(AbstractLayer):
    r"""An activation: $K \leftarrow E[\sigma\sigma]$ and $\Theta \leftarrow E[\sigma'\sigma']\,\Theta$."""

    activation: AbstractActivation

    def transform_variance(self, variance):
        features = self.activation.features(variance)
        return self.activation.pair(variance, features, features)[0], features

    def propagate(self, state, features1, features2):
        dual, dual_derivative = self.activation.pair(state.nngp, features1, features2)
        return KernelState(dual, dual_derivative * state.ntk)

    def init(self, key, shape, widths):
        return {}, shape

    def apply(self, parameters, x):
        return self.activation(x)


def variance_through(
    layers: Iterable[AbstractLayer], variance: Float[Array, " N *sites"]
) -> tuple[Float[Array, " N *sites"], tuple[Any, ...]]:
    """Variance of each input after some layers, and what each of them needs to know of one input."""
    features = []
    for layer in layers:
        variance, layer_features = layer.transform_variance(variance)
        features.append(layer_features)
    return variance, tuple(features)


def kernels_through(
    layers: Iterable[AbstractLayer], state: KernelState, features1: Iterable[Any], features2: Iterable[Any]
) -> KernelState:
    """Kernels after some layers, from those before and the features of both inputs at each of them."""
    for layer, layer_features1, layer_features2 in zip(layers, features1, features2, strict=True):
        state = layer.propagate(state, layer_features1, layer_features2)
    return state


class Repeat(AbstractLayer):
    """A sequence of layers, repeated. Kernels go through one compiled loop, however deep the network.

    The layers must keep the sites of the domain. At finite width every repetition has weights of its own.
    """

    layers: tuple[AbstractLayer, ...]
    times: int = eqx.field(static=True)

    def transform_variance(self, variance):
        step = lambda variance, _: variance_through(self.layers, variance)  # noqa: E731
        variance, features = jax.lax.scan(step, variance, length=self.times)
        # Repetitions go to the last axis: the leading ones belong to inputs and sites.
        return variance, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), features)

    def propagate(self, state, features1, features2):
        step = lambda state, features: (kernels_through(self.layers, state, *features), None)  # noqa: E731
        features = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), (features1, features2))
        unroll = _LAYERS_PER_PASS if is_accelerated() else 1
        return jax.lax.scan(step, state, features, length=self.times, unroll=unroll)[0]

    def init(self, key, shape, widths):
        parameters = []
        for repetition_key in jax.random.split(key, self.times):
            for layer, layer_key in zip(
                self.layers, jax.random.split(repetition_key, len(self.layers)), strict=True
            ):
                layer_parameters, shape = layer.init(layer_key, shape, widths)
                parameters.append(layer_parameters)
        return parameters, shape

    def apply(self, parameters, x):
        expected, is_list = len(self.layers) * self.times, isinstance(parameters, list | tuple)
        if not is_list or len(parameters) != expected:
            got = f"{len(parameters)} of them" if is_list else repr(parameters)
            raise ValueError(
                f"`params` must be parameters from `net.init` at this depth, with {expected} entries, got {got}."
            )
        for layer, layer_parameters in zip(self.layers * self.times, parameters, strict=True):
            x = layer.apply(layer_parameters, x)
        return x


def _value(parameter, like: Float[Array, "..."]) -> Float[Array, ""]:
    """The value of a variance in the precision of the data, whatever that of the parameter."""
    return jnp.asarray(val(parameter), like.dtype)
