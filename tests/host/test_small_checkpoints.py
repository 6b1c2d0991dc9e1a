"""A small checkpoint of another family in the host: stock nodes detect and load it, and apply its
LoRAs; two LoRAs are merged, and their file does what the merge did.
"""

from checkpoint_sd3 import write_checkpoint, write_lora

COMPLAINTS = (
    "lora key not loaded",
    "NOT LOADED",
    "unet missing",
    "unet unexpected",
    "clip missing",
    "Missing VAE",
    "Leftover VAE",
)


def test_a_merge_of_sd3_draws_the_same_through_its_file(host):
    checkpoint = host.base / "models" / "checkpoints" / "sd3.safetensors"
    write_checkpoint(checkpoint)
    files = [f"sd3_{seed}.safetensors" for seed in (1, 2)]
    for seed, name in enumerate(files, 1):
        write_lora(host.loras / name, seed=seed, only="(unet|te1.*layers_(0|10))_")
    inputs = {"ckpt_name": checkpoint.name}
    loaded = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": inputs}}
    before = len(host.log())
    host.run(
        {
            **loaded,
            **host.load_lora(files[0]),
            **host.sample("sd3_base", ["1", 0], ["1", 1], 20),
            **host.sample("sd3_model", ["10", 0], ["1", 1], 30),
            **host.sample("sd3_clip", ["1", 0], ["10", 1], 40),
        }
    )
    log = host.log()[before:]
    assert not [complaint for complaint in COMPLAINTS if complaint in log]
    assert "model_type FLOW\n" in log
    base = host.latent("sd3_base")
    assert base.isfinite().all()
    for changed in ("model", "clip"):
        assert (host.latent(f"sd3_{changed}") - base).norm() > 0.001 * base.norm()

    merge = {**host.merge(*files, latents_per_run=1), **loaded, **host.save("loras/sd3_merged")}
    host.run({**merge, **host.sample("sd3_outputs", ["5", 0], ["5", 1], 20)})
    loader = host.load_lora("sd3_merged.safetensors")
    host.run({**loaded, **loader, **host.sample("sd3_file", ["10", 0], ["10", 1], 30)})
    checkpoint.unlink()
    assert "lora key not loaded" not in host.log()[before:]
    outputs = host.latent("sd3_outputs")
    assert (outputs - base).norm() > 0.001 * base.norm()
    difference = (host.latent("sd3_file") - outputs).abs().max()
    assert difference <= 1e-4 * (outputs - base).abs().max()
