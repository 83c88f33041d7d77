"""A valid call of everything public, and what each parameter must refuse, by its name."""

import functools
import inspect
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gpjax as gpx
import jax
import jax.numpy as jnp
import matplotlib.axes
import numpy as np
import numpyro
import optax
from gpjax.kernels import AbstractKernel
from gpjax.kernels.computations import AbstractKernelComputation
from numpyro.distributions import Distribution
from paramax import AbstractUnwrappable
from values import (
    Kind,
    anything,
    array,
    boolean,
    either,
    instance,
    integer,
    option,
    optional,
    random_key,
    real,
)

import gpntk
from gpntk import datasets, finite_width, groups, models, plotting
from gpntk.activations import AbstractActivation
from gpntk.groups import AbstractGroup
from gpntk.networks import AbstractNetwork

KEY = jax.random.key(0)
X = np.array([[1.0, 0.5], [-0.3, 2.0], [0.7, -1.1]])
Y = np.array([0.3, -1.0, 0.8])
LABELS = np.array([0, 1, 1])
TIMES = np.array([0.5, 2.0])
NET = gpntk.MLP(1, gpntk.Erf(), bias_variance=0.1)
CNN = gpntk.CNN((2, 2, 1), 1)
PLANAR = gpntk.PlanarGroupCNN("C4", (2, 2, 1), 1)
CYCLIC = groups.FiniteGroup.cyclic(2)
GROUP_NET = gpntk.FiniteGroupCNN(CYCLIC, depth=1)
SPHERICAL = gpntk.SphericalCNN(2, depth=1, activation=gpntk.Erf(), sampling="coefficients", quadrature_bandlimit=4)
SO3 = groups.SO3(2, 1, "coefficients", quadrature_bandlimit=2)
NTK, NNGP = gpntk.NTK(NET), gpntk.NNGP(NET)
FLAT_IMAGES = np.arange(12.0).reshape(3, 4)
SIGNALS = np.array([[1.0, 0.2, -0.3, 0.5], [0.4, 1.0, 0.0, -2.0], [0.1, 0.1, 0.5, 0.0]])
NUMBERS, POSITIONS = np.array([[1, 8], [6, 0]]), np.arange(12.0).reshape(2, 2, 3)


class Call(NamedTuple):
    """A function with arguments it accepts; its parameters, unless named otherwise, are of the kind in `KINDS`."""

    function: Callable
    arguments: dict[str, Any]
    use: Callable[[Any], Any] = lambda result: result
    """What users do with the result; every number in it must be finite."""
    kinds: dict[str, Kind] = {}  # noqa: RUF012 (never changed)

    def __call__(self, **changes: Any) -> Any:
        arguments = {**self.arguments, **changes}
        return self.use(self.function(**{k: v.make() if isinstance(v, Made) else v for k, v in arguments.items()}))


def _values(net) -> Any:
    columns = net.n_features or 2
    return gpntk.nngp_and_ntk(net, np.linspace(-1.0, 1.0, 3 * columns).reshape(3, columns))


def _gram(columns: int = 2) -> Callable:
    def use(kernel):
        x = np.linspace(-1.0, 1.0, 3 * columns).reshape(3, columns)
        return kernel.gram(x).as_matrix(), kernel.cross_covariance(x, x[:2])

    return use


def _moments(activation) -> Any:
    with jax.enable_x64(True):
        return activation.dual(0.1, 0.5, 0.3), activation.dual_derivative(0.1, 0.5, 0.3)


def _orbits(group) -> Any:
    return group.act(np.ones((2, group.n_features)))


def _predictions(model) -> Any:
    model.fit(X, LABELS if hasattr(model, "predict_proba") else Y)
    return model.predict(X)


def _sites(model: Callable) -> Callable:
    """The values of all sites of a NumPyro model, and their log densities."""

    @functools.wraps(model)
    def run(**arguments):
        seeded = numpyro.handlers.seed(numpyro.handlers.trace(model), 0)
        trace = numpyro.handlers.trace(numpyro.handlers.seed(seeded, 0)).get_trace(**arguments)
        return {name: site["value"] for name, site in trace.items() if site["type"] in ("sample", "deterministic")}

    return run


@functools.cache
def _params(net):
    return net.init(KEY, None if net.n_features else 2, 4)


@functools.cache
def _cumulants(rank=None):
    return gpntk.cumulants(NET, X[:2], rank)


@functools.cache
def _fitted(estimator, **settings):
    return estimator(NET, **settings).fit(X, LABELS if estimator is gpntk.NTKClassifier else Y)


@functools.cache
def _flow(kind=gpntk.GradientFlow, **settings):
    return kind(NTK, NNGP, X, Y, alpha=0.1, **settings)


class Made(NamedTuple):
    """An argument that takes long to make, and is made when it is needed."""

    make: Callable[[], Any]


def _method(name: str, make: Callable) -> Callable:
    """The method of an object that takes long to make."""
    return lambda **values: getattr(make(), name)(**values)


def _file() -> pathlib.Path:
    return pathlib.Path(__file__).with_name("water.xyz")


