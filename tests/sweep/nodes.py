"""What workers of a cluster import: strategies and tasks that note where they ran."""

import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stepflow_tl.tasks import Grade, Item, WordProblems
from stepflow_tl.tasks.strategies import Attempt, Plain


def node_here() -> str:
    """The Ray node of this process."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "driver"


@dataclass(frozen=True, kw_only=True)
class Noted(Plain):
    """Plain, but notes where each batch begins.

    A node named in the file ``victim`` never finishes a batch; others finish one, and then wait
    until the file ``killed`` is there.
    """

    name: ClassVar[str] = "noted"
    folder: str

    def solve_each(
        self, model: Any, questions: Any, *arguments: Any, **options: Any
    ) -> Generator[tuple[int, Attempt], None, None]:
        here, folder = node_here(), Path(self.folder)
        victim = (folder / "victim").read_text()
        earlier = [where for where, _ in self.notes()].count(here)
        (folder / f"{uuid.uuid4().hex}.note").write_text("\n".join([here, *questions]))
        while here == victim or (earlier and not (folder / "killed").is_file()):
            time.sleep(0.05)
        yield from super().solve_each(model, questions, *arguments, **options)

    def notes(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Node and questions of each batch that was begun."""
        for path in sorted(Path(self.folder).glob("*.note")):
            where, *questions = path.read_text().split("\n")
            yield where, tuple(questions)


@dataclass(frozen=True, kw_only=True)
class Ungradable(WordProblems):
    """Word problems whose grader fails at the last one."""

    def grade(self, item: Item, response: str, seed: int = 0) -> Grade:
        if item == self.items[-1]:
            raise ArithmeticError(f"no grade for {item.key}")
        return super().grade(item, response, seed)
