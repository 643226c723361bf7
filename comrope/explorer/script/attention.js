// The attention of a token on an image; the token can be moved.

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