SUM_OF_SETS = {"kernel": NTK, "max_size": 2}
FEATURES = array((None, None))
TARGETS = array((3,), (3, None))
NETWORK = instance(AbstractNetwork)
KERNEL = instance(AbstractKernel)
VARIANCE = either(real(0.0, strict=True), instance(AbstractUnwrappable))
PRIOR = either(real(0.0, strict=True), instance(Distribution))
TIME = either(real(0.0, infinite=True), array((None,), minimum=0.0, dtype=np.float64))
ACTION = instance(gpntk.QuarticAction)
ENGINE = instance(AbstractKernelComputation)
ENGINES = (gpntk.BlockedComputation(),)
WIDTH = real(1.0, infinite=True)
SOLVER = either(option("auto", "cholesky", "eigh", "matrix_free"), instance(gpntk.MatrixFree))


def _rows(columns: int, kind: Kind = FEATURES) -> Kind:
    return array((None, columns))


def _shape(value: Any) -> bool:
    return not isinstance(value, list | tuple | range) or len(value) != 3 or any(integer(1)(v) for v in value)


def _labels(value: Any) -> bool:
    """Of classes, which may be of any kind."""
    try:
        return np.shape(value) != (3,)
    except (ValueError, TypeError):
        return True


def _coefficients(value: Any) -> bool:
    return not isinstance(value, list | tuple | np.ndarray | jax.Array | range) or array(
        (None,), dtype=np.float64
    )(value)


# A parameter of this name, wherever it appears.
KINDS: dict[str, Kind] = {
    "X": FEATURES,
    "X_test": optional(FEATURES),
    "a": real(-1e150),
    "action": optional(ACTION),
    "activation": instance(AbstractActivation),
    "active_dims": optional(instance(list, slice)),
    "alpha": real(0.0),
    "b": real(-1e150),
    "bandlimit": integer(1),
    "batch_size": optional(integer(1)),
    "bias_variance": either(real(0.0), instance(AbstractUnwrappable)),
    "block_size": optional(integer(1)),
    "c": real(-1e150),
    "channels": integer(1),
    "coefficients": _coefficients,
    "compute_engine": ENGINE,
    "cumulants": instance(finite_width.Cumulants),
    "depth": integer(1),
    "dtype": option("float32", "float64"),
    "filter_size": integer(1),
    "fn": lambda v: not callable(v),
    "gamma": real(0.0, strict=True),
    "group": instance(AbstractGroup),
    "input_dim": optional(integer(1)),
    "input_shape": _shape,
    "inversion": boolean,
    "k": integer(0),
    "kernel": KERNEL,
    "key": random_key,
    "learning_rate": real(0.0, strict=True),
    "loss": option("squared", "cross_entropy"),
    "max_iterations": integer(1),
    "max_size": integer(1),
    "mesh": optional(instance(jax.sharding.Mesh)),
    "members": integer(1),
    "most_modes": integer(1),
    "n": integer(1),
    "n_classes": integer(2),
    "n_dims": optional(integer(1)),
    "n_outputs": integer(1),
    "n_points": optional(integer(16)),
    "n_samples": integer(1),
    "negative_slope": real(-1e150),
    "net": NETWORK,
    "nngp": optional(KERNEL),
    "noise_variance": PRIOR,
    "normalize_y": boolean,
    "nside": optional(integer(1)),
    "ntk": KERNEL,
    "nugget": real(0.0, strict=True),
    "numbers": array((None, None), minimum=0.0),
    "optimizer": instance(optax.GradientTransformation),
    "outputs": option("mean", "full"),
    "padding": option("same", "valid", "circular"),
    "params": instance(list, tuple),
    "perms": array((None, None), minimum=0.0, whole=True),
    "positions": array((None, None, 3)),
    "progress": boolean,
    "quadrature_bandlimit": optional(integer(1)),
    "rank": optional(integer(1)),
    "readout": option("pool", "flatten"),
    "readout_bias": boolean,
    "reduction": option("sum", "mean"),
    "retained": real(0.0, strict=True),
    "return_cov": boolean,
    "return_std": boolean,
    "sample_weight": optional(array((3,), minimum=0.0)),
    "sampling": option("mw", "mwss", "dh", "gl", "healpix", "coefficients"),
    "seed": integer(0),
    "sides": option("auto", "one", "both"),
    "solver": SOLVER,
    "squared_radius": optional(real(0.0, strict=True, infinite=True)),
    "steps": integer(1),
    "table": array((None, None), minimum=0.0, whole=True),
    "time": TIME,
    "tolerance": real(0.0, strict=True),
    "variance": optional(VARIANCE),
    "vectors": array((3,), (3, None)),
    "weight_variance": VARIANCE,
    "width": WIDTH,
    "width_ratios": optional(instance(list, tuple, np.ndarray, range)),
    "x": FEATURES,
    "x1": FEATURES,
    "x2": optional(FEATURES),
    "y": TARGETS,
}


