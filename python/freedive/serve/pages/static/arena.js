// The page of freedive arena: one key a vote, unless somebody is writing; Ctrl-Enter asks.
document.addEventListener("keydown", (e) => {
  if (e.isComposing) return;
  const press = (selector) => {
    const button = document.querySelector(selector);
    if (button && !button.disabled) { e.preventDefault(); button.click(); }
  };
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) return press("[data-ask]");
  if (e.ctrlKey || e.metaKey || e.altKey || e.repeat || /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName)) return;
  const key = { a: "1", b: "2" }[e.key.toLowerCase()] || e.key.toLowerCase();
  if (/^[12txn]$/.test(key)) press(`[data-key="${key}"]`);
});
