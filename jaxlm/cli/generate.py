"""Continue a prompt with a run. Text appears when it is certain, in whole letters.

jaxlm generate runs/quickstart --prompt "def main(" --temperature 0.7
"""

from __future__ import annotations

import argparse

from jaxlm.cli.arguments import utf8
from jaxlm.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm generate`."""
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--prompt", type=utf8, default="", help="text to continue; empty: a document from its beginning")
    parser.add_argument("--max-new-tokens", type=int, help="tokens at most; 200, or what the context leaves")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest; 0: off")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the smallest set of this probability; 1: off")
    parser.add_argument("--min-p", type=float, default=0.0, help="drop tokens below this share of the likeliest; 0: off")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--stop", type=utf8, action="append", default=[], help="end before this text; may be given again")
    parser.add_argument("--step", type=int, help="the checkpoint; the newest by default")
    parser.add_argument("--no-probes", action="store_true", help="do without the probes of inference, and their seconds")


def run(args: argparse.Namespace, out: Output) -> int:
    """Generate."""
    from jaxlm.infer import Engine, Generation, Sampling
    from jaxlm.run import Run

    sampling = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p, seed=args.seed)
    loaded = Run.load(args.run, step=args.step)
    engine = Engine.of(loaded, probes=not args.no_probes)
    room = loaded.config.model.context_length - len(engine.prompt_ids(args.prompt))
    wanted = args.max_new_tokens if args.max_new_tokens is not None else max(1, min(200, room))
    done = Generation()
    shown = args.prompt  # once the engine has taken it: a refusal stands alone
    for piece in engine.stream(args.prompt, max_new_tokens=wanted, sampling=sampling, stop=args.stop):
        if isinstance(piece, Generation):
            done = piece
        else:
            out.piece(shown + piece)
            shown = ""
    out.piece(shown + "\n")
    out.result(
        {
            "text": done.text,
            "token_ids": done.token_ids,
            "finish_reason": done.finish_reason,
            "prompt": args.prompt,
            "run": str(loaded.path),
            "step": loaded.step,
        }
    )
    return 0
