// What is known of the LoRAs in rows, and of each beside the others.

import { repeated, strangers, within } from "./fitting.js";
import { aboutLora, aboutModelOf, isSubject, loraNames, pictureOf, refusalOf, wantsWords } from "./loras.js";
import { changed, fileOf, namesakes, newRow, partsOf } from "./rows_text.js";
import { isMerge } from "./prompt_graph.js";

const DOUBTFUL = /[|]|__/; // no other prompt has several readings

/**
 * Return what is known of each row's file, see `drawRow`; its `key` tells LoRAs apart, and is "" for one that does not
 * count.
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
      const content = lora?.hash ? [lora.hash, lora.rank] : file; // a smaller copy may state the same
      const key = file && !isOff ? JSON.stringify([content, row.blocks, row.without]) : "";
      return {
        file,
        isOff,
        isMissing: !!row && !!names && !file,
        isNamesake: alike.has(file),
        lora,
        picture: file && pictureOf(file, lora),
        key,
        refused: row?.name && !isOff ? await refusedOf(node, row) : {},
        isSubject: !!key && isSubject(row, lora),
        wantsWords: !!key && wantsWords(row, lora, isMerge(node)),
      };
    }),
  );
  const fitting = strangers(
    found.map(({ isOff, lora }) => (isOff ? "" : (lora?.family ?? ""))),
    about.fits ?? [],
  );
  const again = repeated(found.map(({ key }) => key));
  const inside = within(
    found.map(({ file, isOff, lora }) => ({
      file: isOff ? undefined : file,
      parts: partsOf(lora?.merged_from ?? [], names ?? []),
    })),
  );
  return found.map((each, at) => ({ ...each, fitting: fitting[at], isAgain: again[at], within: inside[at] }));
}

/** Return why the server would not run a row: for its blocks and layers, and for its prompts. */
async function refusedOf(node, { name, blocks, without, prompts }) {
  const ask = (change) => refusalOf(changed(newRow(name), change).text);
  const doubtful = isMerge(node) ? prompts.filter((prompt) => DOUBTFUL.test(prompt)) : [];
  return {
    more: blocks || without.length ? await ask({ blocks, without }) : "",
    prompts: doubtful.length ? await ask({ prompts: doubtful }) : "",
  };
}
