"use strict";
// The slices of a case: one picture with all of them, decoded while the case is on the screen.
const dashes = {reference: [], prediction: [6, 4], second: [2, 3]};
const root = getComputedStyle(document.documentElement);
const viewers = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) viewers.get(entry.target)(entry.isIntersecting);
}, {rootMargin: "200px"});

for (const figure of document.querySelectorAll(".slices")) {
  const one = name => figure.querySelector(name);
  const [poster, canvas, slider, output, chosen] =
    [".poster", "canvas", "input[type=range]", "output", "select"].map(one);
  const boxes = figure.querySelectorAll("input[type=checkbox]");
  let data = null, sheet = null, visible = false;

  const draw = () => {
    if (!sheet) return;
    const index = Number(slider.value), wanted = Number(chosen.value);
    const scale = Math.max(1, Math.min(3, canvas.clientWidth * devicePixelRatio / data.width || 1));
    canvas.width = Math.round(data.width * scale);
    canvas.height = Math.round(data.height * scale);
    const pen = canvas.getContext("2d");
    pen.drawImage(sheet, index % data.columns * data.width,
      Math.floor(index / data.columns) * data.height, data.width, data.height,
      0, 0, canvas.width, canvas.height);
    const ratio = canvas.width / (canvas.clientWidth || canvas.width);
    data.layers.forEach((layer, number) => {
      if (!boxes[number].checked) return;
      pen.strokeStyle = root.getPropertyValue("--" + layer.style);
      for (const [label, path] of Object.entries(layer.paths[index])) {
        if (wanted >= 0 && wanted !== Number(label)) continue;
        const outline = new Path2D();
        outline.addPath(new Path2D(path), new DOMMatrix().scale(scale / 2));
        pen.lineWidth = 1.6 * ratio;
        pen.setLineDash(dashes[layer.style].map(length => length * ratio));
        pen.stroke(outline);
      }
    });
  };
  const tell = () => {
    const text = "slice " + data.slices[slider.value];
    output.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    draw();
  };
  const see = now => {
    visible = now;
    sheet = null;
    if (!visible) return;
    data ??= JSON.parse(one("script").textContent);
    const picture = new Image();
    picture.onload = () => {
      if (!visible) return;
      sheet = picture;
      poster.style.display = "none";
      canvas.hidden = false;
      tell();
    };
    picture.src = "data:image/webp;base64," + data.image;
  };
  one(".controls").hidden = false;
  slider.addEventListener("input", tell);
  for (const control of [chosen, ...boxes]) control.addEventListener("change", draw);
  addEventListener("resize", draw);
  viewers.set(figure, see);
  watcher.observe(figure);
}

// One click from an outlier to its slices: the slider then takes the keys.
const follow = () => {
  const slider = document.querySelector(":target.case input[type=range]");
  if (slider) slider.focus({preventScroll: true});
};
addEventListener("hashchange", follow);
follow();
