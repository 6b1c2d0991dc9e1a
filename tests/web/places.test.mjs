import assert from "node:assert/strict";
import { test } from "node:test";
import { freePlace, roomFor } from "../../web/places.js";

const node = (pos, size, comfyClass = "KSampler") => ({ pos, size, comfyClass });
const SIZE = [300, 400];

test("new nodes lie where they are wanted, if that is free", () => {
  assert.deepEqual(freePlace({ nodes: [node([0, 0], [200, 200])] }, [260, 0], SIZE), [260, 0]);
});

test("else at the nearest free place, at the right or below", () => {
  const low = { nodes: [node([260, 0], [900, 100])] };
  assert.deepEqual(freePlace(low, [260, 0], SIZE), [260, 162]);
  const narrow = { nodes: [node([260, 0], [100, 900])] };
  assert.deepEqual(freePlace(narrow, [260, 0], SIZE), [400, 0]);
  assert.deepEqual(freePlace({ ...low, groups: [node([250, -80], [950, 250])] }, [260, 0], SIZE), [260, 232]);
});

test("also within a group, and not where pictures come", () => {
  const groups = [node([0, -100], [2000, 2000])];
  assert.deepEqual(freePlace({ nodes: [], groups }, [260, 0], SIZE), [260, 0]);
  assert.deepEqual(freePlace({ nodes: [], groups }, [260, 0], SIZE, 5000), [260, 0]);
  const under = { nodes: [node([260, 900], [100, 100])], groups };
  assert.deepEqual(freePlace(under, [260, 0], SIZE, 500), [400, 0]);
  const nodes = [node([260, 0], [100, 100], "IterISCompare")];
  assert.deepEqual(freePlace({ nodes, groups }, [260, 0], SIZE), [400, 0]);
});

test("a narrow Compare's pictures come below one another, and a wide one's side by side", () => {
  const free = (width) => freePlace({ nodes: [node([0, 0], [width, 200], "IterISCompare")] }, [0, 750], SIZE);
  assert.deepEqual(free(500), [540, 750]);
  assert.deepEqual(free(700), [0, 766]);
});

test("a Compare grows by no pictures that it has, seen or not, and by none that are higher", () => {
  const free = (room) => {
    const compare = { ...node([0, 0], [700, 200 + room], "IterISCompare"), iterisRoom: () => room };
    return freePlace({ nodes: [compare] }, [0, 750], SIZE);
  };
  assert.deepEqual(free(300), [0, 766]);
  assert.deepEqual(free(900), [0, 1162]);
});

test("what shows pictures of a run grows by one, unless it has one", () => {
  const free = (size, more) => {
    const shows = { ...node([0, 0], size, "SaveImage"), inputs: [{ type: "IMAGE" }], computeSize: () => [200, 58] };
    return freePlace(
      { nodes: [{ ...shows, constructor: { nodeData: { output_node: true } }, ...more }] },
      [0, 200],
      SIZE,
    );
  };
  assert.deepEqual(free([200, 58]), [0, 340]);
  assert.deepEqual(free([400, 58]), [0, 520]);
  assert.deepEqual(free([200, 120], { imgs: [{}] }), [0, 200]);
  assert.deepEqual(free([200, 58], { constructor: {} }), [0, 200]);
});

test("a merge grows by no report that it has", () => {
  const free = (room) => {
    const merge = {
      ...node([0, 0], [400, 300 + room], "IterISMerge"),
      iterisRoom: () => room,
      widgets: [],
      inputs: [],
    };
    return freePlace({ nodes: [merge] }, [0, 600], SIZE);
  };
  assert.deepEqual(free(0), [0, 702]);
  assert.deepEqual(free(200), [0, 702]);
  assert.deepEqual(free(400), [0, 762]);
});

test("a merge of more LoRAs says more of them", () => {
  const rows = (count) => Array(count).fill("<lora:name:1>").join("\n");
  assert.equal(roomFor(rows(2)), roomFor(""));
  assert.ok(roomFor(rows(4)) > roomFor(rows(2)));
});
