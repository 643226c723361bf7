// One head: its panel, which can be enlarged, its numbers and its kernel.

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
