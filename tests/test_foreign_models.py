"""What a model's folder brings is data: its code is not run, its adapter not loaded, its template not waited for."""

import ast
import json
import re

import nbformat
import pytest

from lib.chat import turns
from lib.model import loading, shapes
from lib.pipeline.files import ROOT
from lib.pipeline.recipe import load

LOADERS = re.compile(r"Auto\w+|PeftModel")


def foreign(folder):
    """A model folder whose configuration asks for code of its own, which would leave a file."""
    folder.mkdir()
    ran = folder / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise RuntimeError('ran')\n")
    maps = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tok", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": maps}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tok", "auto_map": maps}))
    return ran


def test_code_of_a_model_is_refused_and_nobody_is_asked(tmp_path, monkeypatch):
    ran = foreign(tmp_path / "model")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    cfg = load("tiny", {"model": {"base": str(tmp_path / "model"), "twin": None}})
    for read in (lambda: shapes.config(str(tmp_path / "model")), lambda: loading.read_tokenizer(tmp_path / "model"),
                 lambda: loading.base(cfg)):  # fmt: skip
        with pytest.raises((ValueError, OSError, KeyError)):
            read()
    assert not ran.exists()


def test_every_loader_says_that_it_trusts_no_code():
    sources = {
        path: path.read_text() for folder in ("lib", "app", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    }
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        sources[path] = "\n".join(c.source for c in cells if c.cell_type == "code" and "%" not in c.source)
    calls = [
        (path.name, call)
        for path, text in sources.items()
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call) and re.fullmatch(r"from_(pretrained|config)", getattr(call.func, "attr", ""))
        and LOADERS.fullmatch(ast.unparse(call.func.value).rpartition(".")[2])
    ]  # fmt: skip
    assert len(calls) >= 9
    for name, call in calls:
        said = ast.unparse(call)
        assert re.search(r"trust_remote_code=False|\*\*(loading\.)?OURS|\*\*options", said), (name, said)


def test_an_adapter_in_the_folder_of_a_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    cfg = load("tiny", {"model": {"base": str(tmp_path), "twin": None}})
    with pytest.raises(ValueError, match="holds an adapter_config.json.*Merge it first"):
        loading.source(cfg)


def test_a_template_that_loops_is_ended(monkeypatch):
    class Looping:
        name_or_path = "own/model"

        def apply_chat_template(self, *_, **__):
            import jinja2.sandbox

            inner = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
            return jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(inner).render()

    monkeypatch.setattr(turns, "LIMIT_S", 0.2)
    said = "chat template of own/model takes more than 0.2 s.*it loops"
    with pytest.raises(ValueError, match=said):
        turns.render([{"role": "user", "content": "Why?"}], Looping())
    Looping.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match=said):
        turns.prepare(Looping(), "think")
