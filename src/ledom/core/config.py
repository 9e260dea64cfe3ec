"""What the parts of a recipe share: strict keys, and numbers that are some."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = ["Config"]

_LARGEST = 2**63 - 1  # that torch and numpy hold


class Config(BaseModel):
    """A part of a recipe: an unknown key is an error, never a default in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"a number beyond {_LARGEST}")
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("yes or no is not a value here")  # pydantic would take true for 1
        return value
