"""The compiled step says what the rules promise: which arrays travel, how often, and which arrays never exist."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from jaxlm.config.schema import MeshConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from jaxlm.data import Batch
from jaxlm.model import param_specs
from jaxlm.model.spec import named_leaves
from jaxlm.parallel import make_mesh
from jaxlm.train.state import abstract_state, rules
from jaxlm.train.step import train_step
from tests.parallel import test_rules

MODEL = ModelConfig(d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, context_length=64, vocab_size=1100, d_ff=96)
ROWS, CHUNK = 16, 16
MESHES = {**test_rules.MESHES, "context": MeshConfig(data=2, context=4, rules="dp")}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")
ARRAY = re.compile(r"\b(?:pred|[a-z]+\d+)\[([\d,]*)\]")


def config(name, remat="none"):
    train = TrainConfig(steps=50, batch_size=ROWS, remat=remat, loss_chunk=CHUNK)
    return RunConfig(model=MODEL, optim=OptimConfig(warmup_steps=1), train=train, mesh=MESHES[name])


@functools.cache
def program(name, remat="none"):
    """The text of the compiled step."""
    cfg = config(name, remat)
    mesh = make_mesh(cfg.mesh)
    layout = NamedSharding(mesh, rules(cfg).activation("BT"))
    ids, mask = (jax.ShapeDtypeStruct((ROWS, MODEL.context_length), d, sharding=layout) for d in (jnp.int32, jnp.bool_))
    with jax.set_mesh(mesh):
        return train_step.lower(abstract_state(cfg, mesh), Batch(ids, ids, mask, ids, ids)).compile().as_text()


def sizes(text):
    """Shapes of the arrays that a piece of the program names."""
    return [tuple(int(n) for n in dims.split(",") if n) for dims in ARRAY.findall(text)]


def travelling(name, remat="none"):
    """Shapes of what collectives make, as (place, kind) -> Counter. Scalars and vectors of one figure a layer are left out.

    place: "forward" and "backward" are one layer's turn in the loop over layers; "outside" is the rest.
    """
    found = collections.defaultdict(collections.Counter)
    for computation in re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \()", program(name, remat)):
        place = "outside"
        if "/while/body" in computation.replace("head_loss/while/body", "") and not computation.startswith("ENTRY"):
            place = "backward" if "transpose(jvp())/while/body" in computation else "forward"
        for line in computation.splitlines():
            made = re.search(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
            if made and not re.search(r"replica_groups=\{(\{\d+\},?)+\}", line):  # a sum over one device is none
                here = "outside" if "head_loss" in line else place
                found[here, made[2]].update(s for s in sizes(made[1]) if s and s != (MODEL.n_layers,))
    return {key: counter for key, counter in found.items() if counter}


def layer_weights(name, layout):
    """Shapes on one device of a layer's weights: as they are stored, or as they are used; one of each."""
    cfg = config(name)
    shapes = collections.Counter()
    for path, spec in named_leaves(param_specs(cfg.model)).items():
        if path.startswith("blocks/"):
            entries = getattr(rules(cfg), layout)(spec.dims[1:])
            shards = [math.prod(getattr(cfg.mesh, a) for a in ([e] if isinstance(e, str) else e or [])) for e in entries]
            shapes[tuple(sorted(n // s for n, s in zip(spec.shape[1:], shards, strict=True)))] += 1
    return shapes


def unordered(counter):
    """Without the order of axes, which the compiler chooses."""
    total = collections.Counter()
    for shape, n in counter.items():
        total[tuple(sorted(shape))] += n
    return total


def matrices(counter):
    return collections.Counter({shape: n for shape, n in counter.items() if len(shape) > 1})


def per_layer(name, remat="none"):
    """What travels in the loops over layers; of what is gathered, the matrices only, since the gains of norms may be kept."""
    found = {key: unordered(counter) for key, counter in travelling(name, remat).items() if key[0] != "outside"}
    return {key: matrices(counter) if key[1] == "all-gather" else counter for key, counter in found.items()}


def activations(name):
    mesh = MESHES[name]
    return tuple(sorted((ROWS // mesh.data // mesh.fsdp, MODEL.context_length // mesh.context, MODEL.d_model)))


@pytest.mark.parametrize("remat", ["none", "block"])
def test_alone_nothing_travels(remat):
    assert travelling("single", remat) == {}


@pytest.mark.parametrize("name", ["dp", "fsdp", "tp", "fsdp_tp"])
def test_a_layer_sends_its_gradients_once_and_what_the_preset_says(name):
    """Per layer: fsdp gathers each weight once forward and once backward; tp sums two activations forward, two backward."""
    found = per_layer(name)
    gradients = layer_weights(name, "used")
    used = matrices(gradients)
    wanted = {("backward", "all-reduce"): gradients}
    if "fsdp" in name:
        wanted |= {("forward", "all-gather"): used, ("backward", "all-gather"): used}
    if "tp" in name:
        two = collections.Counter({activations(name): 2})
        wanted["forward", "all-reduce"] = two
        wanted["backward", "all-reduce"] = gradients + two
    assert found == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp", "fsdp", "tp", "fsdp_tp"])
def test_recomputing_a_block_sums_its_attention_once_more_and_gathers_no_more(name):
    plain, again = per_layer(name), per_layer(name, "block")
    more = collections.Counter({activations(name): 1}) if "tp" in name else collections.Counter()
    for key in {*plain, *again}:
        added = again.get(key, collections.Counter()) - plain.get(key, collections.Counter())
        assert added == (more if key == ("backward", "all-reduce") else collections.Counter()), key


def test_over_context_keys_and_values_go_round_and_nothing_else_is_added():
    found = travelling("context")
    kv = (ROWS // 2, MODEL.context_length // 4, 2, 8)
    permutes = {key: counter for key, counter in found.items() if key[1] == "collective-permute"}
    # k and v before the loop of the ring and in it; backward the same, with gradients in it, after it, and on their way home.
    assert sum(sum(c.values()) for c in permutes.values()) == (2 + 2) + (2 + 4 + 2 + 2)
    assert all(set(unordered(c)) == {tuple(sorted(kv))} for c in permutes.values())
    assert {key[1] for key in found} == {"collective-permute", "all-reduce"}


@pytest.mark.parametrize(("name", "remat"), [("fsdp_tp", "none"), ("fsdp_tp", "block"), ("single", "none")])
def test_full_logits_never_exist(name, remat):
    mesh = MESHES[name]
    vocab = MODEL.padded_vocab // mesh.tensor
    blocks = {math.prod(s) // vocab for s in sizes(program(name, remat)) if vocab in s}
    assert CHUNK in blocks, "the test no longer finds the logits of a block"
    assert max(blocks) <= max(CHUNK, MODEL.d_model)  # the embedding has D entries for each row of the vocabulary


@pytest.mark.parametrize("remat", ["none", "block"])
def test_the_gathered_weights_of_all_layers_never_exist(remat):
    whole = {tuple(sorted((MODEL.n_layers, *shape))) for shape in layer_weights("fsdp_tp", "used") if len(shape) > 1}
    there = {tuple(sorted(shape)) for shape in sizes(program("fsdp_tp", remat))}
    assert not whole & there
    stored = {tuple(sorted((MODEL.n_layers, *shape))) for shape in layer_weights("fsdp_tp", "weight") if len(shape) > 1}
    assert stored <= there, "the test no longer finds the stored weights"
    table = MODEL.padded_vocab * MODEL.d_model
    assert all(math.prod(shape) < table for shape in there if MODEL.padded_vocab in shape)
