// What is known of the LoRAs in rows, and of each beside the others.

import { aboutLora, aboutModelOf, loraNames, pictureOf, refusalOf } from "./loras.js";
import { changed, fileOf, keyOf, namesakes, newRow, repeated, strangers } from "./rows_text.js";

const DOUBTFUL = /[|]|__/; // no other prompt has several readings

/**
 * Return what is known of each row's file, see `drawRow`.
 *
 * @param {object} node
 * @param {object[]} entries of the rows that are drawn
 */
export async function knownOfRows(node, entries) {
  const [names, about] = await Promise.all([loraNames(), aboutModelOf(node)]);
  const alike = namesakes(names ?? []);
  const found = await Promise.all(
    entries.map(async ({ row, isOff }) => {
      const file = row && names ? fileOf(row.name, names) : undefined;
      const lora = file ? await aboutLora(file) : null;
      return {
        isOff,
        isMissing: !!row && !!names && !file,
        isNamesake: alike.has(file),
        lora,
        picture: file && pictureOf(file, lora),
        key: file && !isOff ? keyOf(file, lora, row) : "",
        refused: row?.name && !isOff ? await refusedOf(row) : {},
      };
    }),
  );
  const families = found.map(({ isOff, lora }) => (isOff ? "" : (lora?.family ?? "")));
  const fitting = strangers(families, about.fits ?? []);
  const again = repeated(found.map(({ key }) => key));
  return found.map((each, at) => ({ ...each, fitting: fitting[at], isAgain: again[at] }));
}

/** Return why the server would not run a row: for its blocks and layers, and for its prompts. */
async function refusedOf({ name, blocks, without, prompts }) {
  const ask = (change) => refusalOf(changed(newRow(name), change).text);
  const doubtful = prompts.filter((prompt) => DOUBTFUL.test(prompt));
  return {
    more: blocks || without.length ? await ask({ blocks, without }) : "",
    prompts: doubtful.length ? await ask({ prompts: doubtful }) : "",
  };
}
