import re

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk

MLP = gpntk.MLP(2, weight_variance=1.3, bias_variance=0.2)
ELEMENTS = {
    "ntk": gpntk.NTK(MLP),
    "rbf": gpx.kernels.RBF(),
    "sphere": gpntk.NTK(gpntk.SphericalCNN(2, 1, 1, "coefficients", 3)),
}
SIZE, D = 4, 4
pytestmark = pytest.mark.usefixtures("x64")
every_kernel = pytest.mark.parametrize("kernel", ELEMENTS.values(), ids=ELEMENTS)


def sets(n=7, seed=0):
    """Rows of up to four elements, some slots empty, one set empty and one full."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, SIZE, D)) * (rng.random((n, SIZE, 1)) < 0.6)
    x[0], x[1] = 0.0, rng.normal(size=(SIZE, D))
    return x


def literal(kernel, x, y, slots):
    """The kernel of all elements, and loops over them."""
    elements = np.asarray(kernel.cross_covariance(x.reshape(-1, D), y.reshape(-1, D)))
    elements = elements.reshape(len(x), SIZE, len(y), SIZE)
    result = np.zeros((len(x), len(y)))
    for a, i, b, j in np.ndindex(elements.shape):
        if x[a, i].any() and y[b, j].any() and (i == j or not slots):
            result[a, b] += elements[a, i, b, j]
    return result


@every_kernel
@pytest.mark.parametrize("slots", [False, True])
def test_kernels_are_sums_over_elements(kernel, slots):
    total = (gpntk.SlotSum if slots else gpntk.SetSum)(kernel, SIZE)
    x, y = sets(5), sets(3, seed=1)
    y[2] = x[4]
    expected = literal(kernel, x, y, slots)
    flat_x, flat_y = x.reshape(5, -1), y.reshape(3, -1)
    np.testing.assert_allclose(total.cross_covariance(flat_x, flat_y), expected, rtol=1e-12, atol=1e-12)
    gram = total.gram(flat_x).as_matrix()
    np.testing.assert_allclose(gram, total.cross_covariance(flat_x, flat_x), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(jnp.diagonal(gram), jnp.diagonal(total.diagonal(flat_x).as_matrix()))
    assert np.all(np.asarray(gram)[0] == 0)
    tiles = (gpntk.SlotSum if slots else gpntk.SetSum)(kernel, SIZE, compute_engine=gpntk.BlockedComputation(2))
    np.testing.assert_allclose(tiles.gram(flat_x).as_matrix(), gram, rtol=1e-12, atol=1e-12)


def test_only_sets_forget_the_order_of_elements():
    x = sets(4)
    permuted = x[:, [2, 0, 3, 1]].reshape(4, -1)
    x = x.reshape(4, -1)
    kernel = gpntk.SetSum(gpntk.NTK(MLP), SIZE)
    np.testing.assert_allclose(kernel.cross_covariance(permuted, x), kernel.gram(x).as_matrix(), atol=1e-12)
    slots = gpntk.SlotSum(gpntk.NTK(MLP), SIZE)
    assert np.abs(slots.cross_covariance(permuted, x) - slots.gram(x).as_matrix()).max() > 0.1


def test_a_set_sum_is_the_kernel_of_a_network_summed_over_elements():
    """Linear readout of hidden features: sums of outputs have the sum of kernels, exactly at depth one."""
    net = gpntk.MLP(1, gpntk.Identity(), weight_variance=1.0)
    x = sets(4)
    gram = gpntk.SetSum(gpntk.NTK(net), SIZE).gram(x.reshape(4, -1)).as_matrix()
    total = x.sum(1)
    np.testing.assert_allclose(gram, 2 * total @ total.T / D, atol=1e-12)


@pytest.mark.parametrize("kind", [gpntk.SetSum, gpntk.SlotSum])
def test_hyperparameters_have_gradients(kind):
    x = sets(4).reshape(4, -1)

    def value(variance):
        net = gpntk.MLP(1, weight_variance=variance, bias_variance=0.1)
        return kind(gpntk.NTK(net), SIZE).gram(x).as_matrix().sum()

    gradient, step = jax.grad(value)(1.3), 1e-5
    difference = (value(1.3 + step) - value(1.3 - step)) / (2 * step)
    np.testing.assert_allclose(gradient, difference, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gpntk.SetSum(MLP, 3), TypeError, "`kernel` must be a GPJax kernel"),
        (lambda: gpntk.SlotSum(gpntk.NTK(MLP), 0), ValueError, "`max_size` must be an integer >= 1, got 0"),
        (lambda: gpntk.SetSum(gpntk.NTK(MLP), 3).gram(np.ones((2, 8))), ValueError, "a multiple of `max_size`, 3"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
