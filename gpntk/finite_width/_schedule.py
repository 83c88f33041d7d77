"""What the recursions at order 1/n need to know of an architecture beside its activation."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from gpjax.parameters import val
from jaxtyping import Array, Float

from gpntk.networks import MLP


class Schedule(NamedTuple):
    """Variances of the dense layers of a multilayer perceptron, and ratios of the widths between them."""

    weight_variance: Float[Array, ""]
    bias_variances: Float[Array, " depth+1"]
    """Of every dense layer, from the first one to the readout; 0 where there are no biases."""
    ratios: Float[Array, " depth"]
    """Width of a hidden layer over that of the one before; 1 for the first, before which nothing has arisen."""

    @classmethod
    def of(cls, net: MLP, dtype: Any) -> "Schedule":
        """Those of `net`, in the given precision."""
        bias = jnp.asarray(0.0 if net.bias_variance is None else val(net.bias_variance), dtype)
        readout_bias = bias if net.readout_bias else jnp.zeros_like(bias)
        widths = net.width_ratios or (1.0,) * net.depth
        ratios = [1.0, *(after / before for before, after in itertools.pairwise(widths))]
        return cls(
            jnp.asarray(val(net.weight_variance), dtype),
            jnp.append(jnp.full(net.depth, bias), readout_bias),
            jnp.asarray(np.array(ratios), dtype),
        )
