"""Products of matrices are asked for in full precision: the default of recent GPUs is off by 1e-3 in float32."""

import functools
import re

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

import gpntk
from gpntk import groups

SETTINGS = {"depth": 2, "bias_variance": 0.1}
NETWORKS = {
    "MLP": (gpntk.MLP(**SETTINGS), 3),
    "tanh": (gpntk.MLP(activation=gpntk.Tanh(), **SETTINGS), 3),
    "CNN": (gpntk.CNN((4, 4, 1), **SETTINGS), 16),
    "C4": (gpntk.PlanarGroupCNN("C4", (3, 3, 1), **SETTINGS), 9),
    "finite group": (gpntk.FiniteGroupCNN(groups.FiniteGroup.cyclic(3), **SETTINGS), 3),
    "SO(3)": (gpntk.SphericalCNN(2, activation=gpntk.Erf(), sampling="coefficients", **SETTINGS), 4),
}


def data(width):
    x = np.random.default_rng(0).normal(size=(6, width)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(x[:, 0])


def kernel(net, width):
    x, _ = data(width)
    return lambda x: gpntk.NTK(net).gram(x).as_matrix(), x


def finite_network(net, width):
    x, _ = data(width)
    return net.apply, net.init(jax.random.key(0), width, width=4), x


def empirical_kernel(net, width):
    x, _ = data(width)
    return lambda params, x: gpntk.empirical_ntk(net, params, x), net.init(jax.random.key(0), width, width=4), x


def training(net, width):
    x, y = data(width)

    def predicted(x, y):
        flow = gpntk.GradientFlow(gpntk.NTK(net), gpntk.NNGP(net), x, y, alpha=0.1)
        return flow.mean(x, 2.0), flow.covariance(x, 2.0), flow.mean(x, np.inf)

    return predicted, x, y


def finite_width_kernel(net, width):
    x, _ = data(width)
    return lambda x: gpntk.NTK(net, width=1000).gram(x).as_matrix(), x


def matrix_free(net, width):
    x, y = data(width)

    def predicted(x, y):
        flow = gpntk.GradientFlow(gpntk.NTK(net), None, x, y, alpha=0.1, solver=gpntk.MatrixFree())
        return flow.mean(x, np.inf)

    return predicted, x, y


def gaussian_process(net, width):
    x, y = data(width)
    model = gpx.gps.Prior(kernel=gpntk.NNGP(net), mean_function=gpx.mean_functions.Zero())
    model = model * gpx.likelihoods.Gaussian(obs_stddev=jnp.float32(0.5))

    def predicted(x, y):
        posterior = gpntk.MatrixFreePosterior(model, gpx.Dataset(x, y[:, None]))
        return posterior(x).mean, posterior(x).covariance()

    return predicted, x, y


def bayesian_model(net, width):
    x, y = data(width)
    regression, classification = gpntk.models.finite_width_regression, gpntk.models.finite_width_classification
    noise = numpyro.distributions.Uniform(0.05, 0.5)
    models = [
        functools.partial(regression, x, y, x[:2], noise_variance=0.1),
        functools.partial(regression, x, None, x[:2], noise_variance=noise),
        functools.partial(classification, x, y > 0, x[:2], n_classes=2),
    ]

    def everything(key):
        values = []
        for model in models:
            model = functools.partial(numpyro.handlers.seed(model, key), net=net, width=1000)
            trace = numpyro.handlers.trace(model).get_trace()
            samples = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
            values += [site["value"] for site in trace.values() if site["type"] != "plate"]
            values += [numpyro.infer.util.log_density(model, (), {}, samples)[0]]
        return values

    return everything, jax.random.key(0)


def quartic_action(net, width):
    x, _ = data(width)
    action = gpntk.QuarticAction.from_cumulants(gpntk.cumulants(net, x), width=1000)

    def drawn(key):
        z = action.sample(key)
        return z, action.log_prob(z)

    return drawn, jax.random.key(0)


CASES = [(function, name) for function in (kernel, finite_network) for name in NETWORKS]
CASES += [(empirical_kernel, "MLP"), (training, "MLP"), (matrix_free, "MLP"), (gaussian_process, "MLP")]
CASES += [(finite_width_kernel, "MLP"), (finite_width_kernel, "tanh"), (bayesian_model, "MLP")]
CASES += [(quartic_action, "MLP")]


def products(function, *arguments):
    """The products and convolutions of single precision in the program that JAX hands to XLA."""
    text = jax.jit(function).lower(*arguments).as_text()
    lines = re.findall(r"stablehlo\.(?:dot_general|convolution)[^\n]*", text)
    return [line for line in lines if "xf32>" in line]


@pytest.mark.filterwarnings("ignore:[Xy] is not of type float64:UserWarning")
@pytest.mark.parametrize(("function", "name"), CASES)
def test_products_are_whole(function, name):
    found = products(*function(*NETWORKS[name]))
    assert found
    assert not [line for line in found if "HIGHEST" not in line]
