// Where a message is written. Enter sends, Shift-Enter makes a line, Escape stops, the up arrow in an empty field edits the last question.
export default {
  props: { busy: Boolean, placeholder: String },
  data: () => ({ text: "" }),
  template: `
    <div class="composer">
      <textarea ref="field" rows="1" maxlength="100000" v-model="text" :placeholder="placeholder" :aria-label="placeholder" autofocus
        @keydown.enter="enter" @keydown.esc="$emit('halt')" @keydown.up="up" @input="grow"></textarea>
      <button v-if="busy" type="button" class="main" aria-label="Stop" title="Stop (Esc)" @click="$emit('halt')">
        <svg viewBox="0 0 24 24" fill="currentColor" aria-hidden="true"><rect x="6" y="6" width="12" height="12" rx="2"/></svg></button>
      <button v-else type="button" class="main" aria-label="Send" title="Send (Enter)" :disabled="!text.trim()" @click="send">
        <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2.2" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="M12 19V5M6 11l6-6 6 6"/></svg></button>
    </div>`,
  mounted() {
    if (window.matchMedia("(pointer: fine)").matches) this.$refs.field.focus();
  },
  methods: {
    enter(e) {
      if (e.shiftKey || e.isComposing) return;
      e.preventDefault();
      this.send();
    },
    up(e) {
      if (this.text || this.busy) return;
      e.preventDefault();
      this.$emit("editlast");
    },
    send() {
      const text = this.text.trim();
      if (!text || this.busy) return;
      this.$emit("send", text);
      this.text = "";
      this.$nextTick(() => this.grow());
    },
    grow() {
      const f = this.$refs.field;
      f.style.height = "auto";
      f.style.height = Math.min(f.scrollHeight, 192) + "px";
    },
    put(text) {
      this.text = text;
      this.$nextTick(() => { this.grow(); this.$refs.field.focus(); });
    },
  },
};
