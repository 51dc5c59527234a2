"""From settings to the question that a plan answers, and from a plan to the settings that it recommends."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.policies import SceneMemory
from cache.spec import Modality
from errors import BudgetError, ConfigError
from models.backbone import random_transformer
from models.shapes import ChunkGeometry
from settings.reading import laid_over, plain_file
from settings.tree import POLICIES, RANDOM, ModelSettings, Settings
from sizing import (
    KNOWN,
    Demand,
    Keeping,
    Machine,
    Measured,
    Model,
    Plan,
    Question,
    known_model,
    parse_measured,
    what_ifs,
)
from sizing.figures import Figure, assumed, measured
from sizing.machines import CPU
from sizing.pages import Format
from sizing.plan import recommended_prefetch_bytes, recommended_slot_bytes, store_bytes
from sizing.question import TEXT_ENCODER
from sizing.stores import disk_bytes
from sizing.transformer import Transformer

TRAINED_S = 20  # default of the family's configurations
LEAST_DISK = 1 << 30  # of a restore store, whatever a plan says
TEXT_BUDGET = 4 << 30  # default of models.backbone.Backbone
ELEMENTS = {"float32": 4, "bfloat16": 2, "float16": 2}
PARTS = {"vae": "frame decoder", "audio_vae": "sound decoder", "vocoder": "vocoder", "connectors": "text connectors",
         "text_encoder": TEXT_ENCODER}  # fmt: skip


def question_of(
    settings: Settings,
    machine: Machine,
    demand: Demand | None = None,
    pages: Format | None = None,
    files: Sequence[Measured] = (),
    shipped: Settings | None = None,
) -> Question:
    """What a plan for these settings is asked.

    Args:
        pages: how the pool is to hold keys and values; by default as ``settings`` say.
        files: measurements, later ones before earlier ones.
        shipped: settings of the same model as it ships, for measurements that do not say what was run.

    Raises:
        ConfigError: the model is not known and not here, a measurement is of something else, or types of attention have
            pages of their own.
        BudgetError: the keep-set does not fit the trained range of positions, or its bytes.
    """
    asked = Question(_model(settings), machine, _keeping(settings, pages), demand or Demand())
    settings.budgets.check(asked.model.specs(), asked.keeping.position_slots)
    reference = asked if shipped is None else replace(asked, model=_model(shipped), keeping=_keeping(shipped, pages))
    for file in files:
        asked = file.applied(asked, reference)
    return asked


def read_measured(path: Path) -> Measured:
    """A file of measurements. Raises ``ConfigError``."""
    return parse_measured(plain_file(path), str(path))


def recommended(found: Plan) -> dict[str, Any]:
    """The settings by which a service admits what was planned, as a settings file holds them.

    Raises:
        ConfigError: not one session fits.
    """
    question = found.question
    if not found.sessions:
        moved = [w for w in what_ifs(question) if w.built and w.plan.sessions]
        way = f"; what would do: {moved[0].change} ({moved[0].how})" if moved else ""
        raise ConfigError(f"not one session fits: {found.binding.name} is reached first{way}")
    records, away = store_bytes(found)
    tiers: dict[str, Any] = {}
    if question.keeping.tiers.disk:
        needed = disk_bytes(question, found.needs, found.sessions * question.demand.generators).value
        tiers = {"disk_bytes": max(LEAST_DISK, int(needed / (1 - question.demand.spare)))}
    on_cpu = question.machine.name == CPU
    return {
        "model": {"source": question.model.name, "device": "cpu" if on_cpu else "cuda"},
        "engine": {
            "sessions": found.sessions,
            "pages": question.keeping.pages,
            "restore": {"staging_bytes": recommended_prefetch_bytes(question, found.needs)},
        },
        "service": {
            "gpus": 0.0 if on_cpu else 1.0,
            "host_bytes": records,
            "vault_bytes": away,
            "staging": {"slot_bytes": recommended_slot_bytes(question)},
            **({"restore": tiers} if tiers else {}),
        },
    }


def written(found: Plan, config: Path | None, over: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` as it stands, with what the command line said and what the plan recommends laid over it."""
    base = {} if config is None else plain_file(config) or {}
    plain: dict[str, Any] = laid_over(laid_over(base, over), recommended(found))
    return plain


