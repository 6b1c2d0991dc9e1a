// What runs have drawn and saved, which the browser keeps by what it was made of, and each merge apart: with its next
// start the server has lost the pictures and the sentences, and a comparison is shown beside the one before it.

import { api } from "../../scripts/api.js";

const NAME = "iteris";
const STORE = "comparisons";
const MOST = { count: 24, bytes: 300e6 }; // the newest ones; one of three rows at 1024 pixels has some 15 MB
const PATIENCE = 20_000; // milliseconds for the browser to open its store

let known = []; // what was read last, so that each picture has one address
let keeping = Promise.resolve(); // until what runs have drawn so far is kept
const addresses = new WeakMap(); // of pictures that the browser keeps
const unused = new FinalizationRegistry((address) => URL.revokeObjectURL(address)); // of those that the page has no more

/** Return the address of a picture: a file of the server's, or one that the browser has kept. */
export function addressOf(picture) {
  if (!(picture instanceof Blob)) return api.apiURL(`/view?${new URLSearchParams(picture)}`);
  if (!addresses.has(picture)) {
    const address = URL.createObjectURL(picture);
    addresses.set(picture, address);
    unused.register(picture, address);
  }
  return addresses.get(picture);
}

const picturesOf = ({ iteris_tiles: tiles = [], iteris_pictures: others = [] }) => [
  ...tiles.flatMap(({ pictures }) => pictures),
  ...others,
];

/**
 * Return a run's output with other pictures, in the order of `picturesOf`, and without those of another merge and what
 * no page shows.
 */
function withPictures(output, pictures) {
  const left = [...pictures];
  const next = (row = []) => row.map(() => left.shift());
  const tiles = output.iteris_tiles?.map((row) => ({ ...row, pictures: next(row.pictures) }));
  const others = next(output.iteris_pictures);
  return {
    ...output,
    iteris_report: undefined,
    iteris_tiles: tiles,
    iteris_pictures: others,
  };
}

/** Return a picture's bytes. */
async function fetched(picture) {
  const blob = await (await fetch(addressOf(picture))).blob();
  if (!blob.type.startsWith("image/")) throw new TypeError(`no picture: ${blob.type}`);
  return blob;
}

/** Return what a request to the browser's store brings. */
const asked = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function inStore(mode, use) {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () =>
    opening.result.createObjectStore(STORE, { keyPath: ["name", "merge"] }).createIndex("at", "at");
  const late = new Promise((_, reject) => setTimeout(reject, PATIENCE));
  const database = await Promise.race([asked(opening), late]);
  try {
    return await use(database.transaction(STORE, mode).objectStore(STORE));
  } finally {
    database.close();
  }
}

const newestOf = async (store) => (await asked(store.index("at").getAll())).reverse();

/** Take the oldest ones out until there is room for one of so many bytes. */
const makeRoom = (bytes) =>
  inStore("readwrite", async (store) => {
    let whole = bytes;
    for (const [place, { name, merge, bytes: own }] of (await newestOf(store)).entries()) {
      whole += own;
      if (place + 1 >= MOST.count || whole > MOST.bytes) store.delete([name, merge]);
    }
  });

/**
 * Keep what a run has drawn or saved. A browser that keeps nothing, as in private windows, or has no room, goes without.
 *
 * @param {string} name the node's, see `workOf`
 * @param {object} output with the server's pictures
 */
export function keepMade(name, output) {
  keeping = keeping.then(() => keep(name, output)); // the page is told of an output more than once
}

async function keep(name, output) {
  const files = picturesOf(output);
  if (!files.length && !output.iteris_saved) return;
  const merge = output.iteris_made?.[0]?.at ?? 0; // of other files, a node of the same name makes another one
  const of = JSON.stringify([files, output.iteris_saved]); // another run of the same files may have made others
  try {
    if ((await inStore("readonly", (store) => asked(store.get([name, merge]))))?.of === of) return;
    const pictures = await Promise.all(files.map(fetched));
    const bytes = pictures.reduce((sum, { size }) => sum + size, 0);
    await makeRoom(bytes);
    const kept = { name, merge, of, bytes, at: Date.now(), output: withPictures(output, pictures) };
    await inStore("readwrite", (store) => asked(store.put(kept)));
  } catch {
    // the server still has it
  }
}

/** Return what the browser has kept, the newest first. */
async function read() {
  await keeping;
  const isIt = (one, other) => one.name === other.name && one.at === other.at;
  try {
    const found = await inStore("readonly", newestOf);
    known = found.map((each) => known.find((other) => isIt(each, other)) ?? each);
    return known;
  } catch {
    return []; // it keeps nothing
  }
}

/** Return what runs have made that the browser has kept, the newest first. */
export const allKept = async () => (await read()).map(({ output }) => output);

/** Return what the browser has kept of a node of a name; undefined: nothing. */
export const keptMade = async (name) => (await read()).find((each) => each.name === name)?.output;
