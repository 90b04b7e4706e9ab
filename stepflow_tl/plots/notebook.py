"""CircuitsVis views in notebooks: offline, and safe to show untrusted text in.

A view is made as usual, and shown through `Offline`::

    import circuitsvis as cv
    Offline(cv.tokens.colored_tokens(list(trace.token_texts), values))

A view on its own asks a server whether it is online, and then loads its scripts from a CDN.
It also takes token texts for markup: in its ``<script>``, where a token ``</script>`` ends the
script and what follows it runs; and in the page, where a token ``<think>`` is never seen and
``<img onerror=...>`` runs. Model output is untrusted, so here ``<`` is shown as ``‹``.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stepflow_tl.errors import SettingError

LESS_THAN = "\\u2039"  # as JSON writes a single angle quotation mark
_PAGE = """<!doctype html><html><head><meta charset="utf-8"><meta http-equiv=\
"Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data:"></head>
<body style="background: white; font-family: sans-serif">{body}</body></html>"""


@runtime_checkable
class View(Protocol):
    """What CircuitsVis makes: ``local_src`` is a page fragment with its scripts inside."""

    local_src: str


@dataclass(frozen=True)
class Offline:
    """A CircuitsVis view as notebooks show it: in a frame of its own, without a network.

    The frame may run scripts, but reaches neither the notebook around it nor any server.

    Attributes:
        view: What `circuitsvis` returned.
        height: Of the frame, in pixels.
    """

    view: View
    height: int = 300

    @property
    def page(self) -> str:
        """The whole page, scripts included (about 1.3 MB)."""
        return _PAGE.format(body=_without_markup(self.view.local_src))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        page = html.escape(self.page, quote=True)
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{page}" width="100%" '
            f'height="{self.height}" style="border: none"></iframe>'
        )


def _without_markup(source: str) -> str:
    """The view without a ``<`` in its data.

    The data follow the last mention of the view's own random id, which no text can know.

    Raises:
        ValueError: The source is not laid out as CircuitsVis does it.
    """
    begins = re.match(r'\s*<div id="([\w-]+)"', source)
    if begins is None or not source.rstrip().endswith("</script>"):
        raise SettingError(f"expected the source of a CircuitsVis view, got {source[:60]!r}")
    source = source.rstrip().removesuffix("</script>")
    script, mention, data = source.rpartition(f'"{begins.group(1)}"')
    return script + mention + data.replace("<", LESS_THAN) + "</script>"
