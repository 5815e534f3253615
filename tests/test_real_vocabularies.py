"""Trainer and llama-server on real vocabularies and chat templates: one text, the same tokens, the right ones trained.

What llama.cpp's pinned source ships of the recipes' families is taken from there. Not shipped are the vocabularies of
gpt-oss and Gemma 3 (their templates are tried on the twins' small ones) and the templates of Llama-2, DialoGPT and
Gemma 3 (the published texts are below, or come with TRL).
"""

import random
import re
from collections import defaultdict
from functools import cache
from importlib.resources import files
from types import SimpleNamespace

import families
import pytest
import shipped
from jinja2 import TemplateError
from test_chat import LOOK_ALIKES, SOUND
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from lib.chat import encoding, lossmask
from lib.chat.turns import end_token
from lib.dataset.choices import Reject, clean
from lib.evaluation.generate import stop_ids
from lib.export import gguf, serve
from lib.model import loading, padding, saving, twin
from lib.model.families import FAMILIES, config
from lib.pipeline import recipe

LLAMA2 = (  # Llama-2-7b-chat-hf
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DIALOGPT = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
GEMMA3 = files("trl").joinpath("chat_templates/gemma3.jinja").read_text(encoding="utf-8")
THINKING = "## Thinking\n\n{r}\n\n## Final Response\n\n{o}"
QWEN3 = "<think>\n{r}\n</think>\n\n{o}<|im_end|>\n"
HARMONY = "<|channel|>analysis<|message|>{r}<|end|><|start|>assistant<|channel|>final<|message|>{o}<|return|>"
CASES = {  # recipe: (architecture, shipped vocabulary or None, shipped template or its text, what is trained)
    "qwen3_8b": ("qwen3", "qwen2", "Qwen-Qwen3-0.6B", QWEN3),
    "llama31_8b_t4": ("llama", "llama-bpe", "meta-llama-Llama-3.1-8B-Instruct", THINKING + "<|eot_id|>"),
    "llama32_1b_reasonmed": ("llama", "llama-bpe", "meta-llama-Llama-3.2-3B-Instruct", "{r}\n\n{o}<|eot_id|>"),
    "llama2_7b_staged": ("llama2", "llama-spm", LLAMA2, " {r}\n\n{o} </s>"),
    "dialogpt_medium": ("gpt2", "gpt-2", DIALOGPT, "{r}\n\n{o}<|endoftext|>"),
    "qwen3_coder": ("qwen3", "qwen2", "Qwen3-Coder", THINKING + "<|im_end|>\n"),
    "gpt_oss_20b": ("gptoss", None, "openai-gpt-oss-120b", HARMONY),
    "gemma3_270m": ("gemma3", None, GEMMA3, THINKING + "<end_of_turn>\n"),
}
NO_RECIPE = {"qwen3_coder": ("qwen3_8b", {"chat.format": "thinking_response"})}
SHAPE = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SHAPE |= {"vocab_size": 600, "block_size": 256}
GROUPED = {"num_key_value_heads": 1, "head_dim": 32}
FIELDS = {"gpt2": {}, "gptoss": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}}
BLANKS = ("llama2", "gemma3")  # SentencePiece takes U+2581 for the blank that it stands for
PIECES = [
    *LOOK_ALIKES, "<end_of_turn>\n", "<bos>", "<pad>", "<unk>", "<0x0A>", "<tool_response>", "</tool_response>",
    "</think>\n\n", "<|end|><|start|>assistant<|channel|>final<|message|>", "\u2581", "\u0120",
    "{{ bos_token }}", "{% endfor %}", "{#", "\\n", '"', "'", "\r\n", "\r", "\n\n\n", "\t", "   ", "\x0b",
    "\u00a0", "\u3000", "\u2028", "\ufeff", "\u200d",  # blanks beyond ASCII; no blanks
    "\U0001f469\u200d\u2695\ufe0f", "\U0001f1e8\U0001f1ed",  # a physician of three signs, a flag of two
    "e\u0301", "\u00e9", "\u1112\u1161\u11ab", "\ud55c", "A\u030a", "\u212b", "\ufb01", "\u00bd",  # composed or not
    "\u60a3\u8005\u3055\u3093\u3001", "\u062d\u064f\u0645\u0651\u0649", "\u0939\u093f\u0928\u094d\u0926\u0940",
    "37.5 \u00b0C", "1234567890", "it's", "DON'T", " the patient", "fever", "a", "x" * 300, "Aortoiliacofemoral" * 9,
]  # fmt: skip


def drawn(rng, least=0):
    """A text of some pieces, of at least one letter where `least` says so."""
    while True:
        text = rng.choice(["", " "]).join(rng.choices(PIECES, k=rng.randint(least, 9)))
        if not least or re.search("[a-z]", text):
            return text


