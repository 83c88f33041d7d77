"""Worker that computes and times neural-tangents kernels, inside an environment of its own (see `peers.py`).

Not run by hand: `peers.NeuralTangents` starts it, sends one JSON object per line on standard input and reads
one per line from standard output. Arrays travel as .npy files, whose paths are in the messages.

Requests (`op`), every one answered by `{"ok": true, ...}` or `{"ok": false, "error": ...}`:

    hello                                           -> "versions"
    time     net, x, [batch], [repeat]              -> "seconds" (list)
    memory   net, x, [batch]                        -> "extra_peak_bytes" (ask a fresh worker)
    kernels  net, x, nngp, ntk                      -> the two Gram matrices saved at the paths `nngp` and `ntk`
    predict  net, x, y, x_test, time, alpha, covariance, mean, spread
                                                    -> "seconds"; both moments saved at the paths `mean`, `spread`
    quit

A network is described as plain data:

    {"kind": "mlp", "depth": 3, "activation": ["Erf", {"a": 1.0, "b": 1.0, "c": 0.0}],
     "weight_variance": 1.7, "bias_variance": 0.2}
    {"kind": "cnn", "input_shape": [8, 8, 1], "filter_size": 3, "padding": "same", "readout": "pool", ...}
    {"kind": "planar_group_cnn", "input_shape": [8, 8, 1], "filter_size": 3, "padding": "same", ...}
    {"kind": "spherical_cnn", "bandlimit": 6, "input_shape": [12, 11, 1], ...}

with gpntk's names for activations, arguments, paddings and readouts; rows of `x` are flattened inputs. The
last two, C4 and SO(3) on s2fft's grid "dh", need equivariant-ntk: see `peers.py`. "Tanh" takes the number of
quadrature nodes from `"quadrature"` (25 if absent).
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

import measure

Net = dict[str, Any]
Request = dict[str, Any]

# gpntk's name -> (constructor in neural_tangents.stax, {gpntk's argument: the peer's}).
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "ReLU": ("Relu", {}),
    "LeakyReLU": ("LeakyRelu", {"negative_slope": "alpha"}),
    "ABReLU": ("ABRelu", {"a": "a", "b": "b"}),
    "Abs": ("Abs", {}),
    "Sign": ("Sign", {}),
    "Erf": ("Erf", {"a": "a", "b": "b", "c": "c"}),
    "GELU": ("Gelu", {}),
    "Sin": ("Sin", {"a": "a", "b": "b", "c": "c"}),
    "Cos": ("Cos", {"a": "a", "b": "b", "c": "c"}),
    "Exp": ("Exp", {"a": "a", "b": "b"}),
    "Gaussian": ("Gaussian", {"a": "a", "b": "b"}),
    "Rbf": ("Rbf", {"gamma": "gamma"}),
    "Monomial": ("Monomial", {"k": "degree"}),
    "Polynomial": ("Polynomial", {"coefficients": "coef"}),
    "Hermite": ("Hermite", {"k": "degree"}),
    "Identity": ("Identity", {}),
    "Tanh": ("ElementwiseNumerical", {}),  # no closed form: Gauss-Hermite quadrature
}
PADDINGS = {"same": "SAME", "valid": "VALID", "circular": "CIRCULAR"}
READOUTS = {"pool": "GlobalAvgPool", "flatten": "Flatten"}


def activation_call(net: Net) -> tuple[str, dict[str, Any]]:
    """The peer's constructor and arguments for `net["activation"]`."""
    name, arguments = net["activation"]
    constructor, renamed = ACTIVATIONS[name]
    translated = {renamed[key]: value for key, value in arguments.items()}
    if constructor == "ElementwiseNumerical":
        translated["deg"] = net.get("quadrature", 25)
    return constructor, translated


