"""LoRA files of a diffusers model: every spelling, and what diffusers makes of ours."""

import json

import pytest
import tiny_diffusers
import torch
from peft import LoKrConfig, LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from iteris_core import Adapter, AdapterError
from iteris_core.diffusion.diffusers_model import DiffusersModel
from iteris_core.diffusion.loading import read_lora, save_lora
from iteris_core.diffusion.model import DenoiserRow

pytestmark = pytest.mark.slow

ALL = ("conv", "linear_", "to_", "proj", "fc", "ff.net")


@pytest.fixture(scope="module")
def host():
    return tiny_diffusers.model()


@pytest.fixture(scope="module", params=["SD1.5", "SDXL"])
def any_host(request):
    return tiny_diffusers.MODELS[request.param]()


def outputs(host):
    x = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    sigma = torch.tensor(2.0)
    with torch.no_grad(), host.text_encoder() as text, host.denoiser(4) as unet:
        (context,) = text.forward(host.tokenize("a cat"))
        answer = unet.forward([DenoiserRow(x, sigma, context)])
        return context.tokens, *context.others.values(), answer


def like(host):
    return tiny_diffusers.MODELS[host.family.name]()


def in_diffusers(path, host):
    loaded = tiny_diffusers.pipeline(like(host))
    loaded.load_lora_weights(str(path))
    return outputs(DiffusersModel.of(loaded))


def with_weights(adapter, host):
    patched = like(host)
    tiny_diffusers.add_deltas(patched, adapter)
    return outputs(patched)


def assert_same_effect(found, expected, base):
    for ours, theirs, without in zip(found, expected, base, strict=True):
        assert (theirs - without).norm() > 0.05 * without.norm()
        assert (ours - theirs).norm() <= 1e-5 * (theirs - without).norm()


def mixed_ranks(host):
    """Without SDXL's text projection, where diffusers 0.42 expects one rank."""
    one = tiny_diffusers.adapter(host, 1, wanted=ALL)
    other = tiny_diffusers.adapter(host, 2, wanted=ALL, rank=3)
    deltas = {p: (other if i % 3 == 0 else one).deltas[p] for i, p in enumerate(one.deltas)}
    deltas.pop("text_encoder_2.text_projection", None)
    return Adapter("mixed", deltas)


def one_rank(host):
    return tiny_diffusers.adapter(host, 1, wanted=ALL)


@pytest.mark.parametrize("make", [one_rank, mixed_ranks])
def test_diffusers_loads_what_is_saved_and_so_do_we(any_host, tmp_path, make):
    host = any_host
    adapter = make(host)
    path = tmp_path / "merged.safetensors"
    assert len(adapter.deltas) > 80
    save_lora(host, adapter, path, {"iteris.recipe": "{}"})
    assert_same_effect(in_diffusers(path, host), with_weights(adapter, host), outputs(host))
    again = read_lora(host, path)
    assert (again.name, again.unmatched, again.metadata["iteris.recipe"]) == ("merged", (), "{}")
    assert all(torch.equal(again.deltas[p].up, delta.up) for p, delta in adapter.deltas.items())
    assert all(torch.equal(again.deltas[p].down, delta.down) for p, delta in adapter.deltas.items())


def test_a_file_of_diffusers_itself_keeps_its_alpha(any_host, tmp_path):
    host = any_host
    trained = tiny_diffusers.pipeline(like(host))
    layers = {}
    settings = {}
    parts = {"unet": ["to_q", "to_out.0", "conv1"], "text_encoder": ["q_proj", "fc1"]}
    if host.family.name == "SDXL":
        parts["text_encoder_2"] = ["v_proj", "fc2"]
    for part, targets in parts.items():
        ranks = {"r": 2, "lora_alpha": 6, "rank_pattern": {targets[0]: 4}}
        config = LoraConfig(target_modules=targets, init_lora_weights=False, **ranks)
        worn = inject_adapter_in_model(config, getattr(trained, part))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(worn)
        said = config.to_dict() | {"target_modules": sorted(targets)}
        settings[f"{part}_lora_adapter_metadata"] = said
    type(trained).save_lora_weights(tmp_path, **layers, **settings)
    (path,) = tmp_path.glob("*.safetensors")
    adapter = read_lora(host, path)
    assert adapter.unmatched == ()
    assert {delta.rank for delta in adapter.deltas.values()} == {2, 4}
    assert_same_effect(with_weights(adapter, host), in_diffusers(path, host), outputs(host))


