// The best policy for known rewards, as beta holds it to the reference: its answers, its price in KL, and the frontier.
import { announcer, chart, choice, fixed, html, path, readings, signed, slider } from "./kit.js";

/** The optimum of mean reward − beta KL: reference × exp(reward / beta), made to sum to 1 (Eq. 4). */
export function optimumAt(beta, reference, rewards) {
  const top = Math.max(...rewards);
  const tilted = reference.map((p, i) => p * Math.exp((rewards[i] - top) / beta));
  const sum = total(tilted);
  const policy = tilted.map((v) => v / sum);
  return {
    policy,
    kl: total(policy.map((p, i) => (p > 0 ? p * Math.log(p / reference[i]) : 0))),
    reward: total(policy.map((p, i) => p * rewards[i])),
  };
}

const total = (values) => values.reduce((sum, value) => sum + value, 0);
const percent = (share) => `${fixed(100 * share, 1)} %`;
const betaText = (beta) => fixed(beta, beta < 0.1 ? 3 : 2);
const bar = (who) => html("div", { class: "dpo-bar", style: `background: var(--${who})` });

const EXPONENTS = { min: -2, max: 1.5, step: 0.05 }; // of beta, to the base 10
const GRID = Array.from({ length: 141 }, (_, i) => EXPONENTS.min + i * 0.025);

export function render(host, { prompts, beta: start }) {
  const which = choice("Prompt", prompts.map(({ prompt }, i) => [i, prompt]), 0, show);
  const beta = slider("β, weight of the KL term", { ...EXPONENTS, value: Math.log10(start) }, (v) => betaText(10 ** v), () => draw());
  const panels = html("div", { class: "dpo-panels" });
  const values = readings(["KL from the reference", "mean reward", "reward − β KL"]);
  const spoken = announcer();
  let draw;

  function show() {
    const { answers, reference, rewards } = prompts[which.value];
    const frontier = GRID.map((exponent) => ({ exponent, ...optimumAt(10 ** exponent, reference, rewards) }));
    const rows = answers.map((answer, i) => {
      const [words, before, after] = [html("small"), bar("reference"), bar("policy")];
      before.style.width = percent(reference[i]).replace(" ", "");
      return { words, after, row: html("div", { class: "dpo-answer" }, html("div", {}, answer), words, before, after) };
    });
    const [low, high] = [frontier.at(-1).reward, frontier[0].reward]; // the grid rises in beta
    const pad = 0.06 * (high - low || 1);
    const axes = chart({
      title: "The frontier: reward against KL",
      x: [0, 1.05 * frontier[0].kl || 1],
      y: [low - pad, high + pad],
      xLabel: "KL from the reference, nats",
      yLabel: "mean reward",
      dragged: (kl) => { // each KL belongs to one beta
        const near = frontier.reduce((a, b) => (Math.abs(b.kl - kl) < Math.abs(a.kl - kl) ? b : a));
        beta.value = near.exponent;
        draw();
      },
    });
    const points = frontier.map(({ kl, reward }) => [kl, reward]);
    axes.add("path", { fill: "none", stroke: "var(--margin)", "stroke-width": 2.5, d: path(axes, points) });
    const dot = axes.add("circle", { r: 6, fill: "var(--ink)" });
    panels.replaceChildren(html("div", {}, ...rows.map(({ row }) => row), legend()), axes.root);

    draw = () => {
      const b = 10 ** beta.value;
      const now = optimumAt(b, reference, rewards);
      rows.forEach(({ words, after }, i) => {
        after.style.width = percent(now.policy[i]).replace(" ", "");
        words.textContent = `reward ${signed(rewards[i], 1)}: ${percent(reference[i])} → ${percent(now.policy[i])}`;
      });
      dot.setAttribute("cx", axes.X(now.kl));
      dot.setAttribute("cy", axes.Y(now.reward));
      values.set([`${fixed(now.kl, 3)} nats`, signed(now.reward, 3), signed(now.reward - b * now.kl, 3)]);
      const likely = now.policy.indexOf(Math.max(...now.policy));
      const sentence = `β ${betaText(b)}: KL ${fixed(now.kl, 3)} nats, mean reward ${fixed(now.reward, 3)}; `
        + `most likely, at ${percent(now.policy[likely])}: ${answers[likely]}`;
      axes.root.setAttribute("aria-label", `Mean reward against KL as β falls. ${sentence}`);
      spoken.say(sentence);
    };
    draw();
  }

  host.append(
    html("p", { class: "dpo-title" }, "The best policy for known rewards: move β, or drag along the frontier"),
    which.row, beta.row, panels, values.list, spoken.line,
  );
  show();
}

function legend() {
  const swatch = (who) => { const box = bar(who); box.style.width = "1rem"; return box; };
  return html("div", { class: "dpo-scale" }, swatch("reference"), "reference", swatch("policy"), "best policy");
}
