/* Heads: those of the whole graph with the pairs that their scores are made of, and those of one node's edges. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const { el } = app;
  const LISTED = 10, OF_NODE = 5;

  /* A summand of a query or key: a node that is drawn, another one, a head, or the rest. */
  function summand(graph, id, state) {
    const i = graph.index.get(id);
    if (i !== undefined) return el("button", { type: "button", class: "quiet", title: id, onclick: () => state.select(i) }, app.nodeName(graph, i));
    const [first, second, third] = id.split(/[._]/);
    if (id === "rest") return el("span", { class: "muted" }, "everything else");
    if (first === "head") return "L" + second + " head " + third;
    if (first === "E") return "the token";
    return second === "-1" ? "Error L" + first : "L" + first + " #" + second;
  }

  function pairsTable(graph, pairs, state) {
    const top = Math.max(...pairs.pairs.map((p) => Math.abs(p[2])));
    return el("div", { class: "pairs" },
      el("p", { class: "hint" }, "Reads " + pairs.key + " with weight " + app.number(pairs.pattern, 3) + ". Its score there, " + app.number(pairs.score, 3)
        + ", is the sum of one term per pair of what was written at the query and at the key; the largest:"),
      el("div", { class: "scroll", tabindex: "0" }, el("table", { class: "ledger" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "At the query"), el("th", { scope: "col" }, "At the key"), el("th", { scope: "col", class: "n" }, "Term"), el("td", {}))),
        el("tbody", {}, ...pairs.pairs.map(([query, key, term]) => el("tr", {}, el("td", {}, summand(graph, query, state)), el("td", {}, summand(graph, key, state)),
          el("td", { class: "n" }, app.number(term, 3)), el("td", { class: "bar" }, el("div", {}, el("i", { class: term < 0 ? "neg" : "", style: "width:" + (100 * Math.abs(term)) / top + "%" })))))))));
  }

  /* The heads that the strongest edges run through. */
  app.showHeads = function (box, graph, state) {
    if (!(graph.heads || []).length) {
      box.replaceChildren(el("p", { class: "hint" }, "This graph does not say through which heads its edges run."));
      return;
    }
    const top = graph.heads[0].influence || 1;
    const some = graph.heads.some((h) => h.pairs);
    box.replaceChildren(
      el("table", { class: "ledger heads" }, el("tbody", {}, ...graph.heads.slice(0, LISTED).flatMap((h) => {
        const more = h.pairs ? el("tr", { hidden: true }, el("td", { colspan: 5 }, pairsTable(graph, h.pairs, state))) : null;
        const open = h.pairs ? el("button", { type: "button", class: "quiet", "aria-expanded": "false", onclick: () => {
          more.hidden = !more.hidden;
          open.setAttribute("aria-expanded", String(!more.hidden));
        } }, h.name) : h.name;
        return [el("tr", {},
          el("th", { scope: "row" }, open), el("td", {}, "at " + h.query), el("td", { class: "n" }, app.number(h.influence, 3)),
          el("td", { class: "n" }, h.frequency === null ? "" : Math.round(100 * h.frequency) + "% of prompts"),
          el("td", { class: "bar" }, el("div", {}, el("i", { style: "width:" + (100 * h.influence) / top + "%" })))), more].filter(Boolean);
      }))),
      el("p", { class: "hint" }, "Influence that passes each head first, on its way from one node to another; values move, patterns are frozen. "
        + (some ? "Choose a head to see why it attends where it does." : graph.kind === "aggregate" ? "The percentage counts prompts in which a head has at least 1% of it. Graphs of single prompts also say why a head attends where it does." : "")));
  };

  /* The heads that bring a node its input, and those that read it, of the edges that are split over heads. */
  app.nodeHeads = function (graph, i) {
    const sides = [["Its input comes through", graph.incoming[i]], ["It is read by", graph.outgoing[i]]];
    const made = sides.map(([title, edges]) => [title, sums(graph, edges)]).filter(([, rows]) => rows.length);
    if (!made.length) return [];
    return [el("h3", {}, "Heads"), ...made.map(([title, rows]) => el("p", { class: "node-heads" }, title + " ",
      rows.slice(0, OF_NODE).map(([name, weight]) => name + " (" + (weight > 0 ? "+" : "") + app.number(weight, 3) + ")").join(", ")
      + (rows.length > OF_NODE ? ", …" : "")))];
  };

  function sums(graph, edges) {
    const of = new Map();
    for (const e of edges) {
      for (const [name, weight] of (graph.edge_heads || {})[e] || []) of.set(name, (of.get(name) || 0) + weight);
    }
    return [...of].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  }
})();
