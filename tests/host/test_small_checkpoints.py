"""The small checkpoints of other families in the host: stock nodes detect and load them, apply
their LoRAs and sample.
"""

from functools import partial

import pytest

from iteris_core.cli.demo import checkpoint_sd3, checkpoint_sdxl

# Name -> the writers, and a few layers of each part of the model.
SMALL = {
    "sdxl": (
        checkpoint_sdxl.write_checkpoint,
        partial(checkpoint_sdxl.write_lora, only="(input_blocks_8|te2.*layers_(0|31)|te1)_"),
        "EPS",
    ),
    "sdxl_v": (
        partial(checkpoint_sdxl.write_checkpoint, v_prediction=True),
        partial(checkpoint_sdxl.write_lora, only="(middle_block|te1.*layers_10)_"),
        "V_PREDICTION",
    ),
    "sd3": (checkpoint_sd3.write_checkpoint, checkpoint_sd3.write_lora, "FLOW"),
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


@pytest.mark.parametrize("name", SMALL)
def test_the_host_loads_it_and_its_lora_and_samples(host, name):
    write_checkpoint, write_lora, model_type = SMALL[name]
    file = host.base / "models" / "checkpoints" / f"{name}.safetensors"
    write_checkpoint(file)
    write_lora(host.loras / f"{name}.safetensors", seed=1)
    before = len(host.log())
    load = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": file.name}}
    host.run(
        {
            "1": load,
            **host.load_lora(f"{name}.safetensors"),
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
