// One training run, to be stepped through: its curves, and what the model writes at each station.
import { announcer, chart, fixed, html, path, readings, signed, slider } from "./kit.js";

/** The last row up to a step in which something was logged. */
export function latest(rows, step, name) {
  return rows.reduce((found, row) => (row.step <= step && name in row ? row : found), rows[0]);
}

export function render(host, { rows, stations, prompts, step: start }) {
  const last = rows.at(-1).step;
  const span = (names) => {
    const values = rows.flatMap((row) => names.filter((name) => name in row).map((name) => row[name]));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = 0.08 * (high - low || 1);
    return [low - pad, high + pad];
  };
  const step = slider("Optimiser step", { min: 0, max: last, step: rows[1].step, value: start }, (v) => `${v} of ${last}`, draw);
  const shared = { x: [0, last], xLabel: "optimiser step", dragged: (v) => { step.value = v; draw(); } };
  const pictures = [
    picture("Loss", "nats a pair", ["loss", "ink"], ["eval_loss", "margin"]),
    picture("Implicit rewards, training", "nats", ["chosen", "chosen"], ["rejected", "rejected"]),
  ];
  const values = readings(["loss", "held-out loss", "reward margin", "KL from the start"]);
  const spoken = announcer();
  const when = html("p", { class: "dpo-note" });
  const answers = prompts.map((prompt) => {
    const [text, score] = [html("div"), html("small")];
    return { text, score, row: html("div", { class: "dpo-answer" }, html("strong", {}, prompt), text, score) };
  });

  function picture(title, yLabel, ...lines) {
    const axes = chart({ ...shared, title, y: span(lines.map(([name]) => name)), yLabel });
    const cursor = axes.add("line", { y1: axes.Y(axes.inside(-Infinity)), y2: axes.Y(axes.inside(Infinity)), stroke: "var(--ink)" });
    const dots = lines.map(([name, color], i) => {
      const known = rows.filter((row) => name in row);
      const dash = i ? "7 3" : "none";
      axes.add("path", {
        fill: "none", stroke: `var(--${color})`, "stroke-width": 2.2, "stroke-dasharray": dash,
        d: path(axes, known.map((row) => [row.step, row[name]])),
      });
      return { name, dot: axes.add("circle", { r: 5, fill: `var(--${color})`, stroke: "var(--card)" }) };
    });
    return { ...axes, title, cursor, dots };
  }

  function draw() {
    const at = (name) => latest(rows, step.value, name);
    const station = stations.reduce((found, one) => (one.step <= step.value ? one : found));
    for (const { X, Y, cursor, dots } of pictures) {
      for (const end of ["x1", "x2"]) cursor.setAttribute(end, X(step.value));
      for (const { name, dot } of dots) {
        dot.setAttribute("cx", X(at(name).step));
        dot.setAttribute("cy", Y(at(name)[name]));
      }
    }
    const told = [
      fixed(at("loss").loss, 3),
      fixed(at("eval_loss").eval_loss, 3),
      signed(at("chosen").chosen - at("rejected").rejected, 3),
      `${fixed(at("kl").kl, 2)} nats`,
    ];
    values.set(told);
    when.textContent = station.step
      ? `What the model wrote after step ${station.step}, with the same random numbers as before the first step`
      : "What the model wrote before the first step";
    answers.forEach(({ text, score }, i) => {
      text.textContent = station.answers[i].text;
      score.textContent = `judge: ${signed(station.answers[i].reward, 1)}`;
    });
    const sentence = `Step ${step.value}: loss ${told[0]}, held-out loss ${told[1]}, margin ${told[2]}, KL ${told[3]}.`;
    for (const { root, title } of pictures) root.setAttribute("aria-label", `Curves over the steps: ${title}. ${sentence}`);
    spoken.say(`${sentence} ${prompts[0]} ${station.answers[0].text}`);
  }

  host.append(
    html("p", { class: "dpo-title" }, "A training run: move the step, or drag in a picture"),
    step.row,
    html("div", { class: "dpo-panels" }, ...pictures.map(({ root }) => root)),
    html("p", { class: "dpo-note" }, "Loss: solid in training, dashed held out. Rewards: solid for chosen answers, dashed for rejected ones."),
    values.list, when, html("div", {}, ...answers.map(({ row }) => row)), spoken.line,
  );
  draw();
}
