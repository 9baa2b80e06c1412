// The family of losses along the margin: each loss of one pair, and how hard it pulls on either answer.
import { announcer, chart, choice, fixed, html, path, signed, slider, svg } from "./kit.js";

const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v))); // −log σ(−v)
const sigmoid = (v) => 1 / (1 + Math.exp(-v));
const bump = (v) => sigmoid(v) * sigmoid(-v); // the slope of σ

/** A loss that looks at h alone: it pulls one answer up as hard as it pushes the other down. */
const ofMargin = (loss, pull) => ({ loss, chosen: pull, rejected: -pull });

/** Loss, and minus its slope in c and in l, at log-ratios c and l; named as in dpo_core.methods.family. */
export const LOSSES = {
  sigmoid: (c, l, { beta }) => smoothed(beta, beta * (c - l), 0),
  cdpo: (c, l, { beta, label_smoothing: e }) => smoothed(beta, beta * (c - l), e),
  robust: (c, l, { beta, label_smoothing: e }) => {
    const m = beta * (c - l);
    const loss = ((1 - e) * softplus(-m) - e * softplus(m)) / (1 - 2 * e);
    return ofMargin(loss, (beta * ((1 - e) * sigmoid(-m) + e * sigmoid(m))) / (1 - 2 * e));
  },
  hinge: (c, l, { beta }) => ofMargin(Math.max(0, 1 - beta * (c - l)), beta * (c - l) < 1 ? beta : 0),
  sigmoid_norm: (c, l, { beta, tokens }) => smoothed(beta / tokens, (beta * (c - l)) / tokens, 0),
  simpo: (c, l, { beta, gamma, tokens }) => smoothed(beta / tokens, (beta * (c - l)) / tokens - gamma, 0),
  ipo: (c, l, { beta, tokens }) => {
    const past = (c - l) / tokens - 1 / (2 * beta); // the target
    return ofMargin(past ** 2, (-2 * past) / tokens);
  },
  dpop: (c, l, { beta, penalty }) => {
    const m = beta * (c - l - penalty * Math.max(0, -c));
    const pull = beta * sigmoid(-m);
    return { loss: softplus(-m), chosen: c < 0 ? pull * (1 + penalty) : pull, rejected: -pull };
  },
  apo_zero: (c, l, { beta }) => ({
    loss: sigmoid(-beta * c) + sigmoid(beta * l), chosen: beta * bump(beta * c), rejected: -beta * bump(beta * l),
  }),
  apo_down: (c, l, { beta }) => {
    const m = beta * (c - l);
    const chosen = beta * (bump(m) - bump(beta * c));
    return { loss: sigmoid(beta * c) + sigmoid(-m), chosen, rejected: -beta * bump(m) };
  },
  kto: (c, l, { beta, drift }) => {
    const [above, below] = [beta * (c - drift), beta * (l - drift)];
    const pulls = { chosen: (beta * bump(above)) / 2, rejected: (-beta * bump(below)) / 2 };
    return { loss: (sigmoid(-above) + sigmoid(below)) / 2, ...pulls };
  },
  orpo: (c, l, { beta, start, tokens }) => {
    const [logP, logQ] = [c, l].map((ratio) => Math.min((start + ratio) / tokens, -1e-6)); // of a token, in the mean
    const odds = logP - logQ - Math.log(-Math.expm1(logP)) + Math.log(-Math.expm1(logQ));
    const slope = (log) => (log < -1e-6 ? (beta * sigmoid(-odds)) / tokens / Math.expm1(log) : 0); // 0 once certain
    const loss = -(start + c) / tokens + beta * softplus(-odds);
    return { loss, chosen: 1 / tokens - slope(logP), rejected: slope(logQ) };
  },
  sft: (c, l, { start, tokens }) => ({ loss: -(start + c) / tokens, chosen: 1 / tokens, rejected: 0 }),
};

/** DPO at slope and margin, a share e of the labels assumed wrong. */
function smoothed(slope, m, e) {
  return ofMargin((1 - e) * softplus(-m) + e * softplus(m), slope * (sigmoid(-m) - e));
}

/** h is c − l, both is (c + l) / 2, in nats. */
export const valuesAt = (name, h, both, settings) => LOSSES[name](both + h / 2, both - h / 2, settings);

