"""Averages of a kernel over a group: full data augmentation, as a kernel."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from gpjax.kernels import (
    RBF,
    AbstractKernel,
    Constant,
    Linear,
    Matern12,
    Matern32,
    Matern52,
    Polynomial,
    PoweredExponential,
    RationalQuadratic,
)
from gpjax.kernels.base import CombinationKernel
from gpjax.kernels.computations import AbstractKernelComputation
from gpjax.parameters import val
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.groups import AbstractGroup
from gpntk.kernels._base import AbstractCombination, AbstractFeatureKernel, Number, with_features
from gpntk.kernels._engine import BlockedComputation
from gpntk.kernels._network_kernels import AbstractNetworkKernel

_SIDES = ("auto", "one", "both")


class GroupAveraged(AbstractFeatureKernel):
    r"""A kernel averaged over the orbit of its second input, or over those of both.

    $$\bar k(x, y) = \sum_g w_g\, k(x, g y) \qquad\text{or}\qquad
      \bar k(x, y) = \sum_{g, g'} w_g w_{g'}\, k(g x, g' y),$$

    invariant under the group in both arguments. For kernels with $k(gx, gy) = k(x, y)$ the two are equal, and
    gradient flow with $\bar k$ has at every time the mean of gradient flow with $k$ on the set augmented by all
    transforms of all examples (`gpntk.groups.augment`): with `alpha` the augmented set needs `alpha / order`, and
    times agree for `reduction="mean"`. This is a theorem about means, not covariances, and needs labels that
    do not transform with the group. For other kernels the average over both sides is invariant, but it is
    not the prediction of augmentation.

    The group is streamed, one element at a time; parameters of the base kernel are trained as ever.

    Args:
        kernel: the base kernel, any GPJax kernel.
        group: the group, as it acts on the columns of the inputs.
        sides: "one", "both" or "auto": one side for kernels known to satisfy $k(gx, gy) = k(x, y)$ (see
            `is_invariant`), which is exact and cheaper by the order of the group, both sides otherwise.
        active_dims: columns of the inputs that the group acts on, as for any GPJax kernel.
        n_dims: number of those columns, as for any GPJax kernel.
        compute_engine: how matrices are evaluated.

    Raises:
        ValueError: for unknown `sides`, and for `sides="one"` with a kernel that is not known to be invariant.
        TypeError: if `kernel` is not a GPJax kernel or `group` not a group.
    """

    kernel: AbstractKernel
    group: AbstractGroup = eqx.field(static=True)
    sides: str = eqx.field(static=True)

    def __init__(
        self,
        kernel: AbstractKernel,
        group: AbstractGroup,
        sides: str = "auto",
        *,
        active_dims: list[int] | slice | None = None,
        n_dims: int | None = None,
        compute_engine: AbstractKernelComputation = BlockedComputation(),  # noqa: B008 (immutable)
    ):
        self.kernel = _checks.instance("kernel", kernel, AbstractKernel, "a GPJax kernel such as gpntk.NTK(net)")
        self.group = _checks.instance("group", group, AbstractGroup, "a group such as gpntk.groups.C4((8, 8, 3))")
        self.sides = _checks.option("sides", sides, _SIDES)
        if sides == "one" and not is_invariant(kernel, group):
            raise ValueError(
                f'`sides` must be "auto" or "both" for {type(kernel).__name__}, got "one": it is not known to '
                "satisfy k(gx, gy) = k(x, y), and its average over one side is not symmetric then."
            )
        super().__init__(active_dims=active_dims, n_dims=n_dims, compute_engine=compute_engine)

    @property
    def one_sided(self) -> bool:
        """Whether the average runs over the second argument alone."""
        return self.sides == "one" or (self.sides == "auto" and is_invariant(self.kernel, self.group))

    @property
    def sites_per_pair(self):
        return with_features(self.kernel).sites_per_pair

    def features(self, x):
        x = _checks.inputs("x", self.slice_input(x), self.group.n_features, "group")
        # Raw inputs come along: transforming them block by block costs less memory than keeping their orbits.
        return x, with_features(self.kernel).features(x)

    def check_features(self, features):
        with_features(self.kernel).check_features(features[1])

    def pair(self, features1, features2):
        (x1, base1), (x2, _) = features1, features2
        kernel = with_features(self.kernel)

        def with_orbit_of_second(base):
            return self._mean(lambda g: kernel.pair(base, kernel.features(self.group.transform(x2, g))))

        if self.one_sided:
            return with_orbit_of_second(base1)
        return self._mean(lambda g: with_orbit_of_second(kernel.features(self.group.transform(x1, g))))

    def diagonal_values(self, features):
        x, _ = features

        def with_orbit_of_second(left):
            return self._mean(lambda g: jax.vmap(self.kernel)(left, self.group.transform(x, g)))

        if self.one_sided:
            return with_orbit_of_second(x)
        return self._mean(lambda g: with_orbit_of_second(self.group.transform(x, g)))

    def _mean(self, value) -> Float[Array, "..."]:
        """The weighted mean over the group of `value(index)`; the backward pass evaluates elements again."""
        shape = jax.eval_shape(value, 0)
        weights = jnp.asarray(self.group.weights, shape.dtype)

        @jax.checkpoint
        def add(total, item):
            index, weight = item
            return total + weight * value(index), None

        start = jnp.zeros(shape.shape, shape.dtype)
        return jax.lax.scan(add, start, (jnp.arange(self.group.order), weights))[0]


@functools.singledispatch
def is_invariant(kernel: AbstractKernel, group: AbstractGroup) -> bool:
    """Whether `kernel` satisfies k(gx, gy) = k(x, y) for every element of `group`.

    False for kernels of unknown type. Register your own with `is_invariant.register`; what they say is
    trusted and not verified.
    """
    del group
    return False


@is_invariant.register
def _network_is_invariant(kernel: AbstractNetworkKernel, group: AbstractGroup) -> bool:
    return _sees_everything(kernel) and kernel.net.is_invariant(group)


@is_invariant.register(AbstractCombination)
@is_invariant.register(CombinationKernel)
def _combination_is_invariant(kernel, group: AbstractGroup) -> bool:
    return _sees_everything(kernel) and all(is_invariant(part, group) for part in kernel.kernels)


@is_invariant.register
def _average_is_invariant(kernel: GroupAveraged, group: AbstractGroup) -> bool:
    return _sees_everything(kernel) and kernel.group == group


@is_invariant.register(Number)
@is_invariant.register(Constant)
def _constant_is_invariant(kernel, group: AbstractGroup) -> bool:
    return True


@is_invariant.register(Linear)
@is_invariant.register(Polynomial)
def _inner_product_is_invariant(kernel, group: AbstractGroup) -> bool:
    return _sees_everything(kernel) and group.is_orthogonal


# Periodic is stationary too, but no function of the distance.
@is_invariant.register(RBF)
@is_invariant.register(Matern12)
@is_invariant.register(Matern32)
@is_invariant.register(Matern52)
@is_invariant.register(PoweredExponential)
@is_invariant.register(RationalQuadratic)
def _distance_is_invariant(kernel, group: AbstractGroup) -> bool:
    isotropic = jnp.size(val(kernel.lengthscale)) == 1
    return _sees_everything(kernel) and isotropic and group.is_orthogonal


def _sees_everything(kernel: AbstractKernel) -> bool:
    return kernel.active_dims in (None, slice(None))
