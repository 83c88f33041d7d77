"""Features: what kernels need to know of one input, computed once for all its pairs."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


def checked_features(owner: Any, x: Float[Array, "N D"]) -> Any:
    """The compiled features of checked inputs, those of a kernel or a network, refused where it cannot use them.

    Args:
        owner: with methods `features` and `check_features`.
        x: inputs, one per row.
    """
    features = _compiled_features(owner, x)
    owner.check_features(features)
    return features


@eqx.filter_jit
def _compiled_features(owner, x):
    return owner.features(x)
