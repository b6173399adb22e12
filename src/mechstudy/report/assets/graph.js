/* The graph page: state, filters, pointer and keyboard, search, and a link that restores the view. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const { el } = app;
  const root = document.getElementById("viewer");
  if (!root) return;
  const $ = (id) => document.getElementById(id);
  const base = $("g-base"), over = $("g-over"), tip = $("g-tip"), panel = $("g-detail"), box = $("g-box");
  const emptyPanel = panel.innerHTML; // our own markup, before any data
  let graph = null, edits = null, entries = [], view = { k: 1, x: 0, y: 0 }, frame = 0, dirty = false, moving = 0;
  const MOVING_EDGES = 900; // drawn while the view moves; all of them when it rests

  const state = {
    selected: -1, hover: -1, pins: new Set(), visible: new Uint8Array(0), shownEdges: [], rank: [], rankOf: 0,
    edgesOf(i) {
      const s = graph.edges.source, t = graph.edges.target;
      const first = (list) => [0, 1].flatMap((qk) => list.filter((e) => graph.edges.qk[e] === qk).slice(0, qk ? 20 : 60));
      return [...first(graph.incoming[i]), ...first(graph.outgoing[i])]
        .filter((e) => state.visible[s[e]] && state.visible[t[e]] && state.kindShown(e));
    },
    kindShown(e) {
      const sign = $("g-sign").value, raises = graph.edges.weight[e] > 0;
      return (!graph.edges.qk[e] || $("g-qk").checked) && (sign === "both" || raises === (sign === "raises"));
    },
    select(i) {
      state.selected = i;
      if (i >= 0) {
        reveal(i);
        app.showNode(panel, graph, i, state);
      } else {
        panel.innerHTML = emptyPanel;
        delete panel.dataset.node;
      }
      remember();
      redraw(false);
    },
    peek(i) { state.hover = i; redraw(false); },
    pin(i) {
      if (state.pins.has(i)) state.pins.delete(i); else state.pins.add(i);
      state.edited();
    },
    /* After a change of pins, labels or groups. */
    edited() {
      if ($("g-pinned").checked) filter();
      if (state.selected >= 0) app.showNode(panel, graph, state.selected, state);
      app.showSubgraph($("g-sub"), graph, edits, state);
      app.storeEdits(graph, edits.qParams(state.pins, -1));
      remember();
      redraw(false);
    },
    edits: () => edits,
  };
  /* For tests: the data, and where a node is on the canvas. */
  state.graph = () => graph;
  state.place = (id) => app.onScreen(graph, view, graph.index.get(id));
  window.mechstudyGraph = state;

  function redraw(all) {
    dirty = dirty || all;
    if (frame || !graph) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      if (dirty) app.drawBase(base, graph, view, state, moving ? MOVING_EDGES : Infinity);
      dirty = false;
      app.drawOverlay(over, graph, view, state);
    });
  }

  /* A redraw while the view moves: the strongest edges now, all of them when it has rested. */
  function move() {
    clearTimeout(moving);
    moving = setTimeout(() => { moving = 0; redraw(true); }, 140);
    redraw(true);
  }

  /* Which nodes pass the filters, and each one's strongest edges among them. */
  function filter() {
    const limit = Number($("g-influence").value) / 100;
    const k = Number($("g-topk").value), errors = $("g-errors").checked, biases = $("g-biases").checked;
    const only = $("g-pinned").checked && state.pins.size > 0, wanted = $("g-change").value;
    const changeOf = (i) => ({ gained: "gained", lost: "lost" })[graph.compared.changes[graph.nodes.change[i]]] || "both";
    const { type, share, density } = graph.nodes, n = type.length;
    const densest = Number($("g-density").value) < 0 ? 10 ** Number($("g-density").value) : Infinity;
    state.visible = new Uint8Array(n);
    let count = 0;
    for (let i = 0; i < n; i++) {
      const outer = type[i] === 2 || type[i] === 4;
      const allowed = (type[i] !== 1 || errors) && (type[i] !== 3 || biases) && (type[i] !== 0 || density[i] === null || density[i] <= densest);
      const asked = wanted === "all" || !graph.compared || outer || changeOf(i) === wanted;
      state.visible[i] = (only ? state.pins.has(i) : allowed && asked && (outer || share[i] <= limit)) ? 1 : 0;
      count += state.visible[i];
    }
    const { source, target, qk } = graph.edges;
    const incoming = [new Uint16Array(n), new Uint16Array(n)]; // of each kind
    state.shownEdges = [];
    for (let e = 0; e < source.length; e++) {
      if (!state.visible[source[e]] || !state.visible[target[e]]) continue;
      if (!state.kindShown(e) || (k && !only && incoming[qk[e]][target[e]] >= k)) continue;
      incoming[qk[e]][target[e]]++;
      state.shownEdges.push(e);
    }
    state.nodeCount = count;
    $("g-influence-out").textContent = $("g-influence").value + "%";
    $("g-density-out").textContent = densest === Infinity ? "100%" : app.number(100 * densest, densest < 0.001 ? 3 : 1) + "%";
    $("g-count").textContent = count.toLocaleString("en") + " of " + n.toLocaleString("en") + " nodes, "
      + state.shownEdges.length.toLocaleString("en") + " of " + source.length.toLocaleString("en") + " edges";
    redraw(true);
  }

  function fit() {
    const w = box.clientWidth, h = box.clientHeight;
    const inner = [w - 54, h - 40]; // the strips of layer names and tokens keep their size on the screen
    app.layout(graph, ...inner);
    const k = Math.min(1, inner[0] / graph.width, inner[1] / graph.height);
    if (k < 1) app.layout(graph, inner[0] / k, inner[1] / k); // what shrinks in one direction spreads in the other
    view = { k: Math.max(k, 0.1), x: 54, y: 0 };
    view.y = Math.max(0, (h - 40 - graph.height * view.k) / 2);
    redraw(true);
  }

  function zoom(factor, cx = box.clientWidth / 2, cy = box.clientHeight / 2) {
    const k = Math.min(6, Math.max(0.1, view.k * factor));
    view = { k, x: cx - ((cx - view.x) * k) / view.k, y: cy - ((cy - view.y) * k) / view.k };
    move();
  }

  /* Moves the view until a node is visible, and shows it if a filter hid it. */
  function reveal(i) {
    if (!state.visible[i]) {
      $("g-influence").value = Math.max(Number($("g-influence").value), Math.ceil(100 * graph.nodes.share[i]));
      if (graph.nodes.type[i] === 1) $("g-errors").checked = true;
      if (graph.nodes.type[i] === 3) $("g-biases").checked = true;
      $("g-pinned").checked = false;
      $("g-density").value = 0;
      $("g-change").value = "all";
      filter();
    }
    const [x, y] = app.onScreen(graph, view, i);
    const w = box.clientWidth, h = box.clientHeight;
    const dx = x < 60 ? 80 - x : x > w - 20 ? w - 60 - x : 0, dy = y < 12 ? 40 - y : y > h - 44 ? h - 80 - y : 0;
    if (dx || dy) { view.x += dx; view.y += dy; redraw(true); }
  }

  function showTip(i) {
    if (i < 0) { tip.hidden = true; return; }
    tip.replaceChildren(el("b", {}, app.nodeName(graph, i)), " " + app.nodePlace(graph, i));
    tip.hidden = false;
    const [x, y] = app.onScreen(graph, view, i);
    tip.style.left = Math.min(Math.max(4, x + 14), box.clientWidth - tip.offsetWidth - 4) + "px";
    tip.style.top = Math.max(2, y - tip.offsetHeight - 12) + "px";
  }

  function hover(i) {
    state.hover = i;
    showTip(i);
    redraw(false);
  }

  /* What the controls above the graph say, as text. */
  const CONTROLS = ["g-influence", "g-topk", "g-errors", "g-biases", "g-qk", "g-sign", "g-density", "g-change", "g-pinned"];
  const control = (id) => ($(id).type === "checkbox" ? String($(id).checked) : $(id).value);
  let defaults = {};
  function setControls(values) {
    for (const id of CONTROLS) {
      const value = values(id.slice(2));
      if (value === null || value === undefined) continue;
      if ($(id).type === "checkbox") $(id).checked = value === "true"; else $(id).value = value;
    }
  }

  function remember() {
    const parts = new URLSearchParams();
    parts.set("g", graph.slug);
    if (state.selected >= 0) parts.set("n", graph.nodes.id[state.selected]);
    if (state.pins.size) parts.set("pin", [...state.pins].map((i) => graph.nodes.id[i]).join(","));
    for (const id of CONTROLS) if (control(id) !== defaults[id]) parts.set(id.slice(2), control(id));
    const q = edits.qParams(state.pins, -1);
    if (q.supernodes.length) parts.set("supernodes", JSON.stringify(q.supernodes));
    if (q.clerps.length) parts.set("clerps", JSON.stringify(q.clerps));
    history.replaceState(null, "", "#" + parts.toString());
  }

  async function open(entry, wanted) {
    $("g-loading").hidden = false;
    try {
      graph = await app.load(entry.data);
    } catch (error) {
      $("g-loading").textContent = error.message;
      return;
    }
    $("g-loading").hidden = true;
    $("g-select").value = entry.data;
    state.selected = state.hover = -1;
    state.pins = new Set();
    const inner = graph.nodes.type.map((t, i) => [t, i]).filter(([t]) => t < 2).map(([, i]) => i);
    state.rank = new Int32Array(graph.nodes.type.length);
    inner.forEach((i, k) => { state.rank[i] = k; });
    state.rankOf = inner.length;
    $("g-influence").value = graph.nodes.type.length > 500 ? 80 : 100;
    defaults = Object.fromEntries(CONTROLS.map((id) => [id, initial[id]]));
    defaults["g-influence"] = $("g-influence").value;
    setControls((name) => wanted.get(name));
    $("g-density-box").hidden = !graph.nodes.density.some((d) => d !== null);
    fit();
    edits = new app.Edits(graph);
    state.pins = edits.take([wantedEdits(wanted), app.storedEdits(graph), graph.edits].find(app.isEdits) || app.noEdits).pins;
    app.showSubgraph($("g-sub"), graph, edits, state);
    filter();
    app.showFacts($("g-facts"), graph);
    app.showLedger($("g-ledger"), graph);
    app.showHeads($("g-heads"), graph, state);
    root.querySelectorAll(".compared").forEach((part) => { part.hidden = !graph.compared; });
    root.querySelectorAll(".alone").forEach((part) => { part.hidden = Boolean(graph.compared); });
    $("g-ledger").parentElement.hidden = Boolean(graph.compared); // two graphs have two ledgers
    $("g-qk").parentElement.hidden = $("g-qk-key").hidden = !graph.edges.qk.includes(1);
    selectWanted(wanted);
    root.dataset.ready = graph.slug;
  }

  /* The edits of an address; null where it has none. */
  function wantedEdits(wanted) {
    const fields = ["pin", "supernodes", "clerps"];
    if (!fields.some((field) => wanted.has(field))) return null;
    const list = (field) => { try { return JSON.parse(wanted.get(field) || "[]"); } catch { return []; } };
    return { pinnedIds: (wanted.get("pin") || "").split(",").filter(Boolean), supernodes: list("supernodes"), clerps: list("clerps") };
  }

  function fromHash() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const entry = entries.find((e) => e.slug === wanted.get("g")) || entries[0];
    if (!entry) return;
    if (graph && graph.slug === entry.slug) {
      setControls((name) => wanted.get(name));
      const given = wantedEdits(wanted);
      if (app.isEdits(given)) state.pins = edits.take(given).pins;
      app.showSubgraph($("g-sub"), graph, edits, state);
      filter();
      selectWanted(wanted);
    }
    else open(entry, wanted);
  }

  function selectWanted(wanted) {
    const node = graph.index.get(wanted.get("n") || "");
    state.select(node === undefined ? -1 : node);
  }

  function point(event) {
    const rect = over.getBoundingClientRect();
    return [event.clientX - rect.left, event.clientY - rect.top];
  }

  function at(event) {
    const [px, py] = point(event);
    return app.nodeAt(graph, (px - view.x) / view.k, (py - view.y) / view.k, Math.max(9, 10 / view.k), state.visible);
  }

  let drag = null;
  over.addEventListener("pointerdown", (event) => {
    if (!graph) return;
    drag = { at: point(event), x: view.x, y: view.y, moved: false };
    over.setPointerCapture(event.pointerId);
  });
  over.addEventListener("pointermove", (event) => {
    if (!graph) return;
    if (drag) {
      const [px, py] = point(event);
      if (Math.hypot(px - drag.at[0], py - drag.at[1]) > 4) drag.moved = true;
      if (drag.moved) { view.x = drag.x + px - drag.at[0]; view.y = drag.y + py - drag.at[1]; showTip(-1); move(); }
      return;
    }
    const i = at(event);
    over.classList.toggle("over-node", i >= 0);
    if (i !== state.hover) hover(i);
  });
  over.addEventListener("pointerup", (event) => {
    const moved = drag && drag.moved;
    drag = null;
    if (graph && !moved) state.select(at(event));
  });
  over.addEventListener("pointercancel", () => { drag = null; });
  over.addEventListener("pointerleave", () => hover(-1));
  over.addEventListener("wheel", (event) => {
    if (!graph || !(event.ctrlKey || event.metaKey)) return; // a plain wheel scrolls the page
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.0022), ...point(event));
  }, { passive: false });

  const ARROWS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };
  let cursor = -1;
  over.addEventListener("keydown", (event) => {
    if (!graph) return;
    if (ARROWS[event.key]) {
      if (cursor < 0 || !state.visible[cursor]) cursor = state.selected >= 0 ? state.selected : state.visible.indexOf(1);
      else cursor = app.neighbour(graph, cursor, ARROWS[event.key], state.visible);
      reveal(cursor);
      hover(cursor);
    } else if (event.key === "Enter" || event.key === " ") {
      if (cursor >= 0) state.select(cursor);
    } else if (event.key.toLowerCase() === "p") {
      const i = state.hover >= 0 ? state.hover : state.selected;
      if (i >= 0) state.pin(i);
    } else if (event.key === "Escape") {
      cursor = -1;
      hover(-1);
      state.select(-1);
    } else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  over.addEventListener("blur", () => { cursor = -1; hover(-1); });

  /* Search by feature number, layer/feature, node id or any token of a label. */
  const search = $("g-search"), results = $("g-results");
  let matches = [], chosen = 0;
  function find() {
    const query = search.value.trim().toLowerCase().replaceAll(" ", "·");
    matches = [];
    if (graph && query) {
      const { id, layer, feature, label } = graph.nodes;
      for (let i = 0; i < id.length && matches.length < 40; i++) {
        const keys = [id[i], label[i], feature[i] === null ? "" : layer[i] + "/" + feature[i] + " #" + feature[i]];
        if (keys.some((s) => String(s).toLowerCase().replaceAll(" ", "·").includes(query))) matches.push(i);
      }
    }
    chosen = 0;
    results.hidden = !query;
    search.setAttribute("aria-expanded", String(!results.hidden));
    results.replaceChildren(...(matches.length ? matches.map((i, k) => el("li", {
      role: "option", id: "g-option-" + k, "aria-selected": String(k === chosen), onmousedown: (event) => { event.preventDefault(); pick(k); },
    }, app.nodeName(graph, i) + " " + app.nodePlace(graph, i))) : [el("li", {}, "No node matches.")]));
  }
  function pick(k) {
    if (matches[k] === undefined) return;
    state.select(matches[k]);
    results.hidden = true;
    search.setAttribute("aria-expanded", "false");
  }
  $("g-pin-found").addEventListener("click", () => {
    if (!graph) return;
    find();
    if (!matches.length) { search.focus(); return; } // the list says that nothing matches
    matches.forEach((i) => state.pins.add(i));
    results.hidden = true;
    search.setAttribute("aria-expanded", "false");
    state.edited();
  });
  search.addEventListener("input", find);
  search.addEventListener("blur", () => { results.hidden = true; });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; find(); }
    else if (event.key === "Enter") pick(chosen);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      chosen = Math.min(matches.length - 1, Math.max(0, chosen + (event.key === "ArrowDown" ? 1 : -1)));
      [...results.children].forEach((li, k) => li.setAttribute("aria-selected", String(k === chosen)));
      if (results.children[chosen]) results.children[chosen].scrollIntoView({ block: "nearest" });
      search.setAttribute("aria-activedescendant", "g-option-" + chosen);
      event.preventDefault();
    }
  });

  const initial = Object.fromEntries(CONTROLS.map((id) => [id, control(id)]));
  for (const id of CONTROLS) $(id).addEventListener("input", () => { if (graph) { filter(); remember(); } });
  $("g-full").hidden = !document.fullscreenEnabled;
  $("g-full").addEventListener("click", () => { if (document.fullscreenElement) document.exitFullscreen(); else root.requestFullscreen(); });
  document.addEventListener("fullscreenchange", () => { $("g-full").textContent = document.fullscreenElement ? "Leave full screen" : "Full screen"; });
  $("g-in").addEventListener("click", () => zoom(1.3));
  $("g-out").addEventListener("click", () => zoom(1 / 1.3));
  $("g-fit").addEventListener("click", () => { if (graph) fit(); });
  $("g-select").addEventListener("change", () => open(entries.find((e) => e.data === $("g-select").value), new URLSearchParams()));
  window.addEventListener("hashchange", fromHash);
  app.onTheme(() => redraw(true));
  new ResizeObserver(() => { if (graph) fit(); }).observe(box);

  app.load(root.dataset.graphs).then((index) => {
    entries = index.graphs;
    $("g-select").append(...entries.map((e) => el("option", { value: e.data }, e.label)));
    fromHash();
  }).catch((error) => { $("g-loading").textContent = error.message; });
})();
