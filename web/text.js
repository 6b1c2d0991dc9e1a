// What a run shows as text and pictures; and once the server has forgotten the run, what is still true of it.

import { api } from "../../scripts/api.js";
import { isGone } from "./loras.js";
import { fileOf } from "./panel.js";
import { addElement, addProgress, also, fit, heightOf, html, isShown, keep, passing } from "./parts.js";
import { nameAsRun, nameAsShown } from "./runs.js";
import { readFile } from "./saved.js";

const RAN = "iteris_ran"; // in the node's properties, so that a saved workflow keeps it: what was run, and the files that it has saved

/**
 * Show the text and the pictures of a run, or why it failed.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 * @param {number} width of the node at least
 */
export function addText(node, say, width = 0) {
  const removeProgress = addProgress(node);
  node.endIterisRun = removeProgress; // of a run that was cancelled or failed
  const element = addElement(node, "text", (text) => heightOf(text, 12) || 44);
  const { show, hide } = passing(node, element, 12);
  let isOld = false; // what is shown goes once a run begins
  node.startIterisRun = () => isOld && hide();
  node.showIterisText = (output) => {
    if (!output?.text?.length) return;
    isOld = false;
    element.replaceChildren(html("div", "", output.text.join("\n")), ...(output.iteris_pictures ?? []).map(pictureOf));
    removeProgress();
    show(width);
    remember(node, output);
  };
  node.showIterisFailure = (message) => {
    isOld = true;
    element.replaceChildren(html("div", "iteris-warning iteris-failure", message));
    show(width);
  };
  node.missIterisRun = async () => {
    const { name, files } = node.properties[RAN] ?? {};
    if (!Array.isArray(files) || isShown(element) || name !== (await nameAsShown(node))) return;
    const lines = await Promise.all(files.map(readFile).filter(Boolean).map(fileLine));
    if (isShown(element)) return; // of a run by now
    isOld = true;
    element.replaceChildren(...(lines.length ? lines : [forgotten()]));
    show(width);
  };
  also(node, "onExecuted", node.showIterisText);
  if (width) node.setSize([Math.max(node.size[0], width), node.size[1]]);

  const forgotten = () => html("div", "iteris-quiet iteris-forgotten", say("forgotten"));

  /** Return what is true of a saved file now. */
  const fileLine = async (file) => fileOf({ ...file, isGone: await isGone(file) }, say);

  /** Return a picture of the server as wide as the node, which grows for it. */
  function pictureOf({ filename, subfolder, type }) {
    const picture = document.createElement("img");
    picture.addEventListener("load", () => fit(node, width));
    picture.addEventListener("error", () => picture.replaceWith(forgotten()));
    picture.src = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    return picture;
  }
}

/** Let the workflow keep that there was a run, and what it has saved. */
async function remember(node, output) {
  const ran = { name: await nameAsRun(node, output), files: (output.iteris_saved ?? []).map(readFile) };
  if (!ran.name || !node.graph || JSON.stringify(node.properties[RAN]) === JSON.stringify(ran)) return;
  node.properties[RAN] = ran;
  keep();
}
