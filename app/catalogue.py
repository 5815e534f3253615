"""Which files of a finished run are served, under which names, with which adapters."""

from dataclasses import dataclass, field
from pathlib import Path

from lib.pipeline import recipe, records
from lib.pipeline.files import outputs_dir


@dataclass(frozen=True)
class Model:
    """One GGUF file and how it is asked.

    name: as requests name it. form: chat.format of the recipe. context: tokens a slot. drawn: sampling where a request
    says nothing. adapters: {name: LoRA file}, for a base only.
    """

    name: str
    path: Path | None
    form: str
    context: int
    max_tokens: int
    threads: int
    drawn: dict
    adapters: dict = field(default_factory=dict)


def asked(settings):
    """The models of the run that RECIPE and SET of the environment name."""
    return models(recipe.chosen(recipe.parser("serve").parse_args([])), settings)


def models(cfg, settings):
    """The models that `settings` asks for, the first being the default.

    cfg: the run's recipe. Raises ValueError naming the missing stage, or the files that there are.
    """
    common = {
        "form": cfg.chat["format"],
        "context": settings.context or 2 * (cfg.sft or {"max_length": 2048})["max_length"],
        "max_tokens": cfg.chat["max_new_tokens"],
        "threads": settings.threads or cfg.run["threads"],
        "drawn": {name: cfg.chat[name] for name in ("temperature", "top_p")},
    }
    if settings.backend_url:
        return [Model(settings.model.split()[0] if settings.model else cfg.run_name, None, **common)]
    files = served_files(cfg)
    chosen = [pick(name, files) for name in settings.model.split()] or [best(cfg, files)]
    adapters = {p.stem.removesuffix("-adapter"): p for p in files.values() if p.stem.endswith("-adapter")}
    return [
        Model(f"{cfg.run_name}/{stem}", files[stem], **common, adapters=adapters if stem.startswith("base-") else {})
        for stem in dict.fromkeys(chosen)
    ]


def served_files(cfg):
    """{stem: path} of every GGUF file that the run's finished stages wrote, adapters included.

    Raises ValueError for a stage that has not finished, a record that was edited, and a file that is missing.
    """
    folder = outputs_dir() / cfg.run_name
    if not (folder / "05_export" / "stage.json").exists():
        raise ValueError(
            f"there is no finished run of {cfg.run_name} in {folder.parent.name}/: make 05_export {cfg.options}"
        )
    found = {}
    for record in sorted(folder.glob("*/stage.json")):
        names = [name for name in records.read(record)["outputs"] if name.endswith(".gguf")]
        found |= {Path(name).stem: record.parent / name for name in names}
    if lost := [path for path in found.values() if not path.exists()]:
        stage = lost[0].relative_to(folder).parts[0]
        raise ValueError(f"{lost[0].name} of {stage} is missing: make {stage} {cfg.options}")
    return found


def pick(name, files):
    """The stem of the file that a name means: its own, or sft-<name>, or the only one that begins or ends so."""
    models = [stem for stem in files if not stem.endswith("-adapter")]
    ends = [stem for stem in models if stem.endswith(f"-{name}") or stem.startswith(f"{name}-")]
    for stem in (name, f"sft-{name}", *(ends if len(ends) == 1 else [])):
        if stem in models:
            return stem
    raise ValueError(f"no file {name!r} in this run: MODEL may be {', '.join(sorted(models))}")


def best(cfg, files):
    """The file that the recipe aims at: the one trained on its grid where there is one, else the model card's."""
    kinds = cfg.export["quantizations"]
    trained = [stem for stem in files if stem.startswith("qat-") and stem != f"qat-{cfg.export['outtype']}"]
    if cfg.qat and trained:
        return sorted(trained)[0]
    return f"sft-{'q4_k_m' if 'q4_k_m' in kinds else kinds[-1]}"
