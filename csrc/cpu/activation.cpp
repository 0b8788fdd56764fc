// Activations: gelu (tanh form) and SwiGLU, forward and backward.
//   gelu(x) = 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the sigmoid form has no cancellation.
//   swiglu(a, b) = silu(a) b, silu(a) = a sigmoid(a); silu'(a) = s (1 + a (1 - s)).
//
// Memory: 8 bytes an element (gelu forward) to 20 (swiglu backward), plus one exp and one division; 4 to 16 where what products read
// (out) and what is kept for backward (x, gate, up) are bfloat16. Large outputs go past the
// cache (stream.h). With AVX-512 the exponential is nine instructions, because the processor scales by a power of two itself;
// with the thirty of simd.h's vexp gelu is bound by arithmetic on one thread. How fast: benchmarks/ops.py.
#include "activation.h"
#include "stream.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

FD_INLINE float* row(const fd_tensor& t, int64_t n) { return f32(t) + n * t.stride[0]; }
// Rows of tensors that are of floats or of bfloat16: from(x, n) is row n of any input (two are of one kind), to(out, n) of the output.
template <class T>
struct RowsOf {
  T* operator()(const fd_tensor& t, int64_t n) const { return static_cast<T*>(t.data) + n * t.stride[0]; }
};
template <class Body>
FD_INLINE void with_input(const fd_tensor& in, const Body& body) {
  is_half(in) ? body(RowsOf<const bf16>{}) : body(RowsOf<const float>{});
}
template <class Body>
FD_INLINE void with_rows(const fd_tensor& out, const fd_tensor& in, const Body& body) {
  with_input(in, [&](const auto& from) { is_half(out) ? body(RowsOf<bf16>{}, from) : body(RowsOf<float>{}, from); });
}

// ---- naive: the formulas, with libm in double ------------------------------------------------------------------

void gelu_forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_gelu_forward_args*>(p);
  const int64_t F = a.x.shape[1];
  with_rows(a.out, a.x, [&](const auto& to, const auto& from) {
    parallel_rows(ctx, a.x.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t f = 0; f < F; ++f) {
          store_one(to(a.out, n) + f, gelu_one(value_of(from(a.x, n)[f])));
        }
      }
    });
  });
}

void gelu_backward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_gelu_backward_args*>(p);
  const int64_t F = a.x.shape[1];
  with_input(a.x, [&](const auto& from) {
    parallel_rows(ctx, a.x.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t f = 0; f < F; ++f) {
          const double x = value_of(from(a.x, n)[f]), t = tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
          const double slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
          row(a.dx, n)[f] = static_cast<float>(row(a.dout, n)[f] * slope);
        }
      }
    });
  });
}

void swiglu_forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_swiglu_forward_args*>(p);
  const int64_t F = a.gate.shape[1];
  with_rows(a.out, a.gate, [&](const auto& to, const auto& from) {
    parallel_rows(ctx, a.gate.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t f = 0; f < F; ++f) {
          store_one(to(a.out, n) + f, swiglu_one(value_of(from(a.gate, n)[f]), value_of(from(a.up, n)[f])));
        }
      }
    });
  });
}

void swiglu_backward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_swiglu_backward_args*>(p);
  const int64_t F = a.gate.shape[1];
  with_input(a.gate, [&](const auto& from) {
    parallel_rows(ctx, a.gate.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (int64_t f = 0; f < F; ++f) {
          const double gate = value_of(from(a.gate, n)[f]), up = value_of(from(a.up, n)[f]), dout = row(a.dout, n)[f];
          const double s = 1.0 / (1.0 + exp(-gate));
          row(a.dgate, n)[f] = static_cast<float>(dout * up * s * (1.0 + gate * (1.0 - s)));
          row(a.dup, n)[f] = static_cast<float>(dout * gate * s);
        }
      }
    });
  });
}

// ---- simd: polynomial exp -------------------------------------------------------------------------

void gelu_forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_gelu_forward_args*>(p);
  const int64_t F = a.x.shape[1];
  const bool stream = should_stream(a.out);
  with_rows(a.out, a.x, [&](const auto& to, const auto& from) {
    parallel_rows(ctx, a.x.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const auto* in = from(a.x, n);
        auto* out = to(a.out, n);
        for_lanes_to(stream, F, [&](int64_t f, auto load, auto store) {
          store(out + f, gelu_lanes(load(in + f)));
        });
      }
      stream_end(stream);
    });
  });
}

void gelu_backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_gelu_backward_args*>(p);
  const int64_t F = a.x.shape[1];
  const bool stream = should_stream(a.dx);
  with_input(a.x, [&](const auto& from) {
    parallel_rows(ctx, a.x.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const auto* in = from(a.x, n);
        const float* dout = row(a.dout, n);
        float* dx = row(a.dx, n);
        for_lanes_to(stream, F, [&](int64_t f, auto load, auto store) {
          const vf x = load(in + f), xx = x * x, s = gelu_sigmoid(x, xx);
          const vf du = vfma(vset(6.0f * SQRT_2_OVER_PI * CUBIC), xx, vset(2.0f * SQRT_2_OVER_PI));
          store(dx + f, load(dout + f) * vfma(x * du, s * (vset(1.0f) - s), s));
        });
      }
      stream_end(stream);
    });
  });
}

void swiglu_forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_swiglu_forward_args*>(p);
  const int64_t F = a.gate.shape[1];
  const bool stream = should_stream(a.out);
  with_rows(a.out, a.gate, [&](const auto& to, const auto& from) {
    parallel_rows(ctx, a.gate.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const auto *gate = from(a.gate, n), *up = from(a.up, n);
        auto* out = to(a.out, n);
        for_lanes_to(stream, F, [&](int64_t f, auto load, auto store) {
          store(out + f, swiglu_lanes(load(gate + f), load(up + f)));
        });
      }
      stream_end(stream);
    });
  });
}

void swiglu_backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_swiglu_backward_args*>(p);
  const int64_t F = a.gate.shape[1];
  const bool stream = should_stream(a.dgate) && should_stream(a.dup);
  with_input(a.gate, [&](const auto& from) {
    parallel_rows(ctx, a.gate.shape[0], F, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const auto *gate = from(a.gate, n), *up = from(a.up, n);
        const float* dout = row(a.dout, n);
        float *dgate = row(a.dgate, n), *dup = row(a.dup, n);
        for_lanes_to(stream, F, [&](int64_t f, auto load, auto store) {
          const vf g = load(gate + f), u = load(up + f), d = load(dout + f), s = sigmoid(g);
          store(dgate + f, d * u * s * vfma(g, vset(1.0f) - s, vset(1.0f)));
          store(dup + f, d * g * s);
        });
      }
      stream_end(stream);
    });
  });
}

}  // namespace

FD_VARIANT_LIST(activation, {"gelu_forward", "naive", 0, gelu_forward_naive, nullptr},
                {"gelu_forward", "simd", 10, gelu_forward_simd, nullptr},
                {"gelu_backward", "naive", 0, gelu_backward_naive, nullptr},
                {"gelu_backward", "simd", 10, gelu_backward_simd, nullptr},
                {"swiglu_forward", "naive", 0, swiglu_forward_naive, nullptr},
                {"swiglu_forward", "simd", 10, swiglu_forward_simd, nullptr},
                {"swiglu_backward", "naive", 0, swiglu_backward_naive, nullptr},
                {"swiglu_backward", "simd", 10, swiglu_backward_simd, nullptr})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
