"""A Stable Diffusion of two tiny networks that notes what it is asked."""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import torch
import toy
from torch import nn

from iteris_core import Adapter, LowRankDelta, MergeConfig, Network
from iteris_core.diffusion.job import Job, MergeSettings
from iteris_core.diffusion.loaded_loras import LoadedLora
from iteris_core.diffusion.lora_use import LoraUse
from iteris_core.diffusion.merging import merge_diffusion
from iteris_core.diffusion.model import Encoded
from iteris_core.diffusion.samples import make_samples, tasks_of
from iteris_core.diffusion.sampling import euler_steps, noise
from iteris_core.files.families import FAMILIES
from iteris_core.memory import Room

PIECE = 5  # tokens of a text piece
WIDTH = 6  # of a context
ROOM = Room(samples_per_chunk=3)
EXACT = MergeConfig(output_dtype=torch.float64, unit_gain=1.0, tokens_per_dimension=None)


def as_used(lora, **changes):
    return replace(lora, use=replace(lora.use, **changes))


def use(name, prompts=("x",), **settings):
    """Return a LoRA as it is used, in no file and at strength 1 if nothing else is said."""
    plain = {"file": None, "sha256": "", "strength_model": 1.0, "strength_clip": 1.0}
    return LoraUse(name=name, prompts=tuple(prompts), **{**plain, **settings})


def fake_base(keys):
    """Return what a merged LoRA knows of its model where nothing is drawn with it."""
    return SimpleNamespace(keys=keys)


def runs_by_task(loras, calibration, token_positions):
    """Return the sampling runs of each task of a merge, by the task's name."""
    samples = make_samples([lora.use for lora in loras], calibration, token_positions)
    return {
        of_task[0].task: list(dict.fromkeys(sample.run for sample in of_task))
        for of_task in tasks_of(samples)
    }


def with_guidance(host, good, bad, sigma):
    """Return the guided estimate; the one of the caption alone at pure noise."""
    return good if sigma == host.sigmas(20)[0] else bad + 3.0 * (good - bad)


def last_latents(host, run, denoise):
    """Return (sigma, latents) where a run ends, sampled alone with a denoiser."""
    sigmas = torch.cat([host.sigmas(20)[list(run.path)], torch.zeros(1)])
    start, first = (
        host.start(noise((1, 4, 8, 8), seed), sigmas[0]) for seed in (run.seed, run.first)
    )

    def estimate(x, sigma):
        return denoise(first if sigma == sigmas[0] else x, sigma)

    *_, x = euler_steps(estimate, start, sigmas)
    return sigmas[-2], x[0]


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + (self.q(x) @ x.transpose(1, 2)).softmax(-1) @ self.v(x)
        return x + self.out(x).tanh()


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inlet = nn.Conv2d(4, WIDTH, 1)
        self.outlet = nn.Conv2d(WIDTH, 4, 1)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, sigma, context):
        """Return an estimate of the clean latents."""
        sigma = sigma[:, None, None, None]
        hidden = self.inlet(x / (1 + sigma**2).sqrt()).tanh() + sigma.log() / 5
        tokens = hidden.flatten(2).transpose(1, 2)
        found = (self.q(tokens) @ self.k(context).transpose(1, 2)).softmax(-1) @ self.v(context)
        hidden = hidden + found.transpose(1, 2).reshape(hidden.shape)
        return x / (1 + sigma**2) + sigma / (1 + sigma**2).sqrt() * self.outlet(hidden.tanh())


