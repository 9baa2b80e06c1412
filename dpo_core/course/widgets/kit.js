// What the live figures share: elements, sliders and axes. Text goes in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Draw every figure of a kind that is on the page and not yet alive. */
export function mount(kind, render) {
  for (const host of document.querySelectorAll(`[data-dpo="${kind}"]:not([data-live])`)) {
    const state = JSON.parse(host.querySelector("script").textContent);
    host.dataset.live = "";
    host.replaceChildren();
    render(host, state);
  }
}

export function fixed(value, digits = 2) {
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

export const signed = (value, digits = 2) => (Number(value.toFixed(digits)) > 0 ? "+" : "") + fixed(value, digits);

/** A labelled native slider; `words` says its value, in print and to a screen reader. */
export function slider(name, { min, max, step, value }, words, changed) {
  const input = html("input", { type: "range", min, max, step, value });
  const shown = html("span", { class: "dpo-value", "aria-hidden": "true" });
  const say = () => {
    shown.textContent = words(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => { say(); changed(); });
  say();
  return {
    row: html("div", { class: "dpo-slider" }, html("label", {}, html("span", {}, name), input), shown),
    get value() { return Number(input.value); },
    set value(value) { input.value = value; say(); },
    set disabled(disabled) { input.disabled = disabled; },
  };
}

/** A labelled native menu of [value, name]. */
export function choice(name, options, chosen, changed) {
  const select = html("select", {}, ...options.map(([value, text]) => html("option", { value }, text)));
  select.value = chosen;
  select.addEventListener("change", changed);
  const row = html("div", { class: "dpo-slider" }, html("label", {}, html("span", {}, name), select));
  return { row, get value() { return select.value; } };
}

/** A line that a screen reader speaks once the values rest; the same figures stand in the picture. */
export function announcer() {
  const line = html("p", { class: "dpo-unseen", "aria-live": "polite" });
  let timer;
  return { line, say(text) { clearTimeout(timer); timer = setTimeout(() => { line.textContent = text; }, 500); } };
}

/** A list of names and values; returns the element and a function that sets the values. */
export function readings(names) {
  const values = names.map(() => html("dd"));
  const list = html("dl", { class: "dpo-readings" }, ...names.map((name, i) => html("div", {}, html("dt", {}, name), values[i])));
  return { list, set: (texts) => texts.forEach((text, i) => { values[i].textContent = text; }) };
}

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [340, 240, 44, 12, 30, 42];

/** Axes with ticks; X and Y turn data into places, `dragged` is told the horizontal value under the pointer. */
export function chart({ title, x, y, xLabel, yLabel, dragged }) {
  const X = (v) => LEFT + ((v - x[0]) / (x[1] - x[0])) * (WIDTH - LEFT - RIGHT);
  const Y = (v) => HEIGHT - BOTTOM - ((v - y[0]) / (y[1] - y[0])) * (HEIGHT - BOTTOM - TOP);
  const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const v of ticks(x)) {
    root.append(svg("line", { class: "dpo-grid", x1: X(v), x2: X(v), y1: Y(y[0]), y2: Y(y[1]) }));
    root.append(svg("text", { x: X(v), y: Y(y[0]) + 16, "text-anchor": "middle" }, tickText(v)));
  }
  for (const v of ticks(y)) {
    root.append(svg("line", { class: "dpo-grid", x1: X(x[0]), x2: X(x[1]), y1: Y(v), y2: Y(v) }));
    root.append(svg("text", { x: X(x[0]) - 6, y: Y(v) + 4, "text-anchor": "end" }, tickText(v)));
  }
  root.append(svg("text", { class: "dpo-head", x: 4, y: 16 }, title));
  root.append(svg("text", { x: X((x[0] + x[1]) / 2), y: HEIGHT - 6, "text-anchor": "middle" }, xLabel));
  root.append(svg("text", { transform: `translate(11 ${Y((y[0] + y[1]) / 2)}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  const add = (tag, attributes) => root.appendChild(svg(tag, attributes));
  if (dragged) {
    root.classList.add("dpo-drag");
    const at = (event) => {
      const box = root.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * WIDTH;
      const value = x[0] + ((place - LEFT) / (WIDTH - LEFT - RIGHT)) * (x[1] - x[0]);
      dragged(Math.min(x[1], Math.max(x[0], value)));
    };
    root.addEventListener("pointerdown", (event) => { root.setPointerCapture(event.pointerId); at(event); });
    root.addEventListener("pointermove", (event) => { if (event.buttons) at(event); });
  }
  return { root, add, X, Y, right: x[1], inside: (v) => Math.min(y[1], Math.max(y[0], v)) };
}

/** Path through (x, y) pairs, held between the lowest and the highest y of the axes. */
export function path({ X, Y, inside }, points) {
  return points.map(([a, b], i) => `${i ? "L" : "M"}${X(a).toFixed(1)},${Y(inside(b)).toFixed(1)}`).join("");
}

export function ticks([low, high]) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((k) => k * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, i) => (first + i) * step);
}

const tickText = (value) => String(Number(value.toPrecision(6))).replace("-", "−");
