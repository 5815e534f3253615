"""The part of the OpenAI protocol that is served: unknown fields ignored, wrong types refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

OWN = ConfigDict(extra="ignore", strict=True)


class Part(BaseModel):
    """A part of a message's content. Only text is read."""

    model_config = OWN
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = OWN
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    @property
    def text(self):
        """The content as one text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """Whether a stream ends with its usage."""

    model_config = OWN
    include_usage: bool = False


class ResponseFormat(BaseModel):
    """Anything but text keeps notices out of the content: they stand in `guard` alone."""

    model_config = OWN
    type: str = "text"


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions."""

    model_config = OWN
    model: str | None = None
    adapter: str | None = Field(None, description="name of an adapter from /v1/adapters, for a base model")
    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**31), lt=2**32)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1000000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1000000)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None

    @field_validator("messages")
    @classmethod
    def _asked(cls, messages):
        if messages[-1].role != "user" or not messages[-1].text.strip():
            raise ValueError("the last message must be a user's, with text in it")
        return messages

    @field_validator("stop")
    @classmethod
    def _few(cls, stop):
        if isinstance(stop, list) and (len(stop) > 4 or not all(stop)) or stop == "":
            raise ValueError("stop is one text or up to four, none of them empty")
        return stop
