// Two pictures of a comparison in one place, with a divider between them that the user drags.

import { app } from "../../scripts/app.js";
import { addElement, isShown, roomOf, showElement } from "./elements.js";
import { also, mergeOf } from "./graph.js";
import { fit, heightOf, savesWithout } from "./heights.js";
import { addressOf, allKept } from "./browser_store.js";
import { isGone } from "./loras.js";
import { drawnBefore, namesOfMerges, ofMerge } from "./merge_names.js";
import { toldApart, translated } from "./names.js";
import { wheelSteps } from "./number_field.js";
import { loadButton } from "./panel.js";
import { askAgain, button, html, tell, wrapping } from "./parts.js";
import { nameOf } from "./rows_text.js";
import { readFile } from "./saved_report.js";
import { canRecord, saveVideo } from "./wipe.js";

// letters that are read of a name
const IN_CHOICE = 22;
const IN_PICTURE = 18; // in two lines
const BEFORE = "\n"; // before the value of another merge's picture: which one it is, as it is called otherwise after each run
const SIDES = { most: 180, least: 40 }; // of a small picture, the shorter ones
const SCROLLED = 48; // such a side where not all rows have room
const AGAIN = 2000; // milliseconds until a picture that did not come is asked for once more
const TOLD = 2000; // milliseconds that a button says what it has done
const ZOOM = { most: 8, by: 1.25 }; // at each step of the wheel

/** Return an empty choice. */
function choice(title) {
  const select = html("select");
  select.title = select.ariaLabel = title;
  return select;
}

/** Let a choice offer names, and merges, if there are several, by theirs; what was chosen is so again, if it is there. */
function offer(select, names, merges, otherwise) {
  const others = merges.length ? names.slice(0, -1) : names;
  const values = [...names, ...merges.slice(1).map(({ value }) => value)];
  const option = (text, label, value, title = "") => Object.assign(html("option", "", text), { label, value, title });
  const labels = toldApart(others, IN_CHOICE);
  const group = Object.assign(html("optgroup"), { label: names.at(-1) });
  group.append(...merges.map(({ name, title }, i) => option(name, name, values[others.length + i], title)));
  const found = values.lastIndexOf(select.dataset.chosen);
  select.replaceChildren(...others.map((name, i) => option(name, labels[i], name)), ...(merges.length ? [group] : []));
  select.selectedIndex = found < 0 ? otherwise : found;
}

// where a merge's verdict sends the user to look: what the server tells of rows -> the word for why
const NAMED = { together: "first_together", unjudged: "first_unjudged", advised: "first_advised" };

/** Return the row to begin with, and the word for why; undefined: there is no such row, or no other one. */
function firstOf(rows) {
  if (rows.length < 2) return undefined;
  for (const [told, word] of Object.entries(NAMED)) {
    const row = rows.findIndex((each) => each[told]);
    if (row >= 0) return { row, word, isNamed: true };
  }
  const changes = rows.map((row) => row.spoilt ?? 0);
  return changes.some(Boolean) ? { row: changes.indexOf(Math.max(...changes)), word: "most_spoilt" } : undefined;
}

/** Return the file that a merge was saved in, as far as is kept and as long as it is there. */
async function savedOf({ at }, outputs) {
  const isOf = ({ iteris_saved: saved, iteris_made: [made] = [] }) => saved && made?.at === at;
  const file = readFile(outputs.find(isOf)?.iteris_saved[0]);
  return file && !(await isGone(file)) ? file : undefined;
}

/** Return an image that takes its place anew once it is loaded. */
function picture(loaded) {
  const image = html("img");
  image.addEventListener("load", loaded);
  return image;
}

/** Return the button that saves a wipe from one image to another. */
function videoButton(say, over, under) {
  const video = button("iteris-video", say("video"), say("video_title"), async () => {
    video.disabled = true;
    video.textContent = say("video_making");
    try {
      await saveVideo({ image: over, name: over.alt }, { image: under, name: under.alt });
      video.textContent = say("video_saved");
    } catch (error) {
      video.textContent = say("video");
      tell(say("video_failed"), String(error?.message ?? error));
    } finally {
      setTimeout(() => Object.assign(video, { textContent: say("video"), disabled: false }), TOLD);
    }
  });
  video.hidden = !canRecord();
  return video;
}

