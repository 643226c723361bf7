// Controls, and what runs when the page is opened.

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
