"""Whether several conversations may share one row: does each still see only itself, on this model and this device?

Packing saves all padding. It is exact only where attention stops at the borders of the conversations, and neither the
trainer nor the model says when it does not: so it is measured, on a small model of the same architecture.
"""

import copy

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.03}  # nats per token; conversations that see each other: above 0.1
LENGTHS = (11, 17, 7)  # tokens of the conversations that are packed
ONE_A_ROW = {"packing": False, "padding_free": False, "train_sampling_strategy": "group_by_length"}
WINDOW = 6  # of a model that has a sliding one: shorter than each conversation, so that it cuts inside of them
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "max_position_embeddings": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "moe_intermediate_size": 64, "shared_intermediate_size": 64, "n_group": 1, "topk_group": 1,  # DeepSeek, Granite
    "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 32, "v_head_dim": 16, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_d_state": 16,
}  # fmt: skip


def small(config, attn_implementation, seed=0, dtype=torch.float32):
    """A random model of `config`'s architecture, two layers of 64 features, with the given attention."""
    config = copy.deepcopy(config)
    shared = getattr(config, "num_key_value_heads", 0) != getattr(config, "num_attention_heads", 0)
    for name, value in (SMALL | ({} if shared else {"num_key_value_heads": SMALL["num_attention_heads"]})).items():
        if getattr(config, name, None):  # 0 or None: this one has no such part
            setattr(config, name, value)
    rotary = getattr(config, "rope_parameters", None) or {}
    for long in (rotary, *(part for part in rotary.values() if isinstance(part, dict))):
        pairs = int(SMALL["head_dim"] * long.get("partial_rotary_factor", 1)) // 2
        long.update({name: value[:pairs] for name, value in long.items() if isinstance(value, list)})  # longrope's
    if len(getattr(config, "layer_types", None) or (0, 0)) != 2:  # one layer of each kind, where there are two
        kinds = list(dict.fromkeys(config.layer_types))
        config.layer_types = [kinds[0], kinds[-1]]
    if getattr(config, "sliding_window", None):
        config.sliding_window = WINDOW
    config.quantization_config = None
    del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=attn_implementation, dtype=dtype, trust_remote_code=False
        )


def exact(config, attn_implementation, device="cpu", seed=0, dtype=None) -> dict:
    """The largest change of a token's loss by packing, in nats: {"difference", "limit", "exact", "architecture",
    "attention", "dtype"}.

    Three conversations in one row, told apart by position numbers that start again, as TRL's collator passes them,
    against each by itself. config: the model's, whose sizes are replaced by small ones. dtype: float32, and bfloat16
    for flash attention, whose kernels take no other. Where an architecture has no such small model, difference is None
    and "reason" says why: it is not packed.
    """
    dtype = dtype or (torch.bfloat16 if "flash" in attn_implementation else torch.float32)
    about = {"architecture": config.model_type, "attention": attn_implementation}
    about |= {"limit": LIMITS[dtype], "dtype": str(dtype).removeprefix("torch.")}
    try:
        difference = _difference(small(config, attn_implementation, seed, dtype).to(device).eval(), seed, device)
    except Exception as error:  # noqa: BLE001 - whatever an architecture asserts of its sizes
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return {"difference": None, "exact": False, "reason": reason, **about}
    return {"difference": difference, "exact": difference <= LIMITS[dtype], **about}


def first_exact(named, config, device="cpu"):
    """Of several attentions the first under which packing is exact on a GPU, else the last; a name is itself."""
    *faster, last = [named] if isinstance(named, str) else named
    return next((name for name in faster if device != "cpu" and exact(config, name, device)["exact"]), last)


def _difference(model, seed, device):
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, 64, (1, length), generator=generator).to(device) for length in LENGTHS]
    places = torch.cat([torch.arange(length) for length in LENGTHS]).unsqueeze(0).to(device)
    with torch.no_grad():
        packed = _losses(model, torch.cat(texts, 1), position_ids=places)
        alone = torch.cat([torch.cat([_losses(model, text), packed.new_zeros(1)]) for text in texts])[:-1]
    inside = torch.ones(sum(LENGTHS) - 1, dtype=torch.bool)
    for border in torch.cumsum(torch.tensor(LENGTHS), 0)[:-1]:
        inside[border - 1] = False  # the first token of the next conversation is nobody's to predict
    return float((packed - alone).abs()[inside.to(device)].max())


def _losses(model, ids, **inputs):
    logits = model(input_ids=ids, use_cache=False, **inputs).logits.float()
    return cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")


def fields(sft: dict, gate: dict) -> tuple[dict, str]:
    """(changes to the trl.SFTConfig fields, why, in a sentence); no change where packing is exact or not asked for."""
    if gate["difference"] is None:
        changed = f"could not be measured, as no small {gate['architecture']} can be built ({gate['reason']})"
        return ONE_A_ROW if sft.get("packing") else {}, f"Packing {changed}: rows hold one conversation each."
    measured = (
        f"With packing, a token's loss changes by up to {gate['difference']:.1e} nats ({gate['architecture']}, "
        f"{gate['attention']} attention, {gate['dtype']})"
    )
    if not sft.get("packing"):
        return {}, f"{measured}; the recipe does not pack."
    if gate["exact"]:
        return (
            {},
            f"{measured}, below the limit of {gate['limit']:.0e}: conversations share rows and do not see each other.",
        )
    return ONE_A_ROW, (
        f"{measured}, above the limit of {gate['limit']:.0e}: conversations would read each other. Rows hold one "
        "conversation instead, and batches take rows of similar length to save padding."
    )
