"""The API before a real llama-server: the protocol as OpenAI's own client reads it, reasoning, adapters, limits."""

import ast
import copy
import json
import os
import shutil
from types import SimpleNamespace

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from served import ASK, api, events, llama, model, said, wait
from test_gguf import bf16, twin  # noqa: F401 (fixtures)

from app import catalogue, settings
from lib.dataset.answers import split_reasoning
from lib.export import gguf
from lib.pipeline import files, recipe, records, run
from lib.pipeline.files import ROOT

SECRETS = ("HF_TOKEN", "OPENAI_API_KEY")


@pytest.fixture(scope="module")
def adapter(twin, tmp_path_factory):  # noqa: F811
    folder, plain, _ = twin
    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    path = tmp_path_factory.mktemp("adapter")
    get_peft_model(copy.deepcopy(plain), config).save_pretrained(path / "peft")
    return gguf.convert_lora(path / "peft", folder, path / "x-adapter.gguf")


@pytest.fixture(scope="module")
def client(bf16, adapter):  # noqa: F811
    with pytest.MonkeyPatch.context() as env:
        for name in SECRETS:
            env.setenv(name, "a-secret-of-ours")
        with api(model(bf16, adapters={"x": adapter}), model(bf16, "tiny/y"), slots=2) as made:
            yield made


@pytest.fixture
def sdk(client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_openais_client_gets_an_answer_whole_and_as_a_stream(sdk):
    ask = ASK | {"model": "tiny/x", "temperature": 0, "seed": 1}
    whole = sdk.chat.completions.create(**ask)
    pieces = list(sdk.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert whole.choices[0].message.content == text and whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == pieces[-1].usage.completion_tokens == 8
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 8
    assert whole.usage.completion_tokens_details.reasoning_tokens == 0
    assert len({p.id for p in pieces}) == 1 and pieces[0].choices[0].delta.role == "assistant"
    assert {p.model for p in pieces} == {"tiny/x"} and [p.finish_reason for c in pieces for p in c.choices][
        -1
    ] == "length"


def test_n_answers_stop_and_the_same_seed(sdk):
    ask = ASK | {"model": "tiny/x", "n": 2, "temperature": 1.0, "seed": 7}
    one, two = sdk.chat.completions.create(**ask), sdk.chat.completions.create(**ask)
    assert [c.index for c in one.choices] == [0, 1] and one.usage.completion_tokens == 16
    assert [c.message.content for c in one.choices] == [c.message.content for c in two.choices]
    text = sdk.chat.completions.create(**ASK | {"model": "tiny/x"}).choices[0].message.content
    mark = text[4]
    cut = sdk.chat.completions.create(**ASK | {"model": "tiny/x"}, stop=[mark]).choices[0]
    assert (
        cut.finish_reason == "stop"
        and cut.message.content.split("\n\n> ")[0].strip() == text.partition(mark)[0].strip()
    )


def test_models_and_adapters_are_listed_and_an_adapter_changes_the_answer(client, sdk):
    assert [m.id for m in sdk.models.list()] == ["tiny/x", "tiny/y"]
    assert client.get("/v1/adapters").json()["data"] == [{"id": "x", "object": "adapter", "model": "tiny/x"}]
    told = {}
    for name in ("none", "x", "none again"):
        extra = {"adapter": "x"} if name == "x" else {}
        told[name] = sdk.chat.completions.create(model="tiny/x", **ASK, extra_body=extra).choices[0].message.content
    assert told["none"] == told["none again"] != told["x"]
    plain = sdk.chat.completions.create(model="tiny/y", **ASK).choices[0].message.content
    assert plain == told["none"], "loaded and switched off, it changes nothing"


def test_the_stages_of_a_staged_recipe_are_adapters_of_its_base(twin, bf16, adapter, tmp_path, monkeypatch):  # noqa: F811
    """03_sft saves each as PEFT does; the loop of the notebook that writes the files is run as it stands there."""
    monkeypatch.setenv("OUTPUTS", str(tmp_path))
    sft, out = tmp_path / "tiny/03_sft", tmp_path / "tiny/05_export/gguf"
    shutil.copytree(twin[0], sft / "merged")
    for name in ("adapter", "adapter_1_first", "adapter_2_second"):
        shutil.copytree(adapter.parent / "peft", sft / name)
    out.mkdir(parents=True)
    shutil.copy(bf16, out / "base-bf16.gguf")
    reader = SimpleNamespace(hashes=files.HashCache(tmp_path / "hashes.json"), inputs={})
    written = {str(p.relative_to(sft)): files.sha256_file(p) for p in sft.rglob("*") if p.is_file()}
    cells = json.loads((ROOT / "notebooks/05_export.ipynb").read_text())["cells"]
    (code,) = ["".join(cell["source"]) for cell in cells if cell["id"] == "05-28"]
    (loop,) = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.For) and "convert_lora" in ast.unparse(n)]
    exec(
        ast.unparse(loop), {"sft": run.Upstream("03_sft", sft, {"outputs": written}, reader), "gguf": gguf, "out": out}
    )
    outputs = {f"gguf/{path.name}": "0" for path in sorted(out.iterdir())}
    records.write(out.parent / "stage.json", {"stage": "05_export", "outputs": outputs})
    (base,) = catalogue.models(recipe.load("tiny"), settings.Settings(model="base-bf16", context=256))
    assert list(base.adapters) == ["1_first", "2_second"]
    with api(base) as client:
        told = [client.post("/v1/chat/completions", json=ASK | extra).json()["choices"][0]["message"]["content"]
                for extra in ({}, {"adapter": "1_first"}, {"adapter": "2_second"})]  # fmt: skip
    assert told[0] != told[1] == told[2]


