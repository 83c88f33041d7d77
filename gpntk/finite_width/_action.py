r"""The quartic action of a finite network's outputs, as a NumPyro distribution."""

import functools
import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.transforms import Transform, biject_to

from gpntk import _checks
from gpntk._products import einsum, matmul
from gpntk.finite_width._cumulants import Cumulants
from gpntk.finite_width._sampled import SampledCumulants

# Of the radius of a proposal.
_CELLS = 1024


class KernelMoments(NamedTuple):
    """Mean and covariance of a random kernel."""

    mean: Float[Array, "N N"]
    covariance: Float[Array, "N N N N"]


class QuarticAction(Distribution):
    r"""Outputs of a network of width n at N inputs, by their action to order 1/n.

    The density of the outputs $z$ of shape (N, n_outputs) is $e^{-S}/Z$ with

    $$S = \tfrac12 g^{ab} \sum_i z_{ia} z_{ib} - \tfrac18 v^{(ab)(cd)} \sum_{ij} z_{ia} z_{ib} z_{jc} z_{jd}.$$

    With the factor 1/8, $v = V/n$ with indices raised by $K^{-1}$ (others print 1/2, which is another
    normalisation of v). Roberts, Yaida & Hanin, *The Principles of Deep Learning Theory*, sections 4.2 and 4.4.

    A positive V makes the quartic term win at large z: the action describes $|z|^2 \ll n$ only, and without a
    bound the density cannot be normalised. With $|z|_g^2 = g^{ab} \sum_i z_{ia} z_{ib}$ and $\lambda$ the largest
    eigenvalue of v in this metric, S grows along every ray up to $|z|_g^2 = 2/\lambda$ and may fall beyond. The
    support is $|z|_g^2 < R^2$, by default half of the barrier, $R^2 = 1/\lambda$.

    `log_prob` is normalised to order 1/n: $\log Z$ is that of the Gaussian plus the mean of the quartic term under
    it, and the tail beyond the support is neglected. `mean` and `variance` are right to order 1/n, `sample` draws
    from the density itself, by rejection. For regression the random kernel of the same (g, v) is the better
    sampler (`gpntk.models.finite_width_regression`).

    Args:
        g: couplings $g^{ab}$, (N, N), positive definite.
        v: couplings $v^{(ab)(cd)}$, (N, N, N, N), symmetric within and between pairs.
        n_outputs: number of output neurons.
        squared_radius: $R^2$; `None` means $1/\lambda$.

    Raises:
        ValueError: for couplings that are not finite, symmetric and, for g, positive definite; if
            $R^2 > 2/\lambda$; and if the bulk of the Gaussian does not fit into the support,
            $N_z + 3\sqrt{2 N_z} > R^2$ with $N_z = N\,n_{outputs}$ (the width is too small).
    """

    arg_constraints = {  # noqa: RUF012 (NumPyro's interface)
        "g": constraints.positive_definite,
        "v": constraints.independent(constraints.real, 4),
    }
    pytree_data_fields = ("g", "v", "squared_radius", "strongest", "_factor", "_log_normaliser")
    pytree_aux_fields = ("n_outputs",)

    def __init__(
        self,
        g: Float[ArrayLike, "N N"],
        v: Float[ArrayLike, "N N N N"],
        n_outputs: int = 1,
        squared_radius: float | None = None,
        *,
        validate_args: bool | None = None,
    ):
        self.n_outputs = _checks.integer("n_outputs", n_outputs, minimum=1)
        if validate_args is not None:
            _checks.boolean("validate_args", validate_args)
        g, v = (np.asarray(_checks.real_array(n, a, np.float64)) for n, a in (("g", g), ("v", v)))
        _check_couplings(g, v)
        covariance = np.linalg.inv(g)
        factor = np.linalg.cholesky(0.5 * (covariance + covariance.T))
        strongest = _largest_eigenvalue(v, factor)
        if squared_radius is None:
            squared_radius = 1.0 / strongest if strongest > 0 else math.inf
        else:
            squared_radius = _checks.real_number(
                "squared_radius", squared_radius, minimum=0.0, strict=True, infinite=True
            )
            if squared_radius * strongest > 2.0:
                raise ValueError(
                    f"`squared_radius` must be at most 2/lambda = {2 / strongest:.4g}, got {squared_radius:.4g}: "
                    "beyond it the action falls, and the density cannot be normalised."
                )
        needed = bulk(len(g) * self.n_outputs)
        if needed > squared_radius:
            raise ValueError(
                f"The outputs do not fit into the support of the action: their squared norm reaches {needed:.4g}, "
                f"and the support ends at {squared_radius:.4g}. The width is too small for {len(g)} inputs and "
                f"{self.n_outputs} output(s): the couplings v must be smaller by a factor of "
                f"{needed / squared_radius:.3g}."
            )
        self.g, self.v = g, v
        self.squared_radius, self.strongest = squared_radius, strongest
        self._factor = factor
        self._log_normaliser = self.n_outputs * (
            0.5 * len(g) * math.log(2.0 * math.pi) + np.sum(np.log(np.diagonal(factor)))
        ) + _mean_quartic(v, covariance, self.n_outputs)
        super().__init__((), (len(g), self.n_outputs), validate_args=validate_args)

    @classmethod
    def from_cumulants(
        cls,
        cumulants: Cumulants | SampledCumulants,
        width: float,
        n_outputs: int = 1,
        squared_radius: float | None = None,
    ) -> Self:
        r"""The action of a network of the given width, from its statistics at the inputs.

        $$v = V/n, \qquad (g^{-1})_{12} = K_{12} + \tfrac1n \left(K_{1,12}
          - \tfrac{n_{outputs}}2 V_{(12)(cd)} K^{cd} - V_{(1c)(2d)} K^{cd}\right)$$

        Args:
            cumulants: from `gpntk.cumulants`.
            width: width of the last hidden layer; infinity gives the Gaussian.
            n_outputs: number of output neurons.
            squared_radius: as for the class.

        Raises:
            TypeError: if `cumulants` are none, or have V in factors.
            ValueError: if K is singular in double precision, and if `width` is below the smallest usable one,
                which the message names.
        """
        _checks.instance(
            "cumulants",
            cumulants,
            Cumulants | SampledCumulants,
            "what gpntk.cumulants(net, X) returns without `rank`",
        )
        width = _checks.real_number("width", width, minimum=1.0, infinite=True)
        n_outputs = _checks.integer("n_outputs", n_outputs, minimum=1)
        kernel, V = np.asarray(cumulants.K, np.float64), np.asarray(cumulants.V, np.float64)
        eigenvalues = np.linalg.eigvalsh(kernel)
        if eigenvalues[0] <= 1e-12 * eigenvalues[-1]:
            raise ValueError(
                f"The kernel of the {len(kernel)} inputs is singular (eigenvalues from {eigenvalues[0]:.1e} to "
                f"{eigenvalues[-1]:.1e}), and the action needs its inverse: pass fewer inputs, or use the random "
                "kernel with noise, `gpntk.models.finite_width_regression`."
            )
        inverse = np.linalg.inv(kernel)
        # Checked first, because below this width g may not even be positive definite.
        strongest = _largest_eigenvalue(_raised(V, inverse), np.linalg.cholesky(kernel))
        smallest = math.ceil(bulk(len(kernel) * n_outputs) * strongest)
        if squared_radius is None and width < smallest:
            raise ValueError(
                f"`width` must be at least {smallest} for {len(kernel)} inputs and {n_outputs} output(s), got "
                f"{width:g}: the outputs of narrower networks do not fit into the support of the action."
            )
        trace = np.einsum("abcd,cd->ab", V, inverse)
        exchange = np.einsum("acbd,cd->ab", V, inverse)
        covariance = kernel + (cumulants.K1 - 0.5 * n_outputs * trace - exchange) / width
        eigenvalues = np.linalg.eigvalsh(covariance)
        if eigenvalues[0] <= 0:
            raise ValueError(
                f"`width`={width:g} is too small: the inverse of g has the negative eigenvalue "
                f"{eigenvalues[0]:.3g}: its correction at order 1/n is larger than the kernel."
            )
        g = np.linalg.inv(covariance)
        return cls(0.5 * (g + g.T), _raised(V, inverse) / width, n_outputs, squared_radius)

    @constraints.dependent_property(is_discrete=False, event_dim=2)  # pyright: ignore[reportArgumentType]
    def support(self):
        return EllipsoidConstraint(self._factor, self.squared_radius)

    def action(self, z: Float[Array, "... N n_outputs"]) -> Float[Array, "..."]:
        """S[z]."""
        second = einsum("...ai,...bi->...ab", z, z)
        quadratic = einsum("ab,...ab->...", self.g, second)
        return 0.5 * quadratic - 0.125 * einsum("abcd,...ab,...cd->...", self.v, second, second)

    def log_prob(self, value: Float[Array, "... N n_outputs"]) -> Float[Array, "..."]:
        """Logarithm of the density, normalised to order 1/n; minus infinity outside of the support."""
        if self._validate_args:
            self._validate_sample(value)
        inside = jnp.asarray(self.support(value))
        return jnp.where(inside, -self.action(value) - self._log_normaliser, -jnp.inf)

    def random_kernel(self) -> KernelMoments:
        r"""The random kernel of the same distribution to order 1/n: mean $K + K_1/n$ and covariance $V/n$.

        $z\,|\,G \sim N(0, G)$ for every output with the same G. Computed from g and v alone: indices of v are
        lowered with $g^{-1}$, which differs from K at the next order only.
        """
        covariance = jnp.linalg.inv(jnp.asarray(self.g))
        lowered = _raised(jnp.asarray(self.v), covariance)
        mean = covariance + 0.5 * self.n_outputs * einsum("abcd,cd->ab", lowered, self.g)
        return KernelMoments(mean + einsum("acbd,cd->ab", lowered, self.g), lowered)

    @property
    def mean(self):
        return jnp.zeros(self.event_shape)

    @property
    def variance(self):
        """Of every output, to order 1/n."""
        diagonal = jnp.diagonal(self.random_kernel().mean)
        return jnp.broadcast_to(diagonal[:, None], self.event_shape)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample_shape N n_outputs"]:
        r"""Independent draws from the density inside its support, by rejection.

        With $z = Fu$, $FF^T = g^{-1}$ and r = |u|, the quartic term is at most $\lambda r^4/8$: proposals
        have a uniform direction and a radius of density $r^{N_z - 1} e^{-r^2/2 + \lambda r^4/8}$. About
        $e^{-\lambda N_z^2/8}$ of them are accepted, nearly all at large widths.

        Raises:
            TypeError: if `key` is not a JAX random key.
        """
        _checks.key("key", key)
        keys = jax.random.split(key, math.prod(sample_shape))
        one = functools.partial(_sample_one, self, _radial_proposal(self))
        draws = jax.lax.map(one, keys, batch_size=4096)
        return draws.reshape(*sample_shape, *self.event_shape)


