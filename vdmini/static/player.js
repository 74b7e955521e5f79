// Clips of several models in step: there is one clock, and every canvas draws the same frame from its own sheet.
const GAIN = 8 // differences are shown so many times as bright, or small ones would not be seen
const FIT = 256 // pixels that small clips are enlarged to, by a whole number

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.dataset.lmSuppressShortcuts = true // else JupyterLab takes the arrow keys; it looks at the focused element first
  made.append(...children)
  return made
}

function render({ model, el }) {
  let now = {}, timer = 0
  const play = make("button", { type: "button", onclick: () => run(!timer) })
  const scrubber = make("input", { type: "range", value: 0, ariaLabel: "frame", oninput: () => draw(+scrubber.value) })
  const count = make("output", {})
  const speed = make("select", { onchange: () => run(timer) },
    ...[0.25, 0.5, 1, 1.5, 2].map(s => new Option(`${s} ×`, s, s === 1, s === 1)))
  const loop = make("input", { type: "checkbox", checked: true })
  const difference = make("input", { type: "checkbox", onchange: () => draw(+scrubber.value) })
  const compare = make("label", {}, difference, make("span", {}))
  const clip = make("select", { onchange: () => (model.set("clip", +clip.value), model.save_changes()) })
  const clips = make("div", { className: "clips", tabIndex: 0, role: "group", ariaLabel: "clips, space plays" })
  const message = make("p", { role: "status" })
  function draw(frame) {
    const { names, sheets, frames, columns, width, height } = now
    const place = [(frame % columns) * width, Math.floor(frame / columns) * height, width, height, 0, 0, width, height]
    clips.querySelectorAll("canvas").forEach((canvas, i) => {
      const pen = canvas.getContext("2d"), compared = difference.checked && i > 0
      pen.globalCompositeOperation = "copy"
      pen.drawImage(sheets[i], ...place)
      pen.globalCompositeOperation = "difference"
      if (compared) pen.drawImage(sheets[0], ...place)
      canvas.style.filter = compared ? `brightness(${GAIN})` : ""
      canvas.previousSibling.textContent = names[i] + (compared ? `: difference × ${GAIN}` : "")
    })
    scrubber.value = frame
    count.textContent = `${frame + 1} / ${frames}`
  }
  async function load() {
    const shown = model.get("shown"), { names, strips, frames, width, height } = shown, side = Math.max(width, height)
    const decoded = await Promise.all(shown.sheets.map(png => createImageBitmap(new Blob([png]))))
    if (shown !== model.get("shown")) return // newer clips came while these were decoded
    now = { ...shown, sheets: decoded }
    clips.classList.toggle("small", side < 128)
    clips.style.setProperty("--zoomed", `${width * Math.max(1, Math.floor(FIT / side))}px`)
    clips.replaceChildren(...names.map((name, i) => make("figure", {}, make("figcaption", {}),
      make("canvas", { width, height, role: "img", ariaLabel: name }),
      make("img", { src: strips[i], alt: `${name}: first, middle and last frame` }))))
    compare.lastChild.textContent = `difference to ${names[0]}`
    compare.hidden = names.length < 2
    clip.replaceChildren(...Array.from({ length: shown.clips }, (_, i) => new Option(i, i)))
    clip.value = shown.clip
    clip.parentElement.hidden = shown.clips < 2
    scrubber.max = frames - 1
    draw(+scrubber.value) // where it was, or the last frame
  }
  const ended = () => scrubber.value === scrubber.max
  const step = () => ended() && !loop.checked ? run(false) : draw(ended() ? 0 : +scrubber.value + 1)
  function run(on) {
    if (on && !timer && ended()) draw(0)
    clearInterval(timer)
    timer = on ? setInterval(step, 1000 / (model.get("fps") * speed.value)) : 0
    play.textContent = on ? "Pause" : "Play"
  }
  const say = () => { message.textContent = model.get("message") }
  const heard = Object.entries({ "change:shown": load, "change:message": say, "change:fps": () => run(timer) })
  el.classList.add("vdmini-player")
  clips.onkeydown = scrubber.onkeydown = e => { if (e.key === " ") { e.preventDefault(); run(!timer) } }
  el.append(clips, make("div", { className: "controls" }, play, scrubber, count, make("label", {}, "speed", speed),
    make("label", {}, loop, "loop"), compare, make("label", {}, "clip", clip)), message)
  heard.forEach(([event, act]) => { model.on(event, act); act() })
  return () => { clearInterval(timer); heard.forEach(([event, act]) => model.off(event, act)) }
}
export default { render }
