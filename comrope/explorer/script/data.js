// The data of the page, unpacked, and what is chosen at the moment.

const DEAD = 0.01, ALIAS = Math.PI, MOST_THUMBNAIL = 33;
const KINDS = {
  uniform: ["all alike", "every plane has the same weight, 1 / number of planes, so that the kernel is 1 at displacement 0"],
  weights: ["by the weights", "a plane weighs as much as queries and keys of white inputs have in it, by the weights of their projections; the sum is 1"],
  image: ["by this image", "a plane weighs the mean of query times key over all pairs of the image's patches, so that the kernel is a mean score, as the softmax gets it"],
};
const $ = id => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && typeof value !== "string") made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

async function unpacked(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpacked));
  if (value === null || typeof value !== "object") return value;
  if ("kind" in value && "data" in value) {
    const bytes = Uint8Array.from(atob(value.data), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    const values = new { int8: Int8Array, int16: Int16Array, float32: Float32Array }[value.kind](buffer);
    return { shape: value.shape, values: "step" in value ? Float64Array.from(values, x => x * value.step) : values };
  }
  const entries = await Promise.all(Object.entries(value).map(async ([key, each]) => [key, await unpacked(each)]));
  return Object.fromEntries(entries);
}
const { models } = await unpacked(JSON.parse($("data").textContent));
const axes = models[0].axes, numAxes = axes.length;
const state = {
  layer: 0, head: 0, kind: "uniform", below: "reach", slice: 0, cursor: axes.map(() => 0), token: null, carried: null, carry: false,
  place: "mean",
};
