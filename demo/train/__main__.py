"""The training of all that the demo ships.

python -m demo.train --comfyui FOLDER --work FOLDER
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

# before torch is imported: threads that wait by spinning slow down whatever else runs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from .base import base_scenes, make_data, pictures_of, train_base
from .decoder import train_decoder
from .judge import train_recogniser
from .loras import NAMES, Kind, lora_data, train_lora
from .model import Latents, TextEncoder, import_comfyui
from .pack import as_shipped, write_decoder, write_lora, write_recogniser, write_unet

STAGES = ("base", "decoder", "recogniser", "loras", "pack")
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
DECODER_STEPS = 2200
RECOGNISER_STEPS = 700


def tell(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def latents_of(work: Path) -> Latents:
    """Return how pictures become latents, from the pictures of the base model."""
    file = work / "latents.pt"
    if not file.exists():
        pictures = pictures_of([scene for scene, _ in base_scenes(0)[:1500]]).float() / 255
        found = Latents.of(pictures)
        torch.save({"mean": found.mean, "basis": found.basis}, file)
    return Latents(**torch.load(file, weights_only=True))


def trained_unet(work: Path) -> dict[str, torch.Tensor]:
    """Return the trained UNet's averaged weights."""
    state = torch.load(work / "base.pt", weights_only=True)
    return {**state["unet"], **state["average"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI 0.3.75")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is unfinished")
    parser.add_argument("--steps", type=int, default=2600, help="of the base model")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    import_comfyui(options.comfyui)
    latents = latents_of(options.work)
    stages = options.stage or STAGES
    work = options.work
    if "base" in stages:
        data = make_data(base_scenes(0), latents, TextEncoder(options.comfyui))
        tell(f"{len(data.latents)} pictures, {len(data.contexts)} captions")
        train_base(data, work, options.steps, tell)
    if "decoder" in stages:
        train_decoder(latents, work, DECODER_STEPS, tell)
    if "recogniser" in stages:
        decoder = train_decoder(latents, work, DECODER_STEPS, tell)
        train_recogniser(latents, decoder, work, RECOGNISER_STEPS, tell)
    if "loras" in stages:
        encoder = TextEncoder(options.comfyui)
        base = as_shipped(trained_unet(work))
        for number, name in enumerate(NAMES):
            file = work / f"lora-{number}.pt"
            if not file.exists():
                data = lora_data(name, latents, encoder)
                torch.save(train_lora(name, base, data, Kind(), tell), file)
    if "pack" in stages:
        WEIGHTS.mkdir(exist_ok=True)
        write_unet(trained_unet(work), WEIGHTS)
        write_decoder(torch.load(work / "decoder.pt", weights_only=True), WEIGHTS)
        write_recogniser(torch.load(work / "recogniser.pt", weights_only=True), WEIGHTS)
        for number in range(len(NAMES)):
            factors = torch.load(work / f"lora-{number}.pt", weights_only=True)
            write_lora(number, factors, WEIGHTS)


if __name__ == "__main__":
    main()
