// A choice among many files: a field to search in, the files that have all its words, each with its picture, and the
// picture of one of them large. Files for another model than the one that is connected are left out.

import { aboutLora, lastAboutLora, pictureOf } from "./loras.js";
import { button, canPopUp, EDGE, html, imageAt, putBeside, sayMade, tell, withFolder } from "./parts.js";
import { endPeek, face } from "./peek.js";
import { canName, matching, nameOf, namesakes, offer, ownName, similar, versions } from "./rows_text.js";
import { foundBy, madeOf, wordsOf } from "./triggers.js";
import { say } from "./words.js";

const MOST = 200; // names in the list at a time
const AT_ONCE = 8; // files that the server is asked about
const LINE = 24; // pixels of a name in the list
const PAGE = 10; // names that the page keys go over
const STEPS = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE, Home: -Infinity, End: Infinity };
const GAP = 2; // pixels from its row
const LEAST = 240; // pixels of the box, which rather covers its row
const REST = 300; // milliseconds on a name, before the server is asked about it
const MANY = 40; // names, of which other versions of the chosen one come first
let withOthers = false; // files for other models, until the page is closed

const isWhole = (name) => !lastAboutLora(name)?.error;
const isMerge = (name) => lastAboutLora(name)?.merged_from?.length > 0;

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
 * @param {(name: string, isOpen: boolean) => void} chosen also told whether the list is still open
 */
export function choose(anchor, { row, several }, offering, chosen) {
  if (!canPopUp()) return tell(say("no_list"), say("no_list_rest"));
  const choice = new Choice(anchor, { row, several }, chosen);
  choice.open();
  offering.then((offered) => choice.box.isConnected && choice.fill(offered));
}

class Choice {
  box = html("div", "iteris-choice");
  field = html("input", "iteris-search");
  list = html("div", "iteris-names");
  picture = html("div", "iteris-seen");
  both = html("div", "iteris-found"); // the list, and the picture beside it
  rest = html("div", "iteris-quiet");
  foot = html("div", "iteris-foot");

  isOffered = false; // the names are there
  names = [];
  fits = [];
  taken = new Set();
  alike = new Set(); // see `namesakes`
  own = []; // what the files are called, without folders
  ahead = []; // names that come first
  wished = []; // the first of these that is listed is to be marked
  found = []; // names that can be chosen, of which the first are listed
  options = new Map(); // name -> its element
  added = new Set(); // names that were chosen while the list stayed open
  asked = new Set(); // names of files that the server was asked about since
  families = new Map(); // name -> what its LoRA is for, which stays so while the list is open
  isSettled = false; // no file that is still to come would be marked instead
  isOwn = false; // the mark, the user's
  isDone = false; // a name is chosen, and no more are
  now; // the name that is chosen now
  marked; // a name
  entered; // Enter was pressed before the list was settled: whether with Shift
  seen; // the name whose picture is shown large
  asking; // the last question, which ends those before it

