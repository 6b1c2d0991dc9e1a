"""The demo itself: check the input, start a ComfyUI, merge and compare there, keep the results."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from iteris_core.diffusion.lora_rows import Row, written
from iteris_core.errors import IterisError
from iteris_core.files.families import FAMILIES, Family
from iteris_core.files.writing import whole_file, write_text
from iteris_core.progress import Stage, StageProgress

from . import drawn
from .client import ComfyClient, Json
from .gallery import (
    DRAW,
    STEPS,
    Column,
    drawing_nodes,
    pictures_of,
    table_of,
    with_best,
    write_gallery,
)
from .progress import stages, waiting
from .recogniser import Recogniser
from .server import PACK, ComfyServer, Device, ServerError, cache_folder, find_comfyui, link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

_NOT_IN_ROWS = re.compile(r"[<>:\n]")  # see diffusion/lora_rows.py
WEIGHTS = Path(__file__).parent / "weights"
TEMPLATE = PACK / "workflows" / "api" / "merge_two_loras.json"
SETTINGS = "settings"  # the node of them, with the demo's own checkpoint
USUAL_STEPS = 20  # of a picture
SIZE_STEP = 16  # pixels; the latents of every family have whole ones

FamilyName = Literal["sd15", "sdxl"]
FAMILY_OF: dict[FamilyName, Family] = {"sd15": FAMILIES["SD1.5"], "sdxl": FAMILIES["SDXL"]}


class InputError(IterisError):
    """A file or an option of the command line that the demo cannot use."""


@dataclass(frozen=True)
class DemoRequest:
    """Input, output and pictures of the demo.

    Args:
        output: Folder of the results, which is made; a number is added to its name if it exists.
        checkpoint: File of a checkpoint; None for the demo's own, which is trained on drawings.
        loras: Files of the LoRAs, at least two; none if there is no checkpoint.
        prompts: Prompts, one text per LoRA with a prompt on each line; none with the demo's own.
        width, height: Size of each picture in pixels; None for the family's.
        steps: Sampling steps of each picture; None for 20.
        device: "cpu" keeps the server off the GPU.
        family: Family of the checkpoint.
    """

    output: Path
    checkpoint: Path | None = None
    loras: tuple[Path, ...] = ()
    prompts: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    device: Device = "auto"
    family: FamilyName = "sd15"

    @property
    def is_own(self) -> bool:
        """Whether the demo's own checkpoint and LoRAs are used."""
        return self.checkpoint is None


def check(request: DemoRequest) -> None:
    """Refuse a request with a file or an option that cannot be used, before any long work.

    Raises:
        InputError: Names the file or the option.
    """
    if request.checkpoint is None:
        _check_own(request)
        return
    if len(request.loras) < 2:
        raise InputError(
            f"a merge needs at least two LoRAs, found {len(request.loras)}: give --lora twice or "
            "more."
        )
    for file in (request.checkpoint, *request.loras):
        _check_file(file)
    if len(request.prompts) != len(request.loras):
        raise InputError(
            f"{len(request.prompts)} --prompt for {len(request.loras)} LoRAs: give one per LoRA, "
            "in order, with its trigger words."
        )
    if not all(text.strip() for text in request.prompts):
        raise InputError("a --prompt is empty: give each LoRA a prompt with its trigger words.")
    for option, size in (("--width", request.width), ("--height", request.height)):
        if size is not None and (size < 64 or size % SIZE_STEP):
            raise InputError(f"{option} is {size}: expected a multiple of {SIZE_STEP} from 64 up.")
    if request.steps is not None and request.steps < 1:
        raise InputError(f"--steps is {request.steps}: expected 1 or more.")


def _check_own(request: DemoRequest) -> None:
    """Refuse options that the demo's own model does not take."""
    given = {
        "--lora": bool(request.loras),
        "--prompt": bool(request.prompts),
        "--width": request.width is not None,
        "--height": request.height is not None,
        "--steps": request.steps is not None,
        "--family": request.family != "sd15",
    }
    for option, is_given in given.items():
        if is_given:
            raise InputError(f"{option} needs --checkpoint: without one, the demo's model is used.")


def _check_file(file: Path) -> None:
    if file.suffix.lower() != ".safetensors":
        raise InputError(
            f"'{file}' is not a .safetensors file: convert it first, other formats can carry code."
        )
    if not file.is_file():
        raise InputError(f"'{file}' does not exist or is not a file.")


