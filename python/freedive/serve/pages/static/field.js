// A text field, text area, choice, slider or check box that owns its value: what the server draws meanwhile does not undo what is being typed.
// Emits typed (a while after each key, `pause` milliseconds) and changed (when it is left, or chosen).
export default {
  props: { kind: String, value: [String, Number, Boolean], attributes: Object, options: Array, pause: Number },
  emits: ["typed", "changed"],
  data() { return { now: this.value }; },
  template: `
    <textarea v-if="kind === 'area'" v-bind="attributes" v-model="now" @input="typed" @change="changed"></textarea>
    <select v-else-if="kind === 'choice'" v-bind="attributes" v-model="now" @change="changed"><option v-for="[v, t] in options" :key="v" :value="v">{{ t }}</option></select>
    <input v-else-if="kind === 'checkbox'" type="checkbox" v-bind="attributes" v-model="now" @change="changed">
    <input v-else :type="kind" v-bind="attributes" v-model="now" @input="typed" @change="changed">`,
  unmounted() { clearTimeout(this.timer); },
  methods: {
    typed() {
      clearTimeout(this.timer);
      if (this.pause) this.timer = setTimeout(() => this.$emit("typed", this.now), this.pause);
    },
    changed() {
      clearTimeout(this.timer);
      this.$emit("changed", this.now);
    },
    put(value) { this.now = value; },
  },
};
