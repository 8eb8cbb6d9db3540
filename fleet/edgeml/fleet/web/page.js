// Asks the service for its overview every two seconds, and redraws only the parts that changed.

import { ago, drawDevices, drawEvents, drawFleet, drawModels, drawRollouts } from "/web/draw.js";
import { drawSamples, isPicture, pictureOf } from "/web/samples.js";

const EVERY_MS = 2000;
const KEY = "edgeml.operator-key";
const $ = (id) => document.getElementById(id);
const drawn = {};
let overview = null;
let heardAt = null;
let pictures = null; // of samples, by id; null: nobody asked to see them

function key() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY);
}

function ask(refusal) {
  $("ask").hidden = false;
  $("all").hidden = true;
  $("refused").textContent = refusal;
  say("locked", "");
}

function say(text, tone) {
  $("link").textContent = text;
  $("link").className = tone;
}

function place(id, uses, draw) {
  const state = JSON.stringify(uses);
  if (drawn[id] === state) return;
  drawn[id] = state;
  const open = [...$(id).querySelectorAll("details[open]")].map((details) => details.closest("[data-id]")?.dataset.id);
  const scrolled = $(id).querySelector(".scroll, .log")?.scrollTop ?? 0;
  $(id).replaceChildren(...draw());
  for (const card of $(id).querySelectorAll("[data-id]")) if (open.includes(card.dataset.id)) card.querySelector("details")?.setAttribute("open", "");
  const scroll = $(id).querySelector(".scroll, .log");
  if (scroll) scroll.scrollTop = scrolled;
}

function draw() {
  const { fleet, rollouts, devices, samples, models, events, service } = overview;
  const minute = Math.floor(service.now / 10); // "… ago" need not be younger than that
  const wanted = $("find").value;
  const sketch = devices.map(({ last_seen, ...device }) => (device.online ? device : { ...device, last_seen }));
  $("ask").hidden = true;
  $("all").hidden = false;
  place("fleet", [fleet, sketch, service.telemetry], () => drawFleet(overview));
  place("rollouts", [rollouts, minute], () => drawRollouts(overview));
  place("devices", [sketch, wanted, fleet.devices, minute], () => drawDevices(overview, wanted));
  place("samples", [samples, minute, pictures !== null], () => drawSamples(overview, pictures, look));
  place("models", [models, Math.floor(service.now / 60)], () => drawModels(overview));
  place("events", events, () => drawEvents(overview));
}

function look() {
  pictures = pictures ? null : new Map();
  draw();
  loadPictures();
}

async function loadPictures() {
  for (const row of overview.samples.newest.filter(isPicture)) {
    if (!pictures) return;
    if (pictures.has(row.header.id)) continue;
    pictures.set(row.header.id, null); // asked for, also where it never comes
    const picture = await pictureOf(row.header.id, { Authorization: `Bearer ${key()}` }).catch(() => null);
    pictures?.set(row.header.id, picture);
  }
  drawn.samples = null;
  draw();
}

async function poll() {
  const secret = key();
  if (!secret) return ask("");
  try {
    const answer = await fetch("/v1/overview", { headers: { Authorization: `Bearer ${secret}` }, cache: "no-store" });
    if (answer.status === 401 || answer.status === 403) {
      sessionStorage.removeItem(KEY);
      return ask("That is not this service's key.");
    }
    if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
    overview = await answer.json();
    heardAt = Date.now();
    draw();
    if (pictures && overview.samples.newest.some((row) => isPicture(row) && !pictures.has(row.header.id))) loadPictures();
    sayHow(overview.service.broker);
  } catch (problem) {
    const since = heardAt ? `, last heard ${ago((Date.now() - heardAt) / 1000)}` : "";
    say(`service out of reach${since}`, "bad");
  }
}

function sayHow(broker) {
  if (!broker.url) return say("live · no broker, devices poll", "good");
  if (!broker.connected) return say(`live · ${broker.name} is not connected, devices poll`, "bad");
  return say(`live · ${broker.name}`, "good");
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  poll();
});
$("find").addEventListener("input", () => overview && draw());
addEventListener("hashchange", poll);

async function forever() {
  if (!document.hidden) await poll();
  setTimeout(forever, EVERY_MS);
}
forever();
