// Lists that the browser keeps for the page, if it keeps anything of pages.

/** Return a list that was kept; an empty one where there is none. */
export function keptList(storage, name) {
  try {
    return JSON.parse(globalThis[storage].getItem(name) ?? "[]");
  } catch {
    return [];
  }
}

/** Keep a list, if the browser has room for it. */
export function keepList(storage, name, list) {
  try {
    globalThis[storage].setItem(name, JSON.stringify(list));
  } catch {
    // the page goes on without it
  }
}
