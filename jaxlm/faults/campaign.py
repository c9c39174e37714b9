"""Many faults on several seeds, in processes of their own, and clean runs of several kinds beside them.

Processes are spawned with one set of flags: the CPU, two devices. Results are written as they come, so that a campaign that is
cut off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax

import jaxlm
import pallas_kernels
from jaxlm.contract import write_atomic
from jaxlm.faults.clean import BENIGN, CLEAN, Clean, clean_run
from jaxlm.faults.fault import Fault
from jaxlm.faults.ground import Ground
from jaxlm.faults.remembered import remembered
from jaxlm.faults.trial import Seen, Trial, trial

MAPS = 30_000  # of the 65,530 memory maps that Linux gives a process
FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=1"
Progress = Callable[[str], None]


def edition() -> str:
    """Digits that stand for the code of the package as it is: results of another are not this one's."""
    digest = hashlib.sha256()
    for package in (jaxlm, pallas_kernels):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def campaign(
    faults: Sequence[Fault], *, seeds: int, clean: int, folder: Path, jobs: int, say: Progress
) -> tuple[list[Trial], list[Clean]]:
    """Every fault on every seed, and `clean` clean runs with those of benign changes. What `folder` holds is not done again.

    folder: for one `edition` of the code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = [(fault.name, seed) for fault in faults for seed in range(seeds)]
    kinds = [(kind, seed) for seed in range(clean) for kind in CLEAN][:clean]
    kinds += [(kind, 0) for kind in BENIGN] if clean else []
    trials: dict[tuple[str, int], Trial] = {}
    runs: dict[tuple[str, int], Clean] = {}
    with _flags(), ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        needed = sorted({seed for name, seed in work if _result(folder, name, seed) is None} | ({0} if clean else set()))
        for seed, made in [(seed, pool.submit(_prepare, folder, seed)) for seed in needed]:
            made.result()
            say(f"the small run of seed {seed} is there")
        futures: dict[Future, tuple[str, str, int]] = {}
        for name, seed in work:
            known = _result(folder, name, seed)
            if known is not None:
                trials[name, seed] = known
            else:
                futures[pool.submit(_try, folder, name, seed)] = ("fault", name, seed)
        for kind, seed in kinds:
            futures[pool.submit(_clean, folder, kind, seed)] = ("clean", kind, seed)
        for done, future in enumerate(_completed(pool, futures), 1):
            what, name, seed = futures[future]
            if what == "fault":
                trials[name, seed] = future.result()
                say(f"{done}/{len(futures)}  {_line(trials[name, seed])}")
            else:
                runs[name, seed] = future.result()
                say(f"{done}/{len(futures)}  clean: {runs[name, seed].words()}")
    return [trials[key] for key in work], [runs[key] for key in kinds]


def _completed(pool: ProcessPoolExecutor, futures: dict[Future, Any]) -> Iterator[Future]:
    """As they come; what has not begun never does once the caller is interrupted or something fails."""
    try:
        yield from as_completed(futures)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _line(found: Trial) -> str:
    seen, name = found.seen, found.fault
    if seen is None:
        return f"{name}: not seen"
    when = "" if seen.step is None else f", step {seen.step}"
    return f"{name}: {seen.by}{when}{'' if found.right else '  (not as it should be)'}"


@contextmanager
def _flags() -> Iterator[None]:
    """The environment of the processes."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    before = {name: os.environ.get(name) for name in flags}
    os.environ.update(flags)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ---- in the processes ------------------------------------------------------------------------------------------------


def _prepare(folder: Path, seed: int) -> None:
    Ground(folder, seed).prepare()


def _make_room() -> None:
    """Drop compiled programs before they have taken all memory maps: after some 230 trials Linux gives a process no more, and
    the compiler ends it."""
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPS:
        jax.clear_caches()


def _try(folder: Path, name: str, seed: int) -> Trial:
    from jaxlm.faults.catalogue import CATALOGUE

    _make_room()
    with remembered():
        found = trial(CATALOGUE[name], Ground(folder, seed), folder)
    write_atomic(_file(folder, name, seed), json.dumps(found.as_json(), allow_nan=False).encode())
    return found


def _clean(folder: Path, kind: str, seed: int) -> Clean:
    file = folder / f"clean-{kind.replace(' ', '-')}-{seed}.json"
    if file.is_file():
        return Clean(**json.loads(file.read_text()))
    _make_room()
    with remembered():
        found = clean_run(kind, seed, folder)
    write_atomic(file, json.dumps(asdict(found)).encode())
    return found


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / "trials" / f"{name}-{seed}.json"


def _result(folder: Path, name: str, seed: int) -> Trial | None:
    """What is known of a fault on a seed."""
    file = _file(folder, name, seed)
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        return None
    body: dict[str, Any] = json.loads(file.read_text())
    seen = body.pop("seen")
    damage = math.inf if body["damage"] == "inf" else body["damage"]
    return Trial(**{**body, "damage": damage, "seen": seen and Seen(**seen)})
