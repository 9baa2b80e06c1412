// Answers, token by token, coloured by what each token adds to the implicit reward.
import { fixed, html, signed } from "./kit.js";

const STRENGTH = 0.55; // of the strongest colour, so that the text stays readable on it

export const total = (rewards) => rewards.reduce((sum, reward) => sum + reward, 0);

/** Colour of a reward: blue above 0, vermilion below, as strong as the largest one demands. */
export function tint(reward, largest) {
  const strength = largest > 0 ? (STRENGTH * Math.abs(reward)) / largest : 0;
  return `rgba(var(${reward >= 0 ? "--up" : "--down"}), ${strength.toFixed(3)})`;
}

export function render(host, { prompt, beta, answers }) {
  const largest = Math.max(...answers.flatMap((answer) => answer.rewards.map(Math.abs)));
  const shown = html("p", { class: "dpo-readings", "aria-hidden": "true" }, "Point at a token, or move with the arrow keys.");
  host.append(
    html("p", { class: "dpo-title" }, `Implicit reward, token by token, at β ${fixed(beta, 2)}`),
    html("p", { class: "dpo-tokens" }, prompt),
  );
  for (const answer of answers) host.append(...row(answer));
  host.append(
    html("div", { class: "dpo-scale" }, `${fixed(-largest)} nats`, html("i"), `${signed(largest)} nats`),
    shown,
  );

  function row({ name, tokens, rewards }) {
    const heading = `${name}: ${signed(total(rewards))} nats in ${tokens.length} tokens`;
    const list = html("div", { class: "dpo-tokens", role: "listbox", "aria-label": heading });
    const spans = tokens.map((token, i) => {
      const text = token.replaceAll("\n", "↵\n");
      const span = html("span", {
        role: "option", "aria-selected": "false", tabindex: i ? "-1" : "0", class: rewards[i] >= 0 ? "dpo-up" : "dpo-down",
        "aria-label": `${token.trim() || "white space"}, ${signed(rewards[i])}`, style: `background: ${tint(rewards[i], largest)}`,
      }, text);
      span.addEventListener("pointerenter", () => select(i));
      span.addEventListener("click", () => select(i, true));
      span.addEventListener("focus", () => select(i));
      return span;
    });
    list.append(...spans);
    list.addEventListener("keydown", (event) => {
      const here = spans.findIndex((span) => span.tabIndex === 0);
      const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: spans.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      if (spans[to]) select(to, true);
    });

    function select(i, focus = false) {
      host.querySelectorAll('[aria-selected="true"]').forEach((span) => span.setAttribute("aria-selected", "false"));
      spans.forEach((span, k) => { span.tabIndex = k === i ? 0 : -1; });
      spans[i].setAttribute("aria-selected", "true");
      if (focus) spans[i].focus();
      const before = total(rewards.slice(0, i + 1));
      shown.textContent = `“${tokens[i].replaceAll("\n", "↵")}” adds ${signed(rewards[i], 3)}; up to here ${signed(before)} of ${signed(total(rewards))} nats`;
    }

    return [html("p", {}, heading), list];
  }
}