def _activations() -> Iterator[tuple[str, Call]]:
    arguments = {
        "ABReLU": {"a": 0.2, "b": 1.0},
        "Elementwise": {"fn": jnp.tanh},
        "Hermite": {"k": 2},
        "LeakyReLU": {"negative_slope": 0.1},
        "Monomial": {"k": 2},
        "Polynomial": {"coefficients": (1.0, 0.5)},
    }
    for name in gpntk._PUBLIC["activations"]:
        kind = getattr(gpntk, name)
        defaults = {p.name: p.default for p in inspect.signature(kind).parameters.values()}
        yield name, Call(kind, arguments.get(name, defaults), _moments)
    variance = array(minimum=0.0, dtype=np.float64)
    moments = {"k": array(dtype=np.float64), "q1": variance, "q2": variance}
    for activation in (gpntk.ReLU(), gpntk.Erf(), gpntk.Polynomial((1.0, 2.0)), gpntk.Tanh()):
        name = type(activation).__name__
        for method in (activation.dual, activation.dual_derivative):
            yield f"{name}.{method.__name__}", Call(method, {"k": 0.1, "q1": 0.5, "q2": 0.3}, kinds=moments)


def _networks() -> Iterator[tuple[str, Call]]:
    shared = {
        "depth": 1,
        "activation": gpntk.ReLU(),
        "weight_variance": 2.0,
        "bias_variance": 0.1,
        "readout_bias": True,
        "width_ratios": None,
    }
    planar = {"input_shape": (2, 2, 1), "filter_size": 1, "padding": "same", "readout": "pool", **shared}
    spherical = {"bandlimit": 2, "channels": 1, "sampling": "coefficients", "quadrature_bandlimit": 3}
    yield "MLP", Call(gpntk.MLP, shared, _values)
    yield "CNN", Call(gpntk.CNN, planar, _values)
    yield (
        "PlanarGroupCNN",
        Call(gpntk.PlanarGroupCNN, {"group": "C4", **planar}, _values, {"group": option("C4", "D4")}),
    )
    yield (
        "SphericalCNN",
        Call(gpntk.SphericalCNN, {**spherical, "nside": None, "inversion": False, **shared}, _values),
    )
    finite = {"group": CYCLIC, "channels": 1, "supports": None, **shared}
    supports = {"supports": optional(instance(list, tuple, np.ndarray)), "group": instance(groups.FiniteGroup)}
    yield "FiniteGroupCNN", Call(gpntk.FiniteGroupCNN, finite, _values, supports)
    yield "equivariant", Call(gpntk.equivariant, {"net": gpntk.MLP(1), "group": CYCLIC}, _values)
    for net, x in ((NET, X), (CNN, FLAT_IMAGES), (GROUP_NET, X), (SPHERICAL, SIGNALS)):
        name, kinds = type(net).__name__, {"x": _rows(x.shape[1]), "width": integer(1)}
        initial = {"key": KEY, "input_dim": x.shape[1], "width": 4, "n_outputs": 1}
        yield f"{name}.init", Call(net.init, initial, kinds=kinds)
        initial = Made(functools.partial(_params, net))
        yield f"{name}.apply", Call(net.apply, {"params": initial, "x": x}, kinds=kinds)
    yield "MLP.replace", Call(NET.replace, {"depth": 2}, _values)
    yield "MLP.set_params", Call(NET.set_params, {"activation": gpntk.ReLU()}, _values)


def _kernels() -> Iterator[tuple[str, Call]]:
    shared = {"active_dims": None, "n_dims": None, "compute_engine": gpntk.BlockedComputation()}
    for kind in (gpntk.NNGP, gpntk.NTK):
        yield (
            kind.__name__,
            Call(
                kind, {"net": NET, "variance": None, "width": None, **shared}, _gram(), {"width": optional(WIDTH)}
            ),
        )
    averaged = {"kernel": NTK, "group": CYCLIC, "sides": "auto", **shared}
    yield "GroupAveraged", Call(gpntk.GroupAveraged, averaged, _gram())
    for kind in (gpntk.SetSum, gpntk.SlotSum):
        yield kind.__name__, Call(kind, {**SUM_OF_SETS, **shared}, _gram())
    for kind in (gpntk.Sum, gpntk.Product):

        def combine(kernel, compute_engine=None, kind=kind):
            return kind(NTK, kernel, compute_engine=compute_engine)

        number = {"kernel": either(KERNEL, real(0.0)), "compute_engine": optional(ENGINE)}
        yield kind.__name__, Call(combine, {"kernel": NNGP, "compute_engine": None}, _gram(), number)
    engine = {"block_size": 2, "progress": False, "mesh": None}
    yield (
        "BlockedComputation",
        Call(gpntk.BlockedComputation, engine, lambda e: _gram()(gpntk.NTK(NET, compute_engine=e))),
    )
    yield (
        "nngp_and_ntk",
        Call(gpntk.nngp_and_ntk, {"net": NET, "x1": X, "x2": X[:2], "compute_engine": ENGINES[0]}),
    )
    streamed = {"kernel": NTK, "x1": X, "x2": X[:2], "path": None, "progress": False}
    path = {"path": optional(instance(str, os.PathLike))}
    yield "stream_kernel_matrix", Call(gpntk.stream_kernel_matrix, streamed, kinds=path)
    pooling = {"net": instance(gpntk.CNN, gpntk.PlanarGroupCNN, gpntk.FiniteGroupCNN, gpntk.SphericalCNN)}
    images = {"x1": _rows(4), "x2": optional(_rows(4))}
    unpooled = {"net": PLANAR, "x1": FLAT_IMAGES, "x2": FLAT_IMAGES[:1]}
    yield "unpooled_kernels", Call(gpntk.unpooled_kernels, unpooled, kinds={**pooling, **images})
    yield (
        "GramOperator",
        Call(
            gpntk.GramOperator,
            {"kernel": NTK, "x": X},
            lambda operator: operator @ np.ones(operator.size, np.float32),
        ),
    )
    operator = functools.partial(_method, make=functools.cache(lambda: gpntk.GramOperator(NTK, X)))
    yield "GramOperator.cross_product", Call(operator("cross_product"), {"x": X[:2], "vectors": Y})
    yield "GramOperator.__matmul__", Call(operator("__matmul__"), {"vectors": Y})
    one = array((2,))
    kernels = {
        "NTK": NTK,
        "NNGP, finite width": gpntk.NNGP(NET, width=100.0),
        "Sum": NTK + 1.0,
        "Product": NTK * NNGP,
        "GroupAveraged": gpntk.GroupAveraged(NTK, CYCLIC),
        "SetSum": gpntk.SetSum(**SUM_OF_SETS),
        "SlotSum": gpntk.SlotSum(**SUM_OF_SETS),
    }
    for name, kernel in kernels.items():
        yield f"{name}.__call__", Call(kernel.__call__, {"x": X[0], "y": X[1]}, kinds={"x": one, "y": one})
        yield f"{name}.gram", Call(kernel.gram, {"x": X}, lambda operator: operator.as_matrix())
        yield f"{name}.diagonal", Call(kernel.diagonal, {"x": X}, lambda operator: operator.as_matrix())
        yield (
            f"{name}.cross_covariance",
            Call(kernel.cross_covariance, {"x": X, "y": X[:2]}, kinds={"y": FEATURES}),
        )


