"""Which keys each position sees, and the attention over them.

Axes: B batch, T query position, S key position, N query head, K key/value head, H head width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from jaxlm.axes import check_shape
from jaxlm.config.schema import ModelConfig
from jaxlm.contract import InputError
from jaxlm.model.precision import Policy
from jaxlm.parallel.ring import ring_attention
from jaxlm.parallel.rules import AxisRules
from pallas_kernels import Attended, KeyRanges, attention, attention_path, causal, decode, packed
from pallas_kernels.dispatch import Target, chosen


@struct.dataclass
class Mask:
    """positions_BT: int32, for the rotation. ranges: the half-open range of keys that each query sees.

    Causal order, a sliding window, packed documents and ragged lengths are all ranges; see `pallas_kernels.ranges`.
    """

    positions_BT: jax.Array
    ranges: KeyRanges

    @classmethod
    def causal(cls, batch: int, length: int, *, window: int = 0) -> Mask:
        """One document a row, from position 0."""
        positions = jnp.tile(jnp.arange(length, dtype=jnp.int32)[None, :], (batch, 1))
        return cls(positions, causal(batch, length, window=window))

    @classmethod
    def packed(cls, segments_BT: jax.Array, positions_BT: jax.Array, *, window: int = 0) -> Mask:
        """Several documents a row; segment 0 is padding. Documents do not see each other."""
        check_shape("positions", positions_BT, "BT", **check_shape("segments", segments_BT, "BT"))
        return cls(positions_BT, packed(segments_BT, positions_BT, window=window))

    @classmethod
    def cached(cls, slots_BT: jax.Array, *, capacity: int, window: int = 0) -> Mask:
        """Queries at `slots_BT` of a key/value cache; a slot of `capacity` is padding, on whichever side."""
        return cls(jnp.minimum(slots_BT, capacity - 1), decode(slots_BT, window=window, capacity=capacity))


def attention_used(cfg: ModelConfig, policy: Policy, *, on: Target | None = None) -> str:
    """Which computation of attention a program for a device (by default for that of now) is compiled with, in words.

    Raises InputError where a kernel is asked for that there is none of. See `pallas_kernels.dispatch`.
    """
    try:
        return attention_path(cfg.attention, policy.compute, cfg.head_width, on=on)
    except ValueError as error:
        words = f"--model.attention {cfg.attention}: {error}"
        dtype = "; --train.precision says the dtype" if "bfloat16" in words else ""
        raise InputError(f"{words}{dtype}") from None


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, cfg: ModelConfig, rules: AxisRules) -> Attended:
    """Attention over the mask's ranges: what `pallas_kernels.attention` returns, laid out like the queries.

    Under a mesh every device attends for its own rows and heads. Where the sequence is cut over a mesh axis, keys and values
    go round the devices of that axis (`jaxlm.parallel.ring`); nothing else travels.
    """
    options: dict[str, Any] = {"softcap": cfg.attention_softcap}
    if cfg.attention != "auto":
        options["kernel"] = cfg.attention
    if jax.sharding.get_abstract_mesh().empty:
        return attention(q_BTNH, k_BSKH, v_BSKH, mask.ranges, **options)
    (*_, heads, _), (*_, kv_heads, _) = rules.activation("BTNH"), rules.activation("BSKH")
    axis = rules.a_S[0] if rules.a_S else None

    def local(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, end: jax.Array) -> Attended:
        if heads != kv_heads:
            k, v = (_read_heads(x, heads, q.shape[2], cfg.n_heads // cfg.kv_heads) for x in (k, v))
        ranges = KeyRanges(start, end)
        if axis is None or jax.lax.axis_size(axis) == 1:
            return attention(q, k, v, ranges, **options)
        return ring_attention(q, k, v, ranges, axis=axis, **options)

    q, kv, rows = (rules.activation(dims) for dims in ("BTNH", "BSKH", "BT"))
    # In the kernels for Hopper what varies over a mesh meets what does not, in loops that cannot say so.
    told = chosen(cfg.attention, q_BTNH.dtype, q_BTNH.shape[3]) != "hopper"
    out = Attended(q, *[PartitionSpec(*q[:3])] * 3)
    mapped = jax.shard_map(local, in_specs=(q, kv, kv, rows, rows), out_specs=out, check_vma=told)
    return mapped(q_BTNH, k_BSKH, v_BSKH, *mask.ranges)


def _read_heads(x_BSKH: jax.Array, axis: str, queries: int, group: int) -> jax.Array:
    """Of all key/value heads, those that this shard's query heads read; `group` query heads share one.

    One after the other where the shard's heads are whole groups or lie in one group; else one for each query head.
    """
    first = jax.lax.axis_index(axis) * queries
    if queries % group == 0 or group % queries == 0:
        return jax.lax.dynamic_slice_in_dim(x_BSKH, first // group, max(1, queries // group), axis=2)
    return jnp.take(x_BSKH, (first + jnp.arange(queries)) // group, axis=2)
