"""From a config to a trained run, or from a run that was cut off to the same run, whole.

`fit` prepares tokenizer and data, opens a session of the run, and trains it to its end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxlm.config.load import config_fingerprint, describe
from jaxlm.config.schema import RunConfig
from jaxlm.contract import InputError
from jaxlm.model import attention_used, param_specs
from jaxlm.model.spec import count_params, named_leaves
from jaxlm.parallel import make_mesh, processes
from jaxlm.parallel.lookout import Lookout
from jaxlm.run import Layout, Run
from jaxlm.train.declared import finish, going_on
from jaxlm.train.loop import train
from jaxlm.train.prepare import Parts, Say, claim, forget, prepare, resolve
from jaxlm.train.session import Session
from jaxlm.train.state import policy, rules
from jaxlm.train.stop import StopRequest
from jaxlm.train.watchdog import Watchdog
from jaxlm.watch.compilation_cache import keep_programs


def fit(
    cfg: RunConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    allow_older: bool = False,
    like: Run | None = None,
    declare: str = "",
    say: Say | None = None,
) -> Run:
    """Train a run to its last step and return it.

    out: the run directory, runs/NAME by default. A run that is there and has the same config is resumed from its newest
    checkpoint (with `allow_older`, from the newest one that is whole). like: a run to reproduce, whose tokenizer and data must
    come out the same. declare: a change (`jaxlm.train.declared.ABOUT`) by which a run that has begun goes on with other numbers
    of the fields that it is about; one process only. say: takes the lines meant for a person; standard error by default.

    In a cluster (`jaxlm.parallel.processes.start`) every process calls it alike, `out` is a directory that all of them see, and
    only process 0 says anything. A process that loses another one, or is stuck, ends itself with status 4 or 5.

    SIGTERM saves and returns the run as it is; Ctrl-C saves and raises KeyboardInterrupt.
    Raises InputError for a user's mistake, ContractError for a broken contract (a failed probe among them), SaveError where a
    checkpoint could not be written.
    """
    with _together(cfg) as lookout:
        say = (say or _print) if processes.primary() else _mute
        if declare and (processes.several() or allow_older):
            raise InputError("--declare: expected a run of one process that goes on from its newest checkpoint")
        layout = Layout(Path(out) if out is not None else Path("runs") / cfg.name)
        stop = StopRequest(lookout)
        _, programs = keep_programs()
        mesh = make_mesh(cfg.mesh)
        processes.require_share(mesh)
        cfg = resolve(cfg, layout)
        rules(cfg).check(named_leaves(param_specs(cfg.model)), cfg.mesh)
        with jax.set_mesh(mesh):
            attention_used(cfg.model, policy(cfg))  # refused before anything is prepared
        with layout.locked() if processes.primary() else contextlib.nullcontext():
            new = not layout.resolved.is_file()
            if processes.primary():
                cut_off = finish(layout)
                cfg, declare = going_on(cfg, layout, cut_off), "" if cut_off else declare
                cfg = claim(cfg, layout, declare=declare)
            try:
                parts = _prepared(cfg, layout, say, like)
                for line in [*describe(parts.cfg), *_sizes(parts, mesh), f"programs   {programs}"]:
                    say(line)
                with jax.set_mesh(mesh):
                    watchdog = Watchdog(cfg.watch.step_timeout)
                    session = Session(parts, layout, mesh, say, allow_older, stop=stop, watchdog=watchdog, declare=declare)
                    # The watchdog ends last: leaving the store waits for the save under way.
                    with watchdog, session.telemetry, session.events, session.store:
                        try:
                            train(session)
                        finally:
                            watchdog.at("the end")
                            for sink in session.sinks:
                                sink.close()
            except Exception:
                if new and processes.primary():
                    forget(layout)
                raise
    if stop.signal is signal.SIGINT:
        raise KeyboardInterrupt(f"`jaxlm train {layout.path}` goes on")
    return Run.load(layout.path)


def _print(line: str) -> None:
    print(line, file=sys.stderr)


def _mute(line: str) -> None:
    pass


def _prepared(cfg: RunConfig, layout: Layout, say: Say, like: Run | None) -> Parts:
    """The parts of a run. In a cluster process 0 makes them, while the others wait; then they load them."""
    manifest = None if like is None else like.manifest
    if processes.primary():
        parts = prepare(cfg, layout, say=say, like=manifest)
    processes.barrier("prepared")
    if not processes.primary():
        parts = prepare(cfg, layout, say=say, like=manifest)
    prints = processes.gathered("config", config_fingerprint(parts.cfg))
    if len(set(prints)) > 1:
        found = ", ".join(f"{print_[:12]} in process {index}" for index, print_ in enumerate(prints))
        raise InputError(f"{layout.path}: expected one config in all processes, found {found}; start all with one command line")
    return parts


@contextlib.contextmanager
def _together(cfg: RunConfig) -> Iterator[Lookout | None]:
    """A lookout over the other processes, if there are any, while a run is trained; all of them reach the end together."""
    if not processes.several():
        yield None
        return
    lookout = Lookout(heartbeat=cfg.watch.heartbeat)
    try:
        yield lookout
        processes.barrier("end", seconds=cfg.watch.heartbeat)
    except BaseException as error:
        lookout.tell(error)
        raise
    finally:
        lookout.close()


def _sizes(parts: Parts, mesh: Mesh) -> Iterator[str]:
    """The numbers that follow from config, tokenizer and data, in words."""
    cfg = parts.cfg
    train, val = (parts.data.manifest.facts["splits"][split] for split in ("train", "val"))
    yield f"tokenizer  {parts.tokenizer.vocab_size} tokens, {parts.tokenizer.fingerprint[:12]}"
    yield (
        f"data       {train['documents']:,} + {val['documents']:,} documents, {train['tokens']:,} + {val['tokens']:,} tokens, "
        f"{train['bytes'] / train['tokens']:.2f} bytes/token"
    )
    epochs = cfg.train.steps * cfg.tokens_per_step / train["tokens"]
    yield f"model      {count_params(param_specs(cfg.model)):,} parameters"
    yield f"training   {cfg.train.steps:,} steps x {cfg.tokens_per_step:,} tokens = {epochs:.2f} epochs"
    device = mesh.devices.flat[0]
    yield f"devices    {mesh.size} x {device.device_kind} ({device.platform}), rules {cfg.mesh.rules}"
    if mesh.size > 1:
        for path, dims, shape, layout, size in rules(cfg).table(named_leaves(param_specs(cfg.model)), cfg.mesh):
            yield f"  {path:<18}{dims:<5}{shape:<20}{layout:<18}{size:>15,} B"
