"""LoRA files: every spelling of a key, alpha / rank, the way back, and what is refused."""

import re
from dataclasses import replace

import pytest
import torch

from iteris_core import Adapter, AdapterError, LowRankDelta
from iteris_core.files import kohya
from iteris_core.files.families import FAMILIES
from iteris_core.files.model_keys import ModelKeys

# key base -> module path, for every spelling that a model may know
BASES = {
    "lora_unet_down_blocks_0_attn1_to_q": "unet.q",
    "unet.down_blocks.0.attn1.to_q": "unet.q",
    "diffusion_model.input_blocks.1.q": "unet.q",
    "lora_unet_down_blocks_0_proj_in": "unet.proj",
    "lora_te_text_model_encoder_layers_0_q_proj": "text.q",
    "lora_unet_conv_in": "unet.conv_in",
}
KEYS = ModelKeys(
    FAMILIES["SD1.5"], BASES, {}, {"unet.q": (6, 4), "unet.proj": (5, 4), "text.q": (3, 3)}
)
UNET = "lora_unet_down_blocks_0_attn1_to_q"
PROJ = "lora_unet_down_blocks_0_proj_in"
TEXT = "lora_te_text_model_encoder_layers_0_q_proj"


def factors(base=UNET, rank=2, shape=(6, 4), alpha=None, kernel=()):
    tensors = {
        f"{base}.lora_up.weight": torch.randn(shape[0], rank, *kernel),
        f"{base}.lora_down.weight": torch.randn(rank, shape[1], *kernel),
    }
    return tensors if alpha is None else {**tensors, f"{base}.alpha": torch.tensor(alpha)}


def parse(tensors, **more):
    return kohya.parse("file", tensors, KEYS, **more)


ENDINGS = [  # of up, of down
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
]


def test_every_spelling_gives_the_same_delta():
    for base in [base for base, path in BASES.items() if path == "unet.q"]:
        for up, down in ENDINGS:
            tensors = {base + down: torch.randn(2, 4), base + up: torch.randn(6, 2)}
            adapter = parse(tensors)
            assert list(adapter.deltas) == ["unet.q"]
            expected = tensors[base + up] @ tensors[base + down]
            torch.testing.assert_close(adapter.deltas["unet.q"].dense(), expected)


def test_alpha_over_rank_is_folded_into_up():
    for alpha, factor in ((None, 1.0), (1.0, 0.5), (0.0, 0.0), (8, 4.0), ([4.0], 2.0)):
        tensors = factors(alpha=alpha)
        delta = parse(tensors).deltas["unet.q"]
        assert torch.equal(delta.down, tensors[f"{UNET}.lora_down.weight"])
        torch.testing.assert_close(delta.up, factor * tensors[f"{UNET}.lora_up.weight"])


def test_any_precision_is_read_as_float32():
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        tensors = {key: tensor.to(dtype) for key, tensor in factors(alpha=1.0).items()}
        delta = parse(tensors).deltas["unet.q"]
        assert (delta.up.dtype, delta.down.dtype) == (torch.float32, torch.float32)


def test_keys_of_no_module_are_listed_not_dropped():
    strange = {
        "lora_unet_elsewhere.lora_up.weight": torch.zeros(1),
        "logit_scale": torch.zeros(1),
        f"{PROJ}.bias": torch.zeros(1),  # of a module that has nothing else in the file
    }
    adapter = parse({**strange, **factors()}, metadata={"ss_tag_frequency": "{}"})
    assert adapter.unmatched == tuple(strange)
    assert list(adapter.deltas) == ["unet.q"]
    assert adapter.metadata == {"ss_tag_frequency": "{}"}


def test_a_tensor_of_unknown_meaning_beside_known_ones_is_refused_by_name():
    diffusers = "unet.down_blocks.0.attn1.to_q"
    for base, ending in (
        (UNET, "lora_up.bias"),
        (UNET, "scalar"),
        (diffusers, "lora_A.bias"),
        (diffusers, "lora_magnitude_vector.other.weight"),
    ):
        said = f"file: '{re.escape(base)}.{re.escape(ending)}' changes what .* an unknown kind"
        with pytest.raises(AdapterError, match=said):
            parse({f"{base}.{ending}": torch.zeros(1), **factors(base)})


