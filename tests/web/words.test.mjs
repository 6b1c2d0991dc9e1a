import assert from "node:assert/strict";
import { test } from "node:test";

import { languages, withButtons } from "../../web/words.js";

test("an English message names buttons and fields as they are called in the page's language", () => {
  const message = "Bob's style: no prompts. Click 'write prompts' on the row";
  assert.equal(withButtons(message, "en"), message);
  assert.equal(withButtons(message, "ja-JP"), message.replace("write prompts", languages.ja.needs));
  const further = "Click 'write trigger words' on the row, and write them into 'More'";
  const { needs_words: words, more } = languages.zh;
  assert.equal(withButtons(further, "zh"), `Click '${words}' on the row, and write them into '${more}'`);
});
