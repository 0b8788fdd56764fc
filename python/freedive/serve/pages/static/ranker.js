// Puts answers, known by a letter each, into ranks: 1 is best, several in one rank are a tie. By keyboard (a number puts the letter that has the focus,
// arrows move it), by dragging, or by tapping a letter and then a rank. Emits ranks({A: 1, ...}) after each change.
export default {
  props: { letters: Array, start: Object },
  emits: ["ranks"],
  data() { return { ranks: { ...this.start }, picked: "", dragged: "", over: 0, told: "" }; },
  template: `
    <div class="ranker" role="group" aria-label="Order of the answers" @keydown="key">
      <div class="tray" :class="{over: over === -1}" @dragover.prevent="over = -1" @dragleave="over = 0" @drop.prevent="put(dragged, null)">
        <span class="hint" v-if="!free.length">Every answer has a rank.</span>
        <template v-else><span class="hint">To be ranked</span><button v-for="l in free" :key="l" v-bind="chip(l)" v-on="acts(l)">{{ l }}</button></template>
      </div>
      <ol>
        <li v-for="r in letters.length" :key="r" :class="{over: over === r, target: picked}" @dragover.prevent="over = r" @dragleave="over = 0" @drop.prevent="put(dragged, r)" @click="picked && put(picked, r)">
          <span class="place">{{ r }}<small v-if="r === 1">best</small><small v-if="r === letters.length">worst</small></span>
          <span class="chips"><button v-for="l in at(r)" :key="l" v-bind="chip(l)" v-on="acts(l)">{{ l }}</button></span>
        </li>
      </ol>
      <div class="visually-hidden" aria-live="polite">{{ told }}</div>
    </div>`,
  mounted() { if (window.matchMedia("(pointer: fine)").matches) this.focus(this.free[0] || this.letters[0]); },
  computed: { free() { return this.letters.filter((l) => !this.ranks[l]); } },
  methods: {
    at(r) { return this.letters.filter((l) => this.ranks[l] === r); },
    chip(l) {
      const where = this.ranks[l] ? `rank ${this.ranks[l]}` : "no rank yet";
      return { type: "button", class: "chip-letter", draggable: "true", "data-chip": l, "aria-pressed": this.picked === l ? "true" : "false", "aria-label": `Answer ${l}, ${where}` };
    },
    acts(l) {
      return {
        click: (e) => { e.stopPropagation(); this.picked = this.picked === l ? "" : l; },
        focus: () => this.show(l, true), blur: () => this.show(l, false), mouseenter: () => this.show(l, true), mouseleave: () => this.show(l, false),
        dragstart: (e) => { this.dragged = l; e.dataTransfer.setData("text/plain", l); e.dataTransfer.effectAllowed = "move"; },
        dragend: () => { this.dragged = ""; this.over = 0; },
      };
    },
    show(l, on) {
      const card = document.querySelector(`[data-answer="${l}"]`);
      card?.classList.toggle("looked", on);
      if (on && document.activeElement?.dataset.chip === l && window.matchMedia("(min-width: 901px)").matches) card?.scrollIntoView({ block: "nearest" });
    },
    focus(l) { this.$nextTick(() => this.$el.querySelector(`[data-chip="${l}"]`)?.focus({ preventScroll: true })); },
    put(l, rank, stay) {
      this.over = 0; this.picked = "";
      if (!this.letters.includes(l) || (this.ranks[l] || null) === rank) return;
      if (rank) this.ranks[l] = rank; else delete this.ranks[l];
      this.told = rank ? `Answer ${l}: rank ${rank}` : `Answer ${l}: no rank`;
      this.$emit("ranks", { ...this.ranks });
      this.focus(stay || !rank ? l : this.free[0] || l);
    },
    key(e) {
      if (e.ctrlKey || e.metaKey || e.altKey) return;
      const l = document.activeElement?.dataset.chip, k = e.key, n = this.letters.length;
      if (this.letters.includes(k.toUpperCase())) this.focus(k.toUpperCase());
      else if (!l) return;
      else if (/^[1-9]$/.test(k) && Number(k) <= n) this.put(l, Number(k));
      else if (k === "0" || k === "Backspace" || k === "Delete") this.put(l, null);
      else if (k === "ArrowUp") this.put(l, Math.max(1, (this.ranks[l] || n + 1) - 1), true);
      else if (k === "ArrowDown") this.put(l, Math.min(n, (this.ranks[l] || 0) + 1), true);
      else if (k === "ArrowLeft" || k === "ArrowRight") this.focus(this.letters[(this.letters.indexOf(l) + (k === "ArrowLeft" ? n - 1 : 1)) % n]);
      else if (k === "Escape") this.picked = "";
      else return;
      e.preventDefault();
    },
  },
};
