/* Shared by all pages: loads data/*.js on demand, shows tokens safely, draws charts in the reader's theme. */
(function () {
  "use strict";
  const values = new Map(), loads = new Map();
  const SYMBOLS = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍" };

  function symbol(c) {
    const code = c.codePointAt(0);
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    if (code >= 0xd800 && code <= 0xdfff) return "\ufffd";
    return "‹" + code.toString(16).toUpperCase().padStart(4, "0") + "›";
  }

  const app = {
    /* Called by data files. */
    put(name, value) {
      values.set(name, value);
    },
    /* Injects data/<name>.js once; a promise of its value. */
    load(name) {
      if (!loads.has(name)) {
        loads.set(name, new Promise((resolve, reject) => {
          const script = document.createElement("script");
          script.src = "data/" + encodeURIComponent(name) + ".js";
          script.onload = () => resolve(values.get(name));
          script.onerror = () => reject(new Error("data/" + name + ".js is missing"));
          document.head.append(script);
        }));
      }
      return loads.get(name);
    },
    /* Whitespace and unprintable characters of a token made visible. */
    visible: (token) => String(token).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Zs}\p{Co}]/gu, (c) => SYMBOLS[c] || symbol(c)),
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
    /* An element of a drawing. */
    svg(tag, attributes, ...children) {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      node.append(...children);
      return node;
    },
    /* A list of terms and their values. */
    facts: (rows) => app.el("dl", { class: "mini" }, ...rows.map(([term, value]) => app.el("div", {}, app.el("dt", {}, term), app.el("dd", {}, value)))),
    dark: window.matchMedia("(prefers-color-scheme: dark)"),
    onTheme(callback) {
      app.dark.addEventListener("change", callback);
    },
    colour(name) {
      return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
    },
  };
  window.mechstudy = app;

  /* A spec with its colour names replaced; data stays as it is, so that no token can pose as a colour. */
  function themed(value, palette) {
    if (typeof value === "string") return Object.hasOwn(palette, value) ? palette[value] : value;
    if (Array.isArray(value)) return value.map((v) => themed(v, palette));
    if (!value || typeof value !== "object") return value;
    const entries = Object.entries(value);
    return Object.fromEntries(entries.map(([k, v]) => [k, k === "data" || k === "datasets" ? v : themed(v, palette)]));
  }

  /* Vega measures labels when it draws, so the fonts come first; without them it measures the next family. */
  const fonts = Promise.all([400, 700].map((weight) => document.fonts.load(weight + " 12px 'Mechstudy Sans'"))).catch(() => []);
  const views = new Map();
  async function draw(box) {
    try {
      const [spec, themes] = await Promise.all([app.load(box.dataset.chart), app.load("chart-theme"), fonts]);
      const theme = themes[app.dark.matches ? "dark" : "light"];
      if (views.has(box)) views.get(box).finalize();
      const result = await window.vegaEmbed(box, themed(spec, theme.palette), {
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
    document.querySelectorAll(".circuit-figure .scroll").forEach((box) => { box.scrollLeft = box.scrollWidth; }); // where the answer is
    openTarget();
  });
  window.addEventListener("hashchange", openTarget);
  app.onTheme(drawCharts);
})();
