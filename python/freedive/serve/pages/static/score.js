// A score from 1 to `most`, as radio buttons in a row; pressing the chosen one again takes it back. Emits score(number or 0).
export default {
  props: { label: String, most: Number, start: Number },
  emits: ["score"],
  data() { return { now: this.start || 0 }; },
  template: `
    <fieldset class="score"><legend class="visually-hidden">{{ label }}</legend>
      <label v-for="n in most" :key="n" :class="{on: n === now}"><input type="radio" class="visually-hidden" :name="label" :value="n" :checked="n === now" :aria-label="String(n)" @change="set(n)" @click="n === now && set(0)"><span aria-hidden="true">{{ n }}</span></label>
    </fieldset>`,
  methods: { set(n) { this.now = n; this.$emit("score", n); } },
};
