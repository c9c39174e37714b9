"""From prompts to text: the engine that eval, generate and later the server start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import numpy as np

from jaxlm.checkpoint import require_restored
from jaxlm.config.schema import ModelConfig
from jaxlm.contract import ContractError, InputError
from jaxlm.infer.cache import Cursor, decode_steps, empty_cache, pad_left, prefill_step
from jaxlm.infer.sampling import Knobs, Sampling
from jaxlm.model import POLICIES, Params
from jaxlm.run import Run
from jaxlm.tokenizer import StreamDecoder, Tokenizer

CHUNK = 16  # tokens of one call of the compiled loop: what a stream waits for
PREFILL_MULTIPLE = 32  # prompts are padded to a multiple of this, so that few programs are compiled

FinishReason = Literal["stop", "length"]


@dataclass
class Generation:
    """What came of one prompt. text: without stop string and special tokens; token_ids: all that were drawn, but for EOS.

    finish_reason: "stop" at EOS or a stop string, "length" at the token limit.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"


class _Row:
    """One row of a batch: ids come in, text that is certain comes out.

    Text is held back while its end may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self.eos, self.stop = tokenizer.eos_id, stop
        self.special = frozenset(tokenizer.special_ids.values())
        self.decoder = StreamDecoder(tokenizer)
        self.result = Generation()
        self.held, self.done = "", False

    def push(self, token: int) -> str:
        """Take a token; returns text to show."""
        if self.done:
            return ""
        if token == self.eos:
            return self._finish(self.held + self.decoder.flush(), "stop")
        self.result.token_ids.append(token)
        text = self.held + (self.decoder.flush() if token in self.special else self.decoder.push(token))
        found = [at for word in self.stop if (at := text.find(word)) >= 0]
        if found:
            return self._finish(text[: min(found)], "stop")
        keep = max((n for word in self.stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)
        self.held = text[len(text) - keep :]
        return self._show(text[: len(text) - keep])

    def end(self) -> str:
        """The token limit is reached."""
        return "" if self.done else self._finish(self.held + self.decoder.flush(), "length")

    def _finish(self, text: str, reason: FinishReason) -> str:
        # What the decoder held back may complete a stop string, or hold one.
        found = [at for word in self.stop if (at := text.find(word)) >= 0]
        self.done, self.held = True, ""
        self.result.finish_reason = "stop" if found else reason
        return self._show(text[: min(found)] if found else text)

    def _show(self, text: str) -> str:
        self.result.text += text
        return text


def _require_precision(engine: Engine, asked: str, *, artifact: object) -> None:
    """Raise ContractError where the engine computes, or keeps its cache, in other dtypes than those of the precision asked for.

    Looked up where training looks them up, and asked of the cache that the engine makes, not of what the engine says.
    """
    from jaxlm.model.precision import POLICIES as TRAINED

    made = jax.eval_shape(lambda: empty_cache(engine.cfg, 1, capacity=1, policy=engine.policy))
    wanted, policy = TRAINED[asked], engine.policy
    pairs = {
        "precision": (asked, engine.precision),
        "activations": (wanted.compute, policy.compute),
        "logits": (wanted.logits, policy.logits),
        "keys": (wanted.compute, made.k.dtype.name),
        "values": (wanted.compute, made.v.dtype.name),
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        raise ContractError(
            "model",
            artifact=artifact,
            expected=f"{asked} as trained, or as asked for: " + ", ".join(f"{n} {a}" for n, (a, _) in differing.items()),
            found=", ".join(f"{n} {b}" for n, (_, b) in differing.items()),
            remedy="Ask for another precision by its name, Engine.of(run, precision=...), or leave it as the run has it.",
        )


class Engine:
    """Parameters, tokenizer and config, ready to generate."""

    def __init__(self, params: Params, cfg: ModelConfig, tokenizer: Tokenizer, *, precision: str = "float32"):
        if tokenizer.vocab_size != cfg.vocab_size:
            raise ContractError(
                "model",
                artifact="the engine's tokenizer",
                expected=f"{cfg.vocab_size} tokens",
                found=f"{tokenizer.vocab_size}",
                remedy="Use the tokenizer of the run.",
            )
        if precision not in POLICIES:
            raise ValueError(f"precision: expected one of {', '.join(POLICIES)}, found {precision!r}")
        self.params, self.cfg, self.tokenizer = params, cfg, tokenizer
        self.precision, self.policy = precision, POLICIES[precision]

    @classmethod
    def of(cls, run: Run, *, precision: str | None = None, probes: bool = True) -> Engine:
        """The engine of a run's checkpoint, in the precision it was trained in unless another is asked for.

        probes: run the static probes of inference first, in some seconds. Raises ContractError where one fails, where the
        engine has another precision, or where the parameters are not bit by bit those of the checkpoint, which takes about a
        second for each gigabyte.
        """
        asked = precision or run.config.train.precision
        engine = cls(run.params, run.config.model, run.tokenizer, precision=asked)
        where = run.checkpoints.path(run.step)
        _require_precision(engine, asked, artifact=where)
        require_restored(engine.params, run.checkpoint, artifact=f"the parameters to infer with, of {where}", below="params")
        if probes:
            from jaxlm.infer.probes import run_probes
            from jaxlm.train.probes import require

            for probe in run_probes(engine):
                require(probe, artifact=where)
        return engine

    def prompt_ids(self, prompt: str) -> list[int]:
        """BOS and the prompt's ids, as every training document begins. Special text in a prompt is ordinary text."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode_ordinary(prompt)]

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int = 200, sampling: Sampling = Sampling(), stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue every prompt. Row i draws from fold_in(key(seed), i).

        Raises InputError where a prompt and `max_new_tokens` do not fit the trained context.
        """
        *_, (rows, _) = self._run(prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
        return [row.result for row in rows]

    def stream(
        self, prompt: str, *, max_new_tokens: int = 200, sampling: Sampling = Sampling(), stop: Sequence[str] = ()
    ) -> Iterator[str | Generation]:
        """Continue one prompt: pieces of text as they become certain (never half a UTF-8 character), then the `Generation`."""
        result = Generation()
        for rows, pieces in self._run([prompt], max_new_tokens=max_new_tokens, sampling=sampling, stop=stop):
            result = rows[0].result
            if pieces[0]:
                yield pieces[0]
        yield result

    def _run(
        self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling, stop: Sequence[str]
    ) -> Iterator[tuple[list[_Row], list[str]]]:
        """After every chunk: the rows, and the new text of each."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"expected a list of at least one prompt, found {prompts!r}")
        if max_new_tokens < 1:
            raise InputError(f"--max-new-tokens: expected a number >= 1, found {max_new_tokens}")
        if isinstance(stop, str):
            raise ValueError(f"stop: expected a list of str, found one str, {stop!r}")
        if not all(stop):
            raise InputError("--stop: expected text, found an empty string")
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        longest, context = max(map(len, ids)), self.cfg.context_length
        if longest + max_new_tokens > context:
            found = f"the prompt has {longest} tokens (BOS included)"
            if longest >= context:
                raise InputError(f"{found}; expected fewer than the trained context {context}. Shorten the prompt")
            raise InputError(
                f"{found}, and with --max-new-tokens {max_new_tokens} that makes {longest + max_new_tokens}; expected at most "
                f"the trained context {context}. Shorten the prompt, or ask for at most {context - longest} tokens"
            )
        rows = [_Row(self.tokenizer, stop) for _ in prompts]
        length = min(context, -(-longest // PREFILL_MULTIPLE) * PREFILL_MULTIPLE)
        tokens, lengths = pad_left(ids, length)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(sampling.seed), np.arange(len(prompts), dtype=np.uint32))
        knobs = sampling.knobs()
        cursor = self._begin(tokens, lengths, keys, knobs)
        drawn = 0
        while drawn < max_new_tokens and not all(row.done for row in rows):
            chunk, cursor = self._chunk(cursor, knobs)
            self._require_finite(cursor.finite)
            pieces = [""] * len(rows)
            for column in np.asarray(chunk).T[: max_new_tokens - drawn]:
                for index, row in enumerate(rows):
                    pieces[index] += row.push(int(column[index]))
            drawn += CHUNK
            if drawn >= max_new_tokens:
                pieces = [piece + row.end() for piece, row in zip(pieces, rows, strict=True)]
            yield rows, pieces

    def _begin(self, tokens_BT: np.ndarray, lengths_B: np.ndarray, keys_B: jax.Array, knobs: Knobs) -> Cursor:
        context = self.cfg.context_length
        return prefill_step(self.params, tokens_BT, lengths_B, keys_B, knobs, self.cfg, capacity=context, policy=self.policy)

    def _chunk(self, cursor: Cursor, knobs: Knobs) -> tuple[jax.Array, Cursor]:
        """The next `CHUNK` tokens of each row, [B, CHUNK]."""
        return decode_steps(self.params, cursor, knobs, self.cfg, steps=CHUNK, policy=self.policy)

    def _require_finite(self, finite: jax.Array) -> None:
        if not bool(finite):
            raise ContractError(
                "generation",
                artifact="the model's logits",
                expected="finite numbers",
                found="NaN or infinity",
                remedy="Take an earlier checkpoint with --step, and look at the run's telemetry.",
            )
