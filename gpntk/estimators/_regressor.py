"""Regression with infinitely wide networks."""

import math
from typing import Any, Self

import numpy as np
from gpjax.kernels import AbstractKernel
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state

from gpntk import _checks
from gpntk.dynamics import MatrixFree
from gpntk.estimators._base import AbstractNTKEstimator, check_spread, location_and_scale
from gpntk.networks import AbstractNetwork


class NTKRegressor(MultiOutputMixin, RegressorMixin, AbstractNTKEstimator):
    r"""Regression by an infinitely wide network, trained by gradient flow from random initialisations.

    Predictions are the mean, and on request the spread, of the trained networks over their initialisations. At
    `time=np.inf` the mean is kernel ridge regression with the network's neural tangent kernel. Standardise the
    features, and the target or set `normalize_y`. The spread is that of initialisations, without noise.

    Args:
        network: architecture, or a GPJax kernel that trains. `None` means `MLP(depth=2, bias_variance=0.1)`. Its
            arguments are parameters of the estimator, `network__depth` and so on.
        prior: GPJax kernel of the outputs at initialisation. `None` means `NNGP(network)` where `network` is an
            architecture, and no spread where it is a kernel. `network=NNGP(net)` trains the readout layer only.
        time: training time, at least 0, infinity allowed.
        learning_rate: factor in front of the gradient, positive.
        alpha: weight decay towards the initialisation, added to the diagonal of the Gram matrix.
        loss: "squared".
        reduction: "sum" of the losses of the rows, or their "mean", which divides the clock by the number of rows.
        solver: "cholesky" (infinite time only), "eigh", "matrix_free" or its settings `MatrixFree(...)`, or
            "auto": matrix-free for Gram matrices above 2 GiB, otherwise the cheaper one of the others.
        normalize_y: whether each target is shifted and scaled to zero mean and unit variance for the fit.
        dtype: precision of the computation, "float64" or "float32".

    Attributes:
        kernel_: the kernel that trains.
        prior_: the kernel of the prior, or `None`.
        dual_coef_: coefficients of `kernel_(x, X)` in the mean at `time`, in units of the normalised
            target, without the rows of weight zero.
        solver_report_: iterations and residual of the matrix-free solver, `None` for the others.
        n_features_in_: number of features.
        feature_names_in_: their names, where they are strings.

    >>> import gpntk, numpy as np
    >>> X = np.linspace(-1, 1, 9)[:, None]
    >>> model = gpntk.NTKRegressor(alpha=1e-3).fit(X, np.sin(3 * X[:, 0]))
    >>> mean, std = model.predict([[0.1]], return_std=True)
    >>> mean.round(1).tolist()
    [0.3]
    """

    def __init__(
        self,
        network: AbstractNetwork | AbstractKernel | None = None,
        prior: AbstractKernel | None = None,
        time: float = math.inf,
        learning_rate: float = 1.0,
        alpha: float = 1e-6,
        loss: str = "squared",
        reduction: str = "sum",
        solver: str | MatrixFree = "auto",
        normalize_y: bool = False,
        dtype: str = "float64",
    ):
        self.network = network
        self.prior = prior
        self.time = time
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.loss = loss
        self.reduction = reduction
        self.solver = solver
        self.normalize_y = normalize_y
        self.dtype = dtype

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Compute and factorise the Gram matrix.

        Args:
            X: (n_samples, n_features).
            y: (n_samples,) or (n_samples, n_outputs).
            sample_weight: (n_samples,), non-negative. A weight of 2 equals a row given twice.

        Raises:
            ValueError: for bad parameters or data, and if the Gram matrix is too close to singular.
        """
        _checks.option("loss", self.loss, ("squared",))
        _checks.boolean("normalize_y", self.normalize_y)
        X, y, sample_weight = self._start(X, y, sample_weight, multi_output=True, y_numeric=True)
        y = _checks.real_array("y", y, self.dtype)
        self._y_mean, self._y_scale = location_and_scale(y, self.normalize_y, sample_weight)
        self._train(X, (y - self._y_mean) / self._y_scale, sample_weight)
        return self

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False, time: float | None = None
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Mean of the trained networks, and their spread.

        Args:
            X: (n_samples, n_features).
            return_std: also return standard deviations, of the shape of the mean.
            return_cov: also return covariances, (n_samples, n_samples) or (n_samples, n_samples, n_outputs).
            time: training time in the place of the estimator's; it needs no new fit.

        Returns:
            (n_samples,) or (n_samples, n_outputs), followed by the spread if asked for.
        """
        check_spread(return_std, return_cov)
        X, time = self._test_inputs(X), self._single(time)
        mean = self._rescaled(self._mean(X, time))
        if return_std:
            std = np.sqrt(self._spread(X, time, diagonal=True))
            return mean, np.multiply.outer(std, self._y_scale).astype(mean.dtype)
        if return_cov:
            covariance = self._spread(X, time, diagonal=False)
            return mean, np.multiply.outer(covariance, self._y_scale**2).astype(mean.dtype)
        return mean

    def predict_path(self, X: Any, times: Any) -> np.ndarray:
        """Means at a vector of times, at the cost of about one of them.

        Returns:
            (n_times, n_samples) or (n_times, n_samples, n_outputs).
        """
        return self._rescaled(self._mean(self._test_inputs(X), self._several(times)))

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Outputs of randomly initialised, trained networks, jointly over the rows of X.

        Returns:
            (n_rows, n_samples) or (n_rows, n_outputs, n_samples), as in scikit-learn's Gaussian processes.
        """
        n_samples = _checks.integer("n_samples", n_samples, minimum=1)
        rng = check_random_state(random_state)
        mean, covariance = self.predict(X, return_cov=True)
        means, covariances = (a.reshape(*a.shape[:k], -1) for a, k in ((mean, 1), (covariance, 2)))
        draws = [
            rng.multivariate_normal(means[:, i], covariances[:, :, i], n_samples).T for i in range(means.shape[1])
        ]
        return draws[0] if mean.ndim == 1 else np.stack(draws, axis=1)

    def _rescaled(self, mean):
        return (mean * self._y_scale + self._y_mean).astype(mean.dtype)
