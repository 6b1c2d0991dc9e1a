// The templates: their order, and their titles, groups and notes in the page's language. No DOM and no ComfyUI here, so
// that `node --test` runs it.

const NUMBER = /^(?:##? )?(?:\d+\. )?/; // of a step; before the first line of a part, a heading's sign
const BREAK = /(\n|<br>)/;

/** Return whether a workflow that ComfyUI is about to open has a node of ours. */
export const hasOurs = (workflow) => list(workflow?.nodes).some((node) => String(node?.type).startsWith("IterIS"));

/**
 * Put a workflow's titles, groups and notes into another language in place, as far as they are the templates' own.
 *
 * @param {any} workflow what ComfyUI is about to open
 * @param {Record<string, string>} texts English -> the other language, of notes line by line
 */
export function translate(workflow, texts) {
  const said = (text) => (Object.hasOwn(texts, text) ? texts[text] : text);
  const line = (text) => {
    const [number] = text.match(NUMBER);
    return number + said(text.slice(number.length));
  };
  const note = (text) => text.split(BREAK).map(line).join("");
  if (!hasOurs(workflow)) return;
  for (const group of list(workflow.groups)) if (group?.title) group.title = said(group.title);
  for (const node of list(workflow.nodes)) {
    if (node?.title) node.title = said(node.title);
    if (node?.type === "MarkdownNote" && typeof node.widgets_values?.[0] === "string")
      node.widgets_values[0] = note(node.widgets_values[0]);
  }
}

/**
 * Let a pack's templates come by their numbers: the server lists them as its disk has the files.
 *
 * @param {object} api the frontend's
 * @param {string} pack its folder
 */
export function orderTemplates(api, pack) {
  const own = api.getWorkflowTemplates;
  api.getWorkflowTemplates = async function (...values) {
    const templates = await own.apply(this, values);
    if (Array.isArray(templates?.[pack]))
      templates[pack].sort((one, other) => Number.parseInt(one, 10) - Number.parseInt(other, 10));
    return templates;
  };
}

const list = (value) => (Array.isArray(value) ? value : []);
