"""A merge of diffusion LoRAs with its check and recipe, for the node, the command line and the
library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..adapters import check_adapters, check_result
from ..config import MergeConfig
from ..devices import with_smaller_calls
from ..engines.problem import Watch
from ..errors import ConfigError, plain
from ..merging import MergeResult, check_ranks
from ..progress import StageProgress, nobody
from ..report.records import Note
from ..rivals.registry import check_used
from ..settings import called
from .calibration import Calibration
from .changes import Changes
from .cost import STEPS_OF_A_PICTURE, Cost, cost_of
from .held_out import CheckPlan, HeldOutCheck, make_check_plans, strength_correction
from .lora_use import LoadedLora, loras_in_use, own_names
from .merging import check_captions, merge_diffusion, plans_of, tick_of
from .model import (
    HELD_OUT_STAGE,
    PROOF_STAGE,
    DiffusionHost,
    in_stage,
    numbered,
    stages_of,
)
from .plans import Plan
from .proof import prove_loras, prove_merged
from .recipe import with_origin

logger = logging.getLogger("iteris")


@dataclass(frozen=True)
class MergeSettings:
    """Settings of a merge.

    Args:
        config: Settings of the solver and the engine.
        correct_strength: Whether the merged LoRA is scaled by one over the mean measured strength
            of its LoRAs, 1 to 1.3: the ridge and the preserve task make a merge weaker than its
            LoRAs. Off, since it costs pictures of several LoRAs and base prompts more than it gives
            (docs/why.md).
        made_on: More entries of the recipe: the base model, the host's version.
        notes: More notes for the report.
    """

    config: MergeConfig = field(default_factory=MergeConfig)
    correct_strength: bool = False
    made_on: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def check(self, calibration: Calibration) -> None:
        """Refuse what cannot be done, before any work.

        Raises:
            ConfigError: Strength is to be corrected, and nothing is measured for it; or a setting
                that the method would not look at.
        """
        check_used(self.config)
        if self.correct_strength and not calibration.held_out:
            raise ConfigError(
                "correct_strength needs samples to measure it on; set "
                f"{called('held_out')} to 1 or more"
            )


def changed(
    calibration: Calibration, settings: MergeSettings, changes: Changes
) -> tuple[Calibration, MergeSettings]:
    """Return settings of which some are replaced.

    Raises:
        ConfigError: The result is not allowed.
    """
    config = replace(settings.config, **changes.config)
    return (
        replace(calibration, **changes.calibration),
        replace(settings, config=config, **changes.merge),
    )


def merge_and_check(
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    settings: MergeSettings,
    progress: StageProgress = nobody,
    watch: Watch = nobody,
    cost: Cost | None = None,
) -> MergeResult:
    """Prove the LoRAs, merge them, check the result on unseen samples, prove what the host makes of
    it, and write its recipe into the report.

    Args:
        model: The base model, in its host.
        loras: LoRAs to merge, at least one; see `lora_use.load_each_once`.
        calibration: Settings of the calibration samples.
        settings: Settings of the merge.
        progress: Listener for (stage with its number, steps done, steps in all); may raise to
            cancel.
        watch: Listener for the report of each layer, called as soon as the layer is solved.
        cost: What `planned` has returned for this merge, if it was asked.

    Raises:
        IterisError: Settings that do not fit together, memory that runs out even with the smallest
            calls, or an error of `merge_diffusion`, of the check or of `proof`.
    """

    def run(_: int) -> MergeResult:
        return _merge_and_check(model, loras, calibration, settings, progress, watch, cost)

    # most of it makes smaller calls by itself; what does not, ends in a sentence
    return with_smaller_calls(run, 1, "the merge")


def _merge_and_check(
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    settings: MergeSettings,
    progress: StageProgress,
    watch: Watch,
    cost: Cost | None,
) -> MergeResult:
    """See `merge_and_check`."""
    calibration = calibration.for_family(model.family)
    settings.check(calibration)
    used = loras_in_use(loras)
    check_adapters([lora.adapter for lora in used])
    check_ranks(settings.config, [lora.adapter for lora in used])
    cost = cost or planned(model, used, calibration, settings, progress)
    room = settings.config.waiting_bytes
    logger.info(
        "merging %s: %d rows through the diffusion model, as many as %d pictures of %d steps; %d "
        "samples a call%s",
        plain(", ".join(lora.use.name for lora in loras)),
        cost.rows,
        cost.pictures,
        STEPS_OF_A_PICTURE,
        settings.config.samples_per_chunk,
        "" if room is None else f", room for {room} bytes of waiting samples",
    )
    stages = _in_stages(progress, model, loras, calibration, cost)
    proof = prove_loras(model, used, calibration, in_stage(stages, PROOF_STAGE))
    result = _merge(model, loras, calibration, settings, stages, watch)
    proof = prove_merged(model, result.adapter, used[0], calibration, proof)
    report = with_origin(result.report, [lora.use for lora in loras], settings.made_on)
    notes = (*report.notes, *settings.notes, *proof.notes)
    return replace(result, report=replace(report, notes=notes))


def planned(
    model: DiffusionHost,
    used: Sequence[LoadedLora],
    calibration: Calibration,
    settings: MergeSettings,
    progress: StageProgress = nobody,
) -> Cost:
    """Refuse prompts, scenes and captions of a merge and of its check that cannot be measured, and
    return what both cost; no model is run.

    Args:
        model: The base model, in its host.
        used: The LoRAs that change something.
        calibration: Settings of the calibration samples, for this model's family.
        settings: Settings of the merge.
        progress: See `merge_and_check`.

    Raises:
        IterisError: See `merging.plans_of` and `merging.check_captions`.
    """
    tick = tick_of(progress)
    plans, check_plans = _all_plans(model, used, calibration, settings, tick)
    check_captions(model, [*plans, *check_plans], tick)
    return _cost(model, used, calibration, settings, plans, check_plans)


def _all_plans(
    model: DiffusionHost,
    used: Sequence[LoadedLora],
    calibration: Calibration,
    settings: MergeSettings,
    tick: Callable[[], None],
) -> tuple[Sequence[Plan], Sequence[CheckPlan]]:
    """Return the plans of a merge and those of its check."""
    plans = plans_of(model, used, calibration, settings.config, tick)
    if not calibration.held_out:
        return plans, ()
    uses = own_names([lora.use for lora in used])
    return plans, make_check_plans(uses, calibration, tick)


def _cost(
    model: DiffusionHost,
    used: Sequence[LoadedLora],
    calibration: Calibration,
    settings: MergeSettings,
    plans: Sequence[Plan],
    check_plans: Sequence[CheckPlan],
) -> Cost:
    paths = {path for lora in used for path in lora.adapter.deltas}
    return cost_of(
        plans,
        check_plans,
        guided=calibration.is_guided,
        changes_denoiser=not all(map(model.is_text_module, paths)),
        sweeps=1 if settings.config.size is None else 2,
        checks=2 if settings.correct_strength else 1,
    )


def rows_of(
    model: DiffusionHost,
    used: Sequence[LoadedLora],
    calibration: Calibration,
    settings: MergeSettings,
    progress: StageProgress = nobody,
) -> int:
    """Return the rows that a merge runs through the diffusion model.

    Args, Raises: See `planned`; captions are not read. Also settings that cannot be done, see
        `MergeSettings.check`.
    """
    settings.check(calibration)
    plans = _all_plans(model, used, calibration, settings, tick_of(progress))
    return _cost(model, used, calibration, settings, *plans).rows


def _in_stages(
    progress: StageProgress,
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    cost: Cost,
) -> StageProgress:
    """Return a listener for the stages of a merge, which are passed on with their number and their
    share of the work.
    """
    names = stages_of(model, loras, calibration)
    return numbered(progress, cost.stages(names, len(loras_in_use(loras))))


def _merge(
    model: DiffusionHost,
    loras: Sequence[LoadedLora],
    calibration: Calibration,
    settings: MergeSettings,
    progress: StageProgress,
    watch: Watch,
) -> MergeResult:
    """Merge and check once; see `merge_and_check`. The progress is that of its stages."""
    result = merge_diffusion(model, loras, calibration, settings.config, progress, watch)
    if not calibration.held_out:
        return result
    check = HeldOutCheck(
        model,
        loras,
        calibration,
        settings.config.samples_per_chunk,
        in_stage(progress, HELD_OUT_STAGE),
    )
    return checked(result, check, correct_strength=settings.correct_strength)


def checked(
    result: MergeResult, check: HeldOutCheck, *, correct_strength: bool = False
) -> MergeResult:
    """Return a merge with its fidelity on unseen samples in the report.

    Args:
        result: The merge.
        check: Check that measures the fidelity.
        correct_strength: See `MergeSettings`; the scaled LoRA is measured again.

    Raises:
        IterisError: See `HeldOutCheck.measure`.
    """
    measured = check.measure(result.adapter)
    if not correct_strength:
        return replace(result, report=replace(result.report, fidelity=measured))
    factor = strength_correction(measured)
    scaled = check_result(result.adapter.scaled(factor))
    before = ", ".join(
        f"{entry.task} {entry.strength:.2f}"
        for entry in measured
        if entry.kind == "own" and entry.strength is not None
    )
    note = Note(
        "strength",
        f"scaled by {factor:.3f}; strength before: {before}. The layers' figures are those before",
    )
    report = replace(
        result.report,
        fidelity=check.measure(scaled),
        notes=(*result.report.notes, note),
        settings={**result.report.settings, "strength_correction": factor},
    )
    return replace(result, adapter=scaled, report=report)