class FakeHost:
    """Implements `DiffusionHost`, and notes what its UNet was asked."""

    EXACT = EXACT
    PIECE = PIECE

    def __init__(self):
        torch.manual_seed(0)
        self.te, self.u = (
            part().double().eval().requires_grad_(False) for part in (TextEncoder, Unet)
        )
        self.open = []
        self.unet_batches = []
        self.worn_bytes = math.inf

    def tokenize(self, caption):
        words = [1 + sum(map(ord, word)) % 49 for word in caption.split()] or [0]
        words += [0] * (-len(words) % PIECE)
        return list(torch.tensor(words).split(PIECE))

    @contextmanager
    def _part(self, name, model, forward):
        self.open.append(name)
        try:
            modules = {f"{name}.{path}": module for path, module in model.named_modules() if path}
            yield Network(
                modules,
                forward,
                lambda path: (
                    "text" if path[:3] == "te." or path in ("unet.k", "unet.v") else "image"
                ),
                worn_bytes=self.worn_bytes,
            )
        finally:
            self.open.remove(name)

    def text_encoder(self):
        return self._part("te", self.te, lambda rows: self.te(torch.stack(list(rows))))

    has_text_layers = True
    picture_tokens = None
    loader = None
    family = FAMILIES["SD1.5"]

    def encoded(self, caption, outputs):
        return Encoded(torch.cat(list(outputs)))

    def start(self, noise, sigma):
        return noise * (1 + sigma**2).sqrt()

    def noised(self, clean, noise, sigma):
        return clean + sigma * noise

    def denoiser(self, levels):
        return self._part("unet", self.u, self._denoise)

    def _denoise(self, rows):
        self.unet_batches.append(list(rows))
        latents = torch.stack([row.latents for row in rows])
        sigmas = torch.stack([row.sigma for row in rows])
        contexts = torch.stack([row.prompt.tokens for row in rows])
        return self.u(latents.double(), sigmas.double(), contexts)

    def sigmas(self, steps):
        return torch.cat([torch.logspace(1, -1, steps), torch.zeros(1)])

    def latent_shape(self, resolution, frames=1):
        return 4, resolution // 8, resolution // 8

    def is_text_module(self, path):
        return path.startswith("te.")

    def token_positions(self, text):
        return range(len(text.split()))

    # what the tests ask

    def lora(
        self,
        name,
        parts=("te", "unet"),
        prompts=("<x> cat",),
        strength=1.0,
        weight=1.0,
        unmatched=(),
    ):
        paths = [f"te.{p}" for p in ("q", "v", "out")] * ("te" in parts)
        paths += [f"unet.{p}" for p in ("inlet", "q", "k", "v", "outlet")] * ("unet" in parts)
        deltas = {}
        for path in paths:
            d_out, d_in = self.module(path).weight.shape[:2]
            deltas[path] = LowRankDelta(
                0.3 * torch.randn(d_out, 2).double(), torch.randn(2, d_in).double() / d_in**0.5
            )
        adapter = Adapter(name, deltas, unmatched).scaled(strength)
        return LoadedLora.of(adapter, prompts, weight=weight)

    def module(self, path):
        part, _, name = path.partition(".")
        return {"te": self.te, "unet": self.u}[part].get_submodule(name)

    def hooks(self):
        return toy.hook_count(self.te) + toy.hook_count(self.u)

    def patched(self, *adapters):
        host = copy.deepcopy(self)
        for adapter in adapters:
            for path, delta in adapter.deltas.items():
                weight = host.module(path).weight
                weight += delta.dense().reshape(weight.shape)
        return host

    def context(self, caption, length):
        """Return a caption's context, repeated to a length: attention stays the same."""
        context = torch.cat(list(self.te(torch.stack(self.tokenize(caption)))))
        return context.repeat(length // len(context), 1)

    def merge_rows(self):
        """Return the (teacher, student) rows of the UNet's sweep, but for the row that runs alone."""
        pairs = []
        for batch in self.unet_batches[1 - self.sweep_batches :]:
            half = len(batch) // 2
            pairs += zip(batch[:half], batch[half:], strict=True)
        return pairs

    def merge(self, loras, calibration, config=EXACT):
        stages = []
        sampled = len(self.unet_batches)

        def listen(stage, done, total):
            nonlocal sampled
            stages.append((stage.name, done, total))
            if stage.name == "Sampling":
                sampled = len(self.unet_batches)

        job = Job.of(self, loras, calibration, MergeSettings(config), ROOM)
        result = merge_diffusion(job, listen)
        self.sweep_batches = len(self.unet_batches) - sampled
        return result, stages

    @staticmethod
    def largest_error(found, expected):
        return toy.largest_error(toy.dense(found), toy.dense(expected))

    @staticmethod
    def is_close(a, b):
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)
