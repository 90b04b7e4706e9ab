"""Grids of settings, written in the interventions that users already hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from itertools import product
from typing import Any

import pandas as pd

from stepflow_tl.errors import SettingError, WrongTypeError
from stepflow_tl.interventions import INTERVENTIONS, Intervention, StepFlow
from stepflow_tl.interventions.wiring import numbered
from stepflow_tl.monitor.conditions import condition_of

BASELINE = "baseline"

_RENAMED = {("OddsEqualBridge", "bridge"): "keys"}  # in stores and files of versions before 0.3


@dataclass(frozen=True)
class Setting:
    """One StepFlow of a grid, under a readable name.

    Attributes:
        label: Its name in tables; "baseline" where nothing intervenes.
        flow: What is attached. Neutral interventions are left out.
    """

    label: str
    flow: StepFlow


@dataclass(frozen=True)
class Grid:
    """Settings to compare: a product of grids with ``*``, several side by side with ``+``.

    Attributes:
        settings: In order, none twice.
    """

    settings: tuple[Setting, ...]

    @classmethod
    def of(cls, flows: Mapping[str, StepFlow]) -> Grid:
        """Settings with names of your own: ``Grid.of({"paper": StepFlow.paper()})``.

        Raises:
            TypeError: A value is no StepFlow.
            ValueError: There is none, two are equal, or the name "baseline" is given to one that
                intervenes.
        """
        settings = []
        for label, flow in flows.items():
            if not isinstance(flow, StepFlow):
                raise WrongTypeError(f"expected a StepFlow for {label!r}, got {flow!r}")
            active = _active(flow.interventions)
            if (label == BASELINE) != (not active.interventions):
                raise SettingError(
                    f"{BASELINE!r} is the name of the setting where nothing intervenes, and of no "
                    f"other; got {label!r} for {flow!r}"
                )
            settings.append(Setting(label, active))
        distinct = _distinct(settings)
        if len(distinct) < len(settings):
            twice = sorted({setting.label for setting in settings} - {s.label for s in distinct})
            raise SettingError(
                f"expected distinct settings: {twice} are the same settings as others of "
                f"{list(flows)}"
            )
        return cls(distinct)

    def __mul__(self, other: Grid) -> Grid:
        """Every setting of one together with every setting of the other."""
        return Grid(
            _distinct(
                _setting((*a.flow.interventions, *b.flow.interventions))
                for a, b in product(self.settings, other.settings)
            )
        )

    def __add__(self, other: Grid) -> Grid:
        """The settings of both."""
        return Grid(_distinct([*self.settings, *other.settings]))

    def __len__(self) -> int:
        """Number of settings."""
        return len(self.settings)

    def __iter__(self) -> Iterator[Setting]:
        """The settings in order."""
        return iter(self.settings)


def grid(kind: type[Intervention], /, **axes: Any) -> Grid:
    """All settings of one intervention: ``grid(OddsEqualBridge, tau_max=[0, .05, .15])``.

    A list is an axis; anything else (a number, a band, a tuple of layers, a range) is one value.
    Settings of zero strength are all the same one, the baseline.

    Args:
        kind: The intervention's class.
        **axes: Its settings.

    Raises:
        TypeError: There is no such intervention or setting.
        ValueError: An axis is empty, or a value out of range.
    """
    if not (isinstance(kind, type) and issubclass(kind, Intervention)):
        raise WrongTypeError(
            f"expected an intervention's class such as OddsEqualBridge, got {kind!r}"
        )
    known = [field.name for field in fields(kind)]
    for name, values in axes.items():
        if name not in known:
            raise WrongTypeError(
                f"{kind.__name__} has no setting {name!r}: expected some of {known}"
            )
        if isinstance(values, list) and not values:
            raise SettingError(f"{kind.__name__}: expected at least one value of {name}, got none")
    if "when" in axes:
        given = axes["when"]
        axes["when"] = [_condition(one) for one in (given if isinstance(given, list) else [given])]
    choices = [values if isinstance(values, list) else [values] for values in axes.values()]
    return Grid(
        _distinct(
            _setting((kind(**dict(zip(axes, chosen, strict=True))),))
            for chosen in product(*choices)
        )
    )


def to_spec(flow: StepFlow) -> list[dict[str, Any]]:
    """JSON-able description of a StepFlow; `from_spec` makes it again."""
    return [
        {
            "type": item.name,
            **{field.name: _to_json(getattr(item, field.name), field) for field in _own(item)},
            **({} if item.when is None else {"when": item.when.to_dict()}),
        }
        for item in flow.interventions
    ]


def from_spec(spec: Iterable[Mapping[str, Any]]) -> StepFlow:
    """The StepFlow of a description.

    Raises:
        ValueError: It names no intervention, or one that this package does not have.
    """
    return StepFlow(
        *(
            intervention_class(_type(item))(
                **{
                    _RENAMED.get((_type(item), name), name): (
                        _condition(value) if name == "when" else _from_json(value)
                    )
                    for name, value in item.items()
                    if name != "type"
                }
            )
            for item in spec
        )
    )


def _type(item: Any) -> str:
    if not isinstance(item, Mapping) or not isinstance(item.get("type"), str):
        raise SettingError(
            f"expected interventions such as {{'type': 'StepMomentum'}}, got {item!r}"
        )
    return str(item["type"])


def intervention_class(name: str) -> type[Intervention]:
    """The intervention of this name.

    Raises:
        ValueError: There is none.
    """
    if name not in INTERVENTIONS:
        raise SettingError(
            f"no intervention {name!r}: expected one of {sorted(INTERVENTIONS)}, or one whose "
            "module is imported"
        )
    return INTERVENTIONS[name]


def settings_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """A column for each setting of the rows' interventions, as ``OddsEqualBridge.tau_max``.

    Args:
        rows: What `Sweep.run` returns.

    Returns:
        The rows with these columns added; missing values where an intervention is not in the flow.
        Two of a kind are numbered, as in the ledger: ``OddsEqualBridge-1.tau_max``. Layers that
        are no single name or number are JSON text.
    """
    columns = [_columns(json.loads(flow)) for flow in rows["flow"]]
    return pd.concat([rows, pd.DataFrame(columns, index=rows.index)], axis=1)


def _columns(spec: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = numbered([item["type"] for item in spec])
    return {
        f"{kind}.{name}": json.dumps(value) if isinstance(value, list | dict) else value
        for kind, item in zip(names, spec, strict=True)
        for name, value in item.items()
        if name != "type"
    }


def _active(interventions: Iterable[Intervention]) -> StepFlow:
    return StepFlow(*(item for item in interventions if not item.is_neutral))


def _setting(interventions: Iterable[Intervention]) -> Setting:
    flow = _active(interventions)
    return Setting(" + ".join(map(_label, flow.interventions)) or BASELINE, flow)


def _is_named(setting: Setting) -> bool:
    """Whether its label was given, and not made of its interventions."""
    return setting.label != _setting(setting.flow.interventions).label


def _label(item: Intervention) -> str:
    """Layers and strength always, other settings where they are not the default."""
    own = [field for field in _own(item) if field.name != "layers"]
    shown = [*(field.name for field in own[:1]), "layers"]
    shown += [field.name for field in own[1:] if getattr(item, field.name) != field.default]
    shown += ["when"] if item.when is not None else []
    return f"{item.name}({', '.join(f'{name}={getattr(item, name)}' for name in shown)})"


def _own(item: Intervention) -> list[Field[Any]]:
    """Its settings but for its condition, which earlier versions did not know: hashes stay."""
    return [field for field in fields(item) if field.name != "when"]


def _condition(value: Any) -> Any:
    """A condition, where one is described."""
    return condition_of(value) if isinstance(value, Mapping) else value


def _distinct(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Each flow once, under the first label that it was given, or the one it has by itself.

    Raises:
        ValueError: One label stands for two flows.
    """
    by_flow: dict[str, Setting] = {}
    for setting in settings:  # by its spec: layers=1 and layers=1.0 are equal in Python only
        spec = json.dumps(to_spec(setting.flow))
        if spec not in by_flow or (not _is_named(by_flow[spec]) and _is_named(setting)):
            by_flow[spec] = setting
    labels: set[str] = set()
    for setting in by_flow.values():
        if setting.label in labels:
            raise SettingError(
                f"expected a name for each setting, but two different settings are both called "
                f"{setting.label!r}"
            )
        labels.add(setting.label)
    if not by_flow:
        raise SettingError("expected at least one setting, got none")
    return tuple(by_flow.values())


def _to_json(value: Any, field: Field[Any]) -> Any:
    if isinstance(field.default, float) and field.name != "layers":
        return float(value)  # 1 and 1.0 are one setting
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    return list(value) if isinstance(value, tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"range"}:
        return range(*value["range"])
    return tuple(value) if isinstance(value, list) else value