def _groups() -> Iterator[tuple[str, Call]]:
    finite = groups.FiniteGroup
    channels, small = {"channels": 1}, {"n": integer(1)}
    square = {"input_shape": lambda v: _shape(v) or v[0] != v[1]}
    swap = np.array([[1, 0]])
    yield (
        "groups.FiniteGroup.from_permutations",
        Call(finite.from_permutations, {"perms": swap, **channels}, _orbits),
    )
    yield "groups.FiniteGroup.from_table", Call(finite.from_table, {"table": CYCLIC.table, **channels}, _orbits)
    yield (
        "groups.FiniteGroup",
        Call(
            finite,
            {"permutations": CYCLIC.permutations, "table": CYCLIC.table, **channels},
            _orbits,
            {"permutations": KINDS["perms"]},
        ),
    )
    for make in (finite.cyclic, finite.dihedral, finite.symmetric):
        yield f"groups.FiniteGroup.{make.__name__}", Call(make, {"n": 3, **channels}, _orbits, small)
    factor = instance(finite)
    product = {"first": CYCLIC, "second": CYCLIC, **channels}
    yield "groups.FiniteGroup.product", Call(finite.product, product, _orbits, {"first": factor, "second": factor})
    yield "groups.C4", Call(groups.C4, {"input_shape": (2, 2, 1)}, _orbits, square)
    yield "groups.D4", Call(groups.D4, {"input_shape": (2, 2, 1)}, _orbits, square)
    sphere = {
        "bandlimit": 2,
        "channels": 1,
        "sampling": "mw",
        "quadrature_bandlimit": 2,
        "nside": None,
        "inversion": False,
    }
    yield "groups.SO3", Call(groups.SO3, sphere, lambda g: g.embed(np.ones((2, np.prod(g.signal_shape)))))
    angles = array((3,), (None, 3), (None, None, 3), (None, None, None, 3))
    signals = {"x": _rows(4), "angles": array((3,), (3, 3))}
    for method in (SO3.embed, SO3.coefficients):
        yield f"groups.SO3.{method.__name__}", Call(method, {"x": SIGNALS}, kinds=signals)
    yield "groups.SO3.rotate", Call(SO3.rotate, {"x": SIGNALS, "angles": np.ones(3)}, kinds=signals)
    for group, x in ((SO3, SIGNALS), (CYCLIC, X)):
        name, kinds = (
            f"groups.{type(group).__name__}",
            {"x": _rows(x.shape[1]), "index": array((), minimum=0.0, whole=True)},
        )
        yield f"{name}.act", Call(group.act, {"x": x}, kinds=kinds)
        yield f"{name}.transform", Call(group.transform, {"x": x, "index": 1}, kinds=kinds)
    yield (
        "groups.augment",
        Call(groups.augment, {"X": X, "y": Y, "group": CYCLIC}, kinds={"X": _rows(2), "y": array()}),
    )
    yield "groups.random_rotations", Call(groups.random_rotations, {"key": KEY, "n": 2})
    coefficients = {"a": array((None,), (None, None), (None, None, None)), "angles": angles}
    yield (
        "groups.rotate_coefficients",
        Call(groups.rotate_coefficients, {"a": SIGNALS, "angles": np.ones(3)}, kinds=coefficients),
    )
    yield (
        "groups.rotation_matrices",
        Call(groups.rotation_matrices, {"angles": np.ones(3)}, kinds={"angles": angles}),
    )
    yield "groups.complex_coefficients", Call(groups.complex_coefficients, {"a": SIGNALS}, kinds=coefficients)
    flm = groups.complex_coefficients(SIGNALS)
    yield (
        "groups.real_coefficients",
        Call(
            groups.real_coefficients,
            {"flm": flm},
            kinds={
                "flm": lambda v: (
                    np.ndim(v) < 2 if isinstance(v, np.ndarray) else not isinstance(v, list | jax.Array)
                )
            },
        ),
    )


