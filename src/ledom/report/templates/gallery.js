// Steps through the tokens of each example. Everything is on the page without it.
for (const example of document.querySelectorAll(".example")) {
  const controls = example.querySelector(".play");
  const [button, slider, output] = ["button", "input", "output"].map((name) => controls.querySelector(name));
  const tokens = [...example.querySelectorAll("[data-step]")];
  const last = Number(slider.max);
  let timer = null;

  const show = () => {
    const at = Number(slider.value);
    for (const token of tokens) {
      const step = Number(token.dataset.step);
      token.classList.toggle("unwritten", step > at);
      token.classList.toggle("now", step === at && at < last);
    }
    output.textContent = `${at} of ${last} tokens`;
    slider.setAttribute("aria-valuetext", output.textContent);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const next = () => {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) >= last) stop();
  };
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (Number(slider.value) >= last) slider.value = 0;
    show();
    button.textContent = "Pause";
    timer = setInterval(next, 120);
  });
  slider.addEventListener("input", () => {
    stop();
    show();
  });
  controls.hidden = false;
  show();
}