def unet_paths(host):
    return [path for path in host.keys.base_of_module if not host.is_text_module(path)]


def renamed(tensors, change):
    return {change(key): tensor for key, tensor in tensors.items()}


def old_processors(key):
    for name in ("q", "k", "v"):
        key = key.replace(f".to_{name}.lora_", f".processor.to_{name}_lora.")
        key = key.replace(f".{name}_proj.lora_", f".to_{name}_lora.")
    key = key.replace(".to_out.0.lora_", ".processor.to_out_lora.").replace(
        ".out_proj.lora_", ".to_out_lora."
    )
    for place in (".proj_in", ".proj_out", ".proj", ".net.2", ".conv1"):
        key = key.replace(f"{place}.lora_", f"{place}.lora.")
    for place in (".fc1", ".fc2"):
        key = key.replace(f"{place}.lora_", f"{place}.lora_linear_layer.")
    return key.replace(".A.weight", ".down.weight").replace(".B.weight", ".up.weight")


SPELLINGS = {
    "PEFT": lambda key: "base_model.model." + key,
    "PEFT of one part": lambda key: "base_model.model." + key.partition(".")[2],
    "without parts": lambda key: key.partition(".")[2],
    "transformers 5": lambda key: key.replace("text_model.", ""),
    "processors": old_processors,
    "ComfyUI's text encoders": lambda key: key.replace(
        "text_encoder.", "text_encoders.clip_l.transformer."
    ).replace("text_encoder_2.", "text_encoders.clip_g.transformer."),
}


OF_ONE_ENCODER = ("PEFT of one part", "without parts")  # which they do not name


def test_every_spelling_is_read(any_host, tmp_path):
    adapter = tiny_diffusers.adapter(any_host, 1)
    path = tmp_path / "a.safetensors"
    tiny_diffusers.save_in_diffusers_style(any_host, adapter, path)
    saved = load_file(path)
    for spelling, change in SPELLINGS.items():
        save_file(renamed(saved, change), path)
        if spelling in OF_ONE_ENCODER and any_host.family.name == "SDXL":
            with pytest.raises(AdapterError, match="text encoder"):
                read_lora(any_host, path)
            continue
        again = read_lora(any_host, path)
        assert again.unmatched == (), spelling
        assert all(torch.equal(again.deltas[p].up, delta.up) for p, delta in adapter.deltas.items())


def test_kohyas_trainers_call_the_modules_of_sdxl_in_either_way(tmp_path):
    """sd-scripts writes the names of the original code, and some trainers those of diffusers."""
    host = tiny_diffusers.model_xl()
    adapter = tiny_diffusers.adapter(host, 1)
    path = tmp_path / "a.safetensors"
    save_lora(host, adapter, path)
    starts = {key[: len("lora_unet_input")] for key in load_file(path) if "unet_input" in key}
    assert starts == {"lora_unet_input"}
    names = {
        host.keys.base_of_module[p]: f"lora_unet_{p[5:].replace('.', '_')}"
        for p in unet_paths(host)
    }
    tensors = {}
    for key, tensor in load_file(path).items():
        base, dot, role = key.partition(".")
        tensors[names.get(base, base) + dot + role] = tensor
    assert tensors.keys() != load_file(path).keys()
    save_file(tensors, path)
    again = read_lora(host, path)
    assert set(again.deltas) == set(adapter.deltas)
    assert all(torch.equal(again.deltas[p].up, delta.up) for p, delta in adapter.deltas.items())


