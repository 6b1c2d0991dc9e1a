// What a run shows as text and pictures; and once the server has forgotten the run, what is still true of it.

import { addElement, isShown, passing } from "./elements.js";
import { also, mergeOf } from "./graph.js";
import { fit, heightOf, keepWidth, panelHeight } from "./heights.js";
import { addressOf, keepMade, keptMade } from "./browser_store.js";
import { isGone } from "./loras.js";
import { loadButton, savedLine } from "./panel.js";
import { html, wrapping } from "./parts.js";
import { ownName } from "./rows_text.js";
import { RAN, compareWithRun, copyWithoutResult, outputOf, ranAs } from "./results.js";
import { nameAsRun, runOf } from "./runs.js";
import { nameAsShown } from "./current_prompt.js";
import { readFile } from "./saved_report.js";
import { addProgress } from "./progress_line.js";
import { keepResult } from "./undo.js";

/**
 * Return lines of text; of saved files the name comes first, and that it was read back last, and small. `insteadOf`
 * returns what is shown instead of a file that is gone.
 */
function linesOf(text, saved, buttonsOf, insteadOf) {
  const fileAt = (line) => saved.find(({ name }) => ownName(line) === name);
  if (!fileAt(text[0])) return [html("div", "", text.join("\n"))];
  const files = [];
  for (const line of text) {
    if (fileAt(line)) files.push([]);
    files.at(-1).push(line);
  }
  return files.flatMap(([path, proof, ...facts]) => {
    const gone = insteadOf(fileAt(path));
    if (gone) return [gone];
    return [
      ...pathOf(path, buttonsOf(fileAt(path))),
      ...facts.map((fact) => html("div", "iteris-fact", fact)),
      html("div", "iteris-quiet iteris-small", proof),
    ];
  });
}

/** Return what a workflow keeps of the files that a run has saved. */
const savedBy = ({ iteris_saved: files = [] }) => files.map(readFile);

/** Return those of files that were saved that are other ones now, or none at all. */
async function goneOf(files) {
  const found = await Promise.all(files.map(isGone));
  return files.filter((_, i) => found[i]);
}

/** Return a file's name, with its buttons, and its folder, which is broken between its parts. */
function pathOf(path, buttons) {
  const [, folder, name] = path.match(/^(?:(.*)[\\/])?(.*)$/s);
  const line = html("div", "iteris-saved-as");
  line.title = path;
  line.append(...buttons, ...wrapping(name));
  const place = html("div", "iteris-quiet iteris-small");
  if (folder) place.append(...wrapping(folder));
  return [line, place];
}

/**
 * Show the text and the pictures of a run, or why it failed.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 * @param {object} [how]
 * @param {number} [how.width] of the node at least
 * @param {object} [how.above] the widget above it; none: at the node's end
 * @param {string} [how.folded] what the text and the pictures are called, where they are in details
 */
export function addText(node, say, how = {}) {
  const panel = new TextPanel(node, say, how);
  node.startIterisRun = () => panel.begin();
  node.endIterisRun = () => panel.removeProgress(); // of a run that was cancelled or failed
  node.showIterisText = (output) => panel.showText(output);
  node.showIterisSaved = (output) => panel.showMade(output);
  node.showIterisFailure = (message, how) => panel.showFailure(message, how);
  node.showIterisStop = (how) => panel.showStop(how);
  node.missIterisRun = () => panel.miss();
  node.checkIterisFile = () => panel.checkFile();
  node.findIterisPictures = () => panel.findPictures();
  copyWithoutResult(node);
  compareWithRun(node, panel);
  also(node, "onExecuted", node.showIterisText);
  also(node, "compareIterisRun", () => panel.hideLoading());
  if (!how.width) return;
  keepWidth(node, how.width);
  node.setSize([Math.max(node.size[0], how.width), node.size[1]]);
}

class TextPanel {
  shown; // the output, or how a run ended
  files = []; // that it tells of
  gone = []; // and those of them that were removed since, or changed
  merge; // whose files are shown
  madeAs; // the node's name, see `workOf`, in the run that made what is shown
  run; // that one, as far as it is known
  since = ""; // in what the node was another one in it
  endedAs; // or in the one that failed, or was stopped
  isOfRows = false; // its rows are why it was refused before it began
  isOld = false; // what is shown goes once a run begins
  above; // a line above the pictures of a run that did not finish
  drawParts; // anew

  constructor(node, say, { width = 0, above, folded }) {
    Object.assign(this, { node, say, width, folded });
    const height = (text) => (above ? heightOf(text, 12) : panelHeight(node, text));
    this.element = addElement(node, "text", (text) => height(text) || 44, above);
    this.removeProgress = addProgress(node, say, above);
    Object.assign(this, passing(node, this.element, height)); // `show` and `hide`
  }

  get ran() {
    return this.node.properties[RAN] ?? {};
  }

  loaderOf(file) {
    return this.merge?.iterisLoaderOf?.(file);
  }

