"""Many processes as one run: their start through `jax.distributed`, what they agree on, and which rows each one needs.

`jax.distributed` is the engine. It finds TPU pods, Slurm, GKE and Open MPI by itself; elsewhere the coordinator, the number of
processes and the number of this one are given. Process 0 is the coordinator: it alone writes logs, manifests and lines for
people, and the others do the same computations beside it.

What moves between versions of jax stays here: the client of the coordination service has no public name.
"""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from jaxlm.contract import InputError

FOREVER = 7 * 24 * 3600.0  # seconds; what ends a wait for a lost process is the lookout, not the wait
# Every process makes the same calls of a name in the same order, so equal numbers meet; a thread has names of its own.
_numbers: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)


def numbered(name: str) -> str:
    """A key of the coordination service that no call before had: the n-th call of a name gives the same in every process."""
    return f"jaxlm/{name}/{next(_numbers[name])}"


@dataclass(frozen=True)
class Cluster:
    """How this process joins the others. coordinator: HOST:PORT of process 0. All None: jax finds out by itself."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


# Variables by which a launcher that jax knows says that there is more than one process: name, and what must be in it.
_LAUNCHERS = (
    ("SLURM_STEP_NUM_TASKS", lambda value: value.isdigit() and int(value) > 1),
    ("OMPI_COMM_WORLD_SIZE", lambda value: value.isdigit() and int(value) > 1),
    ("TPU_WORKER_HOSTNAMES", lambda value: "," in value),
    ("TPU_PROCESS_ADDRESSES", lambda value: "," in value),
    ("MEGASCALE_COORDINATOR_ADDRESS", bool),
)


def cluster_of(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The cluster that flags or variables name, or None for a process on its own.

    A flag that is None is read from JAXLM_COORDINATOR, JAXLM_NUM_PROCESSES or JAXLM_PROCESS_ID. distributed, or
    JAXLM_DISTRIBUTED=1: let jax detect the cluster; so it does where Slurm, Open MPI or a TPU pod says in the environment
    that there are several processes. Raises InputError where only some of the three are given, or one is no such value.
    """
    given = {
        "coordinator": coordinator or environ.get("JAXLM_COORDINATOR") or None,
        "num-processes": num_processes if num_processes is not None else environ.get("JAXLM_NUM_PROCESSES") or None,
        "process-id": process_id if process_id is not None else environ.get("JAXLM_PROCESS_ID") or None,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not missing:
        address, count, index = map(str, given.values())
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise InputError(f"--coordinator: expected HOST:PORT of process 0, found {address!r}")
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"--num-processes: expected an integer >= 1, found {count!r}")
        if not index.isdigit() or int(index) >= int(count):
            raise InputError(f"--process-id: expected an integer from 0 to {int(count) - 1}, found {index!r}")
        return Cluster(address, int(count), int(index))
    if len(missing) < len(given):
        raise InputError(f"expected --coordinator, --num-processes and --process-id together, found no {', '.join(missing)}")
    detected = any(says(environ.get(name, "")) for name, says in _LAUNCHERS)
    return Cluster() if distributed or detected or environ.get("JAXLM_DISTRIBUTED") == "1" else None


def start(cluster: Cluster | None, *, heartbeat: int) -> None:
    """Join the cluster, before anything touches a device. None, or a cluster of one process: nothing is started.

    heartbeat: seconds of silence after which a process counts as lost. jax's own limit is set above it: past that limit jax
    aborts from C++, and `jaxlm.parallel.lookout` shall say in words what is the matter before.
    Raises InputError where jax shall find the cluster by itself and finds none.
    """
    if cluster is None or cluster.num_processes == 1:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            cluster_detection_method=None if cluster.coordinator is None else "deactivate",
            heartbeat_timeout_seconds=3 * heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except ValueError as error:
        if cluster.coordinator is not None:  # nothing was to be found: it is about something else
            raise
        raise InputError(
            f"expected a cluster that jax knows (a TPU pod, Slurm, GKE, Open MPI), found {' '.join(str(error).split())}; "
            "give --coordinator HOST:PORT --num-processes N --process-id I"
        ) from None


