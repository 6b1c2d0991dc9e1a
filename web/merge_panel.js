// The panel of Merge LoRAs: what a run tells layer by layer, then its report, and the file that it was saved in.

import { FOR_PROMPT } from "./chain.js";
import { addElement, isShown, showElement } from "./elements.js";
import { also, saidBy, widgetOf } from "./graph.js";
import { fit, panelHeight, savesWithout } from "./heights.js";
import { isGone } from "./loras.js";
import { canCompare, compareOf, isKept, loadNow, promptsOf, saveNow, seeNow, switchOn } from "./merge.js";
import { draw, drawOn } from "./panel.js";
import { backToCanvas } from "./parts.js";
import { hasSampled } from "./progress.js";
import { figures } from "./report.js";
import { canName } from "./rows_text.js";
import { MADE_AS, REPORT, compareWithRun, copyWithoutResult } from "./results.js";
import { isLast, nameAsRun, runOf } from "./runs.js";
import { nameAsShown } from "./current_prompt.js";
import { readFile, readSaved } from "./saved_report.js";
import { addProgress } from "./progress_line.js";
import { keepResult } from "./undo.js";
import { PREVIEW } from "./prompt_graph.js";

const WIDTH = 400;
const EMPTY = 44; // height of a panel before the first run
const AS_IS = "as is"; // the size of which a merge of one LoRA is that LoRA

/** Return whether a file is of the merge that a report is of, as far as they say it. */
function isFileOf(file, report) {
  if (!file || !report) return false;
  return !file.report || file.report === report.digest;
}

/** Return the height of a report's details where they are open, without their title. */
function roomOpen(element) {
  const details = element.querySelector(".iteris-details[open]");
  return details ? details.offsetHeight - details.firstElementChild.offsetHeight : 0;
}

/**
 * Add the panel; the node gets what a run's events call.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 */
export function addReport(node, say) {
  const panel = new MergePanel(node, say);
  node.iterisRoom = () => panel.room();
  savesWithout(node, () => roomOpen(panel.element)); // details are closed once the workflow is opened again
  copyWithoutResult(node);
  compareWithRun(node, panel);
  node.iterisLoaderOf = (file) => panel.loaderOf(file);
  node.startIterisRun = () => panel.begin();
  node.endIterisRun = () => panel.end();
  node.showIterisFailure = (message, how) => panel.showFailure(message, how);
  node.showIterisStop = (how) => panel.showStop(how);
  node.showIterisLayer = ({ first, layer }) => panel.addLayer(layer, first);
  node.showIterisReport = (output) => panel.showReport(output);
  node.showIterisFile = (file) => panel.showFile(file);
  node.checkIterisFile = () => panel.checkFile();
  node.showIterisLoras = (loras, subjects) => panel.count(loras, subjects);
  also(node, "showIterisProgress", (detail) => panel.noteStage(detail));
  also(node, "onExecuted", node.showIterisReport);
  also(node, "onConnectionsChange", () => {
    node.compareIterisRun();
    panel.showLinked();
  });
  for (const widget of [panel.preset, panel.together, panel.size]) also(widget, "callback", () => panel.showLinked());
  also(node, "onConfigure", () => {
    panel.showKept();
    node.compareIterisRun();
  });
  panel.show();
}

class MergePanel {
  layers; // of a run that has not ended, by path: what is solved again takes its own place
  isWaiting = false; // for a frame, to show them
  isAtWork = false; // and says how far it is
  isSampled = false; // the sampling of the run that began last is over
  isTold = true; // the report is of that run
  ended = {}; // what that run ended with: `failure` or `stopped`, see `draw`
  endedAs; // the node's name in it
  isOfRows = false; // its rows are why it was refused before it began
  isEarlier = false; // the report is of a run before it
  isChanged = false; // the node, or one before it, is not what it was in the run that made the report
  run; // that one, as far as it is known
  since = ""; // in what the node was another one in it
  isFileGone = false;
  early; // a file that is told before its report, as where the server's cache has the merge of a new node
  loras = 0; // in the rows; NaN: a row has no file yet
  subjects = 0; // of them
  wasLinked = ""; // what `linked` told last
  shown; // what the run has told that was shown last
  isOpen; // the details, once somebody has opened or closed them

  constructor(node, say) {
    Object.assign(this, { node, say });
    this.removeProgress = addProgress(node, say, undefined, (isTold) => {
      this.isAtWork = isTold;
      this.place();
    });
    this.element = addElement(node, "report", (shown) => this.height(shown));
    const named = (wanted) => node.widgets.find(({ name }) => name === wanted);
    [this.preset, this.together, this.size] = ["preset", "together", "size"].map(named);
  }

  get report() {
    return this.node.properties[REPORT];
  }

  set report(report) {
    this.node.properties[REPORT] = report;
  }

