"""benchmarks/worlds: drawings, captions, the judge's rules, and the whole way, on worlds trained for
two steps.
"""

from dataclasses import replace

import pytest
import torch

from benchmarks.worlds import NAMES, find_world

pytestmark = pytest.mark.nightly

TINY = {
    "words": {"widths": (16, 16)},
    "flow": {"heads": 1, "blocks": 2},
    "single": {"heads": 1, "blocks": 2},
}


@pytest.fixture(params=NAMES)
def world(request):
    for library in ("diffusers", "transformers", "peft"):
        pytest.importorskip(library)
    return find_world(request.param)


def test_a_hit_needs_all_that_was_asked_and_nothing_else():
    from benchmarks.worlds.recogniser import Found, Judgement
    from benchmarks.worlds.score import Probe

    world = find_world("words")
    star, heart = world.concepts[:2]
    probe = Probe("seen", ("<v1>", "<v2>"), "a <v1> and a <v2>", (star, heart))

    def seen(*labels, style=None):
        return Judgement(tuple(Found(*label, 0, i) for i, label in enumerate(labels)), style)

    assert probe.is_hit(seen(heart, star))
    assert not probe.is_hit(seen(star))
    assert not probe.is_hit(seen(star, star))
    assert not probe.is_hit(seen(star, heart, ("red", "circle")))
    assert not probe.is_hit(seen(star, heart, style="outlined"))
    alone = replace(probe, about=("<v1>",), labels=(star,))
    assert alone.leaks(world, seen(star, heart), ("<v1>", "<v2>"))
    assert not alone.leaks(world, seen(star, heart), ("<v1>",))
    assert alone.leaks(world, seen(star, style="outlined"), ("<v1>", "<s1>"))


def test_the_flow_model_speaks_the_product_s_language():
    flow_model = pytest.importorskip("benchmarks.worlds.flow_model")
    from iteris_core.diffusion.model import DenoiserRow, Encoded

    world = find_world("flow")
    torch.manual_seed(0)
    model = replace(world, sizes=TINY["flow"]).new_model()
    torch.nn.init.normal_(model.denoiser.proj_out.weight, std=0.1)
    seen = flow_model.FlowStableDiffusion(model)
    clean, noise = torch.randn(2, 27, 8, 8)
    context = torch.randn(28, 64)
    t = torch.tensor(0.3)
    sigma = t / (1 - t)
    with torch.no_grad(), seen.denoiser() as network:
        found = network.forward([DenoiserRow(clean + sigma * noise, sigma, Encoded(context))])[0]
        x = (1 - t) * clean + t * noise
        expected = x - t * model.velocity(x[None], t[None], context[None])[0]
        torch.testing.assert_close(found, expected)
        streams = {path.split(".", 3)[-1]: network.stream(path) for path in network.modules}
    assert streams["attn.add_k_proj"] == streams["txt_mlp.net.2"] == "text"
    assert streams["attn.to_k"] == streams["img_mlp.net.2"] == "image"
    sigmas = seen.sigmas(4)
    assert sigmas[-1] == 0
    assert (sigmas[:-1] > sigmas[1:]).all()
    torch.testing.assert_close(sigmas[0], torch.tensor(0.98 / 0.02))


@pytest.mark.slow
def test_the_whole_way_on_a_world_that_has_learned_nothing(world, tmp_path):
    from benchmarks.worlds.bench import load_bench
    from benchmarks.worlds.comparisons import Comparison
    from benchmarks.worlds.loras import lora_folder, train_lora
    from benchmarks.worlds.methods import Cell, Recipe
    from benchmarks.worlds.recogniser import Names, Recogniser
    from benchmarks.worlds.settings import LoraKind
    from benchmarks.worlds.training import train_base

    phase = replace(world.training.phases[0], steps=2)
    training = replace(world.training, phases=(phase,), batch=4, scenes=8)
    tiny = replace(world, sizes=TINY[world.name], training=training)
    told = []
    train_base(tiny, tmp_path / "base", 0, lambda *step: told.append(step[:2]), every=1)
    assert told == [(1, 2), (2, 2)]
    train_base(tiny, tmp_path / "base", 0, lambda *step: told.append(step[:2]))
    assert len(told) == 2
    torch.save(Recogniser(Names.of(world.drawing)).state_dict(), tmp_path / "recogniser.pt")
    base = world.model.load(tmp_path / "base")
    kind = LoraKind(steps=2, layers=("attention", "feed_forward", "convolution"))
    triggers = (*world.triggers[:2], *world.style_triggers[:1])
    for trigger in triggers:
        train_lora(world, base, trigger, kind, 0, lora_folder(tmp_path, world, trigger, "usual"))
    bench = load_bench(world, tmp_path)
    paths = bench.lora(triggers[0], "usual").adapter.deltas
    assert any("mlp" in path or ".ff." in path for path in paths)
    assert any("conv1" in path for path in paths) == (world.name == "words")
    assert any(map(bench.model.is_text_module, paths)) == (world.name == "words")
    before = bench.model.modules[next(iter(paths))].weight.clone()
    recipe = Recipe("test", {"target": "full_output"}, {"trajectories": 2, "scene_weight": 0.1})
    cell = Cell(bench, recipe, triggers)
    found = cell.entry()
    styled = {"styled", "styled unseen"} if world.style_triggers else set()
    assert set(found["hits"]) == {"alone", "company", "seen", "unseen", "base"} | styled
    assert cell.entry() == found
    assert torch.equal(bench.model.modules[next(iter(paths))].weight, before)
    recipes = (
        Recipe("sum", {"method": "sum"}),
        recipe,
        Recipe("whole job", {}, {"trajectories": 2, "held_out": 1}, job={"correct_strength": True}),
    )
    table = Comparison(recipes, {"pairs": 1}).table("pairs", bench)
    assert [row[0] for row in table.rows] == ["sum", "test", "whole job"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert float(table.rows[-1][-1]) >= 1
