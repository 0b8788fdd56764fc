// ops.h: THE list of operations. The contract between csrc/model and the devices.
//
// Every operation of the decoder, forward and backward, stands here once: its maths, its arguments and,
// in FD_OPS at the end, the shapes and dtypes of those arguments in a form the bindings check by machine.
// A device (csrc/cpu, csrc/cuda) is one table of function pointers, fd_ops, filled from its variants.
//
// Rules, for every op on every device:
//  * ops never allocate, never synchronise, never return a value to the host, never throw. Scratch memory is
//    the Context's workspace; how much a call needs is told by the variant's workspace function, which is
//    monotone in every size, so a model asks once, at capacity.
//  * sizes are int64; what changes from step to step (lr, temperature, lengths, seeds) is read from device memory.
//  * a tensor is a view: last dimension contiguous, the others strided. data == NULL means "absent".
//  * float atomics are forbidden; every reduction has a fixed order which depends on sizes only: never on the
//    number of threads, nor on which other rows or sequences share the batch.
//    matmul: every output element is ONE chain of fused multiply-adds over k = 0..K-1, then bias, then residual.
//    attention: keys are visited in blocks of FD_KV_BLOCK (or of a multiple of it) from the start of the sequence, in order, in
//    training, prefill and decode alike. So the sampler's log-prob is the trainer's, bit for bit. A variant that works on parts of a sequence
//    at once cuts it at fixed borders, and all of them do.
//  * compute = FD_F32 or FD_BF16 says how products multiply: FD_BF16 lets a variant round their operands to bfloat16 (to nearest,
//    ties to even), which is where a processor with such instructions doubles its speed; sums are float32. The chain is then over
//    pairs of k. A packed weight is packed for one `compute`.
//    On tensor cores (csrc/cuda) it is over steps of 16 k, and a long k of a product of few columns is cut into parts, each a chain,
//    added in order; how many follows from the weight's shape alone (in matmul_backward_weight from all sizes), so rows change no bit.
//  * numbers are float32 in memory, or where FD_OPS says "f32|bf16" bfloat16: outputs are then rounded as operands are (denormals
//    may become 0). What only products read may so be stored as what they take of it: half the bytes, the same bits. gate and up
//    are of one dtype, and so are q, k, v and out of attention_backward.
//  * quantized_*: a weight in the type its file holds it in, rearranged by quantized_pack. FD_F32 and FD_BF16 give the bits of the float op on
//    the dequantised weight; FD_I8 rounds the rows of x to int8 in blocks of 32 and multiplies integers: sum over blocks, in order, of
//    fma(exact integer sum, scale_w scale_x, .), the same bits from every variant of a tier, for one row or many.
//  * "entry t is about targets[t]": per-token arrays are indexed by the predicting position.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { FD_F32 = 0, FD_BF16 = 1, FD_I32 = 2, FD_I64 = 3, FD_U64 = 4, FD_U8 = 5, FD_I8 = 6 } fd_dtype;

// Non-owning view. Strides count elements. Exactly 80 bytes: the bindings lay argument structs out by schema.
typedef struct {
  void* data;
  int64_t shape[4];
  int64_t stride[4];
  int32_t ndim;
  int32_t dtype;
} fd_tensor;

typedef struct fd_context fd_context;  // device, thread pool or stream, workspace: csrc/core/context.h

enum { FD_KV_BLOCK = 32 };  // keys per block, in the cache and (or a multiple of it) in every attention kernel
// Numbers of a cache's dtype in one of its words of 32 bits.
static inline int64_t fd_numbers_per_word(int32_t dtype) { return dtype == FD_F32 ? 1 : dtype == FD_BF16 ? 2 : 4; }

// ---- embedding -------------------------------------------------------------------------------------------------
// out[n] = wte[tokens[n]] (+ wpe[positions[n]])
typedef struct { fd_tensor out, tokens, positions, wte, wpe; } fd_embedding_forward_args;
// dwte[tokens[n]] += dout[n]; dwpe[positions[n]] += dout[n], in the order n = 0..N-1
typedef struct { fd_tensor dwte, dwpe, dout, tokens, positions; } fd_embedding_backward_args;

