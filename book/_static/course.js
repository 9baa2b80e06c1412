// What pages do without a server: numbers and ticks in the table of contents, notes on predictions, and boxes that show
// what a link to a term or an equation leads to. Notes and ticks stay in the reader's browser.
(() => {
  "use strict";
  const page = DOCUMENTATION_OPTIONS.pagename ?? "";
  const root = document.documentElement.dataset.content_root;
  const KEY = "dpo-from-scratch";

  function load() {
    try { return JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { return {}; }
  }
  function save(change) {
    try { localStorage.setItem(KEY, JSON.stringify({ ...load(), ...change })); } catch { /* storage is off: nothing is kept */ }
  }
  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // Chapters: their numbers, and which were read

  const CHAPTER = /notebooks\/((\d\d)_\w+)\.html$/;
  const chapterOf = (link) => CHAPTER.exec(link.href.split("#")[0]);

  function tick() {
    const read = load().read ?? [];
    for (const link of document.querySelectorAll(".bd-sidebar-primary a, a.course-card")) {
      const found = chapterOf(link);
      if (found) link.classList.toggle("course-read", read.includes(`notebooks/${found[1]}`));
    }
  }

  function numberChapters() {
    for (const link of document.querySelectorAll(".bd-sidebar-primary nav a.internal")) {
      const found = chapterOf(link) ?? (link.getAttribute("href") === "#" && CHAPTER.exec(`${page}.html`));
      if (found) link.prepend(make("span", { class: "course-number" }, found[2]));
    }
  }

  function askWhetherRead() {
    const footer = document.querySelector(".prev-next-footer");
    if (!footer || !page.startsWith("notebooks/")) return;
    const box = make("input", { type: "checkbox" });
    box.checked = (load().read ?? []).includes(page);
    box.addEventListener("change", () => {
      const read = new Set(load().read ?? []);
      if (box.checked) read.add(page); else read.delete(page);
      save({ read: [...read] });
      tick();
    });
    const note = make("small", {}, "The tick stays in this browser and goes nowhere.");
    footer.before(make("p", { class: "course-done" }, make("label", {}, box, " I have read this chapter. "), note));
    save({ last: { page, title: document.querySelector("h1")?.firstChild.textContent ?? "" } });
  }

  function offerToContinue() {
    const place = document.querySelector(".course-continue");
    const { last } = load();
    if (!place || !last) return;
    place.append(make("a", { href: `${root}${last.page}.html` }, `Go on where you were: ${last.title}`));
  }

  // Predictions: a line to write one down before looking

  function takeNotes() {
    const notes = load().notes ?? {};
    document.querySelectorAll(".course-predict").forEach((box, i) => {
      const key = `${page}#${i}`;
      const field = make("input", {
        type: "text", placeholder: "Write your guess down first", autocomplete: "off", maxlength: "200",
        "aria-label": `Your prediction number ${i + 1} on this page; it stays in this browser`,
      });
      field.value = notes[key] ?? "";
      field.addEventListener("change", () => save({ notes: { ...load().notes, [key]: field.value } }));
      box.append(field);
    });
  }

  // Boxes beside links to terms and equations (WCAG 1.4.13: Escape closes them, the pointer may enter them)

  function showPreviews() {
    const templates = new Map();
    for (const template of document.querySelectorAll("template[data-anchor]")) templates.set(template.dataset.anchor, template);
    if (!templates.size) return;
    const tip = make("div", { class: "course-tip", id: "course-tip", role: "tooltip", hidden: "" });
    document.body.append(tip);
    let owner = null;
    let timer;

    const templateOf = (link) => link && templates.get(decodeURIComponent(link.hash.slice(1)));
    const linkAt = (event) => event.target.closest?.("article a[href*='#']");

    function close() {
      clearTimeout(timer);
      owner?.removeAttribute("aria-describedby");
      owner = null;
      tip.hidden = true;
    }
    async function open(link) {
      if (owner === link) return;
      close();
      owner = link;
      tip.replaceChildren(templateOf(link).content.cloneNode(true));
      tip.hidden = false;
      link.setAttribute("aria-describedby", tip.id);
      place(link);
      if (tip.querySelector(".math")) {
        const mathjax = await mathJax();
        mathjax.typesetClear([tip]);
        await mathjax.typesetPromise([tip]);
        if (owner === link) place(link);
      }
    }
    function place(link) {
      const at = link.getClientRects()[0];
      const width = document.documentElement.clientWidth;
      tip.style.left = `${Math.max(8, Math.min(at.left, width - tip.offsetWidth - 8)) + scrollX}px`;
      const below = at.bottom + 6;
      const top = below + tip.offsetHeight > innerHeight && at.top > tip.offsetHeight ? at.top - tip.offsetHeight - 6 : below;
      tip.style.top = `${top + scrollY}px`;
    }

    document.addEventListener("pointerover", (event) => {
      if (event.pointerType === "touch") return;
      const link = linkAt(event);
      clearTimeout(timer);
      if (templateOf(link)) timer = setTimeout(() => open(link), 200);
      else if (owner && !tip.contains(event.target)) timer = setTimeout(close, 250);
    });
    document.addEventListener("focusin", (event) => {
      const link = linkAt(event);
      if (templateOf(link)) open(link); else if (!tip.contains(event.target)) close();
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
    document.addEventListener("pointerdown", (event) => { if (!tip.contains(event.target)) close(); });
  }

  // Pages without a formula load MathJax only when a box needs it
  let loading;
  function mathJax() {
    if (window.MathJax?.startup?.promise) return MathJax.startup.promise.then(() => MathJax);
    loading ??= new Promise((resolve) => {
      window.MathJax = {
        loader: { load: ["core", "input/tex", "output/chtml", "a11y/assistive-mml"] },
        startup: { typeset: false, ready() { MathJax.startup.defaultReady(); MathJax.startup.promise.then(() => resolve(MathJax)); } },
      };
      document.head.append(make("script", { src: `${root}_static/vendor/mathjax3/startup.js` }));
    });
    return loading;
  }

  // Formulas that are wider than the screen scroll in their frame, also by keys

  function reachWideFormulas() {
    for (const frame of document.querySelectorAll("article div.math, article mjx-container[display='true']")) {
      const scrolls = frame.scrollWidth > frame.clientWidth + 1 && getComputedStyle(frame).overflowX !== "visible";
      if (scrolls) frame.tabIndex = 0; else frame.removeAttribute("tabindex");
    }
  }

  addEventListener("beforeprint", () => document.querySelectorAll("article details").forEach((box) => { box.open = true; }));
  document.addEventListener("DOMContentLoaded", () => {
    numberChapters();
    askWhetherRead();
    offerToContinue();
    takeNotes();
    showPreviews();
    tick();
    window.MathJax?.startup?.promise?.then(reachWideFormulas);
    addEventListener("resize", reachWideFormulas);
  });
})();