@pytest.mark.parametrize(
    "body, status, field",
    [
        ({"messages": []}, 422, "messages"),
        (ASK | {"max_tokens": "8"}, 422, "max_tokens"),
        (ASK | {"temperature": 3}, 422, "temperature"),
        (ASK | {"n": 3}, 422, "n"),
        (ASK | {"stop": [""]}, 422, "stop"),
        ({"messages": [{"role": "user", "content": 5}]}, 422, None),
        ({"messages": [{"role": "robot", "content": "x"}]}, 422, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 422, "messages"),
        (ASK | {"model": "gpt-9"}, 404, "model"),
        (ASK | {"adapter": "y"}, 404, "adapter"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, "messages"),
    ],
)
def test_what_cannot_be_answered_says_which_field(client, body, status, field):
    reply = client.post("/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert reply.status_code == status and error["message"] and error["type"] and error["code"]
    assert field is None or error["param"] == field


def test_an_answer_may_take_what_the_prompt_leaves_and_no_more(client):
    reply = client.post("/v1/chat/completions", json=ASK | {"max_completion_tokens": 1000, "temperature": 0}).json()
    assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["total_tokens"] == 256


def test_unknown_fields_are_ignored_and_no_json_is_no_fault(client):
    assert client.post("/v1/chat/completions", json=ASK | {"tools": [], "chat_id": "1", "user": "u"}).status_code == 200
    reply = client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "invalid_json"
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    assert client.get("/v1/chat/completions").status_code == 405


CLIENTS = [json.loads(line) for line in (ROOT / "tests/cases_clients.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CLIENTS, ids=lambda case: f"{case['client']}: {case['what']}")
def test_requests_of_langchain_and_open_webui(client, case):
    """LangChain's were recorded; Open WebUI's are what routers/openai.py and tasks.py of its wheel make of a chat."""
    body = case["body"]
    reply = client.post("/v1/chat/completions", json=body, headers=case["headers"])
    assert reply.status_code == case["status"], reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert error["param"].startswith("messages") and ("image" not in case["what"] or "'text'" in error["message"])
    elif body["stream"]:
        found = events(reply.text)
        assert reply.text.endswith("data: [DONE]\n\n") and said(found)
        assert ("usage" in found[-1]) == ("stream_options" in body)
    else:
        message = reply.json()["choices"][0]["message"]
        assert message["role"] == "assistant" and message["content"] is not None and reply.json()["usage"]


def test_health_ready_docs_and_meters(client):
    client.post("/v1/chat/completions", json=ASK)
    assert client.get("/health").json() == {"status": "ok"} and client.get("/ready").json()["ready"] is True
    schema = client.get("/openapi.json").json()
    assert "/v1/chat/completions" in schema["paths"] and client.get("/docs").status_code == 200
    text = client.get("/metrics").text
    for name in ("gen_ai_server_time_to_first_token_seconds_count", "gen_ai_server_time_per_output_token_seconds_sum",
                 "gen_ai_server_request_duration_seconds_bucket", "medtune_queue_depth", "medtune_slots",
                 "medtune_answers_format_total", "medtune_reasoning_tokens_count", "medtune_backend_up"):  # fmt: skip
        assert name in text, name


def test_the_backend_has_a_key_no_cors_and_none_of_our_secrets(client):
    backend = client.desk.backends["tiny/x"]
    environ = open(f"/proc/{backend.process.pid}/environ", "rb").read()
    assert f"LLAMA_API_KEY={backend.key}\0".encode() in environ
    assert b"a-secret-of-ours" not in environ and not [name for name in SECRETS if name.encode() in environ]
    assert backend.key not in " ".join(map(str, backend.command("s")))
    assert os.stat(backend.folder).st_mode & 0o777 == 0o700
    assert llama(backend, "/slots").status_code == llama(backend, "/slots", "wrong").status_code == 401
    reply = llama(backend, "/slots", backend.key, Origin="https://a.example")
    assert reply.status_code == 200 and "access-control-allow-credentials" not in reply.headers
    assert reply.headers.get("access-control-allow-origin", "none") == "none", "an origin that no page has"


def test_secrets_do_not_reach_a_child(monkeypatch):
    from lib.pipeline.commands import environment

    for name in ("HF_TOKEN", "OPENAI_API_KEY", "SERVE_KEYS", "LLAMA_API_KEY", "AWS_SECRET", "PGPASSWORD", "TOKENS",
                 "GOOGLE_APPLICATION_CREDENTIALS"):  # fmt: skip
        monkeypatch.setenv(name, "hunter22")
    for name in ("HTTPS_PROXY", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://me:hunter22@proxy.example:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    found = environment()
    assert not any("hunter22" in value for value in found.values()) and found["http_proxy"] and found["PATH"]


def test_an_adapter_answers_as_the_file_says(client):
    """The text split while it streams is the text split at the end, whatever the model writes."""
    body = ASK | {"stream": True, "temperature": 1.5, "seed": 3, "max_tokens": 60}
    found = events(client.post("/v1/chat/completions", json=body).text)
    answer = said(found).split("\n\n> ")[0]
    assert answer.strip() == split_reasoning(answer, "think")[1]


def test_no_text_in_the_log_unless_asked(bf16, tmp_path):  # noqa: F811
    for asked, log in ((False, tmp_path / "a"), (True, tmp_path / "b")):
        with api(model(bf16), log_file=str(log), log_text=asked) as made:
            made.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "abc"})
            wait(lambda: '"event": "request"' in log.read_text())  # noqa: B023
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert ("fever" in log.read_text()) is asked
        assert {line["id"] for line in lines if line["event"] in ("answer", "request")} == {"abc"}
