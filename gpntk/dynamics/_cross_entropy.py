"""Gradient flow of the softmax cross-entropy, an ordinary differential equation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gpntk._checks import is_traced

_MAX_STEPS = 100_000


def cross_entropy_coefficients(
    product: Callable,
    probabilities: Float[Array, "N q"],
    weights: Float[Array, "N 1"],
    alpha: Float[Array, ""],
    clocks: Float[Array, " T"],
) -> Float[Array, "T N q"]:
    r"""Dual coefficients c of the flow that starts from f = 0; outputs at x are $\Theta(x, X) c$.

    Parameters move along $J^T c$, so that the flow is $\dot c = w (p - \mathrm{softmax}(\Theta c)) - \alpha c$ in
    the clock $\eta t$; `product(c)` is $\Theta c$, and the function a pytree. Solved by Tsitouras' 5(4) method
    with adaptive steps; it is explicit, and takes about `largest eigenvalue * clock` steps at worst.

    Raises:
        ValueError: for infinite clocks; the flow has no limit where the classes can be separated.
        RuntimeError: if the solver needs more than a hundred thousand steps.
    """
    if not is_traced(clocks) and not bool(jnp.isfinite(clocks).all()):
        raise ValueError(
            "`time` must be finite for loss='cross_entropy', got infinity: the outputs grow without bound where "
            "the classes can be separated."
        )
    coefficients, failed = _solve(product, probabilities, weights, alpha, clocks)
    message = (
        f"The cross-entropy flow needs more than {_MAX_STEPS} steps of its solver: train for a shorter time, with "
        "a smaller learning rate or with reduction='mean'."
    )
    if is_traced(failed):
        return eqx.error_if(coefficients, failed, message)
    if failed:
        raise RuntimeError(message)
    return coefficients


@eqx.filter_jit
def _solve(product, probabilities, weights, alpha, clocks):
    import diffrax  # here, because it takes a fifth of a second, and nothing else needs it

    def velocity(clock, c, arguments):
        product, probabilities, weights, alpha = arguments
        return weights * (probabilities - jax.nn.softmax(product(c))) - alpha * c

    precise = probabilities.dtype == jnp.float64
    order = jnp.argsort(clocks)
    clocks = clocks[order]
    # The last stop must lie ahead of the start; time zero alone has nothing to solve.
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=jnp.zeros((), probabilities.dtype),
        t1=jnp.where(clocks[-1] > 0, clocks[-1], 1.0),
        dt0=None,
        y0=jnp.zeros_like(probabilities),
        args=(product, probabilities, weights, alpha),
        saveat=diffrax.SaveAt(ts=clocks),
        stepsize_controller=diffrax.PIDController(rtol=1e-8 if precise else 1e-5, atol=1e-10 if precise else 1e-6),
        max_steps=_MAX_STEPS,
        throw=False,
    )
    outputs: Any = solution.ys  # never None: `saveat` asks for them
    return outputs[jnp.argsort(order)], solution.result != diffrax.RESULTS.successful
