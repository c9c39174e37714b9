"""Faults between a trained model and its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.faults.fault import Fault, Patch
from jaxlm.infer.sampling import Sampling
from jaxlm.model import Mask

MASK = "jaxlm.infer.cache:Mask"
SAMPLE = "jaxlm.infer.cache:sample"
PREFILL = "jaxlm.infer.engine:prefill_step"
DECODE = "jaxlm.infer.engine:decode_steps"


def _cached(change: Callable) -> tuple[Patch, ...]:
    """The mask of a cache is another. change: takes `Mask.cached`, slots, capacity and window."""

    class Changed(Mask):
        @classmethod
        def cached(cls, slots_BT: jax.Array, *, capacity: int, window: int = 0) -> Mask:
            return change(Mask.cached, slots_BT, capacity, window)  # type: ignore[no-any-return]

    return (Patch(MASK, lambda real: Changed),)


def _position_late(real: Callable, slots: jax.Array, capacity: int, window: int) -> Mask:
    mask = real(slots, capacity=capacity, window=window)
    decoding = slots.shape[1] == 1
    return mask.replace(positions_BT=mask.positions_BT + decoding)  # type: ignore[no-any-return]


def _short_table(real: Callable, slots: jax.Array, capacity: int, window: int) -> Mask:
    """The table of rotations has 32 rows, and whatever comes after them takes the last one."""
    mask = real(slots, capacity=capacity, window=window)
    return mask.replace(positions_BT=jnp.minimum(mask.positions_BT, 31))  # type: ignore[no-any-return]


def _padding_seen(real: Callable, slots: jax.Array, capacity: int, window: int) -> Mask:
    """Keys of padding, which were never written, are seen: the range begins where the row does, and ends one late."""
    mask = real(slots, capacity=capacity, window=window)
    return mask.replace(ranges=mask.ranges._replace(end_BT=mask.ranges.end_BT + 2))  # type: ignore[no-any-return]


def _left_padding(real: Callable) -> Callable:
    """Lengths are taken for those of the padded rows."""

    def extend(params: Any, cache: Any, tokens: jax.Array, lengths: jax.Array, *arguments: Any, **options: Any) -> Any:
        whole = jnp.full_like(lengths, tokens.shape[1]) if tokens.shape[1] > 1 else lengths
        return real(params, cache, tokens, whole, *arguments, **options)

    return extend


def _one_slot_late(real: Callable) -> Callable:
    """The second token of a row overwrites the first: the count of slots is behind by one."""

    def extend(params: Any, cache: Any, tokens: jax.Array, lengths: jax.Array, *arguments: Any, **options: Any) -> Any:
        logits, after = real(params, cache, tokens, lengths, *arguments, **options)
        return logits, after._replace(length_B=after.length_B - 1) if tokens.shape[1] > 1 else after

    return extend


def _in_half(real: Callable) -> Callable:
    """Whatever precision is asked for, the engine takes bfloat16."""

    def init(self: Any, params: Any, cfg: Any, tokenizer: Any, *, precision: str = "float32") -> None:
        real(self, params, cfg, tokenizer, precision="bfloat16")

    return init


def _divided(real: Callable) -> Callable:
    """Temperature 0 is a division: the logits are infinite, and what is drawn is the first id."""

    def sample(logits: jax.Array, keys: jax.Array, knobs: Any) -> jax.Array:
        scaled = logits / knobs.temperature
        drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(jnp.isnan(scaled), -jnp.inf, scaled))
        return jnp.where(knobs.temperature > 0, real(logits, keys, knobs), drawn).astype(jnp.int32)

    return sample


def _no_top_k(real: Callable) -> Callable:
    return lambda logits, knobs: real(logits, knobs.replace(top_k=jnp.zeros_like(knobs.top_k)))


def _by_token(real: Callable) -> Callable:
    """Every token is decoded by itself."""
    return lambda self, token: (
        self._tokenizer_of_push.decode([token]) if hasattr(self, "_tokenizer_of_push") else real(self, token)
    )


def _remember(real: Callable) -> Callable:
    def init(self: Any, tokenizer: Any, *arguments: Any, **options: Any) -> None:
        real(self, tokenizer, *arguments, **options)
        self._tokenizer_of_push = tokenizer

    return init


def _stop_by_token(real: Callable) -> Callable:
    """A stop string is looked for within one token's text only."""

    def push(self: Any, token: int) -> str:
        self.held, shown = "", self.held
        held, self.stop = self.stop, tuple(word for word in self.stop if len(word) < 2)
        try:
            return shown + str(real(self, token))
        finally:
            self.stop = held

    return push


