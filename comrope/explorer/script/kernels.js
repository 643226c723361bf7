// Kernels, κ(Δ) = Σ_p Re(c_p e^{i w_pᵀΔ}), from each plane's frequency and weight, as in comrope/explorer/kernels.py.

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
