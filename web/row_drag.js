// A row follows the pointer by its grip.

/**
 * Let a row follow the pointer among the others, until it is let go.
 *
 * @param {object} view the rows; see `rows.js`
 * @param {PointerEvent} event on the row's grip
 * @param {number} place of the row among its entries
 */
export function drag(view, { currentTarget: grip, pointerId, button: pressed }, place) {
  if (pressed !== 0) return;
  const row = grip.closest(".iteris-row");
  const rows = () => [...view.list.querySelectorAll(".iteris-row")]; // below them may be a word on those left out
  const follow = ({ clientY }) => {
    fold(view.list, grip);
    const others = rows().filter((other) => other !== row);
    const next = others.find((other) => {
      const { top, height } = other.getBoundingClientRect();
      return clientY < top + height / 2;
    });
    if (row.nextElementSibling !== (next ?? null)) view.list.insertBefore(row, next ?? null);
  };
  const end = ({ type }) => {
    stop.abort();
    row.classList.remove("iteris-dragged");
    view.list.classList.remove("iteris-folded");
    view.list.style.paddingTop = "";
    const to = view.parts[rows().indexOf(row)].place; // a line that was emptied is still among them
    view.moveTo(place, type === "pointerup" ? to : place);
  };
  const stop = new AbortController();
  row.classList.add("iteris-dragged");
  // at the window: a row that is put elsewhere in the page loses the pointer
  const listen = (type, answer) => {
    const own = (event) => event.pointerId === pointerId && answer(event);
    window.addEventListener(type, own, { signal: stop.signal, capture: true });
  };
  listen("pointermove", follow);
  listen("pointerup", end);
  listen("pointercancel", end);
}

/** Close all rows that are open while one is dragged, which stays where it is: past them, it would be far from the pointer. */
function fold(list, grip) {
  if (list.classList.contains("iteris-folded")) return;
  const scale = list.getBoundingClientRect().width / list.offsetWidth;
  const { top } = grip.getBoundingClientRect();
  list.classList.add("iteris-folded");
  list.style.paddingTop = `${(top - grip.getBoundingClientRect().top) / scale}px`;
}
