"""Every knob of the project, as frozen dataclasses, readable in one sitting.

A field that changes the numbers of a run enters the fingerprint; one marked `runtime(...)` does not (how often a line is
printed, where a checkpoint lies). Zero means "derived" where the comment says so; derived values are properties, and
`describe` prints them all at the start of a run. An impossible value raises `ConfigError`, which names the field.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxlm.config.section import ConfigError as ConfigError
from jaxlm.config.section import Section, runtime
from jaxlm.config.section import flag as flag


def _nearest_divisor(n: int, wanted: int) -> int:
    start = min(n, wanted)
    return next(k for off in range(start) for k in (start - off, start + off) if n % k == 0)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@dataclass(frozen=True)
class TokenizerConfig(Section):
    """Byte-level BPE: an existing tokenizer, or how to train one."""

    section: ClassVar[str] = "tokenizer"
    path: str = runtime("")  # directory of an existing tokenizer; empty: train one on the data's source
    vocab_size: int = 4096  # tokens in all: 256 bytes, the merges, the special tokens
    pattern: Literal["gpt2", "cl100k", "cl100k_base", "o200k"] = "gpt2"  # pre-token pattern
    ties: Literal["bytes", "ids"] = "bytes"  # between equally frequent pairs: greatest byte strings, or smallest ids
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)  # the first one opens and closes every document
    train_bytes: int = 16_000_000  # bytes of text that the merges are trained on; 0: all

    def _judge(self) -> None:
        self.require(len(self.special_tokens) > 0, "special_tokens", "at least one, which opens and closes documents")
        well_formed = all(len(t.encode(errors="surrogatepass")) > 1 and t.isprintable() for t in self.special_tokens)
        self.require(well_formed, "special_tokens", "printable texts of more than one byte (a byte has an id already)")
        self.require(len(set(self.special_tokens)) == len(self.special_tokens), "special_tokens", "no repetition")
        least = 256 + len(self.special_tokens)
        self.require(self.vocab_size >= least, "vocab_size", f">= {least} (256 bytes and the special tokens)")
        self.require_at_least(0, "train_bytes")


@dataclass(frozen=True)
class DataConfig(Section):
    """Documents to shards to batches."""

    section: ClassVar[str] = "data"
    source: tuple[str, ...] = ("stdlib:",)  # files, folders, globs (.txt .md .rst .py .jsonl[.gz|.zst] .parquet), or stdlib:
    path: str = runtime("")  # directory of existing shards; empty: build them from the source
    separator: str = ""  # cuts text files into documents, <|endoftext|> or \n\n say; empty: a file is one
    text_field: str = "text"  # the field of .jsonl and .parquet that holds the text
    val_fraction: float = 0.02  # share of documents for validation, by the hash of their bytes
    order_seed: int = 0  # seed of the permutation of training rows
    shard_tokens: int = 1 << 24  # tokens in one shard file
    max_bytes: int = 0  # stop reading after so many bytes of text; 0: read all
    strict: bool = False  # refuse invalid UTF-8 instead of counting and replacing it
    min_supervised: float = 0.05  # a batch with a smaller share of supervised labels is an error
    max_mojibake: float = runtime(0.1)  # a larger share of texts beyond ASCII that were decoded wrongly is an error
    max_overlap: float = runtime(0.25)  # a larger share of the validation text that stands in training is an error
    max_repeated: float = runtime(0.5)  # so is a larger share of the training text that stands there twice
    prefetch: int = runtime(2)  # batches made ahead of the step

    def _judge(self) -> None:
        self.require(bool(self.source) or bool(self.path), "source", "at least one source")
        self.require(all(self.source), "source", "no empty text")
        self.require(bool(self.text_field), "text_field", "the name of a field")
        self.require(0.0 < self.val_fraction < 1.0, "val_fraction", "a share between 0 and 1")
        self.require(0.0 < self.min_supervised <= 1.0, "min_supervised", "a share above 0, at most 1")
        for name in ("max_mojibake", "max_overlap", "max_repeated"):
            self.require(0.0 <= getattr(self, name) <= 1.0, name, "a share from 0 to 1")
        self.require_at_least(0, "order_seed", "max_bytes", "prefetch")
        self.require_at_least(1024, "shard_tokens")


@dataclass(frozen=True)
class ModelConfig(Section):
    """Decoder-only transformer."""

    section: ClassVar[str] = "model"
    vocab_size: int = 0  # 0: the tokenizer's
    d_model: int = 256  # model width
    n_layers: int = 4  # blocks
    n_heads: int = 4  # query heads
    n_kv_heads: int = 0  # key/value heads; 0: as many as query heads
    head_dim: int = 0  # width of a head; 0: d_model / n_heads
    d_ff: int = 0  # hidden width; 0: 8/3 d_model (swiglu, rounded up to 64) or 4 d_model
    context_length: int = 256  # longest position the model is trained on
    norm: Literal["pre", "post", "none"] = "pre"  # RMSNorm before, after, or nowhere
    norm_eps: float = 1e-6  # added to the mean square
    pos: Literal["rope", "none"] = "rope"  # position encoding
    rope_theta: float = 10000.0  # base of the rotary frequencies
    rope_pairing: Literal["half", "interleaved"] = "half"  # which components form a rotated pair
    ffn: Literal["swiglu", "silu", "gelu"] = "swiglu"  # feed-forward
    residual: bool = True  # a block adds to its input; without, it is what attention and feed-forward make of it
    qk_norm: bool = False  # RMSNorm of queries and keys per head, before the rotation
    attention_bias: bool = False  # biases on the query, key, value and output projections
    attention_softcap: float = 0.0  # c * tanh(scores / c); 0: off
    logit_softcap: float = 0.0  # c * tanh(logits / c); 0: off
    window: int = 0  # sliding window in tokens, the query included; 0: all of the past
    tie_embeddings: bool = True  # the head is the embedding
    dropout: float = 0.0  # on the output of attention and feed-forward, in training
    vocab_multiple: int = 128  # the vocabulary is padded to a multiple of this; padded logits are masked
    init_std: float = 0.02  # standard deviation of the initial weights
    scan_layers: bool = runtime(True)  # one compiled block for all layers
    attention: Literal["auto", "reference", "pallas", "cudnn"] = runtime("auto")  # a kernel where there is one; or this one

    def _judge(self) -> None:
        self.require_at_least(0, "vocab_size", "n_kv_heads", "head_dim", "d_ff", "window")
        self.require_at_least(1, "d_model", "n_layers", "n_heads", "vocab_multiple")
        self.require_at_least(2, "context_length")
        self.require_at_least(0.0, "norm_eps", "attention_softcap", "logit_softcap")
        self.require(0.0 <= self.dropout < 1.0, "dropout", "a share >= 0 and < 1")
        self.require(self.init_std > 0 and math.isfinite(self.init_std), "init_std", "a number > 0")
        self.require(self.rope_theta > 1 and math.isfinite(self.rope_theta), "rope_theta", "a number > 1")
        without = self.attention != "cudnn" or not self.attention_softcap
        self.require(without, "attention_softcap", "0 with --model.attention cudnn, which has none")
        if self.head_dim == 0:
            nearest = _nearest_divisor(self.d_model, self.n_heads)
            self.require(
                nearest == self.n_heads,
                "n_heads",
                f"a divisor of --model.d-model {self.d_model} (the nearest is {nearest}), or --model.head-dim set",
            )
        self.require(self.n_heads % self.kv_heads == 0, "n_kv_heads", f"a divisor of --model.n-heads {self.n_heads}")
        self.require(self.pos != "rope" or self.head_width % 2 == 0, "head_dim", f"an even width (it is {self.head_width})")

    @property
    def kv_heads(self) -> int:
        """Key/value heads, K."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Width of a head, H."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def ff_width(self) -> int:
        """Hidden width of the feed-forward, F. For swiglu 8/3 D, so that three matrices cost what two of 4 D do."""
        if self.d_ff:
            return self.d_ff
        return 64 * math.ceil(8 * self.d_model / 3 / 64) if self.ffn == "swiglu" else 4 * self.d_model

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: the vocabulary, rounded up to `vocab_multiple`."""
        if self.vocab_size == 0:
            raise ConfigError("model.vocab_size", "a size, here where no tokenizer gives it", 0)
        return self.vocab_multiple * math.ceil(self.vocab_size / self.vocab_multiple)


@dataclass(frozen=True)
class OptimConfig(Section):
    """AdamW, its schedule and its clipping."""

    section: ClassVar[str] = "optim"
    lr: float = 1e-3  # peak learning rate
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # decoupled decay
    no_decay: str = r"(norm|bias|embed)"  # parameters whose path matches this do not decay
    clip_norm: float = 1.0  # largest global norm of the gradient; 0: no clipping
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"  # after the warm-up
    warmup_steps: int = 100  # linear from 0 to the peak
    schedule_from: int = 0  # steps after which the schedule begins, anew where a warm restart is declared
    decay_share: float = 0.2  # wsd: the last share of the steps, in which the rate falls
    min_lr_ratio: float = 0.1  # last learning rate, as a share of the peak

    def _judge(self) -> None:
        self.require(self.lr > 0 and math.isfinite(self.lr), "lr", "a number > 0")
        for name in ("b1", "b2"):
            self.require(0.0 <= getattr(self, name) < 1.0, name, "a number >= 0 and < 1")
        self.require(self.eps > 0 and math.isfinite(self.eps), "eps", "a number > 0")
        self.require(_compiles(self.no_decay), "no_decay", "a regular expression")
        self.require_at_least(0, "weight_decay", "clip_norm", "warmup_steps", "schedule_from")
        self.require(0.0 < self.decay_share <= 1.0, "decay_share", "a share above 0, at most 1")
        self.require(0.0 <= self.min_lr_ratio <= 1.0, "min_lr_ratio", "a share from 0 to 1")


@dataclass(frozen=True)
class TrainConfig(Section):
    """The step and how often it runs."""

    section: ClassVar[str] = "train"
    steps: int = 1000  # optimizer steps in all
    batch_size: int = 32  # rows of context_length tokens in one step, over all devices
    grad_accum: int = 1  # micro-batches that one step is cut into
    seed: int = 0  # of the initial weights and of dropout
    z_loss: float = 0.0  # weight of the mean squared log-sum-exp of the logits
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the activations; weights stay float32
    loss_scaling: bool = True  # of float16 alone; without it small gradients are zeros there
    max_skipped: int = 10  # stop after so many steps in a row with a non-finite gradient
    remat: Literal["none", "dots", "block", "offload"] = runtime("none")  # activations kept for the backward pass
    loss_chunk: int = 0  # positions whose logits a device makes at once; 0: derived

    def _judge(self) -> None:
        self.require_at_least(1, "steps", "batch_size", "grad_accum", "max_skipped")
        self.require_at_least(0, "z_loss", "loss_chunk")
        self.require(0 <= self.seed < 1 << 32, "seed", "an integer from 0 to 2**32 - 1")
        self.require(self.batch_size % self.grad_accum == 0, "grad_accum", f"a divisor of --train.batch-size {self.batch_size}")


@dataclass(frozen=True)
class MeshConfig(Section):
    """Device mesh and the rules that lay arrays on it. Axes always exist; size 1 when unused.

    All of it is runtime: a mesh lays out one and the same computation on the same examples, and changes no more than the order
    of sums, that is the last bits, as another kind of device does. So a run may go on on what devices there are. What each
    part of it was computed on stands in the environment of its checkpoints and in its events, and a resume says what differs.
    """

    section: ClassVar[str] = "mesh"
    data: int = runtime(1)  # replicas
    fsdp: int = runtime(1)  # shards of weights and optimizer state
    tensor: int = runtime(1)  # shards of heads, hidden width and vocabulary
    context: int = runtime(1)  # shards of the sequence
    rules: Literal["single", "dp", "fsdp", "tp", "fsdp_tp"] = runtime("single")  # preset of logical-axis rules

    def _judge(self) -> None:
        self.require_at_least(1, "data", "fsdp", "tensor", "context")

    @property
    def size(self) -> int:
        """Devices in the mesh."""
        return self.data * self.fsdp * self.tensor * self.context


@dataclass(frozen=True)
class WatchConfig(Section):
    """What is printed while the run goes on. Telemetry itself is always recorded, every step."""

    section: ClassVar[str] = "watch"
    live: bool = runtime(True)  # a live line where the output is a terminal
    print_every: int = runtime(50)  # steps between printed lines where it is not
    tensorboard: bool = runtime(False)  # write RUN/tensorboard; needs the extra
    wandb: Literal["off", "offline", "online"] = runtime("off")  # log to Weights & Biases; needs the extra
    metrics_port: int = runtime(0)  # a port of this machine that answers Prometheus; 0: none
    pace_every: int = runtime(20)  # steps between events that say how long steps took; 0: never
    samples_every: int = runtime(1)  # validations between samples of what the model writes; 0: none
    bundles: int = runtime(4)  # alarms of a run, at most, that keep what it takes to compute their step again; 0: none
    stop_at: str = runtime("")  # detectors, with commas between, whose alarm ends the run; the others are logged
    skip_at: str = runtime("")  # detectors whose finding takes the update of the step back
    rollback_at: str = runtime("")  # detectors whose alarm takes the run back to a checkpoint, and past the batches since
    max_rollbacks: int = runtime(3)  # a further one ends the run
    replicas_every: int = runtime(100)  # steps between comparisons of what devices hold in common; 0: with checkpoints only
    recompute_every: int = runtime(0)  # steps between steps that are computed twice and compared bit by bit; 0: never
    step_timeout: float = runtime(600.0)  # seconds without a finished step after which the process stops itself; 0: never
    heartbeat: int = runtime(30)  # seconds of silence after which a process of a cluster counts as lost

    def _judge(self) -> None:
        self.require_at_least(1, "print_every", "heartbeat")
        self.require_at_least(
            0, "metrics_port", "pace_every", "samples_every", "bundles", "replicas_every", "recompute_every", "step_timeout"
        )
        self.require_at_least(0, "max_rollbacks")
        self.require(self.metrics_port < 1 << 16, "metrics_port", "a port, at most 65535; 0: none")
        named: set[str] = set()
        for field in ("stop_at", "skip_at", "rollback_at"):
            names = self.detectors(field)
            self.require(named.isdisjoint(names), field, "detectors that neither stop_at nor skip_at names already")
            named.update(names)

    def detectors(self, field: Literal["stop_at", "skip_at", "rollback_at"]) -> tuple[str, ...]:
        """The names in a field that lists detectors."""
        return tuple(name.strip() for name in getattr(self, field).split(",") if name.strip())


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When the state is saved and which saves are kept."""

    section: ClassVar[str] = "checkpoint"
    every: int = runtime(200)  # steps between checkpoints; the last step is always saved
    keep_last: int = runtime(2)  # newest checkpoints to keep
    keep_best: int = runtime(1)  # checkpoints with the lowest validation loss to keep
    asynchronous: bool = runtime(True)  # write while the next steps run

    def _judge(self) -> None:
        self.require_at_least(1, "every", "keep_last")
        self.require_at_least(0, "keep_best")


