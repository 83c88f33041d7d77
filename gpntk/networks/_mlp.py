"""The fully connected network."""

from typing import Any

from gpntk.activations import AbstractActivation, ReLU
from gpntk.networks._domains import Point
from gpntk.networks._layers import Dense, Nonlinearity, Repeat
from gpntk.networks._network import AbstractNetwork


class MLP(AbstractNetwork):
    r"""A fully connected network in NTK parameterisation.

    $$z_1 = \sqrt{C_W/d}\, W_1 x + \sqrt{C_b}\, b_1, \qquad
      z_{l+1} = \sqrt{C_W/n}\, W_{l+1} \sigma(z_l) + \sqrt{C_b}\, b_{l+1}$$

    with `depth` activations and the output $z_{L+1}$. Arguments are those of `AbstractNetwork`.

    >>> import gpntk, jax.numpy as jnp
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> nngp, ntk = gpntk.nngp_and_ntk(gpntk.MLP(depth=1, activation=gpntk.ReLU()), x)
    >>> print(*(round(float(k), 4) for k in nngp[0]))
    1.0 0.3183
    """

    # That of all networks, spelled out: type checkers would make one from the order of the fields.
    def __init__(
        self,
        depth: int = 2,
        activation: AbstractActivation = ReLU(),  # noqa: B008 (immutable)
        weight_variance: Any = 2.0,
        bias_variance: Any = 0.0,
        readout_bias: bool = True,
        width_ratios: tuple[float, ...] | None = None,
    ):
        super().__init__(depth, activation, weight_variance, bias_variance, readout_bias, width_ratios)

    @property
    def domain(self):
        return Point()

    @property
    def body(self):
        hidden = (Dense(self.weight_variance, self.bias_variance), Nonlinearity(self.activation))
        return (Repeat(hidden, self.depth),)

    @property
    def n_features(self):
        return None

    def is_invariant(self, group):
        return group.is_orthogonal