def run_demo(request: DemoRequest, console: Console) -> Path:
    """Merge the LoRAs in a ComfyUI of its own and return the folder with the results.

    Args:
        request: See :class:`DemoRequest`; checked first.
        console: Console for the progress and the place of the results.

    Raises:
        InputError: The request cannot be used.
        IterisError: The server, or a node of the workflow, failed.
    """
    check(request)
    started = time.monotonic()
    template = read_template()
    cache = cache_folder()
    with waiting(console, "Looking for ComfyUI (the first run fetches 8 MB)"):
        comfyui = find_comfyui(cache)
    with waiting(console, f"Preparing models (the first run writes {drawn.MEGABYTES} MB)"):
        checkpoint, loras = _models(request, cache)
    output = _make_output(request.output)
    log = output / "comfyui.log"
    with _telling_what_is_left(output, log, console), contextlib.ExitStack() as stack:
        base = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="iteris-demo-", ignore_cleanup_errors=True)
            )
        )
        (checkpoint_name,) = _link_all([checkpoint], base / "models" / "checkpoints")
        lora_names = _link_all(loras, base / "models" / "loras")
        workflow = (
            drawn_workflow(template, checkpoint_name, lora_names)
            if request.is_own
            else make_workflow(template, request, checkpoint_name, lora_names)
        )
        with waiting(console, "Starting ComfyUI"):
            server = stack.enter_context(ComfyServer(comfyui, base, log, device=request.device))
        ready = time.monotonic()
        try:
            client = ComfyClient(server.address)
            with stages(console) as show:
                history = client.run(workflow, Follower(workflow, show).on_event, timeout=math.inf)
            _collect(client, workflow, history, output)
            columns = _columns(client, workflow, history) if request.is_own else []
        except IterisError as error:
            raise ServerError(f"{error}\nThe server's log is '{log}'.") from error
    ended = time.monotonic()
    if columns:
        write_gallery(output / "pictures.png", drawn.PROMPT, columns, drawn.WANTED)
        console.print(table_of(columns, drawn.WANTED))
    plain = {"markup": False, "highlight": False}
    console.print(f"\nResults in {output}:", style="bold", soft_wrap=True, **plain)
    for file in sorted(output.iterdir()):
        console.print(f"  {file.name}", **plain)
    console.print()
    for line in (output / "report.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):  # its details
            console.print(line, **plain)
    console.print(
        f"ComfyUI ready after {ready - started:.1f} s, workflow {ended - ready:.1f} s, "
        f"{ended - started:.1f} s in all.",
        highlight=False,
    )
    return output


@contextlib.contextmanager
def _telling_what_is_left(output: Path, log: Path, console: Console) -> Iterator[None]:
    """Say what an interrupted run leaves behind, and remove a folder that holds no result."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        files = sorted(file.name for file in output.iterdir() if file != log)
        if files:
            console.print(f"Stopped. {output} has {', '.join(files)}.", markup=False)
        else:
            log.unlink(missing_ok=True)
            output.rmdir()
            console.print("Stopped before there was a result; nothing was kept.", markup=False)
        raise


def read_template() -> Json:
    """Return the workflow that merges two LoRAs."""
    template: Json = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    return template


def _models(request: DemoRequest, cache: Path) -> tuple[Path, list[Path]]:
    """Return the checkpoint and the LoRAs of the request; make the small ones if they are not in
    the cache.
    """
    if request.checkpoint is not None:
        return request.checkpoint, list(request.loras)
    checkpoint = cache / f"demo-checkpoint-v{drawn.VERSION}.safetensors"
    if not checkpoint.is_file():
        drawn.write_checkpoint(checkpoint, WEIGHTS)
    return checkpoint, [WEIGHTS / name for name in drawn.LORAS]


def _make_output(wanted: Path) -> Path:
    """Make the folder, or with a number after its name the first one that does not exist."""
    wanted = wanted.expanduser().absolute()
    for number in range(1, 10000):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"the output folder '{folder}' cannot be made: {error}.") from error
        return folder
    raise InputError(
        f"'{wanted}' and 9999 numbered folders next to it exist: give another --output."
    )


def _link_all(files: list[Path], folder: Path) -> list[str]:
    """Link files into a folder of the host; files of the same name get numbers, and what no row
    could name is replaced.
    """
    names: list[str] = []
    for file in files:
        stem = _NOT_IN_ROWS.sub("_", file.stem)
        name = f"{stem}{file.suffix}"
        number = 2
        while name in names:
            name = f"{stem}_{number}{file.suffix}"
            number = number + 1
        link(file, folder / name)
        names.append(name)
    return names


def make_workflow(template: Json, request: DemoRequest, checkpoint: str, loras: list[str]) -> Json:
    """Return the template filled with files, prompts and sizes, and with one row for each LoRA.

    Args:
        template: Content of workflows/api/merge_two_loras.json.
        request: Request with the prompts and sizes.
        checkpoint: Name of the checkpoint in the host's list.
        loras: Names of the LoRAs in the host's list, at least two.
    """
    workflow = copy.deepcopy(template)
    by_type = {node["class_type"]: node["inputs"] for node in workflow.values()}
    by_type["CheckpointLoaderSimple"]["ckpt_name"] = checkpoint
    by_type["IterISMerge"]["loras"] = written(
        Row(lora, prompts=tuple(filter(str.strip, prompts.splitlines())))
        for lora, prompts in zip(loras, request.prompts, strict=True)
    )
    side = FAMILY_OF[request.family].resolution
    by_type["IterISCompare"] |= {
        "width": request.width or side,
        "height": request.height or side,
        "steps": request.steps or USUAL_STEPS,
        # All subjects in one picture: the first prompt of every LoRA.
        "prompt": ", ".join(text.strip().splitlines()[0] for text in request.prompts),
    }
    return workflow


def drawn_workflow(template: Json, checkpoint: str, loras: list[str]) -> Json:
    """Return the template with the demo's own files and settings, and nodes that draw with the base
    model, the stack and the merge.

    Args:
        template: See `make_workflow`.
        checkpoint: See `make_workflow`.
        loras: See `make_workflow`.
    """
    workflow = copy.deepcopy(template)
    key_of = {node["class_type"]: key for key, node in workflow.items()}
    loader = key_of["CheckpointLoaderSimple"]
    merge = key_of["IterISMerge"]
    workflow[loader]["inputs"]["ckpt_name"] = checkpoint
    workflow[merge]["inputs"] |= {
        "loras": drawn.ROWS,
        "together": True,
        "settings": [SETTINGS, 0],
    }
    workflow[SETTINGS] = {
        "class_type": "IterISSettings",
        "_meta": {"title": "Merge settings"},
        "inputs": {"resolution": drawn.SIDE, "cfg": drawn.CFG},
    }
    workflow[key_of["IterISCompare"]]["inputs"] |= {
        "width": drawn.SIDE,
        "height": drawn.SIDE,
        "steps": STEPS,
        "cfg": drawn.CFG,
        "prompt": drawn.PROMPT,
    }
    model, clip = [loader, 0], [loader, 1]
    models: dict[str, tuple[list[object], list[object]]] = {"the base model": (model, clip)}
    for name, files, strength in drawn.stacks(loras):
        models[name] = (model, clip)
        for number, lora in enumerate(files):
            key = f"{name} {number}"
            workflow[key] = _lora_loader(lora, strength, *models[name])
            models[name] = ([key, 0], [key, 1])
    models["the merge"] = ([merge, 0], [merge, 1])
    return workflow | drawing_nodes(
        models, [loader, 2], drawn.PROMPT, side=drawn.SIDE, cfg=drawn.CFG, seed=drawn.SEED
    )


def _lora_loader(lora: str, strength: float, model: list[object], clip: list[object]) -> Json:
    return {
        "class_type": "LoraLoader",
        "_meta": {"title": f"Load {lora}"},
        "inputs": {
            "lora_name": lora,
            "model": model,
            "clip": clip,
            "strength_model": strength,
            "strength_clip": strength,
        },
    }


class Follower:
    """Shows a workflow's events as steps: of each node that has a title, and of each `Stage` that a
    node announces.
    """

    def __init__(self, workflow: Json, show: StageProgress) -> None:
        self._titles = {node_id: node["_meta"]["title"] for node_id, node in workflow.items()}
        self._show = show
        self._running = ""  # the title of the node that runs
        self._total = 1

    def on_event(self, event: str, data: Json) -> None:
        """Take a message of :meth:`ComfyClient.run`."""
        title = self._titles.get(str(data.get("node") or ""), "")
        if event == "executing":
            if self._running:  # it has ended
                self._show(Stage(self._running), self._total, self._total)
            self._running, self._total = title, 1
            if title:
                self._show(Stage(title), 0, 1)
        elif event == "progress" and title == self._running != "":
            self._total = data["max"]
            self._show(Stage(title), data["value"], data["max"])
        elif event == "iteris.stage":
            self._show(Stage(f"{title}: {Stage(**data['stage'])}"), data["done"], data["total"])


def _collect(client: ComfyClient, workflow: Json, history: Json, output: Path) -> None:
    """Copy the merged LoRA, the comparison and the report into the output folder."""
    outputs = {
        workflow[node_id]["class_type"]: ui
        for node_id, ui in history["outputs"].items()
        if node_id in workflow
    }
    missing = [
        node for node in ("IterISSave", "IterISMerge", "IterISCompare") if node not in outputs
    ]
    if missing:
        raise IterisError(f"the workflow ended without an output of {', '.join(missing)}.")
    named = Path(outputs["IterISSave"]["text"][0])
    if not named.is_file():
        raise IterisError(
            f"the node that saves the merged LoRA named '{named}', which does not exist."
        )
    with named.open("rb") as saved, whole_file(output / "merged.safetensors") as file:
        shutil.copyfileobj(saved, file)
    image = outputs["IterISCompare"]["iteris"][0]["whole"]
    with whole_file(output / "comparison.png") as file:
        file.write(client.view(image["filename"], image["subfolder"], image["type"]))
    merge = outputs["IterISMerge"]
    write_text(json.dumps(merge["iteris"][0]["report"], indent=2) + "\n", output / "report.json")
    write_text("\n".join(merge["text"]) + "\n", output / "report.txt")


def _columns(client: ComfyClient, workflow: Json, history: Json) -> list[Column]:
    """Return the pictures of the demo's own models, and what the recogniser sees in them."""
    recogniser = Recogniser.read(WEIGHTS / "recogniser.safetensors")
    columns = []
    for node in workflow:
        if node.startswith(DRAW):
            pictures = pictures_of(client, history["outputs"][node])
            seen = recogniser.sees_in(pictures)
            told = [[name for name in drawn.WANTED if name in labels] for labels in seen]
            columns.append(Column(node.removeprefix(DRAW), pictures, told))
    return with_best(columns, drawn.WEAKER, drawn.WANTED)
