"""Training of finite networks by full-batch gradient descent, one at a time and in ensembles."""

import math
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm import tqdm

from gpntk import _checks
from gpntk.dynamics._arguments import check_probabilities
from gpntk.networks import AbstractNetwork
from gpntk.sampling._cost import affordable, working_set
from gpntk.sampling._empirical import check_parameters, in_one_precision

# A progress bar moves this often; between its updates training is one compiled loop.
_UPDATES = 50


def train(
    net: AbstractNetwork,
    params: list,
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, "N ..."],
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    loss: str = "squared",
    reduction: str = "sum",
    alpha: float = 0.0,
    progress: bool = False,
) -> tuple[list, Float[Array, " steps"]]:
    r"""Train a finite network on the whole data set at every step.

    The objective is

    $$\frac12 \sum_i |z(x_i) - y_i|^2 + \frac\alpha2 |\theta - \theta_0|^2$$

    with `loss="squared"`, and has the softmax cross-entropy $-\sum_i \log p_{y_i}(x_i)$ in place of the first
    term with `loss="cross_entropy"`; `reduction="mean"` divides all of it by $N$. These are the conventions of
    `gpntk.GradientFlow`: gradient descent (`optax.sgd`) of a wide network follows it at
    time = learning rate x steps, up to the error of discrete steps.

    Args:
        net: the architecture.
        params: the initial parameters $\theta_0$, from `net.init`.
        X: inputs, one per row.
        y: targets, (N,) or (N, q) for q outputs; for the cross-entropy integer classes 0 ... q - 1 of shape
            (N,), or probabilities (N, q).
        optimizer: any optax optimiser, learning rate included. Parts of the network are held fixed with
            `optax.partition`.
        steps: number of steps, at least 1.
        loss: "squared" or "cross_entropy".
        reduction: "sum" or "mean".
        alpha: weight decay towards the initialisation.
        progress: whether to show a progress bar.

    Returns:
        The trained parameters, and the objective before each step.

    Raises:
        ValueError: if `X` is not a finite 2-D array that fits the architecture, `y` does not fit `X` and the
            outputs, `params` are not those of `net`, or for options out of range.
        TypeError: if `net` is not an architecture, or `optimizer` not an optax optimiser.

    Warns:
        RuntimeWarning: if training diverged, that is, if the last objective is not a finite number.
    """
    check_parameters(net, params)
    X, y = _checked_data(net, X, y, loss)
    steps, alpha = _checked_settings(optimizer, steps, reduction, alpha, progress)
    n_outputs = eqx.filter_eval_shape(net.apply, params, X[:1]).shape[-1]
    params, inputs, targets = in_one_precision((params, X, _targets(y, n_outputs, loss)))
    objective = _Objective(net, inputs, targets, loss, reduction, alpha)
    with tqdm(total=steps, disable=not progress, desc="steps") as bar:
        params, history = _descend(_run, objective, optimizer, params, steps, bar, 1)
    _warn_if_diverged(history)
    return params, history


def train_ensemble(
    net: AbstractNetwork,
    X: Float[ArrayLike, "N D"],
    y: Float[ArrayLike, "N ..."],
    key: PRNGKeyArray,
    members: int,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    width: int = 256,
    loss: str = "squared",
    reduction: str = "sum",
    alpha: float = 0.0,
    batch_size: int | None = None,
    progress: bool = False,
) -> tuple[list, Float[Array, "members steps"]]:
    """Train independent random networks of one architecture, many at the same time.

    Member `m` starts from `net.init(jax.random.split(key, members)[m], ...)` and is trained as by `train`. The
    number of outputs is that of the targets. Outputs of all members at new inputs are
    `jax.vmap(net.apply, (0, None))(params, X_new)`, of shape (members, M, q).

    Args:
        net: the architecture.
        X: inputs, one per row.
        y: targets, as for `train`; integer classes are counted up to the largest one.
        key: JAX random key of the initialisations.
        members: number of networks.
        optimizer: any optax optimiser; every member has a state of its own.
        steps: number of steps, at least 1.
        width: width of the last hidden layer.
        loss: as for `train`.
        reduction: as for `train`.
        alpha: as for `train`.
        batch_size: how many members are trained at the same time; `None` takes as many as fit into memory.
        progress: whether to show a progress bar.

    Returns:
        Trained parameters with a leading axis of members, and the objective of every member before each step.

    Raises:
        ValueError: as `train`, and for `members`, `width` or `batch_size` below 1.
        TypeError: if `net` is not an architecture, `optimizer` not an optax optimiser, or `key` not a random key.

    Warns:
        RuntimeWarning: if any member diverged.
    """
    _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
    X, y = _checked_data(net, X, y, loss)
    steps, alpha = _checked_settings(optimizer, steps, reduction, alpha, progress)
    _checks.key("key", key)
    members = _checks.integer("members", members, minimum=1)
    width = _checks.integer("width", width, minimum=1)
    if batch_size is not None:
        batch_size = _checks.integer("batch_size", batch_size, minimum=1)
    n_outputs = y.shape[1] if y.ndim == 2 else 1
    if loss == "cross_entropy" and y.ndim == 1:
        n_outputs = max(2, int(y.max()) + 1)
    targets = _targets(y, n_outputs, loss)

    keys = jax.random.split(key, members)
    params = eqx.filter_eval_shape(net.init, keys[0], X.shape[1], width, n_outputs)
    dtype = jnp.result_type(X, targets, *jax.tree.leaves(params))
    objective = _Objective(net, X.astype(dtype), targets.astype(dtype), loss, reduction, alpha)
    if batch_size is None:
        batch_size = affordable(working_set(eqx.filter_grad(objective.value), params, params), members)
    trained = []
    with tqdm(total=members * steps, disable=not progress, desc="steps of all members") as bar:
        # Batches of nearly equal size, so that at most two sizes are compiled.
        for batch in np.array_split(np.arange(members), math.ceil(members / batch_size)):
            params = _init_batch(net, keys[batch], X.shape[1], width, n_outputs)
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            trained.append(_descend(_run_batch, objective, optimizer, params, steps, bar, len(batch)))
    params, history = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trained)
    _warn_if_diverged(history)
    return params, history


