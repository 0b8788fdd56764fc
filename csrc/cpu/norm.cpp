// Norms: RMSNorm (residual stream and QK-norm) and LayerNorm, forward and backward.
//   rmsnorm:    out = x rstd w;  with g = dout w:  dx = rstd (g - x rstd^2 mean(g x)),  dw += sum_n dout x rstd
//   layernorm:  out = xhat w + b, xhat = (x - mean) rstd;  dx = rstd (g - mean(g) - xhat mean(g xhat)),
//               dw += sum_n dout xhat, db += sum_n dout
//
// Memory: forward reads and writes each element once (a row stays in L1 between its two passes): 8 bytes an element, 6 where out
// is bfloat16.
// Backward reads dout and x and writes dx: 12. The sums over rows (dw, db) are taken over chunks of ROW_CHUNK rows,
// each into its own partial in the workspace; the partials are then added in order. Chunks depend on N only.
//
// naive: sums in double, one number at a time. simd: lanes, four chains a sum, the order of a row's sum depends on D only; large
// outputs go past the cache (stream.h). How fast: benchmarks/ops.py.
#include "stream.h"
#include "tier.h"

namespace freedive {
namespace FREEDIVE_TIER_NAMESPACE {
namespace {

constexpr int64_t ROW_CHUNK = 64;

// Row r of [N,H,D] is (n, h) = (r / H, r % H); [N,C] is the case H = 1.
FD_INLINE float* row_of(const fd_tensor& t, int64_t H, int64_t r) {
  return f32(t) + r / H * t.stride[0] + (t.ndim == 3 ? r % H * t.stride[1] : 0);
}
// body(row(r)) where row(r) is a row of the output, of floats or of bfloat16.
template <class Body>
FD_INLINE void with_rows(const fd_tensor& t, int64_t H, const Body& body) {
  with_numbers(t, [&](auto* data) {
    body([=, &t](int64_t r) { return data + r / H * t.stride[0] + (t.ndim == 3 ? r % H * t.stride[1] : 0); });
  });
}
// rstd[n, h], mean[n]
FD_INLINE float* stat_of(const fd_tensor& t, int64_t H, int64_t r) {
  return f32(t) + r / H * t.stride[0] + (t.ndim == 2 ? r % H * t.stride[1] : 0);
}

// ---- naive -----------------------------------------------------------------------------------------------------

void rmsnorm_forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_rmsnorm_forward_args*>(p);
  const int64_t H = a.x.shape[1], D = a.x.shape[2], rows = a.x.shape[0] * H;
  with_rows(a.out, H, [&](const auto& out_row) {
    parallel_rows(ctx, rows, D, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float* x = row_of(a.x, H, r);
        auto* out = out_row(r);
        double square = 0;
        for (int64_t d = 0; d < D; ++d) square += static_cast<double>(x[d]) * x[d];
        const float rstd = static_cast<float>(1.0 / sqrt(square / D + a.eps));
        for (int64_t d = 0; d < D; ++d) store_one(out + d, x[d] * rstd * f32(a.weight)[d]);
        *stat_of(a.rstd, H, r) = rstd;
      }
    });
  });
}

void layernorm_forward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_layernorm_forward_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1];
  with_rows(a.out, 1, [&](const auto& out_row) {
    parallel_rows(ctx, N, C, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const float* x = row_of(a.x, 1, n);
        auto* out = out_row(n);
        double mean = 0, square = 0;
        for (int64_t c = 0; c < C; ++c) mean += x[c];
        mean /= C;
        for (int64_t c = 0; c < C; ++c) square += (x[c] - mean) * (x[c] - mean);
        const double rstd = 1.0 / sqrt(square / C + a.eps);
        for (int64_t c = 0; c < C; ++c) {
          const float bias = f32(a.bias) ? f32(a.bias)[c] : 0.0f;
          store_one(out + c, static_cast<float>((x[c] - mean) * rstd) * f32(a.weight)[c] + bias);
        }
        *stat_of(a.mean, 1, n) = static_cast<float>(mean);
        *stat_of(a.rstd, 1, n) = static_cast<float>(rstd);
      }
    });
  });
}

// ---- simd forward ----------------------------------------------------------------------------------------------

void rmsnorm_forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_rmsnorm_forward_args*>(p);
  const int64_t H = a.x.shape[1], D = a.x.shape[2], rows = a.x.shape[0] * H;
  const float* weight = f32(a.weight);
  const bool stream = should_stream(a.out) && D % 16 == 0;
  with_rows(a.out, H, [&](const auto& out_row) {
    parallel_rows(ctx, rows, D, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float* x = row_of(a.x, H, r);
        auto* out = out_row(r);
        const float square = sum_lanes(D, [&](int64_t i, auto load, vf s) { return vfma(load(x + i), load(x + i), s); });
        const float rstd = static_cast<float>(1.0 / sqrt(static_cast<double>(square) / D + a.eps));
        for_lanes_to(stream, D,
                     [&](int64_t i, auto load, auto store) { store(out + i, load(x + i) * vset(rstd) * load(weight + i)); });
        *stat_of(a.rstd, H, r) = rstd;
      }
      stream_end(stream);
    });
  });
}