/**
 * Add the slider, and beside or below it all pictures, small, to choose from. They are seen once a run has drawn them; at
 * first the slider has the two last ones, stacked and merged, of the row that `firstOf` names.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 * @param {object} above the widget above it
 */
export function addSlider(node, say, above) {
  const slider = new Slider(node, say, above);
  node.iterisPictures = () => (isShown(slider.element) ? slider.element : undefined);
  const isWhole = () => isShown(slider.element) && !slider.live;
  node.iterisPicturesAt = () => (isWhole() ? slider.shown.iteris_made?.[0]?.at : NaN); // of which merge
  node.showIterisTiles = (output) => slider.showTiles(output);
  node.showIterisPicture = (detail) => slider.showDrawn(detail);
  node.keepIterisDrawn = () => slider.keepDrawn();
  node.forgetIterisDrawn = () => slider.forgetDrawn();
  also(node, "endIterisRun", () => slider.live?.isEnded || slider.forgetDrawn());
  node.showIterisNamed = () => slider.showNamed();
  node.iterisRoom = () => roomOf(slider.element, 0);
  savesWithout(node, node.iterisRoom);
  node.nameIterisMerges = () => slider.findBefore();
  also(node, "onExecuted", node.showIterisTiles);
  also(node, "checkIterisFile", node.nameIterisMerges);
  also(node, "compareIterisRun", () => slider.showLoading());
}

class Slider {
  sides = html("div", "iteris-sides");
  pair = html("div", "iteris-pair");
  frame = html("div", "iteris-frame");
  prompt = html("span");
  strip = html("div", "iteris-strip");
  rows = [];
  chosen = 0; // the row
  first; // see `firstOf`
  shown; // the run's output
  live; // a run that goes on, or was stopped: its id, and the rows that it has drawn so far
  before = []; // what other merges have drawn, see `drawnBefore`, their files and values; they can be chosen in the fields alone
  file; // of the merge that is shown
  steps = wheelSteps();

  constructor(node, say, above) {
    Object.assign(this, { node, say });
    this.element = addElement(node, "slider", (shown) => heightOf(shown, 0) || 34, above);
    [this.left, this.right] = ["on_left", "on_right"].map((word) => choice(say(word)));
    [this.under, this.over] = [0, 1].map(() => picture(() => this.layOut()));
    this.divider = Object.assign(html("input"), { type: "range", step: "any", ariaLabel: say("divider") });
    this.build();
    this.listen();
    this.cut();
    this.enlarge(1, [0, 0]);
    showElement(node, this.element, false);
  }

  build() {
    const { divider, element, frame, left, over, pair, right, say, sides, strip, under } = this;
    const buttons = html("div", "iteris-on-pair");
    this.large = button("iteris-full", "", say("full_screen"), () => frame.requestFullscreen());
    this.large.hidden = !document.fullscreenEnabled;
    for (const select of [left, right]) {
      const side = html("div", "iteris-side");
      side.append(select);
      sides.append(side);
    }
    buttons.append(videoButton(say, over, under), this.large);
    pair.append(under, over, divider, buttons);
    const turn = html("div", "iteris-turn");
    const ways = Object.entries({ "↑": [-1, "row_above"], "↓": [1, "row_below"] });
    this.turns = ways.map(([sign, [by, word]]) => button("iteris-copy", sign, say(word), () => this.turn(by)));
    turn.append(...this.turns, this.prompt);
    frame.append(
      sides,
      pair,
      turn,
      button("iteris-close", "×", say("close_full_screen"), () => document.exitFullscreen()),
    );
    const whole = html("div", "iteris-pictures");
    whole.append(frame, strip);
    element.append(whole);
  }

