/* Shared by all pages: loads data/*.js on demand, shows tokens safely, draws charts in the reader's theme. */
(function () {
  "use strict";
  const store = new Map();
  const waiting = new Map();

  const app = {
    /* Called by data files. */
    put(name, value) {
      store.set(name, value);
      (waiting.get(name) || []).forEach((entry) => entry.resolve(value));
      waiting.delete(name);
    },
    /* Injects data/<name>.js once; a promise of its value. */
    load(name) {
      if (store.has(name)) return Promise.resolve(store.get(name));
      return new Promise((resolve, reject) => {
        if (waiting.has(name)) {
          waiting.get(name).push({ resolve, reject });
          return;
        }
        waiting.set(name, [{ resolve, reject }]);
        const script = document.createElement("script");
        script.src = "data/" + encodeURIComponent(name) + ".js";
        script.onerror = () => {
          (waiting.get(name) || []).forEach((entry) => entry.reject(new Error("data/" + name + ".js is missing")));
          waiting.delete(name);
        };
        document.head.append(script);
      });
    },
    /* Whitespace and unprintable characters of a token made visible. */
    visible(token) {
      let out = "";
      for (const c of String(token)) {
        const code = c.codePointAt(0);
        if (c === " ") out += "·";
        else if (c === "\n") out += "↵";
        else if (c === "\t") out += "⇥";
        else if (c === "\r") out += "␍";
        else if (code < 32) out += String.fromCodePoint(0x2400 + code);
        else if (code >= 0xd800 && code <= 0xdfff) out += "\ufffd";
        else if (/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Zs}\p{Co}]/u.test(c)) {
          out += "‹" + code.toString(16).toUpperCase().padStart(4, "0") + "›";
        } else out += c;
      }
      return out;
    },
    number(v, digits) {
      if (v === null || v === undefined || !Number.isFinite(v)) return "n/a";
      const d = digits === undefined ? 2 : digits;
      let text = v !== 0 && (Math.abs(v) < 0.5 * 10 ** -d || Math.abs(v) >= 1e6) ? v.toExponential(1) : v.toFixed(d);
      if (Number(text) === 0) text = text.replace("-", "");
      return text.replace("-", "−");
    },
    /* An element with attributes and children; strings become text, never HTML. */
    el(tag, attributes, ...children) {
      const node = document.createElement(tag);
      for (const [key, value] of Object.entries(attributes || {})) {
        if (value === null || value === undefined || value === false) continue;
        if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
        else node.setAttribute(key, value === true ? "" : value);
      }
      node.append(...children.filter((c) => c !== null && c !== undefined));
      return node;
    },
    dark: window.matchMedia("(prefers-color-scheme: dark)"),
    onTheme(callback) {
      app.dark.addEventListener("change", callback);
    },
    colour(name) {
      return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
    },
  };
  window.mechstudy = app;

  function themed(value, palette) {
    if (typeof value === "string") return Object.hasOwn(palette, value) ? palette[value] : value;
    if (Array.isArray(value)) return value.map((v) => themed(v, palette));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, palette)]));
    }
    return value;
  }

  /* Data stays as it is: a token that looks like a colour name must not become one. */
  function themedSpec(spec, palette) {
    const { data, datasets, layer, ...rest } = spec;
    const out = themed(rest, palette);
    if (data) out.data = data;
    if (datasets) out.datasets = datasets;
    if (layer) out.layer = layer.map((l) => themedSpec(l, palette));
    return out;
  }

  const views = new Map();
  async function draw(box) {
    try {
      const [spec, themes] = await Promise.all([app.load(box.dataset.chart), app.load("chart-theme")]);
      const theme = themes[app.dark.matches ? "dark" : "light"];
      if (views.has(box)) views.get(box).finalize();
      const result = await window.vegaEmbed(box, themedSpec(spec, theme.palette), {
        actions: false, ast: true, renderer: "svg", config: theme.config, defaultStyle: false,
        tooltip: { disableDefaultStyle: true }, mode: "vega-lite",
      });
      views.set(box, result);
      box.dataset.drawn = "yes";
    } catch (error) {
      box.textContent = "This chart could not be drawn: " + error.message;
      console.error(error);
    }
  }

  function drawCharts() {
    if (!window.vegaEmbed) return;
    document.querySelectorAll(".chart[data-chart]").forEach((box) => draw(box));
  }

  function openTarget() {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView({ block: "start" });
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    drawCharts();
    openTarget();
  });
  window.addEventListener("hashchange", openTarget);
  app.onTheme(drawCharts);
})();
