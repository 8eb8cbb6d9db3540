// From one overview to elements. Every text goes in as text, so a device's name can never be markup.

const SVG = "http://www.w3.org/2000/svg";

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const number = (value) => value.toLocaleString("en");
export const percent = (share) => `${+(100 * share).toFixed(share < 0.1 || (share > 0.99 && share < 1) ? 1 : 0)} %`;
export const devices = (count) => `${number(count)} ${count === 1 ? "device" : "devices"}`;

export function ago(seconds) {
  if (seconds < 5) return "just now";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${Math.floor(seconds)} s ago`;
}

const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

function figure(name, value, aside) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value, aside ? el("small", {}, ` ${aside}`) : null));
}

export function drawFleet(overview) {
  const { fleet, service } = overview;
  const changing = overview.devices.filter((device) => changes(device).length).length;
  const shown = overview.devices.length < fleet.devices ? `of ${number(overview.devices.length)} shown` : "";
  const figures = el("dl", { class: "figures" },
    figure("Devices", number(fleet.devices)),
    figure("Online", number(fleet.online), fleet.devices ? percent(fleet.online / fleet.devices) : ""),
    figure("Changing version", number(changing), shown),
    ...(fleet.drifting ? [figure("Drifting", number(fleet.drifting), percent(fleet.drifting / fleet.devices))] : []),
    figure("Windows of telemetry", number(service.telemetry)),
  );
  const models = Object.entries(fleet.by_version).map(([model, counts]) => drawVersions(model, counts, fleet.devices));
  return [el("div", { class: "card" }, figures, ...models)];
}

const newestFirst = ([a], [b]) => b.localeCompare(a, "en", { numeric: true });

function drawVersions(model, counts, all) {
  const versions = Object.entries(counts).sort(newestFirst);
  const without = all - versions.reduce((sum, [, count]) => sum + count, 0);
  const parts = versions.map(([version, count], i) => [version, count, `shade-${Math.min(i, 3)}`]);
  if (without > 0) parts.push(["none yet", without, "shade-none"]);
  const stack = el("div", { class: "stack", role: "img", "aria-label": parts.map(([v, n]) => `${v}: ${devices(n)}`).join(", ") });
  for (const [, count, shade] of parts) {
    const piece = el("i", { class: shade });
    piece.style.flexGrow = count;
    stack.append(piece);
  }
  const legend = el("ul", { class: "legend" }, ...parts.map(([version, count, shade]) =>
    el("li", {}, el("i", { class: shade }), `${version} `, el("span", { class: "soft" }, number(count)))));
  return el("div", { class: "versions" }, el("h3", {}, model), stack, legend);
}

const PHASES = {
  draft: ["not started", ""], running: ["running", "new"], holding: ["waiting for a person", "wait"], paused: ["paused", "wait"],
  stopped: ["stopped", "bad"], rolling_back: ["rolling back", "bad"], rolled_back: ["rolled back", "bad"], done: ["done", "good"],
  aborted: ["aborted", "wait"],
};
const LOOK = { stopped: "stopped", rolling_back: "stopped", rolled_back: "stopped", done: "done", holding: "holding" };
const NEXT = { holding: ["approve", "abort", "rollback"], paused: ["resume", "abort", "rollback"], stopped: ["rollback", "abort"] };

export function drawRollouts(overview) {
  if (!overview.rollouts.length) return [el("p", { class: "card empty" }, "No rollout yet: ", el("code", {}, "edgeml fleet rollout create MODEL@VERSION"))];
  return overview.rollouts.map((rollout) => drawRollout(rollout, overview));
}

function drawRollout(rollout, overview) {
  const [word, tone] = PHASES[rollout.phase] ?? [rollout.phase, ""];
  const since = rollout.ended_at ?? rollout.started_at;
  const top = el("div", { class: "top" },
    el("h3", {}, `${rollout.model} ${rollout.version}`), el("span", { class: `chip ${tone}` }, word),
    since ? el("span", { class: "when soft small" }, `${rollout.ended_at ? "ended" : "started"} ${ago(overview.service.now - since)}`) : null);
  const card = el("article", { class: `card rollout ${LOOK[rollout.phase] ?? ""}`, "data-id": rollout.id, "data-phase": rollout.phase }, top,
    el("p", { class: "evidence" }, rollout.sentence), drawWaves(rollout), drawSteps(rollout), drawShadow(rollout));
  if (NEXT[rollout.phase]) {
    const commands = NEXT[rollout.phase].flatMap((verb, i) => [i ? " · " : "", el("code", {}, `edgeml fleet rollout ${verb} ${rollout.id}`)]);
    card.append(el("p", { class: "next" }, ...commands));
  }
  const said = rollout.verdicts.filter((verdict) => verdict.sentence !== rollout.sentence);
  if (said.length) {
    card.append(el("details", {}, el("summary", {}, `What the gates said before (${said.length})`),
      el("ol", {}, ...said.map((verdict) => el("li", {}, verdict.sentence)))));
  }
  return card;
}

const STEPS = {
  offered: ["waiting to begin", ""], downloading: ["downloading", ""], verified: ["checked, not yet installed", ""], self_test: ["in self-test", ""],
  shadow: ["beside the old version", "new"], soaking: ["soaking", "new"], confirmed: ["confirmed", "good"],
  failed: ["failed", "bad"], rejected: ["rejected", "bad"], rolled_back: ["rolled back", "bad"],
};

function drawSteps(rollout) {
  const over = ["done", "rolled_back", "aborted"].includes(rollout.phase); // then only what went wrong is still of interest
  const at = Object.entries(STEPS).filter(([state, [, tone]]) => rollout.positions[state] && (!over || tone === "bad"));
  if (!at.length) return null;
  return el("ul", { class: "steps", "aria-label": "Devices by their newest report" }, ...at.map(([state, [word, tone]]) =>
    el("li", { class: `chip ${tone}` }, `${number(rollout.positions[state])} ${word}`)));
}

function drawShadow({ shadow }) {
  if (!shadow) return null;
  const agreed = shadow.runs ? `${number(shadow.agreed)} of ${number(shadow.runs)} answers the same` : "no answer yet";
  const slower = shadow.served_s > 0 ? `, ${(shadow.shadow_s / shadow.served_s).toFixed(2)} times its time` : "";
  const failed = `, ${number(shadow.errors)} ${shadow.errors === 1 ? "error" : "errors"}`;
  return el("p", { class: "shadow small" }, el("strong", {}, "Beside the old version"), ` on ${devices(shadow.devices)}: ${agreed}${slower}${failed}`);
}

function drawWaves(rollout) {
  const { waves, hold_back: held } = rollout.spec;
  const taken = rollout.phase === "rolled_back" || rollout.phase === "rolling_back";
  const reached = rollout.phase === "done" ? 1 : taken ? (waves[rollout.wave]?.share ?? 0) : rollout.share;
  const pieces = [svg("rect", { class: "fill", x: 0, y: 0, width: `${100 * reached}%`, height: "100%" })];
  if (held && rollout.phase !== "done") pieces.push(svg("rect", { class: "held", x: `${100 * (1 - held)}%`, y: 0, width: `${100 * held}%`, height: "100%" }));
  for (const { share } of waves) if (share < 1) pieces.push(svg("rect", { class: "mark", x: `${100 * share}%`, y: 0, width: 2, height: "100%" }));
  const words = waves.map(({ share }, i) => {
    const name = i === 0 ? `canary ${percent(share)}` : percent(share);
    return el("li", { class: i === rollout.wave && rollout.phase !== "done" ? "now" : null }, name);
  });
  if (held) words.push(el("li", {}, `hold-back ${percent(held)}`));
  const kept = rollout.taken_back ? `, ${number(rollout.taken_back)} taken back` : "";
  words.push(el("li", {}, `${devices(rollout.told)} told${kept}`));
  return el("div", { class: "waves" },
    el("div", { class: "bar", role: "img", "aria-label": `${percent(reached)} of the fleet, ${devices(rollout.told)} told${kept}` }, svg("svg", { "aria-hidden": "true" }, ...pieces)),
    el("ul", { class: "marks" }, ...words));
}

function changes(device) {
  return Object.entries(device.wanted).filter(([model, version]) => (device.installed[model] ?? null) !== version);
}

export function drawDevices(overview, wanted) {
  const needle = wanted.trim().toLowerCase();
  const found = overview.devices.filter((device) => !needle || haystack(device).includes(needle));
  if (!overview.devices.length) return [el("p", { class: "card empty" }, "No device yet: ", el("code", {}, "edgeml fleet devices add NAME"))];
  if (!found.length) return [el("p", { class: "card empty" }, `No device matches “${wanted.trim()}”.`)];
  const head = el("thead", {}, el("tr", {}, ...["Device", "State", "Runs", "Where", "Engines"].map((name) => el("th", { scope: "col" }, name))));
  const rows = found.map((device) => el("tr", {},
    el("td", {}, device.id),
    el("td", {}, el("span", { class: device.online ? "state" : "state off" }, device.online ? "online" : seen(device, overview.service.now))),
    el("td", {}, runs(device), drifts(device)),
    el("td", { class: "tags" }, Object.values(device.tags).join(" · ")),
    el("td", { class: "tags" }, Object.entries(device.engines).map(([name, version]) => `${name} ${version}`).join(", "))));
  const more = overview.fleet.devices - overview.devices.length;
  return [el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Devices" }, el("table", {}, head, el("tbody", {}, ...rows))),
    more > 0 ? el("p", { class: "soft small" }, `${number(more)} more: `, el("code", {}, "edgeml fleet devices list")) : null].filter(Boolean);
}

const haystack = (device) => [device.id, device.arch, ...Object.values(device.tags), ...Object.entries(device.installed).flat()].join(" ").toLowerCase();
const seen = (device, now) => (device.last_seen ? `off, seen ${ago(now - device.last_seen)}` : "never seen");

function drifts(device) {
  const found = Object.entries(device.drift).map(([model, streams]) => `${model}: ${streams.join(", ")}`);
  return found.length ? el("div", { class: "small bad" }, `drifts from its reference: ${found.join("; ")}`) : null;
}

function runs(device) {
  const now = Object.entries(device.installed).map(([model, version]) => `${model} ${version}`);
  const next = changes(device).map(([model, version]) => (version ? `→ ${model} ${version}` : `→ without ${model}`));
  return [...now, ...next].join(" ") || "nothing";
}

export const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

export function drawModels(overview) {
  if (!overview.models.length) return [el("p", { class: "card empty" }, "Nothing published: ", el("code", {}, "edgeml fleet publish BUNDLE"))];
  return [el("ul", { class: "card log" }, ...overview.models.map((version) => el("li", {},
    el("strong", {}, `${version.model} ${version.version}`), ` ${size(version.bytes)}`, version.state === "published" ? null : el("span", { class: "bad" }, ` ${version.state}`),
    el("div", { class: "soft small" }, `published ${ago(overview.service.now - version.created_at)} · manifest `, el("code", {}, version.manifest_sha256.slice(0, 12))))))];
}

export function drawEvents(overview) {
  if (!overview.events.length) return [el("p", { class: "card empty" }, "Nothing happened yet.")];
  return [el("ul", { class: "card log", tabindex: "0" }, ...overview.events.map((event) => el("li", {},
    el("span", { class: "soft" }, `${clock(event.at)} `), el("strong", {}, event.kind.replaceAll("_", " ")), ` ${event.subject}`,
    event.body.text ? el("div", { class: "small soft" }, event.body.text) : null)))];
}
