// Numbers and displacements in words.

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
function belowText(layer, what, head) {
  if (what === "reach") return layer.reach[state.kind] ? reachText(layer.reach[state.kind][head]) : "–";
  return layer[what] ? number(layer[what][head], 2) : "–";
}
