"""Step maps made by hand, of few and of many steps, whose words are harmless or hostile."""

import torch

from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Step

SENTENCES = [
    "Tom starts with three pens, as the question says.",
    " Then he buys four more, so that the sum is seven.",
    " Wait, is that right?",
    " Let me check whether anything else was said of pens, or of those who have them.",
    " So it is 3 + 4 = 7.",
]
HOSTILE = [
    "$\\frac{x}$ costs $5 and $6 \\n",
    "a\x00b\x1b[31mred\x1b[0m\r\nnew line\n\n\tagain",
    "https://example.org/" + "a" * 300,
    "Z\u0301\u0302\u0303\u0304\u0305\u0306a\u0301\u0302\u0303\u0304\u0305\u0306lgo " * 10,
    "\u202eright to left\u202c and back",
    "WWWWWWWWWWWWWWW MMMMMMMMMMMMMMMMMMMMMMM " * 3,
    "",
    "  \n",
    "$" * 80,
    "\\alpha_{} ^^ %d {0} <script>alert(1)</script>",
    "i" * 400,
    "\N{COMBINING ENCLOSING CIRCLE}" * 90,
]
CHINESE = [
    "小明有三支铅笔，他又买了四支，现在一共有几支？",
    "首先，小明一开始有三支铅笔。",
    "然后他又买了四支，所以总数是三加四等于七支铅笔，没有别的变化。",
    "因此 answer は 7 本です。",
]


def step(text, index=3, segment="thinking", **labels):
    return Step(index, segment, 5 * index, 5 * index + 5, text, labels)


def steps_of(texts, *, summary=1):
    """The first text is the question, the last ones the summary."""
    last = len(texts) - summary
    names = ["question" if i == 0 else "thinking" if i < last else "summary" for i in range(999)]
    return tuple(step(text, i, names[i]) for i, text in enumerate(texts))


def step_map(texts, *, summary=1, layers=4):
    count = len(texts)
    scores = torch.rand((layers, count, count), generator=torch.Generator().manual_seed(0)) ** 4
    return StepMap(
        scores=scores.tril(),
        layers=tuple(range(layers)),
        n_layers=layers,
        steps=steps_of(texts, summary=summary),
        settings={},
    )


def map_of_length(count):
    return step_map([SENTENCES[i % len(SENTENCES)] for i in range(count)], summary=count // 10)