def _datasets() -> Iterator[tuple[str, Call]]:
    molecules = datasets.Molecules(NUMBERS, POSITIONS, np.arange(2.0))
    both = {"numbers": NUMBERS, "positions": POSITIONS}
    elements = {"elements": optional(instance(list, tuple, np.ndarray, range))}
    yield "datasets.coulomb_matrices", Call(datasets.coulomb_matrices, both)
    environments = {
        **both,
        "bandlimit": 2,
        "powers": (2.0,),
        "elements": None,
        "beta": None,
        "sampling": "coefficients",
        "nside": None,
    }
    kinds = {
        "powers": lambda v: array((None,), minimum=0.0)(v) or isinstance(v, str),
        "beta": optional(real(0.0, strict=True)),
        **elements,
    }
    yield "datasets.atom_environments", Call(datasets.atom_environments, environments, kinds=kinds)
    counts = {"numbers": NUMBERS, "elements": (1, 6, 8)}
    yield "datasets.element_counts", Call(datasets.element_counts, counts, kinds=elements)
    path = {"path": instance(str, pathlib.Path), "target": optional(either(instance(str), integer(0)))}
    yield "datasets.load_molecules", Call(datasets.load_molecules, {"path": _file(), "target": None}, kinds=path)
    moved = {"molecules": molecules, "key": KEY}
    yield (
        "datasets.rotate_molecules",
        Call(datasets.rotate_molecules, moved, kinds={"molecules": instance(datasets.Molecules)}),
    )


def _dynamics() -> Iterator[tuple[str, Call]]:
    shared = {
        "ntk": NTK,
        "nngp": NNGP,
        "X": X,
        "y": Y,
        "learning_rate": 0.1,
        "alpha": 0.1,
        "reduction": "sum",
        "sample_weight": None,
        "solver": "auto",
    }
    yield (
        "GradientFlow",
        Call(
            gpntk.GradientFlow,
            {**shared, "loss": "squared"},
            lambda flow: (flow.mean(X, 1.0), flow.max_learning_rate()),
        ),
    )
    yield "GradientDescent", Call(gpntk.GradientDescent, shared, lambda flow: flow.mean(X, 3))
    settings = {"tolerance": 1e-5, "max_iterations": 50, "rank": 2, "progress": False}
    yield (
        "MatrixFree",
        Call(
            gpntk.MatrixFree, settings, lambda s: _flow(solver=s).mean(X, np.inf), {"rank": optional(integer(0))}
        ),
    )
    steps = either(real(0.0, infinite=True), TIME)
    flows = ((gpntk.GradientFlow, "time", {}), (gpntk.GradientDescent, "steps", {"learning_rate": 0.1}))
    for kind, clock, rate in flows:
        for method in ("mean", "covariance", "variance"):
            yield (
                f"{kind.__name__}.{method}",
                Call(
                    _method(method, functools.partial(_flow, kind, **rate)),
                    {"X_test": X[:2], clock: TIMES * 2},
                    kinds={"steps": steps, "X_test": FEATURES},
                ),
            )
        coefficients = _method("dual_coefficients", functools.partial(_flow, kind, **rate))
        yield f"{kind.__name__}.dual_coefficients", Call(coefficients, {"time": 1.0})


def _gaussian_processes() -> Iterator[tuple[str, Call]]:
    data = Made(lambda: gpx.Dataset(X=jnp.asarray(X), y=jnp.asarray(Y)[:, None]))
    prior = gpx.gps.Prior(kernel=NTK, mean_function=gpx.mean_functions.Zero())
    model = prior * gpx.likelihoods.Gaussian()
    solver = gpntk.MatrixFree(rank=2)
    settings = {"key": KEY, "probes": 2, "lanczos_steps": 2, "return_std": False}
    conjugate = instance(gpx.gps.ConjugateModel)
    kinds = {
        "model": conjugate,
        "data": instance(gpx.Dataset),
        "train_data": instance(gpx.Dataset),
        "solver": instance(gpntk.MatrixFree),
        "key": optional(random_key),
        "probes": integer(1),
        "lanczos_steps": integer(1),
    }
    estimate = {"model": model, "data": data, "solver": solver, **settings}
    yield "matrix_free_mll", Call(gpntk.matrix_free_mll, estimate, kinds=kinds)
    posterior = {"model": model, "train_data": data, "solver": solver}
    yield "MatrixFreePosterior", Call(gpntk.MatrixFreePosterior, posterior, lambda p: p(X).mean, kinds)