  height(element) {
    return panelHeight(this.node, element) || (this.report ? 250 : EMPTY);
  }

  /** Return by how much the panel is higher by what runs have told. */
  room() {
    const { element } = this;
    return element.classList.contains("iteris-empty") ? 0 : this.height(element) - EMPTY;
  }

  /** The node's name in the run that made its report. */
  get madeAs() {
    return this.report && this.node.properties[MADE_AS];
  }

  /** Show the panel, but what it says before a run only where none goes on. */
  place() {
    const { element, node } = this;
    const isWanted = !(this.isAtWork && element.classList.contains("iteris-empty"));
    if (isShown(element) === isWanted) return;
    showElement(node, element, isWanted);
    fit(node);
  }

  /** Return whether the next run may be thought to draw subjects in one picture, and does not measure them so. */
  isApart() {
    const { node, preset, subjects, together } = this;
    return subjects > 1 && preset.value !== PREVIEW && !together.disabled && saidBy(node, "together") === false;
  }

  /** Return whether the next run would make of one LoRA the same one. */
  isAlone() {
    const { loras, node } = this;
    const hasMore = node.inputs.some(({ name, link }) => ["more_loras", "settings"].includes(name) && link != null);
    return loras === 1 && !hasMore && saidBy(node, "size") === AS_IS;
  }

  isTogether() {
    return saidBy(this.node, "together") === true;
  }

  /** Return whether the node's own switch would let the next run measure subjects together. */
  canSwitchOn() {
    const { node, together } = this;
    return widgetOf(node, "together") === together && together.value === false && !together.disabled;
  }

  /** Return what links, rows and settings tell. */
  linked() {
    const { node, preset } = this;
    const settings = [preset.value === PREVIEW, this.isApart(), this.isTogether(), this.canSwitchOn()];
    return [isKept(node), !!compareOf(node), canCompare(node), promptsOf(node), this.isAlone(), ...settings].join();
  }

  show() {
    this.layers = undefined;
    this.draw(this.isEarlier ? "earlier" : this.isChanged ? "changed" : undefined);
    fit(this.node, this.report ? WIDTH : 0, () => keepResult(this.node));
  }

  draw(earlier, live) {
    const { element, node, say } = this;
    const stops = () => [...element.querySelectorAll("button, summary")];
    const focused = document.activeElement;
    const place = stops().indexOf(focused);
    this.wasLinked = this.linked();
    draw(element, this.report, say, {
      earlier,
      since: this.since,
      ...this.ended,
      isApart: this.isApart(),
      isGone: this.isFileGone,
      isOpen: this.isOpen,
      isPreview: this.preset.value === PREVIEW,
      isSet: !!this.node.properties[FOR_PROMPT] && this.isTogether(),
      isTogether: this.isTogether(),
      isAlone: this.isAlone(),
      live,
      prompts: promptsOf(node),
      load: this.loaderOf(this.report?.file),
      save: isKept(node) || earlier ? undefined : () => saveNow(node),
      see:
        compareOf(node) || (!earlier && canCompare(node))
          ? () => seeNow(node, say, earlier ? undefined : this.report)
          : undefined,
      switchOn: this.canSwitchOn() ? () => switchOn(node) : undefined,
      toggled: (isOpen) => {
        this.isOpen = isOpen;
        fit(node);
      },
    });
    if (place >= 0) {
      const isSame = (stop) => stop.className === focused.className && stop.textContent === focused.textContent;
      const same = stops().find(isSame);
      if (same) same.focus({ preventScroll: true });
      else backToCanvas(stops()[place - 1] ?? element); // as after "Switch on", which is done
    }
    this.place();
  }

  showLive(isAnew) {
    this.isWaiting = false;
    if (!this.layers) return;
    const live = readSaved(figures({ layers: [...this.layers.values()] }));
    if (isAnew || !drawOn(this.element, live, this.say)) this.draw(this.isChanged ? "changed" : "before", live);
    fit(this.node, WIDTH);
  }

  /** Show what links, rows and settings tell, if that is another one now. */
  showLinked() {
    // once a workflow that is being opened is there, and its report was read
    setTimeout(() => this.layers || this.linked() === this.wasLinked || this.show());
  }

  count(loras, subjects) {
    Object.assign(this, { loras, subjects });
    this.showLinked();
  }

  /** Show a report that was read; undefined: it cannot be drawn. */
  showRead(report) {
    this.report = report;
    this.show();
    if (!report) this.element.firstChild.textContent = this.say("unreadable");
  }

  /** Show the report that the workflow has kept. */
  showKept() {
    if (this.report === undefined) this.show();
    else this.showRead(readSaved(this.report)); // all of it would be copied at every change
  }