def conversations(number=200):
    """Lists of messages that end with the user: at most four questions, behind a system turn, an empty one, or none."""
    rng = random.Random("conversations")
    for _ in range(number):
        turns = [{"role": "system", "content": drawn(rng)}] * rng.randint(0, 1)
        for _ in range(rng.choice([0, 0, 1, 3])):
            turns += [{"role": "user", "content": drawn(rng, 1)}, {"role": "assistant", "content": drawn(rng, 1)}]
        yield [*turns, {"role": "user", "content": drawn(rng, 1)}]


def records(number=200):
    """Rows as chapter 1 leaves them, made of the same texts; one in two goes on with a conversation."""
    rng, talks = random.Random("records"), conversations(10**6)
    while number:
        *earlier, asked = next(talks)
        try:
            turns = [turn | {"content": clean(turn["content"], "void")} for turn in earlier]
            texts = [clean(text, "void") for text in (asked["content"], drawn(rng, 1), drawn(rng, 1))]
        except Reject:  # control characters, or a turn of blanks
            continue
        number -= 1
        yield dict(zip(("instruction", "reasoning", "output"), texts, strict=True), history=turns)


@cache
def base(architecture, name, folder):
    """Folder with a family's tokenizer, without a template."""
    if name:
        shipped.tokenizer(architecture, name, folder)
    else:
        twin.train_tokenizer(FAMILIES[architecture], families.TEXT, SHAPE["vocab_size"], folder)
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Folders by (architecture, vocabulary): two recipes with one vocabulary are one file, of the first's template."""
    return defaultdict(lambda: tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module", params=CASES)
def case(request, converted, tmp_path_factory):
    """A recipe's tokenizer, as chapter 3 takes it from the base, and llama-server on a tiny model saved with it."""
    architecture, name, template, turn = CASES[request.param]
    folder = converted[architecture, name]
    chat = recipe.load(*NO_RECIPE.get(request.param, [request.param])).chat
    fmt, style = chat["format"], (chat["date"], chat["reasoning_effort"])
    tokenizer = loading.read_tokenizer(base(architecture, name, folder / "base"))
    tokenizer.chat_template = template if "{" in template else shipped.template(template)
    tokenizer, file = encoding.prepare(padding.pad(tokenizer), fmt, *style), folder / "model.gguf"
    environment = dict(serve.environment())
    if file.exists():
        environment["LLAMA_ARG_CHAT_TEMPLATE_FILE"] = str(folder / request.param)
        (folder / request.param).write_text(tokenizer.chat_template, encoding="utf-8")
    else:
        shape = SHAPE | FIELDS.get(architecture, GROUPED) | {"architecture": architecture}
        model = FAMILIES[architecture].model(config(shape, tokenizer))
        gguf.convert(saving.save(model, tokenizer, folder / "model"), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "environment", lambda: environment)
        with serve.running(file, ctx=256) as url:
            begin = tokenizer.decode(serve.tokenize(url, ""))
            yield SimpleNamespace(architecture=architecture, name=name, turn=turn, fmt=fmt, style=style, file=file,
                                  tokenizer=tokenizer, url=url, begin=begin)  # fmt: skip


def applied(case, turns):
    """llama-server's text of a prompt, without the beginning that its tokenizer puts there."""
    return serve.request(case.url, "/apply-template", {"messages": turns})["prompt"]


def rendered(case, turns):
    """Ours; None where the template refuses."""
    try:
        return encoding.render(turns, case.tokenizer, True, *case.style).removeprefix(case.begin)
    except TemplateError:
        return None


def as_llama_cpp(tokenizer):
    """A copy of the tokenizer that reads as llama.cpp does, which differs where a text is not neutralised.

    It joins no letter with an accent, as Qwen's does. Where the vocabulary has a word "</s>", which Qwen's has, it ends
    a text. After a control token of Llama-2's stands a blank, before a blank, too: transformers then leaves it out.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if isinstance(backend.normalizer, normalizers.NFC):
        backend.normalizer = None
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        blanks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        backend.pre_tokenizer, backend.normalizer = None, normalizers.Sequence(blanks)
    if "</s>" in tokenizer.get_vocab():
        backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    return backend


def shielded(turns):
    """The turns, marked where llama.cpp's jinja takes them otherwise.

    It trims no blanks beyond ASCII, and lets pass an answer with harmony's channels, which the template refuses.
    """
    texts = [re.fullmatch(r"([ \t-\r]*)(.*?)([ \t-\r]*)", turn["content"], re.DOTALL) for turn in turns]
    kept = [text[0] if text[2] == text[2].strip() else text.expand("\\1\ue000\\2\ue000\\3") for text in texts]
    kept = [text.replace("<|channel|>", "<|channel\ue000|>") for text in kept]
    return [turn | {"content": text} for turn, text in zip(turns, kept, strict=True)]


def test_the_server_reads_what_the_trainer_reads(case):
    trainers, llama_cpps, apart = case.tokenizer.backend_tokenizer, as_llama_cpp(case.tokenizer), 0
    for talk in conversations():
        broken = [turn | {"content": encoding.neutralise(turn["content"])} for turn in talk]
        for turns, reads in ((talk, llama_cpps), (broken, trainers)):
            text = applied(case, turns)
            assert text == rendered(case, shielded(turns)).replace("\ue000", "")
            assert serve.tokenize(case.url, text) == reads.encode(case.begin + text, add_special_tokens=False).ids
            apart += text != rendered(case, turns)
    special = r"\['content'\] ?\| ?trim|content\.strip\(\)|You have passed a message containing <\|channel"
    assert bool(apart) == bool(re.search(special, case.tokenizer.chat_template))


def test_the_assistants_tokens_to_the_end_carry_loss_and_no_others(case):
    tokenizer, rows = case.tokenizer, list(records())
    talks = [encoding.messages(row, case.fmt) for row in rows]
    encoded = [encoding.encode(talk, tokenizer, *case.style) for talk in talks]
    assert list(encoding.tokenize(rows, tokenizer, case.fmt, *case.style)) == encoded
    audit, end = lossmask.Audit(tokenizer, case.fmt, *case.style), tokenizer.convert_tokens_to_ids(end_token(tokenizer))
    for row, talk, (ids, labels) in zip(rows, talks, encoded, strict=True):
        start = labels.count(encoding.IGNORE_INDEX)
        assert ids[:start] == serve.tokenize(case.url, applied(case, talk[:-1]))
        assert labels == [encoding.IGNORE_INDEX] * start + ids[start:]
        whole = encoding.render(talk, tokenizer, False, *case.style).removeprefix(case.begin)
        assert ids == serve.tokenize(case.url, whole)
        said = {key[0]: encoding.neutralise(row[key]) for key in ("reasoning", "output")}
        trained = tokenizer.decode(ids)[len(tokenizer.decode(ids[:start])) :]
        written = case.turn.format(**said)
        assert trained == (written.replace("\u2581", " ") if case.architecture in BLANKS else written)
        assert labels.count(end) == 1
        if tokenizer.bos_token not in (None, tokenizer.eos_token):
            asked = sum(turn["role"] == "user" for turn in talk)
            assert ids.count(tokenizer.bos_token_id) == {"llama2": asked, "gptoss": 0}.get(case.architecture, 1)
        audit.add(ids, labels)
    assert audit.result()["shares"] == SOUND
    assert end in stop_ids(None, tokenizer) and end == shipped.vocabulary(case.file)["eos_token_id"]


def test_the_file_holds_the_vocabulary_as_published(case):
    if not case.name:
        pytest.skip("llama.cpp ships the vocabulary of neither gpt-oss nor Gemma 3")
    ours, theirs = shipped.vocabulary(case.file), shipped.vocabulary(case.name)
    words = theirs["token_type"].count(shipped.TokenType.NORMAL)
    assert ours["pre"] == theirs["pre"]  # as the converter knows it by the tokens of its own sample
    for key in ("tokens", "token_type"):
        assert ours[key][:words] == theirs[key][:words]
    assert ours.get("merges") == theirs.get("merges")
    for text, ids in shipped.expected(case.name):
        asked = {"content": text, "add_special": False, "parse_special": True}
        assert serve.request(case.url, "/tokenize", asked)["tokens"] == ids
        if case.architecture != "llama2" or not text.startswith(" "):  # see as_llama_cpp
            assert case.tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_what_is_shipped_of_the_recipes_families_is_tried():
    families = re.compile(r"openai-gpt-oss|meta-llama-|Qwen-Qwen3-|Qwen3-|google-gemma-3|microsoft-DialoGPT")
    found = {path.stem for path in (shipped.MODELS / "templates").iterdir() if families.match(path.stem)}
    tried = {template for _, _, template, _ in CASES.values()}
    same = "meta-llama-Llama-3.3-70B-Instruct"
    assert found - tried == {same} and shipped.template(same) == shipped.template("meta-llama-Llama-3.1-8B-Instruct")
    names = [path.stem for path in shipped.MODELS.glob("*.gguf")]
    assert not [name for name in names if re.search("gpt-oss|gpt-4o|gemma-?3", name)], "shipped by now: try it above"