def client() -> Any:
    """The client of jax's coordination service, or None for a process on its own."""
    from jax._src import distributed  # the one place that needs what jax does not export

    return distributed.global_state.client


def coordinator() -> str:
    """HOST:PORT of the coordination service; empty for a process on its own."""
    from jax._src import distributed

    return distributed.global_state.coordinator_address or ""


def index() -> int:
    """The number of this process."""
    return 0 if client() is None else jax.process_index()


def count() -> int:
    """The number of processes."""
    return 1 if client() is None else jax.process_count()


def primary() -> bool:
    """Whether this process writes logs and manifests: the only one, or process 0."""
    return index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return count() > 1


# ---- what processes tell each other ----------------------------------------------------------------------------------


def barrier(name: str, *, seconds: float = FOREVER) -> None:
    """Wait until every process is here. Raises RuntimeError where one is not within `seconds`."""
    if several():
        client().wait_at_barrier(numbered(name), round(seconds * 1000))


def told(name: str, value: str) -> str:
    """What process 0 says: its `value`, in every process. It is no barrier: process 0 does not wait."""
    if not several():
        return value
    key = numbered(name)
    if primary():
        client().key_value_set(key, value)
        return value
    return client().blocking_key_value_get(key, round(FOREVER * 1000))


def gathered(name: str, value: str, *, everywhere: bool = True) -> list[str]:
    """What every process says, in their order, in every process; or in process 0 alone, and nothing in the others."""
    if not several():
        return [value]
    key = numbered(name)
    client().key_value_set(f"{key}/{index()}", value)
    if not everywhere and not primary():
        return []
    return [client().blocking_key_value_get(f"{key}/{other}", round(FOREVER * 1000)) for other in range(count())]


# ---- arrays ----------------------------------------------------------------------------------------------------------


def require_share(mesh: Mesh) -> None:
    """Raise InputError where the mesh leaves out devices of the cluster: a process without a part has nothing to do."""
    if several() and mesh.size != jax.device_count():
        shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise InputError(
            f"--mesh: expected a mesh of all {jax.device_count()} devices of {count()} processes, found {shape} = {mesh.size}"
        )


def whole(tree: Any) -> Any:
    """A pytree of arrays as NumPy arrays, whole in every process, also where others hold a part of one."""
    return jax.tree.map(_whole, tree)


def _whole(array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    mesh = array.sharding.mesh  # type: ignore[attr-defined]
    return np.asarray(jax.device_put(array, NamedSharding(mesh, P())))


def rows_needed(sharding: Sharding, shape: tuple[int, ...]) -> np.ndarray:
    """The rows of an array of `shape`, int64 ascending, of which devices of this process hold a part under `sharding`.

    Several processes need the same rows where the array is whole, or cut along another axis, over their devices.
    """
    held = {index[0].indices(shape[0])[:2] for index in sharding.addressable_devices_indices_map(shape).values() if index}
    return np.unique(np.concatenate([np.arange(first, end) for first, end in held]))


def put(array: np.ndarray, sharding: Sharding, *, rows: np.ndarray | None = None, length: int | None = None) -> jax.Array:
    """An array on devices of every process.

    array: the same whole array in every process; or, with `rows`, only these rows of one of `length` rows, ascending, of which
    `rows_needed` must be a part.
    """
    if rows is None:
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at or ...])
    shape = (int(length or 0), *array.shape[1:])

    def part(at: tuple[slice, ...] | None) -> np.ndarray:
        assert at is not None
        first, end, _ = at[0].indices(shape[0])
        where = int(np.searchsorted(rows, first))
        assert np.array_equal(rows[where : where + end - first], np.arange(first, end)), (rows, first, end)
        return array[(slice(where, where + end - first), *at[1:])]

    return jax.make_array_from_callback(shape, sharding, part)
