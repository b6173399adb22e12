/* Draws a laid-out graph on two canvases: a base of faint edges and nodes, and an overlay for the node in focus. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const BUCKETS = 5;
  const FEATURE = 0, ERROR = 1, TOKEN = 2, BIAS = 3, LOGIT = 4;

  function palette() {
    const names = ["control", "pos", "neg", "ink", "muted", "paper", "effect", "compare", "pattern", "line", "axis", "accent", "focus", "raised"];
    return Object.fromEntries(names.map((n) => [n, app.colour(n)]));
  }

  function prepare(canvas) {
    const ratio = window.devicePixelRatio || 1;
    const w = canvas.clientWidth, h = canvas.clientHeight;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, w, h);
    return { context, w, h };
  }

  function curve(context, graph, view, e) {
    const s = graph.edges.source[e], t = graph.edges.target[e];
    const [x1, y1] = app.onScreen(graph, view, s), [x2, y2] = app.onScreen(graph, view, t);
    const middle = (y1 + y2) / 2;
    context.moveTo(x1, y1);
    const round = Math.abs(x1 - x2) < 8 && y1 - y2 > 40 * view.k ? Math.min(60, 0.16 * (y1 - y2)) : 0; // same column: go round
    const bow = round + (graph.edges.qk[e] ? 16 : 0); // beside the value edge of the same nodes
    context.bezierCurveTo(x1 - bow, middle, x2 - bow, middle, x2, y2);
  }

  const OF_CHANGE = { gained: "g", lost: "l", same: "b", changed: "b" };

  /* Strokes edges in a few batches: one path per kind, sign and strength, each kind on its own scale. Those through
     patterns are dotted; those of two graphs have the colour of whose they are, and dashes where they lower. */
  function strokeEdges(context, graph, view, list, colours, alpha, scales) {
    const batches = new Map();
    for (const e of list) {
      const w = graph.edges.weight[e];
      const bucket = Math.min(BUCKETS - 1, Math.floor(Math.sqrt(Math.abs(w) / scales[graph.edges.qk[e]]) * BUCKETS));
      const kind = graph.compared ? OF_CHANGE[graph.compared.changes[graph.edges.change[e]]] : graph.edges.qk[e] ? "q" : w < 0 ? "n" : "p";
      const key = kind + bucket + (graph.compared && w < 0 ? "-" : "");
      if (!batches.has(key)) batches.set(key, []);
      batches.get(key).push(e);
    }
    for (const [key, members] of [...batches].sort((a, b) => (a[0][0] === "q") - (b[0][0] === "q") || a[0][1] - b[0][1])) {
      const share = (Number(key[1]) + 1) / BUCKETS;
      context.beginPath();
      for (const e of members) curve(context, graph, view, e);
      context.strokeStyle = { n: colours.neg, p: colours.pos, q: colours.pattern, g: colours.effect, l: colours.compare, b: colours.control }[key[0]];
      context.globalAlpha = alpha[0] + (alpha[1] - alpha[0]) * share;
      context.lineWidth = 0.7 + 2.6 * share * share;
      context.setLineDash(key[0] === "q" ? [1.5, 3] : key[0] === "n" || key[2] === "-" ? [5, 3] : []);
      context.stroke();
    }
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  function shape(context, type, x, y, r) {
    context.beginPath();
    if (type === FEATURE) context.arc(x, y, r, 0, 2 * Math.PI);
    else if (type === ERROR) { context.moveTo(x, y - r * 1.15); context.lineTo(x + r * 1.15, y); context.lineTo(x, y + r * 1.15); context.lineTo(x - r * 1.15, y); context.closePath(); }
    else if (type === BIAS) { context.moveTo(x, y - r * 1.1); context.lineTo(x + r * 1.1, y + r * 0.9); context.lineTo(x - r * 1.1, y + r * 0.9); context.closePath(); }
    else if (type === LOGIT) context.roundRect(x - r * 1.5, y - r, r * 3, r * 2, r);
    else context.roundRect(x - r, y - r, 2 * r, 2 * r, 2);
  }

  function drawNode(context, graph, view, i, colours, grow) {
    const type = graph.nodes.type[i];
    const [x, y] = app.onScreen(graph, view, i);
    const r = Math.max(2.2, graph.r[i] * Math.min(1.5, Math.max(0.6, view.k))) + (grow || 0);
    shape(context, type, x, y, r);
    if (graph.compared) {
      drawCompared(context, graph.compared.changes[graph.nodes.change[i]], colours);
      return { x, y, r };
    }
    if (type === ERROR || type === BIAS) {
      context.fillStyle = colours.paper;
      context.fill();
      context.strokeStyle = type === BIAS ? colours.compare : colours.muted;
      context.lineWidth = 1.3;
      context.stroke();
    } else {
      context.fillStyle = type === FEATURE ? colours.effect : type === LOGIT ? colours.ink : colours.muted;
      context.globalAlpha = type === FEATURE ? 0.45 + 0.55 * (1 - graph.nodes.share[i]) : 1;
      context.fill();
      context.globalAlpha = 1;
      context.strokeStyle = colours.paper;
      context.lineWidth = 0.8;
      context.stroke();
    }
    return { x, y, r };
  }

  /* Of two graphs: what both have is grey, what only the second has is filled, what only the first has is hollow. */
  function drawCompared(context, change, colours) {
    context.fillStyle = change === "gained" ? colours.effect : change === "lost" ? colours.paper : colours.control;
    context.globalAlpha = change === "same" ? 0.45 : 1;
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = change === "lost" ? colours.compare : colours.paper;
    context.lineWidth = change === "lost" ? 1.8 : 0.8;
    context.stroke();
  }

  function clip(text, n) {
    const chars = [...text];
    return chars.length > n ? chars.slice(0, n - 1).join("") + "…" : text;
  }

  /* Row bands, layer names at the left and tokens at the bottom; both stay in sight while the graph moves. */
  function drawFrame(context, graph, view, w, h, colours) {
    context.font = "11px " + getComputedStyle(document.body).fontFamily;
    for (let r = 0; r < graph.rows.length; r++) {
      const y = graph.rowY[r] * view.k + view.y;
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      context.globalAlpha = 0.7;
      context.beginPath();
      context.moveTo(0, y + (graph.rowH[r] * view.k) / 2);
      context.lineTo(w, y + (graph.rowH[r] * view.k) / 2);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  function drawLabels(context, graph, view, w, h, colours) {
    const family = getComputedStyle(document.body).fontFamily;
    context.fillStyle = colours.paper;
    context.globalAlpha = 0.9;
    context.fillRect(0, 0, 50, h);
    context.fillRect(0, h - 36, w, 36);
    context.globalAlpha = 1;
    context.font = "11px " + family;
    context.textAlign = "right";
    context.fillStyle = colours.muted;
    let last = Infinity;
    for (let r = 0; r < graph.rows.length; r++) {
      const y = graph.rowY[r] * view.k + view.y;
      if (y > h - 42 || y < 4 || last - y < 12) continue;
      context.fillText(graph.rows[r], 44, y + 4);
      last = y;
    }
    context.textAlign = "center";
    let right = 50;
    for (let c = 0; c < graph.columns.length; c++) {
      const x = graph.columnX[c] * view.k + view.x;
      const room = graph.columnW[c] * view.k;
      const { label, name } = graph.columns[c];
      context.font = (name ? "600 " : "") + "12px " + family;
      const shown = clip(label, Math.max(4, Math.floor(room / 6.6)));
      const half = context.measureText(shown).width / 2;
      if (x - half < right || x + half > w) continue;
      right = x + half + 5;
      context.fillStyle = name ? colours.accent : colours.ink;
      context.fillText(shown, x, h - 20);
      if (name) { context.font = "10px " + family; context.fillText(clip(name, Math.max(3, Math.floor(room / 5))), x, h - 6); }
    }
  }

  app.drawBase = function (canvas, graph, view, state, most) {
    const { context, w, h } = prepare(canvas);
    const colours = palette();
    drawFrame(context, graph, view, w, h, colours);
    const dense = state.shownEdges.length > 2500 ? 0.45 : 1;
    strokeEdges(context, graph, view, state.shownEdges.slice(0, most), colours, [0.09 * dense, 0.6 * dense], graph.maxWeight);
    for (let i = graph.x.length - 1; i >= 0; i--) if (state.visible[i]) drawNode(context, graph, view, i, colours, 0);
    drawLabels(context, graph, view, w, h, colours);
  };

  app.drawOverlay = function (canvas, graph, view, state) {
    const { context, w, h } = prepare(canvas);
    const colours = palette();
    for (const i of state.pins) if (state.visible[i]) ring(context, drawNode(context, graph, view, i, colours, 1), colours.compare, 2);
    const focus = state.hover >= 0 ? state.hover : state.selected;
    canvas.parentElement.classList.toggle("focused", focus >= 0);
    if (focus < 0) return;
    const list = state.edgesOf(focus);
    const top = list.reduce((m, e) => Math.max(m, Math.abs(graph.edges.weight[e])), 1e-12);
    strokeEdges(context, graph, view, list, colours, [0.35, 0.95], [top, top]);
    for (const e of list) {
      drawNode(context, graph, view, graph.edges.source[e], colours, 0.6);
      drawNode(context, graph, view, graph.edges.target[e], colours, 0.6);
    }
    if (state.selected >= 0 && state.selected !== focus) ring(context, drawNode(context, graph, view, state.selected, colours, 1.5), colours.focus, 2);
    ring(context, drawNode(context, graph, view, focus, colours, 2), colours.focus, 2.5);
    drawLabels(context, graph, view, w, h, colours);
    drawWeights(context, graph, view, focus, list, colours, w, h);
  };

  function ring(context, { x, y, r }, colour, width) {
    context.beginPath();
    context.arc(x, y, r + 3.5, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }

  /* Weights of the strongest edges, at their far ends, where no other weight is. */
  function drawWeights(context, graph, view, focus, list, colours, w, h) {
    context.font = "600 10.5px " + getComputedStyle(document.body).fontFamily;
    context.textAlign = "center";
    const taken = [];
    const sorted = [...list].sort((a, b) => Math.abs(graph.edges.weight[b]) - Math.abs(graph.edges.weight[a]));
    for (const e of sorted.slice(0, 24)) {
      const other = graph.edges.source[e] === focus ? graph.edges.target[e] : graph.edges.source[e];
      const place = app.onScreen(graph, view, other), x = place[0], y = place[1] - 9;
      if (x < 55 || x > w - 20 || y < 10 || y > h - 44) continue;
      if (taken.some(([tx, ty]) => Math.abs(tx - x) < 40 && Math.abs(ty - y) < 13)) continue;
      taken.push([x, y]);
      const weight = graph.edges.weight[e];
      const text = (weight > 0 ? "+" : "") + app.number(weight, Math.abs(weight) < 0.1 ? 3 : 2);
      context.lineWidth = 3.5;
      context.strokeStyle = colours.paper;
      context.strokeText(text, x, y);
      context.fillStyle = graph.edges.qk[e] ? colours.pattern : weight > 0 ? colours.pos : colours.neg;
      context.fillText(text, x, y);
      if (taken.length >= 12) break;
    }
  }
})();