const REACH = 60;
const GRID = Array.from({ length: 241 }, (_, i) => -REACH + i / 2);
const INK = ["chosen", "rejected", "margin", "ink"];
const DASH = ["none", "8 4", "8 3 2 3", "2 3"];

export function render(host, { groups, pair, group, h: startH, both: startBoth }) {
  const nats = (v) => `${signed(v, 1)} nats`;
  const which = choice("Losses", Object.keys(groups).map((name) => [name, name]), group, show);
  const h = slider("Margin, chosen minus rejected", { min: -REACH, max: REACH, step: 0.5, value: startH }, nats, () => draw());
  const both = slider("Both answers together", { min: -20, max: 10, step: 0.5, value: startBoth }, nats, () => draw());
  const panels = html("div", { class: "dpo-panels" });
  const table = html("table", { class: "dpo-table" });
  const spoken = announcer();
  let draw;

  function show() {
    const { losses, range } = groups[which.value];
    const names = Object.keys(losses);
    const at = (name, v) => {
      const values = valuesAt(name, v, both.value, { ...pair, ...losses[name] });
      return { ...values, pull: (values.chosen - values.rejected) / 2 };
    };
    const shared = { x: [-REACH, REACH], xLabel: "margin, nats", dragged: (v) => { h.value = v; draw(); } };
    const pictures = [["loss", "Loss"], ["pull", "Pull: minus the slope"]].map(([key, title]) => {
      const axes = chart({ ...shared, title, y: range[key], yLabel: key });
      const zero = { y1: axes.Y(0), y2: axes.Y(0), stroke: "var(--quiet)", "stroke-dasharray": "2 3" };
      axes.add("line", { x1: axes.X(-REACH), x2: axes.X(REACH), ...zero });
      const upright = axes.add("line", { y1: axes.Y(range[key][0]), y2: axes.Y(range[key][1]), stroke: "var(--ink)" });
      return { key, axes, upright, lines: names.map((_, i) => axes.add("path", stroke(i))) };
    });
    panels.replaceChildren(...pictures.map(({ axes }) => axes.root));
    const rows = names.map((name, i) => {
      const cells = [0, 1, 2].map(() => html("td"));
      const swatch = svg("svg", { viewBox: "0 0 36 8", "aria-hidden": "true" }, svg("path", { d: "M0,4L36,4", ...stroke(i) }));
      return { cells, row: html("tr", {}, html("th", { scope: "row" }, swatch, name), ...cells) };
    });
    const heads = ["loss of the pair", "pull on the chosen", "pull on the rejected"];
    const head = html("tr", {}, html("td"), ...heads.map((text) => html("th", { scope: "col" }, text)));
    table.replaceChildren(head, ...rows.map(({ row }) => row));

    draw = () => {
      for (const { key, axes, upright, lines } of pictures) {
        const [low, high] = range[key];
        lines.forEach((line, i) => {
          const points = GRID.map((v) => [v, at(names[i], v)[key]]).filter(([, y]) => y >= low && y <= high);
          line.setAttribute("d", path(axes, points));
        });
        for (const x of ["x1", "x2"]) upright.setAttribute(x, axes.X(h.value));
      }
      const now = names.map((name) => at(name, h.value));
      now.forEach(({ loss, chosen, rejected }, i) => {
        [fixed(loss, 3), signed(chosen, 4), signed(rejected, 4)].forEach((text, k) => { rows[i].cells[k].textContent = text; });
      });
      const sentence = `Margin ${nats(h.value)}, both moved by ${nats(both.value)}. `
        + names.map((name, i) => `${name}: loss ${fixed(now[i].loss, 3)}, pull ${fixed(now[i].pull, 4)}`).join("; ") + ".";
      for (const { key, axes } of pictures) axes.root.setAttribute("aria-label", `Curves of the ${key}. ${sentence}`);
      spoken.say(sentence);
    };
    draw();
  }

  host.append(
    html("p", { class: "dpo-title" }, "Thirteen losses of one pair: choose some, move the sliders, or drag in a picture"),
    which.row, h.row, both.row, panels, table,
    html("p", { class: "dpo-note" }, "A positive pull makes an answer likelier. A line that leaves the picture goes on outside."),
    spoken.line,
  );
  show();
}

const stroke = (i) => ({ fill: "none", stroke: `var(--${INK[i]})`, "stroke-width": 2.5, "stroke-dasharray": DASH[i] });
