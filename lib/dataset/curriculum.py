"""The order in which a model meets its training sources: data.stages of the recipe."""

import hashlib
from typing import Annotated

from pydantic import Field

from lib.dataset.sources import by_name
from lib.pipeline.forms import Strict, Text, checked
from lib.pipeline.schema import nearest

EVERYTHING = "all"


class Stage(Strict):
    name: Text
    weights: dict[str, Annotated[float, Field(gt=0, le=100)]] | None = None


def stages(spec, sources):
    """[(name, {source: weight})] in training order; one stage of everything, once, where the recipe lists none.

    spec: data.stages, a list of {"name", "weights"?}. A weight says how often a source's rows are used in one epoch of
        the stage: 1 is once, 0.25 a quarter of them, 2 twice. A stage without weights takes the source of its name.
    sources: those that have rows, by name or by the label of their records, which is then the key of the result.
    Raises ValueError for an unknown source, a weight that is no positive number, or a name that comes twice.
    """
    if not spec:
        return [(EVERYTHING, dict.fromkeys(sorted(sources), 1.0))]
    found, sources = [], by_name(sources)
    for stage in checked(spec, list[Stage], "data.stages"):
        weights = stage.weights or {stage.name: 1.0}
        if unknown := sorted(set(weights) - set(sources)):
            near = nearest(unknown[0], sorted(sources))
            raise ValueError(f"data.stages: no source {unknown[0]!r} in stage {stage.name!r}{near}")
        if stage.name in dict(found):
            raise ValueError(f"data.stages names {stage.name!r} twice: give each stage its own name")
        found.append((stage.name, {sources[source]: float(weight) for source, weight in weights.items()}))
    return found


def mix(ids, sources, weights, seed):
    """Row numbers of one epoch of a stage, in an order drawn with the seed.

    ids, sources: of all training rows, in order. weights: {source: weight} from `stages`. The draw hashes seed and id,
    so a row added to a source moves almost no other row in or out.
    """
    places = {}
    for number, source in enumerate(sources):
        if source in weights:
            places.setdefault(source, []).append(number)
    chosen = []
    for source, numbers in places.items():
        whole, part = divmod(weights[source], 1)
        chosen += numbers * int(whole)
        if part:
            chosen += sorted(numbers, key=lambda number: _draw(seed, ids[number], 0))[: round(part * len(numbers))]
    seen, keyed = {}, []
    for number in sorted(chosen):
        seen[number] = seen.get(number, 0) + 1
        keyed.append((_draw(seed, ids[number], seen[number]), number))
    return [number for _, number in sorted(keyed)]


def _draw(seed, key, copy):
    return hashlib.blake2b(f"{seed}:{copy}:{key}".encode(), digest_size=8).digest()