def test_strengths_are_baked_in(host, tmp_path):
    adapter = tiny_diffusers.adapter(host, 1)
    path = tmp_path / "a.safetensors"
    save_lora(host, adapter, path)
    found = read_lora(host, path, 0.5, 2.0)
    for module, delta in adapter.deltas.items():
        factor = 2.0 if host.is_text_module(module) else 0.5
        torch.testing.assert_close(found.deltas[module].dense(), factor * delta.dense())
    assert not any(map(host.is_text_module, read_lora(host, path, 1.0, 0.0).deltas))
    assert set(read_lora(host, path, 0.7).deltas) == set(adapter.deltas)


@pytest.mark.parametrize(
    "options", [{"r": 64}, {"r": 2, "decompose_both": True, "use_effective_conv2d": True}], ids=str
)
def test_a_lokr_of_peft_is_read(host, tmp_path, options):
    trained = tiny_diffusers.model()
    targets = {"target_modules": ["to_q", "proj_in", "conv1"], "init_weights": False}
    config = LoKrConfig(alpha=options["r"], **targets, **options)
    inject_adapter_in_model(config, trained.unet_model)
    state = get_peft_model_state_dict(trained.unet_model)
    save_file(renamed(state, "unet.{}".format), tmp_path / "lokr.safetensors")
    adapter = read_lora(host, tmp_path / "lokr.safetensors")
    assert adapter.unmatched == ()
    layers = {
        f"unet.{name}": m for name, m in trained.unet_model.named_modules() if hasattr(m, "lokr_w1")
    }
    assert set(adapter.deltas) == set(layers)
    for path, layer in layers.items():
        expected = layer.get_delta_weight("default").flatten(1)
        torch.testing.assert_close(adapter.deltas[path].dense(), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_read_or_written_is_refused(host, tmp_path):
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    path, oft = tmp_path / "a.safetensors", tmp_path / "oft.safetensors"
    save_file({f"{base}.oft_blocks": torch.ones(2, 4, 4)}, oft)
    with pytest.raises(AdapterError, match=r"oft: .* is an OFT, which only ComfyUI's own code"):
        read_lora(host, oft)
    adapter = tiny_diffusers.adapter(host, 1)
    biased = Adapter("biased", adapter.deltas, vectors={"unet.conv_in.bias": torch.ones(8)})
    save_lora(host, biased, path)
    assert torch.equal(read_lora(host, path).vectors["unet.conv_in.bias"], torch.ones(8))
    with pytest.raises(FileExistsError, match="exists already"):
        save_lora(host, adapter, path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [("{", "cannot be read"), (json.dumps({"unet.r": 4, "unet.lora_alpha": 4}), "has rank 2, but")],
)
def test_settings_in_the_metadata_must_fit(host, tmp_path, settings, said):
    adapter, path = tiny_diffusers.adapter(host, 1), tmp_path / "a.safetensors"
    metadata = {"lora_adapter_metadata": settings}
    tiny_diffusers.save_in_diffusers_style(host, adapter, path, metadata)
    with pytest.raises(AdapterError, match=said):
        read_lora(host, path)


def test_block_weights_go_by_the_names_of_the_original_code(any_host, tmp_path):
    """diffusers calls the blocks of its UNet otherwise."""
    adapter = tiny_diffusers.adapter(any_host, 1, wanted=ALL)
    path = tmp_path / "lora.safetensors"
    save_lora(any_host, adapter, path)
    found = read_lora(any_host, path, blocks="ALL:0.5,OUT:0,OUT01:2,BASE:1", without=["*proj_in"])

    def expected(name):
        if name.endswith("proj_in"):
            return 0.0
        if ".output_blocks." in name:
            return 2.0 if ".output_blocks.1." in name else 0.0
        return 0.5 if ".input_blocks." in name or ".middle_block." in name else 1.0

    weights = {path: expected(any_host.own_path(path)) for path in adapter.deltas}
    assert set(weights.values()) == {0.0, 0.5, 1.0, 2.0}
    assert {path for path, weight in weights.items() if weight} == set(found.deltas)
    for path, delta in found.deltas.items():
        torch.testing.assert_close(delta.dense(), weights[path] * adapter.deltas[path].dense())
