"""The loss of a study over its box of parameters: evaluated for many parameter sets at once, and recorded."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import runs

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import processes
from identifiability import Box
from studies import Study, chunks_of, n_traces

GRADIENT_BLOCKS = (1, 10, 50)  # parameter sets on each device; the first where starts may meet, in an annealed fit
N_CELL = 2000  # traces times parameter sets that are simulated at a time


@dataclasses.dataclass
class Start:
    """One start of a fit and the best point it has seen, both in [0, 1]^k."""

    initial: np.ndarray | None
    x: np.ndarray
    loss: float = math.inf
    n_gradients: int = 0
    flat: bool = False  # the gradient at the initial point is exactly zero
    status: str = "interrupted"


@dataclasses.dataclass(frozen=True)
class Round:
    """A round of evaluations: what all of them have cost so far, and the best point seen at this level."""

    round: int
    active: int
    n_simulations: int
    n_gradients: int
    seconds: float
    level: float
    best_loss: float
    parameters: dict[str, float]


class FitProblem:
    """The loss of a study over its box of parameters, evaluated for many parameter sets at once and recorded.

    Losses are one compiled program, a batch of n_sample sets split over the devices. Gradients are in forward mode: k
    parameters cost up to k simulations more and store nothing, where reverse mode stores the trajectory. A study that
    is in parallel over time has that mode, set after set on each device. Gradients are computed in padded blocks of a
    few sizes, so that the few starts that take long do not cost what all do; those of residuals have the traces split
    over the devices, not the sets. N_CELL traces of all sets are taken at a time, so that memory does not grow.

    Args:
        study: of which what is fitted goes to the devices once.
        n_sample: parameter sets that wait for evaluation at the same time.
        devices: JAX devices.
        journal: where the evaluations are kept, and those of a fit that was killed are found.
    """

    def __init__(self, study: Study, n_sample: int, devices: Sequence[jax.Device], journal: runs.Journal | None = None):
        self.study, self.n_sample, self.box, self.journal = study, n_sample, Box(study.bounds), journal
        self.mesh = Mesh(np.array(devices), ("batch",))
        self.shared = self.mesh.is_multi_process
        self.programs, self.seconds = {}, {"compile": 0.0, "run": 0.0}
        self.device_data = {}
        self.fit_to(study.windows)
        n_first = study.annealing.n_first if study.annealing else None
        n_trace = n_traces(self.data)
        self.first_is_part = bool(n_first) and n_trace > 2 * n_first
        if self.first_is_part:
            traces = np.linspace(0, n_trace - 1, n_first).round().astype(int)
            self.device_data[True] = self._on_devices(jax.tree.map(lambda x: x[..., traces], self.data))
        self.reset()

    def _on_devices(self, data):
        return jax.device_put(data, NamedSharding(self.mesh, PartitionSpec()))

    def fit_to(self, windows: Any) -> None:
        """From now on fit these windows, of the same shapes, whose losses are others."""
        self.study, self.best = dataclasses.replace(self.study, windows=windows), {}
        self.data = jax.tree.map(lambda x: np.asarray(x, jnp.result_type(float)), self.study.fitted)
        self.device_data[False] = self._on_devices(self.data)

    def go_on_with(self, study: Study) -> None:
        """From now on fit another study of the same parameters; the history goes on."""
        self.study, self.first_is_part, self.programs = study, False, {}
        self.fit_to(study.windows)

    def reset(self) -> None:
        """Begin another fit, with the programs that are compiled."""
        self.n_simulations = self.n_gradients = 0
        self.history: list[Round] = []
        self.on_round: Callable[[Round], None] = lambda row: None
        self.best: dict[float, Start] = {}
        self.begin = time.perf_counter() - self.seconds["compile"]

    def _loss(self, x, data, level):
        """The loss of one set, whose parameters are scalars."""
        return self.study.loss.function(self.study.model(self.box.parameters(x), data, level), data)

    def _losses(self, X, data, level):
        """The model runs on the traces of all sets as one flat population: XLA vectorises that best on a CPU."""
        if self.study.gram:
            return jax.lax.map(lambda x: self._loss(x, data, level), X)
        chunks = chunks_of(n_traces(data), N_CELL // len(X))
        if len(chunks.firsts) == 1:
            return jax.vmap(self.study.loss.function, (-2, None))(self._outputs(X, data, level), data)
        parts = jax.lax.map(lambda first: self._outputs(X, chunks.of(data, first), level), jnp.asarray(chunks.firsts))
        once = np.flatnonzero(chunks.is_new.ravel())
        output = jax.tree.map(lambda y: jnp.concatenate(list(y), axis=-1)[..., once], parts)
        return jax.vmap(self.study.loss.function, (-2, None))(output, data)

    def _grams(self, X, data, level):
        """Losses (n,) and Gram matrices of the derivatives of the residuals and the residuals themselves (n, k+1, k+1).

        Summed over chunks of traces, to keep the derivatives of few potentials at a time, which the devices share.
        """
        if self.study.gram:
            grams = jax.lax.map(lambda x: self.study.gram(self.box.parameters, x, data), X)
            return grams[:, -1, -1], grams
        n_part = self.mesh.size
        chunks = chunks_of(n_traces(data), min(N_CELL // len(X), -(-n_traces(data) // n_part)))

        def gram(row):
            first, is_new = row
            part = chunks.of(data, first)

            def residuals(X):
                each = jax.vmap(self.study.loss.residuals, (-2, None), -2)
                return each(self._outputs(X, part, level), part) * is_new

            def along(direction):
                return jax.jvp(residuals, (X,), (jnp.broadcast_to(direction, X.shape),))

            r, J = jax.vmap(along, out_axes=(None, 0))(jnp.eye(X.shape[1], dtype=X.dtype))
            rows = jnp.concatenate([J, r[None]])
            return jnp.einsum("atnw,btnw->nab", rows, rows)

        own = jax.lax.map(gram, chunks.part(jax.lax.axis_index("batch"), n_part)).sum(0)
        grams = jax.lax.psum(own, "batch") / jnp.sum(data.mask)
        return grams[:, -1, -1], grams

    def _outputs(self, X, data, level):
        """Outputs (..., len(X), n_trace) of the model."""
        n_trace = n_traces(data)
        population = jax.tree.map(lambda x: jnp.tile(x, len(X)), data)
        output = self.study.model(self.box.parameters(jnp.repeat(X, n_trace, axis=0)), population, level)
        return jax.tree.map(lambda y: y.reshape(*y.shape[:-1], len(X), n_trace), output)

    def _losses_and_grads(self, X, data, level):
        if self.study.gram:
            return jax.lax.map(lambda x: jax.value_and_grad(self._loss)(x, data, level), X)

        def along(direction):
            return jax.jvp(lambda X: self._losses(X, data, level), (X,), (jnp.broadcast_to(direction, X.shape),))

        return jax.vmap(along, out_axes=(None, -1))(jnp.eye(X.shape[1]))

    def _n_part(self, what):
        """Parts of the sets, one a device; a single one where each device has a part of the traces instead."""
        return 1 if what == "grams" and not self.study.gram else self.mesh.size

    def _program(self, what, n_block, part):
        if (what, n_block, part) not in self.programs:
            start = time.perf_counter()
            copied = PartitionSpec()
            split = copied if self._n_part(what) == 1 else PartitionSpec("batch")
            specs = dict(mesh=self.mesh, in_specs=(split, copied, copied), out_specs=split, check_vma=False)
            whole = NamedSharding(self.mesh, copied)  # each of several processes has all that comes of it
            functions = dict(losses=self._losses, gradients=self._losses_and_grads, grams=self._grams)
            function = jax.shard_map(functions[what], **specs)
            X, level = np.zeros((n_block, len(self.box.low))), np.zeros(())
            X, level = (x.astype(jnp.result_type(float)) for x in (X, level))
            program = jax.jit(function, in_shardings=whole, out_shardings=whole)
            self.programs[what, n_block, part] = program.lower(X, self.device_data[part], level).compile()
            self.seconds["compile"] += time.perf_counter() - start
        return self.programs[what, n_block, part]

    def evaluate(self, X: np.ndarray, what: str = "losses", level: float = 0.0) -> Any:
        """Losses (n,) at the rows of X (n, k), and what else is asked for; a round of the history.

        Args:
            what: "losses" alone, or with them "gradients" (n, k), or "grams" (n, k + 1, k + 1), of which the last
                column is half the gradient, and then the loss.
        """
        asked, n_value = _asked(X, what, level), 1 + math.prod(N_VALUES[what](X.shape[1]))
        processes.check_round(asked, self.shared)
        kept = self.journal.recall(asked, n_value) if self.journal else None
        if kept:
            values, seconds = kept
            self.begin = time.perf_counter() - self.seconds["compile"] - seconds
        else:
            values = self._evaluate(X, what, level)
            if self.journal:
                self.journal.add(asked, values, self._seconds_run())
        losses, more = values[:, 0].copy(), values[:, 1:].copy()
        self._add_round(X, losses, what != "losses", level)
        if what == "losses":
            return losses
        return losses, more.reshape(len(X), *N_VALUES[what](X.shape[1]))

    def _evaluate(self, X, what, level):
        """A row of numbers for each row of X."""
        n_part = self._n_part(what)
        n_all = -(-self.n_sample // n_part)
        blocks = GRADIENT_BLOCKS[:1] if self.study.gram else GRADIENT_BLOCKS[not self.study.annealing :]
        sizes = sorted({min(size, n_all) for size in blocks})
        fitting = (size for size in sizes if len(X) <= 3 * size * n_part)
        n_block = n_part * (n_all if what == "losses" else next(fitting, sizes[-1]))
        part = self.first_is_part and level == self.study.annealing.levels[0]
        program = self._program(what, n_block, part)
        padded = np.pad(X, ((0, -len(X) % n_block), (0, 0)), mode="edge").astype(jnp.result_type(float))
        at_level = np.asarray(level, jnp.result_type(float))
        out = [program(block, self.device_data[part], at_level) for block in padded.reshape(-1, n_block, X.shape[1])]
        columns = jax.tree.leaves(jax.tree.map(lambda *blocks: np.concatenate(blocks)[: len(X)], *out))
        return np.hstack([np.asarray(column, np.float64).reshape(len(X), -1) for column in columns])

    def _add_round(self, X, losses, derivatives, level):
        self.n_simulations += len(X)
        self.n_gradients += len(X) * derivatives
        first = np.argmin(np.where(np.isfinite(losses), losses, math.inf))
        best = self.best.setdefault(level, Start(None, np.full(X.shape[1], 0.5)))
        if losses[first] < best.loss:
            best.x, best.loss = X[first].copy(), float(losses[first])
        self.seconds["run"] = self._seconds_run()
        counts = len(self.history) + 1, len(X), self.n_simulations, self.n_gradients, self.seconds["run"]
        self.history.append(Round(*counts, level, best.loss, self.box.values(best.x)))
        self.on_round(self.history[-1])

    def _seconds_run(self):
        return time.perf_counter() - self.begin - self.seconds["compile"]

    def elapsed(self) -> float:
        """Seconds that the fit has run; those of the first of several processes that share it."""
        seconds = self.seconds["run"]
        return float(processes.of_all(seconds)[0, 0]) if self.shared else seconds

    def name_nan(self, x: np.ndarray, level: float = 0.0) -> str:
        """Where the model stops being finite at x, as text."""
        trajectories = jax.jit(self.study.trajectories or self.study.model)
        outputs = jax.tree.leaves(trajectories(self.box.parameters(jnp.asarray(x)), self.data, level))
        units = self.box.units
        where = ", ".join(f"{name} = {value:.6g} {units[name]}" for name, value in self.box.values(x).items())
        finite = np.all([np.isfinite(output) for output in outputs], axis=0)
        if finite.all():
            return f"NaN in the loss or its gradient at {where}"
        step, trace = np.argwhere(~finite)[0]
        return f"NaN at time step {step} of trace {trace} at {where}"


# What there is of a parameter set besides its loss, by the number of parameters.
N_VALUES = {"losses": lambda k: (0,), "gradients": lambda k: (k,), "grams": lambda k: (k + 1, k + 1)}


def _asked(X, what, level):
    """A row for every row of X: the point, what was asked for of it, and the level."""
    return np.hstack([X, np.full((len(X), 1), float(list(N_VALUES).index(what))), np.full((len(X), 1), level)])
