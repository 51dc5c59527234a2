// The cache at work: what is remembered and where on the time axis, how far the stream has drifted, and every decision.

const $ = (id) => document.getElementById(id);
const place = new URL(location.href);
const key = place.searchParams.get("key") ?? sessionStorage.getItem("longtake.key") ?? "";
const ROLES = {
  subject_anchor: ["subject anchor", "#b83280"],
  scene_sink: ["scene sink", "#2f9e5b"],
  scene_anchor: ["scene anchor", "#1f9bb5"],
  restored: ["restored", "#e0a526"],
  recent: ["recent", "#8fa8d0"],
};
const EVERY = 1000; // ms between two looks
const WIDTH = 900;
let session = place.searchParams.get("session") ?? "";

async function get(path) {
  const answer = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!answer.ok) throw await answer.json().catch(() => ({ detail: answer.statusText }));
  return answer.json();
}

/** An SVG element with attributes, text or children. */
function draw(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function canvas(id, height, ...children) {
  $(id).setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  $(id).replaceChildren(...children);
}

function lanes({ keep_set: kept, slots, next_slot: next }) {
  const reach = 32;
  const x = (slot) => 110 + ((slot - (next - reach)) / (reach + 1)) * (WIDTH - 120);
  const wide = (WIDTH - 120) / (reach + 1) - 2;
  const parts = [];
  Object.entries(kept).forEach(([type, roles], lane) => {
    const y = 10 + 34 * lane;
    parts.push(draw("text", { x: 8, y: y + 19 }, type));
    for (const [role, chunks] of Object.entries(roles)) {
      for (const chunk of chunks) {
        const slot = slots[chunk];
        if (slot === undefined) continue;
        const box = draw("rect", { x: x(slot), y, width: wide, height: 28, rx: 3, fill: ROLES[role][1] });
        box.append(draw("title", {}, `chunk ${chunk}, ${ROLES[role][0]}, slot ${slot}, ${next - slot} before now`));
        const number = draw("text", { x: x(slot) + wide / 2, y: y + 18, "text-anchor": "middle", style: "fill:#101216;font-size:10px" }, String(chunk));
        parts.push(box, number);
      }
    }
    parts.push(draw("rect", { x: x(next), y, width: wide, height: 28, rx: 3, fill: "none", stroke: "#e6e8ec", "stroke-dasharray": "3 2" }));
  });
  const bottom = 10 + 34 * Object.keys(kept).length + 14;
  for (let back = 0; back <= reach; back += 8) {
    parts.push(draw("text", { x: x(next - back) + wide / 2, y: bottom, "text-anchor": "middle" }, back ? `−${back}` : "now"));
  }
  canvas("lanes", bottom + 8, ...parts);
}

function drift(points) {
  if (!points.length) return;
  const [first, last] = [points[0][0], points.at(-1)[0]];
  const most = Math.max(3, ...points.map(([, score]) => Math.min(score, 10)));
  const x = (chunk) => 40 + ((chunk - first) / Math.max(1, last - first)) * (WIDTH - 50);
  const y = (score) => 128 - (Math.min(score, most) / most) * 115;
  const line = points.map(([chunk, score]) => `${x(chunk).toFixed(1)},${y(score).toFixed(1)}`).join(" ");
  const grid = [1, 2, 3].map((level) => [
    draw("line", { x1: 40, x2: WIDTH - 10, y1: y(level), y2: y(level), stroke: "#343943" }),
    draw("text", { x: 8, y: y(level) + 4 }, String(level)),
  ]).flat();
  const repairs = points.filter(([, , rung]) => rung > 0)
    .map(([chunk, , rung]) => draw("rect", { x: x(chunk) - 1, y: 13, width: 3, height: 115, fill: "#f28b82", opacity: 0.15 * rung }));
  const ends = [draw("text", { x: 40, y: 146 }, `chunk ${first}`), draw("text", { x: WIDTH - 10, y: 146, "text-anchor": "end" }, `chunk ${last}`)];
  canvas("drift", 154, ...grid, ...repairs, draw("polyline", { points: line, fill: "none", stroke: "#8ab4f8", "stroke-width": 1.6 }), ...ends);
}

function bytes(held) {
  const most = Math.max(1, ...Object.values(held));
  const shown = (n) => (n > 2 ** 20 ? `${(n / 2 ** 20).toFixed(1)} MiB` : `${(n / 1024).toFixed(0)} KiB`);
  const parts = Object.entries(held).flatMap(([type, n], i) => [
    draw("text", { x: 8, y: 24 + 24 * i }, type),
    draw("rect", { x: 110, y: 11 + 24 * i, width: (n / most) * (WIDTH - 220), height: 17, rx: 3, fill: "#8fa8d0" }),
    draw("text", { x: 118 + (n / most) * (WIDTH - 220), y: 24 + 24 * i }, shown(n)),
  ]);
  canvas("bytes", 12 + 24 * Object.keys(held).length, ...parts);
  $("total").textContent = `${shown(Object.values(held).reduce((a, b) => a + b, 0))} in the pool, bounded`;
}

function decisions(lines) {
  const often = new Set(["evict", "offload", "restore"]);
  const chosen = lines.filter(({ action }) => $("all").checked || !often.has(action)).slice(-120).reverse();
  $("decisions").replaceChildren(...chosen.map(({ at, action, chunk, type, reason }) => {
    const item = document.createElement("li");
    const what = document.createElement("b");
    what.textContent = action;
    item.append(`${at} `, what, `${chunk === null ? "" : ` chunk ${chunk}`}${type ? ` [${type}]` : ""}: ${reason}`);
    return item;
  }));
}

async function look() {
  try {
    const takes = await get("/v1/sessions");
    const names = takes.map((take) => take.session);
    if (!names.includes(session)) session = names.at(-1) ?? "";
    if ([...$("session").options].map((o) => o.value).join() !== names.join()) {
      $("session").replaceChildren(...names.map((name) => new Option(name, name, false, name === session)));
    }
    if (!session) { $("state").textContent = "no take"; return; }
    const books = await get(`/v1/sessions/${session}`);
    $("to-player").href = `./?session=${session}`;
    $("state").textContent = books.reason ? `${books.state}: ${books.reason}` : books.state;
    $("where").textContent = `scene ${books.scene}, chunk ${books.next_chunk}, epoch ${books.epoch}, repair rung ${books.rung}; slots before now`;
    lanes(books);
    drift(books.drift);
    bytes(books.bytes);
    decisions(books.decisions);
  } catch (problem) {
    $("state").textContent = problem.detail ?? String(problem);
  } finally {
    setTimeout(look, document.hidden ? 5 * EVERY : EVERY);
  }
}

$("session").onchange = () => { session = $("session").value; };
$("roles").innerHTML = Object.values(ROLES).map(([name, colour]) => `<i style="background:${colour}"></i>${name}`).join("");
look();
