// Where answers come from: the server, or, of an exported page, files beside it that a script tag can load from a disk.

const command = document.documentElement.dataset.command;
export const isLive = command === undefined;
export const liveCommand = command || "";

let version = "";
const given = new Map();
window.zfkernels = { give: (path, value) => given.set(path, value) };

export function setVersion(text) {
  version = text;
}

// The address of a picture below data/.
export function dataUrl(path) {
  return isLive ? `data/${path}?v=${version}` : `data/${path}`;
}

export async function dataOf(path) {
  if (!isLive) return scripted(path);
  return answerOf(`data/${path}.json` + (version ? `?v=${version}` : ""));
}

// What the server says to live/..., with parameters; errors are thrown with its words.
export async function liveAnswer(path, parameters = {}, options = {}) {
  const began = performance.now();
  const answer = await answerOf(`live/${path}?${new URLSearchParams(parameters)}`, options);
  if (!options.signal) sayTime(`last answer in ${Math.round(performance.now() - began)} ms`);
  return answer;
}

let leaving = new AbortController();
const coming = new Set(); // pictures that are on their way

// What a page has asked for and not got is given up when another is opened: the server need not make it.
export function leavePage() {
  leaving.abort();
  leaving = new AbortController();
  giveUp(coming);
}

// Of these pictures none is waited for any longer; decode() of a picture that is given up may never end.
export function giveUp(pictures) {
  for (const picture of pictures) {
    picture.src = "";
    picture.giveUp();
  }
  pictures.clear();
}

// The signal that ends with the page.
export function whileHere() {
  return leaving.signal;
}

// Waits for a picture; false if there is none, or it was given up. Those of a unit's page come before those of the wall.
export async function pictureCame(url, among = coming) {
  const picture = new Image();
  picture.fetchPriority = among === coming ? "high" : "low";
  picture.src = url;
  among.add(picture);
  const givenUp = new Promise((go) => (picture.giveUp = () => go(false)));
  const came = await Promise.race([picture.decode().then(() => true, () => false), givenUp]);
  return among.delete(picture) && came;
}

export function sayTime(text) {
  document.getElementById("timing").textContent = text;
}

export async function livePost(path, body = null) {
  return answerOf(`live/${path}`, { method: "POST", body });
}

async function answerOf(url, options = {}) {
  const response = await fetch(url, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || response.statusText);
  return answer;
}

function scripted(path) {
  if (given.has(path)) return Promise.resolve(given.get(path));
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `data/${path}.js`;
    script.onload = () => resolve(given.get(path));
    script.onerror = () => reject(new Error(`data/${path}.js is not beside this page`));
    document.head.append(script);
  });
}

// Something only the server can do: in an exported page it is grey, and says which command gives it.
export function needsServer(title) {
  const note = document.createElement("section");
  note.className = "grey";
  const heading = document.createElement("h3");
  heading.textContent = title;
  const text = document.createElement("p");
  const code = document.createElement("code");
  code.textContent = liveCommand;
  text.append("Needs the network at work: ", code);
  note.append(heading, text);
  return note;
}
