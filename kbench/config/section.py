"""What the sections of the YAML are made of: checked values, and parts by their registered names.

A field that names a part says of which kind: `loss: Annotated[Component, Kind("loss")]`. That is all a part needs: the
registry is asked for its name and parameters where the value is read, `Section.slots` finds it, and `Slot.build` makes
it. To let a YAML name one more part, add such a field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from kbench import registry

Pixels = Annotated[int, Field(ge=1, le=32_000)]
Size = Pixels | tuple[Pixels, Pixels]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e30)]  # finite in float32
Decay = Annotated[float, Field(ge=0, le=1e30)]

UNFIT = "unfit_part"
"""Type of the validation errors that the registry is the reason of; their context holds `where`, `what` and `hint`."""


LATER = "later"
"""Marks a setting that came later: where it has its default, hashes are those of before it was there."""


class Component(BaseModel):
    """A registered part and its parameters: `flip`, or `{name: random, n: 4}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _long(cls, value: Any) -> Any:
        return as_component(value)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters written in the YAML."""
        return dict(self.model_extra or {})


def as_component(value: Any) -> Any:
    """Return the long form of a component: `flip` is `{name: flip}`."""
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Surroundings:
    """What of the whole YAML a part in it is held against; pydantic hands it on while it reads.

    Without it only the shape of a part is checked, and the registry is not asked.

    Attributes:
        task: the competition's, or None where it has none that is known.
        metric: name of the competition's, or None.
    """

    task: str | None
    metric: str | None


@dataclass(frozen=True)
class Kind:
    """The kind of part that a field names, or of each part of a list.

    Attributes:
        name: a row of `registry.MODULES`.
        named_by: the field beside it that has the part's name, where this one has its parameters only.
    """

    name: str
    named_by: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return AfterValidator(self._held).__get_pydantic_core_schema__(source, handler)

    def _held(self, value: Any, info: ValidationInfo) -> Any:
        field = str(info.field_name)
        for place, item in enumerate(value if isinstance(value, list) else ()):
            hold(self.name, item.name, item.params, info, where=f"{field}.{place}")
        if isinstance(value, list):
            return value
        name, params = self.named(value, info.data)
        if name is not None:
            hold(self.name, name, params, info, where=self.named_by or field, options=field)
        return value

    def named(self, value: Any, beside: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return the name of the part a value stands for, or None, and its parameters.

        Args:
            value: of the field.
            beside: values of the fields of its section.
        """
        if self.named_by is not None:
            return beside.get(self.named_by), value
        return (None, {}) if value is None else (value.name, value.params)


def hold(
    kind: str, name: str, params: dict[str, Any], info: ValidationInfo, *, where: str, options: str | None = None
) -> None:
    """Hold a part that is being read against the registry.

    Args:
        kind: a row of `registry.MODULES`.
        name: the part's name.
        params: its parameters.
        info: of the validator that reads it; without `Surroundings` nothing is asked.
        where: field of the section that the name stands in.
        options: field that the parameters stand in; `where` by default.

    Raises:
        ValidationError: with every problem of the part.
    """
    if not isinstance(info.context, Surroundings):
        return
    problems = registry.bind(kind, name, params, where=where, options=options, task=info.context.task)
    if problems:
        raise ValidationError.from_exception_data(kind, [
            InitErrorDetails(type=PydanticCustomError(
                UNFIT, "{what}", {"where": problem.where, "what": problem.what, "hint": problem.hint}
            ), input=name)
            for problem in problems
        ])  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """A place of the YAML in which a part stands.

    Attributes:
        where: its path, as messages have it.
        kind: of the part.
        name: of the part.
        params: its parameters.
        section: that the place belongs to.
    """

    where: str
    kind: str
    name: str
    params: dict[str, Any]
    section: Section

    def build(self, *given: Any, **injected: Any) -> Any:
        """Return the part, made with what `registry.build` hands on besides its parameters."""
        return registry.build(self.kind, self.name, self.params, *given, **injected)


class Section(BaseModel):
    """A part of the YAML: frozen, unknown keys forbidden, what is left out read like what is written."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, revalidate_instances="always"
    )

    def slots(self, where: str = "") -> Iterator[Slot]:
        """Yield the places of all parts, those of the sections inside too, in the order of the fields.

        Args:
            where: path of the section; empty for the whole YAML.
        """
        start = f"{where}." if where else ""
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            for kind in (item for item in field.metadata if isinstance(item, Kind)):
                if isinstance(value, list):
                    for place, part in enumerate(value):
                        yield Slot(f"{start}{key}.{place}", kind.name, part.name, part.params, self)
                    continue
                name, params = kind.named(value, self.__dict__)
                if name is not None:
                    yield Slot(f"{start}{kind.named_by or key}", kind.name, name, params, self)
            inside = {key: value} if isinstance(value, Section) else {}
            if isinstance(value, dict):
                inside = {f"{key}.{name}": one for name, one in value.items() if isinstance(one, Section)}
            for path, section in inside.items():
                yield from section.slots(f"{start}{path}")

    def build(self, where: str, *given: Any, **injected: Any) -> Any:
        """Return the part of a field, such as `stage.build("crop")` or `competition.build("maps.windows")`."""
        return {slot.where: slot for slot in self.slots()}[where].build(*given, **injected)

    def view(self) -> dict[str, Any]:
        """Return every value for a hash, as JSON: a `LATER` setting only where it is used, so that older runs go on."""
        content = self.model_dump(mode="json")
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if LATER in field.metadata and value == field.default:
                del content[key]
            elif isinstance(value, Section):
                content[key] = value.view()
        return content