NAMELESS = {
    "delta": {"deltas": {"text.projection": LowRankDelta(torch.ones(2, 1), torch.ones(1, 2))}},
    "vector": {"vectors": {"text.norm.weight": torch.ones(2)}},
}


def test_a_module_without_a_key_name_is_an_error_not_left_out():
    for parts in NAMELESS.values():
        adapter = Adapter("merged", **{"deltas": {}, **parts})
        said = r"merged: 'text\.(projection|norm)' has no key name"
        with pytest.raises(AdapterError, match=said):
            kohya.to_tensors(adapter, {"unet.q": UNET})


def test_what_is_written_is_read_back():
    """A solve leaves transposed factors; core's SaveLoRA calls save_file on them as they are."""
    for ranks in ((3, 3), (3, 1)):  # of different ranks there are no alphas, which means the same
        deltas = {
            "unet.q": LowRankDelta(torch.randn(ranks[0], 6).T, torch.randn(4, ranks[0]).T),
            "unet.proj": LowRankDelta(torch.randn(ranks[1], 5).T, torch.randn(4, ranks[1]).T),
        }
        deltas = {path: delta.to(dtype=torch.float16) for path, delta in deltas.items()}
        adapter = Adapter("merged", deltas)
        names = {"unet.q": UNET, "unet.proj": PROJ}
        tensors = kohya.to_tensors(adapter, names, {"unet.proj": (1, 1)})
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        assert tensors[f"{PROJ}.lora_down.weight"].shape == (ranks[1], 4, 1, 1)
        alphas = {key: tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha")}
        assert alphas == ({f"{UNET}.alpha": 3, f"{PROJ}.alpha": 3} if ranks == (3, 3) else {})
        again = parse(tensors)
        assert again.unmatched == ()
        for path, delta in adapter.deltas.items():
            assert torch.equal(again.deltas[path].up, delta.up.float())
            assert torch.equal(again.deltas[path].down, delta.down.float())


def test_a_layer_of_very_high_rank_is_written_whole_on_request():
    large = LowRankDelta(torch.randn(4, 5).T, torch.randn(4, 4).T)
    vector = torch.randn(3, 2)[:, 0]
    adapter = Adapter("merged", {"unet.proj": large}, vectors={"text.q.bias": vector})
    for whole in (False, True):
        names = {"unet.proj": PROJ, "text.q": TEXT}
        tensors = kohya.to_tensors(adapter, names, {"unet.proj": (1, 1)}, whole=whole)
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        assert (f"{PROJ}.diff" in tensors) is whole
        assert torch.equal(tensors[f"{TEXT}.diff_b"], vector)
        read = parse({key: t for key, t in tensors.items() if key.startswith(PROJ)})
        found = read.deltas["unet.proj"].dense()
        torch.testing.assert_close(found, large.dense(), rtol=1e-4, atol=1e-4)


VERSION, NETWORK = "ss_base_model_version", "ss_network_module"
KIND, PREDICTS, SIDES = (
    f"modelspec.{x}" for x in ("architecture", "prediction_type", "resolution")
)
OF_SD15 = {VERSION: "sd_v1", NETWORK: "networks.lora", KIND: "stable-diffusion-v1/lora"}
OF_SD15 |= {PREDICTS: "epsilon", SIDES: "512x512", "modelspec.sai_model_spec": "1.0.1"}
OF_SD15 |= {"ss_network_dim": "2", "ss_network_alpha": "2", "modelspec.title": "merged", "own": "x"}
OF_SDXL = {VERSION: "sdxl_base_v1-0", KIND: "stable-diffusion-xl-v1-base/lora"}
OF_SDXL |= {PREDICTS: "v", SIDES: "1024x1024"}
OF_FLUX = {VERSION: "flux1", NETWORK: "networks.lora_flux", KIND: "flux-1-dev/lora", PREDICTS: None}
SAID = {  # family -> what it predicts, and what a file says of it
    "SD1.5": ("epsilon", OF_SD15),
    "SDXL": ("v", OF_SDXL),
    "Flux.1": ("", OF_FLUX),
    "AuraFlow": ("", {KIND: None, NETWORK: None}),  # no program has a name for it
}


def test_a_file_says_its_base_model():
    adapter = Adapter("merged", {"unet.q": LowRankDelta(torch.ones(6, 2), torch.ones(2, 4))})
    for name, (predicts, said) in SAID.items():
        keys = replace(KEYS, family=FAMILIES[name], prediction_type=predicts)
        keys = replace(keys, base_of_module={"unet.q": UNET})
        tensors, found = kohya.file_of(adapter, keys, {"own": "x"})
        assert {key: found.get(key) for key in said} == said
        assert {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"} < set(found)
        assert {key.partition(".")[0] for key in tensors} == {UNET}
        assert not any(key.startswith("sshs") for key in kohya.file_of(adapter, keys)[1])


def test_a_file_in_the_models_own_names():
    keys = replace(
        KEYS,
        family=FAMILIES["Qwen-Image"],
        base_of_module={path: f"diffusion_model.{path}" for path in ("unet.q", "unet.proj")},
    )
    delta = LowRankDelta(torch.randn(6, 2), torch.randn(2, 4))
    large = LowRankDelta(torch.randn(5, 4), torch.randn(4, 4))
    adapter = Adapter("x", {"unet.q": delta, "unet.proj": large}, vectors={"unet.q.bias": delta.up})
    tensors, _ = kohya.file_of(adapter, keys, whole=True)
    assert set(tensors) == {
        "diffusion_model.unet.q.lora_A.weight",
        "diffusion_model.unet.q.lora_B.weight",
        "diffusion_model.unet.q.diff_b",
        "diffusion_model.unet.proj.diff",
    }
    assert torch.equal(tensors["diffusion_model.unet.q.lora_B.weight"], delta.up)
    own = replace(keys, module_of_base={"diffusion_model.unet.q": "unet.q"})
    read = kohya.parse("x", {k: v for k, v in tensors.items() if "lora" in k}, own)
    assert torch.equal(read.deltas["unet.q"].dense(), delta.dense())


def test_a_wrong_shape_names_both_families():
    wrong = factors(shape=(6, 5))
    with pytest.raises(AdapterError, match=r"another model; use a LoRA for SD1\.5"):
        parse(wrong)
    message = "6 x 4. The file is for SDXL; use a LoRA for SD1.5"
    with pytest.raises(AdapterError, match=re.escape(message)):
        parse(wrong, metadata={"ss_base_model_version": "sdxl_base_v1-0"})


def test_the_metadata_tells_the_family_of_a_file_of_which_nothing_fits():
    metadata = {"modelspec.architecture": "Flux.2-klein-4b/lora"}
    message = "fits this model; this file is for Flux.2, the model is SD1.5; choose a LoRA for"
    with pytest.raises(AdapterError, match=re.escape(message)):
        parse({"x.lora_up.weight": torch.zeros(2, 2)}, metadata=metadata)


def test_names_of_the_right_family_that_nobody_reads_are_told_as_such():
    message = r"fits this model; it is for SD1\.5, but in names that neither IterIS nor ComfyUI"
    key = "lora_te_text_model_encoder_layers_99_mlp_fc1"
    with pytest.raises(AdapterError, match=message):
        parse({f"{key}.lora_down.weight": torch.zeros(2, 768)})


ATTENDS = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
TEXT_1 = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
TEXT_OF_DIFFUSERS = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
SDXL_KEYS = ModelKeys(
    FAMILIES["SDXL"],
    {ATTENDS: "unet.k", TEXT_1: "text.fc1", TEXT_OF_DIFFUSERS: "text.fc1"},
    {},
    {"unet.k": (640, 2048), "text.fc1": (6, 4)},
)
SAYS_SD15 = {VERSION: "sd_v1"}


def test_a_text_part_of_another_family_is_refused_even_where_it_fits():
    for base in (TEXT_1, TEXT_OF_DIFFUSERS):
        for metadata in (SAYS_SD15, {KIND: "stable-diffusion-v1/lora"}):
            for rest in ({}, {"odd.alpha": torch.tensor(1.0)}):
                said = r"file is for SD1\.5, the model is SDXL; ch"
                with pytest.raises(AdapterError, match=said):
                    kohya.parse("file", factors(base) | rest, SDXL_KEYS, metadata)


def test_a_text_part_of_this_family_of_one_alike_or_of_an_unknown_base_fits():
    for said in (None, "sdxl_base_v1-0", "ponyDiffusionV6XL", "noobaiXL_vPred10", "my_finetune"):
        metadata = {} if said is None else {"ss_base_model_version": said}
        assert kohya.parse("file", factors(TEXT_1), SDXL_KEYS, metadata).deltas
    keys = replace(SDXL_KEYS, family=FAMILIES["Flux.1"])
    assert kohya.parse("file", factors(TEXT_1), keys, {"ss_base_model_version": "chroma"}).deltas


def test_a_file_with_keys_of_this_family_is_not_refused_for_what_it_says():
    """Merges and old trainers write the wrong base model."""
    tensors = factors(ATTENDS, shape=(640, 2048)) | factors(TEXT_1)
    assert set(kohya.parse("file", tensors, SDXL_KEYS, SAYS_SD15).deltas) == {"unet.k", "text.fc1"}


def test_a_file_that_fits_is_not_refused_for_keys_that_look_like_another_familys():
    """A Flux.2 Klein of this width has the attention layers of Flux.1."""
    base = "diffusion_model.double_blocks.0.img_attn.qkv"
    keys = ModelKeys(FAMILIES["Flux.2"], {base: "qkv"}, {}, {"qkv": (6, 4)})
    for metadata in ({}, {"ss_base_model_version": "flux2_klein_4b"}):
        assert kohya.parse("file", factors(base), keys, metadata).deltas


def without(tensors, *suffixes):
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(suffixes)}


DIFF = torch.ones(6, 4)
BAD = [
    (without(factors(alpha=1.0), "up.weight"), "has no up factor; the file is incomplete"),
    (without(factors(), "down.weight"), "has no down factor; the file is incomplete"),
    (factors(shape=(7, 4)), "factors (7, 2) and (2, 4), but this model's weight there is 6 x 4"),
    (factors(shape=(6, 5)), "factors (6, 2) and (2, 5), but this model's weight there is 6 x 4"),
    ({**factors(), f"{UNET}.lora_up.weight": DIFF[:, :3]}, "has factors (6, 3) and (2, 4)"),
    (factors(PROJ, shape=(5, 4), kernel=(3, 3)), "factors (5, 2, 3, 3) and (2, 4, 3, 3)"),
    (factors("lora_unet_conv_in"), "changes a layer that is neither Linear nor a"),
    ({f"{UNET}.diff": DIFF * float("inf")}, "holds NaN or infinite weights; the training run"),
    (factors(alpha=float("nan")), "holds NaN or infinite weights"),
    (
        factors(alpha=[1.0, 1.0]),
        "has an alpha of 2 numbers, not one; the file is damaged. Download it",
    ),
    ({**factors(), f"{UNET}.lora_A.weight": DIFF}, "has two tensors for 'down'; the file mixes"),
    ({f"{UNET}.diff": DIFF[0, 0]}, "has a difference of (), which is not a matrix; the file is"),
    ({**factors(), **factors("unet.down_blocks.0.attn1.to_q")}, "'unet.q' a second time"),
    ({}, "none of its 0 keys fits this model; it may be for another model, or no LoRA at all."),
    ({"conv.weight": DIFF, "b": DIFF}, "none of its 2 keys, such as 'conv.weight', fits this"),
]


def test_a_bad_file_is_refused_with_the_reason():
    for tensors, message in BAD:
        with pytest.raises(AdapterError, match=f"^file: .*{re.escape(message)}"):
            parse(tensors)
