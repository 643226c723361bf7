// At a glance: a table of the models.

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
