// Parts of our own in a node.

const MARGIN = 10; // the frontend's, above and below a widget
const PROGRESS_TEXT = "$$node-text-preview"; // the frontend's name for it

/** Call `more` after a node's own handler of an event. */
export function also(node, handler, more) {
  const own = node[handler];
  node[handler] = function (...values) {
    const result = own?.apply(this, values);
    more(...values);
    return result;
  };
}

/** Add a part of our own to a node; neither saved nor sent. */
export function addElement(node, name, height) {
  const element = document.createElement("div");
  element.className = `iteris-${name}`;
  const widget = node.addDOMWidget(`iteris_${name}`, `iteris_${name}`, element, { serialize: false, hideOnZoom: false, getMinHeight: () => height(element) });
  widget.serialize = false;
  // what others add behind our inputs is not theirs to keep: it would be read as the next version's new inputs
  also(node, "onSerialize", (saved) => {
    const own = node.widgets.indexOf(widget);
    if (saved.widgets_values?.length > own) saved.widgets_values.length = own;
  });
  return element;
}

/** Let the node grow, from a height on, to what it holds, once that has been laid out. */
export function fit(node, width = 0, from = node.size[1]) {
  const grow = () => {
    const [least, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, least), Math.max(from, height)]);
    node.setDirtyCanvas?.(true, true);
  };
  grow();
  requestAnimationFrame(() => requestAnimationFrame(grow));
}

/** Return what takes away the text that told how far a node is, and the room that the node made for it. */
export function progressRemover(node) {
  let height = Infinity; // before the run
  also(node, "onExecutionStart", () => (height = node.size[1]));
  return () => {
    const progress = node.widgets?.find(({ name }) => name === PROGRESS_TEXT);
    if (!progress) return;
    node.removeWidget?.(progress);
    node.setSize([node.size[0], Math.min(node.size[1], Math.max(height, node.computeSize()[1]))]);
  };
}

/** Return the height of an element's content, however high the element itself is; 0 while it is not shown. */
export function heightOf({ firstElementChild: first, lastElementChild: last }, padding) {
  return last?.offsetHeight ? last.offsetTop + last.offsetHeight - first.offsetTop + padding + 2 * MARGIN : 0;
}