def _estimators() -> Iterator[tuple[str, Call]]:
    def rows(value):  # scikit-learn takes dates for numbers
        dates = getattr(value, "dtype", None) == "M8[s]"
        return array((None, 2), dtype=np.float64)(value) and not dates

    double = {
        "X": rows,
        "sample_weight": optional(array((), (3,), minimum=0.0, dtype=np.float64)),
        "y": array((3,), (3, None), dtype=np.float64),
        "X_test": array((None, 2)),
    }
    network = optional(instance(AbstractNetwork, AbstractKernel))
    kinds = {
        "network": network,
        "prior": optional(KERNEL),
        "loss": option("squared"),
        "time": real(0.0, infinite=True),
    }
    for kind in (gpntk.NTKRegressor, gpntk.NTKClassifier):
        name = kind.__name__
        defaults = {p.name: p.default for p in inspect.signature(kind).parameters.values()}
        is_classifier = kind is gpntk.NTKClassifier
        losses = {"loss": option("squared", "cross_entropy")} if is_classifier else {}
        yield name, Call(kind, {**defaults, "network": NET}, _predictions, {**kinds, **losses})
        fitted = functools.partial(_method, make=functools.partial(_fitted, kind))
        data = {"X": X, "y": LABELS if is_classifier else Y, "sample_weight": None}
        labels = {"y": _labels} if is_classifier else {}
        yield (
            f"{name}.fit",
            Call(kind(NET, alpha=0.1).fit, data, lambda model: model.predict(X), {**double, **labels}),
        )
        once = {**double, "time": optional(real(0.0, infinite=True))}
        yield (
            f"{name}.predict_path",
            Call(fitted("predict_path"), {"X": X, "times": TIMES}, kinds={**double, "times": TIME}),
        )
        if is_classifier:
            for method in ("predict", "decision_function", "predict_proba"):
                yield f"{name}.{method}", Call(fitted(method), {"X": X, "time": None}, kinds=once)
            continue
        predict = {"X": X, "return_std": False, "return_cov": False, "time": None}
        yield f"{name}.predict", Call(fitted("predict"), predict, kinds=once)
        samples = {"X": X, "n_samples": 2, "random_state": 0}
        yield f"{name}.sample_y", Call(fitted("sample_y"), samples, kinds={**double, "random_state": anything})
    finite = {
        "network": NET,
        "width": 300,
        "noise_variance": 0.1,
        "method": "closed_form",
        "normalize_y": False,
        "n_points": 16,
        "num_warmup": 2,
        "num_samples": 2,
        "num_chains": 1,
        "random_state": 0,
        "progress": False,
    }
    counts = dict.fromkeys(("num_warmup", "num_samples", "num_chains"), integer(1))
    kinds = {
        "network": optional(instance(gpntk.MLP)),
        "method": option("closed_form", "mcmc"),
        "noise_variance": real(0.0, strict=True),
        "random_state": anything,
    }
    yield "FiniteWidthRegressor", Call(gpntk.FiniteWidthRegressor, finite, _predictions, {**kinds, **counts})
    small = {name: finite[name] for name in ("width", "noise_variance", "n_points")}
    fitted = functools.partial(_method, make=functools.partial(_fitted, gpntk.FiniteWidthRegressor, **small))
    yield (
        "FiniteWidthRegressor.fit",
        Call(
            gpntk.FiniteWidthRegressor(NET, **small).fit, {"X": X, "y": Y}, lambda model: model.predict(X), double
        ),
    )
    predict = {"X": X, "return_std": False, "return_cov": False}
    yield "FiniteWidthRegressor.predict", Call(fitted("predict"), predict, kinds=double)
    samples = {"X": X, "n_samples": 2, "random_state": 0}
    yield (
        "FiniteWidthRegressor.sample_y",
        Call(fitted("sample_y"), samples, kinds={**double, "random_state": anything}),
    )
    for kind in (gpntk.NTKRegressor, gpntk.NTKClassifier, gpntk.FiniteWidthRegressor):
        yield (
            f"{kind.__name__}.set_params",
            Call(
                lambda network__depth, kind=kind: kind(NET).set_params(network__depth=network__depth),
                {"network__depth": 2},
                _predictions,
                {"network__depth": integer(1)},
            ),
        )


