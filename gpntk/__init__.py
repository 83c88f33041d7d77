"""Wide neural networks as kernels.

Names are imported when they are first used: `import gpntk` costs nothing and, unlike an import of GPJax, starts
no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpntk import datasets as datasets, groups as groups, models as models, plotting as plotting
    from gpntk.activations import *  # noqa: F403
    from gpntk.dynamics import *  # noqa: F403
    from gpntk.estimators import *  # noqa: F403
    from gpntk.finite_width import *  # noqa: F403
    from gpntk.kernels import *  # noqa: F403
    from gpntk.networks import *  # noqa: F403
    from gpntk.sampling import *  # noqa: F403

__version__ = "0.1.0"

# The public names, by the subpackage that defines them.
_PUBLIC = {
    "activations": (
        "ABReLU",
        "Abs",
        "Cos",
        "Elementwise",
        "Erf",
        "Exp",
        "GELU",
        "Gaussian",
        "Hermite",
        "Identity",
        "LeakyReLU",
        "Monomial",
        "Polynomial",
        "Rbf",
        "ReLU",
        "SiLU",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Tanh",
    ),
    "kernels": (
        "NNGP",
        "NTK",
        "BlockedComputation",
        "GramOperator",
        "GroupAveraged",
        "Product",
        "SetSum",
        "SlotSum",
        "Sum",
        "nngp_and_ntk",
        "stream_kernel_matrix",
        "unpooled_kernels",
    ),
    "groups": (),
    "datasets": (),
    "networks": ("CNN", "FiniteGroupCNN", "MLP", "PlanarGroupCNN", "SphericalCNN", "equivariant"),
    "dynamics": ("GradientDescent", "GradientFlow", "MatrixFree", "MatrixFreePosterior", "matrix_free_mll"),
    "plotting": (),
    "estimators": ("FiniteWidthRegressor", "NTKClassifier", "NTKRegressor"),
    "finite_width": (
        "QuarticAction",
        "critical_initialization",
        "cumulants",
        "depth_to_width",
        "finite_width_posterior",
        "sample_cumulants",
        "sample_finite_width_posterior",
        "susceptibilities",
    ),
    "models": (),
    "sampling": (
        "empirical_ntk",
        "linearize",
        "readout_kernels",
        "sample_kernels",
        "train",
        "train_ensemble",
    ),
}
_HOME = {name: home for home, names in _PUBLIC.items() for name in names}

__all__ = [*_PUBLIC, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return importlib.import_module(f"gpntk.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"gpntk.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gpntk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
