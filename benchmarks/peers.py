"""Peer libraries to compare with, each in a virtual environment of its own, driven through a worker process.

neural-tangents needs a jax that gpntk does not run on, so the two can never share a process. A worker that
stays alive lets a benchmark time both sides in alternation, in one run:

    with NeuralTangents() as peer:
        data = peer.put(x)
        for _ in range(5):
            ours.append(measure.seconds(lambda: jax.block_until_ready(nngp_and_ntk(net, x))))
            theirs += peer.time(description, data)

`nt_worker.py` defines the description of a network and the requests. `python benchmarks/peers.py` only
creates the environment and prints what is in it.

equivariant-ntk is a set of further neural-tangents layers. It is on no package index: check out
github.com/PhilippMisofCH/equivariant-ntk and name the folder in the environment variable `EQUIVARIANT_NTK`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".bench"

Net = dict[str, Any]


@dataclass(frozen=True)
class Environment:
    """A virtual environment under `.bench/`, made by venv and pip on first use."""

    name: str
    requirements: tuple[str, ...]
    without_dependencies: tuple[str, ...] = ()  # installed after the others, with pip's --no-deps
    pythons: tuple[tuple[int, int], ...] = ()  # versions of Python for which all of them have wheels

    @property
    def path(self) -> Path:
        return CACHE / self.name

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def ensure(self) -> Path:
        """Create the environment unless it is complete and has these very pins; return its interpreter."""
        # Written last, so an interrupted installation is recognised and done again.
        stamp = self.path / "installed.txt"
        wanted = "\n".join([*self.requirements, "--no-deps", *self.without_dependencies]) + "\n"
        if stamp.exists() and stamp.read_text() == wanted:
            return self.python
        if self.pythons and sys.version_info[:2] not in self.pythons:
            allowed = ", ".join(f"{major}.{minor}" for major, minor in self.pythons)
            raise RuntimeError(f"{self.name} needs Python {allowed}; this is {sys.version.split()[0]}.")
        print(f"Installing {self.name} in .bench/{self.name} (once) ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.path)], check=True)
        self._pip(*self.requirements)
        if self.without_dependencies:
            self._pip("--no-deps", *self.without_dependencies)
        stamp.write_text(wanted)
        return self.python

    def _pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip could not install {self.name}:\n{done.stderr[-3000:]}")


NEURAL_TANGENTS = Environment(
    name="neural-tangents",
    # 0.6.5 needs jax <= 0.5.2 and numpy < 2, and imports tensorflow through tf2jax. jaxlib 0.5.1 is the
    # newest that jax 0.5.2 accepts.
    requirements=(
        "jax==0.5.2",
        "jaxlib==0.5.1",
        "numpy==1.26.4",
        "scipy>=1.11",
        "frozendict>=2.3.8",
        "tensorflow-cpu>=2.17",
        "dm-tree>=0.1.5",
        "s2fft==1.3.0",  # what equivariant-ntk, which runs in this environment too, was locked to
    ),
    # Both ask for `tensorflow` by name; tensorflow-cpu is the same without the accelerator's code, half the
    # size.
    without_dependencies=("neural-tangents==0.6.5", "tf2jax==0.3.7"),
    pythons=((3, 10), (3, 11), (3, 12)),
)


def mlp(activation: tuple[str, dict[str, Any]], depth: int, weight_variance: float, bias_variance: float) -> Net:
    """The description of a network of dense layers (`nt_worker.py` explains descriptions)."""
    return {
        "kind": "mlp",
        "depth": depth,
        "activation": list(activation),
        "weight_variance": weight_variance,
        "bias_variance": bias_variance,
    }


def to_gpntk(net: Net) -> Any:
    """The gpntk architecture that a description of an MLP stands for."""
    import gpntk  # not needed to make the environment or to talk to the worker

    name, arguments = net["activation"]
    return gpntk.MLP(
        depth=net["depth"],
        activation=getattr(gpntk, name)(**arguments),
        weight_variance=net["weight_variance"],
        bias_variance=net["bias_variance"],
    )


def has_equivariant_ntk() -> bool:
    """Whether `EQUIVARIANT_NTK` names a checkout of equivariant-ntk."""
    folder = os.environ.get("EQUIVARIANT_NTK")
    return folder is not None and (Path(folder) / "equivariant_ntk").is_dir()


class PeerError(RuntimeError):
    """The peer raised, or its process ended."""


class NeuralTangents:
    """A running worker of neural-tangents; a context manager.

    `x64` sets its precision for good. Spherical layers of equivariant-ntk set it to double by themselves.
    """

    def __init__(self, x64: bool = False) -> None:
        python = NEURAL_TANGENTS.ensure()
        self._folder = Path(tempfile.mkdtemp(prefix="gpntk-bench-"))
        self._log = (self._folder / "stderr.txt").open("w+")
        self._files = 0
        # The peer must see neither our packages nor our choice of platform.
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_ENABLE_X64")}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
        if has_equivariant_ntk():
            environment["PYTHONPATH"] = os.environ["EQUIVARIANT_NTK"]
        self._process = subprocess.Popen(
            [str(python), str(HERE / "nt_worker.py"), *(["--x64"] if x64 else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker and remove its files."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()  # the worker's loop ends with its input
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        with contextlib.suppress(BrokenPipeError):  # the answer is empty then, and the log says why
            self._input.write(json.dumps({"op": op, **arguments}) + "\n")
            self._input.flush()
        line = self._output.readline()
        if not line:
            self._log.seek(0)
            raise PeerError(f"the neural-tangents worker ended during {op!r}:\n{self._log.read()[-3000:]}")
        answer = json.loads(line)
        if not answer.pop("ok"):
            raise PeerError(f"neural-tangents failed on {op!r}: {answer['error']}\n{answer['traceback']}")
        return answer

    def put(self, x: np.ndarray) -> str:
        """Hand an array to the worker; the name returned stands for it in the requests below."""
        path = self._new_path()
        np.save(path, x)
        return path

    def versions(self) -> dict[str, str]:
        """What runs in the worker."""
        return self.request("hello")["versions"]

    def time(self, net: Net, data: str, batch: int = 0, repeat: int = 1) -> list[float]:
        """Seconds of `repeat` computations of both Gram matrices; a network's first includes compilation.

        `batch` = 0 is one jitted call; otherwise `nt.batch` with blocks of that size.
        """
        return self.request("time", net=net, x=data, batch=batch, repeat=repeat)["seconds"]

    def extra_peak_bytes(self, net: Net, data: str, batch: int = 0) -> int:
        """Peak memory as `measure.MEMORY_DEFINITION` has it. Ask a worker that has done nothing else."""
        return self.request("memory", net=net, x=data, batch=batch)["extra_peak_bytes"]

    def kernels(self, net: Net, data: str) -> tuple[np.ndarray, np.ndarray]:
        """The NNGP and NTK matrices."""
        nngp, ntk = self._new_path(), self._new_path()
        self.request("kernels", net=net, x=data, nngp=nngp, ntk=ntk)
        matrices = np.load(nngp), np.load(ntk)
        for path in (nngp, ntk):
            os.remove(path)
        return matrices

    def predict(
        self, net: Net, x: str, y: str, x_test: str, time: float | None, alpha: float, covariance: bool = False
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Seconds of one fit and prediction, its mean and (if asked for) its covariance.

        `time` is that of `gpntk.GradientFlow` with `reduction="sum"`, `None` for infinity; `alpha` is absolute.
        """
        mean, spread = self._new_path(), self._new_path()
        arguments = {"x": x, "y": y, "x_test": x_test, "time": time, "alpha": alpha, "covariance": covariance}
        seconds = self.request("predict", net=net, **arguments, mean=mean, spread=spread)["seconds"]
        return seconds, np.load(mean), np.load(spread) if covariance else None

    def _new_path(self) -> str:
        self._files += 1
        return str(self._folder / f"{self._files}.npy")


if __name__ == "__main__":
    with NeuralTangents() as worker:
        print("\n".join(f"{name} {version}" for name, version in worker.versions().items()))
