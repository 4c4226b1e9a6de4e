// What a page of muomni needs beside its markup: a tip under the pointer, values of curves and matrices, log scales, players, filters.
"use strict";

const tip = document.getElementById("tip");
const told = (value) => (Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(3) : String(+value.toPrecision(4)));

function show(event, text) {
  tip.textContent = text;
  tip.hidden = !text;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - box.width - 12 : event.clientX + 14;
  const top = event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}
const hide = () => { tip.hidden = true; };

addEventListener("pointermove", (event) => {
  const owner = event.target.closest?.("[data-tip], [data-curves] svg, [data-matrix] img");
  if (!owner) hide();
  else if (owner.dataset.tip) show(event, owner.dataset.tip);
});

for (const figure of document.querySelectorAll("[data-curves]")) {
  const curves = JSON.parse(figure.dataset.curves);
  const drawing = figure.querySelector("svg");
  const ruler = drawing.querySelector(".ruler");
  const xs = [...new Set(curves.flatMap((curve) => curve.p.map((point) => point[0])))];
  const at = new Map(curves.flatMap((curve) => curve.p.map((point) => [point[0], point[2]])));
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * drawing.viewBox.baseVal.width;
    const step = xs.reduce((best, each) => (Math.abs(at.get(each) - x) < Math.abs(at.get(best) - x) ? each : best));
    ruler.setAttribute("x1", at.get(step));
    ruler.setAttribute("x2", at.get(step));
    figure.classList.add("pointed");
    const lines = curves.map((curve) => [curve.n, curve.p.find((point) => point[0] === step)]).filter(([, point]) => point);
    show(event, [`step ${step}`, ...lines.map(([name, point]) => `${name}  ${told(point[1])}`)].join("\n"));
    event.stopPropagation();
  });
  drawing.addEventListener("pointerleave", () => { figure.classList.remove("pointed"); hide(); });
  figure.querySelector(".log")?.addEventListener("click", (event) => {
    const logged = figure.classList.toggle("logged");
    event.target.setAttribute("aria-pressed", logged);
  });
}

for (const figure of document.querySelectorAll("[data-matrix]")) {
  const { r: rows, c: columns, v: values } = JSON.parse(figure.dataset.matrix);
  const image = figure.querySelector("img");
  image.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect();
    const row = Math.min(values.length - 1, Math.floor(((event.clientY - box.top) / box.height) * values.length));
    const column = Math.min(values[0].length - 1, Math.floor(((event.clientX - box.left) / box.width) * values[0].length));
    if (row >= 0 && column >= 0) show(event, `${rows[row]}  ·  ${columns[column]}\n${told(values[row][column])}`);
    event.stopPropagation();
  });
  image.addEventListener("pointerleave", hide);
}

let playing = null;
for (const figure of document.querySelectorAll(".sound")) {
  const [audio, button] = [figure.querySelector("audio"), figure.querySelector("button")];
  const played = figure.querySelector(".played");
  audio.controls = false;
  audio.hidden = true;
  button.hidden = false;
  const move = () => {
    played.style.setProperty("--at", `${(100 * audio.currentTime) / (audio.duration || 1)}%`);
    if (!audio.paused) requestAnimationFrame(move);
  };
  button.addEventListener("click", () => (audio.paused ? audio.play() : audio.pause()));
  audio.addEventListener("play", () => {
    if (playing && playing !== audio) playing.pause();
    playing = audio;
    button.textContent = "❚❚";
    move();
  });
  for (const end of ["pause", "ended"]) audio.addEventListener(end, () => { button.textContent = "▶"; });
  figure.querySelector(".wave").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    if (audio.duration) audio.currentTime = (audio.duration * (event.clientX - box.left)) / box.width;
    audio.play();
  });
}

for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
    const wanted = { all: null, right: "1", wrong: "0" }[button.dataset.show];
    for (const card of button.closest(".gallery").querySelectorAll("[data-right]")) card.hidden = wanted !== null && card.dataset.right !== wanted;
  });
}

const links = new Map([...document.querySelectorAll(".side a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver(
  (entries) => { for (const entry of entries) links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting); },
  { rootMargin: "-30% 0px -65% 0px" },
);
for (const id of links.keys()) if (document.getElementById(id)) watcher.observe(document.getElementById(id));
for (const link of document.querySelectorAll('a[href^="#"]'))
  link.addEventListener("click", () => { const target = document.getElementById(link.hash.slice(1)); if (target?.tagName === "DETAILS") target.open = true; });
