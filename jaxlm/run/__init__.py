"""A run directory: its parts, loaded when asked for; its lock; the walk that checks every contract in it."""

from jaxlm.run.audit import audit
from jaxlm.run.directory import Run, run_manifest
from jaxlm.run.history import History, Rollback
from jaxlm.run.layout import Layout

__all__ = ["History", "Layout", "Rollback", "Run", "audit", "run_manifest"]