// The row of a table of pairs for each token and the one before it in its sequence (csrc/core/bigram.h), to be wpe's positions:
//   pairs[n] = bigram_row(before, tokens[n], rows), rows >= 2; before is tokens[n-1], of a sequence's first row
//   with prefixes (without a cache) the row cu_seqlens[from] + count - 1, (from, count) = prefixes[s], where count > 0;
//   with a cache what `seen` holds of position past_lens[s] - 1; else none, -1.
// seen int32 [B, FD_KV_BLOCK]: the id at each position of the cache, by block and slot as in kv_cache_write. The batch's are noted there before any
// is read, so a sequence may go on in a block that another one fills in the same call.
// Rows of an unused tail get 0.
typedef struct { fd_tensor pairs, tokens, cu_seqlens, prefixes, seen, past_lens, block_table; int64_t rows; } fd_bigram_ids_args;

// ---- norms -----------------------------------------------------------------------------------------------------
// out = x * rstd * weight, rstd = 1/sqrt(mean(x^2) + eps) over the last dimension. H = 1 for the residual stream,
// H = heads for QK-norm. out may be x.
typedef struct { fd_tensor out, rstd, x, weight; double eps; } fd_rmsnorm_forward_args;
// dx = (or += when accumulate) rstd * (dout*weight - x*rstd^2 * mean(dout*weight*x)); dweight += sum_n dout*x*rstd.
// dx may be dout when accumulate == 0. x is the op's input, so it must not have been overwritten.
typedef struct { fd_tensor dx, dweight, dout, x, weight, rstd; int64_t accumulate; } fd_rmsnorm_backward_args;
// out = (x - mean) * rstd * weight + bias
typedef struct { fd_tensor out, mean, rstd, x, weight, bias; double eps; } fd_layernorm_forward_args;
typedef struct { fd_tensor dx, dweight, dbias, dout, x, weight, mean, rstd; int64_t accumulate; } fd_layernorm_backward_args;

// ---- rotary position embedding ---------------------------------------------------------------------------------
// Half-rotation form (Hugging Face, Llama): with R = D/2 and p = positions[n],
// out[i] = x[i] cos[p,i] - x[i+R] sin[p,i];  out[i+R] = x[i+R] cos[p,i] + x[i] sin[p,i].
// inverse != 0 rotates back (the backward pass). out may be x.
typedef struct { fd_tensor out, x, cos, sin, positions; int64_t inverse; } fd_rope_args;

// ---- activations -----------------------------------------------------------------------------------------------
// out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
typedef struct { fd_tensor out, x; } fd_gelu_forward_args;
typedef struct { fd_tensor dx, dout, x; } fd_gelu_backward_args;  // dx may be dout
// out = silu(gate) * up, silu(a) = a / (1 + exp(-a))
typedef struct { fd_tensor out, gate, up; } fd_swiglu_forward_args;
typedef struct { fd_tensor dgate, dup, dout, gate, up; } fd_swiglu_backward_args;  // dgate, dup may be gate, up
// out = x: rounded where out is bfloat16 and x is not, exact else
typedef struct { fd_tensor out, x; } fd_cast_args;

