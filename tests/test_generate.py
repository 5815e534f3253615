import itertools
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
from loopback import Endpoint, completion
from tiny_qwen import alone, byte_tokenizer, ids_of, random_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GptOssConfig, Qwen3Config
from transformers.integrations import sdpa_attention

from lib.chat import packing
from lib.evaluation import batching, generate, multiple_choice
from lib.evaluation.kept import Kept

torch.set_num_threads(1)  # more are slower at this size


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model(tokenizer, seed=3)


def prompts(*texts):
    return [{"id": f"q{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]


QUESTIONS = prompts("a", "what is it?", "a much longer question " * 3, "fever", "cough and fever", "x" * 40, "b", "ccc")


def test_batched_answers_equal_single_ones_without_a_cache(model, tokenizer):
    got, three = (generate.transformers(model, tokenizer, QUESTIONS, 40, batch_size=size) for size in (8, 3))
    expected = [alone(model, ids_of(tokenizer, prompt), 40, {tokenizer.eos_token_id}) for prompt in QUESTIONS]
    ended = [ids[-1] == tokenizer.eos_token_id for ids in expected]
    assert [a["id"] for a in got] == [p["id"] for p in QUESTIONS]
    assert [a["tokens"] for a in got] == [len(ids) for ids in expected]
    assert [a["finish"] for a in got] == ["stop" if end else "length" for end in ended]
    texts = [tokenizer.decode(ids[:-1] if end else ids) for ids, end in zip(expected, ended, strict=True)]
    assert [a["text"] for a in got] == [a["text"] for a in three] == texts


def test_rows_end_at_their_own_stop_token_and_at_their_own_time(model, monkeypatch):
    monkeypatch.setattr(batching, "time", SimpleNamespace(perf_counter=itertools.count().__next__))  # a tick a token
    lengths = (3, 30, 11, 24, 7, 18, 39, 5)
    generator = torch.Generator().manual_seed(5)
    given = [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]
    free = [alone(model, ids, 20) for ids in given]
    stops = sorted({ids[5] for ids in free[:3]})  # tokens of the answers themselves, so that rows end at various times
    with batching.evaluation(model):
        how = generate._drawing(0.0, 1.0) | {"max_new_tokens": 20, "eos_token_id": stops}
        got = generate.continue_ids(model, given, how)
    for ids, (out, first, seconds) in zip(free, got, strict=True):
        end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
        assert out == ids[:end] and (first, seconds) == (1, end)
    assert len({len(out) for out, _, _ in got}) > 2


def test_keys_are_repeated_for_padded_rows_alone(monkeypatch):
    """transformers drops a mask that masks nothing; under any other sdpa repeats keys and values for each query."""
    counts, model = [], packing.small(Qwen3Config(num_key_value_heads=8), "sdpa")
    real = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *args: counts.append(len(args)) or real(*args))
    how = generate._drawing(0.0, 1.0) | {"max_new_tokens": 6, "eos_token_id": [2]}
    first, second, short = [5, 9, 11, 7], [8, 3, 3, 60], [5, 9]
    with batching.evaluation(model):
        even = generate.continue_ids(model, [first, second], how)
        assert counts == []
        padded = generate.continue_ids(model, [first, short], how)
        assert len(counts) == 2 * 2 * len(padded[0][0])  # keys and values, two layers, each token
        one, other = (generate.continue_ids(model, [row], how)[0][0] for row in (second, short))
    assert even[0][0] == padded[0][0] and (even[1][0], padded[1][0]) == (one, other)


def test_what_a_models_own_settings_ask_for_is_not_done(model, tokenizer):
    before = generate.transformers(model, tokenizer, QUESTIONS, 12, 8)
    own = {"do_sample": True, "temperature": 9.0, "top_k": 5, "repetition_penalty": 3.0, "num_beams": 2}
    old = {name: getattr(model.generation_config, name) for name in own}
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    after = generate.transformers(model, tokenizer, QUESTIONS, 12, 8)
    for name, value in old.items():
        setattr(model.generation_config, name, value)
    assert [a["text"] for a in after] == [a["text"] for a in before]


def test_sampling_is_repeatable_and_leaves_the_streams_of_others_alone(model, tokenizer):
    state = torch.get_rng_state()
    runs = [generate.transformers(model, tokenizer, QUESTIONS, 24, 4, t, seed=s)
            for t, s in ((1.5, 1), (1.5, 1), (1.5, 2), (0.0, 1))]  # fmt: skip
    texts = [[a["text"] for a in run] for run in runs]
    assert texts[0] == texts[1] and len({tuple(each) for each in texts}) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_top_p_leaves_the_likeliest_token(model, tokenizer):
    drawn = generate.transformers(model, tokenizer, QUESTIONS, 12, 8, 1.0, top_p=1e-6)
    assert [a["text"] for a in drawn] == [a["text"] for a in generate.transformers(model, tokenizer, QUESTIONS, 12, 8)]


def test_the_mode_is_restored_also_after_an_error(model):
    model.train()
    with pytest.raises(KeyError), batching.evaluation(model):
        assert not model.training
        raise KeyError
    assert model.training
    model.eval()


def test_a_mixture_that_a_trainer_made_balance_its_router_still_decodes(tokenizer):
    """TRL sets the flag on the model itself, and a saved model would keep it."""
    small, how = packing.small(GptOssConfig(), "eager").eval(), generate._drawing(0.0, 1.0)
    how |= {"max_new_tokens": 5, "eos_token_id": [2]}
    found = []
    for small.config.output_router_logits in (False, True):
        with batching.evaluation(small):
            found.append([row[0] for row in generate.continue_ids(small, [[5, 6, 7], [8]], how)])
    assert found[0] == found[1] and small.config.output_router_logits


def test_left_pad_by_hand():
    ids, mask, positions = batching.left_pad([[5, 6, 7], [8]], "cpu")
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_stop_ids_name_all_ends_of_a_turn(model, tokenizer):
    assert generate.stop_ids(model, tokenizer) == {tokenizer.eos_token_id, tokenizer.pad_token_id}


def test_reasoning_opened_by_the_template_belongs_to_the_text(tokenizer):
    ids = tokenizer("hm</think>C", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    answer = generate.answer("q", "<|im_start|>assistant\n<think>\n", ids, {tokenizer.eos_token_id}, tokenizer)
    assert answer["text"] == "<think>\nhm</think>C" and answer["finish"] == "stop"


def test_server_answers_in_order_with_several_slots():
    def reply(body, _):
        question = body["messages"][0]["content"]
        return 200, {}, completion(f"echo {question}"), 0.2 if question == "slow" else 0.0

    with Endpoint(reply) as server:
        got = generate.server(server.url, prompts("slow", "b", "c", "d"), 50, slots=4)
    assert [a["text"] for a in got] == ["echo slow", "echo b", "echo c", "echo d"]
    assert {(a["tokens"], a["finish"]) for a in got} == {(7, "stop")}
    assert {(b["max_tokens"], b["temperature"], b["model"]) for b in server.bodies} == {(50, 0.0, "local")}


def test_a_server_is_told_how_tokens_are_drawn():
    with Endpoint(lambda body, n: (200, {}, completion("a"), 0)) as server:
        generate.server(server.url, prompts("a"), 9, temperature=0.6, top_p=0.95, seed=7, extra_body={"top_k": 0})
        generate.server(server.url, prompts("a"), 9, temperature=None)
    asked = [{key: body.get(key) for key in ("temperature", "top_p", "seed", "top_k")} for body in server.bodies]
    assert asked[0] == {"temperature": 0.6, "top_p": 0.95, "seed": 7, "top_k": 0}
    assert set(asked[1].values()) == {None}


def test_server_puts_split_reasoning_back():
    with Endpoint(lambda body, n: (200, {}, completion("Answer: C", reasoning_content="fever"), 0)) as server:
        assert generate.server(server.url, prompts("a"), 9)[0]["text"] == "<think>\nfever\n</think>\n\nAnswer: C"
    with Endpoint(lambda body, n: (200, {}, completion("", "length", reasoning_content="fev"), 0)) as server:
        got = generate.server(server.url, prompts("a"), 9)[0]
    assert (got["text"], got["finish"]) == ("<think>\nfev", "length")


BEGUN = 'data: {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": []}\n\n'


def test_transport_faults_are_retried():
    faults = [
        (429, {"Retry-After": "0"}, '{"error": {"message": "slow down"}}', 0),
        (500, {}, "oops", 0),
        (200, {}, '{"id": "x", "choi', 0),  # cut in the middle
        (200, {"Content-Type": "text/html"}, "<html>a proxy</html>", 0),
        (200, {}, '{"choices": []}', 0),
        (200, {"Content-Type": "text/event-stream"}, BEGUN, 0),  # no more, and no finish_reason
    ]
    with Endpoint(lambda body, n: faults[n - 1] if n <= len(faults) else (200, {}, completion("ok"), 0)) as server:
        got = generate.server(server.url, prompts("a"), 9, timeout_s=20)
    assert got[0]["text"] == "ok" and len(server.bodies) == len(faults) + 1


def test_an_answer_that_never_comes_is_an_error_within_its_deadline():
    for reply in ((503, {"Retry-After": "600"}, "{}", 0), (200, {}, completion("late"), 60)):
        with Endpoint(lambda body, n, reply=reply: reply) as server:
            (got,) = generate.server(server.url, prompts("a"), 9, timeout_s=0.5)
        assert (got["finish"], got["text"]) == ("error", "")  # and not "late"


def test_a_stream_that_ends_in_an_error_is_that_answers_error_and_not_the_stages():
    """llama-server streams so when it cannot read what a model wrote; asking again gives the same."""
    said = 'data: {"choices": [{"delta": {"content": "<|chan"}, "index": 0}]}\n\ndata: {"error": {"code": 500, '
    said += '"message": "The model produced output that does not match the expected peg-native format"}}\n\n'
    with Endpoint(lambda body, n: (200, {"Content-Type": "text/event-stream"}, said, 0)) as server:
        got = generate.server(server.url, prompts("a", "b"), 9)
        assert len(server.bodies) == 2
    assert [(answer["finish"], answer["text"]) for answer in got] == [("error", "")] * 2


def test_what_no_retry_mends_is_said_at_once():
    with Endpoint(lambda body, n: (401, {}, '{"error": {"message": "bad key"}}', 0)) as server:
        with pytest.raises(ValueError, match="bad key"):
            generate.server(server.url, prompts("a"), 9)
        assert len(server.bodies) == 1
    with pytest.raises(ConnectionError, match="no server at"):
        generate.server("http://127.0.0.1:9", prompts("a"), 9, timeout_s=0.3)


def test_answers_are_kept_as_they_come_and_a_second_run_asks_for_the_rest(tmp_path):
    file, asked = tmp_path / "cache" / "a.jsonl", prompts("a", "b", "c", "d")

    def broken(body, number):
        return (400, {}, '{"error": {"message": "gone"}}', 0) if number == 3 else (200, {}, completion("yes"), 0)

    with Endpoint(broken) as server:
        with pytest.raises(ValueError, match="gone"):
            generate.server(server.url, asked, 9, keep=file, identity="m")
    file.write_text(file.read_text() + '{"key": "cut in the mid')
    with Endpoint(lambda body, n: (200, {}, completion("later"), 0)) as server:
        got = generate.server(server.url, asked, 9, keep=file, identity="m")
        questions = [body["messages"][0]["content"] for body in server.bodies]
        kept = [a["text"] for a in got].count("yes")
        assert kept >= 2 and len(questions) == 4 - kept and "c" in questions
        assert generate.server(server.url, asked, 9, keep=file, identity="m") == got
        assert len(server.bodies) == 4 - kept
        generate.server(server.url, asked, 9, keep=file, identity="another model")
        assert len(server.bodies) == 8 - kept


def test_a_killed_generation_goes_on_with_the_same_answers(model, tokenizer, tmp_path):
    file = tmp_path / "answers.jsonl"

    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    whole = generate.transformers(model, tokenizer, QUESTIONS, 12, 2)
    with pytest.raises(KeyboardInterrupt):
        generate.transformers(model, tokenizer, QUESTIONS, 12, 2, keep=file, progress=stop)
    assert len(file.read_text().splitlines()) == 4
    asked = []
    again = generate.transformers(model, tokenizer, QUESTIONS, 12, 2, keep=file, progress=lambda *at: asked.append(at))
    assert asked == [(6, 8), (8, 8)] and [a["text"] for a in again] == [a["text"] for a in whole]
    other = random_model(tokenizer, seed=4)
    assert generate.transformers(other, tokenizer, QUESTIONS, 12, 8, keep=file) != again


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_line_that_a_kill_cut_short_is_dropped_by_every_rank(tmp_path, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    asked, path = prompts("one", "two"), tmp_path / "answers.jsonl"
    for name in ("q0", "q1"):
        Kept(path, asked, []).add({"id": name, "text": "x", "finish": "stop"})
        path.write_text(path.read_text() + '{"key": "')
    assert [answer["id"] for answer in Kept(path, asked, []).ordered(asked)] == ["q0", "q1"]


def test_a_damaged_answer_is_named_and_asked_again_and_no_other(tmp_path):
    path, asked = tmp_path / "kept.jsonl", [{"id": f"q{i}", "messages": []} for i in range(3)]
    for prompt in asked:
        Kept(path, asked, []).add({"id": prompt["id"], "text": "x é", "finish": "stop"})
    whole, kept = path.read_bytes(), Kept(path, asked, []).answers
    first = whole.index(b"\n")
    for place in range(first + 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.warns(UserWarning, match=f"{path} is damaged"):
            found = Kept(path, asked, [])
        lost = ["q0", "q1"] if place == first else ["q0"]  # without the end of a line two are one
        assert [prompt["id"] for prompt in found.missing(asked)] == lost
        assert found.answers == {name: kept[name] for name in found.answers}
        assert path.with_name("kept.jsonl.damaged").exists() and Kept(path, asked, []).answers == found.answers


def test_of_400_flipped_bits_of_kept_answers_none_is_silent_or_gives_another_answer(tmp_path):
    asked, draw = [{"id": f"q{i}", "messages": []} for i in range(20)], random.Random(7)
    whole, path = tmp_path / "whole.jsonl", tmp_path / "kept.jsonl"
    filled = Kept(whole, asked, [])
    for prompt in asked:
        filled.add({"id": prompt["id"], "text": "x é", "finish": "stop"})
    for _ in range(400):
        raw = bytearray(whole.read_bytes())
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        with warnings.catch_warnings(record=True) as named:
            warnings.simplefilter("always")
            found = Kept(path, asked, [])
        assert all(filled.answers[name] == answer for name, answer in found.answers.items())
        assert named or found.answers == filled.answers
        assert len(found.missing(asked)) <= 2  # a line end that is gone joins two
        with warnings.catch_warnings(record=True) as again:
            warnings.simplefilter("always")
            assert Kept(path, asked, []).answers == found.answers and not again


def test_where_memory_runs_out_fewer_are_answered_at_once_and_all_are_answered(model, tokenizer, monkeypatch, capsys):
    expected = [a["text"] for a in generate.transformers(model, tokenizer, QUESTIONS, 12, 8)]
    plain, sizes, told = model.generate, [], []

    def small(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", small)
    got = generate.transformers(model, tokenizer, QUESTIONS, 12, 8, progress=lambda *at: told.append(at))
    assert [a["text"] for a in got] == expected and [a["id"] for a in got] == [p["id"] for p in QUESTIONS]
    assert sizes == [8, 4, 2, 2, 2, 2] and told == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert "4 rows at once: 2 from here on" in capsys.readouterr().out


def test_where_memory_runs_out_on_one_row_the_error_stands(model, tokenizer, monkeypatch):
    def none(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "generate", none)
    with pytest.raises(torch.OutOfMemoryError):
        generate.transformers(model, tokenizer, QUESTIONS, 12, 8)


@pytest.mark.parametrize("window", [None, 24])
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(monkeypatch, window):
    """Worked examples before every question; with a window of attention that is narrower than them, too."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    if window:
        sliding = {"sliding_window": window, "layer_types": ["sliding_attention", "full_attention"]}
        config = Gemma3TextConfig(num_hidden_layers=2, num_key_value_heads=1, **sizes, **sliding)
    else:
        config = Qwen3Config(num_hidden_layers=2, num_key_value_heads=2, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    rng = random.Random(0)
    shown = [rng.randrange(10, 300) for _ in range(batching.SHARED + 10)]
    prompts = [shown + [rng.randrange(10, 300) for _ in range(length)] for length in (5, 31, 18)]
    assert batching.shared_cache(model, prompts).get_seq_length() == len(shown)
    read, forward = [], model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda input_ids, **kw: read.append(input_ids.numel())
                        or forward(input_ids=input_ids, **kw))  # fmt: skip
    how = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": [1]}
    found = []
    for least in (batching.SHARED, 10**6):
        read.clear()
        monkeypatch.setattr(batching, "SHARED", least)
        with batching.evaluation(model):
            sums = multiple_choice._option_sums(model, [(prompt, [[7, 8], [9]]) for prompt in prompts])
            answers = [ids for ids, *_ in generate.continue_ids(model, prompts, how)]
        found.append((sums, answers, sum(read)))
    (once, said, few), (each, expected, many) = found
    assert said == expected and once == [pytest.approx(row, abs=1e-4) for row in each] and few < 0.7 * many
