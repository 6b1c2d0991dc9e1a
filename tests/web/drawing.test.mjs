import assert from "node:assert/strict";
import { test } from "node:test";
import { latentOf } from "../../web/drawing.js";

test("a family's pictures begin with the node for its latents, if that is known", () => {
  assert.deepEqual(["SDXL", "Flux.1", "Flux.2", "Wan", "Krea 2", undefined].map(latentOf), [
    "EmptyLatentImage",
    "EmptySD3LatentImage",
    "EmptyFlux2LatentImage",
    undefined,
    undefined,
    undefined,
  ]);
});
