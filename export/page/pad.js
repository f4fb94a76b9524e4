/**
 * A point in a square, moved by pointer, touch or keys.
 * @module
 */

const STEP = 0.05;
const FINE_STEP = 0.01;

/** @typedef {{x: number, y: number}} Point Both in [0, 1], from the upper left corner. */

/** The directions of keys. */
const MOVES = {
  ArrowLeft: { x: -1, y: 0 },
  ArrowRight: { x: 1, y: 0 },
  ArrowUp: { x: 0, y: -1 },
  ArrowDown: { x: 0, y: 1 },
};

/** The edges that keys jump to. */
const JUMPS = { Home: { x: 0 }, End: { x: 1 }, PageUp: { y: 0 }, PageDown: { y: 1 } };

/**
 * @param {HTMLElement} square Takes the pointer.
 * @param {HTMLElement} track The part of it that the point can reach.
 * @param {HTMLElement} thumb The focusable point inside of the track.
 * @param {{onMove: (point: Point) => void, onStart: () => void, describe: (point: Point) => string}} handlers
 *   `onStart` is called where a drag begins.
 * @returns {{show: (point: Point) => void}} Shows a point that was set elsewhere.
 */
export function createPad(square, track, thumb, { onMove, onStart, describe }) {
  /** @type {Point} */
  let point = { x: 0, y: 0 };
  const show = (next) => {
    point = { x: clamped(next.x), y: clamped(next.y) };
    place(track, thumb, point, describe(point));
  };
  const move = (next) => {
    show(next);
    onMove(point);
  };
  listenToPointer({ square, track, thumb }, move, onStart);
  listenToKeys(thumb, () => point, move);
  return { show };
}

/** @param {HTMLElement} track @param {HTMLElement} thumb @param {Point} point @param {string} text */
function place(track, thumb, { x, y }, text) {
  track.style.setProperty("--x", `${x * 100}%`);
  track.style.setProperty("--y", `${y * 100}%`);
  // A slider has one value; the text that is read out has both.
  thumb.setAttribute("aria-valuenow", String(Math.round(x * 100)));
  thumb.setAttribute("aria-valuetext", text);
}

/**
 * @param {{square: HTMLElement, track: HTMLElement, thumb: HTMLElement}} elements
 * @param {(point: Point) => void} move
 * @param {() => void} onStart
 */
function listenToPointer({ square, track, thumb }, move, onStart) {
  square.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    square.setPointerCapture(event.pointerId);
    thumb.focus({ preventScroll: true });
    onStart();
    move(pointOf(event, track));
  });
  square.addEventListener("pointermove", (event) => {
    if (square.hasPointerCapture(event.pointerId)) move(pointOf(event, track));
  });
}

/** @param {PointerEvent} event @param {HTMLElement} track @returns {Point} */
function pointOf(event, track) {
  const box = track.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

/** @param {HTMLElement} thumb @param {() => Point} current @param {(point: Point) => void} move */
function listenToKeys(thumb, current, move) {
  thumb.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const next = afterKey(event, current());
    if (!next) return;
    event.preventDefault();
    move(next);
  });
}

/** @param {KeyboardEvent} event @param {Point} point @returns {Point | null} */
function afterKey({ key, shiftKey }, point) {
  if (key in JUMPS) return { ...point, ...JUMPS[key] };
  if (!(key in MOVES)) return null;
  const step = shiftKey ? FINE_STEP : STEP;
  return { x: rounded(point.x + MOVES[key].x * step), y: rounded(point.y + MOVES[key].y * step) };
}

/** Twenty steps of 0.05 shall end at 1 and not just below. @param {number} value */
function rounded(value) {
  return Math.round(value * 1000) / 1000;
}

/** @param {number} value */
function clamped(value) {
  return Math.min(1, Math.max(0, value));
}
