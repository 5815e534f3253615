"""The page: a chat with the served model, on Streamlit. An answer is written by a thread of its own into the session,
so that whatever is clicked meanwhile loses nothing of it."""

import asyncio
import contextlib
import json
import os
import threading
import time

import openai
import streamlit as st

from lib.evaluation.endpoint import client

API = os.environ.get("MEDTUNE_API", "http://127.0.0.1:8000").rstrip("/").removesuffix("/v1") + "/v1"
KEY = os.environ.get("MEDTUNE_PAGE_KEY") or "none"
EXAMPLES = (
    "What are the first signs of a heart attack?",
    "How is iron deficiency told from thalassaemia trait?",
    "Which vaccines are due before a splenectomy, and why?",
)
WARNING = (
    "For study only, **not for clinical use**: never tested on patients. In an emergency call your emergency number."
)
UNKNOWN = "The page's key is not known to the server: MEDTUNE_PAGE_KEY has to be among SERVE_KEYS."


class Answer:
    """One answer on its way. Written by its thread, read by the page."""

    def __init__(self, label, request):
        self.label, self.request = label, request
        self.content = self.reasoning = self.error = ""
        self.guard, self.tokens, self.done, self.stopped = [], 0, False, False
        self.start, self.first, self.end = time.monotonic(), None, None
        self.loop = self.task = None
        threading.Thread(target=self.write, daemon=True).start()

    def write(self):
        """Read the answer until it ends, or until somebody stops it."""
        try:
            asyncio.run(self.read())
        except asyncio.CancelledError:
            pass
        except openai.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            self.guard += body.get("guard", [])
            self.error = body.get("message") or f"The server answered {error.status_code}."
        except Exception as error:  # whatever it is, the answer is over
            self.error = f"The answer broke off: {getattr(error, 'message', error) or type(error).__name__}"
        finally:
            self.end, self.done = time.monotonic(), True

    async def read(self):
        """The stream. Cancelled, it closes its connection at once, which frees the slot or the place in the queue."""
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        http = openai.DefaultAsyncHttpxClient(trust_env=False, follow_redirects=False)
        async with (
            asyncio.timeout(600),
            openai.AsyncOpenAI(base_url=API, api_key=KEY, max_retries=0, http_client=http) as api,
        ):
            if not self.stopped:
                async with await api.chat.completions.create(**self.request) as chunks:
                    async for chunk in chunks:
                        self.take(chunk)

    def stop(self):
        """End it, wherever it is."""
        self.stopped = True
        if self.task:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                self.loop.call_soon_threadsafe(self.task.cancel)

    def take(self, chunk):
        """Add one event."""
        self.guard += (chunk.model_extra or {}).get("guard", [])
        if chunk.usage:
            self.tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            extra = choice.delta.model_extra or {}
            self.reasoning += extra.get("reasoning_content") or ""
            self.content += choice.delta.content or ""
            if extra.get("reasoning_content") or choice.delta.content:
                self.first = self.first or time.monotonic()

    @property
    def text(self):
        """The answer without the notices, which the page shows in its own way."""
        text = self.content
        for entry in self.guard:
            text = text.replace(f"> {entry['notice']}\n\n", "").replace(f"\n\n> {entry['notice']}", "")
        return text.strip()

    def speed(self):
        """Tokens a second, and how long it took, in words."""
        if not (self.end and self.first and self.tokens):
            return ""
        rate = (self.tokens - 1) / max(self.end - self.first, 1e-3)
        return f"{self.tokens} tokens, {rate:,.0f} tokens/s, first after {1000 * (self.first - self.start):,.0f} ms"


def choices():
    """{label: fields of a request} of what can be asked, from the server. An error is shown and ends the page's run."""
    try:
        served = client(API, KEY).models.list(timeout=5).data
    except (openai.OpenAIError, OSError) as error:
        unknown = isinstance(error, openai.AuthenticationError)
        st.error(UNKNOWN if unknown else "The server does not answer. Is `make serve` running?")
        st.button("Try again")
        st.stop()
    found = {}
    for model in served:
        found[model.id] = {"model": model.id}
        for adapter in (model.model_extra or {}).get("adapters", []):
            found[f"{model.id} + {adapter}"] = {"model": model.id, "extra_body": {"adapter": adapter}}
    return found


