// What recorded runs have gained, against what they have spent in KL: one way for each beta, one mark a station.
import { announcer, chart, fixed, html, path, readings, signed, slider } from "./kit.js";

export function render(host, { points, beta: startBeta, step: startStep }) {
  const of = (name) => [...new Set(points.map((point) => point[name]))].sort((a, b) => a - b);
  const [betas, steps] = [of("beta"), [0, ...of("step")]];
  const at = (b, s) => points.find((point) => point.beta === betas[b] && point.step === steps[s])
    ?? { kl: 0, gain: 0, low: 0, high: 0 };
  const way = (b) => steps.map((_, s) => at(b, s));
  const spot = (name, known, value, words) =>
    slider(name, { min: 0, max: known.length - 1, step: 1, value: known.indexOf(value) }, (i) => words(known[i]), draw);
  const beta = spot("β of the training", betas, startBeta, String);
  const step = spot("Optimiser step", steps, startStep, String);

  const span = (values, pad) => {
    const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
    return [low - pad * (high - low), high + pad * (high - low)];
  };
  const axes = chart({
    title: "Reward gained against KL spent",
    x: [0, 1.05 * Math.max(...points.map(({ kl }) => kl))],
    y: span(points.flatMap(({ low, high }) => [low, high]), 0.05),
    xLabel: "KL from the reference, nats an answer",
    yLabel: "reward gained",
    dragged: (kl) => { // the station of this beta that is nearest
      const far = way(beta.value).map((point) => Math.abs(point.kl - kl));
      step.value = far.indexOf(Math.min(...far));
      draw();
    },
  });
  axes.add("line", { x1: axes.X(0), x2: axes.X(axes.right), y1: axes.Y(0), y2: axes.Y(0), stroke: "var(--quiet)", "stroke-dasharray": "2 3" });
  const ways = betas.map((_, b) => axes.add("path", { fill: "none", d: path(axes, way(b).map(({ kl, gain }) => [kl, gain])) }));
  const bars = betas.map(() => axes.add("line", {}));
  const dot = axes.add("circle", { r: 6, fill: "var(--ink)" });
  const values = readings(["KL", "reward gained", "95 % interval"]);
  const spoken = announcer();

  function draw() {
    const here = at(beta.value, step.value);
    betas.forEach((_, b) => {
      const now = b === beta.value;
      const look = now ? { stroke: "var(--chosen)", "stroke-width": 3 } : { stroke: "var(--quiet)", "stroke-width": 1 };
      const { kl, low, high } = at(b, step.value);
      const place = { x1: axes.X(kl), x2: axes.X(kl), y1: axes.Y(low), y2: axes.Y(high) };
      for (const [name, value] of Object.entries(look)) for (const line of [ways[b], bars[b]]) line.setAttribute(name, value);
      for (const [name, value] of Object.entries(place)) bars[b].setAttribute(name, value);
    });
    dot.setAttribute("cx", axes.X(here.kl));
    dot.setAttribute("cy", axes.Y(here.gain));
    values.set([`${fixed(here.kl, 3)} nats`, signed(here.gain, 2), `${signed(here.low, 2)} to ${signed(here.high, 2)}`]);
    const sentence = `β ${betas[beta.value]}, step ${steps[step.value]}: KL ${fixed(here.kl, 3)} nats, reward gained `
      + `${signed(here.gain, 2)}, interval from ${signed(here.low, 2)} to ${signed(here.high, 2)}.`;
    axes.root.setAttribute("aria-label", `Reward gained against KL, one line for each β. ${sentence}`);
    spoken.say(sentence);
  }

  host.append(
    html("p", { class: "dpo-title" }, "The measured frontier: move β and the step, or drag along the line"),
    beta.row, step.row, html("div", { class: "dpo-panels" }, axes.root), values.list,
    html("p", { class: "dpo-note" }, "Thick: this β, with the interval of its gain at this step. Thin: the other β, and theirs at the same step."),
    spoken.line,
  );
  draw();
}
