"""How well each step cutter agrees with boundaries that others set.

Prints precision, recall and number of boundaries for every rule: on the texts cut by hand in
`tests/data/hand_cut`, and with --traces on published traces in the folder layout of
thought-anchors (`base_solution.json` beside `chunks_labeled.json`, at any depth), up to their last
published sentence. A boundary is where the text after it begins; white space does not count.

    python benchmarks/cutters.py [--pieces words] [--traces FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stepflow_tl.traces.cutters import new_cutter
from stepflow_tl.traces.cutting import CutterName

HAND_CUT = Path(__file__).parents[1] / "tests" / "data" / "hand_cut"
MARK = "‖"
RULES: tuple[CutterName, ...] = ("full_stop", "anchors", "sentence")
PIECES = {
    # as Qwen2's tokenizer splits text, and Chinese two characters at a time, as its merges may
    "words": re.compile(
        r"'(?i:s|t|re|ve|m|ll|d)|[\u3040-\u9fff]{1,2}|[^\r\n\w\u2000-\uffff]?[^\W\d_\u3040-\u9fff]+|\d"
        r"| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "characters": re.compile(r"(?s:.)"),
}


class Marked(NamedTuple):
    """A text and the offsets, in its signs without white space, at which a new step begins."""

    text: str
    boundaries: frozenset[int]


def steps_of(text: str, rule: CutterName, pieces: str = "words") -> list[str]:
    """The steps that a rule cuts a text into, token by token."""
    tokens = PIECES[pieces].findall(text)
    cutter = new_cutter(rule)
    cutter.open(tokens[0])
    steps = [tokens[0]]
    for token in tokens[1:]:
        if cutter.push(token):
            steps.append("")
        steps[-1] += token
    return steps


def boundaries(steps: list[str]) -> frozenset[int]:
    """Where each step but the first begins."""
    found, at = set(), 0
    for step in steps[:-1]:
        at += len("".join(step.split()))
        found.add(at)
    return frozenset(found)


def hand_cut(folder: Path = HAND_CUT) -> dict[str, Marked]:
    """The texts cut by hand, by name."""
    marked = {}
    for path in sorted(folder.glob("*.txt")):
        steps = path.read_text(encoding="utf-8").split(MARK)
        marked[path.stem] = Marked("".join(steps), boundaries(steps))
    return marked


def published(folder: Path) -> Iterator[tuple[str, Marked]]:
    """The thinking of each published trace, up to the end of its last sentence."""
    for path in sorted(folder.rglob("chunks_labeled.json")):
        solution = json.loads(path.with_name("base_solution.json").read_text(encoding="utf-8"))
        text = solution["full_cot"].split("<think>")[-1].split("</think>")[0]
        ends, at = [], 0
        for chunk in json.loads(path.read_text(encoding="utf-8")):
            words = [re.escape(word) for word in chunk["chunk"].split()]
            found = re.compile(r"\s*".join(words)).search(text, at)
            if found is None:
                raise ValueError(f"{path}: expected its sentences in its text, got {chunk}")
            ends.append(at := found.end())
        starts = [0, *ends[:-1]]
        steps = [text[start:end] for start, end in zip(starts, ends, strict=True)]
        name = "/".join(path.parts[-3:-1])
        yield name, Marked("".join(steps), boundaries(steps))


def table(texts: dict[str, Marked], pieces: str) -> str:
    """A table in Markdown: precision / recall / number of boundaries of each rule on each text."""
    lines = [f"| text | boundaries | {' | '.join(RULES)} |", "|---" * (len(RULES) + 2) + "|"]
    totals = {rule: [0, 0] for rule in RULES}
    for name, marked in texts.items():
        cells = []
        for rule in RULES:
            found = boundaries(steps_of(marked.text, rule, pieces))
            hits = len(found & marked.boundaries)
            cells.append(_cell(hits, len(found), len(marked.boundaries)))
            totals[rule][0] += hits
            totals[rule][1] += len(found)
        lines.append(f"| {name} | {len(marked.boundaries)} | {' | '.join(cells)} |")
    number = sum(len(marked.boundaries) for marked in texts.values())
    cells = [_cell(hits, found, number) for hits, found in totals.values()]
    lines.append(f"| all | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(hits: int, found: int, expected: int) -> str:
    return f"{hits / max(found, 1):.3f} / {hits / max(expected, 1):.3f} / {found}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces", choices=list(PIECES), default="words")
    parser.add_argument("--traces", type=Path)
    arguments = parser.parse_args()
    print(table(hand_cut(), arguments.pieces))
    if arguments.traces is not None:
        print()
        print(table(dict(published(arguments.traces)), arguments.pieces))


if __name__ == "__main__":
    main()
