// Comparisons that the browser keeps, by what they were made of: with its next start the server has lost their pictures.

import { api } from "../../scripts/api.js";

const NAME = "iteris";
const STORE = "comparisons";
const MOST = 12; // the newest ones; of three rows at 1024 pixels some 15 MB each

const addresses = new WeakMap(); // of what the browser keeps

/** Return the address of a picture: a file of the server's, or one that the browser has kept. */
export function addressOf(picture) {
  if (!(picture instanceof Blob)) return api.apiURL(`/view?${new URLSearchParams(picture)}`);
  if (!addresses.has(picture)) addresses.set(picture, URL.createObjectURL(picture));
  return addresses.get(picture);
}

/** Return a run's output with other pictures. */
async function withPictures(output, other) {
  const others = (pictures = []) => Promise.all(pictures.map(other));
  const tiles = output.iteris_tiles.map(async (row) => ({ ...row, pictures: await others(row.pictures) }));
  return { ...output, iteris_tiles: await Promise.all(tiles), iteris_pictures: await others(output.iteris_pictures) };
}

async function fetched(picture) {
  const answer = await fetch(addressOf(picture));
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.blob();
}

/** Return what a request to the browser's store brings. */
const asked = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function inStore(mode, use) {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "name" }).createIndex("at", "at");
  const database = await asked(opening);
  try {
    return await use(database.transaction(STORE, mode).objectStore(STORE));
  } finally {
    database.close();
  }
}

/**
 * Keep what a run has made of a Compare, unless it is kept already. A browser that keeps nothing, as in private windows,
 * or has no room, goes without.
 *
 * @param {string} name the node's, see `nameOf`
 * @param {object} output with the server's pictures
 */
export async function keepComparison(name, output) {
  try {
    if (await inStore("readonly", (store) => asked(store.getKey(name)))) return;
    const own = await withPictures(output, fetched);
    await inStore("readwrite", async (store) => {
      await asked(store.put({ name, at: Date.now(), output: own }));
      const names = await asked(store.index("at").getAllKeys());
      for (const oldest of names.slice(0, -MOST)) store.delete(oldest);
    });
  } catch {
    // the server still has it
  }
}

/** Return what the browser has kept of a Compare of a name; undefined: nothing. */
export async function keptComparison(name) {
  try {
    return (await inStore("readonly", (store) => asked(store.get(name))))?.output;
  } catch {
    return undefined;
  }
}
