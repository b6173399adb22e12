/* A feature's record as elements (shared with the graph page), and the features page. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const { el, svg } = app;
  const PAGE = 200;

  function logitList(rows, down) {
    const top = Math.max(1e-9, ...rows.map((r) => Math.abs(r[1] || 0)));
    return el("ul", { class: "logits" }, ...rows.map(([token, value]) => el("li", { class: down ? "down" : "" },
      el("i", { style: "width:" + (100 * Math.abs(value || 0)) / top + "%" }),
      el("span", {}, app.visible(token)), el("b", {}, app.number(value)))));
  }

  function exampleItem(example, max) {
    const line = el("li", {}, el("span", { class: "ex-meta" },
      app.number(example.a[example.p]) + (example.d === null || example.d === undefined ? "" : " · document " + example.d)));
    if (example.cut[0]) line.append("… ");
    example.t.forEach((token, i) => {
      const share = max > 0 ? Math.min(1, Math.abs(example.a[i]) / max) : 0;
      const colour = example.a[i] < 0 ? "--cold" : "--hot";
      line.append(el("span", {
        class: "ex-tok" + (i === example.p ? " ex-peak" : ""), title: share > 0 ? app.number(example.a[i], 3) : null,
        style: share > 0 ? "background:rgba(var(" + colour + ")," + (0.12 + 0.68 * share).toFixed(2) + ")" : null,
      }, app.visible(token)), document.createElement("wbr"));
    });
    if (example.cut[1]) line.append(" …");
    return line;
  }

  const bound = (value) => String(Number(value.toPrecision(3))).replace("-", "−");
  const between = (low, high) => bound(low) + " to " + bound(high);
  const activations = (count) => (count || "no").toLocaleString("en") + (count === 1 ? " activation" : " activations");
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);

  function shareOf(count, total) {
    const percent = (100 * count) / total;
    if (!count) return "none";
    return percent < 0.1 ? "under 0.1%" : percent.toFixed(percent < 10 ? 1 : 0) + "%";
  }

  /* How many activations are in each bin, on a logarithmic scale, with the intervals as bands; "" where nothing is known. */
  function histogram(record) {
    const { bin_width: width, positive, negative } = record.histogram || { positive: [], negative: [] };
    const bins = positive.length + negative.length, total = sum(positive) + sum(negative), height = 60;
    if (!total) return "";
    const place = (value) => value / width + negative.length;
    const scale = height / Math.log1p(Math.max(...positive, ...negative));
    const bar = (start, count) => svg("rect", {
      class: "hist-bar", x: start + negative.length + 0.06, width: 0.88, y: height - scale * Math.log1p(count), height: scale * Math.log1p(count),
    }, svg("title", {}, between(start * width, (start + 1) * width) + ": " + count.toLocaleString("en")));
    const bands = record.intervals.filter((_, i) => i % 2).map((one) =>
      svg("rect", { class: "hist-band", x: place(one.low), width: (one.high - one.low) / width, y: 0, height }));
    const ends = [0 - negative.length * width, positive.length * width];
    const apart = (a, b) => a === b || Math.abs(place(a) - place(b)) > bins / 12;
    const inner = negative.length ? [0] : record.intervals.map((one) => one.low);
    const marks = [...new Set([ends[0], ...inner.filter((value) => ends.every((end) => apart(end, value))), ends[1]])].sort((a, b) => a - b);
    const shares = record.intervals.map((one) => shareOf(one.count, total) + " from " + between(one.low, one.high)).join(", ");
    return el("figure", { class: "hist" },
      svg("svg", { viewBox: "0 0 " + bins + " " + height, preserveAspectRatio: "none", role: "img", "aria-label": "Histogram of activations: " + shares },
        ...bands, ...negative.map((count, i) => bar(-i - 1, count)), ...positive.map((count, i) => bar(i, count))),
      el("div", { class: "hist-axis", "aria-hidden": "true" }, ...marks.map((value) =>
        el("span", { style: "left:" + (100 * place(value)) / bins + "%" }, bound(value)))),
      el("figcaption", {}, activations(total) + " by value, counts on a logarithmic scale. Bands mark the intervals."));
  }

  /* Examples of each interval, folded. */
  function intervalItems(record, max) {
    const total = sum(record.intervals.map((one) => one.count));
    return record.intervals.map((one) => el("details", { class: "interval" },
      el("summary", {}, between(one.low, one.high) + " ", el("span", { class: "count" }, activations(one.count) + (one.count ? ", " + shareOf(one.count, total) : ""))),
      one.examples.length ? el("ul", { class: "examples" }, ...one.examples.map((e) => exampleItem(e, max))) : ""));
  }

  /* Histogram, logits and examples of a feature; `few` limits the top examples. */
  app.featureBody = function (record, few) {
    const max = record.max || Math.max(0, ...record.examples.map((e) => e.a[e.p]));
    const shown = record.examples.slice(0, few || record.examples.length);
    const counted = histogram(record), drawn = intervalItems(record, max);
    return [
      el("div", { class: "f-columns" },
        el("div", {}, el("h3", {}, "Raises these tokens"), logitList(record.top, false)),
        el("div", {}, el("h3", {}, "Lowers these tokens"), logitList(record.bottom, true))),
      ...(counted ? [el("h3", {}, "Activations"), counted] : []),
      el("h3", {}, "Top activating text"),
      shown.length ? el("ul", { class: "examples" }, ...shown.map((e) => exampleItem(e, max)))
        : el("p", { class: "hint" }, record.frequency === null ? "No text was searched for it." : "It never fired on the corpus."),
      ...(drawn.length ? [el("h3", {}, "Text from each interval"), el("p", { class: "hint" }, "Drawn at random, at most one of a document."), ...drawn] : []),
    ];
  };

  /* How far the rule of what it fires on can be relied on. */
  function ruleFacts(rule) {
    if (!rule.rule) return [["Rule", rule.n ? "none that recurs" : "none: too few strong activations"]];
    const score = app.number(rule.score, 2) + " on other documents, against hard negatives (0.5 is chance)";
    const other = rule.shuffled === null ? "" : "; another feature's rule " + app.number(rule.shuffled, 2);
    const shares = "holds for " + app.number(100 * rule.recall, 0) + "% of " + rule.n + " strong activations; where it holds, "
      + app.number(100 * rule.precision, 0) + "% are strong";
    const where = rule.sign < 0 ? "below zero " : "";
    return [[rule.claimed ? "Rule" : "Best rule, not claimed", where + rule.rule], ["Score", score + other], ["Shares", shares]];
  }

  /* A label that somebody else gave. */
  function askedFacts(asked) {
    const rows = [["Label by", asked.model], ["It says", asked.label]];
    if (asked.score !== null) rows.push(["Its score", app.number(asked.score, 2) + ", judged by the same model (0.5 is chance)"
      + (asked.shuffled === null ? "" : "; another feature's label " + app.number(asked.shuffled, 2))]);
    return rows;
  }

  app.featureFacts = function (record) {
    const share = record.frequency;
    if (share === null) return "";
    const rows = [
      ["Fires on", app.number(100 * share, share < 0.001 ? 4 : 2) + "% of tokens"],
      ["Activation", "mean " + app.number(record.mean) + (record.kind === "neurons" ? ", largest size " : ", max ") + app.number(record.max)],
    ];
    if (record.asked) rows.push(...askedFacts(record.asked));
    if (record.rule) rows.push(...ruleFacts(record.rule));
    return app.facts(rows);
  };

  /* A feature's record; null where the report has none. */
  app.feature = async function (layer, feature) {
    const records = await app.load("features-L" + layer).catch(() => ({}));
    return records[feature] || null;
  };

  const root = document.getElementById("features");
  if (!root) return;
  const search = document.getElementById("f-search");
  const circuit = document.getElementById("f-circuit");
  const list = document.getElementById("f-list");
  const detail = document.getElementById("f-detail");
  const more = document.getElementById("f-more");
  let rows = [];
  let limit = PAGE;

  function matching() {
    const query = search.value.trim().toLowerCase().replaceAll(" ", "·");
    return rows.filter((r) => (!circuit.value || circuit.value in r.graphs)
      && (!query || (r.layer + "/" + r.feature).includes(query) || r.label.toLowerCase().replaceAll(" ", "·").includes(query)));
  }

  function drawList() {
    const matches = matching();
    const current = decodeURIComponent(location.hash.slice(1));
    list.replaceChildren(...matches.slice(0, limit).map((r) => {
      const key = r.layer + "/" + r.feature;
      return el("li", {}, el("a", { href: "#" + key, "aria-current": key === current ? "true" : null, title: r.label },
        el("b", {}, key), r.label));
    }));
    document.getElementById("f-count").textContent = matches.length + " of " + rows.length + " features";
    more.hidden = matches.length <= limit;
  }

  async function show() {
    const key = decodeURIComponent(location.hash.slice(1)) || (rows[0] && rows[0].layer + "/" + rows[0].feature) || "";
    const [layer, feature] = key.split("/");
    list.querySelectorAll("a").forEach((a) => {
      if (a.getAttribute("href") === "#" + key) a.setAttribute("aria-current", "true");
      else a.removeAttribute("aria-current");
    });
    const record = await app.feature(layer, feature);
    if (!record) {
      detail.replaceChildren(el("p", {}, "No feature " + key + " in this report: it is in no circuit."));
      return;
    }
    const graphs = Object.entries(record.graphs).map(([name, g]) => [name.replaceAll("_", " "),
      "influence " + app.number(g.influence, 4) + ", in " + app.number(100 * (g.frequency || 0), 0)
        + "% of graphs, at " + ((g.positions || []).join(", ") || "no position")]);
    detail.replaceChildren(
      el("h2", {}, "Layer " + layer + (record.kind === "neurons" ? ", neuron " : ", feature ") + feature),
      el("p", { class: "f-label" }, (record.kind || "").replaceAll("_", " ") + (record.label ? " · " + record.label : "")),
      app.featureFacts(record),
      el("h3", {}, "In these circuits"), graphs.length ? app.facts(graphs) : el("p", { class: "hint" }, "None."),
      ...app.featureBody(record));
    detail.dataset.feature = key;
  }

  for (const control of [search, circuit]) control.addEventListener("input", () => { limit = PAGE; drawList(); });
  more.addEventListener("click", () => { limit += PAGE; drawList(); });
  window.addEventListener("hashchange", show);
  app.load("features-index").then((index) => {
    rows = index;
    const names = [...new Set(rows.flatMap((r) => Object.keys(r.graphs)))];
    circuit.append(...names.map((n) => el("option", { value: n }, n.replaceAll("_", " "))));
    drawList();
    show();
  }).catch((error) => { detail.textContent = error.message; });
})();
