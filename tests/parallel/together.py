"""What the tests of processes run in each of two processes: `python together.py WHAT FOLDER`, with the JAXLM_ variables set.

It prints lines of JSON, or ends as the lookout ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.checkpoint import CheckpointStore, SaveError
from jaxlm.config.schema import MeshConfig
from jaxlm.contract import InputError
from jaxlm.parallel import make_mesh, processes
from jaxlm.parallel.lookout import Lookout


def agreement(folder: Path) -> dict:
    """What processes tell each other, and arrays that lie on both."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    whole = np.arange(32, dtype=np.float32).reshape(8, 4)
    found = {}
    for name, spec in {"rows": P("fsdp"), "columns": P(None, "fsdp"), "both": P("tensor", "fsdp"), "none": P()}.items():
        sharding = NamedSharding(mesh, spec)
        rows = processes.rows_needed(sharding, whole.shape)
        array = processes.put(whole[rows], sharding, rows=rows, length=8)
        other = processes.put(whole, sharding)
        same = all(np.array_equal(processes.whole(a), whole) for a in (array, other))
        found[name] = [rows.tolist(), same, float(jax.jit(jnp.sum)(array))]
    said = processes.told("said", f"from {processes.index()}")
    return {"found": found, "said": said, "gathered": processes.gathered("who", str(processes.index()))}


def state(seed: int) -> dict:
    """A state of which one leaf is cut by rows, one by columns, one is whole, one a key, one empty."""
    mesh = make_mesh(MeshConfig(fsdp=4))
    rng = np.random.default_rng(seed)
    leaves = {"rows": (P("fsdp"), (8, 3)), "columns": (P(None, "fsdp"), (3, 8)), "whole": (P(), (5,)), "none": (P(), (0, 2))}
    made = {
        name: processes.put(rng.standard_normal(shape).astype(np.float32), NamedSharding(mesh, spec))
        for name, (spec, shape) in leaves.items()
    }
    key = processes.put(np.array([1, seed], np.uint32), NamedSharding(mesh, P()))
    return made | {"key": jax.random.wrap_key_data(key), "bfloat16": made["rows"].astype(jnp.bfloat16)}


def bits(leaf: jax.Array) -> tuple[str, bytes]:
    """Dtype and bytes of a leaf, whole."""
    data = processes.whole(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
    return str(leaf.dtype), data.tobytes()


def saving(folder: Path) -> dict:
    """A state saved together, restored together; saved again; another one, a state with a NaN and a full disk refused."""
    found = {}
    first = state(1)
    with CheckpointStore(folder, keep_last=3) as store:
        store.save(first, 5, facts={}, parents={})
        store.wait()
        again, manifest = store.restore(first)
        pairs = [(before, again[name]) for name, before in first.items()]
        found["unequal"] = [str(before.aval) for before, after in pairs if bits(before) != bits(after)]
        found["moved"] = [f"{a.sharding} {b.sharding}" for a, b in pairs if not a.sharding.is_equivalent_to(b.sharding, a.ndim)]
        store.save(first, 5, facts={}, parents={})
        store.wait()
        spoilt = np.array(processes.whole(first["rows"]))
        spoilt[7, 2] = np.nan  # in the part of process 1
        nan = first | {"rows": processes.put(spoilt, first["rows"].sharding)}
        for name, bad, step in (("other", state(2), 5), ("nan", nan, 6)):
            try:
                store.save(bad, step, facts={}, parents={})
                store.wait()
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
        if processes.index() == 1:  # the disk of one process fails
            import jaxlm.checkpoint.together as together

            def full(*_: object) -> None:
                raise OSError(28, "No space left on device")

            together.write_shards = full
        try:
            store.save(first, 7, facts={}, parents={})
            store.wait()
        except SaveError as error:
            found["full"] = str(error)
        found["steps"], found["left"] = store.steps(), sorted(path.name for path in folder.iterdir())
    found["manifest"] = manifest.fingerprint
    return found


def stopping(folder: Path) -> list:
    """Steps of 5 ms that wait for each other, until process 1 asks for a stop; then the same again, with another lookout."""
    mesh = make_mesh(MeshConfig(fsdp=4))
    array = processes.put(np.ones(4, np.float32), NamedSharding(mesh, P("fsdp")))
    total = jax.jit(jnp.sum)
    return [_stopped(total, array) for _ in range(2)]


def _stopped(total, array: jax.Array) -> list:
    lookout = Lookout(heartbeat=10)
    for step in range(1, 100_000):
        total(array).block_until_ready()
        time.sleep(0.005)
        if step == 50 and processes.index() == 1:
            lookout.ask("SIGTERM")
        if name := lookout.reached(step):
            break
    processes.barrier("end")
    lookout.close()
    return [step, name]


def parity(folder: Path) -> dict:
    """The loss and the whole gradients of steps cut in several ways, kept by process 0."""
    from tests.parallel import test_parity

    for name, mesh, options in test_parity.of_two_processes():
        loss, grads = test_parity.on(mesh, **options)
        if processes.index() == 0:
            np.savez(folder / f"{name}.npz", loss=loss, **grads)
    processes.barrier("end")
    return {}


def lost(folder: Path) -> dict:
    """The process that FOLDER names ends without a word, while the other waits for it."""
    lookout = Lookout(heartbeat=3)
    processes.barrier("begin")
    if str(processes.index()) == folder.name:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.barrier("end")
    lookout.close()
    return {}


def frozen(folder: Path) -> dict:
    """Process 0 is held, as by a debugger or a disk, while process 1 waits for it. It goes on when it is told to."""
    lookout = Lookout(heartbeat=3)
    processes.barrier("begin")
    if processes.index() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    processes.barrier("end")
    lookout.close()
    return {}


def failing(folder: Path) -> dict:
    """The process that FOLDER names fails by a user's mistake, while the other waits for it."""
    lookout = Lookout(heartbeat=3)
    processes.barrier("begin")
    if str(processes.index()) == folder.name:
        lookout.tell(InputError("its own fault"))
        os._exit(2)
    processes.barrier("end")
    return {}


def faulty(folder: Path) -> dict:
    """The lookout of the process that FOLDER names has a fault, while both wait."""
    lookout = Lookout(heartbeat=3)
    processes.barrier("begin")
    if str(processes.index()) == folder.name:
        lookout._look = None
    time.sleep(60)
    return {}


if __name__ == "__main__":
    # Compiling on two busy cores, a process may be silent for longer than where its silence is the point.
    processes.start(processes.cluster_of(), heartbeat=120 if sys.argv[1] == "parity" else 10)
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))), flush=True)
    if sys.argv[1] == "lost":
        os._exit(0)