def standard_deviations(net: Net) -> dict[str, float | None]:
    """The peer takes standard deviations, and None (not 0) for a layer without bias."""
    bias = net.get("bias_variance", 0.0)
    return {"W_std": net.get("weight_variance", 2.0) ** 0.5, "b_std": bias**0.5 if bias > 0 else None}


def layer_calls(net: Net) -> list[tuple[str, dict[str, Any]]]:
    """(constructor, arguments) of every stax layer, in order."""
    affine = standard_deviations(net)
    act, depth = activation_call(net), net.get("depth", 2)
    # Declared widths do not enter the kernels in the NTK parameterisation.
    dense = ("Dense", {"out_dim": 1, **affine})
    if net.get("kind", "mlp") == "mlp":
        return [dense, act] * depth + [dense]
    if net["kind"] == "spherical_cnn":
        bandlimit = net["bandlimit"]
        conv_arguments = {
            "out_ch": 1,
            "max_beta": math.pi,
            "bw": (bandlimit, bandlimit),
            "kappa_std": affine["W_std"],
            "b_std": affine["b_std"],
        }
        lift, conv = (("S2ConvSO3", conv_arguments), ("SO3ConvSO3", conv_arguments))
        return [lift, act] + [conv, act] * (depth - 1) + [("SO3Pool", {}), dense]
    size = net.get("filter_size", 3)
    padding = PADDINGS[net.get("padding", "same")]
    conv_arguments = {"out_chan": 1, "filter_shape": (size, size), "padding": padding, **affine}
    if net["kind"] == "planar_group_cnn":
        lift, conv = (("Z2ConvP4", conv_arguments), ("P4ConvP4", conv_arguments))
        return [lift, act] + [conv, act] * (depth - 1) + [("GroupPool", {}), dense]
    return [("Conv", conv_arguments), act] * depth + [(READOUTS[net.get("readout", "pool")], {}), dense]


def build(net: Net) -> Callable[..., Any]:
    """The peer's `kernel_fn` of a network."""
    import jax.numpy as jnp
    from neural_tangents import stax

    def layer(name: str, arguments: dict[str, Any]) -> Any:
        if not hasattr(stax, name):
            return equivariant_layer(name, arguments)
        if name == "ElementwiseNumerical":
            arguments = {"fn": jnp.tanh, "df": lambda x: 1 - jnp.tanh(x) ** 2, **arguments}
        return getattr(stax, name)(**arguments)

    return stax.serial(*[layer(name, kw) for name, kw in layer_calls(net)])[2]


def equivariant_layer(name: str, arguments: dict[str, Any]) -> Any:
    """A layer of equivariant-ntk, the spherical ones with the tables of s2fft that they ask for."""
    from equivariant_ntk import layers
    from equivariant_ntk.utils.so3 import Precompute_Sph, Precompute_Wig

    if "bw" in arguments:
        tables = {"precomps_wig": Precompute_Wig()}
        if name == "S2ConvSO3":
            tables["precomps_sph"] = Precompute_Sph()
        for table in tables.values():
            table.compute_kernels(set(arguments["bw"]))
        arguments = {**arguments, **tables}
    return getattr(layers, name)(**arguments)