def sidebar(found):
    """The controls: (labels to ask, sampling fields)."""
    labels = list(found)
    with st.sidebar:
        first = st.selectbox("Model", labels, key="model")
        other = st.selectbox("Beside it", ["nothing", *[label for label in labels if label != first]], key="beside")
        how = {"temperature": st.slider("Temperature", 0.0, 1.5, 0.0, 0.1, key="temperature")}
        how["max_tokens"] = st.number_input("Longest answer, tokens", 16, 8192, 128, 16, key="longest")
        if st.button("New conversation", key="new", width="stretch"):
            for answer in running():
                answer.stop()
            st.session_state.turns = []
        st.download_button(
            "Save the conversation", saved(), "conversation.json", "application/json", key="save", width="stretch"
        )
    return [first] if other == "nothing" else [first, other], how


def saved():
    """The conversation as JSON."""
    kept = [
        {"question": turn["question"], "answers": [
            {"model": a.label, "reasoning": a.reasoning, "answer": a.text, "guard": a.guard, "error": a.error}
            for a in turn["answers"]]}
        for turn in st.session_state.turns
    ]  # fmt: skip
    return json.dumps(kept, indent=2, ensure_ascii=False)


def running():
    """Answers that are being written."""
    return [answer for turn in st.session_state.turns for answer in turn["answers"] if not answer.done]


def ask(question, labels, found, how):
    """Start the answers to a question, each with what was said in its own column before."""
    turns = st.session_state.turns
    answers = []
    for column, label in enumerate(labels):
        messages = []
        for turn in turns:
            before = turn["answers"][min(column, len(turn["answers"]) - 1)]
            messages += [{"role": "user", "content": turn["question"]}]
            messages += [{"role": "assistant", "content": before.text or "(no answer)"}]
        messages.append({"role": "user", "content": question})
        request = found[label] | how | {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        answers.append(Answer(label, request))
    turns.append({"question": question, "answers": answers})


def show(turn):
    """One question and its answers, side by side where there are two."""
    with st.chat_message("user"):
        st.text(turn["question"])
    for column, answer in zip(st.columns(len(turn["answers"])), turn["answers"], strict=True):
        with column, st.chat_message("assistant"):
            st.caption(answer.label)
            emergency = next((entry for entry in answer.guard if entry["kind"] == "emergency"), None)
            if emergency:
                st.error(emergency["notice"], icon=":material/emergency:")
            if answer.reasoning:
                with st.expander("Reasoning" if answer.text or answer.done else "Reasoning ..."):
                    st.markdown(answer.reasoning)
            st.markdown(answer.text or ("" if answer.done else "..."))
            for entry in {e["id"]: e for e in answer.guard if e["kind"] not in ("emergency", "injection")}.values():
                st.warning(entry["notice"])
            if answer.error:
                st.error(answer.error)
            st.caption("stopped" if answer.stopped else answer.speed())


@st.fragment(run_every=0.25)
def live():
    """The last turn while it is being written."""
    show(st.session_state.turns[-1])
    if running():
        if st.button("Stop", key="stop", icon=":material/stop:"):
            for answer in running():
                answer.stop()
    else:
        st.rerun()


def page():
    """The whole page, once."""
    st.set_page_config("medtune", page_icon=":material/stethoscope:", layout="centered")
    st.session_state.setdefault("turns", [])
    st.title("Ask the model")
    st.info(WARNING, icon=":material/school:")
    found = choices()
    labels, how = sidebar(found)
    question = st.chat_input("A medical question", max_chars=8000, disabled=bool(running()))
    if not st.session_state.turns:
        st.caption("For example:")
        for number, example in enumerate(EXAMPLES):
            if st.button(example, key=f"example{number}"):
                question = example
    if question:
        ask(question, labels, found, how)
        st.rerun()
    for turn in st.session_state.turns[:-1]:
        show(turn)
    if running():
        live()
    elif st.session_state.turns:
        show(st.session_state.turns[-1])


page()