// ---- matmul: the three layouts of training ---------------------------------------------------------------------
// out[n,o] = (accumulate ? out : 0) + sum_c x[n,c] weight[o,c] + bias[o] + residual[n,o]. The chain starts from out when accumulating.
// packed: the result of matmul_pack on the same weight, or absent (the op then packs into its workspace).
// residual may be out.
typedef struct { fd_tensor out, x, weight, packed, bias, residual; int64_t accumulate; int64_t compute; } fd_matmul_forward_args;
// The product that an activation follows, by which it is stored: aux = x W^T + bias, for the backward pass, and out = gelu(aux); or, of a weight
// whose first half of rows is the gate's and whose second is up's (O = 2 F), out = silu(aux[:, :F]) aux[:, F:]. Either may be absent. The bits of
// matmul_forward and the activation after it: out is of the sums, not of what aux rounds them to.
typedef struct { fd_tensor out, aux, x, weight, packed, bias; int64_t compute; } fd_matmul_gelu_forward_args;
typedef struct { fd_tensor out, aux, x, weight, packed, bias; int64_t compute; } fd_matmul_swiglu_forward_args;
// dx[n,c] = (accumulate ? dx : 0) + sum_o dout[n,o] weight[o,c]
typedef struct { fd_tensor dx, dout, weight; int64_t accumulate; int64_t compute; } fd_matmul_backward_input_args;
// dweight[o,c] += sum_n dout[n,o] x[n,c]; dbias[o] += sum_n dout[n,o]   (always accumulates)
typedef struct { fd_tensor dweight, dbias, dout, x; int64_t compute; } fd_matmul_backward_weight_args;
// A weight in the layout the forward kernel reads; P = matmul_packed_size(O, C, compute) of the device, in words of 32 bits.
typedef struct { fd_tensor packed, weight; int64_t compute; } fd_matmul_pack_args;

// ---- attention -------------------------------------------------------------------------------------------------
// Causal, on a flat batch: sequence s is rows cu_seqlens[s] .. cu_seqlens[s+1]-1; nothing attends across.
// Rows behind cu_seqlens[S] (an unused tail) come out as 0. Grouped queries: head h reads key-value head h / (H/G). lse is the log-sum-exp of the scaled scores.
typedef struct { fd_tensor out, lse, q, k, v, cu_seqlens; double scale; int64_t compute; } fd_attention_forward_args;
typedef struct { fd_tensor dq, dk, dv, dout, out, lse, q, k, v, cu_seqlens; double scale; int64_t compute; } fd_attention_backward_args;
// Append the N new keys and values to a paged cache. Sequence s has past_lens[s] tokens already; its position p
// lives in block block_table[s, p / FD_KV_BLOCK], slot p % FD_KV_BLOCK. The cache is float32, bfloat16 or int8. Inside a block its numbers
// lie in words of 32 bits, P = 1, 2 or 4 of them, neighbours along the index a product sums over: for keys d, for values the slot.
//   k_cache[block, g, d / P, slot * P + d % P]      v_cache[block, g, slot / P, d * P + slot % P]
// (float32: keys transposed, values as they come.) What fills the last word of a key is 0, and so is the number beside a value just
// begun a word with, in bfloat16. bfloat16: to nearest, ties to even. int8: rows are mixed first, k' = H k with
// the unnormalised Walsh-Hadamard matrix of the largest power of two B in D, on each B neighbours (butterflies of distance 1, 2, .. B/2); then
// a scale for each position and group, k_scale[block, g, slot] = max |k'| / 127, and round(k' * (127 / max |k'|)), ties to even; a row with a
// number that is not finite gets the scale NaN, one below 1e-30 is 0. A position is stored when it is written and never again, so its bits depend on nobody else.
typedef struct { fd_tensor k_cache, v_cache, k_scale, v_scale, k, v, cu_seqlens, past_lens, block_table; } fd_kv_cache_write_args;
// As attention_forward, reading keys and values (the new ones included) from the cache. int8 is multiplied as it is, with q mixed too and
// the output mixed back (H H = B), the scales go to the scores and the probabilities; bfloat16 with compute = FD_BF16 gives the bits of a float32 cache.
typedef struct { fd_tensor out, q, k_cache, v_cache, k_scale, v_scale, cu_seqlens, past_lens, block_table; double scale; int64_t compute; } fd_attention_cached_args;

