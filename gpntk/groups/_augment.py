"""The explicitly augmented data set."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk.groups._base import AbstractGroup


def augment(
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, "N ..."],
    group: AbstractGroup,
) -> tuple[Float[Array, "order*N D"], Float[Array, "order*N ..."]]:
    """A data set together with all its transforms, with unchanged labels.

    Gradient flow on the augmented set has, at every time, the mean of gradient flow on the original set with
    the kernel `GroupAveraged(kernel, group)`, when the kernel satisfies k(gx, gy) = k(x, y); `alpha` on the
    averaged kernel is `alpha / order`, and times agree for `reduction="mean"`.

    Args:
        X: inputs, one per row.
        y: labels, one row an input; they must not transform with the group.
        group: a group whose elements have equal weights.

    Returns:
        Inputs and labels, element by element of the group: row `g * N + i` is example i transformed by g.

    Raises:
        ValueError: if the elements of the group do not have equal weights, or the shapes do not fit.
        TypeError: if `group` is not a group.
    """
    _checks.instance("group", group, AbstractGroup, "a group such as gpntk.groups.C4((28, 28, 1))")
    X = _checks.inputs("X", X, group.n_features, "group")
    if not np.allclose(group.weights, 1.0 / group.order, rtol=1e-12, atol=0.0):
        raise ValueError(
            f"`group` must have equally weighted elements, got the quadrature {group!r}: the augmented set would "
            "need sample weights. Use GroupAveraged instead."
        )
    y = _checks.jax_array("y", y)
    if y.shape[:1] != X.shape[:1]:
        raise ValueError(f"`y` must have one row for each of the {len(X)} inputs, got shape {y.shape}.")
    return group.act(X).reshape(-1, X.shape[1]), jnp.tile(y, (group.order,) + (1,) * (y.ndim - 1))
