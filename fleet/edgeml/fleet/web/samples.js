// Inputs that devices were allowed to send: a list, and what they look like where they can be looked at.

import { ago, devices, el, number, percent, size } from "/web/draw.js";

const MAGIC_BYTES = 8;
const MOST_BYTES = 512 * 1024; // of a sample that is fetched only to be looked at
const SIDES = [4, 1024]; // of a picture, in pixels
const ARRAYS = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array };

export function drawSamples(overview, pictures, look) {
  const { taken, kept, newest } = overview.samples;
  if (!kept.samples) {
    const why = taken ? "No sample yet: a device sends inputs it was not sure of only if its owner turned that on, by " : "This service takes no samples; its option is ";
    return [el("p", { class: "card empty" }, why, el("code", {}, taken ? "[samples] in agent.toml" : "--samples-mb"))];
  }
  const [model] = Object.keys(kept.by_model);
  const models = Object.entries(kept.by_model).map(([name, count]) => `${name} ${number(count)}`).join(", ");
  const lead = el("p", { class: "soft small lead" },
    `${number(kept.samples)} inputs that ${devices(kept.devices)} ${kept.devices === 1 ? "was" : "were"} not sure of (${models}), ${size(kept.bytes)}. `,
    el("code", {}, `edgeml fleet samples get --model ${model} -o field.npz`));
  if (newest.some(isPicture)) {
    const button = el("button", { type: "button", class: "plain", "aria-pressed": String(pictures !== null) }, pictures ? "Hide pictures" : "Show pictures");
    button.addEventListener("click", look);
    lead.append(" ", button);
  }
  const names = [...(pictures ? ["Picture"] : []), "Device", "Answer", "Score", "Input", "Came"];
  const head = el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name))));
  const rows = newest.map((row) => el("tr", {},
    pictures ? el("td", { class: "picture" }, pictures.get(row.header.id) ?? null) : null,
    el("td", {}, row.device),
    el("td", {}, row.header.label ?? "–", el("span", { class: "soft" }, ` ${row.header.model} ${row.header.version}`)),
    el("td", {}, row.header.score === undefined ? "" : percent(row.header.score)),
    el("td", { class: "tags" }, row.header.tensors.map((tensor) => `${tensor.name} ${tensor.shape.join("x")}`).join(", ")),
    el("td", { class: "tags" }, ago(overview.service.now - row.received_at))));
  return [
    lead,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Samples" }, el("table", {}, head, el("tbody", {}, ...rows))),
    kept.samples > newest.length ? el("p", { class: "soft small" }, `The newest ${newest.length}; all of them: `, el("code", {}, "edgeml fleet samples list")) : null,
  ].filter(Boolean);
}

export function isPicture(row) {
  return row.bytes <= MOST_BYTES && layoutOf(row.header.tensors[0]) !== null;
}

// Where height, width and colours lie in a tensor; null for one that is no picture.
function layoutOf({ dtype, shape }) {
  const axes = shape.length > 2 && shape[0] === 1 ? shape.slice(1) : shape;
  const isSide = (axis) => axis >= SIDES[0] && axis <= SIDES[1];
  const isColours = (axis) => axis === 1 || axis === 3;
  if (!(dtype in ARRAYS)) return null;
  if (axes.length === 2 && axes.every(isSide)) return { height: axes[0], width: axes[1], colours: 1, last: true };
  if (axes.length !== 3) return null;
  if (isSide(axes[0]) && isSide(axes[1]) && isColours(axes[2])) return { height: axes[0], width: axes[1], colours: axes[2], last: true };
  if (isColours(axes[0]) && isSide(axes[1]) && isSide(axes[2])) return { height: axes[1], width: axes[2], colours: axes[0], last: false };
  return null;
}

// The first tensor of a sample, drawn from its smallest to its largest value.
export async function pictureOf(id, headers) {
  const answer = await fetch(`/v1/samples/${id}`, { headers, cache: "no-store" });
  if (!answer.ok) return null; // deleted since it was listed
  const data = await answer.arrayBuffer();
  const length = new DataView(data).getUint32(MAGIC_BYTES, true);
  const begin = MAGIC_BYTES + 4;
  const { tensors: [tensor] } = JSON.parse(new TextDecoder().decode(new Uint8Array(data, begin, length)));
  const packed = new Blob([new Uint8Array(data, begin + length)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(packed).arrayBuffer();
  const count = tensor.shape.reduce((product, axis) => product * axis, 1);
  return draw(new ARRAYS[tensor.dtype](bytes, 0, count), layoutOf(tensor));
}

function draw(values, { height, width, colours, last }) {
  const canvas = el("canvas", { width, height, role: "img", "aria-label": "the input as a picture" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const [low, high] = values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  const scale = high > low ? 255 / (high - low) : 0;
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let colour = 0; colour < 3; colour += 1) {
      const channel = colours === 3 ? colour : 0;
      image.data[4 * pixel + colour] = (values[last ? pixel * colours + channel : channel * width * height + pixel] - low) * scale;
    }
    image.data[4 * pixel + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
