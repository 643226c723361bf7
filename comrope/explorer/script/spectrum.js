// The spectrum of a head: each plane's direction and speed.

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
