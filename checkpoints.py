"""Checkpoints of a training, by orbax."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runs
from runs import BadInput

import jax
import orbax.checkpoint as ocp

import processes


class Checkpoints:
    """Checkpoints of a run by orbax, in its folder checkpoints/: the last one and the best in validation.

    Each holds the state, a pytree of arrays, and the history, a list of dicts. One that is being written when the
    process is killed does not count. Of several processes, the first one saves, and each reads by itself.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        def accuracy(metrics):
            (value,) = metrics.values()  # by whatever name an earlier version has it
            return value

        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False)
        policy = policies.AnyPreservationPolicy([policies.LatestN(1), best])
        options = dict(preservation_policy=policy, best_fn=accuracy, enable_async_checkpointing=False)
        self.folder, own = Path(folder, "checkpoints").absolute(), jax.process_index()
        if writes := processes.is_first() and not read_only:
            with runs.saving(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        alone = dict(primary_host=own, active_processes={own}, barrier_sync_key_prefix=str(own))
        options |= dict(multiprocessing_options=ocp.options.MultiprocessingOptions(**alone))
        options |= dict(create=False, cleanup_tmp_directories=writes)
        self.manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(**options))

    @classmethod
    def of(cls, folder: Path, argument: str) -> "Checkpoints":
        """Those of an earlier run, which `argument` names: to go on with it, or else to read."""
        if not Path(folder, "checkpoints").is_dir():
            missing = f"found no checkpoints in {folder}"
            raise BadInput(f"argument --{argument}: {missing}, expected the folder of a training")
        with readable(Path(folder, "checkpoints")):
            checkpoints = cls(folder, read_only=argument != "resume")
        if checkpoints.last is None:
            missing = f"found no complete checkpoint in {folder}"
            raise BadInput(f"argument --{argument}: {missing}, expected at least one")
        return checkpoints

    @property
    def last(self) -> int | None:
        return self.manager.latest_step()

    @property
    def best(self) -> int | None:
        """The update of best accuracy in validation, or the last one where none was evaluated."""
        best = self.manager.best_step()
        return self.last if best is None else best

    def save(self, update: int, state: Any, history: list[dict], validation_accuracy: float | None) -> None:
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.device_get(state)), history=ocp.args.JsonSave(history)
        )
        metrics = None if validation_accuracy is None else dict(validation_accuracy=validation_accuracy)
        with contextlib.redirect_stderr(None):  # where threads of tensorstore report that another has failed
            try:
                self.manager.save(update, args=content, metrics=metrics)
            except Exception as error:  # of which orbax and tensorstore raise many kinds
                time.sleep(2)  # while these threads end
                for path in self.folder.glob(f"{update}.*"):
                    shutil.rmtree(path, ignore_errors=True)
                raise runs.CannotSave(f"{self.folder / str(update)}: {runs.reason_of(error)}") from None

    def restore(self, update: int, like: Any = None) -> tuple[Any, list[dict]]:
        """State, as the pytree `like`, or else of dicts and lists on the first device; and history."""
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        state = ocp.args.StandardRestore(like, fallback_sharding=None if like else first)
        with readable(self.folder / str(update)):
            restored = self.manager.restore(
                update, args=ocp.args.Composite(state=state, history=ocp.args.JsonRestore())
            )
        return restored.state, restored.history

    def close(self) -> None:
        self.manager.close()


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Any error while a checkpoint is read, of which orbax and tensorstore raise many kinds, as one line."""
    try:
        yield
    except Exception as error:
        found = f"found a checkpoint that cannot be read ({runs.reason_of(error)})"
        raise BadInput(f"{path}: {found}, expected a whole one") from None
