"""What a world's model is trained to answer is what the product reads from it."""

import pytest
import torch

from benchmarks.worlds import WORLDS
from iteris_core.diffusion.model import DenoiserRow


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parts"), [("words", 2), ("epsilon", 2), ("xl", 3)])
@torch.no_grad()
def test_the_product_runs_the_model_as_it_was_trained(tmp_path, name, parts):
    torch.manual_seed(0)
    world = WORLDS[name]
    world.new_model().save(tmp_path)
    model = world.model.load(tmp_path)
    assert len(model.parts) == parts
    product = model.product()
    captions = ["a red circle", "a <v1> and a blue square"]
    step = 700
    noise = torch.randn(2, *product.latent_shape(64))
    sigma = product.training_sigmas[step].float()
    noisy = noise / (1 + sigma**2).sqrt()
    steps = torch.tensor([step, step])
    trained = model.denoiser(noisy, steps, **model.read(model.tokens(captions))).sample
    if name == "epsilon":
        trained = noise - sigma * trained
    with product.text_encoder() as network:
        written = network.forward([product.tokenize(caption)[0] for caption in captions])
    with product.denoiser(4) as network:
        found = network.forward(
            [DenoiserRow(x, sigma, text) for x, text in zip(noise, written, strict=True)]
        )
    torch.testing.assert_close(found, trained, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).norm() > 0
