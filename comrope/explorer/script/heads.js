// All heads: a small picture of each kernel.

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