  /** Return what loads a file of the merge; undefined: that is one of a pair, or a row cannot name it. */
  loaderOf(file) {
    const { node, say } = this;
    const isOfPair = node.inputs.some(({ name, link }) => name === "model_low_noise" && link != null);
    if (!file?.listed_as || !canName(file.listed_as) || isOfPair) return undefined;
    return (event) => {
      event.stopPropagation();
      loadNow(node, file, say);
    };
  }

  /** Return whether something is shown that a run has told. */
  isOfRun() {
    return !!(this.madeAs || this.endedAs);
  }

  /** Return the run of the report, if the node is not what it was in it. */
  madeIn(now) {
    return this.madeAs && this.madeAs !== now ? this.run : undefined;
  }

  /** Mark what is shown if the node is not what it was in its run; return whether it is marked. */
  compare(now, since) {
    const isOver = !!this.endedAs && this.endedAs !== now; // what failed is no news of a node that is another one now
    const wasChanged = this.isChanged;
    this.isChanged = !!this.madeAs && this.madeAs !== now;
    if (isOver) this.forgetEnd();
    const wasSince = this.since;
    this.since = since;
    const isOther = since !== wasSince || this.linked() !== this.wasLinked;
    if (isOver || this.isChanged !== wasChanged || isOther) this.layers ? this.showLive(true) : this.show();
    return this.isChanged && !this.layers;
  }

  forgetEnd() {
    this.ended = {};
    this.endedAs = undefined;
  }

  begin() {
    this.isTold = this.isSampled = false;
    const hadEnded = Object.keys(this.ended).length > 0;
    this.forgetEnd();
    if (hadEnded) this.show();
  }

  noteStage(detail) {
    this.isSampled = hasSampled(detail);
  }

  addLayer(layer, isFirst) {
    this.isTold = false; // of a node that was made anew in the run, too
    if (isFirst) this.layers = new Map();
    this.layers?.set(layer.path, layer);
    if (!this.isWaiting) requestAnimationFrame(() => this.showLive());
    this.isWaiting = true;
  }

  end() {
    this.removeProgress(); // of a run that was cancelled or failed; a later one makes its own
    if (this.isTold) return;
    this.isEarlier = true;
    this.show();
  }

  /** Show why a run failed; `how`, if it is not the run that was told last: "rows" or "refused", "elsewhere", or "before". */
  showFailure(message, how) {
    this.isOfRows = how === "rows";
    this.showEnd({ failure: message }, !!how);
  }

  /** Show what a run has ended with; `isNotHere`: before its begin, or in another window. */
  async showEnd(how, isNotHere = false) {
    this.ended = how;
    this.isEarlier ||= !isNotHere;
    this.show();
    const name = await (isNotHere ? nameAsShown : nameAsRun)(this.node);
    if (this.ended === how) this.endedAs = name;
  }

  /** Show that a run was stopped; `how`, where it did not end here: "elsewhere", or "lost"; or in which node: "compare", or "save". */
  showStop(how) {
    if (how && this.ended.failure) return; // which still holds
    this.isOfRows = false;
    const word = how ? `stopped_${how}` : this.isSampled ? "stopped_sampled" : "stopped";
    this.showEnd({ stopped: this.say(word) }, !!how);
  }

  async showReport(output) {
    if (!output?.iteris_report?.[0]) return;
    const { node } = this;
    const { file, digest } = this.report ?? {};
    const found = readSaved(figures({ ...output.iteris_report[0], made: output.iteris_made?.[0] }));
    // what is told again, as from the server's cache or after a restart, is still in the file
    const saved = file && digest === found?.digest ? file : this.early;
    const report = found && { ...found, ...(isFileOf(saved, found) ? { file: saved } : {}) };
    this.early = undefined;
    delete node.properties[MADE_AS];
    this.run = runOf(output);
    this.since = "";
    this.isTold = isLast(this.run);
    this.forgetEnd();
    this.isEarlier = this.isChanged = false;
    this.removeProgress();
    this.showRead(report);
    this.shown = report;
    const name = await nameAsRun(node, output);
    if (this.shown !== report) return; // another one has come
    if (name) node.properties[MADE_AS] = name;
    keepResult(node);
    node.compareIterisRun();
  }

  showFile(told) {
    const file = readFile(told);
    if (!file) return;
    if (!isFileOf(file, this.report)) {
      this.early = file;
      return;
    }
    this.report = { ...this.report, file };
    this.isFileGone = false;
    this.show();
    keepResult(this.node);
  }

  /** Ask whether the file is still there. */
  async checkFile() {
    const file = this.report?.file;
    const isFileGone = !!file && (await isGone(file));
    if (isFileGone === this.isFileGone || file !== this.report?.file) return;
    this.isFileGone = isFileGone;
    if (!this.layers) this.show();
  }
}
