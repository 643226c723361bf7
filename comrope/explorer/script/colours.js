// Colours of a kernel: orange above zero, blue below, the page's own background at zero.

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
