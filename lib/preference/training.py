"""TRL's trainers for preferences, on the tokens that chapter 3 trained on, and the leash that ends a run.

TRL would render and tokenize the rows itself: with another end of turn, or with a second beginning-of-sequence token.
Here the rows bring token ids, and prompts are tokenized as they stand.
"""

import math

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
)

from lib.export import gguf
from lib.model import adapter, loading, saving
from lib.model.head import HeadTrainer
from lib.pipeline import ranks
from lib.qat import grids, rounding

CONFIGS = {"sft": SFTConfig, "best_of_k": SFTConfig, "dpo": DPOConfig, "rloo": RLOOConfig, "grpo": GRPOConfig}
OURS = ("method", "pairs", "reward", "scheme", "samples")  # fields of an arm that are no field of its trainer
SEEN = {"logging_nan_inf_filter": False}  # else transformers logs earlier losses' mean for a NaN
UNLEASHED = 1e-30  # a beta of 0 as TRL gets it: it then logs the KL, and no penalty is left of it in float32


class _Prepared:
    """Rows hold token ids already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


class PairTrainer(_Prepared, DPOTrainer):
    """DPO on rows {"prompt_ids", "chosen_ids", "rejected_ids"}."""

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Of a checkpoint with a subfolder, the reference's, transformers reads that alone and not what was trained."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        model = self.model if model is None else model
        if "ref" in getattr(model, "peft_config", ()):
            model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            model.set_adapter("default")


class ScoreTrainer(_Prepared, RewardTrainer):
    """The reward model on rows {"chosen_ids", "rejected_ids"}, whole conversations."""


class _Rendered:
    """Prompts are rendered by lib.chat, beginning-of-sequence token and all."""

    def _tokenize_prompts(self, prompts):
        return self.processing_class(prompts, add_special_tokens=False)["input_ids"], None, {}


class LeaveOneOutTrainer(_Rendered, RLOOTrainer):
    """RLOO on rows {"prompt", "id"}."""


class GroupTrainer(_Rendered, GRPOTrainer):
    """GRPO on rows {"prompt", "id"}."""


TRAINERS = {"sft": HeadTrainer, "best_of_k": HeadTrainer, "dpo": PairTrainer, "rloo": LeaveOneOutTrainer,
            "grpo": GroupTrainer}  # fmt: skip


class Leash(TrainerCallback):
    """Ends a run whose loss or reward is not finite, with ValueError, or whose KL passes a limit.

    limit: nats a token from the model that training began at, as TRL logs it for what draws samples; None holds
    nothing. What is logged was measured before the step's update, so that the weights kept are those that the last log
    at or below the limit began with; they are put back at the end of a run that passed it. `passed` is the step, None
    before.
    """

    def __init__(self, limit=None):
        self.limit, self.passed, self._good, self._began = limit, None, None, None

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.limit is not None and self._began is None:  # the first step since the last log
            self._began = [p.detach().to("cpu", copy=True) for p in _trained(model)]
            self._good = self._good or self._began

    def on_log(self, args, state, control, logs=None, **kwargs):
        rewards = {name: value for name, value in logs.items() if name.startswith("reward") and name.endswith("mean")}
        for name, value in {"loss": logs.get("loss", 0.0), **rewards}.items():
            if value is not None and not math.isfinite(value):  # None: no answer of these steps has a known truth
                raise ValueError(
                    f"{name} is {value} at step {state.global_step}: lower preference's learning_rate, or mend the "
                    "reward; the last checkpoint before it stands"
                )
        if self.limit is None or logs.get("kl") is None:
            return
        if logs["kl"] > self.limit:
            self.passed = state.global_step
            control.should_training_stop = True
        else:
            self._good, self._began = self._began, None

    @torch.no_grad()
    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.passed is not None:
            for parameter, kept in zip(_trained(model), self._good, strict=True):
                parameter.copy_(kept)
            print(f"{self.limit} nats a token were passed at step {self.passed}: the weights before it are put back.")


def _trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def arguments(cfg, stage, arm, name, seed, **more):
    """The Config of an arm's trainer: the fields that the recipe gives, and those that follow from device and run."""
    config = CONFIGS[arm["method"]]
    device = loading.device_fields(cfg, stage, f"checkpoints/{name}") | {"seed": seed, "data_seed": seed} | SEEN
    device |= {"router_aux_loss_coef": cfg.sft.get("router_aux_loss_coef", 0.0)}  # TRL's default adds to every loss
    known = set(config.__dataclass_fields__) - (set() if config is SFTConfig else {"loss_type"})
    fields = {key: value for key, value in (device | more).items() if key in known and key not in arm}
    drawing = arm["method"] in ("rloo", "grpo")
    if drawing:
        fields |= {"max_completion_length": cfg.chat["max_new_tokens"], "top_k": 0}
    made = config(**fields | {key: value for key, value in arm.items() if key not in OURS})
    if drawing and made.beta == 0:
        made.beta = UNLEASHED
    if ranks.world() > 1 and getattr(made, "precompute_ref_log_probs", False):  # TRL's file is one process's own
        made.precompute_ref_log_probs = False
        print(f"{name}: with several ranks the reference is computed in every step: precompute_ref_log_probs is off")
    return made


