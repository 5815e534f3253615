"""A Qwen3-shaped model of a few thousand parameters and its tokenizer; shared by several test files."""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from lib.pipeline import recipe

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer():
    """One token per byte and the marks of the Qwen family."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(special + letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=TEMPLATE,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )


def tiny_config(**over):
    """A Qwen3 config of 32 dimensions and two layers, with the fields of `over`."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
    return Qwen3Config(**shape | over)


def over_base(folder, more=None, **model):
    """The tiny recipe over a base in a folder. model: fields of its section; more: further overrides."""
    fields = {"base": str(folder), "twin": None, "dtype": "auto", **model}
    return recipe.load("tiny", {"model": fields, "qat": None, "judge.candidates": ["base", "sft"]} | (more or {}))


def tiny_trainer(folder, lengths, lora=None, callbacks=(), kind=SFTTrainer, **fields):
    """TRL's trainer of four steps on a CPU: an untrained model, with an adapter for LoraConfig fields `lora`.

    lengths: of its rows, each of one repeated token. kind: a subclass of SFTTrainer. fields: of SFTConfig.
    """
    tokenizer, model = byte_tokenizer(), random_model(byte_tokenizer(), 1)
    rows = Dataset.from_list([{"input_ids": [5 + n] * n, "labels": [5 + n] * n} for n in lengths])
    if lora is not None:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **lora))
    given = {"learning_rate": 1e-2, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return cpu_trainer(model, tokenizer, rows, folder, kind, list(callbacks), **given | fields)


def cpu_trainer(model, tokenizer, rows, folder, kind=SFTTrainer, callbacks=None, teacher=None, **fields):
    """TRL's trainer on a CPU, silent, without checkpoints; four steps unless `fields`, of SFTConfig, say otherwise."""
    given = {"use_cpu": True, "bf16": False, "max_steps": 4, "per_device_train_batch_size": 2}
    given |= {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "report_to": "none"}
    more = {"eval_dataset": fields.pop("eval_dataset", None)} | ({"teacher": teacher} if teacher is not None else {})
    args = SFTConfig(output_dir=str(folder), **given | fields)
    return kind(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks, **more)


def random_model(tokenizer, seed):
    """An untrained Qwen3-shaped model of 32 dimensions in float32, on one thread."""
    torch.set_num_threads(1)  # more are slower at this size
    torch.manual_seed(seed)
    config = tiny_config(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).float().eval()


def ids_of(tokenizer, prompt):
    text = tokenizer.apply_chat_template(prompt["messages"], tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def alone(model, ids, new, stops=()):
    """The slow second path: one prompt, the whole sequence recomputed for every token, no cache, no padding."""
    out = []
    with torch.inference_mode():
        while len(out) < new and (not out or out[-1] not in stops):
            out.append(int(model(torch.tensor([ids + out])).logits[0, -1].argmax()))
    return out
