// What a run shows as text and pictures; and once the server has forgotten the run, what is still true of it.

import { addElement, isShown, passing } from "./elements.js";
import { also, sourceOf } from "./graph.js";
import { fit, heightOf, keepWidth, panelHeight } from "./heights.js";
import { addressOf, keepPictures, keptPictures } from "./kept.js";
import { isGone } from "./loras.js";
import { ofMerge } from "./made.js";
import { fileOf, loadButton } from "./panel.js";
import { fileName, html } from "./parts.js";
import { ownName } from "./rows_text.js";
import { RAN, compareWithRun, copyWithoutResult, keepResult, nameAsRun, nameAsShown, outputOf, ranAs } from "./runs.js";
import { readFile } from "./saved.js";
import { addProgress } from "./stage.js";

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
  const [, folder, name, ending] = path.match(/^(?:(.*)[\\/])?(.*?)(\.[^.]*)?$/s);
  const line = html("div", "iteris-saved-as");
  line.title = path;
  line.append(...buttons, ...fileName("iteris-called", name), html("span", "iteris-end", ending));
  const place = html("div", "iteris-quiet iteris-small");
  for (const part of folder?.split(/(?<=[\\/])/) ?? []) place.append(part, html("wbr"));
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
export function addText(node, say, { width = 0, above, folded } = {}) {
  const height = (text) => (above ? heightOf(text, 12) : panelHeight(node, text));
  const element = addElement(node, "text", (text) => height(text) || 44, above);
  const removeProgress = addProgress(node, say, above);
  node.endIterisRun = removeProgress; // of a run that was cancelled or failed
  const { show, hide } = passing(node, element, height);
  let merge; // whose files are shown
  /** Return the merge that is linked, through reroutes, too; undefined: it is in another graph, or there is none. */
  const mergeOf = () => {
    const { node: found } = sourceOf(node.graph, node.inputs.find(({ name }) => name === "merged")?.link);
    return found?.graph === node.graph ? found : undefined;
  };
  const loaderOf = (file) => merge?.iterisLoaderOf?.(file);
  const buttonsOf = (file) => loadButton(loaderOf(file), say);
  let shown; // the output, or how a run ended
  let files = []; // that it tells of
  let gone = []; // and those of them that were removed since, or changed
  let drawParts; // anew
  let isOld = false; // what is shown goes once a run begins
  let madeAs; // the node's name, see `workOf`, in the run that made what is shown
  let made; // what is known of the merge that it is of, see `readMade`
  let failedAs; // or why that run failed
  node.startIterisRun = () => isOld && hide();
  node.showIterisText = (output) => {
    if (!output?.text?.length) return;
    showParts(output);
    removeProgress();
    remember(output);
  };
  const showParts = (output) => {
    shown = output;
    [made] = output.iteris_made ?? [];
    isOld = false;
    merge = mergeOf();
    files = output.iteris_saved ?? [];
    gone = [];
    drawParts = () => {
      const parts = [
        ...linesOf(output.text, files, buttonsOf, (file) => gone.includes(file) && fileLine(file)),
        ...(output.iteris_pictures ?? []).map(pictureOf),
      ];
      element.replaceChildren(...(folded ? [fold(parts)] : parts));
    };
    drawParts();
    mark();
    show(width);
  };
  /** Say of what is shown, or of the pictures alone, of which run it is; without a word: of the last one. */
  const mark = (word, isAll = true) => {
    const pictures = node.iterisPictures?.();
    const marked = word ? [pictures, isAll && element].filter(Boolean) : [];
    for (const each of [pictures, element].filter(Boolean)) {
      each.querySelector(":scope > .iteris-earlier")?.remove();
      each.classList.toggle("iteris-old", marked.includes(each));
    }
    marked[0]?.prepend(html("div", "iteris-earlier", say(word, { of: ofMerge(made, say) })));
  };
  copyWithoutResult(node);
  compareWithRun(
    node,
    () => isShown(element) && !!(isOld ? failedAs : madeAs),
    (now) => {
      if (isOld) {
        if (now !== failedAs) hide(); // no news of a node that is another one now
        return false;
      }
      const isChanged = now !== madeAs;
      if (isChanged !== element.classList.contains("iteris-old")) {
        mark(isChanged ? "changed" : undefined);
        fit(node, width);
      }
      return isChanged;
    },
  );
  /** Show what the last run ended with, until the next one begins or the node is another one. */
  const showEnd = async (line, nameOfIt = nameAsRun) => {
    shown = line;
    files = [];
    isOld = true;
    failedAs = undefined;
    element.replaceChildren(line);
    mark("earlier", false);
    show(width);
    const name = await nameOfIt(node);
    if (shown === line) failedAs = name;
  };
  node.showIterisFailure = (message, isRefused = false) =>
    showEnd(html("div", "iteris-warning iteris-failure", message), isRefused ? nameAsShown : nameAsRun);
  node.showIterisStop = () => showEnd(html("div", "iteris-quiet iteris-note", say("stopped")));
  node.missIterisRun = async () => {
    const ran = node.properties[RAN] ?? {};
    const { name, files: kept } = ran;
    if (!Array.isArray(kept) || isShown(element) || (await node.findIterisPictures())) return;
    const output = await outputOf(ran);
    if (output) {
      showFound(output);
      node.checkIterisFile();
      return;
    }
    const isSame = name === (await nameAsShown(node));
    const saved = kept.map(readFile).filter(Boolean);
    const lost = await goneOf(saved);
    if (isShown(element) || !(isSame || saved.length)) return; // of a run by now, or a run would not make it again
    merge = mergeOf();
    files = saved;
    gone = lost;
    isOld = !files.length;
    failedAs = undefined;
    madeAs = name;
    drawParts = () => element.replaceChildren(...(files.length ? files.map(fileLine) : [forgotten()]));
    drawParts();
    show(width);
    node.compareIterisRun();
  };
  node.checkIterisFile = async () => {
    const asked = files;
    const found = await goneOf(asked);
    if (asked !== files || asked.every((file) => gone.includes(file) === found.includes(file))) return;
    gone = found;
    const isChanged = element.classList.contains("iteris-old");
    drawParts();
    mark(isChanged ? "changed" : undefined);
    fit(node, width);
    node.compareIterisRun();
  };
  /** Show what the browser has kept of the run, where the server has lost it; return whether there is something. */
  node.findIterisPictures = async () => {
    const { name, files: told } = node.properties[RAN] ?? {};
    const output = await keptPictures(name);
    // another workflow's run of the same may have saved another file
    if (!output || JSON.stringify(savedBy(output)) !== JSON.stringify(told)) return false;
    showFound(output);
    node.checkIterisFile();
    return true;
  };
  /** Show what the run has made that the workflow keeps, unless a run has made something by now. */
  const showFound = (output) => {
    if (!node.graph || node.iterisPictures?.()) return;
    node.showIterisTiles?.(output);
    if (isShown(element) && (isOld || !node.showIterisTiles)) return; // of a run, or why the last one failed
    failedAs = undefined;
    madeAs = node.properties[RAN].name;
    showParts(output);
    node.compareIterisRun();
  };
  also(node, "onExecuted", node.showIterisText);
  also(node, "compareIterisRun", () => {
    const isOther = mergeOf() !== merge;
    for (const load of element.querySelectorAll(".iteris-load")) load.hidden = isOther;
  });
  if (width) {
    keepWidth(node, width);
    node.setSize([Math.max(node.size[0], width), node.size[1]]);
  }

  /** Let the workflow keep that there was a run, and what it has saved. */
  async function remember(output) {
    madeAs = undefined;
    const ran = await ranAs(node, output, savedBy(output));
    if (shown !== output || !ran.name || !node.graph) return; // or another one has come
    madeAs = ran.name;
    node.compareIterisRun();
    keepPictures(ran.name, output);
    if (JSON.stringify(node.properties[RAN]) === JSON.stringify(ran)) return;
    node.properties[RAN] = ran;
    fit(node, width, () => keepResult(node)); // with the height that it has then
  }

  /** Return details that are closed at first, and then as they were. */
  function fold(parts) {
    const details = html("details", "iteris-details");
    details.open = !!element.querySelector("details[open]");
    const summary = html("summary", "", folded);
    details.append(summary, ...parts);
    summary.addEventListener("click", () => fit(node));
    return details;
  }

  const forgotten = () => html("div", "iteris-quiet iteris-forgotten", say("forgotten"));

  /** Return what is true of a saved file now. */
  const fileLine = (file) => fileOf({ ...file, isGone: gone.includes(file) }, say, loaderOf(file));

  /** Return a picture of the server as wide as the node, which grows for it. */
  function pictureOf(file) {
    const picture = html("img");
    picture.addEventListener("load", () => fit(node, width));
    picture.addEventListener("error", () => picture.replaceWith(forgotten()));
    picture.src = addressOf(file);
    return picture;
  }
}
