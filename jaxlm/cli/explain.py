"""What a run will need, from its config alone: no device is touched.

  jaxlm explain configs/tiny.py
  jaxlm explain configs/tiny.py --devices 8 --kind v5p --mfu 0.5
  jaxlm explain runs/tiny --mesh.rules fsdp --mesh.fsdp 8

Parameters by kind, FLOPs of a token with their formulas, the memory of one
device, what travels between devices in a step, how far the batch can be spread
before devices wait for each other, and the time of a step and of the run.

--devices takes as many devices as it says instead of those of the config's
mesh: the factor that remains goes on the axis that cuts the batch (fsdp where
the rules have it, else data); what was assumed is printed. GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.cli.output import Output
from jaxlm.config.load import load_config

SECTIONS, CONFIG = (), ""
KINDS = "h100, h200, a100, b200, v4, v5e, v5p, v6e or cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm explain`."""
    parser.add_argument("config", help="a config (.py), a run directory, or the resolved.json of a run")
    parser.add_argument("--devices", type=int, metavar="N", help="devices; those of the config's mesh by default")
    parser.add_argument("--kind", default="h100", metavar="KIND", help=f"{KINDS} (default h100)")
    parser.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak FLOP/s (default 0.4)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Explain."""
    from jaxlm.scaling import explanation, hardware_of, on_devices, with_vocabulary

    hardware = hardware_of(args.kind)
    path = Path(args.config)
    whole = path / "resolved.json" if path.is_dir() and (path / "resolved.json").is_file() else path
    config, assumed = on_devices(with_vocabulary(load_config(whole, args.overrides)), args.devices)
    found = explanation(config, hardware, mfu=args.mfu)
    if not out.as_json:
        page = _Page(out)
        page.head(found, args.config, assumed, config.train.precision)
        page.parameters(found["parameters"])
        page.flops(found["flops_per_token"])
        page.memory(found["memory"])
        page.travels(found["collectives"], found["communication_seconds"])
        page.bounds(found["bounds"])
        page.time(found["time"])
    out.result({"config": args.config, "assumed": assumed, **found})
    return 0


# ---- for a person ------------------------------------------------------------------------------------------------


def scaled(value: float, unit: str = "") -> str:
    """A number in three or four digits with the prefix of a thousand: 8.03 G, 989 T; below 1: milli, micro."""
    if value == 0:
        return f"0 {unit}".rstrip()
    for power, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, "")):
        if abs(value) >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}".rstrip() if power else f"{value:.3g} {unit}".rstrip()
    return f"{value * 1e3:.3g} m{unit}" if abs(value) >= 1e-3 else f"{value * 1e6:.3g} µ{unit}"


def counted(value: float) -> str:
    """A count in three digits, with the letters that are usual for parameters and tokens: 8.03 B, 15 T, 270 K."""
    number, _, prefix = scaled(value).partition(" ")
    return f"{number} { ({'k': 'K', 'G': 'B'}.get(prefix, prefix)) }".rstrip()


def spent(seconds: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((86400.0 * 365.25, "years"), (86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return scaled(seconds, "s")


class _Page:
    """The parts of the explanation, one after the other."""

    def __init__(self, out: Output):
        from jaxlm.cli.tokenizer_drawing import Screen

        self.screen = Screen(out)

    def table(self, columns: Sequence[str], lines: Sequence[Sequence[str]], *, right: Sequence[str], fold: str = "") -> None:
        from jaxlm.cli.tokenizer_drawing import table

        self.screen.show(table(columns, lines, width=self.screen.width, right=right, fold=fold.split()))

    def head(self, found: Mapping[str, Any], name: str, assumed: str, precision: str) -> None:
        mesh = found["mesh"]
        sizes = ", ".join(f"{axis} {mesh[axis]}" for axis in ("data", "fsdp", "tensor", "context"))
        self.screen.show(f"{name}: {mesh['devices']} x {found['hardware']['words']}, {precision}")
        self.screen.show(f"mesh {sizes}; rules {mesh['rules']}")
        self.screen.show(f"attention: {found['hardware']['attention']}")
        if assumed:
            self.screen.show(f"assumed: {assumed}")

    def parameters(self, counts: Mapping[str, int]) -> None:
        without = counted(counts["non_embedding"])
        self.screen.title(f"parameters: {counted(counts['total'])}; without embedding and head {without}")
        kinds = [kind for kind in counts if kind not in ("total", "non_embedding")]
        lines = [(kind, f"{counts[kind]:,}", f"{100 * counts[kind] / counts['total']:.1f}") for kind in kinds]
        self.table(("kind", "parameters", "%"), lines, right=("parameters", "%"))

    def flops(self, flops: Mapping[str, Any]) -> None:
        again = scaled(flops["hardware"])
        self.screen.title(f"FLOPs of a token: {scaled(flops['model'])}; with what is computed again {again}")
        words = {"feed_forward": "feed-forward", "attention_recompute": "again: attention", "remat_recompute": "again: remat"}
        lines = [(words.get(part, part), scaled(flops[part]), text) for part, text in flops["formulas"].items()]
        self.table(("part", "FLOPs", "formula"), lines, right=("FLOPs",), fold="formula")
        self.screen.show(f"scores over all T keys, as XLA on an accelerator computes: {scaled(flops['scores_full'])}")

    def memory(self, used: Mapping[str, Any]) -> None:
        fits = "fits" if used["fits"] else "DOES NOT FIT"
        peak, available = scaled(used["peak"], "B"), scaled(used["available"], "B")
        self.screen.title(f"memory of a device: {peak} of {available}, {fits}")
        lines = [(what, "always", scaled(size, "B")) for what, size in used["resident"].items()]
        at_peak = used["phases"][used["peak_phase"]]
        lines += [(what, "at the peak", scaled(size, "B")) for what, size in at_peak.items() if size]
        if used["host"]:
            lines.append(("kept activations, in the host's memory", "on the host", scaled(used["host"], "B")))
        self.table(("what", "when", "bytes"), lines, right=("bytes",), fold="what")
        self.screen.show(f"the peak is in: {used['peak_phase']}. Each phase adds:")
        self.screen.items([f"{phase} {scaled(sum(parts.values()), 'B')}" for phase, parts in used["phases"].items()])

    def travels(self, rows: Sequence[Mapping[str, Any]], seconds: float) -> None:
        sent = scaled(sum(row["sent"] for row in rows), "B")
        self.screen.title(f"between devices: a device sends {sent} in a step, {spent(seconds)}")
        if not rows:
            self.screen.show("nothing")
            return
        lines = []
        for row in rows:
            how = f"{row['operation']} {'*'.join(row['axes'])}"
            lines.append((row["what"], how, str(row["count"]), scaled(row["sent"], "B"), spent(row["seconds"])))
        self.table(("what", "how", "times", "sent", "time"), lines, right=("times", "sent", "time"), fold="what how")

    def bounds(self, found: Sequence[Mapping[str, Any]]) -> None:
        self.screen.title("how far it can be spread before devices wait for each other")
        lines = []
        for bound in found:
            least = "" if bound["least"] is None else f"{counted(bound['least'])} {bound['unit']}"
            verdict = "" if bound["degree"] == 1 else "hidden" if bound["fits"] else "WAITS"
            lines.append((bound["name"], f"{bound['degree']}", f"{bound['largest']}", least, counted(bound["here"]), verdict))
        columns = ("way", "degree", "largest", "least on a device", "here", "")
        self.table(columns, lines, right=("degree", "largest", "here"))

    def time(self, time: Mapping[str, Any]) -> None:
        self.screen.title(f"time at an MFU of {time['mfu']:g}")
        lines = [
            ("a step", spent(time["step_seconds"]), scaled(time["step_flops"], "FLOP")),
            ("the run", spent(time["run_seconds"]), scaled(time["run_flops"], "FLOP")),
        ]
        self.table(("", "time", "model FLOPs"), lines, right=("time", "model FLOPs"))
        self.screen.show(f"{counted(time['tokens_per_second'])} tokens/s; {counted(time['tokens'])} tokens in the run")
        best = f"about {time['chinchilla_tokens_per_parameter']:g} makes the most of its FLOPs"
        self.screen.show(f"tokens per parameter: {time['tokens_per_parameter']:.3g}; {best} (Hoffmann et al. 2022)")
