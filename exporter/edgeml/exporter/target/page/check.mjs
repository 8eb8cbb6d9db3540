// Runs a bundle's golden vectors on onnxruntime-web, by the rules of edgeml.runtime.golden: every element within its
// tolerance, root mean square and mean of the differences within theirs, and enough samples of the expected class.
import * as ort from "./ort.wasm.bundle.min.mjs";

const WARM_CALLS = 5;
const TIMED_CALLS = 100;
const TIMED_MS = 2000;
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};

const asked = new URLSearchParams(location.search);

async function bytes(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

// Stored samples as one typed array each.
async function samples(tensor, count) {
  const whole = new ARRAYS[tensor.dtype](await bytes(tensor.file));
  const size = tensor.shape.reduce((product, axis) => product * axis, 1);
  if (whole.length !== count * size) throw new Error(`${tensor.file}: expected ${count * size} values, got ${whole.length}`);
  return Array.from({ length: count }, (_, i) => whole.slice(i * size, (i + 1) * size));
}

// What an output tensor says, in real numbers.
function real(data, quantization) {
  if (!quantization) return Array.from(data, Number);
  return Array.from(data, (stored) => quantization.scale * (Number(stored) - quantization.zero_point));
}

const best = (values) => values.reduce((at, value, i) => (value > values[at] ? i : at), 0);
const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];

// One artifact: what the manifest says in, a record of what was found out; `seen` hears of each sample.
async function check(artifact, count, seen) {
  const model = await bytes(artifact.file);
  const began = performance.now();
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const load_ms = performance.now() - began;
  const fed = await Promise.all(artifact.inputs.map((tensor) => samples(tensor, count)));
  const wanted = await Promise.all(artifact.outputs.map((tensor) => samples({ ...tensor, dtype: tensor.expected_dtype }, count)));
  const feeds = (i) => Object.fromEntries(
    artifact.inputs.map((tensor, k) => [tensor.tensor, new ort.Tensor(tensor.dtype, fed[k][i], tensor.shape)]),
  );
  const outputs = artifact.outputs.map((tensor) => (
    { name: tensor.name, max_abs: 0, tolerance: tensor.tolerance, squares: 0, sum: 0, elements: 0, rms: tensor.rms, bias: tensor.bias }
  ));
  let agreeing = 0;
  let failed = 0;
  for (let i = 0; i < count; i++) {
    const answer = await session.run(feeds(i));
    let used = 0;
    artifact.outputs.forEach((tensor, k) => {
      const got = real(answer[tensor.tensor].data, tensor.quantization);
      const expected = Array.from(wanted[k][i], Number);
      if (got.length !== expected.length) throw new Error(`output ${tensor.name}: expected ${expected.length} values, got ${got.length}`);
      got.forEach((value, at) => {
        const difference = (value - expected[at]) / tensor.units[at % tensor.units.length];
        const size = Number.isFinite(difference) ? Math.abs(difference) : Infinity;
        outputs[k].max_abs = Math.max(outputs[k].max_abs, size);
        outputs[k].squares += difference * difference;
        outputs[k].sum += difference;
        used = Math.max(used, size <= tensor.tolerance ? (tensor.tolerance ? size / tensor.tolerance : 0) : Infinity);
      });
      outputs[k].elements += got.length;
      if (tensor.ranked) agreeing += best(got) === best(expected) ? 1 : 0;
    });
    const passed = used <= 1;
    failed += passed ? 0 : 1;
    seen(i, passed, used);
  }
  const times = await time(session, feeds, count);
  await session.release();
  const found = outputs.map(({ name, max_abs, tolerance, squares, sum, elements, rms, bias }) => ({
    name, max_abs, tolerance, rms: Math.sqrt(squares / elements), rms_limit: rms, bias: Math.abs(sum / elements), bias_limit: bias,
  }));
  const agreement = agreeing / count;
  const reasons = [];
  if (failed) reasons.push(`${failed} of ${count} samples are beyond their tolerance`);
  for (const { name, rms, rms_limit, bias, bias_limit } of found) {
    if (rms_limit !== null && !(rms <= rms_limit)) reasons.push(`${name}: rms ${brief(rms)}, at most ${brief(rms_limit)}`);
    if (bias_limit !== null && !(bias <= bias_limit)) reasons.push(`${name}: bias ${brief(bias)}, at most ${brief(bias_limit)}`);
  }
  if (agreement < artifact.least_agreement) reasons.push(`${brief(100 * agreement)} % same class, at least ${brief(100 * artifact.least_agreement)}`);
  return {
    artifact: artifact.label, status: reasons.length ? "fail" : "pass", reason: reasons.join("; "), samples: count, failed,
    outputs: found, agreement, least_agreement: artifact.least_agreement, load_ms, ...times,
  };
}

// Milliseconds of warm calls, one sample after the other.
async function time(session, feeds, count) {
  for (let i = 0; i < WARM_CALLS; i++) await session.run(feeds(i % count));
  const times = [];
  const until = performance.now() + TIMED_MS;
  while (times.length < TIMED_CALLS && (times.length < 3 || performance.now() < until)) {
    const feed = feeds(times.length % count);
    const began = performance.now();
    await session.run(feed);
    times.push(performance.now() - began);
  }
  times.sort((a, b) => a - b);
  return { p50_ms: quantile(times, 0.5), p90_ms: quantile(times, 0.9), calls: times.length };
}