  constructor(anchor, { row, several }, chosen) {
    Object.assign(this, { anchor, several, chosen });
    this.box.popover = "auto";
    this.list.role = "listbox";
    this.list.id = `iteris-names-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    this.field.placeholder = this.field.ariaLabel = say(row ? "search_row" : "search", { row });
    this.field.role = "combobox";
    this.field.ariaExpanded = "true";
    this.field.setAttribute("aria-controls", this.list.id);
    this.others = othersSwitch(() => {
      this.search();
      this.field.focus();
    });
    this.both.append(this.list, this.picture);
    if (several) this.foot.append(html("span", "iteris-quiet", say("several")));
    this.box.append(this.field, this.both, this.rest, this.foot);
    this.field.addEventListener("input", () => this.search());
    this.box.addEventListener("keydown", (event) => this.press(event));
    this.box.addEventListener("wheel", (event) => event.stopPropagation());
    this.box.addEventListener("toggle", ({ newState }) => newState === "open" || this.close());
  }

  open() {
    this.at = this.anchor.getBoundingClientRect();
    endPeek();
    document.body.append(this.box);
    this.box.showPopover();
    this.show();
    place(this.box, this.at);
    this.field.focus();
  }

  close() {
    this.box.remove();
    if (!this.isDone && !document.querySelector(".iteris-choice")) this.anchor.focus(); // a double click opens a second one
  }

  /** List what is offered, see `choose`. */
  fill({ names, fits, now, lost, taken }) {
    Object.assign(this, { isOffered: true, names, fits, now, taken });
    this.alike = namesakes(names);
    this.own = names.map((name) => ownName(nameOf(name)));
    const likest = now ? [now] : similar(lost ?? "", names);
    if (names.length >= MANY) this.ahead = now ? versions(now, names) : likest;
    if (!this.field.value.trim()) this.wished = likest;
    if (fits.length) this.foot.prepend(this.others);
    const wanted = this.show();
    if (this.isDone) return;
    const room = Math.max(this.both.offsetHeight, names.length * LINE); // for the names that are still to come
    if (wanted.length > this.found.length) this.both.style.height = `${room}px`;
    this.learn(wanted);
    const isAbove = place(this.box, this.at);
    if (!isAbove) this.both.style.height = ""; // above its row, it would end far from there
  }

  familyOf(name) {
    const lora = lastAboutLora(name);
    if (!this.families.has(name) && lora !== undefined) this.families.set(name, lora?.family ?? "");
    return this.families.get(name);
  }

  /** Return whether a LoRA is for another model. */
  isOther(lora) {
    return !!this.fits.length && !!lora?.family && !this.fits.includes(lora.family);
  }

  doubtsOf(lora) {
    return [lora?.error, this.isOther(lora) && say("unfit", { family: lora.family })].filter(Boolean);
  }

  /** Return the trigger words that a file is found by, where its name does not tell why. */
  wordsFound(name, lora) {
    const { value } = this.field;
    const parts = value.toLowerCase().split(/\s+/).filter(Boolean);
    if (matching([name], value).length) return "";
    const isFound = (word) => parts.some((part) => word.toLowerCase().includes(part));
    return wordsOf(lora ?? {})
      .filter(isFound)
      .join(", ");
  }

  optionOf(name) {
    if (this.options.has(name)) return this.options.get(name);
    const option = html("div", "iteris-option");
    option.append(html("span", "iteris-picture"), withFolder(nameOf(name), this.own));
    option.classList.toggle("iteris-namesake", this.alike.has(name));
    option.role = "option";
    option.id = `${this.list.id}-${this.options.size}`;
    option.addEventListener("click", ({ shiftKey }) => this.take(name, shiftKey));
    option.addEventListener("pointermove", ({ movementX, movementY }) => {
      // a list that moves below the pointer is not pointed at
      if (this.marked !== name && (movementX || movementY)) this.mark(name);
    });
    this.options.set(name, option);
    this.dress(name);
    return option;
  }

  /** Show on a name what is known of its file. */
  dress(name) {
    const option = this.options.get(name);
    const lora = lastAboutLora(name);
    const address = pictureOf(name, lora);
    if (option.firstChild.firstChild?.getAttribute("src") !== address)
      option.firstChild.replaceChildren(...(address ? [imageAt(address, "lazy")] : []));
    sayMade(option.lastChild, [madeOf(lora ?? {}), this.wordsFound(name, lora)].filter(Boolean).join("\n"));
    option.classList.toggle("iteris-broken", !isWhole(name));
    option.ariaDisabled = String(!isWhole(name));
    option.classList.toggle("iteris-stranger", this.isOther(lora));
    option.dataset.family = this.isOther(lora) ? lora.family : "";
    option.classList.toggle("iteris-taken", this.taken.has(name));
    const described = [...this.doubtsOf(lora), ...(this.taken.has(name) ? [say("taken")] : [])];
    option.setAttribute("aria-description", described.join("\n"));
  }

  /** Show what is known of a file, and once it is looked at for a while, what the server says of it now. */
  async see(name) {
    if (this.seen === name) return;
    this.seen = name;
    let told;
    const draw = (lora) => {
      const file = { name: nameOf(name), doubts: this.doubtsOf(lora), lora, picture: pictureOf(name, lora) };
      if (told !== JSON.stringify(file)) this.picture.replaceChildren(...face(file));
      told = JSON.stringify(file);
    };
    if (!name) return this.picture.replaceChildren();
    draw(lastAboutLora(name));
    await new Promise((go) => setTimeout(go, REST));
    const lora = this.seen === name && (await aboutLora(name));
    if (this.seen === name) draw(lora);
  }

  light(name) {
    this.marked = name;
    const marked = this.options.get(name);
    for (const option of this.list.children) option.ariaSelected = String(option === marked);
    this.field.setAttribute("aria-activedescendant", marked?.id ?? "");
    this.see(name);
  }

  /** Mark a name for the user, who keeps it until the search is another one. */
  mark(name) {
    this.isOwn = name !== undefined;
    this.entered = undefined;
    this.light(name);
  }

  take(name, isMore) {
    if (!isWhole(name)) {
      this.mark(name);
      return this.field.focus(); // a click has taken the focus
    }
    if (!canName(name)) {
      this.rest.textContent = say("no_row_name", { name });
      return;
    }
    const isOpen = isMore && this.several;
    this.isDone = !isOpen;
    if (this.isDone) this.box.hidePopover();
    this.chosen(name, isOpen);
    if (this.isDone) return;
    this.taken.add(name);
    this.added.add(name);
    this.dress(name);
    this.field.select();
  }

  /** List what is found, and return the names of all that may be. */
  show() {
    const { value } = this.field;
    const { names } = this;
    const isShown = (name) => name === this.now || !this.isOther(lastAboutLora(name));
    const first = value.trim() ? [] : this.ahead.filter(isShown);
    const matches = matching(names, value, (name) => foundBy(lastAboutLora(name) ?? {}), isMerge);
    const all = [...first, ...matches.filter((name) => !first.includes(name))];
    const { offered, unread } = offer(all, withOthers ? [] : this.fits, (name) => this.familyOf(name), isWhole);
    // to read all files takes long where they are many: only if no name has the words
    const unknown = matching(matches.slice(0, 1), value).length // those found by name come first
      ? []
      : names.filter((name) => lastAboutLora(name) === undefined);
    const waiting = this.isOffered ? unread.length + unknown.length : 1;
    this.found = offered;
    this.listFound(first);
    this.sayRest(waiting, unread.length, all.length);
    this.markBest(waiting, unread);
    if (this.isSettled && this.entered !== undefined) this.enter(this.entered);
    return [...[...this.found, ...unread].slice(0, MOST), ...unknown];
  }

  /** Bring the list up to what is found, of which some come first. */
  listFound(first) {
    const { list, options } = this;
    const wanted = this.found.slice(0, MOST).map((name) => this.optionOf(name));
    for (const option of [...list.children]) if (!wanted.includes(option)) option.remove();
    for (const name of this.ahead) options.get(name)?.classList.toggle("iteris-ahead", first.includes(name));
    wanted.forEach((option, at) => {
      if (list.children[at] !== option) list.insertBefore(option, list.children[at] ?? null);
    });
  }

  /** Say how many files are not listed, and why. */
  sayRest(waiting, unread, all) {
    const { found } = this;
    this.box.classList.toggle("iteris-unfound", !found.length); // it is said where one looks, above the names
    this.both.hidden = !found.length && !waiting;
    const more = found.length + unread - MOST;
    const told = [];
    if (more > 0 && found.length >= MOST) told.push(say("more_names", { count: more }));
    else if (waiting) told.push(say("reading"));
    else if (!found.length) told.push(all ? this.shownInstead(all) : say("no_names"));
    this.rest.replaceChildren(...told);
  }

  /** Mark the file that is wanted most likely, unless the user has marked one. */
  markBest(waiting, unread) {
    const { found } = this;
    const isFit = (name) => isWhole(name) && !this.isOther(lastAboutLora(name));
    const isNew = (name) => isFit(name) && !this.taken.has(name);
    const typed = this.field.value.trim().toLowerCase();
    const isTyped = (name) => nameOf(name).toLowerCase() === typed;
    const exact = found.find(isTyped);
    const wish = this.wished.find((name) => found.includes(name) && (name === this.now || isFit(name)));
    const best = exact ?? wish ?? found.find(isNew) ?? found.find(isFit) ?? found[0];
    if (!(this.isOwn && found.includes(this.marked)) && this.marked !== best) {
      this.light(best);
      this.options.get(best)?.scrollIntoView({ block: "nearest" });
    }
    this.isSettled = !waiting || !!exact || (found.some(isNew) && !unread.some(isTyped));
  }

  shownInstead(count) {
    return button("iteris-show-others", say("only_others", { count }), say("others"), () => {
      this.others.firstChild.click();
      this.field.focus();
    });
  }

  /** Ask what the files that may be listed are for, and whether they have a picture: those first that wait for it. */
  async learn(wanted) {
    const mine = {};
    this.asking = mine;
    while (mine === this.asking && this.box.isConnected) {
      const waiting = wanted.filter((name) => !this.asked.has(name));
      const isKnown = (name) => this.familyOf(name) !== undefined;
      const next = waiting.sort((one, other) => isKnown(one) - isKnown(other)).slice(0, AT_ONCE);
      if (!next.length) return;
      await Promise.all(next.map(aboutLora));
      for (const name of next) this.asked.add(name);
      if (mine !== this.asking) return;
      wanted = this.show();
      for (const name of next) if (this.options.has(name)) this.dress(name);
    }
  }

  enter(isMore) {
    this.entered = undefined;
    if (!this.isSettled && !this.isOwn && this.field.value.trim()) this.entered = isMore;
    else if (!isMore && this.added.has(this.marked)) this.box.hidePopover();
    else if (this.found.length) this.take(this.marked, isMore);
  }

  search() {
    this.isOwn = false;
    this.wished = [];
    this.entered = undefined;
    const wanted = this.show();
    for (const name of this.found.slice(0, MOST)) this.dress(name);
    this.learn(wanted);
  }

  move(by) {
    const { found, list, marked } = this;
    this.mark(found[Math.max(0, Math.min(found.indexOf(marked) + by, list.childElementCount - 1))]);
  }

  /** Focus the next field or button, round in a circle. */
  step(by) {
    const stops = [...this.box.querySelectorAll("input, button")];
    stops.at((stops.indexOf(document.activeElement) + by) % stops.length).focus();
  }

  press(event) {
    event.stopPropagation(); // it is not for the canvas
    const { key, shiftKey } = event;
    const isOther = key === "Enter" && event.target !== this.field;
    // Safari's Enter that ends what a method of writing composes has this code alone
    const isComposing = event.isComposing || event.keyCode === 229;
    if (!(key in STEPS || key === "Enter" || key === "Tab") || isComposing || isOther) return;
    event.preventDefault();
    if (key in STEPS) this.move(STEPS[key]);
    else if (key === "Tab") this.step(shiftKey ? -1 : 1);
    else if (!event.repeat) this.enter(shiftKey); // held since it has opened the list
    this.options.get(this.marked)?.scrollIntoView({ block: "nearest" });
  }
}

/** Return what lists files for other models, too. */
function othersSwitch(changed) {
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
