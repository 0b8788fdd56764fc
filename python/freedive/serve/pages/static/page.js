// What every page does: links leave in a tab of their own, code can be copied, a conversation stays at its end while one reads there.
document.addEventListener("click", (e) => {
  const a = e.target.closest?.(".prose a[href]");
  if (a) { a.target = "_blank"; a.rel = "noopener noreferrer"; }
}, true);

document.addEventListener("mouseover", (e) => {
  const pre = e.target.closest?.(".prose pre");
  if (!pre || pre.querySelector(".copycode")) return;
  const text = pre.innerText, button = Object.assign(document.createElement("button"), { type: "button", className: "plain copycode", textContent: "Copy" });
  button.addEventListener("click", () => window.freedive.copy(text));
  pre.append(button);
  pre.addEventListener("mouseleave", () => button.remove(), { once: true });
});

window.freedive = {
  pinned: true,
  follow(el) {
    if (!el || el.dataset.followed) return;
    el.dataset.followed = "1";
    el.addEventListener("scroll", () => { this.pinned = el.scrollHeight - el.scrollTop - el.clientHeight < 60; }, { passive: true });
    const down = () => { if (this.pinned) el.scrollTop = el.scrollHeight; };
    new MutationObserver(() => requestAnimationFrame(down)).observe(el, { childList: true, subtree: true, characterData: true });
    down();
  },
  theme(name) {
    try { localStorage.setItem("freedive-theme", name); } catch {}
    const dark = name === "dark" || (name !== "light" && window.matchMedia("(prefers-color-scheme: dark)").matches);
    document.body.classList.toggle("body--dark", dark);
    document.body.classList.toggle("body--light", !dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    if (typeof darkSetter === "function") setDark(dark);
    return dark;
  },
  toggle() { return this.theme(document.body.classList.contains("body--dark") ? "light" : "dark"); },
  copy(text) {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text).catch(() => {});
    const field = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(field); field.select(); document.execCommand("copy"); field.remove();
  },
  small: () => window.matchMedia("(max-width: 900px)").matches,
};
const kept = () => { try { return localStorage.getItem("freedive-theme"); } catch { return null; } };
const begin = () => window.freedive.theme(kept() || "auto");
if (document.body) begin(); else document.addEventListener("DOMContentLoaded", begin);
window.addEventListener("load", () => setTimeout(begin, 0));  // once more: the framework sets its own when it mounts
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", begin);
document.addEventListener("keydown", (e) => {
  if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === "k") {
    e.preventDefault();
    document.querySelector("[data-new-conversation]")?.click();
  }
});