  /** Hide what loads a file of a merge that is not linked any more. */
  hideLoading() {
    const isOther = mergeOf(this.node) !== this.merge;
    for (const load of this.element.querySelectorAll(".iteris-load")) load.hidden = isOther;
  }

  begin() {
    if (this.isOld) this.hideEnd();
  }

  /** Hide what the last run ended with, and the pictures that it had drawn by then. */
  hideEnd() {
    this.hide();
    this.setAbove();
    this.node.forgetIterisDrawn?.();
  }

  showText(output) {
    if (output?.text?.length) this.showMade(output);
  }

  /** Show what a run has made; files alone where it is not done with the node. */
  showMade(output) {
    this.showParts(output);
    this.removeProgress();
    this.remember(output);
  }

  showParts(output) {
    this.shown = output;
    this.run = runOf(output);
    this.since = "";
    this.isOld = false;
    this.setAbove();
    this.merge = mergeOf(this.node);
    this.files = output.iteris_saved ?? [];
    this.gone = [];
    const buttonsOf = (file) => loadButton(this.loaderOf(file), this.say);
    const insteadOf = (file) => this.gone.includes(file) && this.fileLine(file);
    this.drawParts = () => {
      const parts = [
        ...(output.text
          ? linesOf(output.text, this.files, buttonsOf, insteadOf)
          : this.files.map((file) => this.fileLine(file))),
        ...this.keptLines(output),
        ...(output.iteris_pictures ?? []).map((file) => this.pictureOf(file)),
      ];
      this.element.replaceChildren(...(this.folded ? [this.fold(parts)] : parts));
    };
    this.drawParts();
    this.mark();
    this.show(this.width);
  }

  /** Return a line that says how many of a comparison's pictures are of earlier runs, if some are. */
  keptLines({ iteris_drawn: drawn }) {
    const { kept, pictures } = drawn?.[0] ?? {};
    return kept ? [html("div", "", this.say("pictures_kept", { kept, count: kept + pictures }))] : [];
  }

  /** Say of what is shown, or of the pictures alone, of which run it is; without a word: of the last one. */
  mark(word, isAll = true) {
    const { element, say, since } = this;
    const pictures = this.node.iterisPictures?.();
    const marked = word ? [pictures, isAll && element].filter(Boolean) : [];
    for (const each of [pictures, element].filter(Boolean)) {
      each.querySelector(":scope > .iteris-earlier")?.remove();
      each.classList.toggle("iteris-old", marked.includes(each));
    }
    const of = since && say("of_merge", { what: since });
    marked[0]?.prepend(html("div", "iteris-earlier", say(word, { of })));
  }

  /** Return whether something is told, here or above the pictures. */
  isTold() {
    return isShown(this.element) || !!this.above;
  }

  /** Return whether something is shown that a run has told. */
  isOfRun() {
    return this.isTold() && !!(this.isOld ? this.endedAs : this.madeAs);
  }

  /** Return the run of what is shown, if the node is not what it was in it. */
  madeIn(now) {
    return this.isOld || now === this.madeAs ? undefined : this.run;
  }

  /** Mark what is shown if the node is not what it was in its run; return whether it is marked. */
  compare(now, since) {
    if (this.isOld) {
      if (now === this.endedAs) return false;
      this.hideEnd(); // no news of a node that is another one now
      this.since = "";
      this.mark("earlier", false);
      return false;
    }
    const isChanged = now !== this.madeAs;
    const wasSince = this.since;
    this.since = since;
    if (isChanged !== this.isMarked() || since !== wasSince) {
      this.mark(isChanged ? "changed" : undefined);
      fit(this.node, this.width);
    }
    return isChanged;
  }

  isMarked() {
    return this.element.classList.contains("iteris-old");
  }

  /** Let a line stand above the pictures instead of the one that does; undefined: none. */
  setAbove(line) {
    this.above?.remove();
    this.above = line;
    if (line) this.node.iterisPictures().prepend(line);
  }

  /**
   * Show what the last run ended with, above the pictures if it has drawn some, until the next one begins or the node is
   * another one.
   */
  async showEnd(line, nameOfIt = nameAsRun, hasDrawn = false) {
    this.shown = line;
    this.files = [];
    this.isOld = true;
    this.endedAs = undefined;
    this.mark("earlier", false); // which is not seen on pictures of that run itself
    if (hasDrawn) {
      line.classList.add("iteris-ended");
      this.setAbove(line);
      this.hide();
      fit(this.node, this.width);
    } else {
      this.element.replaceChildren(line);
      this.show(this.width);
    }
    const name = await nameOfIt(this.node);
    if (this.shown === line) this.endedAs = name;
  }

  /** Show why a run failed; `how`, if it is not the run that was told last: "rows" or "refused", "elsewhere", or "before". */
  showFailure(message, how) {
    const hasDrawn = !how && !!this.node.keepIterisDrawn?.();
    const line = html("div", "iteris-warning iteris-failure", message);
    this.isOfRows = how === "rows";
    this.showEnd(line, how ? nameAsShown : nameAsRun, hasDrawn);
  }

