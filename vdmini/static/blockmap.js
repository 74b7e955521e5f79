// Shows the drawing that Python made and says which block was pressed.
function render({ model, el }) {
  const map = Object.assign(document.createElement("div"), { className: "vdmini-map" });
  const tip = Object.assign(document.createElement("div"), { className: "vdmini-tip", hidden: true });
  tip.setAttribute("role", "status");
  el.append(map, tip);
  const all = () => [...map.querySelectorAll("[data-block]")];
  const centre = (g) => { const r = g.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; };
  let at = null; // the block that the Tab key comes back to

  const draw = () => {
    const focused = map.contains(document.activeElement);
    map.innerHTML = model.get("svg");
    const here = all().find((g) => g.dataset.block === at) ?? all()[0];
    here?.setAttribute("tabindex", "0");
    if (focused) here?.focus();
  };
  const tell = (event) => {
    const cell = event.target.closest?.("[data-block]");
    tip.hidden = !cell;
    if (!cell) return;
    const [x, y] = centre(cell), home = el.getBoundingClientRect();
    tip.textContent = cell.dataset.tip;
    const right = x - home.x > home.width / 2, low = home.height - tip.offsetHeight; // stay inside the widget, beside the block
    Object.assign(tip.style, { top: `${Math.max(0, Math.min(y - home.y + 26, low))}px`, left: right ? "auto" : `${x - home.x + 36}px`,
      right: right ? `${home.right - x + 36}px` : "auto" });
  };
  const press = (event) => {
    const cell = event.target.closest("[data-block]");
    if (!cell) return;
    event.preventDefault();
    at = cell.dataset.block;
    model.send({ block: at, stage: event.shiftKey });
  };
  const walk = (event, [dx, dy]) => { // to the nearest cell in that direction
    const [x, y] = centre(event.target);
    const off = (g) => { const [a, b] = centre(g); return [(a - x) * dx + (b - y) * dy, Math.abs((a - x) * dy) + Math.abs((b - y) * dx)]; };
    const next = all().map((g) => [g, ...off(g)]).filter(([, ahead]) => ahead > 2).sort((p, q) => p[1] + 3 * p[2] - q[1] - 3 * q[2])[0];
    event.preventDefault();
    if (!next) return;
    all().forEach((g) => g.setAttribute("tabindex", g === next[0] ? "0" : "-1"));
    at = next[0].dataset.block;
    next[0].focus();
  };
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("click", press);
  map.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") press(event);
    else if (ways[event.key] && event.target.dataset?.block) walk(event, ways[event.key]);
  });
  for (const name of ["mouseover", "focusin"]) map.addEventListener(name, tell);
  for (const name of ["mouseleave", "focusout"]) map.addEventListener(name, () => { tip.hidden = true; });
  model.on("change:svg", draw);
  draw();
}
export default { render };