  listen() {
    const { divider, element, frame, node, pair, strip } = this;
    pair.addEventListener("dblclick", () => document.fullscreenElement && document.exitFullscreen());
    const press = (event) => this.press(event);
    const turn = [(event) => this.zoomAt(event), { capture: true, passive: false }]; // before Vue nodes tell the canvas
    frame.addEventListener("fullscreenchange", () => {
      document.removeEventListener("keydown", press);
      document.removeEventListener("wheel", ...turn);
      this.enlarge(1, [0, 0]);
      if (document.fullscreenElement) {
        document.addEventListener("keydown", press); // also once something without the focus was clicked
        document.addEventListener("wheel", ...turn);
        return divider.focus(); // for the arrow keys, and Tab goes on to the way out
      }
      this.large.focus();
      fit(node); // it had no place in the node meanwhile
    });
    // as wide as the node and as high as the pictures, whatever is in the strip
    new ResizeObserver(() => this.arrange()).observe(pair);
    // as in the rows: the canvas knows of a wheel that turns above, and a Vue node is not dragged
    element.addEventListener("wheel", (event) => {
      if (strip.contains(event.target) && strip.scrollHeight > strip.clientHeight) return event.stopPropagation();
      if (!LiteGraph.vueNodesMode) app.canvas.processMouseWheel(event);
    });
    element.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
    divider.addEventListener("input", () => this.cut());
    divider.addEventListener("pointerup", () => document.fullscreenElement || divider.blur()); // or it would have the keys, as Ctrl+Z
    for (const select of [this.left, this.right])
      select.addEventListener("change", () => {
        select.dataset.chosen = select.value;
        this.show();
        if (document.fullscreenElement) divider.focus(); // for the arrow keys
      });
    for (const image of [this.under, this.over]) askAgain(image, AGAIN, () => this.miss(image.src));
  }

  /** Show no pictures, as the server has begun anew, without them. */
  miss(src) {
    this.forgetDrawn();
    showElement(this.node, this.element, false);
    if (!src.startsWith("blob:")) this.node.findIterisPictures();
  }

  layOut() {
    const { naturalWidth: width, naturalHeight: height } = this.under;
    if (height) this.element.style.setProperty("--iteris-ratio", width / height);
    fit(this.node);
  }

  /** Make the small pictures as large as all rows have room for; only the page knows what fits, as prompts have lines. */
  arrange() {
    const { strip } = this;
    if (!strip.offsetHeight) return;
    const set = (side) => strip.style.setProperty("--iteris-thumb", `${side}px`);
    let [found, most] = [SIDES.least - 1, SIDES.most]; // by halves: each try lays the strip out
    while (found < most) {
      const side = Math.ceil((found + most) / 2);
      set(side);
      if (strip.scrollHeight <= strip.clientHeight) found = side;
      else most = side - 1;
    }
    set(found < SIDES.least ? SCROLLED : found);
  }

  cut() {
    this.pair.style.setProperty("--iteris-cut", `${this.divider.value}%`);
  }

  /** Show both pictures larger, moved by parts of their sides. */
  enlarge(zoom, moved) {
    Object.assign(this, { zoom, moved });
    const [x, y] = moved.map((by) => `${100 * by}%`);
    for (const [name, value] of Object.entries({ zoom, x, y })) this.pair.style.setProperty(`--iteris-${name}`, value);
  }

  /** Enlarge both pictures round the pointer, without letting them leave their frame. */
  zoomAt(event) {
    if (document.fullscreenElement !== this.frame) return; // it was taken away, and told nothing of that
    event.preventDefault();
    event.stopPropagation();
    const { left, top, width, height } = this.pair.getBoundingClientRect();
    const zoom = Math.min(Math.max(1, this.zoom * ZOOM.by ** this.steps(event)), ZOOM.most);
    const at = [(event.clientX - left) / width, (event.clientY - top) / height];
    const moved = this.moved.map((by, axis) => at[axis] + ((by - at[axis]) * zoom) / this.zoom);
    this.enlarge(
      zoom,
      moved.map((by) => Math.min(Math.max(1 - zoom, by), 0)),
    );
  }