class _RadialProposal(NamedTuple):
    """A radius of piecewise constant density, that of the middle of each cell, and what exceeds it at most."""

    middles: Float[Array, " cells"]
    cell: Float[Array, ""]
    log_density: Float[Array, " cells"]
    cumulative: Float[Array, " cells"]
    log_slack: Float[Array, ""]


def _radial_proposal(action: QuarticAction) -> _RadialProposal:
    size = math.prod(action.event_shape)
    # On the support S >= kappa r^2/2, and a normal vector has a norm above sqrt(size) + 9 once in 1e17 draws.
    finite = jnp.isfinite(action.squared_radius)
    kappa = 1.0 - 0.25 * jnp.maximum(action.strongest, 0.0) * jnp.where(finite, action.squared_radius, 0.0)
    outermost = jnp.minimum(jnp.sqrt(action.squared_radius), (math.sqrt(size) + 9.0) / jnp.sqrt(kappa))
    cell = outermost / _CELLS
    middles = (jnp.arange(_CELLS) + 0.5) * cell
    log_density = _log_radial(action, middles)
    # Where there is any mass to speak of.
    steps = jnp.abs(jnp.diff(log_density))
    seen = log_density[1:] > jnp.max(log_density) - 40.0
    cumulative = jnp.cumsum(jax.nn.softmax(log_density))
    return _RadialProposal(middles, cell, log_density, cumulative, jnp.max(jnp.where(seen, steps, 0.0)))


