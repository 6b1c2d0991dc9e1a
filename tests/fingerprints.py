"""Whether a change of the code changed a result: fingerprints of merges, recorded before it and
compared after it.

    python tests/fingerprints.py record before.json
    python tests/fingerprints.py compare before.json

A fingerprint is the SHA-256 of every tensor of a merged LoRA, and of what its file says. They are
equal bit by bit on one machine only, with the same torch and the same number of threads; so they are
not kept in the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}

import torch
from safetensors import safe_open
from transformers import T5ForConditionalGeneration

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

import tiny_diffusers  # noqa: E402

from iteris_core import MergeConfig, Network, Sample, Task, merge  # noqa: E402
from iteris_core.config import Method  # noqa: E402
from iteris_core.diffusion.diffusers_model import DiffusersModel  # noqa: E402
from iteris_core.files import peft  # noqa: E402
from iteris_core.memory import Room  # noqa: E402

GOLDEN = TESTS / "data" / "golden"
# What is to differ: what a key begins with, in every merge whose name begins so.
WANTED = {
    # a run keeps one latent, scenes are measured in pictures, and half of them have a prefix
    "recipe calibration timesteps": "iteris ",
    "recipe calibration scene_pictures": "iteris ",
    "recipe calibration scene_prefix_share": "iteris ",
}

PAPER = {"ridge": "paper", "balance": "full"}
# Of the core's merge, on each golden folder.
CONFIGS = {
    "sweep": {},
    "sweep, full output": {"target": "full_output"},
    "sweep, paper": {**PAPER, "alpha_cross": 1e-3, "target": "full_output"},
    "sweep, uniform, mixed": {"balance": "uniform", "input_mix": 0.3, "target": "delta"},
    "sweep, delta, chunks": {"target": "delta"},
    "sweep, rank 2": {"rank": 2},
    "sweep, energy": {"kept_energy": 0.9, "target": "delta"},
    "iterate": {"engine": "iterate", "max_iter": 3},
    **{method: {"method": method} for method in get_args(Method) if method != "iteris"},
}

# Of `iteris merge sd15`, on a tiny diffusers pipeline: what distinguishes the rows, and options.
PLAIN = ("one>", "two>")
CALLED = ('one> called="a cat"', 'two> called="a hat"')
COMMANDS: dict[str, tuple[tuple[str, str], tuple[object, ...]]] = {
    "default": (PLAIN, ()),
    "protected": (PLAIN, ("--protect-base", 0.3)),
    "scenes": (CALLED, ("--together", 1, "--reproduce", "full_output")),
    "strengths": (("one:1:0.5>", "two:0.5:1> priority=2"), ()),
    "float64": (PLAIN, ("--dtype", "float64", "--reproduce", "delta", "--rank", 2)),
    "paper": (
        PLAIN,
        ("--engine", "iterate", "--max-iter", 2, "--ridge", "paper", "--balance", "full"),
    ),
}


def digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + content).hexdigest()


def of_file(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        found = {key: digest(file.get_tensor(key)) for key in sorted(file.keys())}
        metadata = file.metadata() or {}
    recipe = json.loads(metadata.pop("iteris.recipe", "{}"))
    said = dict(flattened("recipe", recipe)) | {
        f"metadata {key}": value for key, value in metadata.items()
    }
    return found | said


def flattened(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield what JSON says, a line per value, so that a difference can be read."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flattened(f"{name} {key}", part)
    else:
        yield name, json.dumps(value)


def merged(*arguments: object) -> None:
    run(TESTS / "support" / "every_option.py", *arguments)


def run(*arguments: object) -> None:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def encoded(model: T5ForConditionalGeneration, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return model.encoder(torch.stack(list(rows))).last_hidden_state


def golden_merges() -> Iterator[tuple[str, dict[str, str]]]:
    """The core's merge of every golden folder, by every method and with every setting."""
    for folder in sorted(path for path in GOLDEN.iterdir() if path.is_dir()):
        model = T5ForConditionalGeneration.from_pretrained(folder / "t5-tiny").eval()
        modules = {
            path: module for path, module in model.named_modules() if path.startswith("encoder.")
        }
        shapes = {
            path: tuple(m.weight.shape)
            for path, m in model.named_modules()
            if isinstance(m, torch.nn.Linear)
        }
        adapters = []
        for number in range(len(list(folder.glob("lora*")))):
            whole = peft.load(folder / f"lora{number}", shapes)
            adapters.append(whole.select(lambda path: path.startswith("encoder.")))
        with safe_open(folder / "golden.safetensors", "pt") as file:
            ids = file.get_tensor("input_ids")
        tasks = [
            Task(f"task{n}", [Sample(row) for row in ids[n]], {n: 1.0})
            for n in range(len(adapters))
        ]
        network = Network(modules, partial(encoded, model))
        for name, settings in CONFIGS.items():
            room = Room(2 if "chunks" in name else 8)
            config = MergeConfig(**settings)
            merged = merge(network, adapters, tasks, config, room=room).adapter
            yield (
                f"golden {folder.name}, {name}",
                {
                    f"{path} {side}": digest(getattr(delta, side))
                    for path, delta in sorted(merged.deltas.items())
                    for side in ("up", "down")
                },
            )