def _finite_width() -> Iterator[tuple[str, Call]]:
    mlp, double = (
        {"net": instance(gpntk.MLP)},
        {"X": array((None, None), dtype=np.float64), "X_test": optional(array((None, None), dtype=np.float64))},
    )
    yield (
        "cumulants",
        Call(
            gpntk.cumulants,
            {"net": NET, "X": X[:2], "rank": None, "tolerance": None, "seed": 0},
            kinds={**mlp, **double, "tolerance": optional(KINDS["tolerance"])},
        ),
    )
    sampled = {"net": NET, "X": X[:2], "width": 4, "n_samples": 256, "key": KEY, "progress": False}
    yield "sample_cumulants", Call(gpntk.sample_cumulants, sampled, kinds={**mlp, "width": integer(1)})
    yield "Cumulants.at", Call(_method("at", _cumulants), {"width": 100.0})
    yield "FactoredCumulants.at", Call(_method("at", functools.partial(_cumulants, 2)), {"width": 100.0})
    yield "depth_to_width", Call(gpntk.depth_to_width, {"net": NET, "width": 100.0})
    yield (
        "critical_initialization",
        Call(gpntk.critical_initialization, {"activation": gpntk.Erf()}, lambda critical: critical[:2]),
    )
    point = {"activation": gpntk.Erf(), "weight_variance": 1.0, "variance": 0.5}
    yield (
        "susceptibilities",
        Call(
            gpntk.susceptibilities,
            point,
            kinds={"variance": array(minimum=0.0, dtype=np.float64), "weight_variance": real(0.0, strict=True)},
        ),
    )
    data = {"net": NET, "X": X, "y": Y, "X_test": X[:2], "width": 300.0, "noise_variance": 0.1}
    closed = {**data, "n_points": 16, "seed": 0, "return_cov": True}
    kinds = {
        **mlp,
        **double,
        "y": array((3,), (3, None), dtype=np.float64),
        "noise_variance": real(0.0, strict=True),
    }
    yield "finite_width_posterior", Call(gpntk.finite_width_posterior, closed, kinds=kinds)
    drawn = {**data, "width": 8, "n_samples": 256, "key": KEY, "progress": False}
    kinds = {**kinds, "width": integer(1), "X_test": array((None, None), dtype=np.float64)}
    yield "sample_finite_width_posterior", Call(gpntk.sample_finite_width_posterior, drawn, kinds=kinds)
    action = {
        "g": np.eye(2),
        "v": np.zeros((2,) * 4),
        "n_outputs": 1,
        "squared_radius": None,
        "validate_args": None,
    }
    tensors = {
        "g": array((None, None), dtype=np.float64),
        "v": array((None,) * 4, dtype=np.float64),
        "validate_args": optional(boolean),
    }
    yield "QuarticAction", Call(gpntk.QuarticAction, action, lambda a: a.action(np.ones(a.event_shape)), tensors)
    made = {"cumulants": Made(_cumulants), "width": 500.0, "n_outputs": 1, "squared_radius": None}
    yield "QuarticAction.from_cumulants", Call(gpntk.QuarticAction.from_cumulants, made, lambda a: a.g)


def _models() -> Iterator[tuple[str, Call]]:
    data = {"X": X[:2], "y": Y[:2], "X_test": X[2:]}
    random = {"retained": 0.9, "most_modes": 4, "n_points": 16, "seed": 0}
    network = {"net": NET, "width": 500.0, "action": None}
    two = {
        "X": array((None, None), dtype=np.float64),
        "X_test": optional(array((None, None), dtype=np.float64)),
        "y": optional(array((2,), (2, None))),
        "net": optional(instance(gpntk.MLP)),
        "width": optional(WIDTH),
        "n_outputs": optional(integer(1)),
    }
    regression = {**data, **network, "noise_variance": 0.1, "n_outputs": None, **random}
    yield "models.finite_width_regression", Call(_sites(models.finite_width_regression), regression, kinds=two)
    labels = {"y": optional(array((2,), minimum=0.0, whole=True))}
    classification = {**data, "y": LABELS[:2], **network, "n_classes": 2, "nugget": 0.1, **random}
    yield (
        "models.finite_width_classification",
        Call(_sites(models.finite_width_classification), classification, kinds={**two, **labels}),
    )
    evidence = {
        "X": X[:2],
        "y": Y[:2],
        "net": NET,
        "width": 500.0,
        "noise_variance": 0.1,
        "weight_variance": None,
        "bias_variance": None,
        "n_points": 16,
        "seed": 0,
    }
    prior = optional(instance(Distribution))
    kinds = {
        "X": array((None, None), dtype=np.float64),
        "y": array((2,), (2, None), dtype=np.float64),
        "net": instance(gpntk.MLP),
        "weight_variance": prior,
        "bias_variance": prior,
    }

    def with_x64(**arguments):
        with jax.enable_x64(True):
            return _sites(models.evidence_regression)(**arguments)

    yield (
        "models.evidence_regression",
        Call(functools.wraps(models.evidence_regression)(with_x64), evidence, kinds=kinds),
    )
    quartic = {**data, **network, "noise_variance": 0.1}
    yield "models.quartic_action_regression", Call(_sites(models.quartic_action_regression), quartic, kinds=two)


def _sampling() -> Iterator[tuple[str, Call]]:
    params = Made(functools.partial(_params, NET))
    pairs = {"net": NET, "params": params, "x1": X, "x2": X[:2]}
    functions = {"net": either(NETWORK, lambda v: not callable(v)), "params": anything}
    yield "empirical_ntk", Call(gpntk.empirical_ntk, {**pairs, "outputs": "mean"}, kinds=functions)
    yield "readout_kernels", Call(gpntk.readout_kernels, pairs)
    yield (
        "linearize",
        Call(gpntk.linearize, {"net": NET, "params": params}, lambda f: f(_params(NET), X), functions),
    )
    width = {"width": integer(1)}
    sampled = {"net": NET, "X": X, "width": 4, "n_samples": 3, "key": KEY, "progress": False}
    yield "sample_kernels", Call(gpntk.sample_kernels, sampled, kinds=width)
    training = {
        "optimizer": optax.sgd(0.01),
        "steps": 2,
        "loss": "squared",
        "reduction": "sum",
        "alpha": 0.0,
        "progress": False,
    }
    yield "train", Call(gpntk.train, {"net": NET, "params": params, "X": X, "y": Y, **training})
    ensemble = {"net": NET, "X": X, "y": Y, "key": KEY, "members": 2, "width": 4, "batch_size": None, **training}
    yield "train_ensemble", Call(gpntk.train_ensemble, ensemble, kinds=width)


