"""Which tokens of scenes answer to each other, with the tokenizer of Stable Diffusion."""

from types import SimpleNamespace

import pytest
import tiny_diffusers
from fake_host import use
from transformers import CLIPTokenizer

from demo.server import cache_folder, find_comfyui
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.plans import make_plans

pytestmark = pytest.mark.slow

LENGTH = 77
TRIGGERS = (
    "sks dog",
    "a ohwx woman, red hair",
    "a very long zwx-01 creature from the deep northern sea",
)


@pytest.fixture(scope="module")
def host():
    """A model whose tokenizer is that of Stable Diffusion, as ComfyUI ships it."""
    folder = find_comfyui(cache_folder()) / "comfy" / "sd1_tokenizer"
    host = tiny_diffusers.model()
    host.tokenizer = CLIPTokenizer.from_pretrained(folder)
    host.fills = [host.tokenizer.pad_token_id]
    host.text_models[0] = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=LENGTH))
    return host


@pytest.mark.parametrize("seed", range(3))
def test_a_members_own_words_the_ends_and_the_padding_are_paired(host, seed):
    uses = [use(name, (name,), trigger=name) for name in TRIGGERS]
    uses.append(use("ink", ("ink",), trigger="in inkwsh style", kind="style"))
    calibration = Calibration(scene_weight=0.3, trajectories=30, seed=seed)
    plans = make_plans(uses, calibration, host.token_positions)
    lengths = set()
    for lora, plan in zip(uses, plans[-len(uses) :], strict=True):
        own = host.tokenizer(lora.trigger, add_special_tokens=False)["input_ids"]
        for reading in plan.readings():
            ((teacher,),), ((student,),) = (host.tokenize(caption) for caption in reading.captions)
            pairs = reading.pairing.pairs(LENGTH)
            for side, ids in enumerate((teacher, student)):
                positions = [pair[side] for pair in pairs]
                assert len(set(positions)) == len(positions)
                assert ids[positions[: len(own)]].tolist() == own
                ends = ids[positions[len(own) :]]
                assert ends.unique().tolist() == [host.tokenizer.eos_token_id]  # padding is it, too
            counts = [int((ids == host.tokenizer.eos_token_id).sum()) for ids in (teacher, student)]
            assert len(pairs) - len(own) == min(counts)
            assert pairs[len(own)] == tuple(LENGTH - count for count in counts)
            lengths.add(counts[0] - counts[1])
    assert min(lengths) < 0 < max(lengths)