def commands(scratch: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """What the command line writes: T5 adapters, and LoRAs of a tiny Stable Diffusion."""
    folder = GOLDEN / "two_tasks"
    output = scratch / "t5"
    adapters = [part for number in (0, 1) for part in ("--adapter", folder / f"lora{number}")]
    source = ("--base", folder / "t5-tiny", "--samples", folder / "golden.safetensors")
    merged("t5", *source, *adapters, "--output", output)
    yield "iteris merge t5", of_file(output / "adapter_model.safetensors")
    tiny_diffusers.LENGTH = 77  # long enough for the captions of scenes
    parts = tiny_diffusers.unet(), tiny_diffusers.text_encoder(), tiny_diffusers.tokenizer(77)
    host = DiffusersModel(*parts, tiny_diffusers.scheduler())
    tiny_diffusers.save_folder(host, scratch / "base")
    wanted = ("to_", "_proj", "fc1", "proj_in", "ff.net", "conv1")
    said = {"modelspec.trigger_phrase": "a hat"}
    for seed, (name, metadata) in enumerate((("one", None), ("two", said)), 1):
        adapter = tiny_diffusers.adapter(host, seed, wanted=wanted)
        path = scratch / f"{name}.safetensors"
        tiny_diffusers.save_in_diffusers_style(host, adapter, path, metadata)
    quick = ["--sample-runs", 6, "--sampling-steps", 3]
    quick += ["--resolution", 64, "--cfg", 2]
    output = scratch / "merged.safetensors"
    where = ("--base", scratch / "base", "--output", output, "--overwrite")
    for name, ((one, two), options) in COMMANDS.items():
        rows = (f"<lora:{scratch}/{one} | a cat | ink", f"<lora:{scratch}/{two} | a hat")
        merged("sd15", *where, "--lora", rows[0], "--lora", rows[1], *quick, *options)
        found = of_file(output)
        for key, text in found.items():
            found[key] = text.replace(str(scratch), "SCRATCH")
        yield f"iteris merge sd15, {name}", found


def demo(scratch: Path) -> Iterator[tuple[str, dict[str, str]]]:
    run("-m", "demo", "--output", scratch / "demo")
    yield "iteris demo", of_file(scratch / "demo" / "merged.safetensors")


def fingerprints(*, with_demo: bool) -> dict[str, dict[str, str]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = dict(golden_merges()) | dict(commands(scratch))
        return found | dict(demo(scratch)) if with_demo else found


def compare(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    lines = []
    for merge_name, expected in before.items():
        found = after.get(merge_name)
        if found is None:
            lines.append(f"{merge_name}: not made")
            continue
        lines += [
            f"{merge_name}: {key}\n    before {expected.get(key)}\n    after  {found.get(key)}"
            for key in sorted(expected | found)
            if expected.get(key) != found.get(key) and not is_wanted(merge_name, key)
        ]
    return lines


def is_wanted(merge_name: str, key: str) -> bool:
    return any(
        key.startswith(wanted) and merge_name.startswith(name) for wanted, name in WANTED.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--no-demo", action="store_true", help="leave the demo out, which starts a ComfyUI"
    )
    given = parser.parse_args()
    found = fingerprints(with_demo=not given.no_demo)
    if given.action == "record":
        given.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found)} merges recorded in {given.file}")
        return
    before = json.loads(given.file.read_text(encoding="utf-8"))
    before = {
        name: keys for name, keys in before.items() if not (given.no_demo and name == "iteris demo")
    }
    lines = compare(before, found)
    equal = f"{len(before)} merges are equal bit by bit; not compared: {', '.join(WANTED)}"
    print("\n".join(lines) or equal)
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
