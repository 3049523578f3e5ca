"""What fits: the student's size before it is fetched, and the precision in which a run holds its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ..errors import BadInput
from ..policies import catalog
from ..policies.address import is_remote
from ..policies.precision import Precision
from ..trainers.estimate import Shape, shape_of
from ..types import Prompt
from .engines import has_card
from .memory import free_memory, largest_job, reward_models
from .recipe import Recipe
from .roles import REFERENCES, STUDENT

_SMOL = Shape(
    parameters=134_515_008,
    layers=30,
    width=576,
    inner=1536,
    vocabulary=49_152,
    linear=10_176,
    keys=192,
)
"""SmolLM2-135M, before it is fetched."""
_NOTHING = Shape(0, 0, 0, 0, 0, 0)


def settled(recipe: Recipe, prompts: Sequence[Prompt], cache: Path) -> Precision:
    """Return the precision in which a run holds the student, and every other model that is loaded here.

    What is asked for; else bfloat16 on a card and float32 elsewhere, or four bits where a trainer wants them, or
    where `weights: auto` finds that nothing else fits.

    Raises:
        BadInput: another precision than a plugin's own is asked for.
    """
    asked = recipe.precision
    if catalog.is_plugin(recipe.student):
        if asked not in ("auto", "float32"):
            raise BadInput.at(
                "precision", f"{recipe.student} is a plugin and loads its own weights"
            )
        return "float32"
    if asked != "auto":
        return asked
    ways = {trainer.weights for trainer in recipe.trainers()}
    if "qlora" in ways:
        return "nf4"
    usual: Precision = "bfloat16" if has_card() else "float32"
    return "nf4" if ways == {"auto"} and _too_big(recipe, prompts, cache, usual) else usual


def student_shape(recipe: Recipe, cache: Path) -> tuple[Shape, str]:
    """Return the student's size and how it is known, without loading it; all zero where it is not."""
    return shape_known(recipe.student, recipe.base, cache)


def shape_known(spec: str, base: Path, cache: Path) -> tuple[Shape, str]:
    """Return a model's size and how it is known, without loading it; all zero where it is not.

    Args:
        spec: a catalog name, a hub id, a folder, or a plugin.
        base: folder that a path is relative to.
        cache: where models are kept.
    """
    if catalog.is_plugin(spec):
        return _NOTHING, "not known: it is a plugin"
    for above in (base, Path()):
        if (above / spec / "config.json").is_file():
            return shape_of(above / spec), "its folder"
    bundled = Path(str(resources.files("redistill.policies"))) / "weights" / spec
    if (bundled / "config.json").is_file():
        return shape_of(bundled), "it comes with the package"
    label = spec.partition("@")[0].replace("/", "--")
    for config in sorted((cache / "models").glob(f"{label}-*/*/config.json")):
        if not config.parent.name.startswith("."):
            return shape_of(config.parent), "it is in the cache"
    if spec == "smollm2-135m":
        return _SMOL, "the catalog; it will be fetched first (93 MB)"
    return _NOTHING, "not known: it is not fetched yet"


def shapes(recipe: Recipe, cache: Path, precision: Precision) -> dict[str, Shape]:
    """Return the size of each model that is loaded here, by what names it, as the run holds it."""
    bound = {role.policy for role in recipe.roles.values()} - {STUDENT, REFERENCES}
    held: dict[str, Precision] = {
        recipe.student: precision,
        **{spec: precision for spec in bound if not is_remote(spec)},
        **{judge.model: "float32" for judge in reward_models(recipe)},
    }
    return {s: held_as(shape_known(s, recipe.base, cache)[0], p) for s, p in held.items()}


def held_as(shape: Shape, precision: Precision) -> Shape:
    """Return the shape of the same model in another precision."""
    return dataclasses.replace(shape, precision=precision)


def _too_big(recipe: Recipe, prompts: Sequence[Prompt], cache: Path, usual: Precision) -> bool:
    """Tell whether a job takes more than is free, however it is trained, until the base is in four bits."""
    known, free = shapes(recipe, cache, usual), free_memory()
    train = [prompt for prompt in prompts if prompt.split == "train"]
    job = largest_job(recipe, train, known, free)
    return known[recipe.student].parameters > 0 and job is not None and job.total > free
