"""Meshes and the rules that lay arrays on them."""

from jaxlm.parallel.mesh import MESH_AXES, make_mesh
from jaxlm.parallel.rules import PRESETS, AxisRules, rules_of

__all__ = ["MESH_AXES", "PRESETS", "AxisRules", "make_mesh", "rules_of"]