class Worker:
    """Keeps inputs and compiled kernels between requests, so that repeated timings see neither again."""

    def __init__(self) -> None:
        self._inputs: dict[tuple[str, Any], Any] = {}
        self._kernels: dict[str, Callable[..., Any]] = {}

    def handle(self, request: Request) -> dict[str, Any]:
        """Answer one request."""
        return getattr(self, "op_" + request["op"])(request)

    def op_hello(self, _: Request) -> dict[str, Any]:
        from importlib.metadata import version

        names = ("neural-tangents", "jax", "jaxlib", "numpy")
        return {"versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}}}

    def op_time(self, request: Request) -> dict[str, Any]:
        call = self._call(request)
        return {"seconds": [measure.seconds(call) for _ in range(request.get("repeat", 1))]}

    def op_memory(self, request: Request) -> dict[str, Any]:
        return {"extra_peak_bytes": measure.extra_peak_bytes(self._call(request))}

    def op_kernels(self, request: Request) -> dict[str, Any]:
        import numpy as np

        nngp, ntk = self._call(request)()
        np.save(request["nngp"], np.asarray(nngp))
        np.save(request["ntk"], np.asarray(ntk))
        return {}

    def op_predict(self, request: Request) -> dict[str, Any]:
        """Fit and predict an ensemble trained to a time, as users of the peer do it: seconds, mean, covariance.

        Its clock divides by the number of targets, and it interprets `t=None` as infinite time.
        """
        import jax
        import neural_tangents as nt
        import numpy as np

        net, covariance = request["net"], request["covariance"]
        x, y, x_test = (self._input(request[name], net if name != "y" else {}) for name in ("x", "y", "x_test"))
        key = "predict " + json.dumps(net, sort_keys=True)
        if key not in self._kernels:
            self._kernels[key] = jax.jit(build(net), static_argnames="get")
        kernel_fn = self._kernels[key]

        def call() -> Any:
            predict = nt.predict.gradient_descent_mse_ensemble(
                kernel_fn, x, y, diag_reg=request["alpha"], diag_reg_absolute_scale=True
            )
            time = request["time"]
            moments = predict(
                t=None if time is None else time * y.size, x_test=x_test, get="ntk", compute_cov=covariance
            )
            return jax.block_until_ready(moments)

        results: list[Any] = []
        seconds = measure.seconds(lambda: results.append(call()))
        mean, spread = results[0] if covariance else (results[0], None)
        np.save(request["mean"], np.asarray(mean))
        if spread is not None:
            np.save(request["spread"], np.asarray(spread))
        return {"seconds": seconds}

    def _call(self, request: Request) -> Callable[[], Any]:
        """A call that computes both Gram matrices and waits for them."""
        import jax

        net, batch = request["net"], request.get("batch", 0)
        key = json.dumps([net, batch], sort_keys=True)
        if key not in self._kernels:
            self._kernels[key] = _compiled(net, batch)
        kernel = self._kernels[key]
        x = self._input(request["x"], net)
        return lambda: jax.block_until_ready(kernel(x, None))

    def _input(self, path: str, net: Net) -> Any:
        """The array at `path` on the device, as images where the network is convolutional."""
        import jax
        import numpy as np

        shape = tuple(net.get("input_shape", ()))
        key = (f"{path} {os.stat(path).st_mtime_ns}", shape)
        if key not in self._inputs:
            x = np.load(path)
            self._inputs[key] = jax.block_until_ready(jax.device_put(x.reshape(len(x), *shape) if shape else x))
        return self._inputs[key]


def _compiled(net: Net, batch: int) -> Callable[..., Any]:
    """The kernel function as its users would call it: jitted, or in blocks (`nt.batch` jits by itself)."""
    import jax
    import neural_tangents as nt

    kernel_fn = build(net)
    if batch:
        return partial(nt.batch(kernel_fn, batch_size=batch, device_count=0), get=("nngp", "ntk"))
    # The outputs only, not the peer's named tuple: it is rebuilt on the host at every call.
    return jax.jit(lambda x1, x2: tuple(kernel_fn(x1, x2, ("nngp", "ntk"))))


def _private_stdout() -> TextIO:
    """A handle on standard output that nothing else writes to: libraries that print go to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Answer requests until standard input ends."""
    answers = _private_stdout()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore")
    import jax

    jax.config.update("jax_enable_x64", "--x64" in sys.argv[1:])
    jax.config.update("jax_platforms", "cpu")
    import neural_tangents  # noqa: F401  (part of the cost of the process, not of the first request)

    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            break
        try:
            answer = {"ok": True, **worker.handle(request)}
        except Exception as error:  # whatever it is, the benchmark decides
            answer = {
                "ok": False,
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