// ---- language-model head ---------------------------------------------------------------------------------------
// With z = weight x / temperature over the ids where vocab_mask is non-zero (absent: all):
//   lse = log sum exp z;  logprobs[n,k] = z[targets[n,k]] - lse;  entropy = lse - sum p z.
// In chunks of tokens: logits [N,V] never exist. Rows with targets[n,0] == -1 are skipped and give 0 everywhere; a later -1 gives
// log-prob 0. A target which vocab_mask excludes has log-prob -inf; its gradient is not defined.
typedef struct { fd_tensor logprobs, entropy, lse, x, weight, packed, targets, temperature, vocab_mask; int64_t compute; } fd_head_forward_args;
// Given the derivatives of the loss by logprobs, entropy and lse (absent = 0):
//   dz_j = sum_k dlogprobs[n,k] (1[j = targets[n,k]] - p_j) - dentropy p_j (log p_j + entropy) + dlse p_j,
//   dx = weight^T dz / T (rows skipped get 0), dweight += dz x^T / T (absent: not wanted). Logits are recomputed.
typedef struct { fd_tensor dx, dweight, x, weight, packed, targets, temperature, vocab_mask, lse, entropy, dlogprobs, dentropy, dlse; int64_t compute; } fd_head_backward_args;
// Both at once when dlogprobs is known beforehand (pretraining, SFT, on-policy RL): logits computed once.
typedef struct { fd_tensor logprobs, entropy, lse, dx, dweight, x, weight, packed, targets, temperature, vocab_mask, dlogprobs; int64_t compute; } fd_head_forward_backward_args;
// One token per row. temperature[s] == 0: the largest logit (smallest id on ties), log-prob at T = 1. Else, at temperature[s]:
// top_k (0 = off), then min_p (0 = off), then top_p (1 = off) cut, renormalise, and draw with the uniform number
// uniform(seeds[s], STREAM_SAMPLE, counters[s]) of csrc/core/rng.h. logprobs is at T, before any truncation: bit-equal to head_forward's.
typedef struct { fd_tensor tokens, logprobs, x, weight, packed, vocab_mask, temperature, top_k, top_p, min_p, seeds, counters; int64_t compute; } fd_head_sample_args;

// Between two steps of decoding, so that the host need not look: a row of the batch, of N, is the new token of a sequence. Of sequence s with
// a row n = cu_seqlens[s] (cu_seqlens[s+1] > n) and t = sampled[n]:
//   out_tokens[s] = t, out_logprobs[s] = logprobs[n]; past_lens[s] += 1; remaining[s] = t in stop_ids[s] ? 0 : remaining[s] - 1  (-1: no id);
// a sequence without one gets out_tokens = -1, out_logprobs = 0. Those with remaining > 0 are the next step's, side by side from row 0 on in the
// order of s: tokens = t, positions = past_lens, how to sample as it was, counters + 1, and cu_seqlens accordingly. Rows behind them: id 0 at position 0.
typedef struct { fd_tensor out_tokens, out_logprobs, sampled, logprobs, stop_ids, cu_seqlens, past_lens, remaining, tokens, positions, temperature, top_k, top_p, min_p, seeds, counters; } fd_decode_advance_args;

// ---- weights of 16, 8 and 4 bits: for inference, and as the frozen base that an adapter is trained on -------------
// type: ggml's number of a type that csrc/cpu/quantized.cpp holds: F32 0, F16 1, Q4_0 2, Q4_1 3, Q5_0 6, Q5_1 7, Q8_0 8, Q4_K 12, Q5_K 13,
// BF16 30. Q = quantized_size(O, C, type) of the device, in bytes. rows: the file's rows, R bytes each, of which the first dimension may be strided.
typedef struct { fd_tensor packed, rows; int64_t type; } fd_quantized_pack_args;
// out = x W^T + bias + residual. residual may be out.
typedef struct { fd_tensor out, x, weight, bias, residual; int64_t type, compute; } fd_quantized_matmul_args;
// matmul_backward_input: dx[n,c] = (accumulate ? dx : 0) + sum_o dout[n,o] W[o,c], of the weight's exact values; compute is FD_F32 or FD_BF16.
typedef struct { fd_tensor dx, dout, weight; int64_t accumulate, type, compute; } fd_quantized_matmul_backward_input_args;
// embedding_forward of a packed table of `vocab` rows
typedef struct { fd_tensor out, tokens, positions, weight, wpe; int64_t vocab, type; } fd_quantized_embedding_args;
// head_forward and head_sample with a packed weight [vocab, C]; their log-probs are equal, bit for bit.
typedef struct { fd_tensor logprobs, entropy, lse, x, weight, targets, temperature, vocab_mask; int64_t vocab, type, compute; } fd_quantized_head_forward_args;
typedef struct { fd_tensor tokens, logprobs, x, weight, vocab_mask, temperature, top_k, top_p, min_p, seeds, counters; int64_t vocab, type, compute; } fd_quantized_head_sample_args;
// head_backward and head_forward_backward of a packed weight, which has no gradient; compute is FD_F32 or FD_BF16.
typedef struct { fd_tensor dx, x, weight, targets, temperature, vocab_mask, lse, entropy, dlogprobs, dentropy, dlse; int64_t vocab, type, compute; } fd_quantized_head_backward_args;
typedef struct { fd_tensor logprobs, entropy, lse, dx, x, weight, targets, temperature, vocab_mask, dlogprobs; int64_t vocab, type, compute; } fd_quantized_head_forward_backward_args;

