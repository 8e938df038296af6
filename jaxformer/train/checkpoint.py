"""Checkpoints through orbax: written in the background, the best and the last ones kept."""

import logging
import shutil
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxformer.errors import InputError

STATE, POSITION = "state", "position"  # the items of a checkpoint: the training state, the place in the data


class Checkpoints:
    """The checkpoints of a run, in a folder of their own, by step.

    A save is a folder that gets its name only when it is complete, so a run killed while saving leaves nothing that
    could be mistaken for a checkpoint; such remains are removed when the folder is opened for writing.
    """

    def __init__(self, folder: Path, *, keep: int = 2, writable: bool = True):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong is raised as well
        self.folder = folder
        kept = AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=lambda metrics: -metrics["loss"], n=1)])
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, create=writable, read_only=not writable)
        if writable:
            for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)
        self.manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self.manager.latest_step()

    def save(self, step: int, state: Any, position: dict[str, Any], loss: float) -> None:
        """Begin to write a checkpoint. Raises OSError if this save or the one before it could not be written."""
        self.wait()
        needed, free = room(state), shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._failure(f"no space left on device: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")
        try:
            items = {STATE: ocp.args.StandardSave(state), POSITION: ocp.args.JsonSave(position)}
            self.manager.save(step, args=ocp.args.Composite(**items), metrics={"loss": loss})
        except Exception as error:
            raise self._failure(reason(error)) from error

    def wait(self) -> None:
        """Return when every save is complete. Raises OSError if one could not be written."""
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
        except Exception as error:
            raise self._failure(reason(error)) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest state, shaped as the pytree `like`, and the place in the data. Raises InputError if damaged."""
        if self.latest is None:
            raise InputError(f"{self.folder} holds no complete checkpoint: train again")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {STATE: ocp.args.StandardRestore(abstract), POSITION: ocp.args.JsonRestore()}
        try:
            restored = self.manager.restore(self.latest, args=ocp.args.Composite(**items))
        except Exception as error:  # whatever is wrong with the files, the answer is the same
            folder = self.folder / str(self.latest)
            raise InputError(f"the checkpoint {folder} is damaged: remove that folder to use an older one") from error
        # A copy, because a training step gives its state's memory away and what was restored may be shared.
        return jax.tree.map(lambda leaf: jax.numpy.array(np.asarray(leaf)), restored[STATE]), restored[POSITION]

    def close(self) -> None:
        """Release the folder."""
        self.manager.close()

    def _failure(self, what: str) -> OSError:
        last = "none yet" if self.latest is None else f"step {self.latest}"
        return OSError(f"cannot write a checkpoint to {self.folder}: {what} (last complete checkpoint: {last})")


def room(state: Any) -> int:
    """How many bytes must be free before a checkpoint is begun: its arrays, and half as much again for the rest.

    A disk that is found full in the middle of a save is survived too, but the storage layer makes much noise about it.
    """
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) * 3 // 2 + 100_000


def reason(error: Exception) -> str:
    """Why a save failed, in few words: orbax and its storage layer raise a full disk in several types."""
    return "no space left on device" if "space" in str(error).lower() else str(error).splitlines()[0]
