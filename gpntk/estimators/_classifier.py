"""Classification with infinitely wide networks."""

import math
from typing import Any, Self

import numpy as np
import scipy.special
from gpjax.kernels import AbstractKernel
from jaxtyping import Float
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from gpntk import _checks
from gpntk.dynamics import MatrixFree
from gpntk.estimators._base import AbstractNTKEstimator
from gpntk.networks import AbstractNetwork


class NTKClassifier(ClassifierMixin, AbstractNTKEstimator):
    r"""Classification by an infinitely wide network with one output per class, trained by gradient flow.

    With `loss="squared"` the targets are one-hot vectors minus `1/n_classes`; outputs of trained networks are
    Gaussian, and `predict_proba` is the probability, over initialisations, that the output of a class is the
    largest. With `loss="cross_entropy"` outputs are logits, those of the flow that starts from zero, the prior
    mean (not the mean of an ensemble: that flow is nonlinear), and `predict_proba` is their softmax.

    Arguments that `NTKRegressor` has too mean the same.

    Args:
        network: architecture, or a GPJax kernel that trains. `None` means `MLP(depth=2, bias_variance=0.1)`.
        prior: GPJax kernel of the outputs at initialisation. `None` means `NNGP(network)` where `network` is an
            architecture. Probabilities under the squared loss need it.
        time: training time, at least 0; infinity is allowed for the squared loss.
        learning_rate: factor in front of the gradient, positive.
        alpha: weight decay towards the initialisation, added to the diagonal of the Gram matrix.
        loss: "squared" or "cross_entropy".
        reduction: "sum" of the losses of the rows, or their "mean".
        solver: "cholesky" (infinite time only), "eigh", "matrix_free" or its settings `MatrixFree(...)`, or
            "auto": matrix-free for Gram matrices above 2 GiB, otherwise the cheaper one of the others. For
            the cross-entropy it only says whether the Gram matrix is stored.
        dtype: precision of the computation, "float64" or "float32".

    Attributes:
        classes_: the class labels.
        kernel_: the kernel that trains.
        prior_: the kernel of the prior, or `None`.
        dual_coef_: coefficients of `kernel_(x, X)` in the outputs at `time`, without the rows of weight zero.
        solver_report_: iterations and residual of the matrix-free solver, `None` for the others.
        n_features_in_: number of features.
        feature_names_in_: their names, where they are strings.

    >>> import gpntk, numpy as np
    >>> X = np.array([[-1.0], [-0.5], [0.5], [1.0]])
    >>> model = gpntk.NTKClassifier().fit(X, ["left", "left", "right", "right"])
    >>> model.predict([[-0.7], [2.0]]).tolist()
    ['left', 'right']
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
        self.dtype = dtype

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Compute the Gram matrix and train.

        Args:
            X: (n_samples, n_features).
            y: (n_samples,) class labels, of at least two classes.
            sample_weight: (n_samples,), non-negative. A weight of 2 equals a row given twice.

        Raises:
            ValueError: for bad parameters or data, and if the Gram matrix is too close to singular.
        """
        _checks.option("loss", self.loss, ("squared", "cross_entropy"))
        X, y, sample_weight = self._start(X, y, sample_weight)
        if self.loss == "cross_entropy" and math.isinf(self.time):
            raise ValueError(
                f"`time` must be finite for loss='cross_entropy', got {self.time}: the outputs grow without bound "
                "where the classes can be separated."
            )
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"`y` must hold at least two classes, got {len(self.classes_)} class: {self.classes_.tolist()}."
            )
        targets = np.eye(len(self.classes_))[index]
        self._train(X, targets - 1 / len(self.classes_) if self.loss == "squared" else targets, sample_weight)
        return self

    def predict(self, X: Any, time: float | None = None) -> np.ndarray:
        """Class with the largest mean output, (n_samples,).

        `time` is a training time in the place of the estimator's; it needs no new fit.
        """
        largest = self._mean(self._test_inputs(X), self._single(time)).argmax(axis=1)
        return self.classes_[largest]

    def decision_function(self, X: Any, time: float | None = None) -> np.ndarray:
        """Mean outputs, (n_samples, n_classes); for two classes their difference, (n_samples,)."""
        return _decision(self._mean(self._test_inputs(X), self._single(time)))

    def predict_path(self, X: Any, times: Any) -> np.ndarray:
        """Decision functions at a vector of times, with that leading axis, at the cost of about one of them."""
        return _decision(self._mean(self._test_inputs(X), self._several(times)))

    def predict_proba(self, X: Any, time: float | None = None) -> np.ndarray:
        """Class probabilities, (n_samples, n_classes).

        Raises:
            ValueError: for the squared loss without a prior.
        """
        X, time = self._test_inputs(X), self._single(time)
        outputs = self._mean(X, time)
        if self._flow.loss == "cross_entropy":  # that of the fit
            return scipy.special.softmax(outputs, axis=1)
        return probability_of_largest(outputs, self._spread(X, time, diagonal=True))


def probability_of_largest(
    mean: Float[np.ndarray, "N C"], variance: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N C"]:
    r"""The probability of each of several independent Gaussians of equal variance to be the largest of them.

    $$P_c = \int \varphi(z + a_c) \prod_{j \ne c} \Phi(z + a_j)\, dz, \qquad a_c = (\max_j m_j - m_c)/\sigma$$

    by the trapezoidal rule, which for such integrands is exact to rounding. Where the variance is zero the largest
    mean wins, and equal ones share.
    """
    # Beyond 9 on either side the integrand is below 1e-17, and a lag of 50 is certain defeat.
    z = np.linspace(-9.0, 9.0, 129)
    deviation = np.maximum(np.sqrt(variance), 1e-100)[:, None]
    lag = np.minimum((mean.max(axis=1, keepdims=True) - mean) / deviation, 50.0)
    point = z + lag[..., None].astype(float)
    log_below = scipy.special.log_ndtr(point)
    others_below = np.exp(log_below.sum(axis=1, keepdims=True) - log_below)
    integral = np.sum(np.exp(-(point**2) / 2) * others_below, axis=2)
    return (integral / integral.sum(axis=1, keepdims=True)).astype(mean.dtype)


def _decision(outputs):
    return outputs[..., 1] - outputs[..., 0] if outputs.shape[-1] == 2 else outputs