class _Objective(eqx.Module):
    net: AbstractNetwork
    X: Float[Array, "N D"]
    targets: Float[Array, "N q"]
    loss: str = eqx.field(static=True)
    reduction: str = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def value(self, params: list, initial: list) -> Float[Array, ""]:
        outputs = self.net.apply(params, self.X)
        if self.loss == "squared":
            total = 0.5 * jnp.sum((outputs - self.targets) ** 2)
        else:
            total = jnp.sum(optax.softmax_cross_entropy(outputs, self.targets))
        if self.alpha > 0:
            change = jax.tree.map(jnp.subtract, params, initial)
            total = total + 0.5 * self.alpha * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(change))
        return total / len(self.X) if self.reduction == "mean" else total


def _descend(run, objective, optimizer, params, steps, bar, networks):
    """Run all steps, as one loop unless a progress bar wants to hear of them in between."""
    initial, state, losses = params, None, []
    for part in np.array_split(np.arange(steps), 1 if bar.disable else min(steps, _UPDATES)):
        params, state, part_losses = run(objective, optimizer, params, state, initial, len(part))
        losses.append(part_losses)
        if not bar.disable:
            jax.block_until_ready(part_losses)
            bar.update(len(part) * networks)
    return params, jnp.concatenate(losses, axis=-1)


def _steps(objective, optimizer, params, state, initial, length):
    """`length` steps of the optimiser; `state` is `None` at the start of training."""
    optimizer = optax.with_extra_args_support(optimizer)
    value = lambda p: objective.value(p, initial)  # noqa: E731

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(value)(params)
        # Line searches ask for more than the gradient.
        updates, state = optimizer.update(gradient, state, params, value=loss, grad=gradient, value_fn=value)
        return (optax.apply_updates(params, updates), state), loss

    state = optimizer.init(params) if state is None else state
    (params, state), losses = jax.lax.scan(step, (params, state), length=length)
    return params, state, losses


_run = eqx.filter_jit(_steps)


@eqx.filter_jit
def _run_batch(objective, optimizer, params, state, initial, length):
    one = lambda params, state, initial: _steps(objective, optimizer, params, state, initial, length)  # noqa: E731
    return jax.vmap(one)(params, state, initial)


@eqx.filter_jit
def _init_batch(net, keys, input_dim, width, n_outputs):
    return jax.vmap(lambda key: net.init(key, input_dim, width, n_outputs))(keys)


def _checked_settings(optimizer, steps, reduction, alpha, progress) -> tuple[int, float]:
    wanted = "an optax optimiser such as optax.sgd(0.1)"
    _checks.instance("optimizer", optimizer, optax.GradientTransformation, wanted)
    _checks.option("reduction", reduction, ("sum", "mean"))
    _checks.boolean("progress", progress)
    return _checks.integer("steps", steps, minimum=1), _checks.real_number("alpha", alpha, minimum=0.0)


def _checked_data(net, X, y, loss) -> tuple[Float[Array, "N D"], np.ndarray]:
    """Inputs, and targets that may be targets of so many inputs, whatever the number of outputs."""
    _checks.option("loss", loss, ("squared", "cross_entropy"))
    X, y = _checks.inputs("X", X, net.n_features), np.asarray(_checks.real_array("y", y))
    if y.ndim not in (1, 2) or len(y) != len(X) or y.size == 0:
        raise ValueError(
            f"`y` must have shape ({len(X)},) or ({len(X)}, q) as X has {len(X)} rows, got {y.shape}."
        )
    if loss == "cross_entropy":
        if y.ndim == 1 and (y.dtype.kind not in "biu" or y.min() < 0):
            raise ValueError(f"`y` must hold integer classes >= 0 for loss='cross_entropy', got {y!r}.")
        if y.ndim == 2:
            check_probabilities(y)
    return X, y


def _targets(y: np.ndarray, n_outputs: int, loss: str) -> Float[Array, "N q"]:
    """Targets of a network with `n_outputs` outputs: numbers, or probabilities of classes."""
    if loss == "cross_entropy":
        if n_outputs < 2:
            raise ValueError(f"loss='cross_entropy' needs a network with at least 2 outputs, got {n_outputs}.")
        if y.ndim == 1:
            if y.max() >= n_outputs:
                raise ValueError(f"`y` must hold classes below {n_outputs}, the number of outputs, got {y.max()}.")
            return jax.nn.one_hot(y, n_outputs)
    targets = y.reshape(len(y), -1)
    if targets.shape[1] != n_outputs:
        raise ValueError(f"`y` must have one column for each of the {n_outputs} outputs, got shape {y.shape}.")
    return jnp.asarray(_checks.real_array("y", targets, jnp.result_type(float)))


def _warn_if_diverged(history: Float[Array, "..."]) -> None:
    if _checks.is_traced(history):
        return
    diverged = ~np.isfinite(np.asarray(history[..., -1]))
    if diverged.any():
        warnings.warn(
            f"Training diverged for {diverged.sum()} of {diverged.size} network(s): the last loss is not a finite "
            "number. Lower the learning rate; gradient descent is stable below 2 / (largest eigenvalue of the NTK "
            "Gram matrix), with reduction='mean' N times that.",
            RuntimeWarning,
            stacklevel=3,
        )
