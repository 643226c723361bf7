// The reach of a head: its kernel against the distance.

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
