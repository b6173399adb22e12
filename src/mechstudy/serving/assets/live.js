/* On a served page: what needs the model. A dialog (another prompt's graph, steering), and measurements of what is pinned. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const { el } = app;
  const base = "/" + location.pathname.split("/")[1] + "/";
  const made = /\/live\/(prompt-\d+)\.html$/.exec(location.pathname); // the page of a graph that was made here
  const STYLE = `
    .live-open { position: fixed; right: 1rem; bottom: 1rem; z-index: 30; background: var(--accent); color: var(--paper); border-color: var(--accent); font-weight: 600; box-shadow: var(--shadow); }
    .live-open:hover { background: var(--ink); }
    dialog.live { width: min(760px, 94vw); max-height: 90vh; overflow: auto; background: var(--paper); color: var(--ink); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.3rem; }
    dialog.live::backdrop { background: rgb(0 0 0 / 45%); } .live-head { display: flex; justify-content: space-between; gap: 1rem; }
    .live-form { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .5rem .8rem; margin: .5rem 0; } .live-form label { display: grid; gap: .15rem; align-content: start; } .live-form .wide { grid-column: 1 / -1; }
    .live-form textarea, .live-form input { font: inherit; font-size: .9rem; color: var(--ink); background: var(--bg); border: 1px solid var(--line); border-radius: 7px; padding: .3rem .5rem; width: 100%; } .live-form textarea { resize: vertical; }
    .live-texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 1rem; margin: .6rem 0; } .live-texts p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font-family: var(--mono); font-size: .82rem; } .live-texts i { color: var(--muted); font-style: normal; }
    .live-error { color: var(--bad); overflow-wrap: anywhere; } .live-sub table { margin: .5rem 0; } .live-sub label, .live-sub select { max-width: 100%; min-width: 0; } @media (max-width: 820px) { .live-open { position: static; margin-top: 1rem; } }`;

  async function ask(action, content) {
    const answer = await fetch(base + "live/" + action, content === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
    });
    const value = await answer.json().catch(() => ({ error: "the server gave no answer (" + answer.status + ")" }));
    if (answer.ok) return value;
    const facts = Object.entries(value.facts || {}).map(([name, text]) => name + ": " + text);
    throw new Error([value.error, ...facts, value.fix ? "fix: " + value.fix : ""].filter(Boolean).join("; "));
  }

  /* A button that asks, counts the seconds, and shows the answer or the error in `result`. */
  function asking(name, result, act) {
    const button = el("button", { type: "button", onclick: async () => {
      const begun = performance.now(), said = () => { button.textContent = "Computing… " + Math.round((performance.now() - begun) / 1000) + " s"; };
      const clock = setInterval(said, 500);
      said();
      button.disabled = true;
      result.replaceChildren();
      try {
        result.replaceChildren(...(await act()));
        result.scrollIntoView({ block: "nearest" });
      } catch (error) {
        const gone = error instanceof TypeError ? "The server does not answer: `mechstudy serve` was stopped, or the model runs out of memory." : error.message;
        result.replaceChildren(el("p", { class: "live-error", role: "alert" }, gone));
      }
      clearInterval(clock);
      button.disabled = false;
      button.textContent = name;
    } }, name);
    return button;
  }

  const field = (label, input, wide) => el("label", { class: wide ? "wide" : null }, label, input);
  const text = (id, value) => el("input", { id, type: "text", value: value || "", autocomplete: "off", spellcheck: "false" });
  const number = (id, value, step) => el("input", { id, type: "number", value, step: step || 1 });
  const area = (id, value) => { const made = el("textarea", { id, rows: 2, spellcheck: "false" }); made.value = value || ""; return made; };
  const result = (id) => el("div", { id, "aria-live": "polite" });

  function graphForm(example) {
    const prompt = area("live-prompt", example.prompt), corrupted = area("live-corrupted", example.corrupted);
    const answer = text("live-answer", example.answer), wrong = text("live-wrong", example.wrong_answer), nodes = number("live-nodes", 256);
    const shown = result("live-graph"), dependent = [corrupted, answer, wrong];
    let own = false; // the other fields are of the first prompt, until one is written for another
    dependent.forEach((input) => input.addEventListener("input", () => { own = true; }));
    prompt.addEventListener("input", () => { if (!own) dependent.forEach((input) => { input.value = ""; }); });
    const button = asking("Draw its graph", shown, async () => {
      const made = await ask("graph", {
        prompt: prompt.value, corrupted: corrupted.value || null, answer: answer.value || null, wrong_answer: wrong.value || null, nodes: Number(nodes.value),
      });
      const scores = ["replacement", "completeness"].filter((name) => name in made.scores).map((name) => name + " " + app.number(made.scores[name]));
      return [
        el("p", {}, el("a", { href: base + "live/" + made.page, target: "_blank", rel: "noopener" }, "Open the graph"), " in a tab of its own: ",
          [made.nodes + " nodes", ...scores].join(", ") + "."),
        el("p", { class: "hint" }, "logit(" + app.visible(made.answer) + ") − logit(" + app.visible(made.wrong_answer) + ") = " + app.number(made.logit_difference) + ". " + made.remarks.join("; ")),
      ];
    });
    return el("section", {}, el("h3", {}, "Explain another prompt"),
      el("div", { class: "live-form" }, field("Prompt", prompt, true), field("Corrupted prompt (may be empty): effects are of putting its values in place", corrupted, true),
        field("Answer, with its leading space (empty: the model's)", answer), field("Wrong answer (empty: the model's)", wrong), field("Nodes with edges of their own", nodes)),
      button, shown);
  }

  function steerForm(example) {
    const prompt = area("live-start", example.prompt), features = text("live-features");
    const tokens = number("live-tokens", 40), temperature = number("live-temperature", 0, 0.1), seed = number("live-seed", 0);
    const shown = result("live-steered");
    const button = asking("Continue it", shown, async () => {
      const made = await ask("steer", {
        prompt: prompt.value, steer: steered(features.value), tokens: Number(tokens.value), temperature: Number(temperature.value), seed: Number(seed.value),
      });
      const one = (name, continued) => el("div", {}, el("h4", {}, name), el("p", {}, el("i", {}, made.prompt), continued));
      return [el("div", { class: "live-texts" }, one("As it is", made.unsteered), one("Steered", made.steered)),
        made.steered === made.unsteered ? el("p", { class: "hint" }, "The text is the same: try a larger value.") : ""];
    });
    return el("section", {}, el("h3", {}, "Continue a prompt, with features steered"),
      el("div", { class: "live-form" }, field("Prompt", prompt, true),
        field("Features and what is added to their activations, such as 13/741=8, 20/15=-4 (neurons in layers without a dictionary)", features, true),
        field("Tokens", tokens), field("Temperature", temperature), field("Seed", seed)),
      button, shown);
  }

  /* {"13/741": 8} of "13/741=8". */
  function steered(written) {
    const values = {};
    for (const part of written.replace(/\s*=\s*/g, "=").split(/[,;\s]+/).filter(Boolean)) {
      const [name, value] = part.split("=");
      if (!/^\d+\/\d+$/.test(name) || value === undefined || value === "" || !Number.isFinite(Number(value))) throw new Error(part + " is not of the form 13/741=8");
      if (name in values) throw new Error(name + " is given twice");
      values[name] = Number(value);
    }
    if (!Object.keys(values).length) throw new Error("Nothing is steered: name a feature, such as 13/741=8");
    return values;
  }

  /* Below a graph: what is pinned, replaced in the model and kept alone. */
  function measured() {
    const state = window.mechstudyGraph;
    const to = el("select", { id: "live-to" }, el("option", { value: "" }, "values on the corrupted prompt, if any"), el("option", { value: "zero" }, "zero"));
    const shown = result("live-measured");
    const pinned = () => [...state.pins].filter((i) => state.graph().nodes.type[i] < 2);
    const button = asking("Measure what is pinned", shown, async () => {
      const graph = state.graph(), nodes = pinned().map((i) => graph.nodes.id[i]);
      if (graph.kind !== "prompt") throw new Error("This graph is of many prompts: choose one prompt's above, and pin nodes there.");
      if (!nodes.length) throw new Error("No feature and no error node is pinned: select one and press P.");
      const found = await ask("subgraph", { graph: made ? made[1] : graph.slug, nodes, replace_by: to.value || null });
      const row = (name, value, share) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "n" }, app.number(value)), el("td", {}, share));
      const per = (share) => (share === null ? "" : Math.round(100 * share) + "%");
      return [el("table", { class: "data compact" },
        el("thead", {}, el("tr", {}, el("th", {}, "Prompt run with"), el("th", { class: "n" }, "logit difference"), el("th", {}, "share"))),
        el("tbody", {}, row("nothing replaced", found.clean, ""), row("the " + found.n_nodes + " pinned replaced", found.without, per(found.necessity) + " of the effect goes"),
          row("all but the pinned replaced", found.only, per(found.faithfulness) + " of the effect is left"), row("everything replaced", found.none, ""))),
      el("p", { class: "hint" }, "Everything: " + (found.n_nodes + found.n_others).toLocaleString("en") + " active features and errors of this prompt, replaced by "
        + (found.replaced_by === "zero" ? "zero" : "their values on the corrupted prompt") + ". Attention and what follows respond.")];
    });
    const steer = el("button", { type: "button", onclick: () => {
      const graph = state.graph(), chosen = pinned().filter((i) => graph.nodes.type[i] === 0);
      const values = new Map(chosen.map((i) => [graph.nodes.layer[i] + "/" + graph.nodes.feature[i], graph.nodes.activation[i]]));
      show([...values].map(([name, value]) => name + "=" + Number((value || 1).toPrecision(3))).join(", "), graph.prompt);
    } }, "Steer what is pinned");
    document.getElementById("g-sub").after(el("div", { class: "live-sub" }, el("h3", {}, "Measured in the model"),
      el("div", { class: "sg-tools" }, el("label", {}, "Replaced by ", to), button, steer), shown));
  }

  const dialog = el("dialog", { class: "live", "aria-labelledby": "live-title" });
  function show(features, prompt) {
    if (features) document.getElementById("live-features").value = features;
    if (features && prompt) document.getElementById("live-start").value = prompt;
    dialog.showModal();
    if (features) document.getElementById("live-features").focus();
  }

  async function start() {
    const about = await ask("about");
    document.head.append(el("style", {}, STYLE));
    const example = about.examples[0] || {};
    dialog.append(el("div", { class: "live-head" }, el("h2", { id: "live-title" }, "Ask " + about.model), el("button", { type: "button", onclick: () => dialog.close() }, "Close")),
      steerForm(example), graphForm(example));
    const open = el("button", { type: "button", class: "live-open", onclick: async () => {
      const [layer, feature] = location.pathname.endsWith("/features.html") ? decodeURIComponent(location.hash.slice(1)).split("/") : [];
      const record = feature === undefined ? null : await app.feature(layer, feature);
      show(record ? layer + "/" + feature + "=" + Number((record.max || 1).toPrecision(3)) : "");
    } }, "Ask the model");
    (document.querySelector("main") || document.body).append(open, dialog);
    if (window.mechstudyGraph) measured();
    document.documentElement.dataset.live = "ready";
  }
  start().catch((error) => console.error(error));
})();
