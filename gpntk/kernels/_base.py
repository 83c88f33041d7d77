"""Kernels as GPJax objects, evaluated through per-input features."""

import abc
import math
import numbers
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from gpjax.kernels import AbstractKernel, Constant, MultiOutputKernel, ProductKernel, SumKernel
from gpjax.kernels.computations import AbstractKernelComputation
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.kernels._engine import BlockedComputation
from gpntk.kernels._tiles import Grouping, default_grouping


class AbstractFeatureKernel(AbstractKernel):
    """A GPJax kernel that is a pure function of per-input features.

    Subclasses say what one input contributes (`features`) and how two of them make a kernel value
    (`pair`, `diagonal_values`); blocks, symmetry and compilation are the engine's. Sums and products,
    with other kernels and with non-negative numbers, keep the engine.

    Raises:
        ValueError: if `active_dims` is an empty list or a slice without a stop.
        TypeError: if `active_dims` is not a list of integers or a slice, or `compute_engine` not an engine.
    """

    # NumPy leaves `number * kernel` to the kernel, instead of making an array of kernels.
    __array_ufunc__: ClassVar[None] = None

    def __init__(
        self,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        _checks.instance(
            "compute_engine", compute_engine, AbstractKernelComputation, "an engine such as BlockedComputation()"
        )
        n_dims = None if n_dims is None else _checks.integer("n_dims", n_dims, minimum=1)
        super().__init__(_active_dims(active_dims), n_dims, compute_engine)

    @abc.abstractmethod
    def features(self, x: Float[Array, "N D"]) -> Any:
        """What the kernel needs to know of each input: a pytree of arrays with leading axis N."""

    @abc.abstractmethod
    def pair(self, features1: Any, features2: Any) -> Float[Array, "N1 N2"]:
        """Kernel values of all pairs of inputs."""

    @abc.abstractmethod
    def diagonal_values(self, features: Any) -> Float[Array, " N"]:
        """Kernel values of each input with itself."""

    def check_features(self, features: Any) -> None:
        """Raise `ValueError` if concrete features cannot be used; does nothing by default."""
        del features

    @property
    def sites_per_pair(self) -> int:
        """How many numbers a pair of inputs takes while it is computed, up to a small factor."""
        return 1

    @property
    def grouping(self) -> Grouping:
        """How pairs are evaluated together where the engine's `block_size` leaves it open."""
        return default_grouping(self.sites_per_pair)

    @property
    def blocked_engine(self) -> BlockedComputation:
        """The compute engine; one with its defaults in the place of an engine of GPJax."""
        engine = self.compute_engine
        return engine if isinstance(engine, BlockedComputation) else BlockedComputation()

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        """The kernel value of one pair of inputs."""
        # Compiled, as matrices are: evaluated step by step, JAX would compile the loop over layers at every call.
        return BlockedComputation().cross_covariance(self, _as_row("x", x), _as_row("y", y))[0, 0]

    def slice_input(self, x: Float[Array, "... D"]) -> Float[Array, "... Q"]:
        """The active columns of `x`; unlike GPJax, and JAX's indexing, never others than those asked for."""
        columns = x.shape[-1]
        wanted = self.active_dims
        # A slice that reaches beyond the last column would be cut short in silence.
        beyond = isinstance(wanted, slice) and wanted.stop is not None and wanted.stop > columns
        if beyond or (isinstance(wanted, list) and not all(-columns <= i < columns for i in wanted)):
            raise ValueError(f"x has {columns} features, but `active_dims` is {wanted}.")
        if self.active_dims == slice(None) and self.n_dims not in (None, columns):
            raise ValueError(f"x has {columns} features, but `n_dims` is {self.n_dims}.")
        return super().slice_input(x)  # pyright: ignore[reportReturnType] (GPJax: or NumPy's)

    def __add__(self, other):
        return _combine(Sum, self, other)

    def __radd__(self, other):
        return _combine(Sum, other, self)

    def __mul__(self, other):
        return _combine(Product, self, other)

    def __rmul__(self, other):
        return _combine(Product, other, self)


def _active_dims(active_dims: Any) -> list[int] | slice | None:
    if active_dims is None or (isinstance(active_dims, slice) and active_dims == slice(None)):
        return None
    wanted = "a non-empty list of integers or a slice with a stop"
    if isinstance(active_dims, slice):
        # GPJax counts the columns of a slice before it knows how many there are.
        if active_dims.stop is None:
            raise ValueError(f"`active_dims` must be {wanted}, got {active_dims}.")
        return active_dims
    # GPJax reads an empty list as all columns.
    if isinstance(active_dims, list) and not active_dims:
        raise ValueError(f"`active_dims` must be {wanted}, got [].")
    integers = isinstance(active_dims, list) and all(
        isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in active_dims
    )
    if not integers:
        raise TypeError(f"`active_dims` must be {wanted}, got {active_dims!r}.")
    return [int(i) for i in active_dims]


def _as_row(name: str, x: Any) -> Float[Array, "1 D"]:
    x = _checks.as_array(name, x)
    if x.ndim > 1:
        raise ValueError(
            f"`{name}` must be one input of shape (n_features,), got an array of shape {x.shape}; "
            "`gram` and `cross_covariance` take many."
        )
    return _checks.inputs(name, x.reshape(1, -1))


def with_features(kernel: AbstractKernel) -> AbstractFeatureKernel:
    """The kernel as a function of features, which are the inputs themselves for kernels of other packages.

    Raises:
        TypeError: for kernels of several outputs.
    """
    _check_one_output(kernel)
    return kernel if isinstance(kernel, AbstractFeatureKernel) else _Foreign(kernel)


class _Foreign(AbstractFeatureKernel):
    """A view of a kernel of another package, which goes through its own engine."""

    kernel: AbstractKernel

    def __init__(self, kernel):
        self.kernel = kernel
        super().__init__()

    def features(self, x):
        return x

    def pair(self, features1, features2):
        return self.kernel.cross_covariance(features1, features2)

    def diagonal_values(self, features):
        return lx.diagonal(self.kernel.diagonal(features))


class Number(AbstractFeatureKernel):
    """A number in a sum or product of kernels; it is not trained."""

    value: float = eqx.field(static=True)

    def __init__(self, value):
        self.value = _checks.real_number("number added to or multiplied with a kernel", value, minimum=0.0)
        super().__init__()

    def features(self, x):
        return jnp.full(x.shape[0], self.value, x.dtype)

    def pair(self, features1, features2):
        return jnp.broadcast_to(features1[:, None], (features1.shape[0], features2.shape[0]))

    def diagonal_values(self, features):
        return features


class AbstractCombination(AbstractFeatureKernel):
    """Kernels combined block by block. GPJax's own kernels take part through their own engines."""

    kernels: tuple[AbstractKernel, ...]
    gpjax_type: ClassVar[type[AbstractKernel]]

    def __init__(self, *kernels: AbstractKernel | float, compute_engine: AbstractKernelComputation | None = None):
        if not kernels:
            raise ValueError(f"{type(self).__name__} needs at least one kernel, got none.")
        parts = []
        for operand in kernels:
            kernel: Any = operand
            if _is_number(kernel):
                # A number computed under `jit` or `grad` has no value yet, but it can be an array in a kernel.
                kernel = Constant(constant=kernel) if _checks.is_traced(kernel) else Number(kernel)
            _checks.instance("kernel", kernel, AbstractKernel, "a GPJax kernel or a number")
            _check_one_output(kernel)
            # Sums of sums (products of products) are one sum, GPJax's own included.
            parts.extend(kernel.kernels if type(kernel) in (type(self), self.gpjax_type) else [kernel])
        self.kernels = tuple(parts)
        engines = [part.compute_engine for part in parts if _has_engine(part)] or [BlockedComputation()]
        super().__init__(compute_engine=engines[0] if compute_engine is None else compute_engine)

    @abc.abstractmethod
    def reduce(self, values: list) -> Float[Array, "..."]:
        """The combination of kernel values."""

    @property
    def sites_per_pair(self):
        return max(part.sites_per_pair for part in self._parts)

    def check_features(self, features):
        for part, part_features in zip(self._parts, features, strict=True):
            part.check_features(part_features)

    def features(self, x):
        return tuple(part.features(x) for part in self._parts)

    def pair(self, features1, features2):
        parts = zip(self._parts, features1, features2, strict=True)
        return self.reduce([part.pair(f1, f2) for part, f1, f2 in parts])

    def diagonal_values(self, features):
        return self.reduce([part.diagonal_values(f) for part, f in zip(self._parts, features, strict=True)])

    @property
    def _parts(self) -> list[AbstractFeatureKernel]:
        return [with_features(kernel) for kernel in self.kernels]


class Sum(AbstractCombination):
    """The sum of kernels (and numbers), evaluated block by block.

    `ours + other` makes one. Where a kernel of GPJax comes first, Python asks GPJax, whose own sum works
    pair by pair: write `Sum(other, ours)` instead of `other + ours`, or `Sum(other + ours)`, which takes the
    other apart. A number is not trained; GPJax's `Constant` and the `variance` of our kernels are.

    Args:
        *kernels: kernels, or numbers of at least 0.
        compute_engine: how matrices are evaluated; by default as for the first of our own kernels.

    Raises:
        ValueError: for no kernels and for negative numbers.
        TypeError: for anything else, and for kernels of several outputs.
    """

    gpjax_type = SumKernel

    def __init__(self, *kernels: AbstractKernel | float, compute_engine: AbstractKernelComputation | None = None):
        super().__init__(*kernels, compute_engine=compute_engine)  # spelled out as in `gpntk.MLP`

    def reduce(self, values):
        return sum(values[1:], start=values[0])


class Product(AbstractCombination):
    """The product of kernels (and numbers), evaluated block by block; see `Sum`."""

    gpjax_type = ProductKernel

    def __init__(self, *kernels: AbstractKernel | float, compute_engine: AbstractKernelComputation | None = None):
        super().__init__(*kernels, compute_engine=compute_engine)  # spelled out as in `gpntk.MLP`

    def reduce(self, values):
        return math.prod(values[1:], start=values[0])


def _check_one_output(kernel: AbstractKernel) -> None:
    if isinstance(kernel, MultiOutputKernel):
        raise TypeError(f"`kernel` must have one output, got {type(kernel).__name__}; combine its latent kernels.")


def _combine(kind, left, right):
    if all(isinstance(operand, AbstractKernel) or _is_number(operand) for operand in (left, right)):
        return kind(left, right)
    return NotImplemented


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()


def _has_engine(kernel: AbstractKernel) -> bool:
    return isinstance(kernel, AbstractFeatureKernel) and not isinstance(kernel, Number)
