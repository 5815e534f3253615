"""Keys and passwords: refused in a recipe, read from .env as it is written, kept out of what is published."""

import html
import json
import re
import shutil

import pytest
from test_report import executed, repository, without_third  # noqa: F401  (two of them are fixtures)

from lib.pipeline import credentials, recipe
from lib.pipeline.files import ROOT
from lib.pipeline.overrides import parse_set
from lib.report import publish

HIDDEN = "Zq7wLk2vXp9TbR4nYc6m"
KEYS = [f"hf_{HIDDEN}", f"sk-proj-{HIDDEN}", f"ghp_{HIDDEN}", f"github_pat_{HIDDEN}", "AKIAZQ7WLK2VXP9TBR4N",
        f"gsk_{HIDDEN}", f"xoxb-{HIDDEN}", f"eyJ{HIDDEN}.{HIDDEN}.{HIDDEN}", f"xai-{HIDDEN}", f"nvapi-{HIDDEN}",
        f"pplx-{HIDDEN}", f"r8_{HIDDEN}", f"npm_{HIDDEN}", f"pypi-{HIDDEN}", f"sk_live_{HIDDEN}"]  # fmt: skip


@pytest.mark.parametrize("text", [
    f"sft.hub_token={HIDDEN}", f"sft.push_to_hub_token={HIDDEN}", f"model.base=https://user:{HIDDEN}@host/model",
    f"judge.judges=[m@http://user:{HIDDEN}@host:8000/v1]", f"model.base=https://{HIDDEN}@host/model",
    f"'data.sources=[{{name: own, path: x, api_key: {HIDDEN}}}]'", f"sft.hub_token.deeper={HIDDEN}",
    *[f"sft.run_name={key}" for key in KEYS], f"sft.{KEYS[0]}=1", f"sft.run_name=x_{KEYS[0]}", KEYS[0],
    f"judge.judges=[m@https://host/v1?api_key={HIDDEN}]", f"'sft.hub_token=[{KEYS[0]}'", f"'sft.hub_token=\"{KEYS[0]}",
    *[f"sft.lr_scheduler_kwargs.{name}={HIDDEN}" for name in ("Authorization", "secret_key", "api-key", "passwd")],
])  # fmt: skip
def test_a_recipe_with_a_secret_is_refused_and_the_secret_is_not_shown(text):
    with pytest.raises(ValueError) as error:
        recipe.load("tiny", parse_set(text))
    assert HIDDEN not in str(error.value) and HIDDEN[:8].upper() not in str(error.value)


@pytest.mark.parametrize("text", [
    "sft.eos_token=null", "sft.pad_token=null", "sft.hub_token=null", "chat.max_new_tokens=9",
    "judge.judges=[m@http://host:8000/v1]", "sft.run_name=risk-benefit-2024-of-a-trial",
])  # fmt: skip
def test_what_only_looks_a_little_like_one_is_none(text):
    assert recipe.load("tiny", parse_set(text))


def test_every_recipe_loads_without_a_secret():
    for path in (ROOT / "params").glob("*.yaml"):
        credentials.refuse(path.read_text(encoding="utf-8"), path.name)


@pytest.mark.parametrize("key", KEYS)
def test_scrubbing(key):
    told = f"a {key}, Authorization: Bearer {HIDDEN} and https://user:pass@host/x@y, mail a@b.org"
    assert credentials.scrub(told) == (
        "a <secret>, Authorization: Bearer <secret> and https://host/x@y, mail a@b.org"
    )  # fmt: skip


@pytest.mark.parametrize("text", [
    f"https://user:p@{HIDDEN}@host/x", f"http://user:p'{HIDDEN}@host/x", f"Authorization: Basic {HIDDEN}",
    f"https://host/x?access_token={HIDDEN}&b=1", f"bearer {HIDDEN}",
])  # fmt: skip
def test_scrubbing_odd_addresses_and_headers(text):
    assert HIDDEN not in credentials.scrub(text)


