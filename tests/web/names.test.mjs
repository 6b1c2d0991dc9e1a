import assert from "node:assert/strict";
import test from "node:test";
import { pieces } from "../../web/names.js";

test("what tells a name from others that look like it stays, and else its end", () => {
  const said = (name, names) =>
    pieces(name, names)
      .map((piece, at) => (at % 2 && piece ? `[${piece}]` : piece))
      .join("");
  const apart = (names, ...expected) =>
    assert.deepEqual(
      names.map((name) => said(name, names)),
      expected,
    );
  const steps = (count, end) => `my_character_v1_${count}_from_a_long_run${end}`;
  apart(
    [steps("000500", "_bf16"), steps("001000", "_bf16"), "ink_drawings_of_the_sea_bf16"],
    "my_character_v1_[000500]_from_a_long_run_bf16",
    "my_character_v1_[001000]_from_a_long_run_bf16",
    "ink_drawings_of_the[_sea_bf16]",
  );
  apart(
    [steps("000500", "_e10"), steps("000500", "_e12"), steps("001000", "_e10")],
    "my_character_v1_[000500]_from_a_long[_run_e10]",
    "my_character_v1_[000500]_from_a_long[_run_e12]",
    "my_character_v1_[001000]_from_a_long_run_e10",
  );
  apart(
    ["detail-tweaker-by-someone-known-v1-sdxl-fp16", "detail-tweaker-by-someone-knowing-v1-sdxl-fp16"],
    "detail-tweaker-by-someone-[known]-v1-sdxl-fp16",
    "detail-tweaker-by-someone-[knowing]-v1-sdxl-fp16",
  );
  apart(["ink_v1_of_a_long_name", "ink_v1.5_of_a_long_name"], "ink_v[1_of]_a_long_name", "ink_v[1.5]_of_a_long_name");
  apart(["a short one", "a short two"], "a short one", "a short two");
  for (const name of ["my_character_v1_000500", "雪の絵の学習結果の版", ""])
    assert.equal(pieces(name, [name]).join(""), name);
});
