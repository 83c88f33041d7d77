"""The architecture object: a domain and a list of layers, at infinite and at finite width."""

import abc
import inspect
import warnings
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig
from gpjax.parameters import NonNegativeReal, PositiveReal, val
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from paramax import AbstractUnwrappable

from gpntk import _checks
from gpntk.activations import AbstractActivation, ReLU
from gpntk.activations._series import SeriesFeatures
from gpntk.groups import AbstractGroup
from gpntk.networks._domains import AbstractDomain, rows_and_columns
from gpntk.networks._layers import AbstractLayer, Dense, kernels_through, variance_through
from gpntk.networks._state import KernelState

# An order of magnitude below the 1% that sampled networks resolve; tanh reaches it at variance 20.
_SERIES_TOLERANCE = 1e-3
# Hardly anything of a moment is resolved then: it diverges, or the function jumps or oscillates too fast.
_SERIES_FAILURE = 0.9


class NetworkFeatures(NamedTuple):
    """Everything the kernels need to know of each input; leaves have leading axis N."""

    embedded: Any
    variance: Float[Array, " N *sites"]
    layers: tuple[Any, ...]


class AbstractNetwork(eqx.Module):
    """A network architecture, immutable.

    It describes three things at once: the kernels of its infinite-width limit (`features`, `kernels`,
    `diagonal`), finite networks with random weights (`init`, `apply`), and hyperparameters that can be
    trained (`weight_variance` and `bias_variance` are GPJax parameters; read them with
    `gpjax.parameters.val`). Subclasses add a `domain` and the list of `layers`.

    All networks share these arguments:

    Args:
        depth: number of hidden layers, that is, of activations.
        activation: the nonlinearity, never rescaled.
        weight_variance: variance $C_W$ of the weights times fan-in, positive. A float becomes a trainable
            GPJax parameter; freeze one with `paramax.non_trainable`.
        bias_variance: variance $C_b$ of the biases. 0.0 means no biases and is never trained.
        readout_bias: whether the readout layer has a bias (of variance `bias_variance`).
        width_ratios: width of each hidden layer relative to the last one, for finite networks; `None`
            means equal widths. The last ratio is 1. The infinite-width limit does not depend on it.

    Raises:
        ValueError: for a depth below 1, a non-positive weight variance, a negative bias variance, or
            width ratios that are not `depth` positive numbers ending in 1.
        TypeError: for arguments of the wrong kind.
    """

    depth: int = eqx.field(static=True)
    activation: AbstractActivation
    weight_variance: Any
    bias_variance: Any | None
    readout_bias: bool = eqx.field(static=True)
    width_ratios: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        depth: int = 2,
        activation: AbstractActivation = ReLU(),  # noqa: B008 (immutable)
        weight_variance: Any = 2.0,
        bias_variance: Any = 0.0,
        readout_bias: bool = True,
        width_ratios: tuple[float, ...] | None = None,
    ):
        self.depth = _checks.integer("depth", depth, minimum=1)
        self.activation = _checks.instance(
            "activation",
            activation,
            AbstractActivation,
            "an activation such as gpntk.ReLU(), or gpntk.Elementwise(function)",
        )
        self.weight_variance = variance_parameter("weight_variance", weight_variance, may_vanish=False)
        self.bias_variance = variance_parameter("bias_variance", bias_variance, may_vanish=True)
        self.readout_bias = _checks.boolean("readout_bias", readout_bias)
        self.width_ratios = _width_ratios(width_ratios, self.depth)

    @property
    @abc.abstractmethod
    def domain(self) -> AbstractDomain:
        """Where the signals live."""

    @property
    @abc.abstractmethod
    def body(self) -> tuple[AbstractLayer, ...]:
        """All layers but the readout."""

    @property
    @abc.abstractmethod
    def n_features(self) -> int | None:
        """The number of columns the inputs must have; `None` means any."""

    @property
    def readout_layer(self) -> Dense:
        """The last layer, which maps the hidden activations to the outputs."""
        return Dense(self.weight_variance, self.bias_variance if self.readout_bias else None)

    @property
    def layers(self) -> tuple[AbstractLayer, ...]:
        """All layers, from input to output."""
        return (*self.body, self.readout_layer)

    # Infinite width

    def features(self, x: Float[Array, "N D"]) -> NetworkFeatures:
        """What depends on one input only: its embedding, its features at every layer, its final variance."""
        embedded = self.domain.embed(x)
        return NetworkFeatures(embedded, *variance_through(self.layers, self.domain.variance(embedded)))

    def kernels(self, features1: NetworkFeatures, features2: NetworkFeatures) -> KernelState:
        """NNGP and NTK of all pairs of inputs, of shape (N1, N2) each."""
        return self.kernels_after(self.layers, features1, features2)

    def kernels_after(
        self, layers: tuple[AbstractLayer, ...], features1: NetworkFeatures, features2: NetworkFeatures
    ) -> KernelState:
        """Kernels of all pairs of inputs after some layers, whose features come with the inputs."""
        nngp = self.domain.covariance(features1.embedded, features2.embedded)
        return propagate(layers, nngp, *rows_and_columns(*self._aligned(features1, features2)))

    def diagonal(self, features: NetworkFeatures) -> KernelState:
        """NNGP and NTK of each input with itself, of shape (N,) each."""
        return self.paired_kernels(features, features)

    def paired_kernels(self, features1: NetworkFeatures, features2: NetworkFeatures) -> KernelState:
        """NNGP and NTK of inputs paired elementwise, of shape (N,) each."""
        nngp = self.domain.paired_covariance(features1.embedded, features2.embedded)
        return propagate(self.layers, nngp, *self._aligned(features1, features2))

    def _aligned(self, features1: NetworkFeatures, features2: NetworkFeatures) -> tuple[Any, Any]:
        """Features of all layers, for each input, in shapes that broadcast against the sites of a pair."""
        return (
            jax.tree.map(self.domain.align_left, features1.layers),
            jax.tree.map(self.domain.align_right, features2.layers),
        )

    def is_invariant(self, group: AbstractGroup) -> bool:
        """Whether both kernels satisfy k(gx, gy) = k(x, y) for all g; True only where that is a theorem."""
        del group
        return False

    def check_features(self, features: NetworkFeatures) -> None:
        """Refuse inputs for which a Gaussian moment of the activation diverges.

        Warns where the moments of an activation without closed form are not accurate.

        Raises:
            ValueError: naming the activation and the first such input.
        """
        if _checks.is_traced(features):
            return
        finite = np.isfinite(np.asarray(features.variance)).reshape(len(features.variance), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"The Gaussian moments of {self.activation!r} are not finite for {np.sum(~finite)} of "
                f"{finite.size} inputs, the first at row {np.argmin(finite)}: E[s(z)^2] diverges or overflows "
                "at the variance of its preactivations. Scale the inputs down or lower `weight_variance`."
            )
        error = _series_error(features)
        if error > _SERIES_FAILURE:
            raise ValueError(
                f"The Gaussian moments of {self.activation!r} cannot be computed: E[s(z)^2] or E[s'(z)^2] "
                "diverges, or the function varies too fast for its series (relative error up to "
                f"{error:.1e}). Scale the inputs down, lower `weight_variance`, or take an activation with a "
                "closed form such as `Erf`."
            )
        if error > _SERIES_TOLERANCE:
            warnings.warn(
                f"The duals of {self.activation!r} come from a series that is not accurate at these inputs: the "
                f"relative error of its moments can reach {error:.1e} for pairs of almost equal inputs. Scale the "
                "inputs down, lower `weight_variance`, or take an activation with a closed form (`ABReLU` for "
                "kinks at zero, `Erf` for steep sigmoids).",
                stacklevel=3,
            )

    # Finite width

    def init(
        self, key: PRNGKeyArray, input_dim: int | None = None, width: int = 256, n_outputs: int = 1
    ) -> list[Any]:
        """Random parameters of a finite network: standard normal, one dictionary per layer.

        Args:
            key: JAX random key.
            input_dim: number of columns of the inputs; needed only where the architecture does not fix it.
            width: width (number of channels) of the last hidden layer.
            n_outputs: number of outputs.

        Returns:
            What `apply` takes as `params`, a pytree of arrays.

        Raises:
            ValueError: for numbers below 1, and an `input_dim` that is missing or does not fit the architecture.
            TypeError: if `key` is not a random key, or a number not an integer.
        """
        _checks.key("key", key)
        input_dim = self._input_dim(input_dim)
        width = _checks.integer("width", width, minimum=1)
        n_outputs = _checks.integer("n_outputs", n_outputs, minimum=1)
        signal = jax.eval_shape(self.domain.signal, jax.ShapeDtypeStruct((1, input_dim), jnp.float32))
        shape, widths = signal.shape[1:], iter([*self.hidden_widths(width), n_outputs])
        parameters = []
        for layer, layer_key in zip(self.layers, jax.random.split(key, len(self.layers)), strict=True):
            layer_parameters, shape = layer.init(layer_key, shape, widths)
            parameters.append(layer_parameters)
        return parameters

    def apply(self, params: list, x: Float[ArrayLike, "N D"]) -> Float[Array, "N n_outputs"]:
        """Outputs of the finite network with the given parameters.

        Args:
            params: parameters from `init`.
            x: inputs, one per row; images and signals flattened.

        Raises:
            ValueError: if `x` is not a finite 2-D array that fits the architecture, or `params` are not its own.
        """
        hidden = self.hidden(params, x)
        if params[-1] is None:
            raise ValueError("`params` must have parameters of the readout, got None.")
        return self.readout_layer.apply(params[-1], hidden)

    def hidden(self, params: list, x: Float[ArrayLike, "N D"]) -> Float[Array, "N n"]:
        """What the readout sees: activations of the last hidden layer (after pooling, if any)."""
        self.check_parameters(params)
        signal = self.domain.signal(_checks.inputs("x", x, self.n_features))
        for layer, layer_parameters in zip(self.body, params[:-1], strict=True):
            signal = layer.apply(layer_parameters, signal)
        return signal

    def check_parameters(self, params: list) -> None:
        """Raise `ValueError` for what cannot be parameters of this architecture."""
        expected, is_list = len(self.layers), isinstance(params, list | tuple)
        if not is_list or len(params) != expected:
            got = f"{len(params)} entries" if is_list else repr(params)
            raise ValueError(f"`params` must be parameters from `net.init`, a list of {expected}, got {got}.")
        wanted = jax.eval_shape(
            lambda key: self.init(key, self.n_features or 1, width=1, n_outputs=1), jax.random.key(0)
        )
        # The readout's may be None where only the hidden layers are asked for.
        wanted = wanted if params[-1] is not None else [*wanted[:-1], None]
        leaves, structure = jax.tree.flatten(list(params))
        fits = structure == jax.tree.structure(wanted) and all(
            _checks.is_real(getattr(leaf, "dtype", object)) and leaf.ndim == like.ndim
            for leaf, like in zip(leaves, jax.tree.leaves(wanted), strict=True)
        )
        if not fits:
            raise ValueError(
                f"`params` must be parameters from `net.init` of this architecture, {jax.tree.structure(wanted)} "
                f"with numbers for leaves, got {structure}."
            )

    def hidden_widths(self, width: int) -> tuple[int, ...]:
        """Widths of all hidden layers when the last one has `width` neurons (or channels)."""
        ratios = self.width_ratios or (1.0,) * self.depth
        return tuple(max(1, round(ratio * width)) for ratio in ratios)

    def _input_dim(self, input_dim: int | None) -> int:
        expected = self.n_features
        if input_dim is None:
            if expected is None:
                raise ValueError("`input_dim` must be given: the architecture takes inputs of any dimension.")
            return expected
        input_dim = _checks.integer("input_dim", input_dim, minimum=1)
        if expected is not None and input_dim != expected:
            raise ValueError(f"`input_dim` must be {expected}, which the architecture fixes, got {input_dim}.")
        return input_dim

    # Hyperparameters

    def replace(self, **changes: Any) -> Self:
        """The same architecture with some constructor arguments changed."""
        return type(self)(**{**self.arguments(), **changes})

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments by name, as scikit-learn asks; plain trainable variances come as floats."""
        del deep
        return {name: _plain(value) for name, value in self.arguments().items()}

    def set_params(self, **changes: Any) -> Self:
        """`replace` under scikit-learn's name. Networks are immutable: use the returned one."""
        unknown = sorted(set(changes) - set(self.arguments()))
        if unknown:
            raise ValueError(
                f"Invalid parameter {unknown[0]!r} for {type(self).__name__}. "
                f"Valid parameters are: {sorted(self.arguments())!r}."
            )
        return self.replace(**changes)

    def __sklearn_clone__(self) -> Self:
        return self

    def __pdoc__(self, **options: Any) -> wadler_lindig.AbstractDoc:
        """How Equinox prints it, inside kernels too: as it would be typed, without arguments at their defaults."""
        signature = inspect.signature(type(self)).parameters
        shown = [(n, v) for n, v in self.get_params().items() if repr(v) != repr(signature[n].default)]
        return wadler_lindig.bracketed(
            begin=wadler_lindig.TextDoc(f"{type(self).__name__}("),
            docs=wadler_lindig.named_objs(shown, **options),
            sep=wadler_lindig.comma,
            end=wadler_lindig.TextDoc(")"),
            indent=options["indent"],
        )

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments by name, variances as the parameters they are."""
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        if self.bias_variance is None:
            arguments["bias_variance"] = 0.0
        return arguments


def _series_error(features: NetworkFeatures) -> float:
    """The largest bound on the relative error of a moment, over inputs and layers; 0 for closed forms."""
    is_series = lambda node: isinstance(node, SeriesFeatures)  # noqa: E731
    series = filter(is_series, jax.tree.leaves(features.layers, is_leaf=is_series))
    return max((float(jnp.max(bound)) for s in series for bound in (s.error, s.slope_error)), default=0.0)


def propagate(layers, nngp: Float[Array, "..."], features1, features2) -> KernelState:
    """Kernels after some layers, from those of the inputs and the features of both at every layer."""
    return kernels_through(layers, KernelState(nngp, jnp.zeros_like(nngp)), features1, features2)


def variance_parameter(name: str, value: Any, *, may_vanish: bool) -> Any:
    """A variance as GPJax parameter, `None` for a bias variance of zero.

    GPJax stores positive numbers through the inverse softplus. We store that number as a scalar of NumPy in double
    precision: JAX reads it in whatever precision is on where it is used, so that a network made before
    `jax.enable_x64` is exact inside it. (Of an array of NumPy, JAX may remember the precision of earlier use.)
    """
    if isinstance(value, AbstractUnwrappable):
        if not _checks.is_traced(value):
            # Evaluated at once also under `jit`, where another variance of the network may be traced.
            with jax.ensure_compile_time_eval(), jax.enable_x64(True):
                number = _checks.real_number(name, val(value), minimum=0.0, strict=not may_vanish)
            # GPJax keeps a zero as minus infinity, from where no optimiser returns and some make NaN.
            if number == 0.0 and isinstance(value, PositiveReal | NonNegativeReal):
                return None
        return value
    if _checks.is_traced(value):
        return value
    number = _checks.real_number(name, value, minimum=0.0, strict=not may_vanish)
    if number == 0.0:
        return None
    unconstrained = number + np.log(-np.expm1(-number))
    return eqx.tree_at(lambda p: p._unconstrained, PositiveReal(1.0), np.float64(unconstrained))


def _plain(value: Any) -> Any:
    # A frozen parameter stays an object: as a float it would be trainable again.
    frozen = isinstance(value, PositiveReal) and isinstance(value._unconstrained, AbstractUnwrappable)
    if isinstance(value, PositiveReal) and not frozen and not _checks.is_traced(value):
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            # What was given, without the rounding errors of the way to the unconstrained number and back.
            return float(f"{float(val(value)):.13g}")
    return value


def _width_ratios(ratios: Any, depth: int) -> tuple[float, ...] | None:
    if ratios is None:
        return None
    ratios = _checks.sequence("width_ratios", ratios)
    ratios = tuple(_checks.real_number("width_ratios", r, minimum=0.0, strict=True) for r in ratios)
    if len(ratios) != depth or ratios[-1] != 1.0:
        raise ValueError(f"`width_ratios` must be {depth} positive numbers, the last one 1, got {ratios}.")
    return ratios
