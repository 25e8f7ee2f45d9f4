"use strict";
// the viewer, linked to the table: opened on demand, because a volume takes memory of the graphics card
(() => {
  const panel = document.querySelector("[data-viewer]");
  const canvas = document.getElementById("viewer");
  const screen = canvas.parentElement;
  const location = panel.querySelector("[data-location]");
  const open = panel.querySelector("[data-open]");

  let silent = false; // while the crosshair follows the table, it must not lead it

  async function start() {
    open.disabled = true;
    location.textContent = "loading";
    const data = JSON.parse(document.getElementById("viewer-data").textContent);
    screen.hidden = false;
    const view = new niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 0.54, 0.12, 1], isRadiologicalConvention: true, show3Dcrosshair: true,
      multiplanarShowRender: 1, crosshairGap: 8, isCornerOrientationText: true,
      dragAndDropEnabled: false, loadingText: "", onLocationChange: moved,
    });
    view.addColormap("deposits", { R: [0, 255, 255], G: [0, 138, 138], B: [0, 31, 31], A: [0, 180, 180], I: [0, 1, 255] });
    await view.attachToCanvas(canvas);
    const load = (base64, name, colormap, low, high, opacity) =>
      niivue.NVImage.loadFromBase64({ base64, name, colormap, cal_min: low, cal_max: high, opacity });
    view.addVolume(await load(data.scan, "scan.nii.gz", "gray", ...data.shown, 1));
    view.addVolume(await load(data.lesions, "lesions.nii.gz", "deposits", 0, 1, 0.7));
    if (data.probability) view.addVolume(await load(data.probability, "probability.nii.gz", "viridis", 1, 100, 0));
    view.setInterpolation(false);
    view.setSliceType(view.sliceTypeMultiplanar);
    view.setRenderAzimuthElevation(180, 5); // from the front
    window.viewer = view;

    function moved(where) {
      const number = Math.round(where.values?.[1]?.value ?? 0);
      const [x, y, z] = where.mm;
      const value = Math.round(where.values?.[0]?.value ?? NaN);
      location.textContent = `R ${x.toFixed(0)}, A ${y.toFixed(0)}, S ${z.toFixed(0)} mm; value ${value}` + (number ? `; deposit ${number}` : "");
      if (number && !silent && number !== window.report.chosen) window.report.choose(number);
    }
    const tools = panel.querySelector("[data-tools]");
    // the middle of the field of view, which zooming must bring the crosshair to
    const centre = view.frac2mm([0.5, 0.5, 0.5]);
    const zoom = () => {
      const factor = Number(tools.querySelector("[name=zoom]").value);
      const here = view.frac2mm(view.scene.crosshairPos);
      const pan = [0, 1, 2].map((axis) => (factor === 1 ? 0 : centre[axis] - factor * here[axis]));
      view.setCrosshairWidth(1 / factor);
      view.setPan2Dxyzmm([...pan, factor]);
    };
    const go = (number) => {
      const place = window.report.place?.(number);
      if (!place) return;
      silent = true;
      view.scene.crosshairPos = view.mm2frac(place);
      zoom();
      view.createOnLocationChange();
      silent = false;
    };
    document.addEventListener("chosen", (event) => { if (!silent) go(event.detail); });
    tools.hidden = false;
    open.hidden = true;
    tools.addEventListener("change", ({ target }) => {
      if (target.name === "lesions") view.setOpacity(1, target.checked ? 0.7 : 0);
      if (target.name === "probability") view.setOpacity(2, target.checked ? 0.6 : 0);
      if (target.name === "zoom") zoom();
      if (target.name === "window") {
        [view.volumes[0].cal_min, view.volumes[0].cal_max] = target.value.split(" ").map(Number);
        view.updateGLVolume();
      }
    });
    go(window.report.chosen);
    canvas.dataset.ready = "true";
  }

  open.addEventListener("click", () => start().catch((error) => {
    screen.hidden = true;
    location.textContent = `The viewer cannot start here (${error.message ?? error}): it needs WebGL 2. Everything else works without it.`;
  }));
})();
