// Copy buttons, forms that are sent once, filters that apply at once, what scrolls within
// reach of the keyboard. Pages are complete without this.

for (const button of document.querySelectorAll("[data-copy]")) {
  const text = button.parentElement.querySelector("code");
  if (!navigator.clipboard || !text) continue;
  button.hidden = false;
  const label = button.firstChild;
  const before = label.data;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text.textContent);
    label.data = button.dataset.done;
    setTimeout(() => (label.data = before), 2000);
  });
}

for (const form of document.querySelectorAll("form[method=post]:not([data-repeats])")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
}
// A page that the browser kept may be used again.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// Filters apply when they are chosen; without scripts a button applies them. A date may
// be half typed: it waits for the button.
for (const form of document.querySelectorAll("form[data-instant]")) {
  form.querySelector("button").hidden = !form.querySelector("input[type=date]");
  form.addEventListener("change", (event) => {
    if (event.target.type !== "date") form.requestSubmit();
  });
}

function letKeyboardScroll() {
  for (const part of document.querySelectorAll(".scroll, pre, .chart")) {
    part.toggleAttribute("tabindex", part.scrollWidth > part.clientWidth);
    if (part.hasAttribute("tabindex")) part.tabIndex = 0;
  }
}
letKeyboardScroll();
addEventListener("resize", letKeyboardScroll);