def _keeping(settings: Settings, pages: Format | None) -> Keeping:
    engine, service = settings.engine, settings.service
    if engine.pages_of:
        raise ConfigError("engine.pages_of is given; expected engine.pages alone: a plan counts one format of pages")
    first = engine.first_schedule or engine.schedule
    return Keeping(
        budgets=settings.budgets,
        scenes=engine.cache.scenes,
        remembers=POLICIES[settings.policy] is SceneMemory,  # no other asks for what was evicted
        moves=engine.cache.positions.move == "relocate",
        passes=len(engine.schedule.sigmas),
        first_passes=len(first.sigmas),
        batch=service.pace.batch,
        durability=service.durability,
        tiers=service.restore,
        pages=pages or engine.pages,
        restore_share=service.restore_share,
        text_bytes=TEXT_BUDGET,
        slots=service.staging.slots,
        slot_bytes=service.staging.slot_bytes,
        prefetch_bytes=engine.restore.staging_bytes,
        leaving_bytes=engine.restore.leaving_bytes,
        position_slots=engine.cache.positions.slots,
    )


def _model(settings: Settings) -> Model:
    source, shape = settings.model, settings.geometry
    config, others = _config(source)
    geometry = ChunkGeometry.of_model(config, shape.frames, shape.height, shape.width, shape.fps)
    trained = min(config.get("pos_embed_max_pos", TRAINED_S), config.get("audio_pos_embed_max_pos", TRAINED_S))
    slots, wanted = geometry.position_slots(trained), settings.engine.cache.positions.slots
    if wanted > slots:
        raise BudgetError(
            f"engine.cache.positions.slots is {wanted} but {trained} s of trained range hold {slots} chunks of "
            f"{float(geometry.seconds):.3f} s; expected at most {slots}"
        )
    dtype = source.dtype or ("float32" if source.source == RANDOM else "bfloat16")  # of load_transformer
    return Model(
        source.source,
        Transformer.of(config, source.source),
        dtype,
        ELEMENTS[dtype],
        {m: geometry.tokens(m) for m in Modality},
        float(geometry.seconds),
        others,
    )


def _config(source: ModelSettings) -> tuple[Mapping[str, Any], Mapping[str, Figure]]:
    """Configuration of the transformer, and what else a generator has on its device; no weights are read."""
    known = known_model(source.source)
    if known is not None:
        return known.config, known.others
    if source.source == RANDOM:
        return dict(random_transformer(source.seed).config), {}
    folder = Path(source.config or source.path)
    for file in (folder / "transformer" / "config.json", folder / "config.json"):
        if file.is_file():
            return _read(file), {PARTS[part]: size for part in PARTS if (size := _weights(folder / part)) is not None}
    raise ConfigError(
        f"model is {source.source!r}, which is neither known nor a folder with a transformer/config.json; expected "
        f"toy, random, {', '.join(KNOWN)}, or such a folder"
    )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; expected a transformer's config.json") from None
    missing = {"vae_scale_factors", "audio_scale_factor"} - set(found if isinstance(found, dict) else ())
    if missing:
        raise ConfigError(f"{file} has no {' and no '.join(sorted(missing))}; expected a transformer's config.json")
    return dict(found)


def _weights(folder: Path) -> Figure | None:
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return measured(sum(sizes), f"files in {folder.name}") if sizes else None


def overridden(machine: Machine, values: Mapping[str, float | None]) -> Machine:
    """``machine`` with fields that a person says; they are theirs, and so assumed."""
    given = {field: assumed(value, f"{field}, as given,") for field, value in values.items() if value is not None}
    return replace(machine, **given)  # type: ignore[arg-type]
