"""Neural tangent kernels of finite networks, and their linearisation."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from gpntk import _checks
from gpntk._products import matmul
from gpntk.kernels._tiles import cross_blocks, gram_blocks
from gpntk.networks import AbstractNetwork
from gpntk.sampling._cost import affordable, fits, flops, working_set

Function = Callable[[AbstractNetwork, Any, Float[Array, "N D"]], Float[Array, "N q"]]
"""A function of an architecture, differentiable parameters and a batch of inputs, acting on each input alone."""


def empirical_ntk(
    net: AbstractNetwork,
    params: list,
    x1: Float[ArrayLike, "N1 D"],
    x2: Float[ArrayLike, "N2 D"] | None = None,
    outputs: str = "mean",
) -> Float[Array, "N1 N2"] | Float[Array, "N1 N2 q q"]:
    r"""The neural tangent kernel of one finite network.

    $$\Theta_{ij}(x, x') = \sum_\mu \frac{\partial z_i(x)}{\partial\theta_\mu}
        \frac{\partial z_j(x')}{\partial\theta_\mu}$$

    Jacot, Gabriel & Hongler (2018), Section 4. It is computed by contraction of Jacobians or by Jacobian-vector
    products (Novak, Sohl-Dickstein & Schoenholz 2022, arXiv:2206.08720), whichever takes fewer operations for
    these shapes, in blocks of inputs: apart from the result, memory does not grow with their number.

    Args:
        net: the architecture.
        params: parameters of a finite network, from `net.init`.
        x1: inputs, one per row.
        x2: further inputs; `None` means `x1`.
        outputs: "mean" for the mean over outputs of the diagonal blocks, which the infinite-width kernel is
            the limit of; "full" for the kernel of all pairs of outputs.

    Returns:
        An array of shape (N1, N2), or (N1, N2, q, q) for q outputs with `outputs="full"`.

    Raises:
        ValueError: if inputs are not finite 2-D arrays of matching dimension, if `params` are not those of
            `net`, or for an unknown `outputs`.
        TypeError: if `net` is not an architecture.

    >>> import gpntk, jax
    >>> net = gpntk.MLP(depth=1)
    >>> params = net.init(jax.random.key(0), input_dim=2, width=8, n_outputs=3)
    >>> gpntk.empirical_ntk(net, params, jax.numpy.eye(2), outputs="full").shape
    (2, 2, 3, 3)
    """
    _checks.option("outputs", outputs, ("mean", "full"))
    params, x1, x2 = checked(net, params, x1, x2)
    return _compiled_ntk(_outputs, net, params, x1, x2, outputs)


def linearize(net: AbstractNetwork, params: list) -> Callable[[list, Float[Array, "N D"]], Float[Array, "N q"]]:
    r"""The first-order Taylor expansion of a finite network in its parameters.

    $$f(\theta, x) = z(\theta_0, x) + \nabla_\theta z(\theta_0, x) \cdot (\theta - \theta_0)$$

    Lee et al. (2019), arXiv:1902.06720, eq. (5). A wide network trained by gradient descent follows it.

    Args:
        net: the architecture.
        params: the point of expansion, from `net.init`.

    Returns:
        A function of new parameters and inputs (N, D) with values of shape (N, n_outputs).

    Raises:
        ValueError: if `params` are not those of `net`.
        TypeError: if `net` is not an architecture.
    """
    check_parameters(net, params)

    def linearized(new_params: list, x: Float[Array, "N D"]) -> Float[Array, "N q"]:
        check_parameters(net, new_params)
        start, end, x = in_one_precision((params, new_params, _checks.inputs("x", x, net.n_features)))
        change = jax.tree.map(jnp.subtract, end, start)
        value, slope = jax.jvp(lambda p: net.apply(p, x), (start,), (change,))
        return value + slope

    return linearized


def checked(net, params, x1, x2):
    """Parameters and inputs, validated and in one precision."""
    check_parameters(net, params)
    x1 = _checks.inputs("x1", x1, net.n_features)
    x2 = None if x2 is None else _checks.inputs("x2", x2, net.n_features)
    if x2 is not None:
        _checks.equal_columns(x1=x1, x2=x2)
    return in_one_precision((params, x1, x2))


def check_parameters(net, params) -> None:
    """Refuse parameters that cannot be those of the architecture."""
    _checks.instance("net", net, AbstractNetwork, "an architecture such as gpntk.MLP()")
    net.check_parameters(params)


def in_one_precision(tree: Any) -> Any:
    """All arrays of a tree in the widest of their types: a derivative has the precision of its variable."""
    dtype = jnp.result_type(*jax.tree.leaves(tree))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def _outputs(net, params, x):
    return net.apply(params, x)


@eqx.filter_jit
def _compiled_ntk(function, net, params, x1, x2, outputs):
    return ntk(function, net, params, x1, x2, outputs)


def ntk(function: Function, net, params, x1, x2, outputs: str):
    r"""The tangent kernel of any function of network and parameters, by the cheaper of two methods.

    Operations, with $F$ those of one evaluation at one input, $P$ parameters, $q$ outputs, and rows of the
    Jacobian processed in tiles of $b$ ($b$ limited by memory):

    - contraction of Jacobians whose rows are inputs ("mean", $(1 + 2q) F$ and $qP$ numbers a row) or pairs of
      input and output ("full", $3F$ and $P$ numbers a row): for $R_1$ and $R_2$ rows, $2 R_1 R_2$ times the
      numbers of a row, and a row's operations once for every tile it meets;
    - Jacobian-vector products: $3F$ for each pair of input $x_2$ and output, $2F$ more for each input $x_1$.

    The first always wins for "mean" unless two rows of a Jacobian exceed the memory; the second wins for "full"
    with more than a few outputs, because it does not square their number.
    """
    evaluation = flops(function, net, params, x1[:1])
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    q = jax.eval_shape(lambda p: function(net, p, x1[:1]), params).shape[-1]
    n1, n2 = x1.shape[0], (x1 if x2 is None else x2).shape[0]
    row_flops, row_size, rows = ((1 + 2 * q) * evaluation, q * size, 1)
    if outputs == "full":
        row_flops, row_size, rows = 3 * evaluation, size, q
    block = affordable(2 * row_size, max(n1, n2) * rows)
    met = n1 * rows * math.ceil(n2 * rows / block) + n2 * rows * math.ceil(n1 * rows / block)
    contraction = met * row_flops + 2 * n1 * n2 * rows**2 * row_size
    if x2 is None:  # only one triangle
        contraction /= 2
    products = n2 * q * evaluation * (3 + 2 * n1)
    cheaper = by_contraction if contraction <= products else by_products
    method = cheaper if fits(2 * row_size) else by_products
    return method(function, net, params, x1, x2, outputs)


def by_contraction(function: Function, net, params, x1, x2, outputs: str):
    """The tangent kernel as a matrix product of Jacobians, one tile of it at a time and parameter by parameter."""
    q = jax.eval_shape(lambda p: function(net, p, x1[:1]), params).shape[-1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))

    def at_one(p, x):
        return function(net, p, x[None])[0]

    if outputs == "mean":
        row, row_size = lambda x: jax.jacrev(at_one)(params, x), q * size
        features1, features2 = x1, x2
    else:
        row, row_size = lambda xi: jax.grad(lambda p: at_one(p, xi[0])[xi[1]])(params), size
        features1, features2 = _pairs_with_outputs(x1, q), None if x2 is None else _pairs_with_outputs(x2, q)

    def jacobian(features):
        leaves = jax.tree.leaves(jax.vmap(row)(features))
        return [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]

    def pair(features1, features2):
        jacobians = zip(jacobian(features1), jacobian(features2), strict=True)
        return sum(matmul(j1, j2.T) for j1, j2 in jacobians)

    def diagonal(features):
        return sum(jnp.sum(j * j, axis=1) for j in jacobian(features))

    block = affordable(2 * row_size, max(len(leaf) for leaf in jax.tree.leaves((features1, features2))))
    if features2 is None:
        matrix = gram_blocks(pair, diagonal, features1, block)
    else:
        matrix = cross_blocks(pair, features1, features2, block)
    if outputs == "mean":
        return matrix / q
    return matrix.reshape(x1.shape[0], q, -1, q).transpose(0, 2, 1, 3)


def by_products(function: Function, net, params, x1, x2, outputs: str):
    """The tangent kernel column by column: gradient at one input and output, then its image at all others."""
    q = jax.eval_shape(lambda p: function(net, p, x1[:1]), params).shape[-1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    columns = _pairs_with_outputs(x1 if x2 is None else x2, q)

    def at_one(p, x):
        return function(net, p, x[None])[0]

    def image(gradient, x):
        return jax.jvp(lambda p: at_one(p, x), (params,), (gradient,))[1]

    at_once = affordable(2 * size, len(columns[1]))
    inner = affordable(at_once * working_set(image, params, x1[0]), x1.shape[0])

    def column(item):
        x, i = item
        gradient = jax.grad(lambda p: at_one(p, x)[i])(params)
        images = jax.lax.map(lambda x: image(gradient, x), x1, batch_size=inner)
        return images if outputs == "full" else images[:, i]

    kernel = jax.lax.map(column, columns, batch_size=at_once)
    kernel = kernel.reshape(-1, q, *kernel.shape[1:])  # (N2, q, N1) or (N2, q, N1, q)
    if outputs == "mean":
        kernel = jnp.mean(kernel, axis=1).T
        return kernel if x2 is not None else 0.5 * (kernel + kernel.T)
    kernel = kernel.transpose(2, 0, 3, 1)
    return kernel if x2 is not None else 0.5 * (kernel + kernel.transpose(1, 0, 3, 2))


def _pairs_with_outputs(x: Float[Array, "N D"], q: int):
    """All pairs of an input and the index of an output, outputs fastest."""
    return jnp.repeat(x, q, axis=0), jnp.tile(jnp.arange(q), x.shape[0])
