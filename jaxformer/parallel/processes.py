"""Several processes that run one program together, on JAX's distributed runtime.

Each process computes on its own devices, and all together on a mesh of them all. They share a file system; the first
one, process 0, prints and writes for all.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer.errors import InputError
from jaxformer.parallel.mesh import make_mesh, using

HEARTBEAT = 30  # seconds after which a process that says nothing is taken for dead
PATIENCE = 60  # seconds for all processes to start
MESSAGE = 1 << 16  # bytes that `agree` can send


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Begin to work with the other processes; before JAX is used for anything else.

    Args:
        coordinator: Address HOST:PORT at which process 0 can be reached. None: where a cluster's manager has started
            several processes (Slurm, Open MPI, a slice of TPUs), JAX finds them by itself; else this process is alone.
        processes: Number of processes.
        process: Number of this one, from 0 on.

    Raises:
        InputError: The arguments do not fit together, or the others cannot be reached.
    """
    if coordinator is None and (processes, process) != (None, None):
        raise InputError("--processes and --process need the address of process 0: give --coordinator HOST:PORT")
    if coordinator is None and not started_by_a_manager(os.environ):
        return
    if coordinator is not None:
        if processes is None or process is None or not 0 <= process < processes:
            raise InputError("--coordinator needs --processes N and --process I, I from 0 to N - 1")
        if not coordinator.rpartition(":")[2].isdecimal():
            raise InputError(f"--coordinator {coordinator} must be HOST:PORT")
        if process > 0:
            wait_for_answer(coordinator)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the other processes cannot be reached: {str(error).splitlines()[0][:200]}") from error


def wait_for_answer(coordinator: str) -> None:
    """Return when process 0 can be reached. Raises InputError where it cannot: the runtime would end the process."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise InputError(
                    f"process 0 does not answer at {coordinator} ({error}): is it running there?"
                ) from None
            time.sleep(0.2)


def started_by_a_manager(environment: Mapping[str, str]) -> bool:
    """Return whether a cluster's manager has started this process as one of several, which JAX finds by itself."""
    several = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return any(environment.get(name, "1") not in ("", "1") for name in several) or "," in environment.get(
        "TPU_WORKER_HOSTNAMES", ""
    )


def is_first() -> bool:
    """Return whether this process prints and writes for all."""
    return jax.process_index() == 0


def agree(value: Any) -> Any:
    """Return in all processes what the first one has: anything that JSON can hold."""
    if jax.process_count() == 1:
        return value
    message = np.zeros(MESSAGE, np.uint8)
    if is_first():
        data = json.dumps(value).encode()
        assert len(data) < MESSAGE, "longer messages are for files"
        message[: len(data)] = np.frombuffer(data, np.uint8)
    with using(None):
        found = np.asarray(multihost_utils.broadcast_one_to_all(message)).astype(np.uint8)
    return json.loads(found.tobytes().rstrip(b"\0"))


def check_same(value: bytes, what: str) -> None:
    """Raise InputError in all processes unless all have the same value; `what` says what differs."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest)).reshape(jax.process_count(), -1)
    different = [index for index, other in enumerate(digests) if not np.array_equal(other, digests[0])]
    if different:
        raise InputError(f"process {different[0]} has other {what} than process 0: start all with the same")


def gather(tree: Any) -> Any:
    """Return a tree of arrays that are whole in every process; as it is where there is one process."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def wait_for_all(what: str) -> None:
    """Return when all processes have come here; `what` names the place, the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextmanager
def alone() -> Generator[None]:
    """Compute inside on a device of this process, whatever the others do."""
    if jax.process_count() == 1:
        yield
        return
    with using(make_mesh("data=1", jax.local_devices()[:1])):
        yield