void layernorm_forward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_layernorm_forward_args*>(p);
  const int64_t N = a.x.shape[0], C = a.x.shape[1];
  const float *weight = f32(a.weight), *bias = f32(a.bias);
  const bool stream = should_stream(a.out);
  with_rows(a.out, 1, [&](const auto& out_row) {
    parallel_rows(ctx, N, C, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const float* x = row_of(a.x, 1, n);
        auto* out = out_row(n);
        const float mean = sum_lanes(C, [&](int64_t i, auto load, vf s) { return s + load(x + i); }) / static_cast<float>(C);
        const float square = sum_lanes(C, [&](int64_t i, auto load, vf s) {
          vf y = load(x + i) - vset(mean);
          if (i + VL > C) y = vselect(viota() < vseti(static_cast<int32_t>(C - i)), y, vset(0));
          return vfma(y, y, s);
        });
        const float rstd = static_cast<float>(1.0 / sqrt(static_cast<double>(square) / C + a.eps));
        for_lanes_to(stream, C, [&](int64_t i, auto load, auto store) {
          const vf y = (load(x + i) - vset(mean)) * vset(rstd) * load(weight + i);
          store(out + i, bias ? y + load(bias + i) : y);
        });
        *stat_of(a.mean, 1, n) = mean;
        *stat_of(a.rstd, 1, n) = rstd;
      }
      stream_end(stream);
    });
  });
}

// ---- backward: one driver, a row kernel per norm and variant ---------------------------------------------------
// A row kernel writes (or adds to) dx of row r and adds the row's part to dw[D] and db[D].

template <class Row>
void backward_rows(fd_context* ctx, int64_t rows, int64_t D, float* dweight, float* dbias, const Row& row) {
  const int64_t chunks = ceil_div(rows, ROW_CHUNK), width = ceil_div(D, 16) * 16;
  float* partial = reinterpret_cast<float*>(ctx->workspace);  // [chunks][2][width]
  parallel_units(ctx, chunks, [&](int64_t chunk, int) {
    float *dw = partial + chunk * 2 * width, *db = dw + width;
    for (int64_t i = 0; i < 2 * width; ++i) dw[i] = 0;
    for (int64_t r = chunk * ROW_CHUNK; r < min64(rows, (chunk + 1) * ROW_CHUNK); ++r) row(r, dw, db);
  });
  parallel_units(ctx, ceil_div(D, 64), [&](int64_t unit, int) {
    const int64_t begin = unit * 64, end = min64(D, begin + 64);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const float *dw = partial + chunk * 2 * width, *db = dw + width;
      for (int64_t d = begin; d < end; ++d) dweight[d] += dw[d];
      if (dbias != nullptr) {
        for (int64_t d = begin; d < end; ++d) dbias[d] += db[d];
      }
    }
  });
}

size_t backward_workspace(int64_t rows, int64_t D) {
  return bytes64(ceil_div(rows, ROW_CHUNK) * 2 * (ceil_div(D, 16) * 16), sizeof(float));
}
size_t rmsnorm_backward_workspace(const void* p, int32_t) {
  const auto& a = *static_cast<const fd_rmsnorm_backward_args*>(p);
  return backward_workspace(a.x.shape[0] * a.x.shape[1], a.x.shape[2]);
}
size_t layernorm_backward_workspace(const void* p, int32_t) {
  const auto& a = *static_cast<const fd_layernorm_backward_args*>(p);
  return backward_workspace(a.x.shape[0], a.x.shape[1]);
}

void rmsnorm_backward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_rmsnorm_backward_args*>(p);
  const int64_t H = a.x.shape[1], D = a.x.shape[2];
  backward_rows(ctx, a.x.shape[0] * H, D, f32(a.dweight), nullptr, [&](int64_t r, float* dw, float*) {
    const float *x = row_of(a.x, H, r), *dout = row_of(a.dout, H, r), *weight = f32(a.weight);
    float* dx = row_of(a.dx, H, r);
    const float rstd = *stat_of(a.rstd, H, r);
    double dot = 0;
    for (int64_t d = 0; d < D; ++d) dot += static_cast<double>(dout[d]) * weight[d] * x[d];
    const double pull = static_cast<double>(rstd) * rstd * dot / D;
    for (int64_t d = 0; d < D; ++d) {
      const float value = static_cast<float>(rstd * (static_cast<double>(dout[d]) * weight[d] - x[d] * pull));
      dw[d] += dout[d] * x[d] * rstd;
      dx[d] = a.accumulate ? dx[d] + value : value;
    }
  });
}

