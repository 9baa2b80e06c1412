// The labeller's face. It shows what it is told and says which key was pressed; what that means is decided elsewhere:
// by dpo_core/course/labeling.py in a notebook, by `practice` below on a page without a kernel.

import { html } from "./kit.js";

const KEYS = { arrowleft: "left", arrowright: "right", t: "tie", s: "skip", u: "undo" };
const BUTTONS = [
  ["left", "← Left is better", "ArrowLeft"],
  ["right", "Right is better →", "ArrowRight"],
  ["tie", "Tie (T)", "T"],
  ["skip", "Skip (S)", "S"],
  ["undo", "Undo (U)", "U"],
];
const PATIENCE = 4000; // ms until a missing answer is said

function draw(model, el) {
  const text = (name) => html("div", { class: "dpo-text", role: "group", "aria-label": name, dir: "auto" });
  const side = (name, body) => html("div", {}, html("p", { class: "dpo-name", "aria-hidden": "true" }, name), body);
  const prompt = text("Prompt"), left = text("Left answer"), right = text("Right answer");
  const rubric = html("p", { class: "dpo-note", dir: "auto" });
  const status = html("p", { class: "dpo-status", role: "status", "aria-live": "polite" });
  const bar = html("progress", { "aria-hidden": "true" });
  const question = html(
    "div", {}, side("Prompt", prompt), html("div", { class: "dpo-sides" }, side("Left", left), side("Right", right)),
  );
  const button = ([action, label, key]) => {
    const node = html("button", { type: "button", "data-action": action, ...(key && { "aria-keyshortcuts": key }) }, label);
    node.addEventListener("click", () => act(action));
    return node;
  };
  const buttons = BUTTONS.map(button);
  const later = [["second pass", "Second pass"], ["export", "Export the pairs"]].map(button);
  // The attribute keeps JupyterLab's own shortcuts (S, arrows, X for cut, ...) away while the focus is in here.
  const card = html(
    "div",
    { class: "dpo-labeler", tabindex: "0", role: "group", "aria-label": "Pair labeller", "data-lm-suppress-shortcuts": "true" },
    html("p", { class: "dpo-title" }, "Which answer is better?"),
    rubric, bar, status, question,
    html("div", { class: "dpo-buttons" }, ...buttons, ...later),
    html("p", { class: "dpo-note dpo-hint" }, "Click here, or come here with Tab, and use the keys."),
  );

  let shown, waiting, timer;

  function update() {
    shown = model.get("shown");
    clearTimeout(timer);
    waiting = false;
    const focused = document.activeElement;
    question.hidden = shown.done;
    prompt.textContent = shown.prompt;
    left.textContent = shown.left;
    right.textContent = shown.right;
    for (const node of [prompt, left, right]) node.scrollTop = 0;
    rubric.textContent = shown.rubric;
    rubric.hidden = !shown.rubric;
    bar.max = shown.total;
    bar.value = shown.judged;
    for (const node of [...buttons, ...later]) {
      node.disabled = !shown.actions.includes(node.dataset.action);
      node.hidden = node.disabled && (shown.done || later.includes(node));
    }
    status.textContent = `${shown.progress}. ${shown.message}`;
    if (card.contains(focused) && focused.disabled) card.focus(); // else the keys would go nowhere
  }

  function act(action) {
    if (waiting || !shown.actions.includes(action)) return;
    waiting = true;
    timer = setTimeout(() => {
      waiting = false;
      status.textContent =
        "No answer from the kernel, so this choice is not saved; all before it are. If the kernel was restarted, run the cell again to go on.";
    }, PATIENCE);
    model.send({ action, turn: shown.turn });
  }

  card.addEventListener("keydown", (event) => {
    const action = KEYS[event.key.toLowerCase()];
    if (!action || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) act(action); // a held key must not judge what nobody has seen
  });

  model.on("change:shown", update);
  update();
  el.append(card);
}

/** How often the first answer won, with its Wilson interval, as dpo_core.study.evaluate.win_rate says it; skips do not count. */
export function standing(verdicts, sides) {
  const won = (verdict, i) => ({ left: sides[i] === "first", right: sides[i] !== "first" })[verdict];
  const wins = verdicts.filter((v, i) => won(v, i) === true).length, losses = verdicts.filter((v, i) => won(v, i) === false).length;
  const ties = verdicts.filter((v) => v === "tie").length, n = wins + losses + ties, z = 1.96;
  if (!n) return "";
  const rate = (wins + ties / 2) / n, scale = 1 + z ** 2 / n, centre = rate + z ** 2 / (2 * n);
  const half = z * Math.sqrt(rate * (1 - rate) / n + z ** 2 / (4 * n ** 2));
  const [low, high] = [Math.max(0, (centre - half) / scale), Math.min(1, (centre + half) / scale)];
  const shown = [rate, low, high].map((x) => x.toFixed(3));
  return `win rate ${shown[0]} [${shown[1]}, ${shown[2]}] (${wins} wins, ${ties} ties, ${losses} losses, n = ${n})`;
}

/** Stands in for the kernel on a static page: the same turns, and verdicts that are kept nowhere. */
function practice({ turns, rubric, sides, contest }) {
  const verdicts = [];
  let shown, changed = () => {};
  const say = () => {
    const judged = verdicts.length, total = turns.length, done = judged === total;
    const tally = ["left", "right", "tie", "skip"].map((name) => `${name} ${verdicts.filter((v) => v === name).length}`);
    const stands = sides ? standing(verdicts, sides) : "";
    shown = {
      ...(turns[judged] ?? { prompt: "", left: "", right: "" }), rubric, turn: judged, judged, total, done,
      progress: done ? `${total} of ${total} judged` : `Pair ${judged + 1} of ${total}`,
      message: `${stands ? `${contest}: ${stands}. ` : ""}${done ? `${tally.join(", ")}. ` : ""}For practice: nothing is saved on this page; in a notebook it is.`,
      actions: [...(done ? [] : ["left", "right", "tie", "skip"]), ...(judged ? ["undo"] : [])],
    };
  };
  say();
  return {
    get: () => shown,
    on: (_, f) => { changed = f; },
    send({ action }) {
      if (action === "undo") verdicts.pop();
      else verdicts.push(action);
      say();
      changed();
    },
  };
}

function render(host, state) {
  draw(practice(state), host);
}

export default {
  render({ model, el }) {
    el.classList.add("dpo-widget");
    draw(model, el);
  },
};