// ---- optimizer -------------------------------------------------------------------------------------------------
// out[0] = sqrt(sum x^2), partial sums in double over fixed chunks, added in order
typedef struct { fd_tensor out, x; } fd_global_norm_args;
// hyper = {lr, beta1, beta2, eps, weight_decay, max_norm (0 = off), 1-beta1^t, 1-beta2^t}. norm[0] is the global gradient norm:
// g = grad * min(1, max_norm/norm); m,v moments; param -= lr * (m/bc1 / (sqrt(v/bc2) + eps) + weight_decay*param).
// A non-finite norm skips the update.
typedef struct { fd_tensor param, grad, m, v, norm, hyper; } fd_adamw_args;
// Muon's elementwise parts (csrc/model/muon.cpp is the rest). hyper = {lr, momentum b, nesterov (0 or 1), weight_decay, max_norm}, norm[0]
// the global gradient norm; g = grad * min(1, max_norm/norm); m = b m + (1-b) g; out = nesterov ? b m + (1-b) g : m.
// A non-finite norm leaves m as it is and gives out = 0.
typedef struct { fd_tensor out, m, grad, norm, hyper; } fd_muon_momentum_args;
// param -= lr * (scale * x + weight_decay * param), unless the norm is not finite
typedef struct { fd_tensor param, x, norm, hyper; double scale; } fd_muon_update_args;
// out = x / max(norm[0], eps). out may be x.
typedef struct { fd_tensor out, x, norm; double eps; } fd_normalize_args;
// out = alpha x + beta y (y absent: alpha x). out may be x or y.
typedef struct { fd_tensor out, x, y; double alpha, beta; } fd_linear_combination_args;

