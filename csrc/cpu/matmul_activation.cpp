// Products that an activation follows:
//   matmul_gelu_forward:    aux = x W^T + bias, out = gelu(aux)
//   matmul_swiglu_forward:  the same aux [N, 2 F], out = silu(aux[:, :F]) aux[:, F:]
//
// Memory: the product (matmul.cpp) needs a float32 place for its sums, since they rest there between slices of k: aux or out
// where one of them can be it, else the workspace. When all are complete, a pass takes them row by row: a row stays in the L1
// cache while it is rounded to aux and out is made of it. As ops of their own cast and the activation read all of it twice, 4
// bytes a number more.
//
// Variants: those of matmul_forward and of the activation, one after the other, and so their bits.
#include <type_traits>

#include "activation.h"
#include "matmul.h"
#include "stream.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

template <class Args>
constexpr bool GATED = std::is_same<Args, fd_matmul_swiglu_forward_args>::value;

// Where the sums rest: in what holds them anyway, or in a place of their own.
template <class Args>
fd_tensor place_of_sums(const Args& a, float* own) {
  if (a.aux.data != nullptr && !is_half(a.aux)) return a.aux;
  if (!GATED<Args> && a.out.data != nullptr && !is_half(a.out)) return a.out;
  const int64_t N = a.x.shape[0], O = a.weight.shape[0];
  return {own, {N, O, 1, 1}, {O, 1, 1, 1}, 2, FD_F32};
}

template <class Args>
fd_tensor multiply(fd_context* ctx, const Args& a, size_t used, void (*product)(fd_context*, const void*)) {
  const fd_tensor sums = place_of_sums(a, reinterpret_cast<float*>(ctx->workspace + used));
  const fd_tensor absent{nullptr, {0, 0, 0, 0}, {0, 0, 0, 0}, 0, FD_F32};
  const fd_matmul_forward_args of_sums{sums, a.x, a.weight, a.packed, a.bias, absent, 0, a.compute};
  product(ctx, &of_sums);
  return sums;
}

// to_aux(sums of a row, its aux), to_out(sums of a row, its out), where there are such, for every row
template <class Args, class ToAux, class ToOut>
void for_rows(fd_context* ctx, const Args& a, const fd_tensor& sums, bool stream, const ToAux& to_aux, const ToOut& to_out) {
  with_numbers(a.aux, [&](auto* aux) {
    with_numbers(a.out, [&](auto* out) {
      parallel_rows(ctx, sums.shape[0], sums.shape[1], [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const float* sum = f32(sums) + n * sums.stride[0];
          if (aux != nullptr && static_cast<void*>(aux) != sums.data) to_aux(sum, aux + n * a.aux.stride[0]);
          if (out != nullptr) to_out(sum, out + n * a.out.stride[0]);
        }
        stream_end(stream);
      });
    });
  });
}

// ---- naive -----------------------------------------------------------------------------------------------------

template <class Args>
void forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const Args*>(p);
  const fd_tensor sums = multiply(ctx, a, 0, matmul_forward_naive);
  const int64_t O = sums.shape[1], F = GATED<Args> ? O / 2 : O;
  const auto to_aux = [&](const float* sum, auto* aux) {
    for (int64_t o = 0; o < O; ++o) store_one(aux + o, sum[o]);
  };
  for_rows(ctx, a, sums, false, to_aux, [&](const float* sum, auto* out) {
    for (int64_t f = 0; f < F; ++f) store_one(out + f, GATED<Args> ? swiglu_one(sum[f], sum[F + f]) : gelu_one(sum[f]));
  });
}

// ---- simd ------------------------------------------------------------------------------------------------------

template <class Args>
void forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const Args*>(p);
  const fd_tensor sums = multiply(ctx, a, matmul_forward_workspace(a.weight, ctx->threads), matmul_forward_simd);
  const int64_t O = sums.shape[1], F = GATED<Args> ? O / 2 : O;
  const bool stream_aux = should_stream(a.aux), stream_out = should_stream(a.out) && a.out.data != sums.data;
  const auto to_aux = [&](const float* sum, auto* aux) {
    for_lanes_to(stream_aux, O, [&](int64_t o, auto load, auto store) { store(aux + o, load(sum + o)); });
  };
  for_rows(ctx, a, sums, stream_aux || stream_out, to_aux, [&](const float* sum, auto* out) {
    for_lanes_to(stream_out, F, [&](int64_t f, auto load, auto store) {
      store(out + f, GATED<Args> ? swiglu_lanes(load(sum + f), load(sum + F + f)) : gelu_lanes(load(sum + f)));
    });
  });
}

template <class Args>
size_t naive_workspace(const void* p, int32_t) {
  const auto& a = *static_cast<const Args*>(p);
  return bytes64(a.x.shape[0] * a.weight.shape[0], sizeof(float));
}
template <class Args>
size_t simd_workspace(const void* p, int32_t threads) {
  const auto& a = *static_cast<const Args*>(p);
  return matmul_forward_workspace(a.weight, threads) + naive_workspace<Args>(p, threads);
}

}  // namespace

using Gelu = fd_matmul_gelu_forward_args;
using Swiglu = fd_matmul_swiglu_forward_args;
FD_VARIANT_LIST(matmul_activation, {"matmul_gelu_forward", "naive", 0, forward_naive<Gelu>, naive_workspace<Gelu>},
                {"matmul_gelu_forward", "simd", 10, forward_simd<Gelu>, simd_workspace<Gelu>},
                {"matmul_swiglu_forward", "naive", 0, forward_naive<Swiglu>, naive_workspace<Swiglu>},
                {"matmul_swiglu_forward", "simd", 10, forward_simd<Swiglu>, simd_workspace<Swiglu>})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
