"""What the parts of a recipe share: strict keys, and no yes or no where a number belongs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

__all__ = ["Config"]


class Config(BaseModel):
    """A part of a recipe: an unknown key is an error, never a default in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and field.annotation is not bool:
            raise ValueError("yes or no is not a value here")  # pydantic would take true for 1
        return value