@dataclass(frozen=True)
class EvalConfig(Section):
    """Validation during training, and `jaxlm eval`."""

    section: ClassVar[str] = "eval"
    every: int = 200  # steps between validations in training
    batches: int = 8  # validation batches in training; 0: all
    batch_size: int = runtime(16)  # rows scored at once by `jaxlm eval`
    stride: int = runtime(0)  # tokens that a window of `jaxlm eval` scores anew; 0: half the context
    max_documents: int = runtime(0)  # documents scored by `jaxlm eval`; 0: all
    resamples: int = runtime(1000)  # bootstrap resamples over documents
    confidence: float = runtime(0.95)  # coverage of the interval
    seed: int = runtime(0)  # of the bootstrap

    def _judge(self) -> None:
        self.require_at_least(1, "every", "batch_size", "resamples")
        self.require_at_least(0, "batches", "max_documents", "seed", "stride")
        self.require(0.0 < self.confidence < 1.0, "confidence", "a share between 0 and 1")


@dataclass(frozen=True)
class RunConfig(Section):
    """One run: text to tokens to a trained, checkpointed, evaluated model."""

    name: str = runtime("run")  # the run directory is runs/NAME unless --out says otherwise
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    watch: WatchConfig = WatchConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()

    def _judge(self) -> None:
        plain = bool(self.name.strip()) and self.name not in (".", "..") and not {"/", "\\", "\0"}.intersection(self.name)
        self.require(plain, "name", "the name of a directory below runs/")
        rows = self.train.batch_size // self.train.grad_accum
        shards = self.mesh.data * self.mesh.fsdp
        if rows % shards:
            raise ConfigError(
                "train.batch_size",
                f"a multiple of grad_accum * data * fsdp = {self.train.grad_accum * shards}",
                self.train.batch_size,
            )
        if self.model.context_length % self.mesh.context:
            wanted = f"a divisor of --model.context-length {self.model.context_length}"
            raise ConfigError("mesh.context", wanted, self.mesh.context)
        if self.model.attention == "cudnn" and self.mesh.context > 1:
            wanted = "1 with --model.attention cudnn, which has no gradients of parts"
            raise ConfigError("mesh.context", wanted, self.mesh.context)
        left = self.train.steps - self.optim.schedule_from
        if left < 1:
            raise ConfigError("optim.schedule_from", f"less than --train.steps {self.train.steps}", self.optim.schedule_from)
        if self.optim.schedule != "constant" and self.optim.warmup_steps > left:
            of = f"--train.steps {self.train.steps}" + (" less --optim.schedule-from" if left < self.train.steps else "")
            raise ConfigError("optim.warmup_steps", f"at most {of}", self.optim.warmup_steps)

    @property
    def tokens_per_step(self) -> int:
        """Positions in one step."""
        return self.train.batch_size * self.model.context_length


def sections() -> dict[str, type[Section]]:
    """The sections of `RunConfig` by name."""
    found = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    return {name: type(default) for name, default in found.items() if isinstance(default, Section)}


def numbers(config: Any) -> dict[str, Any]:
    """The fields of a config that change numbers, nested, as the fingerprint sees them."""
    kept = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("runtime"):
            continue
        kept[f.name] = numbers(value) if dataclasses.is_dataclass(value) else value
    return kept