def _log_radial(action: QuarticAction, radius):
    size = math.prod(action.event_shape)
    return (size - 1) * jnp.log(radius) - 0.5 * radius**2 + 0.125 * jnp.maximum(action.strongest, 0.0) * radius**4


def _sample_one(action: QuarticAction, proposal: _RadialProposal, key):
    factor = jnp.asarray(action._factor)

    def propose(state):
        key, cell_key, place_key, direction_key, accept_key = jax.random.split(state[0], 5)
        level = jax.random.uniform(cell_key, (), factor.dtype) * proposal.cumulative[-1]
        cell = jnp.minimum(jnp.searchsorted(proposal.cumulative, level), _CELLS - 1)
        place = jax.random.uniform(place_key, (), factor.dtype, minval=-0.5, maxval=0.5)
        radius = proposal.middles[cell] + place * proposal.cell
        direction = jax.random.normal(direction_key, action.event_shape, factor.dtype)
        z = matmul(factor, direction) * (radius / jnp.linalg.norm(direction))
        envelope = 0.125 * jnp.maximum(action.strongest, 0.0) * radius**4
        log_ratio = 0.5 * radius**2 - envelope - action.action(z)
        log_ratio += _log_radial(action, radius) - proposal.log_density[cell] - proposal.log_slack
        return key, z, jnp.log(jax.random.uniform(accept_key, (), factor.dtype)) < log_ratio

    start = (key, jnp.zeros(action.event_shape, factor.dtype), jnp.asarray(False))
    return jax.lax.while_loop(lambda state: ~state[2], propose, start)[1]


def bulk(dimension: int) -> float:
    """Squared norm that a standard Gaussian vector exceeds at three standard deviations."""
    return dimension + 3.0 * math.sqrt(2.0 * dimension)


