/* What a reader makes of a graph: labels, groups (supernodes) and pins; kept in the address, the browser and files. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const { el, svg } = app;
  const FEATURE = 0, TOKEN = 2, BIAS = 3, OUTPUT = 4;

  /* Whether something has the form of edits: at least one of its lists, and each of the right form. */
  app.isEdits = (q) => Boolean(q) && typeof q === "object" && ["pinnedIds", "supernodes", "clerps"].some((f) => f in q)
    && (q.pinnedIds === undefined || (Array.isArray(q.pinnedIds) && q.pinnedIds.every((id) => typeof id === "string")))
    && ["supernodes", "clerps"].every((f) => q[f] === undefined || (Array.isArray(q[f])
      && q[f].every((row) => Array.isArray(row) && row.length > 1 && row.every((x) => typeof x === "string"))));
  const NONE = { pinnedIds: [], supernodes: [], clerps: [] };
  app.noEdits = NONE;
  const filled = (q) => ["pinnedIds", "supernodes", "clerps"].some((f) => ((q || {})[f] || []).length);

  /* Edits of one graph. `qParams` is Neuronpedia's form of them. */
  app.Edits = class {
    constructor(graph) {
      this.graph = graph;
      this.own = graph.nodes.label.slice();
      this.labels = new Map();
      this.groups = [];
    }

    label(i, text) {
      const wanted = text.trim();
      if (!wanted || wanted === this.own[i]) this.labels.delete(i); else this.labels.set(i, wanted);
      this.graph.nodes.label[i] = this.labels.get(i) || this.own[i];
    }

    groupOf(i) { return this.groups.find((g) => g.members.includes(i)); }

    /* A node is in one group at most; groups that are left empty go. */
    group(name, members) {
      const chosen = [...new Set(members)];
      for (const g of this.groups) g.members = g.members.filter((i) => !chosen.includes(i));
      if (chosen.length) this.groups.push({ name, members: chosen });
      this.groups = this.groups.filter((g) => g.members.length);
    }

    ungroup(group) { this.groups = this.groups.filter((g) => g !== group); }

    clear() {
      for (const i of this.labels.keys()) this.graph.nodes.label[i] = this.own[i];
      this.labels.clear();
      this.groups = [];
    }

    qParams(pins, selected) {
      const id = this.graph.nodes.id;
      return {
        pinnedIds: [...pins].map((i) => id[i]),
        supernodes: this.groups.map((g) => [g.name, ...g.members.map((i) => id[i])]),
        clerps: [...this.labels].map(([i, text]) => [id[i], text]),
        linkType: "both",
        clickedId: selected >= 0 ? id[selected] : "",
        sg_pos: "",
      };
    }

    /* Takes what `qParams` gives; unknown nodes are left out and counted. What is not edits changes nothing. */
    take(q) {
      if (!app.isEdits(q)) throw new Error("it holds no pins, groups or labels");
      this.clear();
      const index = this.graph.index, pins = new Set();
      let unknown = 0;
      const known = (ids) => (ids || []).map((id) => index.get(String(id))).filter((i) => {
        if (i === undefined) unknown++;
        return i !== undefined;
      });
      for (const i of known(q.pinnedIds)) pins.add(i);
      for (const [name, ...ids] of q.supernodes || []) {
        const members = known(ids);
        if (members.length) this.group(String(name), members);
        members.forEach((i) => pins.add(i));
      }
      for (const [id, text] of q.clerps || []) for (const i of known([id])) this.label(i, String(text));
      return { pins, unknown };
    }
  };

  /* Replacement and completeness of the pinned features in the drawn graph, everything else counted as error: what
     `drawn_scores` computes in Python. */
  app.pinnedScores = function (graph, pins) {
    const { type } = graph.nodes, { source, target, weight, qk } = graph.edges;
    const into = new Map();
    for (let e = 0; e < source.length; e++) {
      if (qk[e] || type[source[e]] === BIAS) continue;
      if (!into.has(target[e])) into.set(target[e], []);
      into.get(target[e]).push([source[e], Math.abs(weight[e])]);
    }
    const outputs = type.map((t, i) => [t, i]).filter(([t]) => t === OUTPUT).map(([, i]) => i);
    const through = (i) => type[i] === FEATURE && pins.has(i);
    const order = [], state = new Map(); // targets before sources
    const visit = (start) => {
      const stack = [[start, 0]];
      while (stack.length) {
        const top = stack[stack.length - 1], edges = into.get(top[0]) || [];
        if (top[1] === 0) state.set(top[0], 1);
        if (top[1] < edges.length) {
          const next = edges[top[1]++][0];
          if (through(next) && !state.has(next)) stack.push([next, 0]);
        } else { state.set(top[0], 2); order.push(top[0]); stack.pop(); }
      }
    };
    outputs.forEach((i) => { if (!state.has(i)) visit(i); });
    const passed = new Float64Array(type.length);
    const weights = graph.output_weights || {};
    let tokens = 0, errors = 0, total = 0;
    for (const i of order.reverse()) {
      const own = type[i] !== OUTPUT ? 0 : outputs.length === 1 ? 1 : weights[graph.nodes.id[i]] || 0;
      const arrived = own + passed[i];
      total += arrived;
      const edges = into.get(i) || [], whole = edges.reduce((sum, [, w]) => sum + w, 0);
      if (!whole) continue;
      for (const [s, w] of edges) {
        const share = (arrived * w) / whole;
        if (through(s)) passed[s] += share; else if (type[s] === TOKEN) tokens += share; else errors += share;
      }
    }
    const both = tokens + errors;
    return { replacement: both > 0 ? tokens / both : 0, completeness: total > 0 ? 1 - errors / total : 0 };
  };

  /* Groups, and pinned nodes in none, as boxes; edges between boxes are summed. */
  function boxes(graph, edits, pins) {
    const made = edits.groups.map((g) => ({ name: g.name, members: g.members, group: g }));
    const inGroup = new Set(made.flatMap((b) => b.members));
    for (const i of pins) if (!inGroup.has(i)) made.push({ name: app.nodeName(graph, i), members: [i], group: null });
    const of = new Map();
    made.forEach((b, k) => b.members.forEach((i) => of.set(i, k)));
    const links = new Map();
    const { source, target, weight, qk } = graph.edges;
    for (let e = 0; e < source.length; e++) {
      const s = of.get(source[e]), t = of.get(target[e]);
      if (qk[e] || s === undefined || t === undefined || s === t) continue;
      links.set(s + ":" + t, (links.get(s + ":" + t) || 0) + weight[e]);
    }
    return { made, links: [...links].map(([key, w]) => { const [s, t] = key.split(":"); return { source: +s, target: +t, weight: w }; }) };
  }
  app.subgraph = boxes;

  /* The picture of `boxes`: columns by token, rows by layer, nothing over anything else. */
  app.drawSubgraph = function (graph, edits, pins, select) {
    const { made, links } = boxes(graph, edits, pins);
    const mean = (b, values) => b.members.reduce((sum, i) => sum + values[i], 0) / b.members.length;
    made.forEach((b) => { b.row = mean(b, graph.nodes.row); b.column = mean(b, graph.nodes.column); });
    const lines = [...new Set(made.map((b) => Math.round(b.row)))].sort((a, b) => b - a);
    const W = 158, H = 34, GAP = 14, rows = lines.map((line) => made.filter((b) => Math.round(b.row) === line).sort((a, b) => a.column - b.column));
    const width = Math.max(...rows.map((r) => r.length)) * (W + GAP) + GAP, height = rows.length * (H + 34) + GAP;
    rows.forEach((r, y) => r.forEach((b, x) => { b.x = (width - r.length * (W + GAP)) / 2 + x * (W + GAP) + GAP / 2; b.y = GAP + y * (H + 34); }));
    const top = links.reduce((m, l) => Math.max(m, Math.abs(l.weight)), 1e-12);
    const drawn = links.map((l) => {
      const a = made[l.source], b = made[l.target];
      const line = svg("path", {
        d: `M${a.x + W / 2} ${a.y}C${a.x + W / 2} ${a.y - 24} ${b.x + W / 2} ${b.y + H + 24} ${b.x + W / 2} ${b.y + H}`,
        class: "sg-link " + (l.weight > 0 ? "pos" : "neg"), "stroke-width": (0.8 + 4 * Math.abs(l.weight) / top).toFixed(2),
      });
      line.append(svg("title", {}, a.name + " → " + b.name + ": " + app.number(l.weight, 3)));
      return line;
    });
    const nodes = made.map((b) => {
      const shown = [...b.name], text = shown.length > 21 ? shown.slice(0, 20).join("") + "…" : b.name;
      const node = svg("g", { class: "sg-node" + (b.group ? " sg-group" : ""), tabindex: "0", role: "button", "aria-label": b.name + (b.group ? ", " + b.members.length + " nodes" : "") },
        svg("rect", { x: b.x, y: b.y, width: W, height: H, rx: 8 }),
        svg("text", { x: b.x + W / 2, y: b.y + (b.group ? 15 : 21), "text-anchor": "middle" }, text));
      if (b.group) node.append(svg("text", { x: b.x + W / 2, y: b.y + 28, "text-anchor": "middle", class: "sg-count" }, b.members.length + (b.members.length === 1 ? " node" : " nodes")));
      node.append(svg("title", {}, b.members.map((i) => app.nodeName(graph, i) + " " + app.nodePlace(graph, i)).join("\n")));
      node.addEventListener("click", () => select(b.members[0]));
      node.addEventListener("keydown", (event) => { if (event.key === "Enter") select(b.members[0]); });
      return node;
    });
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, style: `max-width:${width}px`, role: "group", "aria-label": "Pinned nodes and groups" }, ...drawn, ...nodes);
  };

  /* The section below the graph: scores, groups, the picture, and what keeps them. */
  app.showSubgraph = function (root, graph, edits, state) {
    const n = [...state.pins].length;
    if (!n && !edits.groups.length && !edits.labels.size) {
      root.replaceChildren(el("p", { class: "hint" }, "Nothing pinned. Select a node and press P, or pin all that a search finds; then group what belongs together. Labels can be edited in a node's panel."),
        el("div", { class: "sg-tools", role: "group", "aria-label": "Grouping" }, alike(graph, edits, state, []), files(root, graph, edits, state)));
      return;
    }
    const scores = app.pinnedScores(graph, state.pins), free = [...state.pins].filter((i) => graph.nodes.type[i] === FEATURE && !edits.groupOf(i));
    const changed = (act) => () => { act(); state.edited(); };
    const name = (g) => el("input", {
      type: "text", value: g.name, "aria-label": "Name of group " + g.name, maxlength: 80,
      onchange: (event) => changed(() => { g.name = event.target.value.trim() || g.name; })(),
    });
    const scored = graph.kind === "prompt" ? el("p", { id: "g-pinned-scores" }, "The pinned features alone: replacement ", el("b", {}, app.number(scores.replacement, 3)),
      ", completeness ", el("b", {}, app.number(scores.completeness, 3)), ", with every other drawn node counted as error.") : "";
    root.replaceChildren(
      scored,
      el("div", { class: "sg-tools", role: "group", "aria-label": "Grouping" },
        el("button", { type: "button", disabled: free.length < 2, onclick: changed(() => edits.group("Group " + (edits.groups.length + 1), free)) }, free.length ? "Group the " + free.length + " free features" : "Group the free features"),
        el("button", { type: "button", disabled: new Set(free.map((i) => graph.nodes.column[i])).size === free.length, onclick: changed(() => byToken(graph, edits, free)) }, "Group them by token"),
        alike(graph, edits, state, free),
        el("button", { type: "button", onclick: changed(() => { edits.clear(); state.pins.clear(); }) }, "Clear all"), files(root, graph, edits, state)),
      edits.groups.length ? el("ul", { class: "sg-groups" }, ...edits.groups.map((g) => el("li", {}, name(g), " " + g.members.length + " nodes ",
        el("button", { type: "button", onclick: changed(() => edits.ungroup(g)) }, "Ungroup")))) : "",
      n || edits.groups.length ? el("div", { class: "sg-picture" }, app.drawSubgraph(graph, edits, state.pins, state.select)) : "");
  };

  /* A button that groups free pins by the automatic groups; with nothing pinned it starts from the most influential groups. */
  const LARGEST = 8;
  function alike(graph, edits, state, free) {
    const groups = (graph.alike || []).map((ids) => ids.map((id) => graph.index.get(id)).filter((i) => i !== undefined));
    const strength = (i) => 1 - graph.nodes.share[i];
    const sum = (members) => members.reduce((total, i) => total + strength(i), 0);
    const fresh = !state.pins.size;
    const chosen = (fresh ? groups.sort((a, b) => sum(b) - sum(a)).slice(0, LARGEST) : groups.map((g) => g.filter((i) => free.includes(i)))).filter((g) => g.length > 1);
    const act = () => {
      for (const members of chosen) {
        const layers = members.map((i) => graph.nodes.layer[i]), low = Math.min(...layers), high = Math.max(...layers);
        const columns = [...new Set(members.map((i) => graph.nodes.column[i]))];
        const at = columns.length === 1 ? graph.columns[columns[0]].label : columns.length + " tokens";
        const [first] = [...members].sort((a, b) => strength(b) - strength(a));
        edits.group("L" + (low === high ? low : low + "–" + high) + " at " + at + (graph.nodes.label[first] ? ": " + graph.nodes.label[first] : ""), members);
        members.forEach((i) => state.pins.add(i));
      }
      state.edited();
    };
    return el("button", { type: "button", disabled: !chosen.length, onclick: act }, fresh ? "Start from the largest automatic groups" : "Group what is alike");
  }

  function byToken(graph, edits, free) {
    const columns = new Map();
    for (const i of free) columns.set(graph.nodes.column[i], [...(columns.get(graph.nodes.column[i]) || []), i]);
    for (const [column, members] of columns) if (members.length > 1) edits.group("at " + graph.columns[column].label, members);
  }

  /* Buttons that write a file of the edits, and read one. */
  function files(root, graph, edits, state) {
    const said = el("span", { role: "status", class: "hint" });
    const input = el("input", {
      type: "file", accept: ".json", hidden: true,
      onchange: async () => {
        if (!input.files.length) return;
        said.textContent = "";
        try {
          const read = JSON.parse(await input.files[0].text());
          const given = Object(read).qParams || read;
          if (!filled(given)) throw new Error("it holds no pins, groups or labels");
          const { pins, unknown } = edits.take(given);
          state.pins = pins;
          state.edited();
          const other = read.slug && read.slug !== graph.slug ? "The file is of another graph, " + read.slug + ". " : "";
          if (other || unknown) root.append(el("p", { class: "hint", role: "status" }, other + unknown + " of its nodes are not drawn in this graph."));
        } catch (error) {
          said.textContent = input.files[0].name + " is no file of edits (" + (error instanceof SyntaxError ? "it is not JSON" : error.message) + "); nothing was changed.";
        }
        input.value = "";
      },
    });
    const download = (text, type, ending) => {
      const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: (graph.slug || "graph") + ending });
      link.click();
      URL.revokeObjectURL(link.href);
    };
    const save = () => {
      download(JSON.stringify({ slug: graph.slug, behaviour: graph.behaviour, qParams: edits.qParams(state.pins, state.selected) }, null, 1), "application/json", ".edits.json");
    };
    const picture = () => {
      const drawn = root.querySelector(".sg-picture svg");
      if (!drawn) return;
      const copy = drawn.cloneNode(true), colour = (name) => app.colour(name);
      copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
      const style = document.createElementNS("http://www.w3.org/2000/svg", "style");
      style.textContent = `text{font:12px sans-serif;fill:${colour("ink")}}.sg-count{font-size:10px}rect{fill:${colour("paper")};stroke:${colour("effect")}}.sg-link{fill:none}.pos{stroke:${colour("pos")}}.neg{stroke:${colour("neg")};stroke-dasharray:5 3}`;
      copy.prepend(style);
      download(new XMLSerializer().serializeToString(copy), "image/svg+xml", ".subgraph.svg");
    };
    return el("span", { class: "sg-files" }, el("button", { type: "button", onclick: picture }, "Save picture"), el("button", { type: "button", onclick: save }, "Save edits"),
      el("button", { type: "button", onclick: () => input.click() }, "Load edits"), input, said);
  }

  /* Edits in the browser's storage, where it has one for this page. */
  const key = (graph) => "mechstudy:" + location.pathname + "#" + graph.slug;
  app.storedEdits = function (graph) {
    try {
      const kept = JSON.parse(localStorage.getItem(key(graph)) || "null");
      return app.isEdits(kept) ? kept : null;
    } catch { return null; }
  };
  app.storeEdits = function (graph, q) {
    try {
      if (filled(q) || filled(graph.edits)) localStorage.setItem(key(graph), JSON.stringify(q));
      else localStorage.removeItem(key(graph));
    } catch { /* no storage here: the address keeps them */ }
  };
})();
