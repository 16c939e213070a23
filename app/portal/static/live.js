// Keeps elements with data-live up to date while their page is in view.

let source;

function follow() {
  if (document.hidden) {
    source?.close();
    source = undefined;
    return;
  }
  if (source) return;
  source = new EventSource("/live");
  source.addEventListener("standing", (event) => {
    for (const [name, text] of Object.entries(JSON.parse(event.data))) {
      for (const element of document.querySelectorAll(`[data-live="${name}"]`)) {
        if (element.textContent !== text) element.textContent = text;
      }
    }
  });
}

addEventListener("visibilitychange", follow);
addEventListener("pagehide", () => source?.close());
if (document.querySelector("[data-live]")) follow();