def _deaf_to_eos(real: Callable) -> Callable:
    def init(self: Any, tokenizer: Any, stop: Any) -> None:
        real(self, tokenizer, stop)
        self.eos = -1

    return init


def _one_key(real: Callable) -> Callable:
    return lambda logits, keys, positions, *rest: real(logits, keys, jnp.zeros_like(positions), *rest)


def _short_cache(real: Callable) -> Callable:
    """The cache is made for the padded prompt."""

    def prefill_step(params: Any, tokens: jax.Array, *arguments: Any, **options: Any) -> Any:
        return real(params, tokens, *arguments, **{**options, "capacity": tokens.shape[1]})

    return prefill_step


def _hole(real: Callable) -> Callable:
    """After every chunk the count of slots is one too large."""

    def decode_steps(*arguments: Any, **options: Any) -> Any:
        chunk, cursor = real(*arguments, **options)
        return chunk, cursor._replace(cache=cursor.cache._replace(length_B=cursor.cache.length_B + 1))

    return decode_steps


def _other_knobs(change: Callable) -> Callable:
    """What follows the first token is drawn with other knobs. change: takes those that were asked for."""

    def wrapped(real: Callable) -> Callable:
        def decode_steps(params: Any, cursor: Any, knobs: Any, *arguments: Any, **options: Any) -> Any:
            return real(params, cursor, change(knobs), *arguments, **options)

        return decode_steps

    return wrapped


def _twice(real: Callable) -> Callable:
    """A chunk begins with the last token of the one before."""

    def decode_steps(*arguments: Any, **options: Any) -> Any:
        chunk, cursor = real(*arguments, **options)
        return chunk, cursor._replace(next_B=chunk[:, -1])

    return decode_steps


