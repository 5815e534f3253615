"""Records of a known form, as pydantic models: what is checked once is not checked by hand elsewhere."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

Text = Annotated[str, StringConstraints(strict=True, pattern=r"\S")]  # not empty, not of blanks alone
Texts = Annotated[list[Text], Field(min_length=1)]


class Strict(BaseModel):
    """A record whose values have their types already (no "4" for 4), and that has no field but its own."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Open(BaseModel):
    """A record of someone else's, which may have more fields than are read here."""

    model_config = ConfigDict(strict=True, extra="ignore")


def checked(value, form, where, fault=ValueError):
    """The value as an instance of a pydantic model or of a type.

    Raises `fault`, naming `where` and the first three fields that are wrong, with what was found in each.
    """
    try:
        return TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        raise fault(f"{where}: " + "; ".join(map(_told, error.errors()[:3]))) from None


def _told(error):
    found = str(error["input"])[:60]
    if error["type"] == "missing":
        found = ", ".join(map(str, error["input"])) or "nothing"  # the names beside it: one may be a misspelling
    place = ".".join(map(str, error["loc"]))
    return f"{place}{': ' if place else ''}{error['msg']}, found {found!r}"
