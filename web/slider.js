// Two pictures of a comparison in one place, with a divider between them that the user drags.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addElement, also, button, fit, heightOf, html, roomOf, savesWithout, showElement } from "./parts.js";
import { canRecord, saveVideo } from "./wipe.js";

/** Return an empty choice. */
function choice(title) {
  const select = html("select");
  select.title = select.ariaLabel = title;
  return select;
}

/** Let a choice offer texts; what was chosen stays so, if it is still there. */
function offer(select, texts, otherwise) {
  const found = texts.lastIndexOf(select.selectedOptions[0]?.textContent);
  select.replaceChildren(...texts.map((text) => html("option", "", text)));
  select.selectedIndex = found < 0 ? otherwise : found;
}

/**
 * Add the slider below the prompt. It is seen once a run has drawn pictures; at first it has the two last ones of a
 * row, stacked and merged.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 */
export function addSlider(node, say) {
  const element = addElement(node, "slider", (shown) => heightOf(shown, 0) || 34, node.widgets[0]);
  const [prompt, left, right] = ["of_prompt", "on_left", "on_right"].map((word) => choice(say(word)));
  const [under, over] = [html("img"), html("img")];
  const divider = Object.assign(html("input"), { type: "range", step: "any", ariaLabel: say("divider") });
  const head = html("div", "iteris-sides");
  const pair = html("div", "iteris-pair");
  head.append(prompt, left, right);
  const video = button("iteris-video", say("video"), say("video_title"), async () => {
    video.disabled = true;
    await saveVideo({ image: over, name: over.alt }, { image: under, name: under.alt });
    video.disabled = false;
  });
  video.hidden = !canRecord();
  pair.append(under, over, divider);
  element.append(head, pair, video);
  let rows = [];

  const cut = () => pair.style.setProperty("--iteris-cut", `${divider.value}%`);
  const show = () => {
    const { pictures } = rows[prompt.selectedIndex];
    for (const [picture, select] of [
      [under, right],
      [over, left],
    ]) {
      picture.alt = select.selectedOptions[0].textContent;
      picture.src = api.apiURL(`/view?${new URLSearchParams(pictures[select.selectedIndex])}`);
    }
  };
  const showRow = () => {
    const { names } = rows[prompt.selectedIndex];
    offer(left, names, names.length - 2);
    offer(right, names, names.length - 1);
    show();
  };
  // as in the rows: the canvas knows of a wheel that turns above, and a Vue node is not dragged
  element.addEventListener("wheel", (event) => LiteGraph.vueNodesMode || app.canvas.processMouseWheel(event));
  element.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
  divider.addEventListener("input", cut);
  prompt.addEventListener("change", showRow);
  for (const select of [left, right]) select.addEventListener("change", show);
  for (const picture of [under, over]) {
    picture.addEventListener("load", () => fit(node));
    // the server has begun anew, without them
    picture.addEventListener("error", () => showElement(node, element, false));
  }
  node.showIterisTiles = (output) => {
    if (!output?.iteris_tiles?.length) return;
    rows = output.iteris_tiles;
    offer(
      prompt,
      rows.map((row) => row.prompt),
      0,
    );
    prompt.hidden = rows.length < 2;
    showElement(node, element, true);
    showRow();
    fit(node);
  };
  also(node, "onExecuted", node.showIterisTiles);
  showElement(node, element, false);
  savesWithout(node, () => roomOf(element, 0));
  cut();
}