FAULTS = (
    Fault(
        name="cache_position_late",
        layer="inference",
        mechanism="While decoding, positions are one too large.",
        symptom="The first token is right, what follows slowly is not.",
        incident="unsloth #3699, tiny-llm #46",
        plant=_cached(_position_late),
        seen_by=("cache",),
        scene="generate",
    ),
    Fault(
        name="rotations_end_early",
        layer="inference",
        mechanism="The engine's table of rotations was made for half of the context; later tokens all take its last row.",
        symptom="Short prompts are continued well, long ones in circles.",
        incident="tables cached for the first length that was asked for; no report is cited",
        plant=_cached(_short_table),
        seen_by=("cache",),
        scene="generate",
    ),
    Fault(
        name="engine_in_half_precision",
        layer="inference",
        mechanism="The engine runs in bfloat16, whatever the run was trained in.",
        symptom="Text that differs from the evaluated model's wherever two tokens are about as likely.",
        incident="defaults of serving engines; no report is cited",
        plant=(Patch("jaxlm.infer.engine:Engine.__init__", _in_half),),
        seen_by=("model",),
        scene="generate",
    ),
    Fault(
        name="cache_sees_padding",
        layer="inference",
        mechanism="Slots that were not written yet are attended to.",
        symptom="Weaker continuations.",
        incident="x-transformers #187",
        plant=_cached(_padding_seen),
        seen_by=("cache",),
        scene="generate",
    ),
    Fault(
        name="left_padding_ignored",
        layer="inference",
        mechanism="The padding on the left of short prompts is read as text.",
        symptom="Bad continuations, in batches only.",
        incident="mosaicml/examples #257, unsloth #3699",
        plant=(Patch("jaxlm.infer.cache:extend", _left_padding),),
        seen_by=("cache",),
        scene="generate",
    ),
    Fault(
        name="cache_overwritten",
        layer="inference",
        mechanism="The first token after the prompt overwrites the prompt's last slot.",
        symptom="The model forgets one token.",
        incident="tiny-llm #46; dynamic_update_slice clamps its start",
        plant=(Patch("jaxlm.infer.cache:extend", _one_slot_late),),
        seen_by=("cache",),
        scene="generate",
    ),
    Fault(
        name="temperature_divides",
        layer="inference",
        mechanism="Temperature 0 is a division by 0.",
        symptom="The same id for ever.",
        incident="measured: jax.random.categorical(logits / 0) gives index 0",
        plant=(Patch(SAMPLE, _divided), Patch("jaxlm.infer.sampling:sample", _divided)),
        seen_by=("greedy",),
        scene="generate",
    ),
    Fault(
        name="top_k_ignored",
        layer="inference",
        mechanism="top_k is read and not used.",
        symptom="Now and then a strange word.",
        incident="options dropped between a server and its engine; no report is cited",
        plant=(Patch("jaxlm.infer.sampling:filtered", _no_top_k),),
        seen_by=("greedy",),
        scene="generate",
    ),
    Fault(
        name="utf8_split",
        layer="inference",
        mechanism="Each token is decoded by itself, so characters of several tokens become U+FFFD.",
        symptom="Replacement characters in a stream only.",
        incident="dynamo #12630, exo #1691, ferrox #124",
        plant=(
            Patch("jaxlm.tokenizer.stream:StreamDecoder.push", _by_token),
            Patch("jaxlm.tokenizer.stream:StreamDecoder.__init__", _remember),
        ),
        seen_by=("streaming",),
        scene="generate",
    ),
    Fault(
        name="stop_across_tokens",
        layer="inference",
        mechanism="A stop string is looked for within single tokens.",
        symptom="Generation runs past it.",
        incident="vLLM #4180",
        plant=(Patch("jaxlm.infer.engine:_Row.push", _stop_by_token),),
        seen_by=("stop",),
        scene="generate",
    ),
    Fault(
        name="eos_ignored",
        layer="inference",
        mechanism="Another id is taken for the end.",
        symptom="Endless output.",
        incident="vLLM #4180, mlx-vlm #2112",
        plant=(Patch("jaxlm.infer.engine:_Row.__init__", _deaf_to_eos),),
        seen_by=("stop",),
        scene="generate",
    ),
    Fault(
        name="one_draw_for_all_positions",
        layer="inference",
        mechanism="The key of a row is used for every position, without the position folded in.",
        symptom="Samples that fall into loops, and look like a weak model.",
        incident="JAX's guide to pseudorandom numbers warns of keys used twice; no report is cited",
        plant=(Patch("jaxlm.infer.cache:draw", _one_key),),
        seen_by=("greedy",),
        scene="generate",
    ),
    Fault(
        name="cache_as_long_as_the_prompt",
        layer="inference",
        mechanism="The cache is made for the padded prompt; JAX drops what is written past its end.",
        symptom="Text that forgets what it said itself.",
        incident="scatters out of bounds are dropped in JAX; no report is cited",
        plant=(Patch(PREFILL, _short_cache),),
        seen_by=("loop",),
        scene="generate",
    ),
    Fault(
        name="hole_between_chunks",
        layer="inference",
        mechanism="Every chunk leaves one slot of the cache empty, and what follows is one position late.",
        symptom="None, while the likeliest tokens stay so; weaker long texts.",
        incident="a newcomer's script planted it, and the probes of then passed",
        plant=(Patch(DECODE, _hole),),
        seen_by=("loop",),
        scene="generate",
    ),
    Fault(
        name="token_twice_between_chunks",
        layer="inference",
        mechanism="A chunk begins with the last token of the chunk before it.",
        symptom="A doubled token, every 16 tokens.",
        incident="no report is cited",
        plant=(Patch(DECODE, _twice),),
        seen_by=("loop",),
        scene="generate",
    ),
    Fault(
        name="sampling_by_default",
        layer="inference",
        mechanism="Chunks are drawn with the default of every knob, and only the first token as it was asked for.",
        symptom="Temperature 0 gives other text with every seed.",
        incident="a newcomer's script planted it, and the probes of then passed",
        plant=(Patch(DECODE, _other_knobs(lambda knobs: Sampling().knobs())),),
        seen_by=("loop",),
        scene="generate",
    ),
    Fault(
        name="sampling_never_draws",
        layer="inference",
        mechanism="After the first token every one is the likeliest, whatever the temperature.",
        symptom="Seeds make no difference but for the first word.",
        incident="options dropped between a server and its engine; no report is cited",
        plant=(Patch(DECODE, _other_knobs(lambda knobs: knobs.replace(temperature=jnp.zeros_like(knobs.temperature)))),),
        seen_by=("loop",),
        scene="generate",
    ),
)
