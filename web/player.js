import { Watch } from "./watch.js";

const $ = (id) => document.getElementById(id);
const place = new URL(location.href);
const key = place.searchParams.get("key") ?? sessionStorage.getItem("longtake.key") ?? "";
if (key) sessionStorage.setItem("longtake.key", key);
let watch = null;
let chunk = 0;
let scene = "";
const pictures = new Map(); // scene → object URL

async function ask(method, path, body) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (!answer.ok) throw await answer.json().catch(() => ({ detail: answer.statusText }));
  return answer;
}

function say(text, problem = false) {
  const line = document.createElement("li");
  line.textContent = text;
  line.classList.toggle("problem", problem);
  $("log").prepend(line);
  while ($("log").children.length > 100) $("log").lastChild.remove();
}

const refused = (problem) => say(problem.detail ?? String(problem), true);

function follow(session, after = null) {
  watch?.close();
  for (const url of pictures.values()) URL.revokeObjectURL(url);
  pictures.clear();
  $("scenes").replaceChildren();
  place.searchParams.set("session", session);
  place.searchParams.delete("key");
  history.replaceState(null, "", place);
  $("to-studio").href = `studio.html?session=${session}`;
  watch = new Watch($("video"), session, { key, after });
  watch.addEventListener("hello", ({ detail }) => show(detail.state, detail.reason));
  watch.addEventListener("state", ({ detail }) => show(detail.state, detail.reason));
  watch.addEventListener("problem", ({ detail }) => refused(detail));
  watch.addEventListener("end", ({ detail }) => { show(detail.state, detail.reason); direct(false); });
  watch.addEventListener("connection", ({ detail }) => {
    say(detail.lost ? `connection closed: ${detail.reason || detail.code}` : "connection lost, trying again", detail.lost);
    if (detail.lost) { show("closed", detail.reason); direct(false); }
  });
  watch.addEventListener("chunk", ({ detail }) => {
    chunk = detail.index;
    if (detail.scene !== scene || !pictures.has(detail.scene)) { scene = detail.scene; scenes(); }
    $("clock").textContent = `chunk ${chunk} · ${(chunk * watch.seconds).toFixed(1)} s · drift ${detail.drift.toFixed(2)}`;
  });
  direct(true);
  $("video").muted = $("sound").getAttribute("aria-pressed") !== "true";
  $("video").play().catch(() => {});
}

function show(state, reason = "") {
  $("state").textContent = reason ? `${state}: ${reason}` : state;
  $("pause").textContent = state === "paused" ? "Resume" : "Pause";
}

function direct(possible) {
  document.querySelector("#direct fieldset").disabled = !possible;
  for (const id of ["pause", "fork", "stop"]) $(id).disabled = !possible;
}

async function scenes() {
  const of = watch;
  let books;
  try { books = await (await ask("GET", `/v1/sessions/${of.session}`)).json(); } catch { return; }
  const items = await Promise.all(books.scenes.map(async ({ name, thumbnail }) => {
    if (thumbnail && !pictures.has(name)) {
      const path = `/v1/sessions/${of.session}/scenes/${encodeURIComponent(name)}/thumbnail.jpg`;
      const picture = await ask("GET", path).then((a) => a.blob()).catch(() => null);
      if (picture) pictures.set(name, URL.createObjectURL(picture));
    }
    const item = document.createElement("li");
    const button = document.createElement("button");
    const image = document.createElement("img");
    const label = document.createElement("span");
    button.type = "button";
    label.textContent = name;
    image.alt = "";
    if (pictures.has(name)) image.src = pictures.get(name);
    if (name === scene) button.setAttribute("aria-current", "true");
    button.append(image, label);
    button.onclick = () => act({ do: "return", scene: name }, `return to ${name}`);
    item.append(button);
    return item;
  }));
  if (of === watch) $("scenes").replaceChildren(...items);
}

async function act(control, what) {
  try {
    const receipt = await watch.control(control);
    say(`${what}: from chunk ${receipt.from}`);
    return receipt;
  } catch (problem) { refused(problem); return null; }
}

$("start").onsubmit = async (event) => {
  event.preventDefault();
  const wanted = { prompt: $("prompt").value, subject: $("subject").value, seed: Number($("seed").value) };
  try {
    const { session } = await (await ask("POST", "/v1/sessions", wanted)).json();
    $("sound").setAttribute("aria-pressed", "true");
    $("sound").textContent = "Sound on";
    say(`started ${session}`);
    follow(session);
  } catch (problem) { refused(problem); }
};

$("direct").onsubmit = (event) => {
  event.preventDefault();
  const mode = event.submitter?.value ?? "keep";
  act({ do: "prompt", prompt: $("next").value, mode }, mode === "cut" ? "cut" : "prompt");
};

$("sound").onclick = () => {
  const on = $("sound").getAttribute("aria-pressed") !== "true";
  $("sound").setAttribute("aria-pressed", String(on));
  $("sound").textContent = on ? "Sound on" : "Sound off";
  $("video").muted = !on;
  $("video").play().catch(() => {});
};
$("pause").onclick = () => act({ do: $("pause").textContent === "Pause" ? "pause" : "resume" }, $("pause").textContent.toLowerCase());
$("stop").onclick = () => act({ do: "stop" }, "stop");
$("fork").onclick = async () => {
  const receipt = await act({ do: "fork", seed: Math.floor(Math.random() * 2 ** 31) }, "fork");
  if (receipt) follow(receipt.child);
};

const present = place.searchParams.get("session");
if (present) follow(present);
