"""Value types that configs, commands and study files share, and the one way to refuse a value.

The types are pydantic's. A value that is refused becomes a ConfigError, which names the argument, the value
and what the type says would be right.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from functools import cache, wraps
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from sparsemm_eval.errors import ConfigError

Record = TypeVar("Record", bound=type)

LARGEST = 2**31 - 1
LARGEST_SEED = 2**63 - 1  # what torch's generators take


def _number(value: Any) -> Any:
    """Numbers of NumPy and torch are numbers; truth values and texts are not."""
    if isinstance(value, (bool, str, bytes)):
        raise ValueError("not a number")
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _whole_number(value: Any) -> Any:
    number = _number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number


def whole(low: int, high: int = LARGEST) -> Any:
    """The type of whole numbers in [low, high]."""
    return Annotated[int, BeforeValidator(_whole_number), Ge(low), Le(high)]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("even")
    return value


def odd(high: int) -> Any:
    """The type of odd whole numbers in [1, high]."""
    return Annotated[
        whole(1, high), AfterValidator(_odd), Field(description=f"an odd integer in [1, {high}]")
    ]


Count = whole(1)
Natural = whole(0)
Seed = whole(0, LARGEST_SEED)
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
PositiveShare = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
FromOne = Annotated[float, BeforeValidator(_number), Field(ge=1, allow_inf_nan=False)]
OpenShare = Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1, allow_inf_nan=False)]


def one_of(*names: str) -> Any:
    """The type of texts that are one of these."""
    return Literal[names]


def checked(kind: Any, argument: str, value: Any) -> Any:
    """A value as its type has it.

    Raises
    ------
    ConfigError
        If the value is none of the type's.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ConfigError(argument, value, _remedy(kind, error)) from error


def listed(kind: Any, argument: str, text: str) -> list[Any]:
    """A command's ``"16,32"`` as a list of values of a number type.

    Raises
    ------
    ConfigError
        If a part is no such number.
    """
    values = []
    for part in text.split(","):
        try:
            number: Any = float(part)
        except ValueError:
            number = part
        values.append(int(number) if isinstance(number, float) and number.is_integer() else number)
    try:
        return _adapter(list[kind]).validate_python(values)
    except ValidationError as error:
        remedy = f"one or more, separated by commas, each {_remedy(kind, error)}"
        raise ConfigError(argument, text, remedy) from error


@dataclass_transform(frozen_default=True)
def record(cls: Record) -> Record:
    """Class decorator: a frozen dataclass whose fields are checked against their types.

    A field's ``Field(description=…)`` says what would be right where the type alone does not.
    """
    made = pydantic_dataclass(
        frozen=True, config=ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_default=True)
    )(cls)
    original = made.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except ValidationError as error:
            raise _as_config_error(error, made.__pydantic_fields__) from error

    made.__init__ = init
    return made


def _as_config_error(error: ValidationError, fields: Mapping[str, FieldInfo]) -> ConfigError:
    first = error.errors()[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, ConfigError):  # by the record itself, which compares its fields
        return raised
    place = first["loc"][0] if first["loc"] else "value"
    name = list(fields)[place] if isinstance(place, int) else str(place)
    found = fields.get(name)
    if found is None:
        return ConfigError(name, first.get("input"), "one of " + ", ".join(sorted(fields)))
    return ConfigError(name, first["input"], _remedy(found, error))


def _remedy(kind: Any, error: ValidationError) -> str:
    first = error.errors()[0]
    too_large = first["type"] == "less_than_equal" and first["ctx"]["le"] in (LARGEST, LARGEST_SEED)
    return describe(kind) + (f" and <= {first['ctx']['le']}" if too_large else "")


def _whole_type(found: FieldInfo) -> Any:
    return Annotated[(found.annotation, *found.metadata)] if found.metadata else found.annotation


def describe(kind: Any) -> str:
    """What a type takes, in words: ``an integer >= 1``, ``a number in [0, 1]``, ``one of avg, max``."""
    if isinstance(kind, FieldInfo):
        return kind.description or describe(_whole_type(kind))
    origin = typing.get_origin(kind)
    if origin is Annotated:
        base, *extras = typing.get_args(kind)
        said = next((e.description for e in extras if isinstance(e, FieldInfo) and e.description), None)
        return said or _bounded(describe(base), extras)
    if origin is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if origin in (typing.Union, types.UnionType):
        parts = (part for part in typing.get_args(kind) if part is not type(None))
        return " or ".join(map(describe, parts))
    if origin in (list, tuple):
        return f"a list, each {describe(typing.get_args(kind)[0])}"
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return names.get(kind) or getattr(kind, "__name__", str(kind))


def _bounded(words: str, extras: list[Any]) -> str:
    flat = [m for e in extras for m in (e.metadata if isinstance(e, FieldInfo) else [e])]
    low = next((m for m in flat if isinstance(m, (Ge, Gt))), None)
    high = next((m for m in flat if isinstance(m, (Le, Lt))), None)
    if low is None and high is None:
        return words
    if high is None or getattr(high, "le", None) in (LARGEST, LARGEST_SEED):
        return f"{words} >= {low.ge}" if isinstance(low, Ge) else f"{words} > {low.gt}"
    left = f"[{low.ge}" if isinstance(low, Ge) else f"({low.gt}"
    right = f"{high.le}]" if isinstance(high, Le) else f"{high.lt})"
    return f"{words} in {left}, {right}"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
