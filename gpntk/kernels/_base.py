"""Kernels as GPJax objects, evaluated through per-input features."""

import abc
import math
import numbers
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from gpjax.kernels import AbstractKernel
from gpjax.kernels.computations import AbstractKernelComputation
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.kernels._engine import BlockedComputation


class AbstractFeatureKernel(AbstractKernel):
    """A GPJax kernel that is a pure function of per-input features.

    Subclasses say what one input contributes (`features`) and how two of them make a kernel value
    (`pair`, `diagonal_values`); blocks, symmetry and compilation are the engine's. Sums and products,
    with other kernels and with non-negative numbers, keep the engine.
    """

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

    def __call__(self, x: Float[Array, " D"], y: Float[Array, " D"]) -> Float[Array, ""]:
        """The kernel value of one pair of inputs."""
        x, y = jnp.atleast_1d(jnp.asarray(x)), jnp.atleast_1d(jnp.asarray(y))
        return self.pair(self.features(x[None]), self.features(y[None]))[0, 0]

    def __add__(self, other):
        return _combine(Sum, self, other)

    def __radd__(self, other):
        return _combine(Sum, other, self)

    def __mul__(self, other):
        return _combine(Product, self, other)

    def __rmul__(self, other):
        return _combine(Product, other, self)


class _Number(AbstractFeatureKernel):
    """A number in a sum or product of kernels; it is not trained."""

    value: float = eqx.field(static=True)

    def __init__(self, value):
        self.value = _checks.real_number("the number added to or multiplied with a kernel", value, minimum=0.0)
        super().__init__(compute_engine=BlockedComputation())

    def features(self, x):
        return jnp.full(x.shape[0], self.value, x.dtype)

    def pair(self, features1, features2):
        return jnp.broadcast_to(features1[:, None], (features1.shape[0], features2.shape[0]))

    def diagonal_values(self, features):
        return features


class _AbstractCombination(AbstractFeatureKernel):
    """Kernels combined block by block. GPJax's own kernels take part through their own engines."""

    kernels: tuple[AbstractKernel, ...]

    def __init__(self, *kernels, compute_engine: AbstractKernelComputation | None = None):
        if not kernels:
            raise ValueError(f"{type(self).__name__} needs at least one kernel, got none.")
        parts = []
        for kernel in kernels:
            if isinstance(kernel, numbers.Real) or getattr(kernel, "shape", None) == ():
                kernel = _Number(kernel)
            _checks.instance("kernel", kernel, AbstractKernel, "a GPJax kernel or a number")
            # Nested sums of sums (products of products) are one sum.
            parts.extend(kernel.kernels if type(kernel) is type(self) else [kernel])
        self.kernels = tuple(parts)
        super().__init__(compute_engine=compute_engine or BlockedComputation())

    @abc.abstractmethod
    def reduce(self, values: list) -> Float[Array, "..."]:
        """The combination of kernel values."""

    @property
    def sites_per_pair(self):
        return max(getattr(kernel, "sites_per_pair", 1) for kernel in self.kernels)

    def check_features(self, features):
        for kernel, part in zip(self.kernels, features, strict=True):
            if isinstance(kernel, AbstractFeatureKernel):
                kernel.check_features(part)

    def features(self, x):
        return tuple(k.features(x) if isinstance(k, AbstractFeatureKernel) else x for k in self.kernels)

    def pair(self, features1, features2):
        return self.reduce(
            [
                k.pair(f1, f2) if isinstance(k, AbstractFeatureKernel) else k.cross_covariance(f1, f2)
                for k, f1, f2 in zip(self.kernels, features1, features2, strict=True)
            ]
        )

    def diagonal_values(self, features):
        return self.reduce(
            [
                k.diagonal_values(f)
                if isinstance(k, AbstractFeatureKernel)
                else jnp.diagonal(k.diagonal(f).as_matrix())
                for k, f in zip(self.kernels, features, strict=True)
            ]
        )


class Sum(_AbstractCombination):
    """The sum of kernels (and numbers), evaluated block by block.

    `ours + other` makes one. Where a kernel of GPJax comes first, Python asks GPJax, whose own sum works
    pair by pair: write `Sum(other, ours)` instead of `other + ours`.
    """

    def reduce(self, values):
        return sum(values[1:], start=values[0])


class Product(_AbstractCombination):
    """The product of kernels (and numbers), evaluated block by block; see `Sum`."""

    def reduce(self, values):
        return math.prod(values[1:], start=values[0])


def _combine(kind, left, right):
    for operand in (left, right):
        if not (isinstance(operand, AbstractKernel | numbers.Real) or getattr(operand, "shape", None) == ()):
            return NotImplemented
    return kind(left, right)
