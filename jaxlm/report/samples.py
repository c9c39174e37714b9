"""What a run wrote while it was trained, in its tokens with their borders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxlm.report.page import escape, section
from jaxlm.report.source import Source
from jaxlm.tokenizer.visible import signs

TOKENS = 400  # of a sample that are shown


def samples(sources: Sequence[Source], names: Sequence[str]) -> Iterable[str]:
    """The section of the samples, if there are any."""
    cards = []
    for source, name in zip(sources, names, strict=True):
        for sample in source.history.samples.all():
            title = f"{name + ', ' if len(sources) > 1 else ''}step {sample['step']:,}"
            cards.append(f'<div class="sample"><h3>{escape(title)}</h3>{_tokens(sample)}</div>')
    if cards:
        note = "What was written in training, in its tokens; the prompt is underlined. Spaces and line ends are shown by signs."
        yield section("Samples", "\n".join(cards), note=note)


def _tokens(sample: dict[str, Any]) -> str:
    pieces, prompt, ids = sample["pieces"], sample.get("prompt_ids") or [], sample.get("ids") or []
    given = len(prompt) if len(pieces) == len(prompt) + len(ids) else 0
    numbers = [*prompt, *ids] if given else ids
    shown = []
    for place, piece in enumerate(pieces[:TOKENS]):
        text = "".join(
            f"<i>{escape(sign)}</i>" if stands and len(sign) == 1 else escape(sign)
            for sign, stands in signs(piece.encode(errors="replace"))
        )
        about = f' title="id {int(numbers[place])}"' if place < len(numbers) else ""
        end = "<br>" if "\n" in piece else ""
        shown.append(f'<span class="t c{place % 4}{" prompt" if place < given else ""}"{about}>{text}</span>{end}')
    more = f'<p class="note">and {len(pieces) - TOKENS:,} more tokens</p>' if len(pieces) > TOKENS else ""
    return f'<div class="card tokens">{"".join(shown)}</div>{more}'
