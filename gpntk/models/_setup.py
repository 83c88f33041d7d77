"""What the models of the random kernel compute once for a data set, however often NumPyro traces them."""

import contextlib
import functools
import threading
from collections import OrderedDict
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import Distribution, Normal, constraints

from gpntk import _checks
from gpntk._products import einsum, matmul
from gpntk.finite_width._action import QuarticAction
from gpntk.finite_width._pairs import warn_if_narrow
from gpntk.finite_width._posterior import checked_points, checked_targets
from gpntk.finite_width._whitened import (
    AppendedRows,
    WhitenedKernel,
    append,
    dense_fluctuations,
    exponential,
    network_fluctuations,
    whiten,
)
from gpntk.networks import MLP

_KEPT = 8
_store: OrderedDict[Any, Any] = OrderedDict()
_lock = threading.Lock()


@contextlib.contextmanager
def preparation():
    """Arrays with values in double precision, also while NumPyro traces the model."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        yield


def check_source(action: Any, net: Any, width: Any) -> None:
    """Refuse an action together with what it is made from, and neither."""
    if action is not None and (net is not None or width is not None):
        raise ValueError("Pass either `action`, or `net` and `width`: the action knows the width.")
    if action is None:
        _checks.instance("net", net, MLP, "a gpntk.MLP")


class RandomKernelSetup:
    """The arguments that all models of the random kernel share, checked, and the arrays made from them."""

    def __init__(self, X, X_test, net, width, action, floor, retained, most_modes, n_points, seed):
        if _checks.is_traced(X, X_test):
            raise TypeError("`X` and `X_test` must be arrays with values: the model prepares itself from them.")
        self.retained = _checks.real_number("retained", retained, minimum=0.0, strict=True)
        if self.retained >= 1.0:
            raise ValueError(f"`retained` must be below 1, got {self.retained:g}.")
        self.most_modes = _checks.integer("most_modes", most_modes, minimum=1)
        check_source(action, net, width)
        if _checks.is_traced(net):
            raise TypeError(
                "The variances of `net` must have values, because the model prepares itself from them. Their "
                "posterior is sampled by `gpntk.models.evidence_regression`."
            )
        self.floor, self.action, self.width = floor, action, width
        with preparation():
            self.x = np.asarray(_checks.inputs("X", X, None if net is None else net.n_features), np.float64)
            self.n_train = len(self.x)
            n_points = checked_points(n_points, seed, self.n_train)
            if X_test is not None:
                x_test = _checks.inputs("X_test", X_test)
                _checks.equal_columns(X=self.x, X_test=x_test)
                self.x_test = np.asarray(x_test, np.float64)
            else:
                self.x_test = self.x[:0]
        if action is not None:
            _checks.instance("action", action, QuarticAction, "a gpntk.QuarticAction")
            if len(action.g) < self.n_train + len(self.x_test):
                raise ValueError(
                    f"`action` describes {len(action.g)} inputs, but X and X_test have "
                    f"{self.n_train + len(self.x_test)} rows: make it from the cumulants of all of them."
                )
            self.key = ("action", id(action))
        else:
            self.width = _checks.real_number("width", width, minimum=1.0, infinite=True)
            leaves, structure = jax.tree.flatten(net)
            values = tuple(np.asarray(leaf).tobytes() for leaf in leaves)
            self.key = (structure, values, self.width, n_points, seed)
        self.net, self.n_points, self.seed = net, n_points, seed

    def whitened(self) -> WhitenedKernel:
        """The modes of the training inputs."""
        key = ("train", self.key, self.x.tobytes(), self.x.shape, self.floor, self.retained, self.most_modes)
        result = _once(key, self.action, self._whiten)
        if self.action is None:  # an action has refused widths that are too small itself
            warn_if_narrow(result.width, result.variance, result.own_variance)
        return result

    def appended(self, y) -> AppendedRows:
        """Rows at the test inputs, given targets (None, or not known: traced)."""
        y = None if y is None or _checks.is_traced(y) else np.asarray(y, np.float64)
        key = ("test", self.key, self.x.tobytes(), self.x_test.tobytes(), self.x.shape, self.floor, self.retained)
        key = (*key, self.most_modes, None if y is None else (y.shape, y.tobytes()))
        return _once(key, self.action, functools.partial(self._append, y))

    def _whiten(self):
        with preparation():
            return whiten(self._fluctuations(self.x), self.n_train, self.floor, self.retained, self.most_modes)

    def _append(self, y):
        whitened = self.whitened()
        with preparation():
            y = None if y is None else checked_targets(y, self.n_train)
            fluctuations = self._fluctuations(np.concatenate([self.x, self.x_test]))
            return append(fluctuations, whitened, self.n_train, self.floor, y)

    def _fluctuations(self, x):
        if self.action is not None:
            mean, covariance = self.action.random_kernel()
            size = len(x)
            mean, covariance = mean[:size, :size], covariance[:size, :size, :size, :size]
            return dense_fluctuations(mean, covariance, self.n_train)
        net = cast(MLP, self.net)
        return network_fluctuations(net, jnp.asarray(x), self.n_train, self.width, self.n_points, self.seed)


def _once(key, owner, compute):
    """`compute()`, remembered for the last few keys. `owner` is kept alive where the key holds its identity."""
    with _lock:
        if key in _store:
            _store.move_to_end(key)
            return _store[key][0]
    result = compute()
    with _lock:
        _store[key] = (result, owner)
        while len(_store) > _KEPT:
            _store.popitem(last=False)
    return result


def sample_exponent(whitened: WhitenedKernel):
    """The latent coordinates of the modes, and E from them."""
    modes, offset = jnp.asarray(whitened.modes), jnp.asarray(whitened.offset)
    with numpyro.plate("mode", len(modes)):
        coordinates = numpyro.sample("kernel_modes", Normal(0.0, 1.0))
    return coordinates, offset + einsum("k,kij->ij", coordinates, modes)


def sample_noise(noise_variance: Any) -> Any:
    """The noise variance: a checked number, or a draw from its prior, site `noise_variance`."""
    if isinstance(noise_variance, Distribution):
        return numpyro.sample("noise_variance", noise_variance)
    number = _checks.real_number("noise_variance", noise_variance, minimum=0.0, strict=True)
    if np.asarray(number, jnp.result_type(float)) == 0.0:
        raise ValueError(f"`noise_variance` must not be zero in the precision that is on, got {number:g}.")
    return number


def half_exponential_times(exponent, columns):
    """exp(E/2) times columns, in the coordinates of the modes."""
    size = len(exponent)
    return jnp.concatenate([exponential(0.5 * exponent, columns[:size]), columns[size:]])


def posterior_rows(rows: AppendedRows, coordinates, whitened_outputs, spread):
    r"""Mean and variance of the outputs at the test inputs, (M, q) each.

    With u the outputs at the training inputs and their noise up to the floor, those at a test input are
    $(P_x A^{1/2} + e_x) A^{-1/2} u + \sqrt{\rho_x}\,\epsilon_x$.

    Args:
        rows: at the test inputs.
        coordinates: of the modes.
        whitened_outputs: the mean of $A^{-1/2} u$, (N, q).
        spread: the covariance of it, (N, N), the same for all outputs; `None` if u is known.
    """
    remainder = jnp.asarray(rows.remainder)
    weights = jnp.asarray(rows.loadings + rows.offset)
    weights += einsum("k,kxi->xi", coordinates, jnp.asarray(rows.modes))
    log_scale = jnp.asarray(rows.log_scale_offset) + matmul(coordinates, jnp.asarray(rows.log_scale_modes))
    variance = jnp.asarray(rows.variance) * jnp.exp(log_scale)
    if spread is not None:
        variance += einsum("xi,ij,xj->x", weights, spread, weights) + einsum("xij,ij->x", remainder, spread)
    by_target = einsum("xij,iq,jq->xq", remainder, whitened_outputs, whitened_outputs)
    # A difference of two large numbers where all modes are kept.
    variance = variance[:, None] + jnp.maximum(by_target, 0.0)
    return matmul(weights, whitened_outputs) + jnp.asarray(rows.mean_shift), variance


class ColumnNormal(Distribution):
    r"""Columns of a matrix with independent Gaussian columns, `loc + scale * (factor @ standard normal)`."""

    support: Any = constraints.real_matrix
    pytree_data_fields = ("loc", "scale", "factor")

    def __init__(self, loc, scale, factor, *, validate_args=None):
        self.loc, self.scale, self.factor = loc, scale, factor
        super().__init__((), jnp.shape(loc), validate_args=validate_args)

    def sample(self, key: Any, sample_shape=()):
        noise = jax.random.normal(key, (*sample_shape, *self.event_shape), self.loc.dtype)
        return self.loc + self.scale * matmul(self.factor, noise)

    def log_prob(self, value):
        deviation = (value - self.loc) / self.scale
        factor = jnp.broadcast_to(self.factor, (*deviation.shape[:-2], *self.factor.shape))
        whitened = jax.scipy.linalg.solve_triangular(factor, deviation, lower=True)
        rows, columns = self.event_shape
        log_scale = columns * jnp.sum(jnp.log(jnp.diagonal(self.factor))) + jnp.sum(jnp.log(self.scale))
        return -0.5 * jnp.sum(whitened**2, axis=(-2, -1)) - log_scale - 0.5 * rows * columns * np.log(2 * np.pi)

    @property
    def mean(self):
        return self.loc

    @property
    def variance(self):
        return self.scale**2 * jnp.sum(self.factor**2, axis=1)[:, None]


def sample_outputs(rows: AppendedRows, mean, variance, columns: bool) -> None:
    """Sites of the outputs at the test inputs; without a column axis where there is a single unnamed output.

    Within a draw, outputs at different inputs have the correlations of the Gaussian process left over by the
    training inputs; their variances are those of the finite network.
    """
    shape = (lambda a: a) if columns else (lambda a: a[:, 0])
    numpyro.deterministic("f_mean", shape(mean))
    numpyro.deterministic("f_variance", shape(variance))
    noise = ColumnNormal(jnp.zeros_like(mean), jnp.ones_like(mean), jnp.asarray(rows.correlation_factor))
    standard = numpyro.sample("f_noise", noise)
    numpyro.deterministic("f", shape(mean + jnp.sqrt(variance) * standard))
