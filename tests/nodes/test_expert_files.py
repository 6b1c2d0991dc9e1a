"""Which model of a pair a LoRA's file is for, by its name and keys."""

import pytest
import torch
from fake_host import use
from iteris_pack.nodes.expert_files import expert_of, partner_of, split_by_expert, without_mark
from iteris_pack.nodes.loras.pairs import check_one_expert, check_two_experts, paired, with_partners
from iteris_pack.nodes.sockets import ChosenLora

from iteris_core import Adapter, ConfigError
from iteris_core.diffusion.lora_use import LoadedLora


@pytest.mark.parametrize(
    ("high", "low", "both"),
    [
        ("dog_high_noise.safetensors", "dog_low_noise.safetensors", "dog"),
        ("wan/Dog-HighNoise.safetensors", "wan/Dog-LowNoise.safetensors", "wan/dog"),
        ("dog_HIGH_v2.safetensors", "dog_LOW_v2.safetensors", "dog_v2"),
        ("wan22-H-dog.safetensors", "wan22-L-dog.safetensors", "wan22_dog"),
        ("Dog_high.safetensors", "dog_low.safetensors", "dog"),
        ("low_poly_dog_H.safetensors", "low_poly_dog_L.safetensors", "low_poly_dog"),
    ],
)
def test_two_files_are_a_pair_by_their_names(high, low, both):
    files = [high, low, "low_poly.safetensors"]
    assert (partner_of(high, files), partner_of(low, files)) == (low, high)
    assert (expert_of(high, files), expert_of(low, files)) == ("high", "low")
    names = [file.removesuffix(".safetensors") for file in (high, low)]
    assert without_mark(*names).lower() == without_mark(*reversed(names)).lower() == both


def test_a_word_in_a_name_alone_says_nothing():
    assert expert_of("low_poly.safetensors", ["low_poly.safetensors"]) is None
    assert expert_of("dog_low_noise.safetensors", []) == "low"


def test_a_file_with_both_is_split_and_no_other():
    tensors = {
        f"diffusion_model.transformer_{n}.blocks.0.ffn.0.lora_A.weight": torch.ones(n)
        for n in (1, 2)
    }
    split = split_by_expert(tensors)
    lengths = {name: {k: len(t) for k, t in part.items()} for name, part in split.items()}
    key = "diffusion_model.blocks.0.ffn.0.lora_A.weight"
    assert lengths == {"high": {key: 1}, "low": {key: 2}}
    assert split_by_expert({"transformer_blocks.1.attn.lora_A.weight": torch.ones(1)}) is None
    assert split_by_expert({}) is None


def lora(file, strength=1.0, prompts=("a dog",)):
    name = file.removesuffix(".safetensors")
    return ChosenLora(use(name, prompts, file=file, strength_model=strength))


FILES = ["dog_high_noise.safetensors", "dog_low_noise.safetensors", "ink.safetensors"]


def test_the_other_file_of_a_row_is_found_and_keeps_a_strength_of_its_own():
    found = with_partners([lora(FILES[1], 0.7), lora(FILES[2])], FILES)
    strengths = [(one.use.file, one.use.strength_model) for one in found]
    assert strengths == [(FILES[1], 0.7), (FILES[0], 0.7), (FILES[2], 1.0)]
    given = [lora(FILES[0], 0.7), lora(FILES[1], 0.5)]
    assert with_partners(given, FILES) == given


def test_a_pair_is_one_lora_and_what_has_no_other_file_is_told():
    chosen = [
        lora(FILES[1], prompts=("b",)),
        lora(FILES[2]),
        lora(FILES[0]),
        lora("cat_low_noise.x"),
    ]
    loras = [LoadedLora(one.use, Adapter(one.use.name, {})) for one in chosen]
    found, notes = paired(loras, FILES)
    assert [one.use.name for one in found] == ["dog", "ink", "cat_low_noise.x"]
    assert found[0].use.prompts == ("a dog", "b")
    assert [one.file for one in found[0].asked] == FILES[:2]
    assert [note.text for note in notes] == [
        "cat_low_noise.x: there is no file for the high noise model, on which it changes nothing"
    ]


def test_what_is_of_another_expert_than_the_models_is_refused():
    check_one_expert([lora(FILES[0]), lora(FILES[2])], {"wan_high_noise.safetensors", "default"})
    said = r"dog_high_noise.* and dog_low_noise.* are the two files.*to model_low_noise of Merge LoRAs for video"
    with pytest.raises(ConfigError, match=said):
        check_one_expert([lora(file) for file in FILES], set())
    with pytest.raises(ConfigError, match="is for the high noise model, and MODEL is the low"):
        check_one_expert([lora(FILES[0])], {"wan_low_noise.safetensors"})
    check_two_experts({"wan_high_noise.safetensors"}, {"wan_low_noise.safetensors"})
    with pytest.raises(ConfigError, match="the two models are the wrong way round"):
        check_two_experts({"wan_low_noise.safetensors"}, {"x"})