// ---- the list --------------------------------------------------------------------------------------------------
// OP(name, schema). Schema: name:dtype[DIMS] in the order of the struct. '=' is written in full, '+' is read and written,
// '?' may be absent, "a|b" is either dtype; one letter means one size within a call ("S1" is S+1). Scalars: name:f (double), name:i (int64); with '?' 0 if not given.
#define FD_OPS(OP) \
  OP(embedding_forward, "out:f32[N,C]= tokens:i32[N] positions:i32[N]? wte:f32[V,C] wpe:f32[T,C]?") \
  OP(embedding_backward, "dwte:f32[V,C]+ dwpe:f32[T,C]+? dout:f32[N,C] tokens:i32[N] positions:i32[N]?") \
  OP(bigram_ids, "pairs:i32[N]= tokens:i32[N] cu_seqlens:i32[S1] prefixes:i32[S,Y]? seen:i32[B,T]+? past_lens:i32[S]? block_table:i32[S,M]? rows:i") \
  OP(rmsnorm_forward, "out:f32|bf16[N,H,D]= rstd:f32[N,H]= x:f32[N,H,D] weight:f32[D] eps:f") \
  OP(rmsnorm_backward, "dx:f32[N,H,D]+ dweight:f32[D]+ dout:f32[N,H,D] x:f32[N,H,D] weight:f32[D] rstd:f32[N,H] accumulate:i") \
  OP(layernorm_forward, "out:f32|bf16[N,C]= mean:f32[N]= rstd:f32[N]= x:f32[N,C] weight:f32[C] bias:f32[C]? eps:f") \
  OP(layernorm_backward, "dx:f32[N,C]+ dweight:f32[C]+ dbias:f32[C]+? dout:f32[N,C] x:f32[N,C] weight:f32[C] mean:f32[N] rstd:f32[N] accumulate:i") \
  OP(rope, "out:f32[N,H,D]= x:f32[N,H,D] cos:f32[P,R] sin:f32[P,R] positions:i32[N] inverse:i") \
  OP(gelu_forward, "out:f32|bf16[N,F]= x:f32|bf16[N,F]") \
  OP(gelu_backward, "dx:f32[N,F]= dout:f32[N,F] x:f32|bf16[N,F]") \
  OP(swiglu_forward, "out:f32|bf16[N,F]= gate:f32|bf16[N,F] up:f32|bf16[N,F]") \
  OP(swiglu_backward, "dgate:f32[N,F]= dup:f32[N,F]= dout:f32[N,F] gate:f32|bf16[N,F] up:f32|bf16[N,F]") \
  OP(cast, "out:f32|bf16[N,F]= x:f32|bf16[N,F]") \
  OP(matmul_forward, "out:f32[N,O]+ x:f32|bf16[N,C] weight:f32[O,C] packed:f32[P]? bias:f32[O]? residual:f32[N,O]? accumulate:i compute:i?") \
  OP(matmul_gelu_forward, "out:f32|bf16[N,O]=? aux:f32|bf16[N,O]=? x:f32|bf16[N,C] weight:f32[O,C] packed:f32[P]? bias:f32[O]? compute:i?") \
  OP(matmul_swiglu_forward, "out:f32|bf16[N,F]=? aux:f32|bf16[N,O]=? x:f32|bf16[N,C] weight:f32[O,C] packed:f32[P]? bias:f32[O]? compute:i?") \
  OP(matmul_backward_input, "dx:f32[N,C]+ dout:f32[N,O] weight:f32[O,C] accumulate:i compute:i?") \
  OP(matmul_backward_weight, "dweight:f32[O,C]+ dbias:f32[O]+? dout:f32[N,O] x:f32|bf16[N,C] compute:i?") \
  OP(matmul_pack, "packed:f32[P]= weight:f32[O,C] compute:i?") \
  OP(attention_forward, "out:f32[N,H,D]= lse:f32[N,H]= q:f32[N,H,D] k:f32[N,G,D] v:f32[N,G,D] cu_seqlens:i32[S1] scale:f compute:i?") \
  OP(attention_backward, "dq:f32[N,H,D]= dk:f32[N,G,D]= dv:f32[N,G,D]= dout:f32[N,H,D] out:f32|bf16[N,H,D] lse:f32[N,H] q:f32|bf16[N,H,D] k:f32|bf16[N,G,D] v:f32|bf16[N,G,D] cu_seqlens:i32[S1] scale:f compute:i?") \
  OP(kv_cache_write, "k_cache:f32|bf16|i8[B,G,W,U]+ v_cache:f32|bf16|i8[B,G,X,Y]+ k_scale:f32[B,G,T]+? v_scale:f32[B,G,T]+? k:f32[N,G,D] v:f32[N,G,D] cu_seqlens:i32[S1] past_lens:i32[S] block_table:i32[S,M]") \
  OP(attention_cached, "out:f32[N,H,D]= q:f32[N,H,D] k_cache:f32|bf16|i8[B,G,W,U] v_cache:f32|bf16|i8[B,G,X,Y] k_scale:f32[B,G,T]? v_scale:f32[B,G,T]? cu_seqlens:i32[S1] past_lens:i32[S] block_table:i32[S,M] scale:f compute:i?") \
  OP(head_forward, "logprobs:f32[N,K]= entropy:f32[N]= lse:f32[N]= x:f32[N,C] weight:f32[V,C] packed:f32[P]? targets:i32[N,K] temperature:f32[Z] vocab_mask:u8[V]? compute:i?") \
  OP(head_backward, "dx:f32[N,C]= dweight:f32[V,C]+? x:f32[N,C] weight:f32[V,C] packed:f32[P]? targets:i32[N,K] temperature:f32[Z] vocab_mask:u8[V]? lse:f32[N] entropy:f32[N] dlogprobs:f32[N,K]? dentropy:f32[N]? dlse:f32[N]? compute:i?") \
  OP(head_forward_backward, "logprobs:f32[N,K]= entropy:f32[N]= lse:f32[N]= dx:f32[N,C]= dweight:f32[V,C]+? x:f32[N,C] weight:f32[V,C] packed:f32[P]? targets:i32[N,K] temperature:f32[Z] vocab_mask:u8[V]? dlogprobs:f32[N,K] compute:i?") \
  OP(head_sample, "tokens:i32[S]= logprobs:f32[S]= x:f32[S,C] weight:f32[V,C] packed:f32[P]? vocab_mask:u8[V]? temperature:f32[S] top_k:i32[S] top_p:f32[S] min_p:f32[S] seeds:u64[S] counters:u64[S] compute:i?") \
  OP(decode_advance, "out_tokens:i32[S]= out_logprobs:f32[S]= sampled:i32[N] logprobs:f32[N] stop_ids:i32[S,J]? cu_seqlens:i32[S1]+ past_lens:i32[S]+ remaining:i32[S]+ tokens:i32[N]+ positions:i32[N]+ temperature:f32[N]+ top_k:i32[N]+ top_p:f32[N]+ min_p:f32[N]+ seeds:u64[N]+ counters:u64[N]+") \
  OP(quantized_pack, "packed:u8[Q]= rows:u8[O,R] type:i") \
  OP(quantized_matmul, "out:f32[N,O]= x:f32[N,C] weight:u8[Q] bias:f32[O]? residual:f32[N,O]? type:i compute:i?") \
  OP(quantized_matmul_backward_input, "dx:f32[N,C]+ dout:f32[N,O] weight:u8[Q] accumulate:i type:i compute:i?") \
  OP(quantized_embedding, "out:f32[N,C]= tokens:i32[N] positions:i32[N]? weight:u8[Q] wpe:f32[T,C]? vocab:i type:i") \
  OP(quantized_head_forward, "logprobs:f32[N,K]= entropy:f32[N]= lse:f32[N]= x:f32[N,C] weight:u8[Q] targets:i32[N,K] temperature:f32[Z] vocab_mask:u8[V]? vocab:i type:i compute:i?") \
  OP(quantized_head_sample, "tokens:i32[S]= logprobs:f32[S]= x:f32[S,C] weight:u8[Q] vocab_mask:u8[V]? temperature:f32[S] top_k:i32[S] top_p:f32[S] min_p:f32[S] seeds:u64[S] counters:u64[S] vocab:i type:i compute:i?") \
  OP(quantized_head_backward, "dx:f32[N,C]= x:f32[N,C] weight:u8[Q] targets:i32[N,K] temperature:f32[Z] vocab_mask:u8[V]? lse:f32[N] entropy:f32[N] dlogprobs:f32[N,K]? dentropy:f32[N]? dlse:f32[N]? vocab:i type:i compute:i?") \
  OP(quantized_head_forward_backward, "logprobs:f32[N,K]= entropy:f32[N]= lse:f32[N]= dx:f32[N,C]= x:f32[N,C] weight:u8[Q] targets:i32[N,K] temperature:f32[Z] vocab_mask:u8[V]? dlogprobs:f32[N,K] vocab:i type:i compute:i?") \
  OP(global_norm, "out:f32[Z]= x:f32[P]") \
  OP(adamw, "param:f32[P]+ grad:f32[P] m:f32[P]+ v:f32[P]+ norm:f32[Z] hyper:f32[Y]") \
  OP(muon_momentum, "out:f32[P]= m:f32[P]+ grad:f32[P] norm:f32[Z] hyper:f32[Y]") \
  OP(muon_update, "param:f32[P]+ x:f32[P] norm:f32[Z] hyper:f32[Y] scale:f") \
  OP(normalize, "out:f32[P]= x:f32[P] norm:f32[Z] eps:f") \
  OP(linear_combination, "out:f32[P]= x:f32[P] y:f32[P]? alpha:f beta:f")

