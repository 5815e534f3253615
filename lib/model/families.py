"""What is a model family's own: its classes, control tokens and chat template, and the config of a tiny model of it."""

from dataclasses import dataclass, field

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# of a twin's spec; every other key is a field of the architecture's config
TRAINING_KEYS = ("architecture", "vocab_size", "block_size", "batch_size", "steps", "learning_rate")


@dataclass(frozen=True)
class Family:
    """What is a family's own.

    tokenizer: the class that has the family's pre-tokenizer, or the name of its expression in PRE_TOKENIZERS; one of
    SENTENCEPIECE is trained by that library. control: added tokens in the published order of ids, which follow the
    vocabulary; the ones named in `visible` are not special, i.e. decoding keeps them. padding: a token that ends no
    text, or None where the family has none to pad with and lib/model/padding.py chooses. template: the name of a chat
    template that TRL ships, or a template's text, or None. fields: of the config, where they differ from both the
    class's defaults and a tiny model's.
    """

    tokenizer: type | str
    config: type
    model: type
    control: tuple
    end_of_text: str
    end_of_turn: str
    padding: str | None
    template: str | None
    begin: str | None = None
    visible: tuple = ()
    fields: dict = field(default_factory=dict)


QWEN3_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> "
    "<|box_start|> <|box_end|> <|quad_start|> <|quad_end|> "
    "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
)
QWEN3_VISIBLE = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
)
LLAMA3_CONTROL = (
    "<|begin_of_text|> <|end_of_text|> <|finetune_right_pad_id|> <|start_header_id|> <|end_header_id|> <|eom_id|> "
    "<|eot_id|> <|python_tag|>"
)
GPTOSS_CONTROL = (
    "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>"
)
LLAMA2_CHAT = (  # one exchange in Llama-2's chat format
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA_CHAT = (  # one exchange in Gemma's chat format
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) "
    "+ '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SENTENCEPIECE = (LlamaTokenizer, GemmaTokenizer)
FAMILIES = {
    "qwen3": Family(
        tokenizer=Qwen2Tokenizer,  # Qwen3 uses Qwen2's, with four more control tokens
        config=Qwen3Config,
        model=Qwen3ForCausalLM,
        control=tuple(f"{QWEN3_SPECIAL} {QWEN3_VISIBLE}".split()),
        visible=tuple(QWEN3_VISIBLE.split()),
        end_of_text="<|endoftext|>",
        end_of_turn="<|im_end|>",
        padding="<|endoftext|>",
        template="qwen3.jinja",
    ),
    "llama": Family(  # Llama 3
        tokenizer="llama-bpe",
        config=LlamaConfig,
        model=LlamaForCausalLM,
        control=tuple(LLAMA3_CONTROL.split()),
        begin="<|begin_of_text|>",
        end_of_text="<|end_of_text|>",
        end_of_turn="<|eot_id|>",
        padding="<|finetune_right_pad_id|>",
        template="llama3.jinja",
    ),
    "llama2": Family(
        tokenizer=LlamaTokenizer,
        config=LlamaConfig,
        model=LlamaForCausalLM,
        control=(),  # <unk>, <s> and </s> are SentencePiece's own first three
        begin="<s>",
        end_of_text="</s>",
        end_of_turn="</s>",
        padding=None,
        template=LLAMA2_CHAT,
    ),
    "gemma3": Family(
        tokenizer=GemmaTokenizer,
        config=Gemma3TextConfig,
        model=Gemma3ForCausalLM,
        control=("<start_of_turn>", "<end_of_turn>"),
        begin="<bos>",
        end_of_text="<eos>",
        end_of_turn="<end_of_turn>",
        padding="<pad>",
        template=GEMMA_CHAT,
    ),
    "gpt2": Family(
        tokenizer=GPT2Tokenizer,
        config=GPT2Config,
        model=GPT2LMHeadModel,
        control=("<|endoftext|>",),
        begin="<|endoftext|>",
        end_of_text="<|endoftext|>",
        end_of_turn="<|endoftext|>",
        padding=None,
        template=None,
        fields={"n_ctx": 2048},  # llama.cpp's converter reads this name
    ),
    "gptoss": Family(
        tokenizer="gpt-4o",
        config=GptOssConfig,
        model=GptOssForCausalLM,
        control=tuple(GPTOSS_CONTROL.split()),
        begin="<|startoftext|>",
        end_of_text="<|endoftext|>",
        end_of_turn="<|return|>",
        padding="<|endoftext|>",
        template="gptoss.jinja",
        fields={"tie_word_embeddings": False},  # its file has no form for tied ones
    ),
}


def config(spec, tokenizer=None):
    """The transformers config of a twin.

    spec: the recipe's model.twin. tokenizer: the trained one, which may have fewer tokens than were asked for, and
    names begin, end and padding; without it the sizes alone are right.
    """
    family = FAMILIES[spec["architecture"]]
    own = {"vocab_size": len(tokenizer) if tokenizer else spec["vocab_size"], "tie_word_embeddings": True}
    own |= {"max_position_embeddings": max(2048, spec["block_size"]), **family.fields}
    for kind in ("bos", "eos", "pad") if tokenizer else ():
        own[f"{kind}_token_id"] = getattr(tokenizer, f"{kind}_token_id")
    shape = {key: value for key, value in spec.items() if key not in TRAINING_KEYS}
    return family.config(**own | shape)
