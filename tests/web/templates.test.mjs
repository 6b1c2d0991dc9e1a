import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

import { hasOurs, orderTemplates, translate } from "../../web/templates.js";

const FOLDER = new URL("../../workflows/", import.meta.url);
const read = (url) => JSON.parse(readFileSync(url, "utf8"));
const files = readdirSync(FOLDER).filter((name) => name.endsWith(".json"));
const texts = (language) => read(new URL(`../../web/templates/${language}.json`, import.meta.url));
const isEnglish = (text) => /^[\x20-\x7e\n]+$/.test(text);

for (const language of ["zh", "ja"])
  for (const name of files)
    test(`${name} has titles, groups and a note in ${language}`, () => {
      const workflow = read(new URL(encodeURIComponent(name), FOLDER));
      const note = workflow.nodes.find(({ type }) => type === "MarkdownNote");
      const linesOf = () => note.widgets_values[0].split(/\n|<br>/);
      const lines = linesOf().length;
      translate(workflow, texts(language));
      const titles = workflow.nodes.map(({ title }) => title).filter(Boolean);
      const said = [...titles, ...workflow.groups.map(({ title }) => title), ...linesOf()];
      assert.deepEqual(
        said.filter((text) => text && isEnglish(text)),
        [],
      );
      assert.equal(linesOf().length, lines);
    });

test("a pack's templates come by their numbers, and others as they are", async () => {
  const listed = async (answer) => {
    const api = { getWorkflowTemplates: async () => answer };
    orderTemplates(api, "ours");
    return await api.getWorkflowTemplates();
  };
  assert.deepEqual(await listed({ ours: ["10 b", "1 a", "2 c"], other: ["2", "1"] }), {
    ours: ["1 a", "2 c", "10 b"],
    other: ["2", "1"],
  });
  for (const other of [{}, null, { ours: null }]) assert.deepEqual(await listed(other), other);
});

test("what is the user's own stays, and other packs' workflows are left alone", () => {
  const compare = { Compare: "比较" };
  const own = { nodes: [{ type: "IterISMerge", title: "My merge" }, { title: "Compare" }, null], groups: "x" };
  translate(own, compare);
  assert.deepEqual(own.nodes.slice(0, 2), [{ type: "IterISMerge", title: "My merge" }, { title: "比较" }]);
  const other = { nodes: [{ type: "KSampler", title: "Compare" }] };
  translate(other, compare);
  assert.equal(other.nodes[0].title, "Compare");
  translate(undefined, compare);
  translate({ nodes: [{ type: "IterISMerge", title: "constructor" }] }, compare);
});

test("a workflow has a node of ours, or none, whatever its shape", () => {
  assert.ok(hasOurs({ nodes: [null, { type: "KSampler" }, { type: "IterISMerge" }] }));
  for (const other of [{ nodes: [{ type: "KSampler" }, {}, null] }, { nodes: 3 }, {}, null]) assert.ok(!hasOurs(other));
});
