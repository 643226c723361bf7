// The page's script. Numbers come from comrope/explorer/exploration.py; kernels are computed here from each plane's frequency and
// weight, κ(Δ) = Σ_p Re(c_p e^{i w_pᵀΔ}), as in comrope/explorer/kernels.py. Text of a user is only ever set as textContent.
"use strict";
(async () => {
  const DEAD = 0.01, ALIAS = Math.PI, MOST_THUMBNAIL = 33;
  const KINDS = {
    uniform: ["all alike", "every plane has the same weight, 1 / number of planes, so that the kernel is 1 at displacement 0"],
    weights: ["by the weights", "a plane weighs as much as queries and keys of white inputs have in it, by the weights of their projections; the sum is 1"],
    image: ["by this image", "a plane weighs the mean of query times key over all pairs of the image's patches, so that the kernel is a mean score, as the softmax gets it"],
  };
  const $ = id => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Data

  async function unpacked(value) {
    if (Array.isArray(value)) return Promise.all(value.map(unpacked));
    if (value === null || typeof value !== "object") return value;
    if ("kind" in value && "data" in value) {
      const bytes = Uint8Array.from(atob(value.data), c => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      const buffer = await new Response(stream).arrayBuffer();
      const values = new { int8: Int8Array, int16: Int16Array, float32: Float32Array }[value.kind](buffer);
      return { shape: value.shape, values: "step" in value ? Float64Array.from(values, x => x * value.step) : values };
    }
    const entries = await Promise.all(Object.entries(value).map(async ([key, each]) => [key, await unpacked(each)]));
    return Object.fromEntries(entries);
  }
  const { models } = await unpacked(JSON.parse($("data").textContent));
  const axes = models[0].axes, numAxes = axes.length;
  const state = {
    layer: 0, head: 0, kind: "uniform", below: "reach", slice: 0, cursor: axes.map(() => 0), token: null, carried: null, carry: false,
    place: "mean",
  };

  // Kernels

  const widest = axes.map((_, i) => Math.max(...models.map(m => m.grid[i])));
  const steps = (n, stride = 1) => {
    const far = Math.floor((n - 1) / stride);
    return Array.from({ length: 2 * far + 1 }, (_, i) => (i - far) * stride);
  };

  /** The kernel of a head at all combinations of displacements along each axis, the last axis fastest; null if it is not known. */
  function kernel(model, layer, head, kind, along, place = "mean") {
    if (!layer || head >= layer.heads) return null;
    const size = along.reduce((n, list) => n * list.length, 1);
    if (!layer.commutes) {
      if (!layer.kernels[kind]) return null;
      const { values, shape } = layer.kernels[kind][place];
      return Float64Array.from({ length: size }, (_, at) => {
        let index = 0, rest = at;
        const each = along.map(list => list.length), which = [];
        for (let i = each.length - 1; i >= 0; i--) { which[i] = rest % each[i]; rest = Math.floor(rest / each[i]); }
        for (let i = 0; i < each.length; i++) {
          const at = along[i][which[i]] + model.grid[i] - 1;
          if (at < 0 || at >= shape[i + 1]) return NaN;
          index = index * shape[i + 1] + at;
        }
        return values[head * (values.length / shape[0]) + index];
      });
    }
    const weights = layer.weights[kind];
    if (!weights) return null;
    const planes = layer.frequencies.shape[1], out = new Float64Array(size);
    const lists = [...Array(3 - numAxes).fill([0]), ...along], pad = 3 - numAxes;
    for (let p = 0; p < planes; p++) {
      const at = head * planes + p;
      const w = [0, 1, 2].map(i => (i < pad ? 0 : layer.frequencies.values[at * numAxes + i - pad]));
      const cr = weights.values[2 * at], ci = weights.values[2 * at + 1];
      const cos = lists[2].map(d => Math.cos(w[2] * d)), sin = lists[2].map(d => Math.sin(w[2] * d));
      let index = 0;
      for (const a of lists[0]) for (const b of lists[1]) {
        const c = Math.cos(w[0] * a + w[1] * b), s = Math.sin(w[0] * a + w[1] * b);
        const re = cr * c - ci * s, im = cr * s + ci * c;
        for (let k = 0; k < cos.length; k++) out[index++] += re * cos[k] - im * sin[k];
      }
    }
    return out;
  }

  const largest = values => values.reduce((m, v) => Math.max(m, Math.abs(v) || 0), 0);
  const inGrid = (model, d) => d.every((x, i) => Math.abs(x) < model.grid[i]);

  /** Speed |w| and weight |c| of each plane of a head. */
  function planesOf(layer, head, kind) {
    const count = layer.frequencies.shape[1], weights = layer.weights[kind] ?? layer.weights.uniform;
    return Array.from({ length: count }, (_, p) => {
      const at = head * count + p;
      const w = Array.from(layer.frequencies.values.slice(at * numAxes, (at + 1) * numAxes));
      return { plane: p, w, speed: Math.hypot(...w), weight: Math.hypot(weights.values[2 * at], weights.values[2 * at + 1]) };
    });
  }

  // Words

  function number(x, digits = 3) {
    if (!Number.isFinite(x)) return "–";
    const scientific = x && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e4);
    return (scientific ? x.toExponential(1) : String(Number(x.toPrecision(digits)))).replaceAll("-", "−");
  }
  const residual = x => x && x < 1e-9 ? `${number(x, 2)} (rounding)` : number(x, 2);
  const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  const unit = numAxes === 1 && models.every(m => !m.image) ? "token" : "patch";
  const extent = unit === "token" ? "length shown" : "grid";
  const units = unit === "token" ? "tokens" : "patches";
  const BELOW = {
    reach: ["reach", `the reach in ${units}`],
    dead: ["dead planes", `the number of planes that rotate by less than 0.01 radians a ${unit}`],
    alias: ["aliasing planes", `the number of planes that rotate by more than π radians a ${unit}`],
    drift: ["drift", "the largest change of a score of unit queries and keys when all positions move by half of the grid"],
    commutator: ["commutator", "how far the angle matrices of two axes are from commuting, relative to their size"],
  };
  const reachText = r => r === null ? "all" : number(r);
  const DIRECTIONS = { row: ["down", "up"], column: ["right", "left"], frame: ["later", "earlier"], token: ["after", "before"] };
  const displacement = d => d.every(x => !x) ? "at the query itself"
    : "key " + d.map((x, i) => x ? `${Math.abs(x)} ${DIRECTIONS[axes[i]][x > 0 ? 0 : 1]}` : "").filter(Boolean).join(", ");
  const perHead = (layer, what, head) => what === "reach" ? layer.reach[state.kind]?.[head] : layer[what]?.[head];
  function belowText(layer, what, head) {
    if (what === "reach") return layer.reach[state.kind] ? reachText(layer.reach[state.kind][head]) : "–";
    return layer[what] ? number(layer[what][head], 2) : "–";
  }

  // Colours: orange above zero, blue below, the page's own background at zero

  let colour;
  function chooseColours() {
    colour = d3.piecewise(d3.interpolateLab, dark.matches
      ? ["#b3dafa", "#3f86bd", "#1b1e23", "#c26a1f", "#ffd3a8"] : ["#0b4f8a", "#6ea6d0", "#f7f6f3", "#e79a5a", "#963a00"]);
    const stops = d3.range(0, 1.01, 0.1).map(t => colour(t)).join(", ");
    $("legend-bar").style.background = `linear-gradient(to right, ${stops})`;
  }
  const shade = (v, peak) => Number.isFinite(v) ? colour(0.5 + 0.5 * Math.max(-1, Math.min(1, peak ? v / peak : 0))) : "transparent";

  function paint(canvas, values, width, height, peak) {
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
    const table = d3.range(256).map(i => d3.rgb(colour(i / 255)));
    values.forEach((v, i) => {
      if (!Number.isFinite(v)) return;
      const c = table[Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, peak ? v / peak : 0)))];
      picture.data.set([c.r, c.g, c.b, 255], 4 * i);
    });
    context.putImageData(picture, 0, 0);
  }

  // At a glance

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key in made && typeof value !== "string") made[key] = value; else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  function range(values, format = number) {
    const known = values.filter(v => v !== null && v !== undefined);
    if (!known.length) return values.length ? `the whole ${extent}` : "–";
    const low = format(d3.min(known)), high = format(d3.max(known)), whole = values.length - known.length;
    const text = low === high ? `${low} ${low === "1" ? unit : units}` : `${low} to ${high} ${units}, median ${format(d3.median(known))}`;
    return whole ? `${text}; ${whole} of ${count(values.length, "head")}: the whole ${extent}` : text;
  }

  function summarise() {
    const rows = [
      ["Encoding", m => [...new Set(m.layers.map(l => l.encoding))].join(", ")],
      ["Layers × heads", m => `${m.layers.length} × ${[...new Set(m.layers.map(l => l.heads))].join(" or ")}, of ${[...new Set(m.layers.map(l => l.headDim))].join(" or ")} features`],
      [unit === "token" ? "Tokens shown" : "Patches", m => `${m.grid.join(" × ")}${numAxes > 1 ? ` (${axes.map(a => `${a}s`).join(" × ")})` : ""}`],
      ["Dead planes", m => share(m, "dead"), "dead"],
      ["Aliasing planes", m => share(m, "alias"), "alias"],
      ["Reach", m => range(m.layers.flatMap(l => l.reach[state.kind] ?? [])), "reach"],
      ["Commutator, largest", m => residual(d3.max(m.layers.flatMap(l => l.commutator))), "commutator"],
      ["Drift under an offset, largest", m => residual(d3.max(m.layers.flatMap(l => l.drift))), "drift"],
    ];
    const table = $("summary");
    table.replaceChildren();
    if (models.length > 1) {
      table.append(element("thead", {}, element("tr", {}, element("td"), ...models.map(m => element("th", { scope: "col" }, m.name)))));
    }
    table.append(element("tbody", {}, ...rows.map(([name, text, id]) => element("tr", {},
      element("th", { scope: "row" }, name), ...models.map((m, i) => element("td", id ? { "data-fact": `${id}-${i}` } : {}, text(m)))))));
    $("summary-note").textContent =
      `A plane is dead if it rotates by less than 0.01 radians a ${unit}, and aliases if by more than π. The reach is the distance from which on the kernel, averaged over directions, is below half of its peak. Drift is the largest change of a score of unit queries and keys when all positions move by half of the grid: zero up to rounding if angles commute.`;
  }
  function share(model, what) {
    const known = model.layers.filter(l => l[what]);
    if (!known.length) return "no planes: angles do not commute";
    const planes = known.reduce((n, l) => n + l.frequencies.shape[0] * l.frequencies.shape[1], 0);
    return `${d3.sum(known.flatMap(l => l[what])).toLocaleString("en")} of ${planes.toLocaleString("en")}`;
  }

  // All heads

  const numLayers = Math.max(...models.map(m => m.layers.length));
  const numHeads = layer => Math.max(...models.map(m => m.layers[layer]?.heads ?? 0));
  const mostHeads = Math.max(...d3.range(numLayers).map(numHeads));
  const cells = new Map();
  const key = (layer, head) => `${layer},${head}`;

  function buildHeads() {
    const grid = $("heads"), wide = models.length > 1 ? 62 : numAxes === 1 ? 46 : 34;
    grid.style.gridTemplateColumns = `max-content repeat(${mostHeads}, minmax(${wide}px, ${wide * 2}px))`;
    grid.setAttribute("aria-rowcount", numLayers);
    grid.setAttribute("aria-colcount", mostHeads);
    for (let layer = 0; layer < numLayers; layer++) {
      const row = element("div", { role: "row" });
      const named = models.map(m => m.layers[layer]?.name).find(Boolean);
      row.append(element("span", { class: "layer", role: "rowheader", title: named ?? "" }, `layer ${layer + 1}`));
      for (let head = 0; head < mostHeads; head++) {
        if (head >= numHeads(layer)) { row.append(element("span")); continue; }
        const pictures = element("div", { class: "pictures" }, ...models.map(() => element("canvas")));
        const cell = element("div", { class: "cell", role: "gridcell", tabindex: "-1", "data-layer": String(layer), "data-head": String(head) },
          pictures, element("small"));
        cell.addEventListener("click", () => { select(layer, head, true); toPanel(); });
        cells.set(key(layer, head), cell);
        row.append(cell);
      }
      grid.append(row);
    }
    grid.addEventListener("keydown", event => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      const ends = { Home: 0, End: numHeads(state.layer) - 1 };
      if (event.key === "Enter" || event.key === " ") enlarge();
      else if (event.key in ends) select(state.layer, ends[event.key], true);
      else if (move) select(state.layer + move[0], state.head + move[1], true);
      else return;
      event.preventDefault();
    });
  }

  function drawHeads() {
    for (const [where, cell] of cells) {
      const [layer, head] = where.split(",").map(Number), texts = [];
      models.forEach((model, i) => {
        const own = model.layers[layer], canvas = cell.querySelectorAll("canvas")[i];
        if (!own || head >= own.heads) { canvas.style.visibility = "hidden"; return; }
        texts.push(belowText(own, state.below, head));
        drawThumbnail(canvas, model, own, head);
      });
      cell.querySelector("small").textContent = texts.join(" | ");
      cell.setAttribute("aria-label", `Layer ${layer + 1}, head ${head + 1}: ${BELOW[state.below][0]} ${texts.join(" and ")}`);
    }
    $("legend-low").textContent = "−";
    $("legend-high").textContent = "+ largest of the head";
    $("legend-bar").parentElement.hidden = numAxes === 1;
    const what = numAxes === 1 ? "a curve" : numAxes === 2 ? "a picture" : "a picture of one displacement in time";
    $("overview-note").textContent =
      `The positional kernel of each head, ${what}: the mean score as a function of where the key is, seen from the query in the middle. Weights: ${KINDS[state.kind][1]}. Below, ${BELOW[state.below][1]}${models.length > 1 ? ", of the one and of the other" : ""}.`;
  }

  function drawThumbnail(canvas, model, layer, head) {
    const stride = model.grid.map(n => Math.ceil((2 * n - 1) / (numAxes === 1 ? 129 : MOST_THUMBNAIL)));
    const along = model.grid.map((n, i) => steps(n, stride[i]));
    if (numAxes === 3) along[0] = [state.slice];
    const values = kernel(model, layer, head, state.kind, along), size = along.map(list => list.length);
    if (!values) {
      canvas.width = canvas.height = numAxes === 1 ? 2 : 1;
      canvas.style.aspectRatio = numAxes === 1 ? "2" : "1";
      return;
    }
    if (numAxes > 1) {
      const [height, width] = size.slice(-2);
      const peak = numAxes === 3 ? peakOf(model, layer, head) : largest(values);
      canvas.style.aspectRatio = `${width} / ${height}`;
      paint(canvas, values, width, height, peak);
      return;
    }
    const width = 120, height = 60, peak = largest(values), context = canvas.getContext("2d");
    canvas.width = width; canvas.height = height; canvas.style.aspectRatio = "2";
    const style = getComputedStyle(document.documentElement);
    const x = i => 3 + (width - 6) * i / (values.length - 1), y = v => height / 2 - (height / 2 - 4) * (peak ? v / peak : 0);
    context.strokeStyle = style.getPropertyValue("--line");
    context.lineWidth = 2;
    context.beginPath(); context.moveTo(0, height / 2); context.lineTo(width, height / 2); context.stroke();
    context.strokeStyle = style.getPropertyValue("--mark");
    context.lineWidth = 2.5;
    context.beginPath();
    values.forEach((v, i) => context.lineTo(x(i), y(v)));
    context.stroke();
  }
  /** |κ| at displacement 0, or the largest on the axes through it, so that slices of one head have one scale. */
  function peakOf(model, layer, head) {
    return Math.max(...axes.map((_, i) => largest(
      kernel(model, layer, head, state.kind, model.grid.map((n, j) => (i === j ? steps(n) : [0]))) ?? [0])));
  }

  function select(layer, head, focus = false) {
    layer = Math.max(0, Math.min(numLayers - 1, layer));
    head = Math.max(0, Math.min(numHeads(layer) - 1, head));
    cells.forEach(cell => { cell.tabIndex = -1; cell.setAttribute("aria-selected", "false"); });
    const cell = cells.get(key(layer, head));
    cell.tabIndex = 0;
    cell.setAttribute("aria-selected", "true");
    Object.assign(state, { layer, head });
    if (focus && !$("head").matches(":modal")) cell.focus({ preventScroll: false });
    drawPanels();
  }

  // One head

  const smooth = () => matchMedia("(prefers-reduced-motion: no-preference)").matches ? "smooth" : "auto";
  function toPanel() {
    const top = $("head").getBoundingClientRect().top;
    if (top > innerHeight - 200) $("head").scrollIntoView({ behavior: smooth(), block: "start" });
  }
  function enlarge() {
    const dialog = $("head");
    if (dialog.matches(":modal")) { dialog.close(); return; }
    dialog.close();
    dialog.showModal();
    $("enlarge").textContent = "Close";
    dialog.scrollTop = 0;
    $("head-title").focus();
    drawPanels();
  }
  function inline() {
    const dialog = $("head");
    if (dialog.open) return;
    dialog.setAttribute("open", "");
    $("enlarge").textContent = "Enlarge";
    drawPanels();
    cells.get(key(state.layer, state.head)).focus();
  }
  function wireDialog() {
    const dialog = $("head");
    dialog.setAttribute("open", "");
    dialog.addEventListener("close", () => { if (!dialog.matches(":modal")) inline(); });
    dialog.addEventListener("keydown", event => {
      const inside = event.target === $("head-title") || event.target.tagName === "BUTTON";
      if (event.key === "ArrowRight" && inside) step(1);
      else if (event.key === "ArrowLeft" && inside) step(-1);
      else return;
      event.preventDefault();
    });
    $("enlarge").addEventListener("click", enlarge);
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
  }
  function step(by) {
    const all = [...cells.keys()], at = all.indexOf(key(state.layer, state.head));
    select(...all[(at + by + all.length) % all.length].split(",").map(Number));
  }

  const panels = [];
  function buildPanels() {
    $("panels").classList.toggle("two", models.length > 1);
    for (const model of models) {
      const find = {}, slot = (name, tag, attributes = {}, ...children) => (find[name] = element(tag, attributes, ...children));
      const figure = (name, title, ...inside) => element("figure", { class: name }, element("b", {}, title), ...inside, slot(`${name}Note`, "figcaption"));
      const article = element("article", {},
        ...(models.length > 1 ? [element("h3", {}, model.name)] : []),
        slot("numbers", "div", { class: "flow numbers" }),
        element("div", { class: "figures" },
          figure("kernel", "Positional kernel",
            slot("kernel", "div", { class: "plot cursor", tabindex: "0", role: "application", "aria-label": "Positional kernel: arrows move the key" }),
            slot("value", "output", { "aria-live": "polite" })),
          figure("spectrum", "Spectrum", slot("spectrum", "div", { class: "plot" })),
          figure("profile", "Reach", slot("profile", "div", { class: "plot" })),
          ...(model.image ? [figure("attention", "Attention",
            slot("image", "div", { class: "image cursor", tabindex: "0", role: "application", "aria-label": "Attention of a token: arrows move the token" }, slot("canvas", "canvas")),
            slot("attended", "output", { "aria-live": "polite" }),
            slot("picks", "div", { class: "controls" }))] : [])),
        slot("table", "details", {}, element("summary", {}, "The planes in numbers")));
      $("panels").append(article);
      panels.push(find);
      wireKernel(model, find);
      if (model.image) wireImage(model, find);
    }
  }

  function drawPanels() {
    $("head-title").textContent = `Layer ${state.layer + 1}, head ${state.head + 1}`;
    models.forEach((model, i) => {
      const layer = model.layers[state.layer], find = panels[i];
      const there = layer && state.head < layer.heads;
      find.numbers.closest("article").style.visibility = there ? "" : "hidden";
      if (!there) return;
      drawNumbers(layer, find);
      drawKernel(model, layer, find);
      drawSpectrum(layer, find);
      drawProfile(model, layer, find);
      if (model.image) drawImage(model, layer, find);
    });
  }

  function drawNumbers(layer, find) {
    const facts = [...(layer.name ? [["in the model", layer.name]] : []), ["encoding", layer.encoding]];
    if (state.kind in layer.reach) facts.push(["reach", layer.reach[state.kind][state.head] === null ? `the whole ${extent}` : `${reachText(layer.reach[state.kind][state.head])} ${units}`]);
    for (const what of ["dead", "alias", "commutator", "drift"]) {
      if (layer[what]) facts.push([BELOW[what][0], number(layer[what][state.head], 2)]);
    }
    find.numbers.replaceChildren(element("dl", { class: "flow" }, ...facts.map(([name, text]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, text)))));
  }

  const width = element => Math.max(240, Math.min(element.clientWidth || 320, $("head").matches(":modal") ? 704 : 480));
  const UNDER = { labelAnchor: "center", labelArrow: "none", labelOffset: 36 };
  const decades = most => [0.001, 0.01, 0.1, 1, 10, 100, 1000].filter(x => x <= most);
  const FONT = { fontFamily: "inherit", fontSize: "12px", background: "none", color: "currentColor" };

  function drawKernel(model, layer, find) {
    const place = layer.commutes ? "mean" : state.place;
    const along = model.grid.map(n => steps(n));
    if (numAxes === 3) along[0] = [state.slice];
    const values = kernel(model, layer, state.head, state.kind, along, place);
    find.kernel.replaceChildren();
    find.value.textContent = "";
    if (!values) {
      find.kernel.append(element("p", { class: "missing" }, `Not known with these weights: ${layer.why[state.kind] ?? "there is no image"}.`));
      find.kernelNote.textContent = "";
      return;
    }
    const cursor = state.cursor.map((x, i) => Math.max(1 - model.grid[i], Math.min(model.grid[i] - 1, x)));
    if (numAxes === 3) cursor[0] = state.slice;
    const value = kernel(model, layer, state.head, state.kind, cursor.map(x => [x]), place)[0];
    const w = width(find.kernel);
    if (numAxes === 1) {
      const points = along[0].map((x, i) => ({ x, y: values[i] }));
      find.kernel.append(Plot.plot({
        width: w, height: Math.round(0.62 * w), marginLeft: 44, marginBottom: 40, style: FONT,
        x: { ...UNDER, label: "key − query, in tokens", ticks: 7, tickFormat: signed },
        y: { label: "mean score", grid: true, ticks: 5, tickFormat: x => number(x) },
        marks: [
          Plot.ruleY([0], { stroke: "var(--line)" }),
          Plot.lineY(points, { x: "x", y: "y", stroke: "var(--mark)", strokeWidth: 1.6, curve: "linear" }),
          Plot.ruleX([cursor[0]], { stroke: "currentColor", strokeDasharray: "2,3" }),
          Plot.dot([[cursor[0], value]], { r: 4, fill: "var(--page)", stroke: "currentColor", strokeWidth: 1.5 }),
        ],
      }));
    } else {
      const [rows, columns] = along.slice(-2), peak = numAxes === 3 ? peakOf(model, layer, state.head) : largest(values);
      const canvas = document.createElement("canvas");
      paint(canvas, values, columns.length, rows.length, peak);
      const left = 40, right = 8, inner = w - left - right, h = inner * rows.length / columns.length;
      const [x, y] = cursor.slice(-2).reverse();
      find.kernel.append(Plot.plot({
        width: w, height: Math.round(h + 44), marginLeft: left, marginRight: right, marginTop: 8, marginBottom: 36, style: FONT,
        x: { domain: [columns[0] - 0.5, columns.at(-1) + 0.5], label: "columns to the right", ticks: 7, tickFormat: signed, ...UNDER, labelOffset: 34 },
        y: { domain: [rows.at(-1) + 0.5, rows[0] - 0.5], label: null, ticks: 7, tickFormat: signed },
        marks: [
          Plot.image([0], {
            src: () => canvas.toDataURL(), x: (columns[0] + columns.at(-1)) / 2, y: (rows[0] + rows.at(-1)) / 2,
            width: inner, height: h, imageRendering: "pixelated", preserveAspectRatio: "none",
          }),
          Plot.frame({ stroke: "var(--line)" }),
          Plot.rect([0], { x1: x - 0.5, x2: x + 0.5, y1: y - 0.5, y2: y + 0.5, stroke: "var(--page)", strokeWidth: 3, fill: "none" }),
          Plot.rect([0], { x1: x - 0.5, x2: x + 0.5, y1: y - 0.5, y2: y + 0.5, stroke: "currentColor", strokeWidth: 1.5, fill: "none" }),
        ],
      }));
      find.peak = peak;
    }
    find.value.dataset.value = value;
    find.value.dataset.displacement = cursor.join(",");
    let text = `${displacement(cursor)}: ${number(value, 4)}`;
    if (!layer.commutes) {
      const spread = kernel(model, layer, state.head, state.kind, cursor.map(x => [x]), "spread")[0];
      find.value.dataset.spread = spread;
      text = `${displacement(cursor)}: ${number(kernel(model, layer, state.head, state.kind, cursor.map(x => [x]))[0], 4)} ± ${number(spread)} over the places`;
    } else delete find.value.dataset.spread;
    find.value.textContent = text[0].toUpperCase() + text.slice(1);
    const name = numAxes === 1 ? "The curve" : "Each square";
    const where = numAxes === 1 ? "so many tokens before or after the query" : "there, seen from a query in the middle";
    find.kernelNote.replaceChildren(
      `${name} is the mean score of a key that lies ${where}; ${KINDS[state.kind][1]}.` + (numAxes > 1 ? ` Rows go down; the colours end at ± ${number(find.peak)}.` : "") +
      (layer.commutes ? " It is the same at every place." : " These angles do not commute, so the score depends on the place: this is the mean over all places. "));
    if (!layer.commutes) {
      const toggle = element("button", { type: "button", "aria-pressed": String(state.place === "spread"), class: "spread" }, "Show how much it varies");
      toggle.addEventListener("click", () => { state.place = state.place === "mean" ? "spread" : "mean"; drawPanels(); });
      find.kernelNote.append(toggle);
    }
  }
  const signed = x => x > 0 ? `+${x}` : String(x).replace("-", "−");

  function moveCursor(by) {
    state.cursor = state.cursor.map((x, i) => Math.max(1 - widest[i], Math.min(widest[i] - 1, x + by[i])));
    if (numAxes === 3 && by[0]) setSlice(state.cursor[0]);
    drawPanels();
  }
  function wireKernel(model, find) {
    const last = numAxes - 1, unitStep = (axis, by) => axes.map((_, i) => (i === axis ? by : 0));
    find.kernel.addEventListener("keydown", event => {
      const moves = { ArrowRight: [last, 1], ArrowLeft: [last, -1], ArrowDown: [last - 1, 1], ArrowUp: [last - 1, -1], PageDown: [last - 2, 1], PageUp: [last - 2, -1] };
      const move = moves[event.key];
      if (!move || move[0] < 0) return;
      event.preventDefault();
      moveCursor(unitStep(...move));
      find.kernel.focus({ preventScroll: true });
    });
    const point = event => {
      const svg = find.kernel.querySelector("svg");
      if (!svg || (event.type === "pointermove" && event.pointerType === "touch")) return;
      const box = svg.getBoundingClientRect(), scale = box.width / svg.getAttribute("width");
      const at = [svg.scale("x").invert((event.clientX - box.left) / scale), numAxes > 1 && svg.scale("y").invert((event.clientY - box.top) / scale)];
      const next = [...state.cursor];
      next[last] = Math.round(at[0]);
      if (numAxes > 1) next[last - 1] = Math.round(at[1]);
      if (!inGrid(model, next) || next.every((x, i) => x === state.cursor[i])) return;
      state.cursor = next;
      models.forEach((m, i) => { const l = m.layers[state.layer]; if (l && state.head < l.heads) drawKernel(m, l, panels[i]); });
    };
    find.kernel.addEventListener("pointermove", point);
    find.kernel.addEventListener("pointerdown", point);
  }

  // Spectrum

  const FLOOR = 1e-3;
  const rings = most => [DEAD, 0.1, 1, ALIAS, ...(most > 10 ? [10] : []), ...(most > 100 ? [100] : [])];
  const ringText = r => r === ALIAS ? "π" : String(r);

  function drawSpectrum(layer, find) {
    find.spectrum.replaceChildren();
    find.table.hidden = !layer.commutes;
    if (!layer.commutes) {
      find.spectrum.append(element("p", { class: "missing" }, "No spectrum: the angle matrices do not commute, so no basis brings them to planes."));
      find.spectrumNote.textContent = "";
      return;
    }
    const planes = planesOf(layer, state.head, state.kind), heaviest = d3.max(planes, p => p.weight) || 1;
    const most = Math.max(2 * ALIAS, 1.3 * d3.max(planes, p => p.speed)), w = width(find.spectrum);
    const radius = p => 2 + 5 * Math.sqrt(p.weight / heaviest);
    const title = p => `plane ${p.plane + 1}: ${number(p.speed)} rad a ${unit}` + (numAxes > 1 ? `\n${p.w.map((x, i) => `${axes[i]} ${number(x)}`).join(", ")}` : "") + `\nweight ${number(p.weight)}`;
    const dots = { r: radius, fill: "var(--mark)", fillOpacity: 0.55, stroke: "var(--mark)", strokeWidth: 0.8 };
    const scale = r => Math.log10(Math.max(r, FLOOR) / FLOOR);
    const plots = [];
    if (numAxes === 1) {
      plots.push(Plot.plot({
        width: w, height: Math.round(0.62 * w), marginLeft: 44, marginBottom: 40, style: FONT,
        x: { ...UNDER, type: "log", domain: [FLOOR, most], label: `radians a ${unit}`, ticks: decades(most), tickFormat: x => number(x) },
        y: { label: "weight", domain: [0, 1.15 * heaviest], ticks: 4, tickFormat: x => number(x), grid: true },
        marks: [
          Plot.ruleX(rings(most).filter(r => r !== 0.1 && r < 10), { stroke: "currentColor", strokeOpacity: 0.45, strokeDasharray: "3,3" }),
          Plot.text([DEAD, 1, ALIAS], { x: d => d, y: 1.15 * heaviest, text: ringText, textAnchor: "start", dx: 4, dy: 6 }),
          Plot.ruleX(planes, { x: p => Math.max(p.speed, FLOOR), y1: 0, y2: "weight", stroke: "var(--mark)", strokeOpacity: 0.4 }),
          Plot.dot(planes, { x: p => Math.max(p.speed, FLOOR), y: "weight", ...dots, r: 3, title, tip: true }),
        ],
      }));
    } else {
      const outer = scale(most), shown = planes.map(p => {
        const [dy, dx] = p.w.slice(-2), size = Math.hypot(dx, dy), r = scale(p.speed);
        return { ...p, x: size ? r * dx / size : 0, y: size ? r * dy / size : 0 };
      });
      const circle = r => d3.range(0, 361, 4).map(a => ({ r, x: scale(r) * Math.cos(a * Math.PI / 180), y: scale(r) * Math.sin(a * Math.PI / 180) }));
      plots.push(Plot.plot({
        width: w, height: w, margin: 18, style: FONT,
        x: { domain: [-outer, outer], axis: null }, y: { domain: [outer, -outer], axis: null },
        marks: [
          Plot.ruleX([0], { stroke: "var(--line)" }), Plot.ruleY([0], { stroke: "var(--line)" }),
          ...rings(most).map(r => Plot.line(circle(r), {
            x: "x", y: "y", stroke: "currentColor", strokeOpacity: r === 1 || r === ALIAS ? 0.75 : 0.3, strokeWidth: 1, strokeDasharray: r === 1 || r === ALIAS ? null : "3,3", curve: "linear-closed",
          })),
          Plot.text(rings(most), { x: r => scale(r) * Math.SQRT1_2, y: r => -scale(r) * Math.SQRT1_2, text: ringText, dx: 7, dy: -5, stroke: "var(--page)", strokeWidth: 3, fill: "currentColor" }),
          Plot.text([[outer, 0, "columns"]], { x: d => d[0], y: d => d[1], text: d => d[2], textAnchor: "end", dy: -7, stroke: "var(--page)", strokeWidth: 3, fill: "var(--soft)" }),
          Plot.text([[0, outer, "rows"]], { x: d => d[0], y: d => d[1], text: d => d[2], textAnchor: "start", dx: 5, dy: -4, stroke: "var(--page)", strokeWidth: 3, fill: "var(--soft)" }),
          Plot.dot(shown, { x: "x", y: "y", ...dots, title, tip: true }),
        ],
      }));
      if (numAxes === 3) {
        plots.push(Plot.plot({
          width: w, height: Math.round(0.7 * w), marginLeft: 48, marginBottom: 40, style: FONT,
          x: { ...UNDER, type: "log", domain: [FLOOR, most], label: "radians a patch within the frame", ticks: decades(most), tickFormat: x => number(x) },
          y: { type: "log", domain: [FLOOR, most], label: "radians a frame", ticks: decades(most), tickFormat: x => number(x) },
          marks: [
            Plot.ruleX([1, ALIAS], { strokeOpacity: 0.4 }), Plot.ruleY([1, ALIAS], { strokeOpacity: 0.4 }),
            Plot.dot(planes, { x: p => Math.max(FLOOR, Math.hypot(p.w[1], p.w[2])), y: p => Math.max(FLOOR, Math.abs(p.w[0])), ...dots, title, tip: true }),
          ],
        }));
      }
    }
    find.spectrum.append(...plots);
    const size = state.kind in layer.weights && state.kind !== "uniform" ? "larger dots weigh more" : "all weigh the same";
    find.spectrumNote.textContent = numAxes === 1
      ? `Each plane at the speed at which it rotates, and its weight; left of 0.01 it is dead, right of π it aliases.`
      : `Each plane as a dot: its direction on the grid, and outwards, on a logarithmic scale, its radians a patch along that direction. The circles are 1 radian and π; inside of 0.01 a plane is dead, outside of π it aliases; ${size}.` + (numAxes === 3 ? " Below, its speed in time against that in space." : "");
    const columns = ["plane", ...axes.map(a => numAxes === 1 ? `rad a ${unit}` : `rad a ${a}`), ...(numAxes > 1 ? ["speed"] : []), "weight"];
    const rows = planes.map(p => element("tr", {}, ...[p.plane + 1, ...p.w.map(x => number(x, 4)), ...(numAxes > 1 ? [number(p.speed, 4)] : []), number(p.weight)]
      .map(text => element("td", {}, String(text)))));
    find.table.querySelector("div")?.remove();
    find.table.append(element("div", { class: "scroll" }, element("table", { class: "planes" },
      element("thead", {}, element("tr", {}, ...columns.map(name => element("th", { scope: "col" }, name)))), element("tbody", {}, ...rows))));
  }

  // Reach

  function drawProfile(model, layer, find) {
    find.profile.replaceChildren();
    const along = model.grid.map(n => steps(n)), values = kernel(model, layer, state.head, state.kind, along);
    if (!values) { find.profileNote.textContent = "Not known with these weights."; return; }
    const farthest = Math.max(...model.grid) - 1, sums = new Float64Array(farthest + 1), counts = new Float64Array(farthest + 1);
    let at = 0;
    const visit = (axis, square) => {
      if (axis === numAxes) {
        const r = Math.round(Math.sqrt(square)), v = Math.abs(values[at++]);
        if (r <= farthest) { sums[r] += v; counts[r]++; }
      } else for (const d of along[axis]) visit(axis + 1, square + d * d);
    };
    visit(0, 0);
    const points = Array.from(sums, (s, r) => ({ r, y: s / counts[r] })), peak = largest(values), reach = layer.reach[state.kind][state.head];
    const w = width(find.profile);
    find.profile.append(Plot.plot({
      width: w, height: Math.round(0.62 * w), marginLeft: 44, marginBottom: 40, style: FONT,
      x: { ...UNDER, label: `distance in ${units}`, ticks: 6, tickFormat: d => String(d) },
      y: { label: "mean |κ|", domain: [0, 1.05 * peak || 1], ticks: 4, tickFormat: x => number(x), grid: true },
      marks: [
        Plot.ruleY([peak / 2], { stroke: "currentColor", strokeOpacity: 0.6, strokeDasharray: "3,3" }),
        ...(reach === null ? [] : [Plot.ruleX([reach], { stroke: "currentColor", strokeOpacity: 0.6 }),
          Plot.text([reach], { x: d => d, y: 1.05 * peak, text: () => `reach ${number(reach)}`, textAnchor: reach > farthest / 2 ? "end" : "start", dx: reach > farthest / 2 ? -5 : 5, dy: 6 })]),
        Plot.lineY(points, { x: "r", y: "y", stroke: "var(--mark)", strokeWidth: 1.6 }),
      ],
    }));
    find.profileNote.textContent = reach === 0
      ? "The kernel without its sign, averaged over all directions: it is nowhere half as large as the peak (dashed), which lies in one direction only."
      : reach === null
      ? "The kernel without its sign, averaged over all directions: it does not stay below half of its peak (dashed), so it reaches over the whole " + extent + "."
      : `The kernel without its sign, averaged over all directions: from ${number(reach)} ${units} on it stays below half of its peak (dashed).`;
  }

  // Attention on an image

  function attention(model, layer, head) {
    const { queries, keys, keyHeads } = layer.tokens, places = model.image.places.values, total = places.length / 2;
    const keyHead = Math.floor(head * keyHeads / layer.heads), dim = layer.headDim, planes = dim / 2;
    const token = state.token ?? model.image.prefix, feature = (part, h, d, t) =>
      part.mean.values[h * dim + d] + part.step.values[h] * part.numbers.values[(h * dim + d) * total + t];
    const from = state.carried && layer.commutes ? state.carried.map((x, i) => x + model.image.first[i]) : [places[2 * token], places[2 * token + 1]];
    const scores = new Float64Array(total);
    for (let p = 0; p < planes; p++) {
      const qr = feature(queries, head, 2 * p, token), qi = feature(queries, head, 2 * p + 1, token);
      const at = (head * planes + p) * 2, w = layer.commutes ? layer.frequencies.values.subarray(at, at + 2) : [0, 0];
      for (let t = 0; t < total; t++) {
        const kr = feature(keys, keyHead, 2 * p, t), ki = feature(keys, keyHead, 2 * p + 1, t);
        const phase = w[0] * (places[2 * t] - from[0]) + w[1] * (places[2 * t + 1] - from[1]);
        scores[t] += (qr * kr + qi * ki) * Math.cos(phase) - (qr * ki - qi * kr) * Math.sin(phase);
      }
    }
    const top = d3.max(scores), weights = scores.map(s => Math.exp(s - top)), sum = d3.sum(weights);
    return weights.map(x => x / sum);
  }
  const pictures = models.map(m => {
    if (!m.image) return null;
    const picture = new Image();
    picture.src = m.image.url;
    return picture;
  });

  function drawImage(model, layer, find) {
    const [rows, columns] = model.grid, { prefix } = model.image, token = state.token ?? prefix + Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    state.token = token;
    const weights = attention(model, layer, state.head), patches = weights.slice(prefix), most = d3.max(patches);
    const canvas = find.canvas, side = Math.ceil(480 / columns), context = canvas.getContext("2d");
    canvas.width = side * columns; canvas.height = side * rows;
    context.imageSmoothingEnabled = model.image.size[1] >= 200;
    context.drawImage(pictures[models.indexOf(model)], 0, 0, canvas.width, canvas.height);
    patches.forEach((a, i) => {
      context.fillStyle = `rgba(12, 14, 18, ${0.86 * (1 - Math.sqrt(a / most))})`;
      context.fillRect((i % columns) * side, Math.floor(i / columns) * side, side, side);
    });
    const box = (row, column, dashed) => {
      for (const [ink, line] of [["#111", 5], ["#fff", 2.5]]) {
        context.setLineDash(dashed ? [6, 5] : []);
        context.strokeStyle = ink; context.lineWidth = line;
        context.strokeRect(column * side + 1, row * side + 1, side - 2, side - 2);
      }
    };
    const home = token < prefix ? null : [Math.floor((token - prefix) / columns), (token - prefix) % columns];
    const moved = state.carried && layer.commutes ? state.carried : null;
    if (home) box(...home, Boolean(moved));
    if (moved) box(...moved, false);
    const best = d3.maxIndex(patches), rest = 1 - d3.sum(patches);
    const whose = home ? `The token of row ${home[0] + 1}, column ${home[1] + 1}` : `Extra token ${token + 1}`;
    find.attended.textContent = `${whose}${moved ? `, carried to row ${moved[0] + 1}, column ${moved[1] + 1},` : ""} attends most to row ${Math.floor(best / columns) + 1}, column ${best % columns + 1}: ${number(100 * most)} %` +
      (prefix ? `; ${number(100 * rest)} % go to ${count(prefix, "token")} that ${prefix === 1 ? "is no patch" : "are no patches"}.` : ".");
    Object.assign(find.attended.dataset, { token: String(token), best: String(best), most: String(most), rest: String(rest), place: moved ? moved.join(",") : "" });
    find.attentionNote.textContent = `Bright patches get most of the token's attention in this head. ` +
      (layer.commutes ? "Carried to another place, it keeps its content, and only its position changes. " : "Its place cannot be changed here: the angles do not commute. ") +
      `Queries and keys are rounded on this page, which changes no attention weight by more than ${number(100 * layer.tokens.rounding, 2)} %.`;
    find.carry.disabled = !layer.commutes;
  }

  function wireImage(model, find) {
    const { prefix } = model.image, [rows, columns] = model.grid;
    const go = (row, column, carry) => {
      row = Math.max(0, Math.min(rows - 1, row)); column = Math.max(0, Math.min(columns - 1, column));
      if (carry) state.carried = [row, column];
      else { state.token = prefix + row * columns + column; state.carried = null; }
      drawImages();
    };
    const here = () => state.carried ?? (state.token < prefix ? [Math.floor(rows / 2), Math.floor(columns / 2)] : [Math.floor((state.token - prefix) / columns), (state.token - prefix) % columns]);
    find.image.addEventListener("keydown", event => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const [row, column] = here();
      go(row + move[0], column + move[1], carrying() || event.shiftKey);
    });
    const carrying = () => state.carry && model.layers[state.layer].commutes;
    const point = event => {
      if (event.type === "pointermove" && !event.buttons) return;
      const box = find.canvas.getBoundingClientRect();
      go(Math.floor((event.clientY - box.top) / box.height * rows), Math.floor((event.clientX - box.left) / box.width * columns), carrying() || (event.shiftKey && model.layers[state.layer].commutes));
    };
    find.image.addEventListener("pointerdown", point);
    find.image.addEventListener("pointermove", point);
    find.carry = element("button", { type: "button", "aria-pressed": "false", class: "carry" }, "Carry the token");
    find.carry.addEventListener("click", () => {
      state.carry = !state.carry;
      if (!state.carry) state.carried = null;
      panels.forEach(each => each.carry?.setAttribute("aria-pressed", String(state.carry)));
      drawImages();
    });
    find.picks.append(find.carry);
    for (let t = 0; t < Math.min(prefix, 8); t++) {
      const button = element("button", { type: "button", class: "extra" }, prefix === 1 ? "Extra token" : `Extra token ${t + 1}`);
      button.addEventListener("click", () => { state.token = t; state.carried = null; drawImages(); });
      find.picks.append(button);
    }
  }
  function drawImages() {
    models.forEach((m, i) => { const l = m.layers[state.layer]; if (m.image && l && state.head < l.heads) drawImage(m, l, panels[i]); });
  }

  // Controls

  function setSlice(value) {
    state.slice = value;
    state.cursor[0] = value;
    $("slice").value = value;
    $("slice-text").textContent = value === 0 ? "Key in the query's frame" : `Key ${count(Math.abs(value), "frame")} ${value > 0 ? "later" : "earlier"}`;
    drawHeads();
  }
  function wireControls() {
    for (const [kind, [label]] of Object.entries(KINDS)) {
      const known = models.some(m => m.layers.some(l => (l.weights ?? l.kernels)[kind]));
      if (!known && kind === "image") continue;
      const input = element("input", { type: "radio", name: "kind", value: kind });
      input.checked = kind === state.kind;
      input.disabled = !known;
      input.addEventListener("change", () => { state.kind = kind; summarise(); drawHeads(); drawPanels(); });
      const why = models[0].layers[0].why[kind];
      $("kinds").append(element("label", known ? {} : { title: `Not known: ${why}` }, input, label));
    }
    for (const [what, [label]] of Object.entries(BELOW)) $("below").append(element("option", { value: what }, label));
    $("below").addEventListener("change", event => { state.below = event.target.value; drawHeads(); });
    if (numAxes === 3) {
      $("slice-label").hidden = false;
      Object.assign($("slice"), { min: 1 - widest[0], max: widest[0] - 1 });
      $("slice").addEventListener("input", event => { setSlice(Number(event.target.value)); drawPanels(); });
    }
  }

  document.body.classList.toggle("comparing", models.length > 1);
  const heads = d3.sum(models[0].layers, l => l.heads);
  $("lead").textContent = `What the rotary encoding of ${count(heads, "head")} in ${count(models[0].layers.length, "layer")} does to the score of a query and a key, as a function of where they are.` +
    (models.length > 1 ? " In each pair of pictures the first model is on the left." : "");
  chooseColours();
  wireControls();
  summarise();
  buildHeads();
  buildPanels();
  wireDialog();
  await Promise.all(pictures.filter(Boolean).map(picture => picture.decode()));
  if (numAxes === 3) setSlice(0);
  drawHeads();
  select(0, 0);
  dark.addEventListener("change", () => { chooseColours(); drawHeads(); drawPanels(); });
  let lastWidth = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== lastWidth) { lastWidth = innerWidth; drawPanels(); } });
  document.documentElement.dataset.ready = "true";
})();
