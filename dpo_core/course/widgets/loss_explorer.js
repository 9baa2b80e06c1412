// The loss of one pair, its weight in the gradient, and what beta and label smoothing do to both.
import { announcer, chart, choice, fixed, html, path, readings, signed, slider } from "./kit.js";

const softplus = (v) => Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v))); // −log σ(−v)
const sigmoid = (v) => 1 / (1 + Math.exp(-v));

/** Loss and minus its slope, as functions of the reward margin m and the smoothing e; named as in dpo_core.losses. */
export const LOSSES = {
  cdpo: {
    name: "DPO", uses: true,
    loss: (m, e) => (1 - e) * softplus(-m) + e * softplus(m),
    weight: (m, e) => sigmoid(-m) - e,
  },
  robust: {
    name: "robust DPO", uses: true,
    loss: (m, e) => ((1 - e) * softplus(-m) - e * softplus(m)) / (1 - 2 * e),
    weight: (m, e) => ((1 - e) * sigmoid(-m) + e * sigmoid(m)) / (1 - 2 * e),
  },
  hinge: { name: "hinge", uses: false, loss: (m) => Math.max(0, 1 - m), weight: (m) => (m < 1 ? 1 : 0) },
};

/** h is the log-ratio of the chosen answer minus that of the rejected one, in nats. */
export function valuesAt(kind, h, beta, smoothing) {
  const margin = beta * h;
  return { margin, loss: LOSSES[kind].loss(margin, smoothing), weight: LOSSES[kind].weight(margin, smoothing) };
}

const REACH = 30;
const GRID = Array.from({ length: 241 }, (_, i) => -REACH + (i * REACH) / 120);

export function render(host, state) {
  const nats = (v) => `${signed(v, 1)} nats`;
  const two = (v) => fixed(v, 2);
  const kind = choice("Loss", Object.entries(LOSSES).map(([id, { name }]) => [id, name]), state.loss, draw);
  const h = slider("Log-ratio difference", { min: -REACH, max: REACH, step: 0.5, value: state.h }, nats, draw);
  const beta = slider("β", { min: 0.02, max: 1, step: 0.02, value: state.beta }, two, draw);
  const smoothing = slider("Label smoothing", { min: 0, max: 0.45, step: 0.05, value: state.smoothing }, two, draw);
  const shared = {
    x: [-REACH, REACH],
    xLabel: "log-ratio difference, nats",
    dragged: (v) => { h.value = v; draw(); },
  };
  const pictures = [
    { ...chart({ ...shared, title: "Loss", y: [-0.5, 3], yLabel: "nats per pair" }), key: "loss", level: Math.LN2 },
    { ...chart({ ...shared, title: "Weight in the gradient", y: [-0.5, 1.5], yLabel: "minus the slope" }), key: "weight", level: 0 },
  ];
  for (const picture of pictures) {
    const [y, thin] = [picture.Y(picture.level), { stroke: "var(--quiet)", "stroke-dasharray": "2 3", fill: "none" }];
    picture.add("line", { x1: picture.X(-REACH), x2: picture.X(REACH), y1: y, y2: y, ...thin });
    picture.plain = picture.add("path", { ...thin, "stroke-dasharray": "7 4", "stroke-width": 1.5 });
    picture.line = picture.add("path", { fill: "none", stroke: "var(--chosen)", "stroke-width": 2.5 });
    picture.dot = picture.add("circle", { r: 6, fill: "var(--ink)" });
  }
  const values = readings(["reward margin, β × difference", "loss", "weight", "slope, β × weight"]);
  const spoken = announcer();

  function draw() {
    const at = (v, loss = kind.value, e = smoothing.value) => valuesAt(loss, v, beta.value, e);
    const now = at(h.value);
    smoothing.disabled = !LOSSES[kind.value].uses;
    const sentence = `Reward margin ${fixed(now.margin, 3)}, loss ${fixed(now.loss, 4)}, weight in the gradient ${fixed(now.weight, 4)}.`;
    for (const picture of pictures) {
      const { key, line, plain, dot } = picture;
      line.setAttribute("d", path(picture, GRID.map((v) => [v, at(v)[key]])));
      plain.setAttribute("d", path(picture, GRID.map((v) => [v, at(v, "cdpo", 0)[key]])));
      dot.setAttribute("cx", picture.X(h.value));
      dot.setAttribute("cy", picture.Y(picture.inside(now[key])));
      picture.root.setAttribute("aria-label", `Curve of the ${key}. ${sentence}`);
    }
    values.set([signed(now.margin, 3), fixed(now.loss, 4), fixed(now.weight, 4), fixed(beta.value * now.weight, 4)]);
    spoken.say(sentence);
  }

  host.append(
    html("p", { class: "dpo-title" }, "The loss of one pair: move the sliders, or drag in a picture"),
    kind.row, h.row, beta.row, smoothing.row,
    html("div", { class: "dpo-panels" }, ...pictures.map(({ root }) => root)),
    html("p", { class: "dpo-note" }, "Thick: this loss. Dashed: DPO without smoothing at the same β. Dotted: ln 2, and 0."),
    values.list, spoken.line,
  );
  draw();
}
