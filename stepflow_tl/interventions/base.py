"""What every intervention is: a frozen description, whose `edit` is a map from tensor to tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from stepflow_tl.errors import SettingError
from stepflow_tl.interventions.conditions import Condition
from stepflow_tl.interventions.ledger import Later
from stepflow_tl.interventions.position import EditPosition
from stepflow_tl.models.layers import LayerSpec, check_layer_spec
from stepflow_tl.models.sites import Site

Facts = Mapping[str, Tensor | float | int] | Later
"""What an edit reports: amounts to add to columns of the ledger, or how to compute them later."""

Edited = tuple[Tensor | None, Facts]
"""The new tensor, or None to leave it as it is, and what to report."""

INTERVENTIONS: dict[str, type[Intervention]] = {}
"""Every kind of intervention by its name, as configurations and stores name it."""


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """A small, frozen description that edits a tensor on its way through some layers.

    A subclass says where (`site`), what else it has to see (`reads`), and what it makes of the
    tensor (`edit`). Hooks, layers, the ledger and the warning when it never fired come with it.

    Attributes:
        layers: The layers it works on; see `stepflow_tl.models.layers.LayerSpec`.
        when: In which steps it acts (`stepflow_tl.monitor.conditions`); None for all.
        site: Of the class: the hook point of each layer whose tensor it edits.
        reads: Of the class: other hook points of the layer, earlier in the pass, that it sees.
        columns: Of the class: the columns of the ledger that it reports.
        fired: Of the class: the one of them that counts its actions.
        reasoning_only: Of the class: whether it leaves rows of attention outside thinking and
            summary alone. Where patterns are computed on demand, it is then asked from the first
            query in thinking or summary on.
        is_failure: Of the class: whether it is planted to be found and repaired, rather than to
            repair.
    """

    layers: LayerSpec
    when: Condition | None = field(default=None, repr=False)

    site: ClassVar[Site]
    reads: ClassVar[tuple[Site, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ("rows_changed",)
    fired: ClassVar[str] = "rows_changed"
    reasoning_only: ClassVar[bool] = True
    is_failure: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Make the kind known by its name.

        Raises:
            SettingError: Another module has one of this name.
        """
        super().__init_subclass__(**options)
        known = INTERVENTIONS.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise SettingError(
                f"expected a new name for an intervention, got {cls.__name__!r}, which "
                f"{known.__module__} has"
            )
        INTERVENTIONS[cls.__name__] = cls

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
    def is_neutral(self) -> bool:
        """True at zero strength, where it changes nothing: it is then left out altogether."""
        return False

    @abstractmethod
    def edit(self, x: Tensor, at: EditPosition) -> Edited:
        """What becomes of a layer's tensor.

        Args:
            x: What the model has computed at `site`; it must not be changed in place.
            at: Where the pass and the layer stand, what the layer has shown at `reads`, and a
                memory.

        Returns:
            The new tensor of the same shape, or None to leave it alone; and amounts for the
            ledger's columns.
        """

    def prepare(self, at: EditPosition) -> Facts:
        """Called once for each forward pass, before its first edit; `at` stands at the first layer.

        Returns:
            Amounts for the ledger, on the line of the first of its layers.
        """
        return {}
