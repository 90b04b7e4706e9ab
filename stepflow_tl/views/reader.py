"""The one-file reader: a page that needs nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from stepflow_tl.errors import SettingError
from stepflow_tl.saliency.maps import StepMap
from stepflow_tl.traces.trace import Trace
from stepflow_tl.version import __version__
from stepflow_tl.views.packing import packed_json
from stepflow_tl.views.reading import Reading


@dataclass(frozen=True)
class Reader:
    """A page that shows a trace beside its maps, or two of them side by side.

    Example::

        Reader(Reading(trace=trace, maps={"saliency": maps})).write("trace.html")

    Attributes:
        reading: The trace and its maps.
        after: What it is compared with: another trace, or other maps of the same one. Maps of equal
            names are compared.
        title: The page's title.
        height: Of the frame in a notebook, in pixels.
    """

    reading: Reading
    after: Reading | None = None
    title: str = "Step by step"
    height: int = 720

    @classmethod
    def of(
        cls,
        maps: StepMap | Mapping[str, StepMap] | None = None,
        trace: Trace | None = None,
        *,
        after: Reading | StepMap | Trace | None = None,
        title: str = "Step by step",
        **known: Any,
    ) -> Reader:
        """The page of a map, of several by name, or of a trace.

        Args:
            maps: A map, or maps of the same steps by the name of their rule or measure.
            trace: Their trace: the page shows its frame, too.
            after: What it is compared with: another trace, or another map of the same steps.
            title: The page's title.
            known: What else is known: the attributes of `Reading`.
        """
        named = {_name_of(maps): maps} if isinstance(maps, StepMap) else dict(maps or {})
        reading = Reading(maps=named, trace=trace, **known)
        if isinstance(after, StepMap):
            after = Reading(maps={next(iter(named), _name_of(after)): after}, name="after")
        elif isinstance(after, Trace):
            after = Reading(trace=after, name="after")
        return cls(reading, after, title)

    def page(self) -> str:
        """The page.

        Raises:
            SettingError, StepMapError: What is shown does not fit together.
        """
        return render(self.title, self.data())

    def data(self) -> dict[str, str]:
        """What the page's script shows, by the id that it looks it up by.

        Raises:
            SettingError, StepMapError: What is shown does not fit together.
        """
        sides = [self.reading] if self.after is None else [self.reading, self.after]
        facts = {
            "title": self.title,
            "version": __version__,
            "sides": [side.described() for side in sides],
        }
        data = {"facts": packed_json(facts)}
        for number, side in enumerate(sides):
            for index, name in enumerate(side.maps):
                data[f"map-{number}-{index}"] = side.packed(name)
        return data

    def write(self, path: str | Path) -> Path:
        """Write the page to a file.

        Raises:
            OSError: The file cannot be written.
        """
        return written(path, self.page())

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame that reaches neither it nor a server."""
        page = html.escape(self.page(), quote=True)
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{page}" width="100%" '
            f'height="{self.height}" style="border: 0"></iframe>'
        )


def render(title: str, data: Mapping[str, str]) -> str:
    """A page of this room: its own style and script, and data that nothing reads as markup.

    The page's policy lets its one script and its one style sheet run, named by their hashes, and
    nothing else: no other script, no network, no form.

    Args:
        title: The page's title, any text.
        data: Base64 by the id that the script looks it up by.

    Raises:
        SettingError: Data are not base64.
    """
    for key, value in data.items():
        if not value.isascii() or "<" in value:
            raise SettingError(f"expected base64 as data {key!r}, got {value[:20]!r}")
    style, script = _asset("reader.css"), _asset("reader.js")
    title = title.encode("utf-8", "replace").decode()
    return _template().render(
        title=title,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=data,
        version=__version__,
    )


def written(path: str | Path, page: str) -> Path:
    """A page's file, once it is written."""
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _name_of(one: StepMap) -> str:
    return str(one.settings.get("rule", "map"))


@cache
def _template() -> jinja2.Template:
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.from_string(_asset("page.html.j2"))


@cache
def _asset(name: str) -> str:
    return files("stepflow_tl.views").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