void layernorm_backward_naive(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_layernorm_backward_args*>(p);
  const int64_t C = a.x.shape[1];
  backward_rows(ctx, a.x.shape[0], C, f32(a.dweight), f32(a.dbias), [&](int64_t n, float* dw, float* db) {
    const float *x = row_of(a.x, 1, n), *dout = row_of(a.dout, 1, n), *weight = f32(a.weight);
    float* dx = row_of(a.dx, 1, n);
    const double mean = *stat_of(a.mean, 1, n), rstd = *stat_of(a.rstd, 1, n);
    double sum = 0, dot = 0;
    for (int64_t c = 0; c < C; ++c) {
      const double g = static_cast<double>(dout[c]) * weight[c];
      sum += g;
      dot += g * (x[c] - mean) * rstd;
    }
    for (int64_t c = 0; c < C; ++c) {
      const double xhat = (x[c] - mean) * rstd, g = static_cast<double>(dout[c]) * weight[c];
      const float value = static_cast<float>(rstd * (g - sum / C - xhat * dot / C));
      dw[c] += static_cast<float>(dout[c] * xhat);
      db[c] += dout[c];
      dx[c] = a.accumulate ? dx[c] + value : value;
    }
  });
}

void rmsnorm_backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_rmsnorm_backward_args*>(p);
  const int64_t H = a.x.shape[1], D = a.x.shape[2];
  const bool accumulate = a.accumulate != 0;
  backward_rows(ctx, a.x.shape[0] * H, D, f32(a.dweight), nullptr, [&](int64_t r, float* dw, float*) {
    const float *x = row_of(a.x, H, r), *dout = row_of(a.dout, H, r), *weight = f32(a.weight);
    float* dx = row_of(a.dx, H, r);
    const float rstd = *stat_of(a.rstd, H, r);
    const float dot =
        sum_lanes(D, [&](int64_t i, auto load, vf s) { return vfma(load(dout + i) * load(weight + i), load(x + i), s); });
    const float pull = -rstd * rstd * dot / static_cast<float>(D);
    for_lanes(D, [&](int64_t i, auto load, auto store) {
      const vf dy = load(dout + i), xi = load(x + i);
      vf value = vset(rstd) * vfma(xi, vset(pull), dy * load(weight + i));
      if (accumulate) value = load(dx + i) + value;
      store(dw + i, vfma(dy, xi * vset(rstd), load(dw + i)));
      store(dx + i, value);
    });
  });
}

void layernorm_backward_simd(fd_context* ctx, const void* p) {
  const auto& a = *static_cast<const fd_layernorm_backward_args*>(p);
  const int64_t C = a.x.shape[1];
  const bool accumulate = a.accumulate != 0;
  backward_rows(ctx, a.x.shape[0], C, f32(a.dweight), f32(a.dbias), [&](int64_t n, float* dw, float* db) {
    const float *x = row_of(a.x, 1, n), *dout = row_of(a.dout, 1, n), *weight = f32(a.weight);
    float* dx = row_of(a.dx, 1, n);
    const vf mean = vset(*stat_of(a.mean, 1, n)), rstd = vset(*stat_of(a.rstd, 1, n));
    const float sum = sum_lanes(C, [&](int64_t i, auto load, vf s) { return vfma(load(dout + i), load(weight + i), s); });
    const float dot = sum_lanes(C, [&](int64_t i, auto load, vf s) {
      return vfma(load(dout + i) * load(weight + i), (load(x + i) - mean) * rstd, s);  // 0 beyond the end
    });
    const vf mean_g = vset(sum / static_cast<float>(C)), mean_dot = vset(dot / static_cast<float>(C));
    for_lanes(C, [&](int64_t i, auto load, auto store) {
      const vf dy = load(dout + i), xhat = (load(x + i) - mean) * rstd;
      vf value = rstd * ((dy * load(weight + i) - mean_g) - xhat * mean_dot);
      if (accumulate) value = load(dx + i) + value;
      store(dw + i, vfma(dy, xhat, load(dw + i)));
      store(db + i, load(db + i) + dy);
      store(dx + i, value);
    });
  });
}

}  // namespace

FD_VARIANT_LIST(norm, {"rmsnorm_forward", "naive", 0, rmsnorm_forward_naive, nullptr},
                {"rmsnorm_forward", "simd", 10, rmsnorm_forward_simd, nullptr},
                {"rmsnorm_backward", "naive", 0, rmsnorm_backward_naive, rmsnorm_backward_workspace},
                {"rmsnorm_backward", "simd", 10, rmsnorm_backward_simd, rmsnorm_backward_workspace},
                {"layernorm_forward", "naive", 0, layernorm_forward_naive, nullptr},
                {"layernorm_forward", "simd", 10, layernorm_forward_simd, nullptr},
                {"layernorm_backward", "naive", 0, layernorm_backward_naive, layernorm_backward_workspace},
                {"layernorm_backward", "simd", 10, layernorm_backward_simd, layernorm_backward_workspace})

}  // namespace FREEDIVE_TIER_NAMESPACE
}  // namespace freedive
