/* The panel beside the graph: a node's evidence and edges; and the facts and ledger of the graph. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const { el } = app;
  const TYPE_NAMES = ["Feature", "Error", "Token", "Constant", "Output"];
  const FIRST = 12, CHIPS = 6;
  const CHANGED = { same: "in both, the same", changed: "in both, with other numbers", gained: "only in the second graph", lost: "only in the first graph" };
  const orNone = (x) => (x === null ? "none" : app.number(x, 3));

  app.nodeName = function (graph, i) {
    const { type, layer, feature, label, id } = graph.nodes;
    if (type[i] === 0) return "L" + layer[i] + " #" + feature[i] + (label[i] ? " " + label[i] : "");
    if (type[i] === 1) return "Error L" + layer[i];
    if (type[i] === 3) return "Constant" + (layer[i] === null ? "" : " L" + layer[i]);
    return label[i] || id[i];
  };

  app.nodePlace = function (graph, i) {
    const column = graph.columns[graph.nodes.column[i]];
    if (!column || graph.nodes.type[i] === 3) return "";
    return "at " + column.label + (column.name ? " (" + column.name + ")" : "");
  };

  function edgeList(graph, edges, end, state) {
    const shown = edges.filter((e) => state.visible[graph.edges[end][e]] && state.kindShown(e))
      .sort((a, b) => Math.abs(graph.edges.weight[b]) - Math.abs(graph.edges.weight[a]));
    if (!shown.length) return [el("p", { class: "hint" }, "None in this view.")];
    const top = Math.abs(graph.edges.weight[shown[0]]);
    const list = el("ul", { class: "edges-list" });
    const add = (from, to) => shown.slice(from, to).forEach((e) => {
      const other = graph.edges[end][e], w = graph.edges.weight[e];
      const check = graph.checks[e];
      const freq = graph.edges.frequency ? " in " + Math.round(100 * graph.edges.frequency[e]) + "% of prompts" : "";
      const sd = graph.edges.weight_sd && graph.edges.weight_sd[e] !== null ? " ± " + app.number(graph.edges.weight_sd[e], 3) : "";
      list.append(el("li", { class: w < 0 ? "neg" : "" }, el("button", {
        type: "button", title: graph.nodes.id[other] + freq, onclick: () => state.select(other),
        onmouseenter: () => state.peek(other), onmouseleave: () => state.peek(-1),
      }, el("span", { class: "name" }, app.nodeName(graph, other) + " " + app.nodePlace(graph, other)),
      graph.edges.qk[e] ? el("span", { class: "kind" }, "through an attention pattern")
        : el("span", { class: "share" }, percent(Math.abs(w) / graph.inputs[graph.edges.target[e]]) + " of "
          + (end === "source" ? "its drawn input" : "the drawn input there")),
      el("span", { class: "w" }, graph.compared ? orNone(graph.edges.a[e]) + " → " + orNone(graph.edges.b[e]) : (w > 0 ? "+" : "") + app.number(w, 3) + sd),
      check ? el("span", { class: "checked" }, checkText(check)) : null,
      el("i", { style: "width:" + (100 * Math.abs(w)) / top + "%" }))));
    });
    add(0, FIRST);
    if (shown.length <= FIRST) return [list];
    const more = el("button", { type: "button", onclick: () => { add(FIRST, 200); more.remove(); } },
      "Show " + Math.min(200, shown.length) + " of " + shown.length);
    return [list, more];
  }

  const percent = (share) => (share < 0.01 ? "under 1%" : Math.round(100 * share) + "%");

  function interval(ci) {
    return ci ? " [" + app.number(ci[0], 3) + ", " + app.number(ci[1], 3) + "]" : "";
  }

  function checkText(c) {
    const number = (name) => app.number(c[name], 3);
    const value = "✓ checked: predicted " + number("predicted") + ", frozen " + number("frozen");
    if (c.direct_live === null) return value + ", live " + number("total_live");
    return value + "; through patterns " + number("predicted_qk") + ", measured " + number("qk")
      + "; direct, live " + number("direct_live") + interval(c.direct_live_ci95) + "; total " + number("total_live");
  }

  app.showNode = function (panel, graph, i, state) {
    const nodes = graph.nodes, type = nodes.type[i];
    const pinned = state.pins.has(i);
    const facts = [["Node", nodes.id[i]], ["Place", (graph.rows[nodes.row[i]] + " " + app.nodePlace(graph, i)).trim()]];
    if (nodes.influence[i] !== null && type !== 4 && !graph.compared) facts.push(["Influence", app.number(nodes.influence[i], 4)]);
    if (type < 2) facts.push(["Rank", (state.rank[i] + 1) + " of " + state.rankOf + ", enters at " + app.number(100 * nodes.share[i], 0) + "% of influence"]);
    if (nodes.activation[i] !== null && type === 0) facts.push(["Activation", app.number(nodes.activation[i])]);
    if (nodes.frequency[i] !== null) facts.push(["In", app.number(100 * nodes.frequency[i], 0) + "% of the prompts' graphs"]);
    if (nodes.probability[i] !== null) facts.push(["Probability", app.number(nodes.probability[i], 3)]);
    if (graph.compared) {
      facts.push(["Change", CHANGED[graph.compared.changes[nodes.change[i]]]]);
      for (const [name, field] of [["Influence", "influence"], ["Direct effect", "direct"], ["Activation", "activation"]]) {
        const pair = [nodes[field + "_a"][i], nodes[field + "_b"][i]];
        if (pair.some((x) => x !== null)) facts.push([name + ", first → second", pair.map(orNone).join(" → ")]);
      }
    }
    const evidence = el("div", {});
    panel.replaceChildren(
      el("div", { class: "d-head" }, el("h2", {}, type === 0 ? "Layer " + nodes.layer[i] + ((graph.neurons || []).includes(nodes.layer[i]) ? ", neuron " : ", feature ") + nodes.feature[i] : TYPE_NAMES[type] + (type === 2 || type === 4 ? " " + nodes.label[i] : nodes.layer[i] === null ? "" : " of layer " + nodes.layer[i])),
        el("button", { type: "button", "aria-pressed": String(pinned), onclick: () => state.pin(i) }, pinned ? "Pinned" : "Pin")),
      type === 0 ? labelLine(graph, i, state) : "",
      type === 1 ? el("p", { class: "hint" }, "What the nodes of this layer leave out at this position: what a dictionary misses, or neurons that are not listed.") : "",
      type === 3 ? el("p", { class: "hint" }, "What this layer adds whatever the prompt: its biases, and what the first position writes.") : "",
      app.facts(facts),
      pinList(graph, state), evidence,
      ...app.nodeHeads(graph, i),
      el("h3", {}, "Comes from"), ...edgeList(graph, graph.incoming[i], "source", state),
      el("h3", {}, "Goes to"), ...edgeList(graph, graph.outgoing[i], "target", state));
    panel.dataset.node = nodes.id[i];
    panel.scrollTop = 0;
    if (type === 0) showEvidence(evidence, graph, i, panel);
  };

  /* The label with a button that makes it a field. */
  function labelLine(graph, i, state) {
    const shown = graph.nodes.label[i];
    const line = el("p", { class: "f-label" }, shown || "No label", " ");
    const edit = () => {
      const field = el("input", { type: "text", value: shown, "aria-label": "Label", maxlength: 200, placeholder: "empty: the automatic one" });
      let done = false;
      const end = (keep) => {
        if (done) return;
        done = true;
        if (keep) state.edits().label(i, field.value);
        state.edited();
      };
      field.addEventListener("keydown", (event) => { if (event.key === "Enter") end(true); else if (event.key === "Escape") end(false); });
      field.addEventListener("blur", () => end(true));
      line.replaceChildren(field);
      field.focus();
    };
    line.append(el("button", { type: "button", class: "quiet", onclick: edit }, "Edit label"));
    return line;
  }

  async function showEvidence(box, graph, i, panel) {
    const { layer, feature, id } = graph.nodes;
    const record = await app.feature(layer[i], feature[i]);
    if (panel.dataset.node !== id[i]) return;
    if (!record) {
      box.replaceChildren(el("p", { class: "hint" }, "No examples were collected for this feature."));
      return;
    }
    box.replaceChildren(app.featureFacts(record), ...app.featureBody(record, 5),
      el("p", {}, el("a", { href: "features.html#" + layer[i] + "/" + feature[i] }, "All about this feature")));
  }

  function pinList(graph, state) {
    if (!state.pins.size) return "";
    return el("div", { class: "pins", "aria-label": "Pinned nodes" }, state.pins.size + " pinned: ", ...[...state.pins].slice(0, CHIPS).map((i) =>
      el("button", { type: "button", onclick: () => state.select(i), title: graph.nodes.id[i] }, [...app.nodeName(graph, i)].slice(0, 26).join(""))),
      state.pins.size > CHIPS ? "…" : "");
  }

  const SCORES = {
    n_features_active: "Active features",
    n_features_expanded: "Features with edges",
    n_nodes: "Nodes before pruning",
    n_edges: "Edges before pruning",
    n_nodes_pruned: "Nodes kept, no constants",
    n_edges_pruned: "Edges kept, no constants",
    replacement_pruned: "Replacement, pruned",
    completeness_pruned: "Completeness, pruned",
    conservation_residual_max: "Largest residual",
  };
  const scoreName = (key) => SCORES[key] || key.replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());

  app.showFacts = function (box, graph) {
    const facts = [];
    const add = (k, v) => { if (v !== null && v !== undefined && v !== "" && v !== "n/a") facts.push([k, v]); };
    if (graph.compared) { add("First", graph.compared.a); add("Second", graph.compared.b); }
    add("Prompt", graph.prompt ? app.visible(graph.prompt) : null);
    add("Prompts", graph.n_prompts);
    add("Target", graph.target);
    add("Answer", graph.answer ? app.visible(graph.answer) + " rather than " + app.visible(graph.wrong_answer || "") : null);
    add("Logit difference", graph.logit_difference === undefined ? null : app.number(graph.logit_difference));
    for (const [key, value] of Object.entries(graph.scores || {})) {
      if (typeof value === "number") add(scoreName(key), Number.isInteger(value) ? value.toLocaleString("en") : app.number(value, 3));
    }
    if (graph.edges_dropped) add("Not drawn", graph.edges_dropped + " weakest edges");
    box.replaceChildren(el("dl", { class: "facts-list" }, ...facts.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, String(v))])));
  };

  /* features + errors + tokens + biases = target, with the residual. */
  app.showLedger = function (box, graph) {
    const ledger = graph.ledger || {};
    const parts = ["features", "errors", "tokens", "biases"].filter((k) => typeof ledger[k] === "number");
    if (!parts.length) {
      box.replaceChildren(el("p", { class: "hint" }, graph.kind === "aggregate"
        ? "Each prompt's graph has its own ledger: choose one above." : "This graph carries no ledger."));
      return;
    }
    const low = Math.min(0, ...parts.map((k) => ledger[k])), high = Math.max(0, ...parts.map((k) => ledger[k]));
    const span = high - low || 1;
    const row = (name, value, cls, bar) => el("tr", { class: cls }, el("th", { scope: "row" }, name), el("td", { class: "n" }, app.number(value, 4)),
      el("td", { class: "bar" }, bar ? el("div", {}, el("i", { class: value < 0 ? "neg" : "", style: "left:" + (100 * (Math.min(0, value) - low)) / span + "%;width:" + (100 * Math.abs(value)) / span + "%" })) : ""));
    box.replaceChildren(
      el("table", { class: "ledger" }, el("tbody", {}, ...parts.map((k) => row(k.replace(/^./, (c) => c.toUpperCase()), ledger[k], "", true)),
        row("Sum", ledger.total, "sum"), row("The model's metric", ledger.target, ""), row("Residual", ledger.residual, "sum"))),
      el("p", { class: "hint" }, graph.explains === "difference"
        ? "Direct contributions to the target's difference between the clean and the corrupted prompt. The residual is what the path between the two misses."
        : "Direct contributions to the target, which must add up to what the model computed. The residual is arithmetic error only."));
  };
})();
