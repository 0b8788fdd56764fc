// The page of freedive label: what is filled in is gathered from the page at the moment of sending, and Ctrl-Enter sends it from anywhere.
window.freedive.gather = () => Object.fromEntries([...document.querySelectorAll("[data-field]")].map((e) => [e.dataset.field, e.value]));
document.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey) && !e.isComposing) {
    const button = document.querySelector("[data-send]");
    if (button && !button.disabled) { e.preventDefault(); button.click(); }
  }
});
