// A choice among many files: a field to search in, the files that have all its words, each with its picture, and the
// picture of one of them large. Files for another model than the one that is connected are left out.

import { offer } from "./fitting.js";
import { aboutLora, lastAboutLora, pictureOf } from "./loras.js";
import { button, canPopUp, EDGE, html, imageAt, putBeside, sayMade, tell, withFolder } from "./parts.js";
import { endPeek, face } from "./peek.js";
import { canName, matching, nameOf, namesakes, ownName, similar, versions } from "./rows_text.js";
import { foundBy, madeOf, wordsOf } from "./triggers.js";

const MOST = 200; // names in the list at a time
const AT_ONCE = 8; // files that the server is asked about
const LINE = 24; // pixels of a name in the list
const PAGE = 10; // names that the page keys go over
const GAP = 2; // pixels from its row
const LEAST = 240; // pixels of the box, which rather covers its row
const REST = 300; // milliseconds on a name, before the server is asked about it
const MANY = 40; // names, of which those come first that were chosen last, and before them other versions of one
const RECENT = "iteris_recent"; // these, in the browser's memory
const KEPT = 8; // of these
let withOthers = false; // files for other models, until the page is closed

/** Return the names that were chosen last; none where the browser keeps nothing of pages. */
function remembered() {
  try {
    return JSON.parse(localStorage.getItem(RECENT) ?? "[]");
  } catch {
    return [];
  }
}

/** Remember a name as the one that was chosen last, if the browser has room for it. */
function remember(name) {
  const others = remembered().filter((each) => each !== name);
  try {
    localStorage.setItem(RECENT, JSON.stringify([name, ...others].slice(0, KEPT)));
  } catch {
    // it is chosen all the same
  }
}

/**
 * Let the user choose a name. Escape, and a click elsewhere, choose none. A name that no row can have is refused, and a
 * file that cannot be read: it stays in the list, which says why. The field is there at once, or what is typed until the
 * names come would go to the page's hotkeys.
 *
 * @param {HTMLElement} anchor below which the choice opens, and which gets the focus back
 * @param {object} to
 * @param {number} [to.row] the number of the row that it is for
 * @param {boolean} to.several whether Shift chooses one, and leaves the list open for more
 * @param {Promise<object>} offering
 * @param {string[]} offering.names
 * @param {string[]} offering.fits families whose LoRAs fit the model; none: that is not known, and all are listed
 * @param {string} [offering.now] the name that is chosen now
 * @param {string} [offering.lost] the name that is written now, of which there is no file
 * @param {Set<string>} offering.taken names that are chosen elsewhere
 * @param {(word: string, values?: object) => string} say
 * @param {(name: string, isOpen: boolean) => void} chosen also told whether the list is still open
 */
