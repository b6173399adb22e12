/* Places a graph's nodes: columns are token positions, rows are layers, nodes of a cell stacked by influence. */
(function () {
  "use strict";
  const app = window.mechstudy;
  const PITCH = 15; // world units between neighbours
  const MARGIN = { left: 8, right: 16, top: 16, bottom: 6 };

  /* Adds to `graph`: x, y, r (Float32Array, world units), columnX, rowY, width, height, incoming, outgoing. */
  app.layout = function (graph, viewWidth, viewHeight) {
    const nodes = graph.nodes;
    const n = nodes.id.length;
    const byPlace = new Map();
    for (let i = 0; i < n; i++) {
      const key = nodes.row[i] + ":" + nodes.column[i];
      byPlace.set(key, byPlace.get(key) || []).get(key).push(i);
    }
    const cells = [...byPlace.values()];
    const columns = new Array(graph.columns.length).fill(0);
    const lines = new Array(graph.rows.length).fill(1);
    for (const members of cells) {
      const row = nodes.row[members[0]], column = nodes.column[members[0]];
      const count = members.length <= 5 ? 1 : Math.min(5, Math.ceil(Math.sqrt(members.length / 1.7)));
      members.lines = count;
      lines[row] = Math.max(lines[row], count);
      columns[column] = Math.max(columns[column], Math.ceil(members.length / count));
    }
    const widths = columns.map((c) => Math.max(46, c * PITCH + 16));
    const rich = new Array(graph.rows.length).fill(false); // rows with only errors and biases may be narrow
    nodes.row.forEach((row, i) => { if (nodes.type[i] !== 1 && nodes.type[i] !== 3) rich[row] = true; });
    const heights = lines.map((l, row) => l * PITCH + (rich[row] ? 15 : 1));
    const spareX = viewWidth - MARGIN.left - MARGIN.right - widths.reduce((a, b) => a + b, 0);
    const spareY = viewHeight - MARGIN.top - MARGIN.bottom - heights.reduce((a, b) => a + b, 0);
    if (spareX > 0) widths.forEach((w, i) => { widths[i] = w + spareX / widths.length; });
    if (spareY > 0) heights.forEach((h, i) => { heights[i] = h + (spareY * h) / (viewHeight - MARGIN.top - MARGIN.bottom - spareY); });

    graph.columnX = [];
    graph.columnW = widths;
    let x = MARGIN.left;
    for (const w of widths) { graph.columnX.push(x + w / 2); x += w; }
    graph.width = x + MARGIN.right;
    graph.rowY = new Array(heights.length); graph.rowH = heights;
    let y = MARGIN.top;
    for (let r = heights.length - 1; r >= 0; r--) { graph.rowY[r] = y + heights[r] / 2; y += heights[r]; }
    graph.height = y + MARGIN.bottom;

    graph.x = new Float32Array(n); graph.y = new Float32Array(n); graph.r = new Float32Array(n);
    for (const members of cells) {
      const row = nodes.row[members[0]], column = nodes.column[members[0]];
      const perLine = Math.ceil(members.length / members.lines);
      const pitch = Math.min(widths[column] / (perLine + 0.4), 22);
      members.forEach((i, k) => {
        const line = Math.floor(k / perLine);
        const inLine = Math.min(perLine, members.length - line * perLine);
        graph.x[i] = graph.columnX[column] + (k % perLine - (inLine - 1) / 2) * pitch;
        graph.y[i] = graph.rowY[row] + (line - (members.lines - 1) / 2) * PITCH;
      });
    }
    for (let i = 0; i < n; i++) {
      const outer = nodes.type[i] === 2 || nodes.type[i] === 4;
      graph.r[i] = outer ? 5.5 : 3 + 3.6 * Math.sqrt(Math.max(0, 1 - nodes.share[i]));
    }
    if (!graph.incoming) connect(graph);
  };

  /* Edge indices per node; edges come strongest first, so these lists are too. */
  function connect(graph) {
    const n = graph.nodes.id.length;
    graph.incoming = Array.from({ length: n }, () => []);
    graph.outgoing = Array.from({ length: n }, () => []);
    const { source, target, weight, qk } = graph.edges;
    graph.inputs = new Float64Array(n); // sizes of the edges into each node, without those through patterns
    for (let e = 0; e < source.length; e++) {
      if (!qk[e]) graph.inputs[target[e]] += Math.abs(weight[e]);
      graph.incoming[target[e]].push(e);
      graph.outgoing[source[e]].push(e);
    }
    graph.index = new Map(graph.nodes.id.map((id, i) => [id, i]));
    graph.maxWeight = [0, 1].map((qk) => // of each kind
      graph.edges.weight.reduce((m, w, e) => (graph.edges.qk[e] === qk ? Math.max(m, Math.abs(w)) : m), 1e-12));
  }

  /* The visible node nearest to a world point within `reach`, or -1. */
  app.nodeAt = function (graph, x, y, reach, visible) {
    let best = -1, distance = reach * reach;
    for (let i = 0; i < graph.x.length; i++) {
      const d = (graph.x[i] - x) ** 2 + (graph.y[i] - y) ** 2;
      if (visible[i] && d < distance) { distance = d; best = i; }
    }
    return best;
  };

  /* A node's place on the screen. */
  app.onScreen = (graph, view, i) => [graph.x[i] * view.k + view.x, graph.y[i] * view.k + view.y];

  /* The nearest visible node in a direction: left, right, up or down. */
  app.neighbour = function (graph, from, direction, visible) {
    const sideways = direction === "left" || direction === "right";
    const sign = direction === "left" || direction === "up" ? -1 : 1;
    let best = from, score = Infinity;
    for (let i = 0; i < graph.x.length; i++) {
      if (!visible[i] || i === from) continue;
      const along = sign * (sideways ? graph.x[i] - graph.x[from] : graph.y[i] - graph.y[from]);
      const across = Math.abs(sideways ? graph.y[i] - graph.y[from] : graph.x[i] - graph.x[from]);
      if (along < 1) continue;
      const s = along + (sideways ? 6 : 1.2) * across;
      if (s < score) { score = s; best = i; }
    }
    return best;
  };
})();