def _plots() -> Iterator[tuple[str, Call]]:
    axes = {"ax": optional(instance(matplotlib.axes.Axes))}

    def plot(function: Callable, arguments: dict[str, Any], **kinds: Kind) -> tuple[str, Call]:
        def use(drawn):
            return [line.get_ydata() for line in drawn.lines]

        return f"plotting.{function.__name__}", Call(function, {**arguments, "ax": None}, use, {**kinds, **axes})

    vector = array((None,), dtype=np.float64)
    output = integer(0)
    statistics = {"cumulants": Made(_cumulants), "name": "V", "index": 0}
    names = ("K", "theta", "K1", "theta1", "V", "D", "F", "A", "B")
    yield plot(plotting.plot_against_depth, statistics, name=option(*names), index=integer(-2))
    plane = optional(array((2, 2), dtype=np.float64))
    angle = {"kernel": NTK, "plane": None, "relative": False, "points": 5}
    yield plot(plotting.plot_against_angle, angle, plane=plane, relative=boolean, points=integer(2))
    band = {"x": Y, "mean": Y, "std": Y**2, "factor": 2.0}
    spread = array((3,), dtype=np.float64, minimum=0.0)
    yield plot(plotting.plot_band, band, x=vector, mean=vector, std=spread, factor=real(0.0))
    regressor, classifier = (
        Made(functools.partial(_fitted, k)) for k in (gpntk.NTKRegressor, gpntk.NTKClassifier)
    )
    model = {"model": instance(gpntk.NTKRegressor, gpntk.GradientFlow)}
    predictions = {"model": regressor, "X": X, "times": TIMES, "along": Y, "output": 0, "factor": 2.0}
    double = {"X": anything, "times": TIME}  # what scikit-learn takes
    kinds = {**model, **double, "along": optional(vector), "output": output, "factor": real(0.0)}
    yield plot(plotting.plot_predictions, predictions, **kinds)
    classifier = Made(functools.partial(_fitted, gpntk.NTKClassifier))
    curve = {"model": classifier, "X": X, "y": LABELS, "times": TIMES, "score": None}
    model = {"model": instance(gpntk.NTKRegressor, gpntk.NTKClassifier)}
    kinds = {**model, **double, "y": _labels, "score": optional(lambda v: not callable(v))}
    yield plot(plotting.plot_against_time, curve, **kinds)
    sizes = {"sizes": np.array([10.0, 20.0, 40.0]), "scores": np.ones((2, 3))}
    kinds = {
        "sizes": array((3,), minimum=0.0, dtype=np.float64),
        "scores": array((3,), (None, 3), dtype=np.float64),
    }
    yield plot(plotting.plot_against_size, sizes, **kinds)
    orbit = {"group": CYCLIC, "x": np.ones(2), "shape": (1, 2), "channel": 0, "columns": 2}
    kinds = {"group": instance(groups.FiniteGroup), "x": array((2,), dtype=np.float64), "columns": integer(1)}
    shape = optional(lambda v: not isinstance(v, list | tuple) or len(v) != 2)
    yield plot(plotting.plot_orbit, orbit, **kinds, shape=shape, channel=output)
    sphere = {"group": SO3, "x": np.ones(4), "channel": 0, "rings": 3}
    kinds = {"group": instance(groups.SO3), "x": array((4,), dtype=np.float64), "rings": integer(2)}
    yield plot(plotting.plot_sphere, sphere, **kinds, channel=output)


def calls() -> dict[str, Call]:
    """All of them."""
    tables = (
        _activations,
        _networks,
        _kernels,
        _groups,
        _datasets,
        _dynamics,
        _gaussian_processes,
        _estimators,
        _finite_width,
        _models,
        _sampling,
        _plots,
    )
    return {name: call for table in tables for name, call in table()}


# Methods for those who write a new activation, network, group or kernel, called by the package with arguments
# it has checked; and methods whose arguments are GPJax's or NumPyro's affair.
INTERFACE = {
    "action",
    "arguments",
    "arrange",
    "check_features",
    "check_parameters",
    "check_unpooled",
    "columns",
    "cross_of_features",
    "diagonal_values",
    "features",
    "get_params",
    "gram_of_features",
    "grouping",
    "hidden",
    "hidden_widths",
    "is_invariant",
    "kernels",
    "kernels_after",
    "log_prob",
    "moments",
    "order",
    "pair",
    "paired_kernels",
    "placed",
    "quadrature_error",
    "reduce",
    "sample",
    "select",
    "side",
    "slice_input",
    "slot_pair",
    "take",
    "truncation_error",
    "unpooled",
}
