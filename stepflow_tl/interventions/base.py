"""What every intervention is: a frozen description that becomes hook functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.ledger import COLUMNS, Ledger
from stepflow_tl.interventions.tracker import Tracker
from stepflow_tl.models.layers import LayerSpec, check_layer_spec

Hook = tuple[str, Callable[..., Tensor | None]]
Others = Callable[[Tracker], list[Hook]]
"""Fresh hooks of a StepFlow's other interventions, for a run that another tracker follows."""


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """A small, frozen description that becomes hook functions.

    Attributes:
        layers: The layers it works on; see `stepflow_tl.models.layers.LayerSpec`.
        columns: Of the class: the columns of the ledger that it reports.
    """

    layers: LayerSpec

    columns: ClassVar[tuple[str, ...]] = COLUMNS

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ValueError: `layers` names nothing, or `fired` none of its columns.
        """
        check_layer_spec(self.layers)
        if self.fired not in self.columns:
            raise SettingError(
                f"{self.name}: expected fired to be one of its columns {list(self.columns)}, got "
                f"{self.fired!r}"
            )
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))  # so that it can be hashed

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        return type(self).__name__

    @property
    @abstractmethod
    def is_neutral(self) -> bool:
        """True at zero strength, where it must change nothing."""

    @property
    @abstractmethod
    def fired(self) -> str:
        """The ledger's column that counts its actions."""

    def hooks(
        self,
        model: Any,
        layers: Sequence[int],
        tracker: Tracker,
        ledger: Ledger,
        name: str,
        others: Others,
    ) -> list[Hook]:
        """Its forward hooks on all of its layers, writing to the ledger under `name`.

        An intervention whose layers share nothing gives `layer_hooks` instead.
        """
        return [
            hook
            for layer in layers
            for hook in self.layer_hooks(model, layer, tracker, ledger, name)
        ]

    def layer_hooks(
        self, model: Any, layer: int, tracker: Tracker, ledger: Ledger, name: str
    ) -> list[Hook]:
        """Its forward hooks on one layer, writing to the ledger under `name`."""
        raise NotImplementedError(f"expected {self.name} to have hooks or layer_hooks")