export function choose(anchor, { row, several }, offering, say, chosen) {
  if (!canPopUp()) return tell(say("no_list"), say("no_list_rest"));
  const box = html("div", "iteris-choice");
  const field = html("input", "iteris-search");
  const list = html("div", "iteris-names");
  const picture = html("div", "iteris-seen");
  const rest = html("div", "iteris-quiet");
  const options = new Map(); // name -> its element
  const asked = new Set(); // names of files that the server was asked about since
  const families = new Map(); // name -> what its LoRA is for, which stays so while the list is open
  const familyOf = (name) => {
    const lora = lastAboutLora(name);
    if (!families.has(name) && lora !== undefined) families.set(name, lora?.family ?? "");
    return families.get(name);
  };
  const isWhole = (name) => !lastAboutLora(name)?.error;
  let isOffered = false; // the names are there
  let [names, fits, now, taken] = [[], [], undefined, new Set()];
  let alike = new Set(); // see `namesakes`
  let own = []; // what the files are called, without folders
  let ahead = []; // names that come first
  let found = []; // names that can be chosen, of which the first are listed
  let marked; // a name
  let wished = []; // the first of these that is listed is to be marked
  let isSettled = false; // no file that is still to come would be marked instead
  let entered; // Enter was pressed before that: whether with Shift
  let isOwn = false; // the mark, the user's
  let seen; // the name whose picture is shown large
  let isDone = false; // a name is chosen, and no more are
  let asking; // the last question, which ends those before it
  box.popover = "auto";
  list.role = "listbox";
  list.id = `iteris-names-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  field.placeholder = field.ariaLabel = say(row ? "search_row" : "search", { row });
  field.role = "combobox";
  field.ariaExpanded = "true";
  field.setAttribute("aria-controls", list.id);
  const take = (name, isMore) => {
    if (!isWhole(name)) {
      mark(name);
      return field.focus(); // a click has taken the focus
    }
    if (!canName(name)) {
      rest.textContent = say("no_row_name", { name });
      return;
    }
    remember(name);
    const isOpen = isMore && several;
    isDone = !isOpen;
    if (isDone) box.hidePopover();
    chosen(name, isOpen);
    if (isDone) return;
    taken.add(name);
    dress(name);
    field.select();
  };
  /** Show what is known of a file, and once it is looked at for a while, what the server says of it now. */
  const see = async (name) => {
    if (seen === name) return;
    seen = name;
    let told;
    const draw = (lora) => {
      const file = { name: nameOf(name), doubts: doubtsOf(lora), lora, picture: pictureOf(name, lora) };
      if (told !== JSON.stringify(file)) picture.replaceChildren(...face(file, say));
      told = JSON.stringify(file);
    };
    if (!name) return picture.replaceChildren();
    draw(lastAboutLora(name));
    await new Promise((go) => setTimeout(go, REST));
    const lora = seen === name && (await aboutLora(name));
    if (seen === name) draw(lora);
  };
  const isOther = (lora) => fits.length && lora?.family && !fits.includes(lora.family);
  const doubtsOf = (lora) => [lora?.error, isOther(lora) && say("unfit", { family: lora.family })].filter(Boolean);
  const light = (name) => {
    marked = name;
    for (const option of list.children) option.ariaSelected = String(option === options.get(name));
    field.setAttribute("aria-activedescendant", options.get(name)?.id ?? "");
    see(name);
  };
  const mark = (name) => {
    isOwn = name !== undefined;
    entered = undefined;
    light(name);
  };
  const optionOf = (name) => {
    if (options.has(name)) return options.get(name);
    const option = html("div", "iteris-option");
    option.append(html("span", "iteris-picture"), withFolder(nameOf(name), own));
    option.classList.toggle("iteris-namesake", alike.has(name));
    option.role = "option";
    option.id = `${list.id}-${options.size}`;
    option.addEventListener("click", ({ shiftKey }) => take(name, shiftKey));
    option.addEventListener("pointermove", ({ movementX, movementY }) => {
      // a list that moves below the pointer is not pointed at
      if (marked !== name && (movementX || movementY)) mark(name);
    });
    options.set(name, option);
    dress(name);
    return option;
  };
  /** Return the trigger words that a file is found by, where its name does not tell why. */
  const wordsFound = (name, lora) => {
    const parts = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (matching([name], field.value).length) return "";
    const isFound = (word) => parts.some((part) => word.toLowerCase().includes(part));
    return wordsOf(lora ?? {})
      .filter(isFound)
      .join(", ");
  };
  /** Show on a name what is known of its file. */
  const dress = (name) => {
    const option = options.get(name);
    const lora = lastAboutLora(name);
    const address = pictureOf(name, lora);
    if (option.firstChild.firstChild?.getAttribute("src") !== address)
      option.firstChild.replaceChildren(...(address ? [imageAt(address, "lazy")] : []));
    sayMade(option.lastChild, [madeOf(lora ?? {}, say), wordsFound(name, lora)].filter(Boolean).join("\n"));
    option.classList.toggle("iteris-broken", !isWhole(name));
    option.ariaDisabled = String(!isWhole(name));
    option.classList.toggle("iteris-stranger", !!isOther(lora));
    option.dataset.family = isOther(lora) ? lora.family : "";
    option.classList.toggle("iteris-taken", taken.has(name));
    const described = [...doubtsOf(lora), ...(taken.has(name) ? [say("taken")] : [])];
    option.setAttribute("aria-description", described.join("\n"));
  };
  /** List what is found, and return the names of all that may be. */
  const show = () => {
    const first = field.value.trim() ? [] : ahead.filter((name) => name === now || !isOther(lastAboutLora(name)));
    const matches = matching(names, field.value, (name) => foundBy(lastAboutLora(name) ?? {}));
    const all = [...first, ...matches.filter((name) => !first.includes(name))];
    const { offered, unread } = offer(all, withOthers ? [] : fits, familyOf, isWhole);
    // to read all files takes long where they are many: only if no name has the words
    const unknown = matching(matches.slice(0, 1), field.value).length // those found by name come first
      ? []
      : names.filter((name) => lastAboutLora(name) === undefined);
    const waiting = isOffered ? unread.length + unknown.length : 1;
    found = offered;
    const wanted = found.slice(0, MOST).map(optionOf);
    for (const option of [...list.children]) if (!wanted.includes(option)) option.remove();
    for (const name of ahead) options.get(name)?.classList.toggle("iteris-ahead", first.includes(name));
    wanted.forEach((option, place) => {
      if (list.children[place] !== option) list.insertBefore(option, list.children[place] ?? null);
    });
    box.classList.toggle("iteris-unfound", !found.length); // why is said where one looks, above the names
    both.hidden = !found.length && !waiting;
    const more = found.length + unread.length - MOST;
    if (more > 0 && found.length >= MOST) rest.replaceChildren(say("more_names", { count: more }));
    else if (waiting) rest.replaceChildren(say("reading"));
    else if (found.length) rest.replaceChildren();
    else rest.replaceChildren(all.length ? shownInstead(all.length) : say("no_names"));
    const isFit = (name) => isWhole(name) && !isOther(lastAboutLora(name));
    const isNew = (name) => isFit(name) && !taken.has(name);
    const wish = wished.find((name) => found.includes(name) && (name === now || isFit(name)));
    const typed = field.value.trim().toLowerCase();
    const isTyped = (name) => nameOf(name).toLowerCase() === typed;
    const exact = found.find(isTyped);
    const best = exact ?? wish ?? found.find(isNew) ?? found.find(isFit) ?? found[0];
    if (!(isOwn && found.includes(marked)) && marked !== best) {
      light(best);
      options.get(best)?.scrollIntoView({ block: "nearest" });
    }
    isSettled = !waiting || !!exact || (found.some(isNew) && !unread.some(isTyped));
    if (isSettled && entered !== undefined) enter(entered);
    return [...[...found, ...unread].slice(0, MOST), ...unknown];
  };
  const shownInstead = (count) =>
    button("iteris-show-others", say("only_others", { count }), say("others"), () => {
      others.firstChild.click();
      field.focus();
    });
  /** Ask what the files that may be listed are for, and whether they have a picture: those first that wait for it. */
  const learn = async (wanted) => {
    const mine = {};
    asking = mine;
    while (mine === asking && box.isConnected) {
      const waiting = wanted.filter((name) => !asked.has(name));
      const isKnown = (name) => familyOf(name) !== undefined;
      const next = waiting.sort((one, other) => isKnown(one) - isKnown(other)).slice(0, AT_ONCE);
      if (!next.length) return;
      await Promise.all(next.map(aboutLora));
      for (const name of next) asked.add(name);
      if (mine !== asking) return;
      wanted = show();
      for (const name of next) if (options.has(name)) dress(name);
    }
  };
  const enter = (isMore) => {
    entered = undefined;
    if (!isSettled && !isOwn && field.value.trim()) entered = isMore;
    else if (found.length) take(marked, isMore);
  };
  const search = () => {
    isOwn = false;
    wished = [];
    entered = undefined;
    const wanted = show();
    found.slice(0, MOST).forEach(dress);
    learn(wanted);
  };
  const move = (by) => found[Math.max(0, Math.min(found.indexOf(marked) + by, list.childElementCount - 1))];
  const keys = {
    ArrowDown: () => mark(move(1)),
    ArrowUp: () => mark(move(-1)),
    PageDown: () => mark(move(PAGE)),
    PageUp: () => mark(move(-PAGE)),
    Home: () => mark(move(-Infinity)),
    End: () => mark(move(Infinity)),
    Enter: enter,
    Tab: (isBack) => {
      const stops = [...box.querySelectorAll("input, button")];
      stops.at((stops.indexOf(document.activeElement) + (isBack ? -1 : 1)) % stops.length).focus();
    },
  };
  const others = othersSwitch(say, () => {
    search();
    field.focus();
  });
  field.addEventListener("input", search);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // they are not for the canvas
    const isButtons = event.key === "Enter" && event.target !== field;
    // Safari's Enter that ends what a method of writing composes has this code alone
    const isComposing = event.isComposing || event.keyCode === 229;
    if (!keys[event.key] || isComposing || isButtons) return;
    event.preventDefault();
    if (event.key === "Enter" && event.repeat) return; // held since it has opened the list
    keys[event.key](event.shiftKey);
    options.get(marked)?.scrollIntoView({ block: "nearest" });
  });
  box.addEventListener("wheel", (event) => event.stopPropagation());
  box.addEventListener("toggle", ({ newState }) => {
    if (newState === "open") return;
    box.remove();
    if (!isDone && !document.querySelector(".iteris-choice")) anchor.focus(); // a double click opens a second one
  });
  const both = html("div", "iteris-found");
  both.append(list, picture);
  box.append(field, both, rest);
  const foot = html("div", "iteris-foot");
  if (several) foot.append(html("span", "iteris-quiet", say("several")));
  box.append(foot);
  const at = anchor.getBoundingClientRect();
  endPeek();
  document.body.append(box);
  box.showPopover();
  show();
  place(box, at);
  field.focus();
  offering.then((told) => {
    if (!box.isConnected) return;
    isOffered = true;
    ({ names, fits, now, taken } = told);
    alike = namesakes(names);
    own = names.map((name) => ownName(nameOf(name)));
    const likest = now ? [now] : similar(told.lost ?? "", names);
    const isFree = (name) => names.includes(name) && !taken.has(name);
    const likely = [...(now ? versions(now, names) : likest), ...remembered().filter(isFree)];
    if (names.length >= MANY) ahead = [...new Set(likely)];
    if (!field.value.trim()) wished = likest;
    if (fits.length) foot.prepend(others);
    const wanted = show();
    if (isDone) return;
    const room = Math.max(both.offsetHeight, names.length * LINE); // for the names that are still to come
    if (wanted.length > found.length) both.style.height = `${room}px`;
    learn(wanted);
    const isAbove = place(box, at);
    if (!isAbove) both.style.height = ""; // above its row, it would end far from there
  });
}

/** Return what lists files for other models, too. */
function othersSwitch(say, changed) {
  const label = html("label", "iteris-others");
  const box = html("input");
  box.type = "checkbox";
  box.checked = withOthers;
  box.addEventListener("change", () => {
    withOthers = box.checked;
    changed();
  });
  label.append(box, say("others"));
  return label;
}

/** Put a box below its row, or above it where there is more room; there it has the room up to the row, or to the page's end. Return whether it is above. */
function place(box, row) {
  const rooms = [row.top, innerHeight - row.bottom].map((room) => room - GAP - EDGE);
  const limit = (room) => {
    box.style.maxHeight = `min(60vh, ${Math.max(LEAST, room)}px)`;
  };
  limit(Math.max(...rooms));
  putBeside(box, 1, row, GAP, row.left);
  const { top } = box.getBoundingClientRect();
  const isAbove = top < row.top;
  limit((isAbove ? row.top - GAP : innerHeight - EDGE) - top);
  return isAbove;
}