def _check_couplings(g, v) -> None:
    if g.ndim != 2 or g.shape[0] != g.shape[1] or g.size == 0:
        raise ValueError(f"`g` must be a square matrix, got shape {g.shape}.")
    if v.shape != g.shape * 2:
        raise ValueError(f"`v` must have shape {g.shape * 2}, as `g` has shape {g.shape}, got {v.shape}.")
    for name, coupling, orders in (("g", g, [(1, 0)]), ("v", v, [(1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)])):
        if not np.isfinite(coupling).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity.")
        scale = np.abs(coupling).max()
        worst = max(np.abs(coupling - coupling.transpose(order)).max() for order in orders)
        if worst > 1e-6 * scale:
            raise ValueError(
                f"`{name}` must be symmetric, but entries differ by {worst:.3g} (largest {scale:.3g})."
            )
    smallest = np.linalg.eigvalsh(g)[0]
    if smallest <= 0:
        raise ValueError(f"`g` must be positive definite, but its smallest eigenvalue is {smallest:.3g}.")


def _raised(tensor, matrix):
    multiply = einsum if isinstance(tensor, jax.Array) else np.einsum
    return multiply("abcd,ae,bf,cg,dh->efgh", tensor, matrix, matrix, matrix, matrix, optimize=True)


def _largest_eigenvalue(v, factor) -> float:
    """Of v on symmetric pairs in the metric of the Gaussian, whose covariance has the given factor."""
    size = len(factor)
    return float(np.linalg.eigvalsh(_raised(v, factor).reshape(size**2, size**2))[-1])


def _mean_quartic(v, covariance, n_outputs: int) -> float:
    """The mean of 1/8 of the quartic term under the Gaussian, by Wick's theorem."""
    disconnected = np.einsum("abcd,ab,cd->", v, covariance, covariance)
    connected = np.einsum("abcd,ac,bd->", v, covariance, covariance)
    return float(0.125 * (n_outputs**2 * disconnected + 2 * n_outputs * connected))


class EllipsoidConstraint(constraints.Constraint):
    """Matrices whose columns are, together, inside an ellipsoid: `|F^-1 z|^2 < squared_radius`."""

    event_dim = 2

    def __init__(self, factor, squared_radius):
        self.factor, self.squared_radius = factor, squared_radius

    def __call__(self, x):
        whitened = _whiten(self.factor, x)
        return jnp.sum(whitened**2, axis=(-2, -1)) < self.squared_radius

    def feasible_like(self, prototype):
        return jnp.zeros_like(prototype)

    def tree_flatten(self):
        return (self.factor, self.squared_radius), (("factor", "squared_radius"), {})

    def eq(self, other, static=False):
        if not isinstance(other, EllipsoidConstraint):
            return False
        same = self.squared_radius == other.squared_radius
        return same & bool(np.array_equal(self.factor, other.factor))


class EllipsoidTransform(Transform):
    r"""All matrices onto the ellipsoid, $u \mapsto F u / \sqrt{1 + |u|^2/R^2}$."""

    domain: Any = constraints.real_matrix

    def __init__(self, factor, squared_radius):
        self.factor, self.squared_radius = factor, squared_radius

    @property
    def codomain(self):
        return EllipsoidConstraint(self.factor, self.squared_radius)

    def __call__(self, x):
        return matmul(jnp.asarray(self.factor), x) * (1.0 + _ratio(x, self.squared_radius)) ** -0.5

    def _inverse(self, y):
        whitened = _whiten(self.factor, y)
        return whitened * (1.0 - _ratio(whitened, self.squared_radius)) ** -0.5

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        # Radius r becomes r (1 + r^2/R^2)^(-1/2): the slope along a ray is the third power of that factor.
        columns, dimension = x.shape[-1], x.shape[-1] * x.shape[-2]
        volume = columns * jnp.sum(jnp.log(jnp.diagonal(jnp.asarray(self.factor))))
        return volume - 0.5 * (dimension + 2) * jnp.log1p(_ratio(x, self.squared_radius)[..., 0, 0])

    def tree_flatten(self):
        return (self.factor, self.squared_radius), (("factor", "squared_radius"), {})


@biject_to.register(EllipsoidConstraint)
def _biject_to_ellipsoid(constraint: EllipsoidConstraint) -> EllipsoidTransform:
    return EllipsoidTransform(constraint.factor, constraint.squared_radius)


def _whiten(factor, x):
    factor = jnp.broadcast_to(jnp.asarray(factor), (*jnp.shape(x)[:-2], *np.shape(factor)))
    return solve_triangular(factor, jnp.asarray(x), lower=True)


def _ratio(x, squared_radius):
    return jnp.sum(x**2, axis=(-2, -1), keepdims=True) / squared_radius