@pytest.mark.parametrize("name", ["MY_PASSWORD", "HF_TOKEN_2", "OPENAI_API_KEY_BACKUP", "SMTP_PASS", "GITHUB_PAT"])
@pytest.mark.parametrize("written", [str, json.dumps, html.escape, lambda key: json.dumps(html.escape(key))])
def test_a_key_is_found_however_it_is_written(monkeypatch, name, written):
    key = 'Ab"cd&ef9<gh\\1'
    monkeypatch.setenv(name, key)
    with pytest.raises(ValueError, match=f"a page holds the value of {name}:"):
        credentials.check(f"x {written(key)} y", "a page")


def test_the_password_of_an_address_is_found_whatever_its_variable_is_called(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"postgres://me:{HIDDEN}@host/db")
    with pytest.raises(ValueError, match="a page holds the value of DATABASE_URL:"):
        credentials.check(f"it printed {HIDDEN}", "a page")


def test_env_files_are_read_as_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(credentials, "ROOT", tmp_path)
    assert credentials.dotenv() == {}
    lines = [
        "# KEY=no",
        "A=1",
        "export B = two words ",
        "C='x # y'  # why",
        'D="q"',
        "E=u#v",
        "F=w  # why",
        "G=  # why",
        "H=",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    assert credentials.dotenv() == {"A": "1", "B": "two words", "C": "x # y", "D": "q", "E": "u#v", "F": "w"}


def test_the_example_parses_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(credentials, "ROOT", tmp_path)
    text = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(text)
    assert credentials.dotenv() == {}
    (tmp_path / ".env").write_text(re.sub(r"(?m)^# ([A-Z_]+=)", r"\1", text))
    found = {"JUDGE_BASE_URL": "http://localhost:8000/v1", "JUDGE_USD_PER_MTOK": "2,8", "SERVE_KEYS": "name:key"}
    assert credentials.dotenv() == found, "what is left empty is not set"
    (tmp_path / ".env").write_text(re.sub(r"(?m)^# ([A-Z_]+=).*", r"\1value", text))
    assert set(credentials.dotenv()) == set(re.findall(r"(?m)^# ([A-Z_]+)=", text))


def test_nothing_is_published_that_holds_a_key_of_the_environment(repository, monkeypatch):  # noqa: F811
    run = without_third(repository) / "outputs" / "tiny"
    shutil.rmtree(run / "03_sft")
    shown = run / "02_baseline" / "02_baseline.ipynb"
    shown.write_text(shown.read_text().replace("printed by tiny", f"printed by {HIDDEN}, {KEYS[0]}"))
    monkeypatch.setenv("JUDGE_API_KEY", HIDDEN)
    before = {path.name for path in (repository / "outputs").iterdir()}
    with pytest.raises(ValueError, match="02_baseline.ipynb holds the value of JUDGE_API_KEY") as error:
        publish.publish(run, None, repository)
    assert HIDDEN not in str(error.value) and {path.name for path in (repository / "outputs").iterdir()} == before
    monkeypatch.setenv("JUDGE_API_KEY", "local")
    others = {"SERVE_KEYS": f"clinic:another,ward:{HIDDEN}", "SERVE_KEY": f"a:sha256:{HIDDEN} b:x", "TOKENS": HIDDEN,
              "PGPASSWORD": HIDDEN}  # fmt: skip
    for name, value in others.items():
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=f"02_baseline.ipynb holds the value of {name}:"):
            publish.publish(run, None, repository)
        monkeypatch.delenv(name)
    monkeypatch.setattr(credentials, "get_token", lambda: HIDDEN)
    with pytest.raises(ValueError, match="holds the value of the hub's login"):
        publish.publish(run, None, repository)
    monkeypatch.setattr(credentials, "get_token", lambda: None)
    monkeypatch.setenv("SERVE_KEYS", "baseline:unknown-to-all")  # a name is no key
    target = publish.publish(run, None, repository)
    told = (target / "02_baseline.ipynb").read_text()
    assert KEYS[0] not in told and "<secret>" in told


def test_a_byte_order_mark_does_not_hide_the_first_key_of_env(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("SERVE_KEYS=ward:0123456789\n", encoding="utf-8-sig")
    monkeypatch.setattr(credentials, "ROOT", tmp_path)
    assert credentials.dotenv() == {"SERVE_KEYS": "ward:0123456789"}