// The table of one device: ops.matmul_forward(ctx, &args).
typedef struct {
#define FD_MEMBER(name, schema) void (*name)(fd_context*, const fd_##name##_args*);
  FD_OPS(FD_MEMBER)
#undef FD_MEMBER
} fd_ops;

// One variant of one op. Tests and benchmarks enumerate these; a new variant is tested by existing.
typedef struct {
  const char* op;       // "matmul_forward"
  const char* name;     // "naive", "simd"
  int32_t priority;     // the table takes the highest; naive is 0
  void (*run)(fd_context*, const void* args);
  size_t (*workspace)(const void* args, int32_t threads);  // bytes; NULL = none
} fd_variant;

typedef struct {
  const char* name;                         // "cpu", "cuda", "cuda-emu"
  const char* tier;                         // "baseline", "avx2", ...
  const fd_variant* variants;
  int32_t n_variants;
  int64_t (*matmul_packed_size)(int64_t O, int64_t C, int64_t compute);  // words of 32 bits
  int64_t (*quantized_size)(int64_t O, int64_t C, int64_t type);         // bytes; 0: not a type that is held packed, or C no whole blocks
  int64_t (*quantized_row)(int64_t C, int64_t type);                      // bytes of a row in the file; 0 as above
  double (*peak_run)(fd_context*, int64_t iterations, int64_t compute);  // multiply-adds on registers; returns how many FLOPs it did
  int32_t fast_bf16;                                                     // whether FD_BF16 has instructions of its own here
  // Memory that the kernels and the host both see, zero-filled; NULL: there is none left. All three NULL: any memory of the process will do, and
  // ops have ended when they return (CPU).
  void* (*allocate)(size_t bytes);
  void (*release)(void* memory);
  // What only devices with memory of their own have (else NULL).
  // Memory of the kernels alone, zero-filled, given back by release: the host reaches it by copy and clear. NULL: none left.
  void* (*allocate_private)(size_t bytes);
  size_t (*free_memory)(void);
  // Memory of the host that copies are made from and to (pinned), so that they run while others work.
  void* (*allocate_host)(size_t bytes);
  void (*release_host)(void* memory);
  // Why this thread's last allocation gave NULL, if it was not that there is no memory left; else NULL.
  const char* (*refusal)(void);
  // A queue of ops and copies (fd_context.stream), done in order; several of them side by side.
  void* (*open_stream)(void);
  void (*close_stream)(void* stream);
  // In order with the ops of the context's stream, as they are. A side that is the host's is memory of allocate_host, and is left alone until it is done.
  void (*copy)(fd_context*, void* to, const void* from, size_t bytes);
  void (*clear)(fd_context*, void* memory, size_t bytes);
  // Marks: all that the context's stream was given before. follow: its later work waits for the mark. reach: the host does; NULL, or the sentence
  // that synchronize of that stream tells, to which it is left.
  void* (*open_mark)(void);
  void (*close_mark)(void* mark);
  void (*mark)(fd_context*, void* mark);
  void (*follow)(fd_context*, void* mark);
  const char* (*reach)(void* mark);
  // A mark that knows when it was passed (close_mark closes it): seconds from one to another of the same stream, both passed.
  void* (*open_clock)(void);
  double (*seconds_between)(void* from, void* to);
  // Graphs: ops and copies that the context's stream is given between begin_graph and end_graph are not done but kept, to be done together, in
  // order, at each run_graph. Their arguments are kept as they were, numbers in memory are those of the day. begin_graph: 0 where no graphs are
  // wanted; end_graph: NULL where something in between cannot be kept, and then none of it has been done.
  int32_t (*begin_graph)(fd_context*);
  void* (*end_graph)(fd_context*);
  void (*run_graph)(fd_context*, void* graph);
  void (*close_graph)(void* graph);
  // Waits for every op called with this context: the host may touch device memory after it and before the next op. Returns NULL, or a sentence
  // about the first op of its stream that failed since the last call, good until this thread waits again.
  const char* (*synchronize)(fd_context*);
} fd_device_table;

#ifdef __cplusplus
}
#endif