def alone(model):
    """The model with the trained adapter alone: the copy that TRL keeps as reference is taken off."""
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    model.set_adapter("default")
    return model


@ranks.led  # with several GPUs one of them writes
def write(model, tokenizer, stage, name):
    """Write an arm's adapter into adapter_<name> and its merged weights into cache/<name>.

    model: consumed, as by saving.merge. Returns the fingerprints of the weights it computed with, {} without a grid.
    """
    hashes = rounding.fingerprints(alone(model)) if rounding.sites(model) else {}
    rounding.strip(alone(model))
    saving.save_adapter(model, stage.dir / f"adapter_{name}")
    saving.merge(model, tokenizer, stage.dir / "cache" / name)
    return hashes


def refuse_other(file, hashes):
    """Raise ValueError unless a GGUF file holds, tensor by tensor, the weights of `hashes` (rounding.fingerprints)."""
    served = {tensor: grids.sha256(w.copy()) for tensor, w in gguf.dequantize(file)} if hashes else {}
    wrong = [tensor for tensor, mark in hashes.items() if served.get(tensor) != mark]
    if wrong:
        named = f"{len(wrong)} of {len(hashes)} tensors of {file.name}"
        raise ValueError(f"{named} are not those that were trained: {wrong[:3]}")


def log_probabilities(model, batch, adapter="default"):
    """Log-probability of every completion of a DPO batch, (rows,), in nats, under an adapter of the model.

    batch: {"input_ids", "attention_mask", "completion_mask"} of (rows, seq), chosen rows first, as TRL collates it.
    """
    model.set_adapter(adapter)
    try:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    finally:
        model.set_adapter("default")
    found = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (found * batch["completion_mask"][:, 1:]).sum(-1)


def reward_model(cfg, folder, tokenizer):
    """The fine-tuned model of `folder` with a fresh head of one number in place of its vocabulary.

    The head begins at zero: at first no answer is better than another. Head and an adapter of the recipe's lora learn,
    in float32; the rest stays as it is, in the recipe's precision. Without lora all of it learns, in float32.
    """
    dtype = getattr(torch, loading.precision(cfg)) if cfg.lora else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=dtype, **loading.OURS)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    torch.nn.init.zeros_(model.score.weight)
    model.score.register_forward_pre_hook(lambda head, given: (given[0].to(head.weight.dtype),))
    if cfg.lora:
        torch.manual_seed(cfg.run["seed"])
        own = LoraConfig(**cfg.lora | {"task_type": "SEQ_CLS", "modules_to_save": ["score"]})
        model = get_peft_model(model, own)
    return model.to(loading.device())


def score_trainer(cfg, stage, model, rows, tokenizer):
    """TRL's trainer of the reward model on rows {"chosen_ids", "rejected_ids"}, with the recipe's preference.reward."""
    known = set(RewardConfig.__dataclass_fields__) - {"loss_type"}
    device = {k: v for k, v in loading.device_fields(cfg, stage, "checkpoints/reward").items() if k in known}
    whole = {} if cfg.lora else {"bf16": False, "fp16": False}
    fields = {"save_strategy": "no", "report_to": "none"} | SEEN | device | whole
    arguments = RewardConfig(**fields | cfg.preference["reward"])
    with adapter.in_float32(model):
        trainer = ScoreTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[Leash()])
    trainer.remove_callback(PrinterCallback)
    return trainer