  showStop(how) {
    this.isOfRows = false;
    const drawn = how ? undefined : this.node.keepIterisDrawn?.();
    const here = drawn ? "stopped_drawn" : this.node.keepIterisDrawn ? "stopped_undrawn" : "stopped";
    const word = how ? `stopped_${how}` : here;
    const text = this.say(word, drawn);
    const line = html("div", drawn ? "iteris-note" : "iteris-quiet iteris-note", text);
    if (drawn) line.append(html("div", "iteris-far", text)); // pictures are looked at from afar, too
    this.showEnd(line, how ? nameAsShown : nameAsRun, !!drawn);
  }

  /** Show what is still true of the run that the workflow keeps, where the server knows no run. */
  async miss() {
    const { element, node, ran } = this;
    const { name, files: kept } = ran;
    if (!Array.isArray(kept) || this.isTold() || (await this.find())) return;
    const output = await outputOf(ran);
    if (output) {
      this.showFound(output);
      node.checkIterisFile();
      return;
    }
    const isSame = name === (await nameAsShown(node));
    const saved = kept.map(readFile).filter(Boolean);
    const gone = await goneOf(saved);
    const isTold = isSame || saved.length || node.showIterisTiles; // or a run would not make it again
    if (this.isTold() || !isTold) return; // of a run by now
    Object.assign(this, { files: saved, gone, endedAs: undefined, madeAs: name, merge: mergeOf(this.node) });
    this.isOld = !saved.length;
    this.drawParts = () =>
      element.replaceChildren(
        ...(saved.length
          ? saved.map((file) => this.fileLine(file))
          : [this.forgotten(isSame ? "forgotten" : "not_here")]),
      );
    this.drawParts();
    this.show(this.width);
    node.compareIterisRun();
  }

  /** Ask whether the files are still there. */
  async checkFile() {
    const asked = this.files;
    const gone = await goneOf(asked);
    if (asked !== this.files || asked.every((file) => this.gone.includes(file) === gone.includes(file))) return;
    this.gone = gone;
    const isChanged = this.isMarked();
    this.drawParts();
    this.mark(isChanged ? "changed" : undefined);
    fit(this.node, this.width);
    this.node.compareIterisRun();
  }

  /** Show what the browser has kept of the run, where the server has lost it; return whether there is something. */
  async find() {
    const { name, files } = this.ran;
    const output = await keptMade(name);
    // another workflow's run of the same may have saved another file
    if (!output || JSON.stringify(savedBy(output)) !== JSON.stringify(files)) return false;
    this.showFound(output);
    this.node.checkIterisFile();
    return true;
  }

  /** Show pictures that the browser has kept instead of those that are gone, or say that there are none. */
  async findPictures() {
    const { element } = this;
    if ((await this.find()) || element.querySelector(":scope > .iteris-forgotten")) return;
    element.prepend(this.forgotten("not_here"));
    this.show(this.width);
  }

  /** Show what the run has made that the workflow keeps, unless a run has made something by now. */
  showFound(output) {
    const { node } = this;
    if (!node.graph || node.iterisPictures?.()) return;
    node.showIterisTiles?.(output);
    if (isShown(this.element) && (this.isOld || !node.showIterisTiles)) return; // of a run, or why the last one failed
    this.endedAs = undefined;
    this.madeAs = this.ran.name;
    this.showParts(output);
    node.compareIterisRun();
  }

  /** Let the workflow keep that there was a run, and what it has saved. */
  async remember(output) {
    const { node } = this;
    this.madeAs = undefined;
    const ran = await ranAs(node, output, savedBy(output));
    if (this.shown !== output || !ran.name || !node.graph) return; // or another one has come
    this.madeAs = ran.name;
    node.compareIterisRun();
    keepMade(ran.name, output);
    if (JSON.stringify(this.ran) === JSON.stringify(ran)) return;
    node.properties[RAN] = ran;
    fit(node, this.width, () => keepResult(node)); // with the height that it has then
  }

  /** Return details that are closed at first, and then as they were. */
  fold(parts) {
    const details = html("details", "iteris-details");
    details.open = !!this.element.querySelector("details[open]");
    const summary = html("summary", "", this.folded);
    details.append(summary, ...parts);
    summary.addEventListener("click", () => fit(this.node));
    return details;
  }

  forgotten(word = "forgotten") {
    return html("div", "iteris-quiet iteris-forgotten", this.say(word));
  }

  /** Return what is true of a saved file now. */
  fileLine(file) {
    return savedLine({ ...file, isGone: this.gone.includes(file) }, this.say, this.loaderOf(file));
  }

  /** Return a picture of the server as wide as the node, which grows for it. */
  pictureOf(file) {
    const picture = html("img");
    picture.addEventListener("load", () => fit(this.node, this.width));
    picture.addEventListener("error", () => picture.replaceWith(this.forgotten()));
    picture.src = addressOf(file);
    return picture;
  }
}
