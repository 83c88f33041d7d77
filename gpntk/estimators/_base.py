"""What regressor and classifier share: parameters, kernels and precision."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from gpjax.kernels import AbstractKernel
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from gpntk import _checks
from gpntk.dynamics import GradientFlow, MatrixFree
from gpntk.dynamics._arguments import checked_solver, checked_times, checked_weights
from gpntk.kernels import NNGP, NTK
from gpntk.networks import MLP, AbstractNetwork


class AbstractNetworkEstimator(BaseEstimator):
    """An estimator whose parameter `network` is an architecture, with parameters of its own, or `None`."""

    network: Any

    # Networks are immutable, and scikit-learn drops what a nested `set_params` returns

    def set_params(self, **params: Any):
        """Set parameters, those of the network as `network__name`: it is replaced by a changed one."""
        nested = {name: params.pop(name) for name in list(params) if name.startswith("network__")}
        super().set_params(**params)
        if nested:
            network = default_network() if self.network is None else self.network
            if not isinstance(network, AbstractNetwork):
                raise ValueError(
                    f"Invalid parameter {next(iter(nested))!r}: `network` must be an architecture such as "
                    f"gpntk.MLP(), got {network!r}."
                )
            changes = {name.removeprefix("network__"): value for name, value in nested.items()}
            self.network = network.set_params(**changes)
        return self

    def __getstate__(self):
        # JAX would restore float64 arrays in float32 wherever the float64 flag is off; NumPy keeps them.
        state: dict[str, Any] = super().__getstate__()  # pyright: ignore[reportAssignmentType] (a dictionary)
        return {name: jax.tree.map(_as_numpy, value) for name, value in state.items()}


class AbstractNTKEstimator(AbstractNetworkEstimator):
    """An estimator around `GradientFlow`. It computes in its own precision, whatever JAX's global flag says."""

    # Parameters that subclasses have
    prior: AbstractKernel | None
    time: float
    learning_rate: float
    alpha: float
    loss: str
    reduction: str
    solver: str | MatrixFree
    dtype: str

    def _start(self, X, y, sample_weight, **validation):
        """Check parameters and data, and choose the kernels."""
        _checks.real_number("time", self.time, minimum=0.0, infinite=True)
        _checks.real_number("learning_rate", self.learning_rate, minimum=0.0, strict=True)
        _checks.real_number("alpha", self.alpha, minimum=0.0)
        _checks.option("reduction", self.reduction, ("sum", "mean"))
        checked_solver(self.solver)
        _checks.option("dtype", self.dtype, ("float64", "float32"))
        X, y = cast(tuple[np.ndarray, np.ndarray], validate_data(self, X, y, dtype=self.dtype, **validation))
        if sample_weight is not None:
            _checks.real_array("sample_weight", sample_weight, self.dtype)
            sample_weight = checked_weights(_check_sample_weight(sample_weight, X, dtype=self.dtype), X)
        network = default_network() if self.network is None else self.network
        prior = self.prior
        if isinstance(network, AbstractNetwork):
            self.kernel_ = NTK(network)
            prior = NNGP(network) if prior is None else prior
        else:
            wanted = "an architecture such as gpntk.MLP(), a GPJax kernel, or None"
            self.kernel_ = _checks.instance("network", network, AbstractKernel, wanted)
        if prior is not None:
            _checks.instance(
                "prior", prior, AbstractKernel, "a GPJax kernel such as gpntk.NNGP(gpntk.MLP()), or None"
            )
        self.prior_ = prior
        return X, y, sample_weight

    def _train(self, X, y, sample_weight):
        """The flow, with the factorisation that predictions at `self.time` need."""
        with jax.enable_x64(True):
            self._flow = GradientFlow(
                self.kernel_,
                self.prior_,
                X,
                y,
                learning_rate=self.learning_rate,
                alpha=self.alpha,
                loss=self.loss,
                reduction=self.reduction,
                sample_weight=sample_weight,
                solver=self.solver,
            )
            # Numbers of the fit: a Gram matrix that cannot be used is found here, and not when predicting.
            self.dual_coef_ = np.asarray(self._flow.dual_coefficients(float(self.time)))
            self.solver_report_ = self._flow.solver_report

    def _test_inputs(self, X):
        check_is_fitted(self)
        return validate_data(self, X, dtype=self.dtype, reset=False)

    def _single(self, time) -> float:
        """The one time of a prediction, the estimator's own for `None`."""
        if time is None:
            return self.time
        return _checks.real_number("time", time, minimum=0.0, infinite=True)

    def _several(self, times) -> np.ndarray:
        return np.atleast_1d(np.asarray(checked_times("times", times)))

    def _mean(self, X, times):
        with jax.enable_x64(True):
            mean = np.asarray(self._flow.mean(padded(X), times))
        return mean[(slice(None),) * np.ndim(times) + (slice(len(X)),)]

    def _spread(self, X, time, *, diagonal):
        if self.prior_ is None:
            raise ValueError("`prior` must be a GPJax kernel for a spread where `network` is a kernel, got None.")
        with jax.enable_x64(True):
            if diagonal:
                return np.asarray(self._flow.variance(padded(X), time))[: len(X)]
            return np.asarray(self._flow.covariance(X, time))


def padded(X: np.ndarray) -> np.ndarray:
    """Up to a power of two or a multiple of 128 rows, which do not change the others: few shapes are compiled."""
    n = len(X)
    size = -(-n // 128) * 128 if n > 128 else 1 << max(n - 1, 7).bit_length()
    return X[np.minimum(np.arange(size), n - 1)]


def default_network() -> MLP:
    """The network that `None` stands for."""
    # With biases: without them a ReLU network is homogeneous, f(c x) = c f(x), and zero at the mean of the data.
    return MLP(depth=2, bias_variance=0.1)


def location_and_scale(
    y: Float[np.ndarray, "N ..."], normalize_y: bool, sample_weight: Float[np.ndarray, " N"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each target, (n_outputs,) or (); 0 and 1 without `normalize_y`, 1 for constant ones."""
    if not normalize_y:
        return np.zeros(y.shape[1:]), np.ones(y.shape[1:])
    mean = np.average(y, axis=0, weights=sample_weight)
    scale = np.sqrt(np.average((y - mean) ** 2, axis=0, weights=sample_weight))
    seen = y if sample_weight is None else y[sample_weight > 0]
    # Rounding can leave a deviation from the mean of equal numbers.
    return mean, np.where(np.ptp(seen, axis=0) > 0, scale, 1.0)


def check_spread(return_std: Any, return_cov: Any) -> None:
    """Options of `predict`; as in scikit-learn's Gaussian processes, one spread at most."""
    _checks.boolean("return_std", return_std)
    _checks.boolean("return_cov", return_cov)
    if return_std and return_cov:
        raise RuntimeError("At most one of return_std or return_cov can be requested.")


def _as_numpy(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jnp.ndarray) else leaf
