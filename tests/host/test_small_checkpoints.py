"""The small checkpoints of other families in the host: stock nodes detect and load them, apply
their LoRAs and sample; two LoRAs are merged, and their file does what the merge did.
"""

from functools import partial

import checkpoint_sd3
import checkpoint_sdxl
import pytest

# Name -> the writers, and a few layers of each part of the model.
SMALL = {
    "sdxl": (
        checkpoint_sdxl.write_checkpoint,
        partial(
            checkpoint_sdxl.write_lora,
            only="(input_blocks_8.*blocks_[09]|te2.*layers_(0|31)|te1.*layers_(0|10))_",
        ),
        "EPS",
    ),
    "sdxl_v": (
        partial(checkpoint_sdxl.write_checkpoint, v_prediction=True),
        partial(checkpoint_sdxl.write_lora, only="(middle_block|te1.*layers_10)_"),
        "V_PREDICTION",
    ),
    "sd3": (
        checkpoint_sd3.write_checkpoint,
        partial(checkpoint_sd3.write_lora, only="(unet|te1.*layers_(0|10))_"),
        "FLOW",
    ),
}
COMPLAINTS = (
    "lora key not loaded",
    "NOT LOADED",
    "unet missing",
    "unet unexpected",
    "clip missing",
    "Missing VAE",
    "Leftover VAE",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "sd3" else pytest.mark.nightly) for name in SMALL],
)
def test_the_host_samples_with_it_and_a_merge_draws_the_same_through_its_file(host, name):
    write_checkpoint, write_lora, model_type = SMALL[name]
    checkpoint = host.base / "models" / "checkpoints" / f"{name}.safetensors"
    write_checkpoint(checkpoint)
    for seed in (1, 2):
        write_lora(host.loras / f"{name}{seed}.safetensors", seed=seed)
    inputs = {"ckpt_name": checkpoint.name}
    loaded = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": inputs}}
    before = len(host.log())
    host.run(
        {
            **loaded,
            **host.load_lora(f"{name}1.safetensors"),
            **host.sample(f"{name}_base", ["1", 0], ["1", 1], 20),
            **host.sample(f"{name}_model", ["10", 0], ["1", 1], 30),
            **host.sample(f"{name}_clip", ["1", 0], ["10", 1], 40),
        }
    )
    log = host.log()[before:]
    assert not [complaint for complaint in COMPLAINTS if complaint in log]
    assert f"model_type {model_type}\n" in log
    base = host.latent(f"{name}_base")
    assert base.isfinite().all()
    for changed in ("model", "clip"):
        assert (host.latent(f"{name}_{changed}") - base).norm() > 0.001 * base.norm()

    files = [f"{name}{seed}.safetensors" for seed in (1, 2)]
    merge = {**host.merge(*files, sample_runs=1, latents_per_run=1), **loaded}
    saved = host.save(f"loras/{name}_merged")
    host.run({**merge, **saved, **host.sample(f"{name}_outputs", ["5", 0], ["5", 1], 20)})
    loader = host.load_lora(f"{name}_merged.safetensors")
    host.run({**loaded, **loader, **host.sample(f"{name}_file", ["10", 0], ["10", 1], 30)})
    checkpoint.unlink()
    assert "lora key not loaded" not in host.log()[before:]
    outputs = host.latent(f"{name}_outputs")
    assert (outputs - base).norm() > 0.001 * base.norm()
    difference = (host.latent(f"{name}_file") - outputs).abs().max()
    assert difference <= 1e-4 * (outputs - base).abs().max()