function brief(number) {
  if (!Number.isFinite(number)) return "not finite";
  const rounded = Number(number.toPrecision(3));
  return number !== 0 && Math.abs(number) < 1e-3 ? rounded.toExponential() : rounded.toString();
}
const at = (id) => document.getElementById(id);

function card(artifact, count) {
  const part = at("artifact").content.cloneNode(true).firstElementChild;
  part.dataset.artifact = artifact.label;
  part.querySelector("h2").textContent = artifact.label;
  state(part.querySelector(".status"), "waiting", "waiting");
  part.querySelector(".samples").append(...Array.from({ length: count }, () => document.createElement("i")));
  at("artifacts").append(part);
  return part;
}

function state(element, kind, text) {
  element.classList.remove("waiting", "pass", "fail");
  element.classList.add(kind);
  element.textContent = text;
}

function show(part, artifact, found) {
  state(part.querySelector(".status"), found.status, found.status);
  part.querySelector(".detail").textContent = found.reason;
  if (!found.outputs) return;
  const several = found.outputs.length > 1;
  const rows = found.outputs.flatMap(({ name, max_abs, tolerance }) => [
    [several ? `Largest difference, ${name}` : "Largest difference", brief(max_abs)], ["Allowed", brief(tolerance)],
  ]);
  if (artifact.outputs.some((tensor) => tensor.ranked) && artifact.least_agreement > 0) {
    rows.push(["Same class", `${brief(100 * found.agreement)} %`]);
  }
  rows.push(["One call, p50", `${brief(found.p50_ms)} ms`], ["One call, p90", `${brief(found.p90_ms)} ms`], ["Load", `${brief(found.load_ms)} ms`],
    ["Model", `${artifact.bytes.toLocaleString("en")} bytes`]);
  for (const [term, value] of rows) {
    const dt = document.createElement("dt");
    const dd = document.createElement("dd");
    dt.textContent = term;
    dd.textContent = value;
    part.querySelector("dl").append(dt, dd);
  }
  const passed = found.samples - found.failed;
  part.querySelector(".samples").setAttribute("aria-label", `${passed} of ${found.samples} samples within tolerance`);
}

function mark(part, i, passed, used) {
  const square = part.querySelectorAll(".samples i")[i];
  square.className = passed ? "pass" : "fail";
  square.style.setProperty("--used", passed ? used : 1);
  square.title = `sample ${i}: ${passed ? `${Math.round(100 * used)} % of its tolerance` : "beyond its tolerance"}`;
}

// Hands the record to whoever serves the page (`edgeml web --check`); a plain file server has no such place.
async function tell(record) {
  if (asked.has("tell")) {
    await fetch(`result/${asked.get("tell")}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(record) });
  }
}

async function main() {
  const bundle = JSON.parse(new TextDecoder().decode(await bytes("bundle.json")));
  document.title = `${bundle.name} ${bundle.version} in this browser`;
  at("name").textContent = `${bundle.name} ${bundle.version}`;
  at("about").textContent = `${bundle.samples} golden samples, bundle ${bundle.digest.slice(0, 12)}`;
  const version = ort.env.versions.web;
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", location.href).href };
  ort.env.wasm.numThreads = crossOriginIsolated ? Number(asked.get("threads") ?? 1) : 1;
  const threads = ort.env.wasm.numThreads === 1 ? "one thread" : `${ort.env.wasm.numThreads} threads`;
  at("engine").textContent = `onnxruntime-web ${version} on WebAssembly, ${threads}. ${navigator.userAgent}`;
  const parts = bundle.artifacts.map((artifact) => card(artifact, bundle.samples));
  const results = [];
  for (const [k, artifact] of bundle.artifacts.entries()) {
    at("sentence").textContent = `${artifact.label}…`;
    let found;
    try {
      found = await check(artifact, bundle.samples, (i, passed, used) => mark(parts[k], i, passed, used));
    } catch (error) {
      found = { artifact: artifact.label, status: "fail", reason: String(error.message ?? error).slice(0, 500) };
    }
    results.push(found);
    show(parts[k], artifact, found);
  }
  const failed = results.filter((found) => found.status === "fail");
  const kind = failed.length ? "fail" : "pass";
  at("verdict").className = `verdict ${kind}`;
  at("word").textContent = failed.length ? "Fail" : "Pass";
  at("sentence").textContent = failed.length
    ? `${failed.length} of ${results.length} artifacts do not compute here what was exported.`
    : `${["", "The artifact computes", "Both artifacts compute"][results.length] ?? `All ${results.length} artifacts compute`} here what `
      + "was exported.";
  return { digest: bundle.digest, threads: ort.env.wasm.numThreads, engine: `onnxruntime-web ${version}`, agent: navigator.userAgent, isolated: crossOriginIsolated,
    status: kind, artifacts: results };
}

let record;
try {
  record = await main();
} catch (error) {
  const reason = String(error.message ?? error).slice(0, 500);
  at("verdict").className = "verdict fail";
  at("word").textContent = "Fail";
  at("sentence").textContent = reason;
  record = { digest: "", threads: 0, engine: "", agent: navigator.userAgent, isolated: crossOriginIsolated, status: "fail", reason,
    artifacts: [] };
}
globalThis.edgeml = record;
document.documentElement.dataset.done = record.status;
await tell(record);
