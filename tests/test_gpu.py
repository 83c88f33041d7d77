"""An accelerator gives the numbers of a processor: all families of kernels, in posteriors, fits and estimators."""

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gpntk
from gpntk import groups


def accelerator():
    try:
        return next(device for device in jax.devices() if device.platform != "cpu")
    except (RuntimeError, StopIteration):
        return None


pytestmark = [
    pytest.mark.gpu,
    # GPJax warns of all data in single precision.
    pytest.mark.filterwarnings("ignore:[Xy] is not of type float64:UserWarning"),
    pytest.mark.skipif(accelerator() is None, reason="no accelerator: JAX sees processors only"),
]

RNG = np.random.default_rng(0)
ARGUMENTS = {"depth": 1, "activation": gpntk.Erf(), "bias_variance": 0.1}
FAMILIES = {
    "MLP": (lambda: gpntk.NTK(gpntk.MLP(**ARGUMENTS)), 5),
    "tanh": (lambda: gpntk.NTK(gpntk.MLP(1, gpntk.Tanh(), bias_variance=0.1)), 5),
    "finite width": (lambda: gpntk.NTK(gpntk.MLP(**ARGUMENTS), width=1000), 5),
    "NNGP": (lambda: gpntk.NNGP(gpntk.MLP(**ARGUMENTS), variance=1.3), 5),
    "CNN": (lambda: gpntk.NTK(gpntk.CNN((4, 4, 1), **ARGUMENTS)), 16),
    "C4": (lambda: gpntk.NTK(gpntk.PlanarGroupCNN("C4", (4, 4, 1), **ARGUMENTS)), 16),
    "finite group": (lambda: gpntk.NTK(gpntk.FiniteGroupCNN(groups.FiniteGroup.cyclic(4), **ARGUMENTS)), 4),
    "SO(3)": (lambda: gpntk.NTK(gpntk.SphericalCNN(3, sampling="coefficients", **ARGUMENTS)), 9),
    "average": (lambda: gpntk.GroupAveraged(gpntk.NTK(gpntk.MLP(**ARGUMENTS)), groups.FiniteGroup.cyclic(4)), 4),
    "set": (lambda: gpntk.SetSum(gpntk.NTK(gpntk.MLP(**ARGUMENTS)), 2), 6),
    "sum": (lambda: gpntk.NTK(gpntk.MLP(**ARGUMENTS)) + 0.5 * gpntk.NNGP(gpntk.MLP(**ARGUMENTS)), 5),
}
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-10}


def on_both(compute, dtype):
    """What `compute` returns on the processor and on the accelerator."""
    results = []
    for device in (jax.devices("cpu")[0], accelerator()):
        with jax.enable_x64(dtype is np.float64), jax.default_device(device):
            results.append(jax.tree.map(np.asarray, compute()))
    return results


def data(width, dtype):
    x = RNG.normal(size=(20, width)).astype(dtype)
    return x, np.sin(x).sum(1, keepdims=True).astype(dtype)


def close(values, dtype):
    expected, found = values
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_posteriors(family, dtype):
    make, width = FAMILIES[family]
    x, y = data(width, dtype)

    def posterior():
        kernel = make()
        prior = gpx.gps.Prior(kernel=kernel, mean_function=gpx.mean_functions.Zero())
        model = prior * gpx.likelihoods.Gaussian(obs_stddev=jnp.array(0.5, dtype))
        # GPJax leaves its products to JAX, whose default in float32 is ten bits on recent GPUs; we do not.
        with jax.default_matmul_precision("highest"):
            found = model.condition(gpx.Dataset(jnp.asarray(x), jnp.asarray(y)))(jnp.asarray(x[:5]))
        gram, cross = kernel.gram(x).as_matrix(), kernel.cross_covariance(x, x[:5])
        return jnp.concatenate([gram.ravel(), cross.ravel(), found.mean, found.variance])

    close(on_both(posterior, dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_tiles(dtype):
    """Two of 2,016 rows, of which 32 are padding."""
    x = RNG.normal(size=(4000, 5)).astype(dtype)
    kernel = gpntk.NTK(gpntk.MLP(**ARGUMENTS), compute_engine=gpntk.BlockedComputation(2050))
    close(on_both(lambda: kernel.gram(x).as_matrix(), dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fits(dtype):
    x, y = data(5, dtype)

    def fitted():
        prior = gpx.gps.Prior(kernel=FAMILIES["MLP"][0](), mean_function=gpx.mean_functions.Zero())
        model = prior * gpx.likelihoods.Gaussian(obs_stddev=jnp.array(0.5, dtype))
        return gpx.fit(
            model=model,
            objective=lambda m, d: -gpx.objectives.conjugate_mll(m, d),
            train_data=gpx.Dataset(jnp.asarray(x), jnp.asarray(y)),
            optim=optax.adam(0.01),
            num_iters=5,
            verbose=False,
        )[1]

    close(on_both(fitted, dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("solver", ["auto", "matrix_free"])
def test_estimators(solver, dtype):
    x, y = data(5, dtype)

    def predicted():
        network = gpntk.MLP(**ARGUMENTS)
        model = gpntk.NTKRegressor(network, alpha=0.1, solver=solver, dtype=np.dtype(dtype).name).fit(x, y[:, 0])
        return np.concatenate(model.predict(x[:5], return_std=True))

    close(on_both(predicted, dtype), dtype)