  press(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by || document.fullscreenElement !== this.frame || event.target.matches?.("select")) return;
    event.preventDefault(); // they would move the divider, as those to the sides do
    this.turn(by);
  }

  /** Go on to another row. */
  turn(by) {
    if (this.live) return;
    this.showRow((this.chosen + by + this.rows.length) % this.rows.length);
    this.show();
  }

  show() {
    if (this.live) return;
    const { chosen, left, over, right, rows, strip, under } = this;
    const pictures = [...rows[chosen].pictures, ...this.beforeIn(chosen).map((merge) => merge.pictures[chosen])];
    for (const [image, select] of [
      [under, right],
      [over, left],
    ]) {
      const [option] = select.selectedOptions;
      image.alt = option.textContent;
      image.src = addressOf(pictures[select.selectedIndex]);
      select.title = `${select.ariaLabel}: ${option.title || image.alt}`;
    }
    this.prompt.textContent = rows[chosen].prompt;
    for (const each of this.turns) each.hidden = rows.length < 2;
    for (const each of strip.querySelectorAll("button")) {
      const [row, place] = [each.dataset.row, each.dataset.place].map(Number);
      each.ariaPressed = row === chosen && [left, right].some(({ selectedIndex }) => selectedIndex === place);
    }
    this.showLoading();
  }

  /** Return what other merges have drawn by a row's prompt. */
  beforeIn(row) {
    return this.before.filter(({ pictures }) => pictures[row]);
  }

  /** Return what loads the file of the earlier merge that is chosen; undefined: there is none, or nothing can. */
  loaderOf({ selectedIndex }) {
    const file = this.beforeIn(this.chosen)[selectedIndex - this.rows[this.chosen]?.names.length]?.file;
    return file && mergeOf(this.node)?.iterisLoaderOf?.(file);
  }

  showLoading() {
    const { left, right, say, sides } = this;
    for (const load of sides.querySelectorAll(".iteris-load")) load.remove();
    for (const select of [left, right]) select.after(...loadButton(this.loaderOf(select), say));
  }

  showRow(row) {
    this.chosen = row;
    const { file, left, right, rows, say, shown } = this;
    const { names } = rows[row];
    const before = this.beforeIn(row);
    const merges = before.length ? [{ made: shown.iteris_made[0], file }, ...before] : [];
    const nameIn = (saved) => (saved ? ` ${nameOf(saved.listed_as ?? saved.name)}` : "");
    const called = namesOfMerges(
      merges.map(({ made }) => made),
      say,
    );
    const told = merges.map(({ made, file: saved, value }, i) => ({
      ...{ name: called[i], value },
      title: `${say("merged")}${ofMerge(made, say)}${nameIn(saved)}`,
    }));
    offer(left, names, told, names.length - 2);
    offer(right, names, told, names.length - 1);
  }

  /** Show the row that the merge's verdict names, if it names one. */
  showNamed() {
    if (this.live || !this.first?.isNamed) return;
    this.showRow(this.first.row);
    this.show();
  }

  /** Choose a picture: the last one of a row, the merge's, for the right side, any other for the left one. */
  pick(row, place) {
    if (this.live) return this.showLarge(row, place);
    if (row !== this.chosen) this.showRow(row);
    const select = place === this.rows[row].names.length - 1 ? this.right : this.left;
    select.selectedIndex = place;
    select.dataset.chosen = select.value;
    this.show();
  }

  thumb(file, name, short, row, place) {
    const found = button("iteris-thumb", "", name, () => this.pick(row, place));
    Object.assign(found.dataset, { row, place });
    found.disabled = !file; // it is still to come
    const image = Object.assign(
      picture(() => fit(this.node)),
      { alt: "", src: file ? addressOf(file) : "" },
    );
    const caption = html("span");
    caption.append(...wrapping(short));
    found.append(...(file ? [image] : []), caption);
    return found;
  }

  rowOf({ prompt, names, pictures }, row, first = this.first) {
    const line = html("div", "iteris-drawn");
    const text = html("div", "iteris-drawn-by");
    text.title = row === first?.row ? this.say(first.word, { prompt }) : prompt;
    text.append(html("span", row === first?.row ? "iteris-reason" : "", text.title));
    const short = toldApart(names, IN_PICTURE);
    const thumbs = html("div", "iteris-thumbs");
    this.strip.style.setProperty("--iteris-pictures", names.length); // in each row, if they are more than three
    thumbs.append(...pictures.map((file, place) => this.thumb(file, names[place], short[place], row, place)));
    line.append(text, thumbs);
    return line;
  }

  /** Show a picture of a run that goes on, large, and among those that are still to come. */
  showDrawn({ prompt_id: run, rows, row, place, picture: file }) {
    const { element, node, say, strip } = this;
    const isNew = this.live?.run !== run;
    if (isNew) {
      const coming = rows.map((each) => ({
        ...each,
        names: translated(each.names, say),
        pictures: each.names.map(() => undefined),
      }));
      this.live = { run, rows: coming };
    }
    const { names, pictures } = this.live.rows[row];
    pictures[place] = file;
    if (isNew) {
      strip.replaceChildren(...this.live.rows.map((each, at) => this.rowOf(each, at, {})));
      element.classList.add("iteris-live");
      showElement(node, element, true);
      this.arrange();
    } else {
      const thumb = this.thumb(file, names[place], toldApart(names, IN_PICTURE)[place], row, place);
      strip.querySelector(`[data-row="${row}"][data-place="${place}"]`).replaceWith(thumb);
    }
    this.showLarge(row, place);
    fit(node);
  }

  showLarge(row, place) {
    const { names, pictures } = this.live.rows[row];
    for (const image of [this.under, this.over])
      Object.assign(image, { alt: names[place], src: addressOf(pictures[place]) });
    for (const each of this.strip.querySelectorAll("button"))
      each.ariaPressed = Number(each.dataset.row) === row && Number(each.dataset.place) === place;
  }

  /** Keep the pictures of a run that ends without all of its own; return how many of them there are. */
  keepDrawn() {
    if (!this.live) return undefined;
    this.live.isEnded = true;
    const pictures = this.live.rows.flatMap((row) => row.pictures);
    return { drawn: pictures.filter(Boolean).length, count: pictures.length };
  }

  /** Show the pictures of the run before again. */
  forgetDrawn() {
    if (!this.live) return;
    this.live = undefined;
    this.element.classList.remove("iteris-live");
    if (this.shown) return this.showTiles(this.shown);
    showElement(this.node, this.element, false);
    fit(this.node);
  }

  showTiles(output) {
    if (!output?.iteris_tiles?.length) return;
    this.live = undefined;
    this.element.classList.remove("iteris-live");
    const { node, rows, say, strip } = this;
    const { first: before } = this;
    const { prompt: last } = rows[this.chosen] ?? {};
    const isLeft = this.chosen !== (before?.row ?? 0);
    this.shown = output;
    this.before = [];
    this.rows = output.iteris_tiles.map((row) => ({ ...row, names: translated(row.names, say) }));
    this.first = firstOf(this.rows);
    strip.replaceChildren(...this.rows.map((row, at) => this.rowOf(row, at)));
    showElement(node, this.element, true);
    this.arrange();
    const again = this.rows.findIndex(({ prompt }) => prompt === last);
    const isKept = again >= 0 && (isLeft || before?.word === this.first?.word);
    this.showRow(isKept ? again : (this.first?.row ?? 0));
    this.show();
    fit(node);
    this.findBefore();
  }

  async findBefore() {
    const { shown } = this;
    if (!shown) return;
    const kept = await allKept();
    const found = drawnBefore(kept, shown);
    if (!found.length) return;
    const merges = [{ made: shown.iteris_made[0] }, ...found];
    const files = await Promise.all(merges.map(({ made }) => savedOf(made, kept)));
    if (this.shown !== shown) return;
    [this.file] = files;
    this.before = found.map((each, i) => ({ ...each, file: files[i + 1], value: BEFORE + each.made.at }));
    this.showRow(this.chosen);
    this.show();
  }
}
